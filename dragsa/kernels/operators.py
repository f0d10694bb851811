"""The fused work as operators, `dragsa::pull`, `dragsa::spread` and `dragsa::search`, to whoever traces a pass.

On CUDA Triton's kernels do it, elsewhere torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from dragsa.kernels import patch_loss, tracking, windows


def _operator(compute: Callable[..., Any], shapes: Callable[..., Any]) -> CustomOpDef:
    """Make an operator of a function in torch; on CUDA the kernel of the same name in `triton` does its work.

    Without Triton, which PyTorch brings where it has a release (not on Windows), torch does it there too. shapes: what
    comes of the same arguments, but for the numbers.
    """
    name = compute.__name__
    operator = torch.library.custom_op(f"dragsa::{name}", compute, mutates_args=())
    operator.register_fake(shapes)

    def by_triton(*arguments: Any) -> Any:
        return getattr(importlib.import_module("dragsa.kernels.triton"), name)(*arguments)

    if importlib.util.find_spec("triton"):
        operator.register_kernel("cuda")(by_triton)
    return operator


def _pull_shapes(
    features: Tensor, _: Any, handles: Tensor, directions: Tensor, active: Any, radius: int, *grid: int
) -> tuple[Tensor, Tensor, Tensor]:
    n, (_, c, *native) = handles.shape[0], features.shape
    cells = [windows.cells_across(radius, 1, *sizes) for sizes in zip(native, grid, strict=True)]  # K, L
    loss = features.new_empty((), dtype=windows.accumulated_in(features))
    return loss, loss.new_empty(n, c, *cells), loss.new_empty(n, 2, dtype=torch.long)


def _spread_shape(gradient: Tensor, first: Tensor, scale: Tensor, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty(1, gradient.shape[1], h, w, dtype=dtype)


def _search_shapes(features: Tensor, _: Any, handles: Tensor, *of_window: int) -> tuple[Tensor, Tensor]:
    n = handles.shape[0]
    return handles.new_empty(n, 2), features.new_empty(n, dtype=windows.accumulated_in(features))


pull = _operator(patch_loss.pull, _pull_shapes)
spread = _operator(patch_loss.spread, _spread_shape)
search = _operator(tracking.search, _search_shapes)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, first = output
    ctx.mark_non_differentiable(gradient, first)
    ctx.save_for_backward(gradient, first)
    ctx.native, ctx.dtype = inputs[0].shape[2:], inputs[0].dtype


def _spread_gradient(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradient, first = ctx.saved_tensors
    return spread(gradient, first, scale, *ctx.native, ctx.dtype), *[None] * 7


pull.register_autograd(_spread_gradient, setup_context=_keep_gradient)
