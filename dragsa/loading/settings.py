"""A network's settings, as diffusers or transformers write them: from its file, or from its tensors' shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

from dragsa.config import UNetConfig, VAEConfig
from dragsa.layouts.fitting import Shape, WeightsError
from dragsa.loading.safetensors import one_line
from dragsa.loading.text_encoder import HEAD_WIDTH

LAYERS = 12  # of CLIP's text model in SD 1.5; a single file has no settings to tell
WIDTH = 768  # likewise
SMALL_LAYERS = 2  # of that in the small model that ships, and in others as narrow


def read_settings(file: Path) -> dict[str, Any]:
    """Return a JSON file's settings. Raises WeightsError if it is missing, or holds something else."""
    if not file.is_file():
        raise WeightsError(f"{file}: the file is missing")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not text, or nested without end
        raise WeightsError(f"{file}: not JSON ({one_line(error)})") from None
    if not isinstance(settings, dict):
        raise WeightsError(f"{file}: settings must be a JSON object")
    return settings


def unet_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return diffusers' settings for a UNet known by its shapes alone; heads and groups are SD 1.5's."""
    default = UNetConfig()
    keys = [f"down_blocks.{level}.attentions.1.transformer_blocks.0.attn2.to_k.weight" for level in range(3)]
    return {
        "block_out_channels": _widths(shapes, "down_blocks", default.widths),
        "cross_attention_dim": _commonest(shapes, keys, 1, default.context_dim),
        "attention_head_dim": default.heads[0],
        "norm_num_groups": default.groups,
    }


def vae_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return diffusers' settings for a VAE known by its shapes alone."""
    return {"block_out_channels": _widths(shapes, "encoder.down_blocks", VAEConfig.widths)}


def text_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return transformers' settings for a CLIP text model known by its shapes alone."""
    norms = ["final_layer_norm.weight", "final_layer_norm.bias", "encoder.layers.0.layer_norm1.weight"]
    width = _commonest(shapes, norms, 0, WIDTH)
    layers = len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")})
    vocabulary = _commonest(shapes, ["embeddings.token_embedding.weight"], 0, 49408)
    return {
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,  # CLIP's last two
        "eos_token_id": vocabulary - 1,
        "max_position_embeddings": _commonest(shapes, ["embeddings.position_embedding.weight"], 0, 77),
        "hidden_size": width,
        "intermediate_size": _commonest(shapes, [f"encoder.layers.{n}.mlp.fc1.bias" for n in range(3)], 0, 4 * width),
        "num_hidden_layers": LAYERS if layers > SMALL_LAYERS or width >= WIDTH else SMALL_LAYERS,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _widths(shapes: Mapping[str, Shape], stages: str, otherwise: Sequence[int]) -> list[int]:
    """Return each stage's width by three of its tensors, so that one misshapen tensor misleads nobody."""
    layers = ("norm1.weight", "norm2.weight", "conv2.bias")
    named = [[f"{stages}.{level}.resnets.1.{layer}" for layer in layers] for level in range(4)]
    return [_commonest(shapes, names, 0, width) for names, width in zip(named, otherwise, strict=True)]


def _commonest(shapes: Mapping[str, Shape], names: Sequence[str], axis: int, otherwise: int) -> int:
    """Return the commonest size of an axis of the named tensors; a file without them fails the comparison later."""
    return mode([shapes[name][axis] for name in names if len(shapes.get(name, ())) > axis] or [otherwise])
