"""The last layers of a pass at the cells that are looked at, and nowhere else.

Motion supervision and tracking look at the features in small windows about the handles. Where a pass ends at a tap of
the decoder, its last transformer (and the upsampling behind it) is computed for the queries of these cells alone; they
attend to all cells as ever. What lies elsewhere is zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dragsa.hooks import KV, AttentionHook
from dragsa.kernels import windows
from dragsa.kernels.windows import Cells
from dragsa.model.blocks import DECODER, block_name
from dragsa.model.layers import Transformer, Upsample, attends
from dragsa.model.unet import Run

# Taps of the decoder -> the last transformer that a pass as far as there runs.
LAST = {block_name(block): block_name(block) for stage in DECODER for block in stage.blocks if block}
LAST |= {stage.name: block_name(stage.blocks[-1]) for stage in DECODER if stage.blocks[-1]}


MOST = 4  # times a map's cells: where the windows of many handles hold more, they are no saving


class Near(NamedTuple):
    """The cells that an update may look at, of a map of the tap's size (h, w)."""

    cells: Cells
    size: tuple[int, int]


def looked_at(handles: Tensor, size: tuple[int, int], grid: tuple[int, int], radius: int, track_radius: int) -> Near:
    """Return the cells that an update with these handles (n, 2) may look at, of a map (h, w) under the grid (H, W).

    Tracking looks r_2 cells of the grid round the handles; motion supervision r_1 round what it finds, and two beyond.
    """
    window = windows.window_about(handles, windows.within(track_radius + radius, grid), grid)
    rows = windows.cells_under(window.y, 2, size[0], grid[0])  # (n, K)
    return Near(Cells(rows, windows.cells_under(window.x, 2, size[1], grid[1])), size)


def run_near(run: Run, tap: str, near: Near) -> Run:
    """Run a pass's regions by `run`, those that end it at the tap at the near cells alone."""

    def only_near(name: str, region: nn.Module, x: Tensor, *arguments: Any) -> Any:
        if name == LAST.get(tap):
            size = x.shape[2], x.shape[3]
            cells = near.cells if size == near.size else windows.coarser(near.cells, near.size, size)
            return run(name, transformer_at, region, x, *arguments, windows.index(cells, size[1]))
        if name == f"{tap}.up":
            return run(name, upsample_at, region, x, *arguments, near.cells)
        return run(name, region, x, *arguments)

    return only_near


def transformer_at(
    transformer: Transformer, x: Tensor, cross: KV, block: int, hook: AttentionHook | None, at: Tensor
) -> tuple[Tensor, KV]:
    """Compute a transformer at the cells (a,) of its flattened map (1, C, h, w), zero elsewhere; and all its K/V."""
    layer, (h, w) = transformer.transformer_blocks[0], x.shape[-2:]
    tokens = transformer.proj_in.to_tokens(transformer.norm(x))  # (1, h w, C)
    normed = layer.norm1(tokens)
    q = layer.attn1.query(tokens_at(normed, at))  # (1, heads, a, d)
    kv = layer.attn1.key_value(normed)  # (1, heads, h w, d) each
    some = layer(tokens_at(tokens, at), q, kv, cross, attends(block, (h, w), hook))  # (1, a, C)
    out = transformer.proj_out.from_tokens(some, (len(at), 1))[..., 0]  # (1, C, a)
    return windows.put(windows.take(x.flatten(2), at) + out, at, (h, w)), kv


def tokens_at(x: Tensor, at: Tensor) -> Tensor:
    """(1, n, C) -> (1, a, C), the tokens at (a,)."""
    return windows.take(x.transpose(1, 2), at).transpose(1, 2)


def upsample_at(upsample: Upsample, x: Tensor, size: tuple[int, int], cells: Cells) -> Tensor:
    """Compute an upsampling to (1, C, *size) at windows of cells, zero elsewhere."""
    x = F.interpolate(x, size=size, mode="nearest")
    some = F.conv2d(windows.surrounded(x, cells), upsample.conv.weight, upsample.conv.bias)  # (n, C, K, L)
    return windows.put(some.transpose(0, 1).flatten(1)[None], windows.index(cells, size[1]), size)
