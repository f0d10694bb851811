"""SD 1.5's original layout: one safetensors file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dragsa.layouts.fitting import WeightsError
from dragsa.loading import known_files, names, noise, settings
from dragsa.loading.known_files import KnownFile
from dragsa.loading.names import TEXT, UNET, VAE
from dragsa.loading.parts import Opened, Part, Wanted, build, skip_layers, squeezed
from dragsa.loading.safetensors import TensorInfo, notes_of, read_header, read_metadata
from dragsa.model import unet


def open_single_file(
    path: Path,
    wanted: Wanted,
    replaced: Collection[str] = (),
    published: Sequence[KnownFile] = known_files.PUBLISHED_WITH_EMA,
) -> Opened:
    """Open the original layout: all networks in one file, by the original program's names, and no settings.

    Some files hold two copies of the UNet. The plain one is taken, since programs that merge models leave the running
    mean (EMA) as it was: that of `published` files alone is taken, and any other if it is asked for. replaced: networks
    that are taken from elsewhere. Raises WeightsError for another file.
    """
    tensors = read_header(path)
    if what := known_files.look_alike(tensors):
        raise WeightsError(f"{path}: this is {what}; dragsa takes SD 1.5 as a whole")
    words = read_metadata(path)
    prediction = noise.of_single_file(path, tensors, words)
    copies = _copies(path, tensors, wanted, published)
    sorted_ = _sort(tensors, copies, replaced)
    absent = [component for component in (UNET, VAE, TEXT) if component not in (*replaced, *sorted_.found)]
    if absent:
        raise WeightsError(f"{path}: holds no {_how_to_replace(path, absent)}")

    unused, parts = sorted_.unused, {}
    for component in (component for component in (UNET, VAE, TEXT) if component in sorted_.found):
        found = sorted_.found[component]
        own = _settings_of(path, component, found, prediction)
        if component == TEXT:
            own, found, beyond = skip_layers(own, found, wanted.clip_skip, path)
            sorted_.left_over.extend(names.to_single_file(TEXT, name) for name in beyond)
        spell = partial(_spell, component, component == UNET and copies.taken == "EMA")
        parts[component] = Part(component, build(component, own, path), found, spell)
    notes = [*notes_of(words)]
    if VAE not in replaced and (beside := _vae_beside(path)):
        notes.append(f"{beside.name} lies beside it; --vae takes it")
    return Opened(parts, sorted_.left_over, None, copies.taken, tuple(unused), tuple(notes))


def _spell(component: str, ema: bool, name: str) -> str:
    """Return a network's tensor as the file spells it, from diffusers' name."""
    theirs = names.to_single_file(component, name)
    return names.ema_name(theirs) if ema else theirs


class _Copies(NamedTuple):
    """The UNet's copies: which is taken, the EMA copy's tensors by their names, and the plain names."""

    taken: str  # see ModelConfig
    ema: dict[str, str]  # the EMA copy's name -> the plain one
    plain: frozenset[str]
    whole: bool  # the EMA copy lacks nothing that the plain one has


def _copies(path: Path, tensors: Mapping[str, TensorInfo], wanted: Wanted, published: Sequence[KnownFile]) -> _Copies:
    """Choose between the UNet's copies. Raises WeightsError where EMA is asked for and is not there."""
    if not any(name.startswith("model_ema.diffusion_model") for name in tensors):
        if wanted.ema:
            raise WeightsError(f"{path}: holds no EMA copy of its UNet; ask for none")
        return _Copies("the only one", {}, frozenset(), False)
    with torch.device("meta"):
        plain = frozenset(names.to_single_file(UNET, name) for name in unet.UNet().state_dict())
    ema = {flat: name for name in plain if (flat := names.ema_name(name)) in tensors}
    taken = wanted.ema
    if taken is None:
        taken = plain.isdisjoint(tensors) or known_files.is_one_of(path, published)
    whole = all(names.ema_name(name) in tensors for name in plain if name in tensors)
    return _Copies("EMA" if taken else "plain", ema, plain, whole)


class _Sorted(NamedTuple):
    """A file's tensors: by component and diffusers name, and those that belong nowhere or are of no use."""

    found: dict[str, dict[str, TensorInfo]]
    left_over: list[str]
    unused: list[str]


def _sort(tensors: Mapping[str, TensorInfo], copies: _Copies, replaced: Collection[str]) -> _Sorted:
    """Sort a file's tensors into its networks."""
    result = _Sorted({}, [], [])
    for name, info in tensors.items():
        known = name in names.BOOKKEEPING or name in noise.MARKS or name.endswith(names.POSITIONS)
        if known or names.network_of(name) in replaced:
            continue
        plain = name
        if copies.taken == "EMA":
            if name in copies.plain:
                continue
            plain = copies.ema.get(name, name)
        elif name in copies.ema:
            result.unused.extend([] if copies.whole else [name])
            continue
        if names.is_outside(plain):
            result.unused.append(name)
            continue
        component, ours = names.from_single_file(plain) or ("", name)
        if not component or ours in result.found.get(component, ()):
            result.left_over.append(name)
        else:
            result.found.setdefault(component, {})[ours] = squeezed(component, ours, info)
    return result


def _settings_of(path: Path, component: str, found: Mapping[str, TensorInfo], prediction: str) -> dict[str, Any]:
    """Return a network's settings by its tensors' shapes, and by the original program's settings beside the file."""
    shapes = {name: info.shape for name, info in found.items()}
    if component == UNET:
        return {**settings.unet_settings(shapes), "prediction_type": prediction}
    if component == TEXT:
        return settings.text_settings(shapes)
    scales = noise.in_yaml(path.with_suffix(".yaml"), "scale_factor")
    try:
        return {**settings.vae_settings(shapes), **({"scaling_factor": float(scales[0])} if scales else {})}
    except ValueError:
        raise WeightsError(f"{path.with_suffix('.yaml')}: scale_factor must be a number, came {scales[0]}") from None


def _how_to_replace(path: Path, absent: Sequence[str]) -> str:
    """Name networks that a file lacks, and how those that can be are given."""
    lacking = " and no ".join(names.WORDS[component] for component in absent)
    if UNET in absent:
        return f"{lacking}; dragsa takes SD 1.5 as a whole"
    ways = {VAE: "--vae PATH (vae=)", TEXT: "--text-encoder PATH (text_encoder=)"}
    beside = _vae_beside(path) if VAE in absent else None
    offer = f"; {beside.name} lies beside it" if beside else ""
    return f"{lacking}; give {' and '.join(ways[component] for component in absent)}{offer}"


def _vae_beside(path: Path) -> Path | None:
    """Return the VAE that other programs take for a checkpoint by its name, if it is there."""
    beside = path.with_suffix(".vae.safetensors")
    return beside if beside.is_file() else None
