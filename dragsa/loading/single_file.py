"""SD 1.5's original layout: one safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dragsa.layouts.fitting import Shape, WeightsError
from dragsa.loading import known_files, names, settings
from dragsa.loading.names import TEXT, UNET, VAE
from dragsa.loading.parts import Opened, Part, build, squeezed
from dragsa.loading.safetensors import TensorInfo, read_header
from dragsa.model import unet


def open_single_file(path: Path) -> Opened:
    """Open the original layout: all networks in one file, by the original program's names, and no settings.

    Of the UNet's two copies in some files the running mean (EMA) is taken. Raises WeightsError for another file.
    """
    tensors = read_header(path)
    if what := known_files.look_alike(tensors):
        raise WeightsError(f"{path}: this is {what}; dragsa takes SD 1.5 as a whole")

    plain, ema = set(), {}
    if any(name.startswith("model_ema.diffusion_model") for name in tensors):
        with torch.device("meta"):
            plain = {names.to_single_file(UNET, name) for name in unet.UNet().state_dict()}
        ema = {flat: name for name in plain if (flat := names.ema_name(name)) in tensors}

    found: dict[str, dict[str, TensorInfo]] = {UNET: {}, VAE: {}, TEXT: {}}
    left_over = []
    for name, info in tensors.items():
        if name in names.BOOKKEEPING or name.endswith(names.POSITIONS) or (ema and name in plain):
            continue
        component, ours = names.from_single_file(ema.get(name, name)) or ("", name)
        if not component or ours in found[component]:
            left_over.append(name)
        else:
            found[component][ours] = squeezed(component, ours, info)
    if absent := [names.WORDS[component] for component, own in found.items() if not own]:
        raise WeightsError(f"{path}: holds no {' and no '.join(absent)}; dragsa takes SD 1.5 as a whole")

    def part(component: str, settings_of: Callable[[Mapping[str, Shape]], dict[str, Any]]) -> Part:
        def spell(name: str) -> str:
            theirs = names.to_single_file(component, name)
            return names.ema_name(theirs) if ema and component == UNET else theirs

        shapes = {name: info.shape for name, info in found[component].items()}
        return Part(component, build(component, settings_of(shapes), path), path, found[component], spell)

    parts = part(UNET, settings.unet_settings), part(VAE, settings.vae_settings), part(TEXT, settings.text_settings)
    return Opened(parts, left_over, tokenizer=None, copy="EMA" if ema else "the only one")
