"""Look inside an edit, as tensors: predicted pictures, distances that tracking compares, attention from a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dragsa import ddim, hooks, pictures
from dragsa.ddim import PAIR, Guided, Schedule
from dragsa.hooks import AttentionHook, Maps
from dragsa.loading import StableDiffusion
from dragsa.motion import CELLS, upsampled


@torch.no_grad()
def predicted(guided: Guided, z: Tensor, schedule: Schedule, level: int) -> Tensor:
    """Return x̂_0 = (z_k - √(1 - ᾱ_k) ε) / √ᾱ_k, the clean latent that z_k (B, C, h, w) is taken for. 0 ≤ level ≤ T."""
    schedule.check_level(level)
    if level == 0:
        return z
    alpha_bar = schedule.alpha_bars[level].to(z)
    return ddim.ddim(z, guided(z, schedule.timesteps[level - 1]).eps, alpha_bar, torch.ones_like(alpha_bar))


class Moment(NamedTuple):
    """A trajectory at one level: z_k decoded as if it were clean, and the picture that it is taken for, x̂_0 decoded."""

    level: int
    latent: Image.Image
    predicted: Image.Image


def trajectory(
    sd: StableDiffusion, guided: Guided, latents: Tensor, schedule: Schedule, levels: Sequence[int]
) -> list[Moment]:
    """Return pictures of a trajectory z_0 … z_T (T + 1, 1, 4, h, w) at chosen levels: a pass and two decodings each."""
    moments = []
    for level in levels:
        z = latents[level]
        both = (pictures.to_picture(sd.decode(one)) for one in (z, predicted(guided, z, schedule, level)))
        moments.append(Moment(level, *both))
    return moments


class DistanceMap(NamedTuple):
    """The distance of every cell's features from those that are looked for, and the two best matches.

    distances: (H, W) on the supervision grid, Σ_channels |F(q) - reference|. best: the cell (x, y) that tracking takes.
    second: the best one of those further than `apart` cells from it; None where the window has none.
    """

    distances: Tensor
    best: tuple[int, int]
    second: tuple[int, int] | None


@torch.no_grad()
def distance_map(
    features: Tensor,
    reference: Tensor,
    handle: Sequence[float],
    radius: int,
    grid: tuple[int, int],
    apart: float = 2.0,
) -> DistanceMap:
    """Return what tracking compares: the whole map, and within the window about the handle its best and second match.

    features: (1, C, h, w). reference: (C,). handle: (x, y) on the grid (H, W). radius: r_2 of the window.
    """
    dense = upsampled(features, grid)[0]  # (C, H, W)
    distances = (dense - reference.to(dense)[:, None, None]).abs().sum(dim=0)  # (H, W)
    (height, width), (x, y) = grid, (int(handle[0]), int(handle[1]))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    outside = ((rows - y).abs() > radius) | ((columns - x).abs() > radius)
    window = distances.cpu().masked_fill(outside, torch.inf)
    row, column = divmod(int(window.argmin()), width)
    elsewhere = window.masked_fill((rows - row) ** 2 + (columns - column) ** 2 <= apart**2, torch.inf)
    second = divmod(int(elsewhere.argmin()), width) if elsewhere.isfinite().any() else None
    return DistanceMap(distances, (column, row), second and (second[1], second[0]))


class AttentionFrom(NamedTuple):
    """The cells that a point of the edit looks at in one block: two maps (h, w), each of the sum 1."""

    own: Tensor  # in its own picture, under plain attention
    controlled: Tensor  # under control, whose keys and values are the source's


@torch.no_grad()
def attention_from(
    guided: Guided,
    pair: Tensor,
    timestep: Tensor,
    block: int,
    point: Sequence[float],
    control: AttentionHook,
) -> AttentionFrom:
    """Return the self-attention of a block from a point of the target, the mean over the heads.

    guided: of two rows, source and target. pair: (2, C, h, w), their latents at the timestep. point: (x, y) on the
    supervision grid. control: a hook that lets the target attend to as many cells as the source has.
    """
    found, named = [], guided._replace(rows=PAIR)
    for hook in (None, control):
        maps = Maps(kind="self", blocks=(block,), rows=("target",))
        named(pair, timestep, maps if hook is None else hooks.compose(hook, maps))
        weights = maps.found[-1].weights[0]  # (h, w, m)
        (h, w), (height, width) = weights.shape[:2], (CELLS * pair.shape[2], CELLS * pair.shape[3])
        row, column = min(h - 1, int((point[1] + 0.5) * h / height)), min(w - 1, int((point[0] + 0.5) * w / width))
        found.append(weights[max(0, row), max(0, column)].view(h, w).float())
    return AttentionFrom(*found)


def frames(
    sd: StableDiffusion, guided: Guided, latents: Sequence[Tensor], schedule: Schedule, level: int
) -> list[Image.Image]:
    """Return the pictures that a drag's latents z_k (1, 4, h, w) are taken for: x̂_0 decoded, a pass each.

    That is not yet the result, which takes k steps more, under control.
    """
    return [pictures.to_picture(sd.decode(predicted(guided, z, schedule, level))) for z in latents]
