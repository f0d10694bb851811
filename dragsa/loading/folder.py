"""The diffusers layout: a folder with all parts of a model."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from dragsa.layouts.fitting import WeightsError
from dragsa.loading import known_files, names, noise
from dragsa.loading.names import TEXT, UNET, VAE
from dragsa.loading.parts import Opened, Part, Wanted, build, skip_layers, squeezed
from dragsa.loading.safetensors import PICKLES, TensorInfo, read_header
from dragsa.loading.settings import read_settings
from dragsa.loading.tokenizer import has_tokenizer

FILES = {UNET: "diffusion_pytorch_model", VAE: "diffusion_pytorch_model", TEXT: "model"}
# Folders of a published model that hold no network of the three and no weights, or are read elsewhere.
_OTHERS = ("tokenizer", "scheduler", "feature_extractor")


def open_folder(folder: Path, wanted: Wanted, replaced: Collection[str] = ()) -> Opened:
    """Open the diffusers layout: a folder for each network, with its settings, and one for the tokenizer.

    replaced: networks that are taken from elsewhere. Raises WeightsError for another folder.
    """
    for name, what in (("text_encoder_2", "Stable Diffusion XL (SDXL)"), ("transformer", "a diffusion transformer")):
        if (folder / name).is_dir():
            raise WeightsError(f"{folder}: this is {what} (it has {name}/); dragsa takes SD 1.5")
    components = [name for name in (UNET, VAE, TEXT) if name not in replaced]
    needed = [*components, *(["tokenizer"] if TEXT in components else [])]
    absent = [name for name in needed if not (folder / name).is_dir()]
    if absent:
        lacking = f"there is no {', no '.join(absent)} in this folder{_how_to_replace(absent)}"
        raise WeightsError(f"{folder}: {_what_folder(folder) or lacking}")
    if wanted.ema:
        raise WeightsError(f"{folder}: a folder holds one copy of its UNet, and no EMA copy beside it to ask for")
    prediction = noise.of_folder(folder)
    found = {component: open_network(folder / component, component, wanted, prediction) for component in components}
    tokenizer = folder / "tokenizer"
    if TEXT in components and not has_tokenizer(tokenizer):
        raise WeightsError(f"{tokenizer}: neither vocab.json with merges.txt nor tokenizer.json is there")
    return Opened(
        {component: network.part for component, network in found.items()},
        [f"{component}/{name}" for component, network in found.items() for name in network.left_over],
        tokenizer if has_tokenizer(tokenizer) else None,
        unused=(
            *(f"{component}/{name}" for component, network in found.items() for name in network.unused),
            *(f"{name}/" for name in _other_weights(folder)),
        ),
    )


class Network(NamedTuple):
    """One network of a folder; what it has beside, by the file's own names."""

    part: Part
    left_over: list[str]
    unused: list[str]


def open_network(folder: Path, component: str, wanted: Wanted, prediction: str = noise.EPSILON) -> Network:
    """Open one network's folder, `config.json` and its weights. Raises WeightsError for another folder."""
    origin = folder / "config.json"
    settings = read_settings(origin)
    if component == UNET:
        settings["prediction_type"] = prediction
    if component == TEXT:
        settings = settings.get("text_config") or settings if settings.get("model_type") == "clip" else settings
    tensors: dict[str, TensorInfo] = {}
    left_over, unused = [], []
    for name, info in _read_weights(folder, FILES[component], wanted.dtype).items():
        ours = names.newest(component, name)
        if component == TEXT and ours == names.POSITIONS:
            continue
        if names.is_unused(component, name):
            unused.append(name)
        elif ours in tensors:
            left_over.append(name)
        else:
            tensors[ours] = squeezed(component, ours, info)
    if component == TEXT:
        layers = skip_layers(settings, tensors, wanted.clip_skip, origin)
        settings, tensors, unused = layers.settings, layers.tensors, [*unused, *layers.beyond]
    module = build(component, settings, origin)
    return Network(Part(component, module, tensors, f"{folder.name}/{{}}".format), left_over, unused)


def _read_weights(folder: Path, stem: str, dtype: torch.dtype) -> dict[str, TensorInfo]:
    """Return the tensors of a network's one file, or of the several that an index lists.

    The full weights are taken, or the fp16 variant if that is wanted or is all there is, or the only other variant.
    """
    found = _variants(folder, stem)
    for name in ("fp16", "") if dtype == torch.float16 else ("", "fp16"):
        if name in found:
            return _read_shards(found[name]) if found[name].suffix == ".json" else read_header(found[name])
    if len(found) == 1:
        (file,) = found.values()
        return _read_shards(file) if file.suffix == ".json" else read_header(file)
    if found:
        raise WeightsError(f"{folder}: which variant? {', '.join(file.name for file in found.values())}; leave one")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    hint = f"; {pickles[0]} is a pickle, which is never opened" if pickles else ""
    raise WeightsError(f"{folder}: there is no {stem}.safetensors{hint}")


def _variants(folder: Path, stem: str) -> dict[str, Path]:
    """Return a network's files by variant, "" for the full weights; of a file and an index of several, the file."""
    forms = (  # the index as diffusers names it, and as transformers does
        rf"{stem}\.safetensors(?:\.(?P<variant>[\w-]+))?\.index\.json",
        rf"{stem}\.safetensors\.index\.(?P<variant>[\w-]+)\.json",
        rf"{stem}(?:\.(?P<variant>[\w-]+))?(?<!-of-\d{{5}})\.safetensors",
    )
    found: dict[str, Path] = {}
    for form in forms:
        for file in sorted(folder.iterdir()):
            if match := re.fullmatch(form, file.name):
                found[match["variant"] or ""] = file
    return found


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    """Return the tensors of all files that an index lists. Raises WeightsError unless it lists what they hold."""
    listed = read_settings(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise WeightsError(f"{index}: its weight_map must give a file for each tensor")
    tensors: dict[str, TensorInfo] = {}
    for name in dict.fromkeys(listed.values()):
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise WeightsError(f"{index}: lists {name!r}, which is not there; download it again")
        for key, info in read_header(file).items():
            if listed.get(key) != name:
                raise WeightsError(f"{index}: does not list {key} in {name}; the files do not belong together")
            tensors[key] = info
    if lost := next((key for key in listed if key not in tensors), None):
        raise WeightsError(f"{index}: lists {lost} in {listed[lost]}, which does not hold it; download it again")
    return tensors


def find_snapshot(path: Path) -> Path:
    """Return the model's folder if `path` is a repository's root in the Hugging Face cache; else `path` itself.

    Raises WeightsError where the cache has several versions and no main one.
    """
    snapshots, main = path / "snapshots", path / "refs" / "main"
    if not snapshots.is_dir():
        return path
    if main.is_file() and (named := snapshots / main.read_text(errors="replace").strip()).is_dir():
        return named
    versions = sorted(version for version in snapshots.iterdir() if version.is_dir())
    if len(versions) != 1:
        raise WeightsError(f"{snapshots}: there are {len(versions)} versions and no main one; give one's path")
    return versions[0]


def _other_weights(folder: Path) -> list[str]:
    """Return the folders beside the three networks' that hold weights, such as safety_checker."""
    others = (one for one in sorted(folder.iterdir()) if one.is_dir() and one.name not in (*FILES, *_OTHERS))
    return [one.name for one in others if any(file.suffix in (".safetensors", *PICKLES) for file in one.iterdir())]


def _how_to_replace(absent: Collection[str]) -> str:
    """Say how a network that is not there may be given, if all that is absent may be."""
    ways = {VAE: "--vae PATH (vae=)", TEXT: "--text-encoder PATH (text_encoder=)"}
    if not set(absent) <= ways.keys():
        return ""
    return "; give " + " and ".join(ways[name] for name in absent)


def _what_folder(folder: Path) -> str:
    """Say what kind of folder this is, which lacks a model's parts; nothing if that cannot be told."""
    if inside := next((one for one in sorted(folder.iterdir()) if (one / UNET).is_dir()), None):
        return f"there is no model in this folder itself; did you mean {inside}?"
    kind = read_settings(folder / "config.json").get("_class_name", "") if (folder / "config.json").exists() else ""
    for name, what in (("ControlNet", "a ControlNet"), ("Autoencoder", "a VAE alone"), ("UNet", "a UNet alone")):
        if name in str(kind):
            return f"this is {what}; dragsa takes the folder with all of SD 1.5's parts"
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if known := known_files.look_alike(read_header(file)):
            return f"{file.name} is {known}; dragsa takes SD 1.5 as a whole"
    if files:
        return f"give the path of the file itself: {', '.join(file.name for file in files[:10])}"
    if any(file.suffix in PICKLES for file in folder.iterdir()):
        return "holds only pickles (PyTorch's own format), which are never opened; get the .safetensors files"
    return "the folder is empty" if not any(folder.iterdir()) else ""
