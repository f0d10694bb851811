"""The diffusers layout: a folder with all parts of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dragsa.layouts.fitting import WeightsError
from dragsa.loading import known_files, names
from dragsa.loading.names import TEXT, UNET, VAE
from dragsa.loading.parts import Opened, Part, build, squeezed
from dragsa.loading.safetensors import PICKLES, TensorInfo, read_header
from dragsa.loading.settings import read_settings
from dragsa.loading.tokenizer import has_tokenizer

# The noise schedule that SD 1.5 was trained on, and `ddim.Schedule` has.
NOISE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FILES = {UNET: "diffusion_pytorch_model", VAE: "diffusion_pytorch_model", TEXT: "model"}


def open_folder(folder: Path, dtype: torch.dtype) -> Opened:
    """Open the diffusers layout: a folder for each network, with its settings, and one for the tokenizer.

    `dtype` is the type wanted, by which a network's file is chosen. Raises WeightsError for another folder.
    """
    for name, what in (("text_encoder_2", "Stable Diffusion XL (SDXL)"), ("transformer", "a diffusion transformer")):
        if (folder / name).is_dir():
            raise WeightsError(f"{folder}: this is {what} (it has {name}/); dragsa takes SD 1.5")
    absent = [name for name in (UNET, VAE, TEXT, "tokenizer") if not (folder / name).is_dir()]
    if absent:
        lacking = f"there is no {', no '.join(absent)} in this folder"
        raise WeightsError(f"{folder}: {_what_folder(folder) or lacking}")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    check_scheduler(read_settings(scheduler) if scheduler.exists() else {}, folder)
    left_over = []

    def part(component: str) -> Part:
        settings = folder / component / "config.json"
        module = build(component, read_settings(settings), settings)
        file = _weights_file(folder / component, FILES[component], dtype)
        tensors: dict[str, TensorInfo] = {}
        for name, info in read_header(file).items():
            ours = names.newest(component, name)
            if component == TEXT and ours == names.POSITIONS:
                continue
            if ours in tensors:
                left_over.append(f"{component}/{name}")
            else:
                tensors[ours] = squeezed(component, ours, info)
        return Part(component, module, file, tensors, f"{component}/{{}}".format)

    parts = part(UNET), part(VAE), part(TEXT)
    if not has_tokenizer(folder / "tokenizer"):
        raise WeightsError(f"{folder / 'tokenizer'}: neither vocab.json with merges.txt nor tokenizer.json is there")
    return Opened(parts, left_over, tokenizer=folder / "tokenizer", copy="the only one")


def check_scheduler(scheduler: Mapping[str, Any], origin: Path) -> None:
    """Raise a WeightsError if a model's settings say that it was trained on another schedule, or predicts no noise."""
    for key, expected in NOISE.items():
        if scheduler.get(key, expected) != expected:
            raise WeightsError(f"{origin}: the scheduler's {key} must be {expected}, came {scheduler[key]}")
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise WeightsError(
            f"{origin}: this model predicts {prediction} (as SD 2.x often does), not the noise; dragsa takes SD 1.5"
        )


def _weights_file(folder: Path, stem: str, dtype: torch.dtype) -> Path:
    """Return the network's file: the full one, or the fp16 variant if that is wanted or is all there is."""
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    for name in reversed(names) if dtype == torch.float16 else names:
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    hint = f"; {pickles[0]} is a pickle, which is never opened" if pickles else ""
    raise WeightsError(f"{folder}: there is no {names[0]}{hint}")


def _what_folder(folder: Path) -> str:
    """Say what kind of folder this is, which lacks a model's parts; nothing if that cannot be told."""
    kind = read_settings(folder / "config.json").get("_class_name", "") if (folder / "config.json").exists() else ""
    for name, what in (("ControlNet", "a ControlNet"), ("Autoencoder", "a VAE alone"), ("UNet", "a UNet alone")):
        if name in kind:
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
