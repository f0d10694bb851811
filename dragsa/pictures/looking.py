"""Draw what is inside an edit: features, maps over a picture, curves, a time line. Values in, pictures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dragsa.config import EditConfig
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


def timeline_picture(config: EditConfig, prompt: bool = False, size: Size = (960, 330)) -> Image.Image:
    """Return the time line of a drag, z_T … z_0 from the left: inversion, source and edit, each on a line of its own.

    T, S and A are the config's, to scale. prompt: it changes, too, so that the edit leaves its source at z_T and
    not where the drag begins.
    """
    (width, height), font, small = size, ImageFont.load_default(15), ImageFont.load_default(13)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    steps, at_drag, control = config.steps, config.steps - config.drag_step, config.control_step
    begin = steps if prompt else at_drag  # the level at which the edit leaves its source
    left, right, (inversion, source, edit) = 100, width - 70, (0.22 * height, 0.45 * height, 0.65 * height)

    def x(level: int) -> float:
        return right - (right - left) * level / steps

    def arrow(y: float, start: int, end: int, ink: str) -> None:
        tip, back = x(end), x(end) + (9 if end > start else -9)
        draw.line([(x(start), y), (back, y)], fill=ink, width=3)
        draw.polygon([(tip, y), (back, y - 5), (back, y + 5)], fill=ink)

    if control is not None and control < steps:
        draw.rectangle((x(min(begin, steps - control)), source, right, edit), fill="#d8e6fa")
        middle, said = (source + edit) / 2, "control from step A: the source's K and V"
        draw.text((right - 8, middle), said, fill=INKS[1], font=small, anchor="rm")
    draw.line([(x(begin), inversion), (x(begin), edit)], fill="#909090", width=2)
    rows = (("inversion", inversion, 0, steps), ("source", source, begin, 0), ("edit", edit, begin, 0))
    for n, (name, y, start, end) in enumerate(rows):
        draw.text((8, y), name, fill=INKS[(5, 1, 0)[n]], font=font, anchor="lm")
        arrow(y, start, end, INKS[(5, 1, 0)[n]])
    draw.text((x(begin) + 6, inversion + 6), f"z_{begin}", fill="black", font=small)
    for y, words in ((inversion, "z_0"), (source, "z_0"), (edit, "z'_0")):
        draw.text((right + 8, y), words, fill="black", font=small, anchor="lm")
    draw.text((left, inversion - 10), f"z_T, T = {steps}", fill="black", font=small, anchor="ld")
    draw.ellipse((x(at_drag) - 8, edit - 8, x(at_drag) + 8, edit + 8), fill=INKS[0], outline="white", width=2)
    updates = f"the drag: at most {config.drag.updates} updates of z'_{at_drag}"
    draw.text((x(at_drag) - 6, edit + 12), updates, fill=INKS[0], font=small)
    brackets = [(f"S = {config.drag_step} steps before the drag", config.drag_step, INKS[0])]
    brackets += [] if control is None else [(f"A = {control} steps without control", control, INKS[1])]
    for n, (words, count, ink) in enumerate(brackets):
        y = height - 46 + 26 * n
        draw.line([(left, y - 6), (left, y), (x(steps - count), y), (x(steps - count), y - 6)], fill=ink, width=2)
        draw.text((x(steps - count) + 8, y), words, fill=ink, font=small, anchor="lm")
    return picture
