"""A VAE or a text encoder alone, to take the place of a model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dragsa.config import VAEConfig
from dragsa.layouts.fitting import WeightsError
from dragsa.loading import names, settings
from dragsa.loading.folder import Network, find_snapshot, open_network
from dragsa.loading.names import TEXT, VAE, WORDS
from dragsa.loading.parts import Part, Wanted, build, skip_layers, squeezed
from dragsa.loading.safetensors import TensorInfo, read_header, read_metadata


def open_one(path: Path, component: str, wanted: Wanted) -> Network:
    """Open the VAE or the text encoder of a file or folder, which may hold a whole model.

    Of a folder, in the diffusers layout: the network's own, or the model's. Of a file: any layout's names. Raises
    WeightsError for another file or folder, and for a VAE that scales its latents otherwise than SD 1.5's.
    """
    path = find_snapshot(path)
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file or folder")
    if path.is_dir():
        inside = path / component
        found = open_network(inside if inside.is_dir() else path, component, wanted)
    elif component == VAE and (path.parent / "config.json").is_file() and path.stem.startswith("diffusion_pytorch"):
        found = _open_file(path, component, wanted, settings.read_settings(path.parent / "config.json"))
    else:
        found = _open_file(path, component, wanted, None)
    if component == VAE and found.part.module.config.scaling_factor != VAEConfig.scaling_factor:
        scale = found.part.module.config.scaling_factor
        raise WeightsError(f"{path}: this VAE scales its latents by {scale}, SD 1.5's by {VAEConfig.scaling_factor}")
    return found


class _Layout(NamedTuple):
    """A file's names of a network's tensors: from its names to ours, None for another network's, and back."""

    ours: Callable[[str], str | None]
    spell: Callable[[str], str]


def _layout(component: str, tensors: dict[str, TensorInfo]) -> _Layout:
    """Tell a file's layout by its tensors' names."""
    root = names.ROOTS[component]

    def of_single_file(name: str) -> str | None:
        found = names.from_single_file(name)
        return found[1] if found and found[0] == component else None

    if any(name.startswith(root) for name in tensors):
        return _Layout(of_single_file, lambda name: names.to_single_file(component, name))
    if component == VAE and not any(".down_blocks." in name or ".up_blocks." in name for name in tensors):
        return _Layout(
            lambda name: of_single_file(root + name),
            lambda name: names.to_single_file(component, name).removeprefix(root),
        )
    return _Layout(lambda name: names.newest(component, name), lambda name: name)


def _open_file(path: Path, component: str, wanted: Wanted, own: dict[str, Any] | None) -> Network:
    """Open a file's network, by its settings or, for None, by its tensors' shapes."""
    infos = read_header(path)
    if any("xl" in word.lower() for key, word in read_metadata(path).items() if key == "modelspec.architecture"):
        raise WeightsError(f"{path}: this is SDXL's {WORDS[component]}, by its modelspec.architecture")
    layout = _layout(component, infos)
    root = names.ROOTS[component]
    rooted = any(name.startswith(root) for name in infos)
    found: dict[str, TensorInfo] = {}
    left_over, unused = [], []
    for name, info in infos.items():
        inside = name.removeprefix(root)
        if name.endswith(names.POSITIONS) or (rooted and inside == name):  # the rest of a whole model
            continue
        ours = layout.ours(name)
        if names.is_unused(component, inside):
            unused.append(name)
        elif ours is None or ours in found:
            left_over.append(name)
        else:
            found[ours] = squeezed(component, ours, info)
    if not any(name.startswith(("encoder.", "decoder.", "embeddings.")) for name in found):
        raise WeightsError(f"{path}: holds no {WORDS[component]}")
    shapes = {name: info.shape for name, info in found.items()}
    if component == TEXT:
        layers = skip_layers(settings.text_settings(shapes), found, wanted.clip_skip, path)
        own, found = layers.settings, layers.tensors
        left_over += [layout.spell(name) for name in layers.beyond]
    elif own is None:
        own = settings.vae_settings(shapes)
    return Network(Part(component, build(component, own, path), found, layout.spell), left_over, unused)
