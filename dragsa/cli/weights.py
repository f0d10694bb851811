"""The weights that the options name, or those that ship: the model's files, and what changes it."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragsa.cli.options import Options

if TYPE_CHECKING:
    from dragsa.loading import StableDiffusion

_BESIDE = Path(__file__).resolve().parents[2]  # a checkout, or where packages are installed
_USERS = sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))
_SHARES = [Path(folder) / "share" / "dragsa" for folder in (sysconfig.get_path("data"), _USERS, _BESIDE)]


def shipped(name: str) -> Path:
    """Return the folder of a model that ships, `small` or `artwork`, whether it is there or not."""
    places = [folder / "weights" / name for folder in (_BESIDE, *_SHARES)]
    return next((place for place in places if place.is_dir()), places[0])


SMALL = shipped("small")  # what is taken where no weights are named

_CHOICES = ("ema", "vae", "text_encoder", "clip_skip")  # of `loading.load`
_FILES = ("lora", "embedding")


def changes_of(options: Options) -> str:
    """Return all that makes it another model than the file's, as a text to compare."""
    return repr([options.get(name) for name in (*_CHOICES, *_FILES)])


def load_changed(path: Path, options: Options) -> StableDiffusion:
    """Load a model with the LoRAs and textual inversions that the options name."""
    import torch

    from dragsa import loading, methods

    dtype = getattr(torch, options.get("dtype", "float32"))
    sd = loading.load(path, options.get("device", "cpu"), dtype, **_chosen(options))
    for one in options.get("embedding", ()):
        sd = loading.add_embedding(sd, one.file, None if one.extra is None else str(one.extra))
    for one in options.get("lora", ()):
        scale = 1.0 if one.extra is None else float(one.extra)
        sd = methods.apply_lora(sd, loading.read_lora(one.file), scale, str(one.file))
    return sd


def files_taken(path: Path, options: Options) -> list[Path]:
    """Return the files that loading takes; none where it fails, which it will say itself."""
    from dragsa import loading

    try:
        files = loading.files_of(path, **_chosen(options))
    except (OSError, ValueError):
        return []
    return [*files, *(one.file for name in _FILES for one in options.get(name, ()))]


def _chosen(options: Options) -> dict[str, Any]:
    return {name: options[name] for name in _CHOICES if name in options}
