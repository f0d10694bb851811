"""The metrics that drag editing is published with, each under its own name.

*Mean distance* asks where a handle is in the edited picture: the source's feature at the handle is looked for in the
edited picture's features, and the distance from the place found to the target counts. The features are DIFT's (Tang et
al., *Emergent Correspondence from Image Diffusion*, NeurIPS 2023): one noised pass of a UNet at t = 261, the output of
its second decoder stage (diffusers' `up_blocks.1`, here `decoder2`), the mean over 8 draws of noise, the prompt given;
bilinear to the picture's size; cosine similarity; the first maximum in reading order. Three programs compute three
different numbers of that name:

- `whole_px`: searched in the whole picture, in pixels, the mean over all handles of all pictures. DragDiffusion's
  DragBench evaluation (Shi et al., CVPR 2024), and most that report a "mean distance" of some 30 pixels.
- `masked_px`: the same, searched within the mask of what may move. m-MD of DragLoRA (Xia et al., ICML 2025).
- `normalised`: searched in two discs about the handle and its target, whose radius is the distance between them over
  √2, 5 px at least; x over the picture's width and y over its height; the mean of each picture first, then over
  pictures. RegionDrag (Lu et al., ECCV 2024).

What is not as published: the features come from the UNet that is being used, SD 1.5 or the small model, where all three
take SD 2.1's, so figures compare among themselves and not with printed ones; the latent is the posterior's mean, where
the first two draw from the posterior; the picture is brought to a working size, its aspect kept, where RegionDrag
squashes it to 768×768 and takes the nearest feature cell, not a bilinear mixture; and noise is drawn from the picture's
own name, where all three draw it in the order of the folder.

*Image fidelity* is 1 − LPIPS (AlexNet, both pictures at 224×224) between source and result, as from Kawar et al.,
*Imagic*, CVPR 2023, on. It needs the `lpips` package and AlexNet's weights, which that package fetches.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dragsa import ddim, pictures, tracking
from dragsa.editing import Drag
from dragsa.evaluation import cases, scenes
from dragsa.loading import StableDiffusion
from dragsa.pictures import Point, Size

TIMESTEP = 261
TAP = "decoder2"  # diffusers' up_blocks.1
DRAWS = 8  # of noise, averaged
FIDELITY_SIZE = 224
LEAST_RADIUS = 5.0  # pixels, of the discs that the normalised form searches
FORMS = {  # a table's names of the fields of Distances
    "mean distance, whole picture [px]": "whole_px",
    "mean distance, within the mask [px]": "masked_px",
    "mean distance, normalised, near the drag": "normalised",
}
BY_PICTURE = ("normalised",)  # published as the mean over pictures; the others as the mean over handles


@dataclass(frozen=True)
class Distances:
    """The mean distance's three forms, a value for each handle, and the points (x, y) that they found.

    `masked_px` and `found_masked` are None where there is no mask.
    """

    whole_px: tuple[float, ...]
    masked_px: tuple[float, ...] | None
    normalised: tuple[float, ...]
    found_whole: tuple[Point, ...]
    found_masked: tuple[Point, ...] | None
    found_near: tuple[Point, ...]


@dataclass(frozen=True)
class Sample:
    """A picture and the drags that were asked of it, in its pixels."""

    name: str
    picture: Image.Image
    prompt: str
    drags: tuple[Drag, ...]
    mask: Tensor | None  # (H, W), over ½ where something may move; None for everywhere


def picture_seed(name: str, base: int = 42) -> int:
    """Return the seed of a picture, from its name and a base seed: the same in whatever order and company it is met."""
    digest = hashlib.sha256(f"{base}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big")  # 48 bits: JSON's readers keep 53


@torch.no_grad()
def dift(sd: StableDiffusion, picture: Image.Image, prompt: str, seed: int, size: int = 512, tap: str = TAP) -> Tensor:
    """Return a picture's diffusion features: float32 (1, C, h, w), the mean over `DRAWS` draws of noise.

    z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε at t = 261. `size`: the working size's longer side, as in `pictures.working_size`.
    `tap`: another than the published one is another metric, for models on which that one says nothing.
    """
    working = pictures.working_size(*picture.size, size)
    z_0 = sd.encode(pictures.to_tensor(picture, working))  # (1, 4, h', w')
    generator = torch.Generator().manual_seed(seed)  # the CPU's, so that a seed is one draw on every device
    noise = torch.randn(DRAWS, *z_0.shape[1:], generator=generator).to(z_0)  # (DRAWS, 4, h', w')
    alpha_bar = ddim.training_alpha_bars()[TIMESTEP].item()
    z_t = alpha_bar**0.5 * z_0 + (1 - alpha_bar) ** 0.5 * noise
    context = sd.embed([prompt]).expand(DRAWS, -1, -1)  # (DRAWS, tokens, C')
    return sd.unet(z_t, TIMESTEP, context, taps=(tap,), until=tap).taps[tap].float().mean(dim=0, keepdim=True)


def _between(native: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Return for an axis' pixels the native cell before each, and how far beyond it, (N,) each; edges clamped."""
    at = ((torch.arange(pixels, dtype=torch.float64) + 0.5) * native / pixels - 0.5).clamp(0, native - 1)
    return at.long(), at.frac()


def similarities(features: Tensor, references: Tensor, size: Size) -> Tensor:
    """Return the cosine similarity of each reference with the features of every pixel: (n, H, W), float64.

    features: (1, C, h, w). references: (n, C). size: the picture's (W, H). The features between native cells are
    bilinear, p = Σ w_k f_k over the four about a pixel, and neither product needs them: r·p = Σ w_k (r·f_k) and
    |p|² = Σ w_k w_l (f_k·f_l). So no map of C channels at the picture's size is made.
    """
    h, w = features.shape[2:]
    (before, beyond_x), (above, beyond_y) = _between(w, size[0]), _between(h, size[1])
    before, beyond_x, above, beyond_y = before[None, :], beyond_x[None, :], above[:, None], beyond_y[:, None]
    cells = F.pad(features.double().cpu(), (0, 1, 0, 1), mode="replicate")[0]  # (C, h + 1, w + 1)
    corners = torch.stack([cells[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)])  # (4, C, h, w)
    references = references.double().cpu()
    products = torch.einsum("nc,kchw->knhw", references, corners)
    gram = torch.einsum("kchw,lchw->klhw", corners, corners)
    shares = [down * across for down in (1 - beyond_y, beyond_y) for across in (1 - beyond_x, beyond_x)]  # (H, W) each
    dot = sum(weight * products[k][:, above, before] for k, weight in enumerate(shares))  # (n, H, W)
    square = sum(
        one * other * gram[k, m][above, before] for k, one in enumerate(shares) for m, other in enumerate(shares)
    )  # (H, W)
    lengths = torch.as_tensor(square).clamp(min=0).sqrt() * references.norm(dim=1)[:, None, None]
    return dot / lengths.clamp(min=1e-12)


def first_maximum(similarity: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the place of each map's first maximum in reading order: (n, H, W) -> (n, 2) of (x, y), float64.

    where: bool (H, W) or (n, H, W), not without a true value; only there.
    """
    if where is not None:
        similarity = similarity.masked_fill(~where, -torch.inf)
    index = similarity.flatten(1).argmax(dim=1)  # the first of equals
    width = similarity.shape[2]
    return torch.stack([index % width, index // width], dim=1).double()


def near_the_drag(handles: Tensor, targets: Tensor, size: Size) -> Tensor:
    """Return RegionDrag's mask: the discs about each handle and its target, bool (n, H, W). Points (n, 2) in pixels."""
    width, height = size
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1)  # (H, W, 2)
    radius = ((targets - handles).norm(dim=1) / 2**0.5).clamp(min=LEAST_RADIUS)[:, None, None]  # (n, 1, 1)
    distances = [(grid - points[:, None, None]).norm(dim=-1) for points in (handles, targets)]  # (n, H, W) each
    return torch.minimum(*distances) < radius


@torch.no_grad()
def distances(
    source_features: Tensor, edited_features: Tensor, drags: Sequence[Drag], size: Size, mask: Tensor | None = None
) -> Distances:
    """Return the mean distance's three forms from the features (1, C, h, w) of source and edited picture (see `dift`).

    drags: handles and targets, in pixels of a picture of `size` (W, H). mask: (H, W), what is over ½ may move; one
    without any such pixel is none. Raises ValueError for no drags, points outside and a mask of another size.
    """
    if not len(drags):
        raise ValueError("no drags, so no distance from handle to target")
    pictures.to_grid([point for pair in drags for point in pair], size, size)  # raises for a point outside
    if mask is not None and tuple(mask.shape) != size[::-1]:
        raise ValueError(f"the mask is {tuple(mask.shape)}; it must be the picture's {size[::-1]} (height, width)")
    handles, targets = torch.tensor(drags, dtype=torch.float64).unbind(dim=1)  # (n, 2) each
    references = tracking.sample_points(source_features.double().cpu(), handles, size[::-1])  # (n, C)
    similarity = similarities(edited_features, references, size)  # (n, H, W)
    may_move = None if mask is None or not (mask > 0.5).any() else (mask > 0.5).cpu()
    whole = first_maximum(similarity)
    masked = None if may_move is None else first_maximum(similarity, may_move)
    near = first_maximum(similarity, near_the_drag(handles, targets, size))
    return Distances(
        whole_px=tuple((whole - targets).norm(dim=1).tolist()),
        masked_px=None if masked is None else tuple((masked - targets).norm(dim=1).tolist()),
        normalised=tuple(((near - targets) / torch.tensor(size)).norm(dim=1).tolist()),
        found_whole=tuple(map(tuple, whole.tolist())),
        found_masked=None if masked is None else tuple(map(tuple, masked.tolist())),
        found_near=tuple(map(tuple, near.tolist())),
    )


def measure(
    sd: StableDiffusion, sample: Sample, edited: Image.Image, seed: int = 42, size: int = 512, tap: str = TAP
) -> Distances:
    """Return the mean distance's three forms between a sample and its edit: `dift` of both, and `distances`.

    The two draw different noise, from the sample's name and the base `seed`: the same noise in both would show in both
    features at the same place, and pull what is found towards where it was. An edited picture of another size is
    brought to the source's, bilinearly. Raises ValueError as `distances` does.
    """
    source, edited = sample.picture, of_size(edited, sample.picture.size)
    source_features, edited_features = (
        dift(sd, picture, sample.prompt, picture_seed(f"{sample.name}:{which}", seed), size, tap)
        for which, picture in (("source", source), ("edited", edited))
    )
    return distances(source_features, edited_features, sample.drags, source.size, sample.mask)


def of_size(picture: Image.Image, size: Size) -> Image.Image:
    """Return the picture as RGB, brought to a size bilinearly, as the published programs do."""
    picture = pictures.to_rgb(picture)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


@torch.no_grad()
def fidelity(source: Image.Image, edited: Image.Image) -> float | None:
    """Return 1 − LPIPS of two pictures at 224×224, as in DragBench's evaluation; None where it cannot be had."""
    model, _ = _perceptual()
    if model is None:
        return None
    small = [
        F.interpolate(pictures.to_tensor(picture), size=(FIDELITY_SIZE, FIDELITY_SIZE), mode="bilinear")
        for picture in (source, of_size(edited, source.size))
    ]  # (1, 3, 224, 224) each
    return 1 - model(*small).item()


def why_no_fidelity() -> str | None:
    """Return why `fidelity` is None here; None where it is not."""
    return _perceptual()[1]


@cache
def _perceptual() -> tuple[Any, str | None]:
    """Return LPIPS with AlexNet, or None and the reason."""
    try:
        return importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval(), None
    except ModuleNotFoundError as error:
        return None, f"{error}; pip install 'dragsa[metrics]'"
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        return None, f"lpips cannot be used: {' '.join(str(error).split())}"
    except OSError as error:
        return None, f"AlexNet's weights could not be fetched: {' '.join(str(error).split())}"


def on_truth(sd: StableDiffusion, seeds: Sequence[int], taps: Sequence[str], size: int = 128) -> list[dict[str, Any]]:
    """Return the mean distance of results that are exactly right, and of none at all, on scenes whose object moves.

    One row a tap: means over the scenes' handles (centre and four points of the object), in pixels; the normalised form
    times the width.
    """
    rows: list[dict[str, Any]] = []
    for tap in taps:
        columns: dict[str, list[float]] = {}
        for seed in seeds:
            before, after = scenes.translation(seed)
            idle, truth = (pictures.to_picture(scenes.draw(scene, size)) for scene in (before, after))
            start, goal = scenes.keypoints(before, size), scenes.keypoints(after, size)
            drags = tuple((start[name], goal[name]) for name in cases.FIVE)
            sample = Sample(str(seed), idle, scenes.caption(before), drags, None)
            columns.setdefault("asked", []).extend(math.dist(*drag) for drag in drags)
            for which, edited in (("the truth", truth), ("no edit", idle)):
                found = measure(sd, sample, edited, size=size, tap=tap)
                columns.setdefault(f"{which}, whole", []).extend(found.whole_px)
                columns.setdefault(f"{which}, near", []).extend(size * one for one in found.normalised)
        rows.append({"tap": tap, **{name: sum(values) / len(values) for name, values in columns.items()}})
    return rows
