"""The passes of an edit, told as they happen: at which timestep, of which rows, under which hook, how far.

A watched network is another UNet of the very same tensors, whose passes are told; the given one stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dragsa.hooks import AttentionHook, MutualSelfAttention, Named, ReplayKV
from dragsa.layouts import fitting
from dragsa.model import unet as networks
from dragsa.model.unet import Conditioning, UNet
from dragsa.stock.combined import Composed


class Pass(NamedTuple):
    """One pass of the UNet, when it has ended."""

    timestep: float  # τ of its first row
    rows: int
    names: tuple[str, ...]  # the rows' names, where a hook was told them
    hook: str | None  # in words; None for plain attention
    gradient: bool  # it was kept for a gradient
    end: str  # the activation that it ended behind: "eps" is the whole network
    near: bool  # its end was computed at the cells near the handles alone


class _At(Conditioning):
    """A conditioning that knows its timestep."""

    timestep: float


def watched(unet: UNet, tell: Callable[[Pass], object]) -> UNet:
    """Return a UNet of the same tensors that tells each of its passes when it has ended.

    So do networks that are made of it, as under a LoRA. Its numbers are the given one's, bit for bit. It is not for
    compiling: a graph tells nobody.
    """

    class Watched(UNet):
        def condition(self, t: Tensor | int, context: Tensor) -> Conditioning:
            at = _At(*super().condition(t, context))
            at.timestep = float(torch.as_tensor(t).flatten()[0])
            return at

        def walk(
            self, z: Tensor, conditioning: Conditioning, attention: Any = None, run: Any = networks.call
        ) -> Iterator[Any]:
            end, gradient = "", torch.is_grad_enabled()
            near = run is not networks.call and not isinstance(run, partial)  # a checkpointed pass is whole
            try:
                for name, activation in super().walk(z, conditioning, attention, run):
                    end = name
                    yield name, activation
            finally:
                names = attention.rows if isinstance(attention, Named) else ()
                at = getattr(conditioning, "timestep", float("nan"))
                tell(Pass(at, len(z), names, words_of(attention), gradient, end, near))

    with torch.device("meta"):
        twin = Watched(unet.config)
    return fitting.adopt(twin, unet.state_dict())


def words_of(hook: AttentionHook | None) -> str | None:
    """Say what a hook does; None for none."""
    if hook is None:
        return None
    if isinstance(hook, Named):
        return words_of(hook.hook)
    if isinstance(hook, MutualSelfAttention):
        return f"the source's K and V in blocks {spans(hook.blocks)}"
    if isinstance(hook, ReplayKV):
        return f"the source's K and V, kept from an earlier pass, in blocks {spans(tuple(hook.recorded))}"
    if isinstance(hook, Composed):
        return ", then ".join(filter(None, map(words_of, hook.hooks)))
    words = " ".join(repr(hook).split())
    return words if len(words) < 100 else type(hook).__name__


def spans(numbers: tuple[int, ...]) -> str:
    """Return whole numbers as 1, 3-5."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def alike(one: Pass, other: Pass) -> bool:
    """Tell whether two passes differ in their timestep alone."""
    return one._replace(timestep=0) == other._replace(timestep=0)


def sentence(passes: Sequence[Pass], timesteps: Sequence[int]) -> str:
    """Say what passes that are alike were: how many, at which τ_k, of which rows, how far, and under which hook.

    timesteps: τ_1 … τ_T.
    """

    def at(one: Pass) -> str:
        return f"τ_{timesteps.index(int(one.timestep)) + 1}" if one.timestep in timesteps else "other timesteps"

    first, last, n = passes[0], passes[-1], len(passes)
    where = f"{at(first)} (t {first.timestep:g})"
    if last.timestep != first.timestep:
        where = f"{at(first)} to {at(last)} (t {first.timestep:g} to {last.timestep:g})"
    rows = ", ".join(first.names) or ("1 row" if first.rows == 1 else f"{first.rows} rows")
    parts = [f"{n} {'pass' if n == 1 else 'passes'} at {where}", rows]
    if first.end != "eps":
        parts.append(f"as far as {first.end}" + (", that at the cells near the handles alone" if first.near else ""))
    if first.gradient:
        parts.append("with the gradient")
    return "; ".join([*parts, first.hook or "plain attention"])
