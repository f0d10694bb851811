"""Hooks made of hooks: at some regions alone, several in one, and one that is told the names of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from dragsa.model.blocks import REGIONS
from dragsa.model.sites import Attend, AttentionHook, RegionHook, Site


@dataclass(frozen=True)
class AtRegions:
    """A region hook, called at the `regions` named (none: at all), that is given wherever an attention hook is.

    Attention stays as it is. Raises ValueError for a name that is none of `blocks.REGIONS`.
    """

    hook: RegionHook
    regions: tuple[str, ...] = REGIONS

    def __post_init__(self) -> None:
        if wrong := [name for name in self.regions if name not in REGIONS]:
            raise ValueError(f"no region {wrong[0]!r}: known are {', '.join(REGIONS)}")

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        return attend(q, k, v)

    def region(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return self.hook(name, call, *inputs) if name in self.regions else call(*inputs)


def compose(*hooks: AttentionHook) -> AttentionHook:
    """Make one hook of several; the first is the outermost, and sees the layer's q, k and v as they are.

    A hook inside is called by the `attend` of the one outside of it, with the q, k and v that it is given there; one
    that never calls `attend` leaves out all those inside. Where a bias is handed on, the biases add up. Regions go the
    same way, by `call`.
    """
    return Composed(hooks)


@dataclass(frozen=True)
class Composed:
    """Hooks applied from the outside in: each one's plain attention is the next one, the last one's the layer's own."""

    hooks: tuple[AttentionHook, ...]

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        for hook in reversed(self.hooks):
            attend = partial(_call, hook, site, attend)
        return attend(q, k, v)

    def region(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        for hook in reversed(self.hooks):
            call = partial(region_of(hook), name, call)
        return call(*inputs)


def _call(
    hook: AttentionHook, site: Site, attend: Attend, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> Tensor:
    site = site if len(site.rows) == len(q) else site._replace(rows=())  # of some rows alone the names are not known
    return hook(site, q, k, v, attend if bias is None else partial(_biased, attend, bias))


def _biased(attend: Attend, outer: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return attend(q, k, v, bias=outer if bias is None else outer + bias)


@dataclass(frozen=True)
class Named:
    """A hook in a pass whose rows have names: its sites tell them."""

    hook: AttentionHook
    rows: tuple[str, ...]

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        return self.hook(site._replace(rows=self.rows), q, k, v, attend)

    def region(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return region_of(self.hook)(name, call, *inputs)


def region_of(hook: AttentionHook) -> RegionHook:
    """Return a hook's method `region`, or for one that has none the region hook that changes nothing."""
    return getattr(hook, "region", _as_it_is)


def has_region(hook: AttentionHook) -> bool:
    """Tell whether a hook, or one of those that it is made of, acts on regions."""
    inner = hook.hooks if isinstance(hook, Composed) else (hook.hook,) if isinstance(hook, Named) else ()
    return any(map(has_region, inner)) if inner else hasattr(hook, "region")


def _as_it_is(name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return call(*inputs)
