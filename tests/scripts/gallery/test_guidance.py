"""PAG and SAG, 20 steps on the small model, against diffusers' pipelines."""

from pathlib import Path

import gallery_peers as peers
import pytest
import torch
from gallery.pag import PAG
from gallery.sag import SAG

import dragsa

SMALL = Path(__file__).parents[3] / "weights" / "small"


@pytest.fixture(scope="module")
def parts():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(SMALL, dtype=torch.float32).components


@pytest.fixture(scope="module")
def sd():
    return dragsa.load(SMALL)


def latents(pipe, sd, **settings):
    """z_0 of diffusers' pipeline from the same noise and prompts."""
    _, z_T = peers.twenty_steps()
    prompts = {"prompt_embeds": sd.embed(["a green star on a purple ground"]), "negative_prompt_embeds": sd.embed([""])}
    pipe.set_progress_bar_config(disable=True)
    return pipe(latents=z_T, num_inference_steps=20, output_type="latent", guidance_scale=4.0, **prompts, **settings)[0]


def sampled(sd, denoiser):
    schedule, z_T = peers.twenty_steps()
    return dragsa.sample(denoiser, z_T, sd.embed(["a green star on a purple ground"]), schedule)[-1]


def test_perturbed_attention_guidance(parts, sd):
    from diffusers import StableDiffusionPAGPipeline

    layers = ["down_blocks.2.attentions.0", "down_blocks.2.attentions.1", "up_blocks.1.attentions.0"]
    expected = latents(StableDiffusionPAGPipeline(**parts, pag_applied_layers=layers), sd, pag_scale=3.0)
    came, without = (sampled(sd, PAG(sd.unet, sd.embed([""]), 4.0, scale, (5, 6, 8))) for scale in (3.0, 0.0))
    peers.agrees(came, expected, without, 1e-4)


def test_self_attention_guidance(parts, sd):
    from diffusers import StableDiffusionSAGPipeline

    expected = latents(StableDiffusionSAGPipeline(**parts, requires_safety_checker=False), sd, sag_scale=0.75)
    came, without = (sampled(sd, SAG(sd.unet, sd.embed([""]), 4.0, scale)) for scale in (0.75, 0.0))
    peers.agrees(came, expected, without, 1e-4)
