"""A LoRA and its files, in diffusers' layout."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from dragsa import files
from dragsa.layouts import fitting
from dragsa.layouts.fitting import WeightsError
from dragsa.loading.safetensors import read_header


@dataclass(frozen=True, eq=False)
class LoRA:
    """Changes of weights by the layer's name: W + up · down.

    down: layer -> (rank, inputs). up: layer -> (outputs, rank). Where a file's α is not its rank, α / rank is in `up`.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.down.keys() != self.up.keys():
            one_sided = fitting.listed("layers", sorted(self.down.keys() ^ self.up.keys()))
            raise ValueError(f"a LoRA has a down and an up factor for each layer, came one alone for {one_sided}")

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max((down.shape[0] for down in self.down.values()), default=0)


# A layer's two factors as diffusers' newest layout names them, and how the older ones are renamed.
PREFIX, DOWN, UP, ALPHA = "unet.", ".lora_A.weight", ".lora_B.weight", ".alpha"
OLDER = (
    (re.compile(r"\.processor\.to_(q|k|v)_lora\."), r".to_\1.lora."),
    (re.compile(r"\.processor\.to_out_lora\."), r".to_out.0.lora."),
    (re.compile(r"\.lora\.down\.weight$"), DOWN),
    (re.compile(r"\.lora\.up\.weight$"), UP),
)
METADATA = "lora_adapter_metadata"  # diffusers' name of the settings within the file


def save_lora(lora: LoRA, path: str | Path, overwrite: bool = False) -> None:
    """Write a safetensors file in diffusers' layout, for `load_lora_weights`: whole or not at all.

    Raises FileExistsError if the file is there and `overwrite` is not set.
    """
    tensors = {}
    for name, down in lora.down.items():
        tensors[f"{PREFIX}{name}{DOWN}"] = down.detach().cpu().contiguous()
        tensors[f"{PREFIX}{name}{UP}"] = lora.up[name].detach().cpu().contiguous()
    files.save_bytes(to_safetensors(tensors, metadata={"format": "pt"}), path, overwrite)


def read_lora(path: str | Path) -> LoRA:
    """Read a LoRA of the UNet, float32, from a safetensors file in diffusers' layout, today's or an older one.

    α is taken from the file's settings or from a layer's own; without either it is the rank. Raises WeightsError for
    another file, and for tensors that belong to no low-rank change of a UNet's layer.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    read_header(path)  # its error says what else the file may be
    with safe_open(path, framework="pt") as file:
        tensors = {_newest(name): file.get_tensor(name) for name in sorted(file.keys())}
        settings = _settings(path, (file.metadata() or {}).get(METADATA, "{}"))

    layers = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    known = {f"{layer}{part}" for layer in layers for part in (DOWN, UP, ALPHA)}
    if not layers or not tensors.keys() <= known:
        other = fitting.listed("unknown tensors", [name for name in tensors if name not in known])
        raise WeightsError(f"{path}: not a LoRA of the UNet in diffusers' layout: {other}")
    if absent := [layer for layer in layers if f"{layer}{UP}" not in tensors]:
        raise WeightsError(f"{path}: {fitting.listed('layers without an up factor', absent)}; download it again")

    down, up = {}, {}
    for layer in layers:
        a, b = tensors[f"{layer}{DOWN}"].float(), tensors[f"{layer}{UP}"].float()
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            came = f"{list(a.shape)} and {list(b.shape)}"
            raise WeightsError(f"{path}: {layer} must be (rank, inputs) and (outputs, rank), came {came}")
        alpha = tensors[f"{layer}{ALPHA}"].tolist() if f"{layer}{ALPHA}" in tensors else _alpha(settings, layer)
        alpha = alpha[0] if isinstance(alpha, list) and len(alpha) == 1 else alpha
        if alpha is not None and (
            isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha)
        ):
            raise WeightsError(f"{path}: {layer}: α must be a number, came {alpha!r}")
        rank = a.shape[0]
        if rank == 0:
            raise WeightsError(f"{path}: {layer} has rank 0")
        divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
        down[layer], up[layer] = a, b if alpha is None else b * (alpha / divisor)
    return LoRA(down, up)


def _newest(name: str) -> str:
    """Return a tensor's name as the newest layout has it, without the network's prefix."""
    name = name.removeprefix(PREFIX)
    for older, newer in OLDER:
        name = older.sub(newer, name)
    return name


def _settings(path: Path, text: str) -> dict[str, Any]:
    """Return peft's settings of the UNet, as diffusers keeps them in the file, without the network's prefix."""
    try:
        settings = {name.removeprefix(PREFIX): value for name, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):
        raise WeightsError(f"{path}: its {METADATA} is not a JSON object") from None
    if settings.get("use_dora"):
        raise WeightsError(f"{path}: this is a DoRA, which scales whole weights; dragsa takes plain LoRA")
    return settings


def _alpha(settings: Mapping[str, Any], layer: str) -> Any:
    """Return a layer's α: its own, by the name's end, else that of all; None where the settings say nothing."""
    pattern = settings.get("alpha_pattern")
    for name, alpha in pattern.items() if isinstance(pattern, dict) else ():
        if f".{layer}".endswith(f".{name.removeprefix('^')}"):
            return alpha
    return settings.get("lora_alpha")
