"""ToMe (Bolya and Hoffman 2023, arXiv 2303.17604): self-attention over fewer tokens, the most similar ones merged."""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

import dragsa
from dragsa import pictures
from dragsa.hooks import Attend, Site


@dataclass(frozen=True)
class ToMe:
    """Merge a share of the tokens in the self-attention of `blocks`, and give each the result of what it is part of."""

    ratio: float = 0.5
    blocks: tuple[int, ...] = (1, 2, 14, 15, 16)  # those of the finest grid

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        group = groups(k.transpose(1, 2).flatten(2), site.grid, self.ratio)  # (B, n)
        index, count = group[:, None, :, None].expand_as(q), q.shape[2] - int(q.shape[2] * self.ratio)
        none = q.new_zeros(*q.shape[:2], count, q.shape[3])
        q, k, v = (none.scatter_reduce(2, index, x, "mean", include_self=False) for x in (q, k, v))
        return attend(q, k, v).gather(2, index)


def groups(x: Tensor, grid: tuple[int, int], ratio: float) -> Tensor:
    """Return which merged token each of x (B, n, C) goes to: (B, n), 0 … n - ⌊ratio n⌋ - 1.

    The first cell of every 2×2 stays; of the others the ⌊ratio n⌋ most like one of these, by their angle, go to it. The
    authors' program compares the layer's input, this one its keys.
    """
    unit, is_free = x / x.norm(dim=-1, keepdim=True), torch.ones(grid, device=x.device)
    is_free[: grid[0] // 2 * 2 : 2, : grid[1] // 2 * 2 : 2] = 0
    order, kept = is_free.flatten().argsort(stable=True), grid[0] // 2 * (grid[1] // 2)
    similarity, to = (unit[:, order[kept:]] @ unit[:, order[:kept]].transpose(1, 2)).max(dim=2)  # (B, n - kept)
    rank, merged = similarity.argsort(dim=1, descending=True).argsort(dim=1), int(x.shape[1] * ratio)
    to = torch.where(rank < merged, to, kept + rank - merged)
    return torch.cat([torch.arange(kept, device=x.device).expand(len(x), -1), to], dim=1)[:, order.argsort()]


def main(out: str) -> None:
    sd, z_T, panels = dragsa.load("weights/small"), torch.randn(1, 4, 16, 16, generator=torch.manual_seed(4)), []
    context, uncond = sd.embed(["a white face on a purple ground"]), sd.embed([""])
    for ratio in (0.0, 0.25, 0.5):
        zs = dragsa.sample(sd.unet, z_T, context, dragsa.Schedule(), guidance=3, uncond=uncond, attention=ToMe(ratio))
        panels.append((f"{ratio:.0%} of the tokens merged", pictures.to_picture(sd.decode(zs[-1]))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/tome.png")
    main(parser.parse_args().out)
