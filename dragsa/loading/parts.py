"""The three networks of a model without values, and the tensors found for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dragsa.config import is_whole
from dragsa.layouts import diffusers, fitting
from dragsa.layouts.fitting import WeightsError
from dragsa.loading import names, text_encoder
from dragsa.loading.names import TEXT, UNET, VAE
from dragsa.loading.safetensors import DTYPES, TensorInfo, one_line
from dragsa.loading.settings import LAYERS
from dragsa.model import unet, vae

# Endings of the names that programs give to the scales of float8 weights.
SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale")


class Wanted(NamedTuple):
    """The form in which the networks of a file or folder are wanted."""

    dtype: torch.dtype = torch.float32
    ema: bool | None = None  # the UNet's running mean; None: of the published file alone
    clip_skip: int = 1  # the text encoder's layer, counted from its last, that a prompt is read at


class Part(NamedTuple):
    """One network, still without values, and the tensors found for it by their diffusers names."""

    component: str
    module: Any
    tensors: dict[str, TensorInfo]
    spell: Callable[[str], str]  # a diffusers name as the file would spell it

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(info.file for info in self.tensors.values()))


class Opened(NamedTuple):
    """A file's or folder's contents, before any value is read."""

    parts: dict[str, Part]  # by component: all three, or the one that was asked for
    left_over: list[str]  # tensors that belong to no network, as the file spells them
    tokenizer: Path | None = None  # None where the layout has no place for one
    copy: str = "the only one"  # see ModelConfig
    unused: tuple[str, ...] = ()  # tensors, and folders, that no result depends on
    notes: tuple[str, ...] = ()  # see ModelConfig

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(file for part in self.parts.values() for file in part.files))


def build(component: str, settings: Mapping[str, Any], origin: Path) -> nn.Module:
    """Return a network without values, from its settings. Raises WeightsError that names their origin."""
    try:
        with torch.device("meta"):
            if component == UNET:
                return unet.UNet(diffusers.unet_config(settings))
            if component == VAE:
                return vae.VAE(diffusers.vae_config(settings))
        return text_encoder.build(text_encoder.config_from_transformers(settings))
    except Exception as error:  # transformers raises classes of its own
        raise WeightsError(f"{origin}: {one_line(error)}") from None


def squeezed(component: str, name: str, info: TensorInfo) -> TensorInfo:
    """Return the tensor's description for a linear layer: older VAEs' attention has 1×1 convolutions, (n, m, 1, 1)."""
    shape = info.shape
    if component == VAE and ".attentions." in name:
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
    return info._replace(shape=shape)


class Layers(NamedTuple):
    """A text encoder as far as the layer that prompts are read at: its settings, and its tensors."""

    settings: dict[str, Any]
    tensors: dict[str, TensorInfo]
    beyond: tuple[str, ...]  # tensors of layers that the settings do not have, by their diffusers names


def skip_layers(settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo], skip: int, origin: Path) -> Layers:
    """Leave out a text encoder's last layers: those that its settings do not have, and `skip` - 1 of those they have.

    Raises WeightsError if no layer stays.
    """
    layers = settings.get("num_hidden_layers", LAYERS)
    if not is_whole(layers) or layers < 1:  # for `build` to refuse
        return Layers({**settings}, {**tensors}, ())
    if not is_whole(skip) or not 1 <= skip <= layers:
        raise WeightsError(f"{origin}: clip skip must be a whole number from 1 to its {layers} layers, came {skip!r}")
    last = layers - skip + 1
    numbers = {name: layer_of(name) for name in tensors}
    kept = {name: info for name, info in tensors.items() if numbers[name] < last}
    beyond = tuple(name for name, number in numbers.items() if number >= layers)
    return Layers({**settings, "num_hidden_layers": last}, kept, beyond)


def layer_of(name: str) -> int:
    """Return the number of the text encoder's layer that a tensor belongs to; -1 where it belongs to none."""
    _, at, rest = name.rpartition("encoder.layers.")
    number = rest.split(".")[0]
    return int(number) if at and number.isascii() and number.isdigit() else -1


def check_fit(path: Path, parts: Iterable[Part], left_over: list[str]) -> None:
    """Raise a WeightsError that lists, by the file's own names, what is missing, left over, misshapen or no floats."""
    wanted, given, parts = {}, {}, tuple(parts)
    for part in parts:
        own = fitting.shapes(part.module.state_dict())  # transformers' names differ between versions
        wanted.update({part.spell(names.newest(part.component, name)): shape for name, shape in own.items()})
        given.update({part.spell(name): info.shape for name, info in part.tensors.items()})
    if scales := [name for name in (*left_over, *given) if name.endswith(SCALES)]:
        raise WeightsError(
            f"{path}: holds scaled float8 weights, {fitting.listed('scales', scales)}; get the file in float16"
        )
    problem = fitting.misfit(wanted, given, left_over)
    if problem:
        raise WeightsError(f"{path}: does not fit SD 1.5's structure: {problem}")
    tensors = [info for part in parts for info in part.tensors.values()]
    if odd := [f"{info.name} {info.dtype}" for info in tensors if info.dtype not in DTYPES]:
        raise WeightsError(f"{path}: {fitting.listed('tensors are not floats', odd)}")


def check_together(path: Path, parts: Mapping[str, Part]) -> None:
    """Raise a WeightsError unless the networks fit one another."""
    width, context = parts[TEXT].module.config.hidden_size, parts[UNET].module.config.context_dim
    if width != context:
        raise WeightsError(f"{path}: the text encoder is {width} wide, but the UNet takes a context of {context}")
    latents = parts[VAE].module.config.latent_channels, parts[UNET].module.config.latent_channels
    if latents[0] != latents[1]:
        raise WeightsError(f"{path}: the VAE's latent has {latents[0]} channels, but the UNet takes {latents[1]}")
