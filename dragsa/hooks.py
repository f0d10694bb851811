"""What can be read from the UNet and what can be written into it: sites, the attention hook, the region hook.

A *tap* reads. It is a name given to the forward pass, and the activation comes back with the result, still attached to
the graph. A *hook* writes. It is one callable that every attention layer calls in place of its plain attention; where
it has a method `region`, every ResBlock and transformer is called through that. Both are arguments: nothing is
registered on a module, and nothing counts calls. The site says where the hook is and what the batch's rows are; the
caller, who owns the loop over timesteps, says when, by passing a hook or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

from einops import rearrange, repeat
from torch import Tensor

from dragsa import layouts
from dragsa.config import CONTROL_BLOCKS
from dragsa.model.blocks import REGIONS, TRANSFORMERS, block_name, check_blocks


class Attend(Protocol):
    """Plain attention, softmax(q kᵀ / √d + bias) v, or the next hook: q (B, heads, n, d) -> the same.

    bias: added to the scores, of a shape that can be expanded to (B, heads, n, m); -∞ shuts a key out.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, /, bias: Tensor | None = None) -> Tensor: ...


class KV(NamedTuple):
    """The heads' key and value of one attention layer, each (B, heads, tokens, d)."""

    key: Tensor
    value: Tensor


class Site(NamedTuple):
    """Where an attention layer stands: a transformer block (1 … 16), its self- or cross-attention, and its grid."""

    block: int
    kind: str  # "self" or "cross"
    grid: tuple[int, int]  # (h, w) of the query's tokens, n = h w
    # What the batch's rows are, as far as the caller says: ("source", "target"), with guidance ("source uncond",
    # "target uncond", "source", "target"); of a pass on one latent ("latent",). Samplers say it, a bare pass does not.
    rows: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{block_name(self.block)} {self.kind}-attention"


class AttentionHook(Protocol):
    """Called by every attention layer in place of plain attention.

    `q` is (B, heads, n, d); `k` and `v` are (B, heads, m, d). The result must be (B, heads, n, d). `attend(q, k, v)` is
    the plain attention, softmax(q kᵀ / √d) v: a hook that returns it changes no bit. Its parameters may have any names.
    """

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend, /) -> Tensor: ...


# A region hook is called by every ResBlock and transformer of `blocks.REGIONS` in place of its own computing: given the
# region's name, `call` and the inputs, it returns what `call(*inputs)` would, a map (B, C, h, w); one that returns just
# that changes no bit. The inputs are one map, of the decoder's ResBlocks two: the backbone's and the skip's, which
# `call` concatenates. What else a region is given (time embedding, context) is in `call`.
RegionHook = Callable[..., Tensor]


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d), (B, heads, n, m)."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1)


# The stock hooks are frozen dataclasses: they print what they do, and a compiled pass guards on what they hold, so that
# an equal hook, or the same hook with new K/V of the same shape, costs no recompile.


@dataclass(frozen=True)
class MutualSelfAttention:
    """MasaCtrl's mutual self-attention for source and target side by side.

    The batch is pairs of rows (source, target), or with guidance (source, target) unconditional and then (source,
    target) conditional. In the self-attention of `blocks` both rows of a pair take Key and Value from its source row:
    softmax(Q_target K_sourceᵀ / √d) V_source. The source row is thereby unchanged.
    """

    blocks: tuple[int, ...] = CONTROL_BLOCKS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        check_pairs(site, k.shape[0])
        return attend(q, from_source(k), from_source(v))


def check_pairs(site: Site, batch: int) -> None:
    """Raise a ValueError that names the site unless its rows are pairs (source, target), or may be."""
    rows = site.rows
    paired = zip(rows[::2], rows[1::2], strict=False)
    if batch % 2 or not all(one.startswith("source") and two == "target" + one[6:] for one, two in paired):
        came = f"rows {', '.join(rows)}" if rows else f"a batch of {batch}"
        raise ValueError(f"{site.name}: expected pairs of rows (source, target), came {came}")


def from_source(x: Tensor) -> Tensor:
    """Return each pair's source row (the even ones) given to both of its rows: (2 p, heads, m, d), the same shape."""
    source = rearrange(x, "(p pair) h m d -> p pair h m d", pair=2)[:, 0]  # (p, heads, m, d)
    return repeat(source, "p h m d -> (p pair) h m d", pair=2)


@dataclass(frozen=True, eq=False)
class ReplayKV:
    """Self-attention with K/V recorded earlier, by block: `{11: out.taps["block11.kv"], …}`.

    The recorded batch must be the batch of the pass, or 1 to serve all its rows.
    """

    recorded: Mapping[int, KV]

    def __post_init__(self) -> None:
        check_blocks(tuple(self.recorded))

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.recorded:
            return attend(q, k, v)
        key, value = self.recorded[site.block]
        for came in (key, value):
            if came.shape[1:] != k.shape[1:] or came.shape[0] not in (1, k.shape[0]):
                raise ValueError(f"{site.name}: recorded K/V must be {tuple(k.shape)}, came {tuple(came.shape)}")
        return attend(q, key.expand_as(k), value.expand_as(v))


class Map(NamedTuple):
    """An attention map, mean over the heads, (B, h, w, m), and its site; B the rows that were chosen."""

    site: Site
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Maps:
    """A hook that changes nothing, and adds the attention maps of `blocks` to the list `found`, in forward order.

    kind: "cross" or "self". rows: the names of those to keep, such as ("target",); none keeps all. Raises ValueError
    where the pass has no such row.
    """

    found: list[Map] = field(default_factory=list)
    kind: str = "cross"
    blocks: tuple[int, ...] = tuple(TRANSFORMERS)
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_blocks(self.blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind == self.kind and site.block in self.blocks:
            if missing := [name for name in self.rows if name not in site.rows]:
                came = ", ".join(site.rows) or "rows without names"
                raise ValueError(f"{site.name}: expected a row {missing[0]!r}, came {came}")
            chosen = [site.rows.index(name) for name in self.rows]
            of = (q[chosen], k[chosen]) if chosen else (q, k)
            self.found.append(Map(site, attention_map(*of).mean(dim=1).unflatten(1, site.grid)))
        return attend(q, k, v)


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
    return hook(site, q, k, v, attend if bias is None else partial(_biased, attend, bias))


def _biased(attend: Attend, outer: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return attend(q, k, v, bias=outer if bias is None else outer + bias)


def region_of(hook: AttentionHook) -> RegionHook:
    """Return a hook's method `region`, or for one that has none the region hook that changes nothing."""
    return getattr(hook, "region", _as_it_is)


def _as_it_is(name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return call(*inputs)


def compose(*hooks: AttentionHook) -> AttentionHook:
    """Make one hook of several; the first is the outermost, and sees the layer's q, k and v as they are.

    A hook inside is called by the `attend` of the one outside of it, with the q, k and v that it is given there; one
    that never calls `attend` leaves out all those inside. Where a bias is handed on, the biases add up. Regions go the
    same way, by `call`.
    """
    return Composed(hooks)


@dataclass(frozen=True)
class Named:
    """A hook in a pass whose rows have names: its sites tell them."""

    hook: AttentionHook
    rows: tuple[str, ...]

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        return self.hook(site._replace(rows=self.rows), q, k, v, attend)

    def region(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return region_of(self.hook)(name, call, *inputs)


def as_processors(
    hook: AttentionHook, pipe: Any, grid: tuple[int, int] | None = None, rows: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Make diffusers' attention processors of a hook: `pipe.unet.set_attn_processor(as_processors(hook, pipe))`.

    pipe: a diffusers pipeline with SD 1.5's UNet, or that UNet. grid: (h, w) of the latent, by default square, since
    diffusers tells a processor the number of tokens alone. rows: as `Site.rows` is to tell them. A region hook has no
    place there. Raises ValueError for a hook that has one, and for layers that are not SD 1.5's.
    """
    if hasattr(hook, "region"):
        raise ValueError(f"diffusers has no place for a region hook, came {hook!r}")
    sited = hook if not rows else Named(hook, rows)
    return layouts.processors(getattr(pipe, "unet", pipe), sited, Site, grid)
