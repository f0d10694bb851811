"""The hook that gives self-attention the K/V of an earlier pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dragsa.model.blocks import check_blocks
from dragsa.model.sites import KV, Attend, Site


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
