"""To diffusers and back: a hook of dragsa's on a diffusers UNet, and a diffusers pipeline as dragsa's model.

The hook shown is MasaCtrl's mutual self-attention (Cao et al. 2023, arXiv 2304.08465). It needs diffusers.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import dragsa
from dragsa import hooks, pictures

ROWS = "source uncond", "target uncond", "source", "target"


def in_diffusers(pipe: Any, hook: dragsa.AttentionHook, prompts: list[str], z_T: Tensor, steps: int = 50) -> Tensor:
    """Sample a pair of prompts with diffusers' own loop under the hook: z_0 (2, 4, h, w)."""
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(hooks.as_processors(hook, pipe, grid=(z_T.shape[2], z_T.shape[3]), rows=ROWS))
    try:
        return pipe(prompts, latents=z_T, guidance_scale=4.0, num_inference_steps=steps, output_type="latent").images
    finally:
        pipe.unet.set_attn_processor(before)


def in_dragsa(pipe: Any, hook: dragsa.AttentionHook, prompts: list[str], z_T: Tensor, steps: int = 50) -> Tensor:
    """Sample the same with dragsa's loop and network, which holds the pipeline's tensors."""
    sd, schedule = dragsa.from_pipeline(pipe), dragsa.Schedule(steps, "dragdiffusion")  # the small model's scheduler
    context, uncond = sd.embed(prompts), sd.embed([""])
    return dragsa.sample(
        sd.unet, z_T, context, schedule, guidance=4, uncond=uncond, attention=hook, rows=("source", "target")
    )[-1]


def main(out: str) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained("weights/small", dtype=torch.float32)
    prompts, sd = ["a red disc on a cyan ground", "a yellow disc on a cyan ground"], dragsa.from_pipeline(pipe)
    z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(8)).expand(2, -1, -1, -1)
    hook, panels = hooks.MutualSelfAttention(), []
    for where, sample in (("diffusers", in_diffusers), ("dragsa", in_dragsa)):
        z_0 = sample(pipe, hook, prompts, z_T)
        panels += [(f"{prompts[row]}, in {where}", pictures.to_picture(sd.decode(z_0[row, None]))) for row in (0, 1)]
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/bridge.png")
    main(parser.parse_args().out)
