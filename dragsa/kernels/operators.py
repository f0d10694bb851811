"""The fused work as operators, `dragsa::pull`, `dragsa::spread` and `dragsa::search`, to whoever traces a pass.

On CUDA Triton's kernels do it, elsewhere torch.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dragsa.kernels import patch_loss, tracking, windows


@cache
def triton_kernels() -> ModuleType | None:
    """Return the kernels for CUDA; None without Triton, which PyTorch brings where it has a release: not on Windows."""
    return importlib.import_module("dragsa.kernels.triton") if importlib.util.find_spec("triton") else None


@torch.library.custom_op("dragsa::pull", mutates_args=())
def pull(
    features: Tensor,
    target_patch: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `patch_loss.pull`, as an operator for every device."""
    return (*patch_loss.pull(features, target_patch, handles, directions, active, radius, (height, width)),)


@pull.register_kernel("cuda")
def _pull_cuda(
    features: Tensor,
    target_patch: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = triton_kernels()
    pulled = patch_loss.pull if kernels is None else kernels.pull
    return (*pulled(features, target_patch, handles, directions, active, radius, (height, width)),)


@pull.register_fake
def _pull_shapes(
    features: Tensor,
    target_patch: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, (_, c, h, w) = handles.shape[0], features.shape
    cells = windows.cells_across(radius, 1, h, height), windows.cells_across(radius, 1, w, width)  # K, L
    loss = features.new_empty((), dtype=windows.accumulated_in(features))
    return loss, loss.new_empty(n, c, *cells), loss.new_empty(n, 2, dtype=torch.long)


@torch.library.custom_op("dragsa::spread", mutates_args=())
def spread(gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Compute `patch_loss.spread`; height and width are those of the features."""
    return patch_loss.spread(gradient, first, scale, (height, width), dtype)


@spread.register_kernel("cuda")
def _spread_cuda(gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    kernels = triton_kernels()
    return (patch_loss.spread if kernels is None else kernels.spread)(gradient, first, scale, (height, width), dtype)


@spread.register_fake
def _spread_shape(
    gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    return gradient.new_empty(1, gradient.shape[1], height, width, dtype=dtype)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, first = output
    ctx.mark_non_differentiable(gradient, first)
    ctx.save_for_backward(gradient, first)
    ctx.native, ctx.dtype = inputs[0].shape[2:], inputs[0].dtype


def _spread_gradient(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradient, first = ctx.saved_tensors
    return spread(gradient, first, scale, *ctx.native, ctx.dtype), None, None, None, None, None, None, None


pull.register_autograd(_spread_gradient, setup_context=_keep_gradient)


@torch.library.custom_op("dragsa::search", mutates_args=())
def search(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Compute `tracking.search`, as an operator for every device."""
    return (*tracking.search(features, reference, handles, radius, (height, width)),)


@search.register_kernel("cuda")
def _search_cuda(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    kernels = triton_kernels()
    found = tracking.search if kernels is None else kernels.search
    return (*found(features, reference, handles, radius, (height, width)),)


@search.register_fake
def _search_shapes(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    n = handles.shape[0]
    return handles.new_empty(n, 2), features.new_empty(n, dtype=windows.accumulated_in(features))
