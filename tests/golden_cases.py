"""The stored numbers of tests/golden/ as values, and the network that they were computed with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from golden.weights_recipe import recipe_latent, recipe_tensor
from safetensors.torch import load_file
from torch import Tensor

from dragsa.config import UNetConfig
from dragsa.model.unet import UNet

FOLDER = Path(__file__).parent / "golden"
CONTEXT_DIM = 48


class Case(NamedTuple):
    """One case: its settings, as peers.json has them, and its outputs by name, as peers.safetensors has them."""

    tag: str
    settings: dict[str, Any]
    outputs: dict[str, Tensor]

    def input(self, name: str, *shape: int) -> Tensor:
        """An input of the case ("z", "text", "features", …): drawn by the recipe, not stored."""
        return torch.from_numpy(recipe_latent(f"{self.tag}.{name}", shape))

    def points(self, name: str) -> Tensor:
        """Handles or targets, stored as (row, column), as float (n, 2) of (x, y)."""
        return torch.tensor(self.settings[f"{name}_yx"], dtype=torch.float32).flip(1)

    @property
    def latent_hw(self) -> tuple[int, int]:
        h, w = self.settings["latent_hw"]
        return h, w


@cache
def _stored() -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    settings = json.loads((FOLDER / "peers.json").read_text())
    return {entry["tag"]: entry for entry in settings}, load_file(FOLDER / "peers.safetensors")


def case(tag: str) -> Case:
    """The case of that tag, with or without its `golden.` in front."""
    tag = tag if tag.startswith("golden.") else f"golden.{tag}"
    settings, tensors = _stored()
    outputs = {name.removeprefix(f"{tag}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{tag}/")}
    return Case(tag, settings[tag], outputs)


def cases(kind: str) -> list[Case]:
    """Every case of a kind: unet, drag, invert, control or patch."""
    found = [case(tag) for tag, entry in _stored()[0].items() if entry["kind"] == kind]
    if not found:
        raise KeyError(f"no golden case of kind {kind!r}")
    return found


@cache
def golden_unet() -> UNet:
    """The network of every case, float32 and frozen: narrow, each tensor drawn from its own name."""
    config = UNetConfig(widths=(32, 64, 96, 96), heads=(8, 8, 8, 8), context_dim=CONTEXT_DIM, groups=32)
    with torch.device("meta"):
        unet = UNet(config)
    state = {
        name: torch.from_numpy(recipe_tensor(f"unet.{name}", tuple(tensor.shape)))
        for name, tensor in unet.state_dict().items()
    }
    unet.load_state_dict(state, strict=True, assign=True)
    return unet.requires_grad_(False).eval()


def relative(came: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return ((came - expected).abs().max() / expected.abs().max()).item()
