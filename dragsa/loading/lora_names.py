"""The names of LoRA files, in every layout: which layer of which network a tensor belongs to, and as what.

Names in, names out; no file is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import torch

from dragsa.layouts.fitting import Shape
from dragsa.loading import names
from dragsa.loading.names import TEXT, UNET
from dragsa.model.unet import UNet as Network

DOWN, UP, MID, ALPHA = "down", "up", "mid", "alpha"
# The networks' names before a layer's: diffusers', kohya's, ComfyUI's and PEFT's, whose second may follow its first.
_PEFT = re.compile(r"base_model\.model\.")
_NETWORKS = (
    (re.compile(r"(unet\.|lora_unet_|diffusion_model\.|model\.diffusion_model\.)"), UNET),
    (re.compile(r"(text_encoder\.|lora_te1?_)"), TEXT),
)
# Older names of a layer's change by diffusers, behind the layer's own name.
_OLDER = (
    (re.compile(r"\.processor\.to_(q|k|v)_lora\.(down|up)\.weight$"), r".to_\1.lora_\2.weight"),
    (re.compile(r"\.processor\.to_out_lora\.(down|up)\.weight$"), r".to_out.0.lora_\1.weight"),
    (re.compile(r"\.self_attn\.to_(q|k|v|out)_lora\.(down|up)\.weight$"), r".self_attn.\1_proj.lora_\2.weight"),
    (re.compile(r"\.(?:lora|lora_linear_layer)\.(down|up)\.weight$"), r".lora_\1.weight"),
)
# What stands behind the layer's name; an adapter's name may follow PEFT's A and B.
_PARTS = (
    (re.compile(r"\.lora_(?:A|down)(?:\.[\w-]+)?\.weight$"), DOWN),
    (re.compile(r"\.lora_(?:B|up)(?:\.[\w-]+)?\.weight$"), UP),
    (re.compile(r"\.lora_mid\.weight$"), MID),
    (re.compile(r"\.alpha$"), ALPHA),
)
_TEXT_LAYER = re.compile(r"(?:text_model_)?encoder_layers_(\d+)_(self_attn|mlp)_([qkv]_proj|out_proj|fc[12])$")
# Parts of names that tell another kind of file, in lower case.
_OTHERS = (
    ("hada_", "a LoHa (LyCORIS)"),
    ("lokr_", "a LoKr (LyCORIS)"),
    ("dora_scale", "a DoRA"),
    ("lora_magnitude_vector", "a DoRA"),
    ("oft_", "an OFT"),
    ("on_input", "an (IA)³"),
    ("lora_te2_", "a LoRA of Stable Diffusion XL (SDXL)"),
    ("text_encoder_2.", "a LoRA of Stable Diffusion XL (SDXL)"),
    ("transformer_blocks_1_", "a LoRA of Stable Diffusion XL (SDXL)"),
    ("transformer_blocks.1.", "a LoRA of Stable Diffusion XL (SDXL)"),
    ("double_blocks", "a LoRA of a diffusion transformer (SD 3, Flux)"),
    ("joint_blocks", "a LoRA of a diffusion transformer (SD 3, Flux)"),
    ("single_transformer_blocks", "a LoRA of a diffusion transformer (SD 3, Flux)"),
    ("transformer.transformer_blocks", "a LoRA of a diffusion transformer (SD 3, Flux)"),
)
_CONTEXTS = {2048: "a LoRA of Stable Diffusion XL (SDXL)", 1024: "a LoRA of Stable Diffusion 2.x"}


class Place(NamedTuple):
    """The place of a LoRA's tensor: a network's layer, by diffusers' name, and as what (`DOWN`, …)."""

    network: str
    layer: str
    part: str


def place_of(name: str) -> Place | None:
    """Return the place of a LoRA file's tensor; None for a name that is no layer's of SD 1.5, or no part of a LoRA."""
    rest, network = _PEFT.sub("", name, count=1), None
    for beginning, of in _NETWORKS:
        if found := beginning.match(rest):
            rest, network = rest[found.end() :], of
            break
    for older, newer in _OLDER:
        rest = older.sub(newer, rest)
    for ending, part in _PARTS:
        if found := ending.search(rest):
            layer = flat(rest[: found.start()])
            if network != TEXT and layer in _unet_layers():
                return Place(UNET, _unet_layers()[layer], part)
            if network != UNET and (words := _TEXT_LAYER.match(layer)):
                return Place(TEXT, "encoder.layers.{}.{}.{}".format(*words.groups()), part)
    return None


def flat(name: str) -> str:
    """Return a layer's name as kohya writes it, without dots."""
    return name.replace(".", "_")


@cache
def _unet_layers() -> dict[str, str]:
    """Map flat names, diffusers' and the original program's, to diffusers' names of the UNet's layers."""
    with torch.device("meta"):
        weights = [name for name, value in Network().named_parameters() if value.ndim > 1]
    layers: dict[str, str] = {}
    for name in weights:
        ours, theirs = name, names.to_single_file(UNET, name).removeprefix(f"{names.LDM[UNET]}.")
        layers |= {flat(one.removesuffix(".weight")): ours.removesuffix(".weight") for one in (ours, theirs)}
    return layers


def other_kind(tensors: Iterable[str]) -> str | None:
    """Name another kind of file than a plain LoRA of SD 1.5, by its tensors' names; None where they do not tell."""
    lower = "\n".join(tensors).lower()
    return next((what for mark, what in _OTHERS if mark in lower), None)


def other_model(shapes: Mapping[Place, Shape]) -> str | None:
    """Name another model that a LoRA is for, by the width of its context."""
    for place, shape in shapes.items():
        if place.part == DOWN and place.layer.endswith("attn2.to_k") and len(shape) > 1 and shape[1] in _CONTEXTS:
            return _CONTEXTS[shape[1]]
    return None
