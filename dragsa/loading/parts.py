"""The three networks of a model without values, and the tensors found for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dragsa.layouts import diffusers, fitting
from dragsa.layouts.fitting import WeightsError
from dragsa.loading import names
from dragsa.loading.names import UNET, VAE
from dragsa.loading.safetensors import DTYPES, TensorInfo, one_line
from dragsa.model import text, unet, vae


class Part(NamedTuple):
    """One network, still without values, and the tensors found for it by their diffusers names."""

    component: str
    module: Any
    file: Path
    tensors: dict[str, TensorInfo]
    spell: Callable[[str], str]  # a diffusers name as the file would spell it


class Opened(NamedTuple):
    """A file's or folder's contents, before any value is read."""

    parts: tuple[Part, Part, Part]  # UNet, VAE, text encoder
    left_over: list[str]  # tensors that belong to no network, as the file spells them
    tokenizer: Path | None  # None where the layout has no place for one
    copy: str  # see ModelConfig


def build(component: str, settings: Mapping[str, Any], origin: Path) -> nn.Module:
    """Return a network without values, from its settings. Raises WeightsError that names their origin."""
    try:
        with torch.device("meta"):
            if component == UNET:
                return unet.UNet(diffusers.unet_config(settings))
            if component == VAE:
                return vae.VAE(diffusers.vae_config(settings))
        return text.build(text.config_from_transformers(settings))
    except Exception as error:  # transformers raises classes of its own
        raise WeightsError(f"{origin}: {one_line(error)}") from None


def squeezed(component: str, name: str, info: TensorInfo) -> TensorInfo:
    """Return the tensor's description for a linear layer: older VAEs' attention has 1×1 convolutions, (n, m, 1, 1)."""
    shape = info.shape
    if component == VAE and ".attentions." in name:
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
    return info._replace(shape=shape)


def check_fit(path: Path, opened: Opened) -> None:
    """Raise a WeightsError that lists, by the file's own names, what is missing, left over, misshapen or no floats."""
    wanted, given = {}, {}
    for part in opened.parts:
        own = fitting.shapes(part.module.state_dict())  # transformers' names differ between versions
        wanted.update({part.spell(names.newest(part.component, name)): shape for name, shape in own.items()})
        given.update({part.spell(name): info.shape for name, info in part.tensors.items()})
    problem = fitting.misfit(wanted, given, opened.left_over)
    if problem:
        raise WeightsError(f"{path}: does not fit SD 1.5's structure: {problem}")
    tensors = [info for part in opened.parts for info in part.tensors.values()]
    if odd := [f"{info.name} {info.dtype}" for info in tensors if info.dtype not in DTYPES]:
        raise WeightsError(f"{path}: {fitting.listed('tensors are not floats', odd)}")
    width, context = opened.parts[2].module.config.hidden_size, opened.parts[0].module.config.context_dim
    if width != context:
        raise WeightsError(f"{path}: the text encoder is {width} wide, but the UNet takes a context of {context}")
