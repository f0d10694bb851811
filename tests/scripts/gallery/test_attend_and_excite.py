"""Attend-and-Excite: loss and gradient against diffusers' attention scores and its pipeline's loss."""

import gallery_peers as peers
import torch
from gallery.attend_and_excite import excited, neglect

from dragsa import hooks

BLOCKS, TOKENS = (3, 4, 11, 12, 13), [2, 5]


def test_loss_and_gradient():
    from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
        pipeline_stable_diffusion_attend_and_excite as published,
    )

    unet, (z, t, context) = peers.theirs(), peers.inputs(1)
    store, place = published.AttentionStore((8, 8)), {"d": "down", "m": "mid", "u": "up"}
    store.num_att_layers = len(unet.attn_processors)
    names = {name: published.AttendExciteAttnProcessor(store, place[name[0]]) for name in unet.attn_processors}
    unet.set_attn_processor(names)
    own, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    unet(theirs, t, context)
    pipe = published.StableDiffusionAttendAndExcitePipeline
    seen = store.aggregate_attention(from_where=["up", "down", "mid"])
    expected = pipe._compute_loss(pipe._compute_max_attention_per_index(seen, TOKENS))
    maps = hooks.Maps(blocks=BLOCKS)
    peers.ours()(own, t, context, attention=maps)
    came = neglect(maps.found, TOKENS)
    assert expected > 0.1
    peers.agrees(came, expected, neglect(maps.found, [3]))
    (gradient,), (slope,) = torch.autograd.grad(came, own), torch.autograd.grad(expected, theirs)
    peers.agrees(gradient, slope, torch.zeros_like(slope))
    moved = excited(peers.ours(), z, torch.tensor(t), context, TOKENS, BLOCKS, 3.0)
    torch.testing.assert_close(moved, z - 3 * slope, rtol=0, atol=1e-5)
