"""A model as a folder in diffusers' layout: its settings, its tokenizer and its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dragsa import files
from dragsa.config import UNetConfig, VAEConfig

START, END = "<|startoftext|>", "<|endoftext|>"


def settings(unet: UNetConfig, vae: VAEConfig, size: int) -> dict[str, dict[str, Any]]:
    """Return the settings of networks for pictures of `size` pixels, by file; without the text encoder's."""
    return {
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": list(unet.heads),  # the published key counts heads
            "block_out_channels": list(unet.widths),
            "center_input_sample": False,
            "cross_attention_dim": unet.context_dim,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": unet.latent_channels,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": unet.groups,
            "out_channels": unet.latent_channels,
            "sample_size": size // 8,
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(vae.widths),
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": vae.latent_channels,
            "layers_per_block": 2,
            "norm_num_groups": vae.groups,
            "out_channels": 3,
            "sample_size": size,
            "scaling_factor": vae.scaling_factor,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    }


def write_tokenizer(folder: Path, words: Sequence[str], tokens: int) -> None:
    """Write a byte-pair tokenizer in CLIP's format in which each of `words` is one token and any text has some."""
    letters = list(_bytes_to_letters())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        # Merges added later rank lower, so they never come between the merges of an earlier word.
        parts = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:
            parts = _merged(parts, merge)
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            merges.append(merge)
            parts = _merged(parts, merge)
    vocabulary += ["".join(merge) for merge in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    files.save_json({token: i for i, token in enumerate(vocabulary)}, folder / "vocab.json", overwrite=True)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    files.save_json(special, folder / "special_tokens_map.json", overwrite=True)
    more = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": tokens}
    files.save_json(special | more, folder / "tokenizer_config.json", overwrite=True)


def _merged(parts: list[str], merge: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == merge:
            out[-1] += part
        else:
            out.append(part)
    return out


def _bytes_to_letters() -> Iterator[str]:
    """Yield a printable letter for each byte (GPT-2's alphabet): Latin-1 for itself, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from (chr(b) for b in printable)
    yield from (chr(256 + i) for i in range(256 - len(printable)))


def save_half(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file in float16."""
    save_file({k: v.to(torch.float16).contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
