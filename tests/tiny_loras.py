"""A tiny UNet and LoRAs of it."""

from __future__ import annotations

import tiny_models
import torch
from torch import Tensor

from dragsa.loading import LoRA
from dragsa.methods import lora
from dragsa.model.unet import UNet

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CROSS = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k"


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_unet() -> UNet:
    return UNet.from_diffusers(tiny_models.UNET_SETTINGS, tiny_models.unet_state())


def filled(unet: UNet, rank: int = 4) -> LoRA:
    """A LoRA that changes every attention layer."""
    begun = lora.start(unet, rank)
    return LoRA(begun.down, {name: 0.1 * drawn(len(name), *up.shape) for name, up in begun.up.items()})
