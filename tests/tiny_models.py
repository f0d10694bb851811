"""Writes tiny models of SD 1.5's structure to disk, in every layout that is met, with seeded values."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dragsa.config import UNetConfig, VAEConfig
from dragsa.loading import names as sd15_names
from dragsa.model.unet import UNet
from dragsa.model.vae import VAE

UNET = UNetConfig(widths=(32, 32, 64, 64), context_dim=48)
VAE_ = VAEConfig(widths=(32, 32, 32, 64))
TOKENS = 16

UNET_SETTINGS = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": list(UNET.widths),
    "cross_attention_dim": UNET.context_dim,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
VAE_SETTINGS = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": list(VAE_.widths),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}
LETTERS = [chr(n) for n in range(ord("a"), ord("z") + 1)]
MERGES = ["r e", "re d</w>", "d o", "do t</w>", "c a", "ca t</w>"]
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *(merge.replace(" ", "") for merge in MERGES)]
VOCABULARY += ["<|startoftext|>", "<|endoftext|>"]
TEXT_SETTINGS: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": len(VOCABULARY),
    "hidden_size": UNET.context_dim,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": VOCABULARY.index("<|startoftext|>"),
    "eos_token_id": VOCABULARY.index("<|endoftext|>"),
    "pad_token_id": VOCABULARY.index("<|endoftext|>"),
}


def values(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Seeded values for named shapes: norms near one, everything else small enough to stay finite."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            state[name] = noise / (noise[0].numel() ** 0.5)
        else:
            state[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    return state


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@cache
def unet_state(seed: int = 1) -> dict[str, Tensor]:
    with torch.device("meta"):
        unet = UNet(UNET)
    return values(shapes(unet), seed)


@cache
def vae_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        vae = VAE(VAE_)
    return values(shapes(vae), seed=2)


@cache
def text_state() -> dict[str, Tensor]:
    """By the names without a prefix, with `position_ids`."""
    width, inner = TEXT_SETTINGS["hidden_size"], TEXT_SETTINGS["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (len(VOCABULARY), width),
        "embeddings.position_embedding.weight": (TOKENS, width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for n in range(TEXT_SETTINGS["num_hidden_layers"]):
        layer = f"encoder.layers.{n}"
        for name in ("q", "k", "v", "out"):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, width)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (width,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{name}.weight"] = shapes[f"{layer}.{name}.bias"] = (width,)
        shapes[f"{layer}.mlp.fc1.weight"], shapes[f"{layer}.mlp.fc1.bias"] = (inner, width), (inner,)
        shapes[f"{layer}.mlp.fc2.weight"], shapes[f"{layer}.mlp.fc2.bias"] = (width, inner), (width,)
    return values(shapes, seed=3) | {"embeddings.position_ids": torch.arange(TOKENS)[None]}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def save(state: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: v.to(dtype) if v.is_floating_point() else v for name, v in state.items()}, path)


def write_tokenizer(folder: Path) -> None:
    """`vocab.json` and `merges.txt` as CLIP has them."""
    write_json(folder / "vocab.json", {token: n for n, token in enumerate(VOCABULARY)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")


def same(name: str) -> str:
    return name


def write_folder(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    variant: str = "",
    vae_names: Callable[[str], str] = same,
    text_names: Callable[[str], str] = "text_model.{}".format,
) -> Path:
    """A model in the diffusers layout; `variant` is ".fp16" or nothing."""
    write_json(folder / "unet/config.json", UNET_SETTINGS)
    write_json(folder / "vae/config.json", VAE_SETTINGS)
    write_json(folder / "text_encoder/config.json", TEXT_SETTINGS)
    write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": "epsilon"})
    write_tokenizer(folder / "tokenizer")
    save(unet_state(), folder / f"unet/diffusion_pytorch_model{variant}.safetensors", dtype)
    vae = {vae_names(name): value for name, value in vae_state().items()}
    save(vae, folder / f"vae/diffusion_pytorch_model{variant}.safetensors", dtype)
    text = {text_names(name): value for name, value in text_state().items()}
    save(text, folder / f"text_encoder/model{variant}.safetensors", dtype)
    return folder


def schedule() -> dict[str, Tensor]:
    """What a single file tells of its noise schedule, as far as it is read."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return {"betas": beta.float(), "alphas_cumprod": torch.cumprod(1 - beta, dim=0).float()}


def single_file_state(ema: bool = False) -> dict[str, Tensor]:
    """All tensors of a single file in the official layout, bookkeeping included; with EMA copies that differ."""
    state = {name: torch.zeros(1000) for name in sd15_names.BOOKKEEPING} | schedule()
    for component, part in (("unet", unet_state()), ("vae", vae_state()), ("text_encoder", text_state())):
        for name, value in part.items():
            theirs = sd15_names.to_single_file(component, name)
            if ".mid.attn_1." in theirs and theirs.endswith("weight") and value.ndim == 2:
                value = value[:, :, None, None]  # the original's 1×1 convolutions
            state[theirs] = value
    if ema:
        for name, value in unet_state(seed=4).items():
            state[sd15_names.ema_name(sd15_names.to_single_file("unet", name))] = value
    return state


def write_single_file(path: Path, ema: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """The file, and a tokenizer in `tokenizer/` beside it."""
    save(single_file_state(ema), path, dtype)
    write_tokenizer(path.parent / "tokenizer")
    return path
