"""A hook on both sides: diffusers' loop and network, and dragsa's, from one pipeline."""

from pathlib import Path

import gallery_peers as peers
import torch
from gallery.bridge import in_diffusers, in_dragsa

from dragsa import hooks

SMALL = Path(__file__).parents[3] / "weights" / "small"
PROMPTS = ["a red disc on a cyan ground", "a yellow disc on a cyan ground"]


def test_one_pass_of_the_hook_on_both_sides():
    unet, z = peers.theirs(), peers.inputs(4)
    plain, rows = unet(*z).sample, ("source uncond", "target uncond", "source", "target")
    hook = hooks.MutualSelfAttention()
    unet.set_attn_processor(hooks.as_processors(hook, unet, rows=rows))
    peers.agrees(unet(*z).sample, peers.ours()(*z, attention=hooks.Named(hook, rows)).eps, plain)


def test_a_picture_on_both_sides():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(SMALL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(8)).expand(2, -1, -1, -1)
    before = dict(pipe.unet.attn_processors)
    came = in_dragsa(pipe, hooks.MutualSelfAttention(), PROMPTS, z_T, steps=5)
    expected = in_diffusers(pipe, hooks.MutualSelfAttention(), PROMPTS, z_T, steps=5)
    peers.agrees(came, expected, in_dragsa(pipe, hooks.MutualSelfAttention(()), PROMPTS, z_T, steps=5))
    assert pipe.unet.attn_processors == before
