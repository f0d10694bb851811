"""A user's hooks, whose parameters have names of their own, type-check as hooks, strictly: mypy reads this file."""
# mypy: disallow-untyped-defs, disallow-any-generics, disallow-untyped-calls, disallow-incomplete-defs
# mypy: no-implicit-reexport, strict-equality, warn-return-any, extra-checks, disallow-subclassing-any

from __future__ import annotations

from collections.abc import Callable

import golden_cases
import torch
from torch import Tensor

from dragsa import AttentionHook, DragConfig, DragResult, Schedule, Site, compose, drag_latent
from dragsa.ddim import HookAt
from dragsa.drag import FirstPass, Lap, Supervise, Supervision, Task, motion_supervision
from dragsa.hooks import AtRegions, Attend, RegionHook
from dragsa.passes import PreparedPass


def louder(place: Site, asks: Tensor, answers: Tensor, told: Tensor, plain: Attend) -> Tensor:
    """An attention hook."""
    return plain(asks, answers, told, bias=None) * (1.5 if place.kind == "cross" else 1.0)


class Quieter:
    """An attention hook with a region of its own."""

    def __call__(self, here: Site, a: Tensor, b: Tensor, c: Tensor, rest: Attend) -> Tensor:
        return rest(a, b, c)

    def region(self, which: str, compute: Callable[..., Tensor], *maps: Tensor) -> Tensor:
        return compute(*maps) * 0.9


def half(which: str, compute: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """A region hook."""
    return compute(*maps) / 2


def twice(passing: PreparedPass, asked: Task, before: FirstPass | None, tell: Lap) -> Supervision:
    """A supervision."""
    found = motion_supervision(passing, asked, before, tell)
    return found._replace(loss=2 * found.loss)


ATTENTION: tuple[AttentionHook, ...] = (louder, Quieter(), AtRegions(half, ("mid.res1",)), compose(louder, Quieter()))
REGION: RegionHook = half
SUPERVISION: Supervise = twice
CONTROL: HookAt = lambda number: louder if number else None  # noqa: E731


def test_they_work_as_they_are_typed() -> None:
    net, generator = golden_cases.golden_unet(), torch.Generator().manual_seed(1)
    z, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, golden_cases.CONTEXT_DIM)
    plain = net(z, 401, context).eps
    assert plain is not None
    for hook in ATTENTION:
        came = net(z, 401, context, attention=hook).eps
        assert came is not None and not torch.allclose(came, plain, atol=1e-4)
    points = torch.tensor([[8.0, 8.0]]), torch.tensor([[20.0, 20.0]])
    found: DragResult = drag_latent(
        net, z, 35, context, Schedule(), *points, config=DragConfig(updates=2), supervision=SUPERVISION
    )
    assert len(found.losses) > 0 and CONTROL(0) is None and REGION is half
