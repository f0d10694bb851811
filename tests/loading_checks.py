"""Checks that the tests of loading share: of a model's values, and of refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from dragsa import loading
from dragsa.loading import WeightsError


def relinked(folder: Path, target: Path, without: str = "") -> Path:
    """A folder of links to the model's files, all but `without`, so that a test can change one of them."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and not (without and name.startswith(without)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(file)
    return target


def refused(path: Path, *words: str, **choices: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        loading.load(path, **choices)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    return message


def holds(sd: loading.StableDiffusion, dtype: torch.dtype = torch.float32, unet_seed: int = 1) -> None:
    """The model holds the very values that were written, in that type, frozen."""
    expected = [(sd.unet, tiny_models.unet_state(unet_seed)), (sd.vae, tiny_models.vae_state())]
    text = {name: value for name, value in tiny_models.text_state().items() if "position_ids" not in name}
    expected.append((sd.text.model, text))
    for module, state in expected:
        loaded = {name.removeprefix("text_model."): value for name, value in module.state_dict().items()}
        assert loaded.keys() == state.keys()
        for name, value in state.items():
            assert loaded[name].dtype == dtype
            torch.testing.assert_close(loaded[name], value.to(dtype), rtol=0, atol=0)
        assert not module.training and not any(p.requires_grad for p in module.parameters())
        assert not any(value.is_meta for value in (*module.parameters(), *module.buffers()))


def meta_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of these names and shapes, without the weight of its values where the shapes are large."""
    save_file({name: torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items()}, path)
    return path
