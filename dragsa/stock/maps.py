"""Attention maps, and the hook that collects them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from dragsa.model.blocks import TRANSFORMERS, check_blocks
from dragsa.model.sites import Attend, Site


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d), (B, heads, n, m)."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1)


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
