"""Read from a file which noise its model was trained on, and what the model predicts."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dragsa.layouts.fitting import WeightsError
from dragsa.loading.safetensors import DTYPES, TensorInfo, read_tensors
from dragsa.loading.settings import read_settings
from dragsa.model.unet import TRAINING_STEPS, training_alpha_bars

EPSILON, V = "epsilon", "v_prediction"
# The words for either, in any program's files.
_WORDS = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V, "vpred": V, "v_pred": V}
# The noise schedule that SD 1.5 was trained on, and `ddim.Schedule` has.
NOISE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_OTHER = "was trained on another noise schedule than SD 1.5's"
_ZERO_SNR = f"{_OTHER} (rescaled to no signal at its end, zero terminal SNR)"
# Tensors without values whose names tell, and keys of the header's words.
_V_MARK, _ZERO_SNR_MARK = "v_pred", "ztsnr"
MARKS = frozenset({_V_MARK, _ZERO_SNR_MARK})
_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")


def of_folder(folder: Path) -> str:
    """Return what a folder's model predicts, by its scheduler's settings: "epsilon" or "v_prediction".

    Raises WeightsError for a model of another noise schedule, and for another prediction.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    return of_scheduler(read_settings(file) if file.exists() else {}, folder, file)


def of_scheduler(scheduler: Mapping[str, Any], folder: Path, file: Path) -> str:
    """Return the same of the settings themselves, whose folder and file are named in errors."""
    if scheduler.get("rescale_betas_zero_snr"):
        raise WeightsError(f"{folder}: {_ZERO_SNR}, rescale_betas_zero_snr in {file.name}")
    if scheduler.get("use_flow_sigmas") or "flow" in str(scheduler.get("_class_name", "")).lower():
        raise WeightsError(f"{folder}: this model was trained on flow matching, by {file.name}; dragsa takes ε or v")
    if (betas := scheduler.get("trained_betas")) is not None:
        if not _are_betas(betas):
            raise WeightsError(f"{folder}: {_OTHER}, trained_betas in {file.name}")
        scheduler = {key: value for key, value in scheduler.items() if key not in NOISE}
    for key, expected in NOISE.items():
        if scheduler.get(key, expected) != expected:
            raise WeightsError(f"{folder}: the scheduler's {key} must be {expected}, came {scheduler[key]}")
    prediction = scheduler.get("prediction_type", EPSILON)
    if prediction is None:
        raise WeightsError(f"{file}: prediction_type is null; write what the model predicts, {EPSILON} or {V}")
    if prediction not in (EPSILON, V):
        raise WeightsError(f"{folder}: this model predicts {prediction}; dragsa takes models of {EPSILON} or {V}")
    return prediction


def of_single_file(path: Path, tensors: Mapping[str, TensorInfo], words: Mapping[str, str]) -> str:
    """Return what a single file's model predicts, by the file beside it, its header's words and its tensors' names.

    Raises WeightsError for a model of another noise schedule, another prediction, and where two of them contradict.
    """
    said = dict.fromkeys([_V_MARK] if _V_MARK in tensors else [], V)
    words = {key.lower(): word for key, word in words.items()}
    beside = path.with_suffix(".yaml")
    for origin, word in (
        *((key, words[key]) for key in _KEYS if words.get(key)),
        *((f"parameterization in {beside.name}", word) for word in in_yaml(beside, "parameterization")),
    ):
        prediction = _WORDS.get(word.strip().lower())
        if prediction is None:
            raise WeightsError(f"{path}: this model predicts {word!r} ({origin}); dragsa takes models of ε or v")
        said[origin] = prediction
    if len(set(said.values())) > 1:
        raise WeightsError(f"{path}: what the model predicts is said in two ways: {_listed(said)}")
    if _ZERO_SNR_MARK in tensors:
        raise WeightsError(f"{path}: {_ZERO_SNR}, by its tensor {_ZERO_SNR_MARK}")
    _check_schedule(path, tensors, beside)
    return next(iter(said.values()), EPSILON)


def _listed(said: Mapping[str, str]) -> str:
    return ", ".join(f"{prediction} by {origin}" for origin, prediction in said.items())


def in_yaml(file: Path, key: str) -> list[str]:
    """Return a key's values in the original program's settings; none if the file is not there."""
    if not file.is_file():
        return []
    # One key of one program's files is no reason to depend on a reader of YAML.
    data = file.read_bytes()
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    text = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    # A key stands at a line's beginning, or among braces.
    return re.findall(rf"(?:^|[{{,])[ \t]*['\"]?{key}['\"]?[ \t]*:\s*['\"]?([^\s'\",}}]+)", text, flags=re.MULTILINE)


def _check_schedule(path: Path, tensors: Mapping[str, TensorInfo], beside: Path) -> None:
    """Raise a WeightsError if the file's own schedule, or that of the settings beside it, is not SD 1.5's."""
    own = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000.0}
    for key, number in own.items():
        for word in in_yaml(beside, key):
            if _number(word) != number:
                raise WeightsError(f"{path}: {_OTHER}: {key} {word} in {beside.name}, which must be {number:g}")
    alpha_bars = training_alpha_bars()
    betas = 1 - alpha_bars / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    sigmas = ((1 - alpha_bars) / alpha_bars).sqrt()
    for name, expected in (("alphas_cumprod", alpha_bars), ("betas", betas), ("denoiser.sigmas", sigmas)):
        info = tensors.get(name)
        if info is None:
            continue
        if info.dtype not in DTYPES or info.shape != (TRAINING_STEPS,):
            raise WeightsError(f"{path}: {_OTHER}: {name} must be {TRAINING_STEPS} floats")
        came, limits = read_tensors({name: info})[name], torch.finfo(DTYPES[info.dtype])
        came, expected = came.double().sort().values, expected.sort().values  # some write theirs from the other end
        near = torch.isclose(came, expected, rtol=max(1e-3, 2 * limits.eps), atol=limits.smallest_normal)
        if not near.all():
            raise WeightsError(f"{path}: {_OTHER}: its {name} differ from it")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _are_betas(values: Any) -> bool:
    """Tell if these are SD 1.5's β of its timesteps, as JSON has them."""
    numbers = isinstance(values, Iterable) and all(isinstance(value, int | float) for value in values)
    if not numbers or len(values) != TRAINING_STEPS:
        return False
    alpha_bars = torch.cumprod(1 - torch.tensor([float(value) for value in values], dtype=torch.float64), dim=0)
    return torch.allclose(alpha_bars, training_alpha_bars(), rtol=1e-3)
