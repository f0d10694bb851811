"""A LoRA and its files, in every program's layout."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor

from dragsa import files
from dragsa.layouts import fitting
from dragsa.layouts.fitting import Shape, WeightsError
from dragsa.loading.lora_names import ALPHA, DOWN, MID, UP, Place, other_kind, other_model, place_of
from dragsa.loading.names import TEXT, UNET
from dragsa.loading.safetensors import DTYPES, WHOLE, notes_of, read_header, read_metadata, read_tensors
from dragsa.loading.settings import read_settings


@dataclass(frozen=True, eq=False)
class LoRA:
    """Changes of weights by the layer's name: W + up · down.

    down: layer -> (rank, inputs), of a convolution (rank, inputs, height, width). up: layer -> (outputs, rank). Where a
    file's α is not its rank, α / rank is in `up`. Layers are the UNet's; `text` has the text encoder's, if there are
    any.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    text: LoRA | None = None
    notes: tuple[str, ...] = ()  # what its file says to the one who runs it

    def __post_init__(self) -> None:
        if self.down.keys() != self.up.keys():
            one_sided = fitting.listed("layers", sorted(self.down.keys() ^ self.up.keys()))
            raise ValueError(f"a LoRA has a down and an up factor for each layer, came one alone for {one_sided}")

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        largest = max((down.shape[0] for down in self.down.values()), default=0)
        return largest if self.text is None else max(largest, self.text.rank)


METADATA = "lora_adapter_metadata"  # diffusers' name of the settings within the file
PEFT_SETTINGS = "adapter_config.json"  # PEFT's file of them beside it
_ALPHA = 8  # PEFT's, where its settings are there and do not say
# Ways of PEFT to begin a LoRA that change the model's own weights too, which the file does not hold.
_OWN_START = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save_lora(lora: LoRA, path: str | Path, overwrite: bool = False) -> None:
    """Write a safetensors file in diffusers' layout, for `load_lora_weights`: whole or not at all.

    Raises FileExistsError if the file is there and `overwrite` is not set.
    """
    tensors = {}
    for prefix, part in (("unet.", lora), ("text_encoder.text_model.", lora.text)):
        for name, down in ({} if part is None else part.down).items():
            up = part.up[name] if part is not None else down
            tensors[f"{prefix}{name}.lora_A.weight"] = down.detach().cpu().contiguous()
            tensors[f"{prefix}{name}.lora_B.weight"] = up[(..., *[None] * (down.ndim - 2))].detach().cpu().contiguous()
    files.save_bytes(to_safetensors(tensors, metadata={"format": "pt"}), path, overwrite)


def read_lora(path: str | Path) -> LoRA:
    """Read a LoRA of the UNet, of the text encoder or of both, float32, from a safetensors file of any layout.

    α is a layer's own tensor, or in PEFT's settings, which diffusers keeps in the file and PEFT beside it; without
    either it is the rank. Raises WeightsError for another file, and for tensors that belong to no low-rank change of a
    layer of SD 1.5.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    header, words = read_header(path), read_metadata(path)
    if what := other_kind(header) or _said_model(words):
        raise WeightsError(f"{path}: this is {what}; dragsa takes plain LoRA of SD 1.5")
    places = {name: place_of(name) for name in header}
    if not header or (other := [name for name, place in places.items() if place is None]):
        raise WeightsError(
            f"{path}: not a LoRA of SD 1.5: {fitting.listed('unknown tensors', other if header else [])}"
        )
    types = {name: DTYPES.keys() | (WHOLE if place and place.part == ALPHA else {}) for name, place in places.items()}
    if odd := [f"{name} {info.dtype}" for name, info in header.items() if info.dtype not in types[name]]:
        raise WeightsError(f"{path}: {fitting.listed('tensors are not floats', odd)}")
    tensors: dict[Place, Tensor] = {}
    for name, value in read_tensors(header).items():
        place = places[name]
        assert place is not None
        if place in tensors:
            raise WeightsError(f"{path}: holds two changes of {place.layer}; dragsa takes one adapter a file")
        if not value.float().isfinite().all():
            raise WeightsError(f"{path}: {name} is NaN or infinite")
        tensors[place] = value.float()
    if what := other_model({place: tuple(value.shape) for place, value in tensors.items()}):
        raise WeightsError(f"{path}: this is {what}; dragsa takes LoRA of SD 1.5")
    text = _changes(path, tensors, TEXT, words)
    return LoRA(*_changes(path, tensors, UNET, words), LoRA(*text) if text[0] else None, notes_of(words))


def _said_model(words: Mapping[str, str]) -> str | None:
    """Name another model than SD 1.5 that the header says the LoRA is for."""
    said = f"{words.get('ss_base_model_version', '')} {words.get('modelspec.architecture', '')}".lower()
    if "xl" in said:
        return "a LoRA of Stable Diffusion XL (SDXL)"
    return "a LoRA of Stable Diffusion 2.x" if "sd_v2" in said or "diffusion-v2" in said else None


def _changes(
    path: Path, tensors: Mapping[Place, Tensor], network: str, words: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return one network's `down` and `up` by layer, with α / rank in `up`."""
    own = {place: value for place, value in tensors.items() if place.network == network}
    settings = _settings(path, network, words) if own else {}
    layers = list(dict.fromkeys(place.layer for place in own))
    for part in (DOWN, UP):
        if absent := [layer for layer in layers if Place(network, layer, part) not in own]:
            raise WeightsError(f"{path}: {fitting.listed(f'layers without their {part} factor', absent)}; get it again")
    downs, ups = {}, {}
    for layer in layers:
        down, up, mid, alpha = (own.get(Place(network, layer, part)) for part in (DOWN, UP, MID, ALPHA))
        assert down is not None and up is not None
        shapes = [tuple(factor.shape) for factor in (down, up, mid) if factor is not None]
        if not _fit(*shapes):
            came = " and ".join(str(list(shape)) for shape in shapes)
            raise WeightsError(f"{path}: {layer} must be (rank, inputs) and (outputs, rank), came {came}")
        if alpha is not None and alpha.numel() != 1:
            raise WeightsError(f"{path}: α of {layer} must be one number, came {list(alpha.shape)}")
        if mid is not None:  # a 1×1 convolution, then the one in the middle: together one of the middle's size
            rank = mid.shape[0]
            down = (mid.movedim(1, -1) @ down.flatten(1)).movedim(-1, 1)  # (rank, inputs, height, width)
        rank = down.shape[0]
        scale = _scale(path, settings, layer, rank) if alpha is None else alpha.item() / rank
        downs[layer], ups[layer] = down, up.flatten(1) * scale
    return downs, ups


def _fit(down: Shape, up: Shape, mid: Shape | None = None) -> bool:
    """Tell if a layer's factors are those of a linear layer, (r, n) and (m, r), or of a convolution."""
    if len(down) not in (2, 4) or len(up) not in (2, 4) or any(side != 1 for side in up[2:]) or down[0] == 0:
        return False
    if mid is None:
        return down[0] == up[1]
    return len(mid) == 4 and mid[:2] == (up[1], down[0]) and all(side == 1 for side in down[2:])


# --- PEFT's settings --------------------------------------------------------------------------------------------------


def _settings(path: Path, network: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Return PEFT's settings of a network: from the file, where diffusers keeps them, or from PEFT's file beside it."""
    beside, prefix = path.parent / PEFT_SETTINGS, f"{network}."
    if METADATA in words:
        try:
            found = dict(json.loads(words[METADATA]).items())
        except (ValueError, AttributeError, RecursionError):
            raise WeightsError(f"{path}: its {METADATA} is not a JSON object") from None
        if any(name.startswith(("unet.", "text_encoder.")) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    elif path.name.startswith("adapter_model") and beside.is_file():
        found = read_settings(beside)
    else:
        return {}
    if found.get("use_dora"):
        raise WeightsError(f"{path}: this is a DoRA, which scales whole weights; dragsa takes plain LoRA of SD 1.5")
    begun = found.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_OWN_START):
        raise WeightsError(f"{path}: begun by {begun}, it goes with changed weights of a model that it does not hold")
    return found


def _scale(path: Path, settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return α / rank of a layer by PEFT's settings, or with its `use_rslora` α / √rank; 1 without settings."""
    if not settings:
        return 1.0
    wanted = _by_pattern(path, settings, "rank_pattern", layer, settings.get("r", rank))
    if wanted != rank:
        raise WeightsError(f"{path}: {layer} has rank {rank}, and the settings say {wanted}")
    alpha = _by_pattern(path, settings, "alpha_pattern", layer, settings.get("lora_alpha", _ALPHA))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(f"{path}: α of {layer} must be a number, came {alpha!r} in the settings")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(path: Path, settings: Mapping[str, Any], key: str, layer: str, otherwise: Any) -> Any:
    """Return a layer's value as PEFT finds it: of the first regular expression that the end of its name matches.

    What stands before the match must end in a dot.
    """
    patterns = settings.get(key) or {}
    if not isinstance(patterns, dict):
        raise WeightsError(f"{path}: {key} in the settings must be a JSON object")
    try:
        found = [value for pattern, value in patterns.items() if _matches(pattern, [layer, f"text_model.{layer}"])]
    except re.error as error:
        raise WeightsError(f"{path}: {key} in the settings has no regular expression ({error})") from None
    return found[0] if found else otherwise


def _matches(pattern: str, layers: Iterable[str]) -> bool:
    return any(re.match(rf"(.*\.)?({pattern})$", layer) for layer in layers)
