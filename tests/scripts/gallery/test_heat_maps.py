"""Heat maps against diffusers' attention scores."""

from typing import Any

import gallery_peers as peers
import torch
from gallery.heat_maps import cell_map, heat_map
from torch.nn import functional as F

from dragsa import hooks
from dragsa.model.blocks import TRANSFORMERS


def scores_of(layer):
    """What diffusers' layers attend to in one pass, mean over the heads, by block: (B, n, m)."""
    from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
        CrossAttnStoreProcessor,
    )

    unet, (z, t, context) = peers.theirs(), peers.inputs(2, 16, 24)
    names = {block: f"{one.diffusers}.transformer_blocks.0.{layer}.processor" for block, one in TRANSFORMERS.items()}
    stores = {name: CrossAttnStoreProcessor() for name in names.values()}
    unet.set_attn_processor(unet.attn_processors | stores)
    unet(z, t, context)
    scores: dict[int, Any] = {block: stores[name].attention_probs for block, name in names.items()}  # (2 heads, n, m)
    return {block: one.unflatten(0, (2, -1)).mean(dim=1) for block, one in scores.items()}


def test_a_words_heat():
    found, (z, t, context) = hooks.Maps(), peers.inputs(2, 16, 24)
    peers.ours()(z, t, context, attention=found)
    came, tokens = heat_map(found.found, (2, 3), (16, 24)), [2, 3]
    enlarged = []
    for scores in scores_of("attn2").values():
        h = int((scores.shape[1] * 16 / 24) ** 0.5)
        maps = scores.transpose(1, 2)[:, tokens].unflatten(2, (h, -1))  # (2, 2, h, w)
        enlarged.append(F.interpolate(maps, (16, 24), mode="bicubic").clamp(min=0))
    expected = torch.stack(enlarged).mean(dim=(0, 2))
    peers.agrees(came, expected, heat_map(found.found, (1,), (16, 24)))


def test_one_cells_attention():
    found, (z, t, context) = hooks.Maps(kind="self", blocks=(15,)), peers.inputs(2, 16, 24)
    peers.ours()(z, t, context, attention=found)
    expected = scores_of("attn1")[15][:, 5 * 24 + 7].unflatten(1, (16, 24))
    peers.agrees(cell_map(found.found[0], 7, 5), expected, cell_map(found.found[0], 5, 7))
