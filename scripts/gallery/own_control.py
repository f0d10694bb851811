"""An own control in an edit, here the union: the target attends to the source and to itself.

The form is MasaCtrl's (Cao et al. 2023, arXiv 2304.08465). It gives the bytes of `control="union"`.
"""

import argparse

import torch
from PIL import Image
from torch import Tensor

import dragsa
from dragsa import pictures
from dragsa.hooks import Attend, Site, check_pairs


def union(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """q, k, v: (B, heads, n, d), the rows pairs of source and target; with guidance the unconditional pair is first."""
    if site.kind != "self" or site.block < 11:
        return attend(q, k, v)
    check_pairs(site, len(q))
    (q_s, k_s, v_s), (q_t, k_t, v_t) = ([x[which::2] for x in (q, k, v)] for which in (0, 1))
    source = attend(q_s, k_s, v_s)
    target = attend(q_t, torch.cat([k_s, k_t], dim=2), torch.cat([v_s, v_t], dim=2))
    return torch.stack([source, target], dim=1).flatten(0, 1)


def union_at(step: int) -> dragsa.AttentionHook | None:
    """Return the hook of a denoising step, counted from z_T: none in the first four."""
    return union if step >= 4 else None


def main(out: str) -> None:
    sd, config = dragsa.load("weights/small"), dragsa.EditConfig.small(guidance=6.0)
    disc, target = Image.open("scripts/demo/disc.png"), "a yellow disc on a cyan ground"
    source = dragsa.prepare(sd, disc, "a red disc on a cyan ground", config=config)
    panels = [("a red disc on a cyan ground", pictures.to_rgb(disc))]
    for caption, control in (("the config's control", None), ("the union", union_at), ("none", lambda step: None)):
        result = dragsa.edit(sd, source, target_prompt=target, config=config, control=control)
        panels.append((f"{target}, {caption}", result.image))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/own_control.png")
    main(parser.parse_args().out)
