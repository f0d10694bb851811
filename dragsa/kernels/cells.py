"""Windows of a map, for what is wanted of it there alone: cells taken out of a map, and put into one.

The windows of several points may overlap. What is computed of a cell twice is put back once, so that its gradient is
counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Cells(NamedTuple):
    """n windows of K × L cells of a map, K and L the same for all."""

    rows: Tensor  # (n, K) int64, consecutive
    columns: Tensor  # (n, L) int64, consecutive


def index(cells: Cells, width: int) -> Tensor:
    """Where they lie in the flattened map: (n K L)."""
    return (cells.rows[:, :, None] * width + cells.columns[:, None]).flatten()


def take(x: Tensor, at: Tensor) -> Tensor:
    """(B, C, h w) -> (B, C, m), the cells at (m,)."""
    # gather, whose backward adds up in a fixed order on the CPU; that of indexing does not
    return x.gather(2, at.expand(*x.shape[:2], -1))


def put(values: Tensor, at: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, m) -> (B, C, h, w), zero elsewhere; of several values for one cell, which are equals, the first."""
    again = torch.tril(at[:, None] == at, diagonal=-1).any(dim=1)  # (m,)
    kept = values * ~again
    whole = values.new_zeros(*values.shape[:2], grid[0] * grid[1])
    return whole.scatter_add(2, at.expand_as(kept), kept).unflatten(2, grid)


def coarser(cells: Cells, fine: Sequence[int], coarse: Sequence[int]) -> Cells:
    """Of a coarse map (h', w'), the cells that nearest-neighbour upsampling makes these from and those round them."""
    rows, columns = (_coarser(one, f, c) for one, f, c in zip(cells, fine, coarse, strict=True))  # (n, K'), (n, L')
    return Cells(rows, columns)


def _coarser(position: Tensor, fine: int, coarse: int) -> Tensor:
    count = min(coarse, (position.shape[1] + 1) * coarse // fine + 2)
    first = ((position[:, :1] - 1).clamp(min=0) * coarse // fine).clamp(max=coarse - count)
    return first + torch.arange(count, device=position.device)


def surrounded(x: Tensor, cells: Cells) -> Tensor:
    """Each window of (1, C, h, w) with the cells round it, zeros beyond the border: (n, C, K + 2, L + 2)."""
    n, rows, columns = len(cells.rows), cells.rows.shape[1] + 2, cells.columns.shape[1] + 2
    padded = F.pad(x, (1, 1, 1, 1))  # a cell's row in it is that of the cell above it in x
    larger = Cells(*(one[:, :1] + torch.arange(one.shape[1] + 2, device=one.device) for one in cells))
    taken = take(padded.flatten(2), index(larger, padded.shape[3]))  # (1, C, n (K + 2) (L + 2))
    return taken[0].unflatten(1, (n, rows, columns)).transpose(0, 1)
