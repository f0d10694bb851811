"""Pictures of what is inside an edit: features, maps over a picture, curves. Tensors and numbers in, pictures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dragsa.pictures import images
from dragsa.pictures.images import Point, Size

# From nothing over red to white, as glowing iron: the stops' colours at equal distances.
GLOW = np.array([(0, 0, 0), (120, 20, 110), (225, 60, 60), (250, 170, 50), (255, 255, 220)], dtype=np.float64)
INKS = "#c01818", "#1850c0", "#108040", "#a06000", "#7020a0", "#404040"


def principal_components(features: Tensor) -> Tensor:
    """Return the three directions (C, 3) in which a map's features (1, C, h, w) vary most, the first the most.

    Each is turned so that its largest entry is positive: the same map gives the same directions. A map with fewer
    directions than three has zeros for the others.
    """
    tokens = features[0].flatten(1).T.double().cpu()  # (h w, C)
    tokens = tokens - tokens.mean(dim=0)
    _, scales, directions = torch.linalg.svd(tokens, full_matrices=False)  # (r,), (r, C)
    directions = directions[:3].T * (scales[:3] > 1e-9 * scales[0].clamp(min=1e-30))  # (C, at most 3)
    directions = torch.nn.functional.pad(directions, (0, 3 - directions.shape[1]))
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)


def feature_picture(features: Tensor, size: Size | None = None, components: Tensor | None = None) -> Image.Image:
    """Return features (1, C, h, w) as colours: their three principal components as red, green and blue.

    What has like features has a like colour. Each component is scaled so that its middle 96 % fill the range. size:
    (width, height) that the map's cells are enlarged to; by default a pixel a cell. components: (C, 3) of another map,
    for pictures whose colours mean the same. Raises ValueError for another shape.
    """
    if features.ndim != 4 or features.shape[0] != 1:
        raise ValueError(f"features must be (1, C, h, w), came {tuple(features.shape)}")
    directions = principal_components(features) if components is None else components
    values = torch.einsum("chw,ck->khw", features[0].double().cpu(), directions.double().cpu())  # (3, h, w)
    low, high = (values.flatten(1).quantile(share, dim=1)[:, None, None] for share in (0.02, 0.98))
    picture = images.to_picture(2 * (values - low) / (high - low).clamp(min=1e-12) - 1)
    return picture.resize(size or picture.size, Image.Resampling.NEAREST)


def heat_picture(
    values: Tensor, size: Size | None = None, low: float | None = None, high: float | None = None
) -> Image.Image:
    """Return a map (h, w) as colours from black (`low`, by default its least) to white (`high`, its largest).

    Raises ValueError for another shape, and for values that are not finite.
    """
    if values.ndim != 2 or not values.isfinite().all():
        raise ValueError(f"a map must be (h, w) of finite values, came {tuple(values.shape)}")
    levels = values.detach().double().cpu().numpy()
    low, high = levels.min() if low is None else low, levels.max() if high is None else high
    at = np.clip((levels - low) / max(high - low, 1e-30), 0, 1) * (len(GLOW) - 1)  # (h, w), in stops
    stops = np.arange(len(GLOW))
    colours = np.stack([np.interp(at, stops, GLOW[:, channel]) for channel in range(3)], axis=-1)
    picture = Image.fromarray(np.round(colours).astype(np.uint8))
    return picture.resize(size or picture.size, Image.Resampling.NEAREST)


def over_picture(picture: Image.Image, values: Tensor, share: float = 0.6) -> Image.Image:
    """Return a map (h, w) laid over a picture, whose edges it shares: `share` of the map's colours, the rest grey."""
    ground = images.to_rgb(picture).convert("L").convert("RGB")
    return Image.blend(ground, heat_picture(values, ground.size), share)


def with_points(picture: Image.Image, points: Mapping[str, Sequence[Point]], scale: float = 1) -> Image.Image:
    """Return the picture, `scale` times its size, with a ring about each point (x, y) in pixels, a colour a name.

    The names stand in the upper left corner, each in its colour.
    """
    size = images.scaled(picture.size, scale)
    ground = images.to_rgb(picture).resize(size, Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(ground), ImageFont.load_default(max(10, size[1] // 24))
    radius, line = max(3.0, 0.02 * max(size)), max(1, round(0.006 * max(size)))
    for n, (name, places) in enumerate(points.items()):
        ink = INKS[n % len(INKS)]
        for x, y in places:
            x, y = (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5
            for r, colour in ((radius + line, "white"), (radius, ink)):
                draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=line)
        draw.text((4, 2 + n * 1.2 * font.size), name, fill=ink, font=font, stroke_width=2, stroke_fill="white")  # type: ignore[union-attr]
    return ground


def curve_picture(curves: Mapping[str, Sequence[float]], size: Size = (480, 240), below: str = "") -> Image.Image:
    """Return curves by name, values at 1, 2, …, on one axis that begins at 0: the largest value stands at its top.

    below: what is counted along the picture's lower edge. What is not finite is left out. Raises ValueError where no
    curve has a value.
    """
    known = [value for values in curves.values() for value in values if math.isfinite(value)]
    if not known:
        raise ValueError("curves without a value")
    (width, height), font = size, ImageFont.load_default(12)
    left, top, right, bottom = 64, 24, width - 12, height - 24
    low, high = min(0.0, *known), max(0.0, *known)
    high = high if high > low else low + 1
    longest = max(map(len, curves.values()))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    for value, y in ((high, top), (low, bottom)):
        draw.text((left - 6, y), f"{value:.4g}", fill="black", font=font, anchor="rm")
    draw.text((right, bottom + 4), f"{longest} {below}".strip(), fill="black", font=font, anchor="ra")
    x = float(left + 8)
    for n, (name, values) in enumerate(curves.items()):
        ink = INKS[n % len(INKS)]
        places = [
            (left + (right - left) * (at + 1) / longest, bottom - (bottom - top) * (value - low) / (high - low))
            for at, value in enumerate(values)
            if math.isfinite(value)
        ]
        draw.line(places, fill=ink, width=2)
        for px, py in places:
            draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=ink)
        draw.text((x, 4), name, fill=ink, font=font)
        x += font.getlength(name) + 16
    return picture
