"""A VAE or a text encoder from elsewhere: every layout, what it takes the place of, and what is refused."""

from __future__ import annotations

import shutil
from itertools import cycle
from pathlib import Path

import pytest
import tiny_models
import torch
from loading_checks import holds, refused, relinked
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragsa import loading
from dragsa.loading import names


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another network of the same names."""
    return {name: 2 * value if value.is_floating_point() else value for name, value in state.items()}


def single_names(component: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {names.to_single_file(component, name): value for name, value in state.items()}


def vaes(folder: Path) -> list[Path]:
    """The doubled VAE as a folder, a model's folder, a file of it, and as the original program has it."""
    state = doubled(tiny_models.vae_state())
    original = single_names("vae", state)
    original = {name: v[:, :, None, None] if ".attn_1." in name and v.ndim == 2 else v for name, v in original.items()}
    tiny_models.write_json(folder / "alone/config.json", tiny_models.VAE_SETTINGS)
    save_file(state, folder / "alone/diffusion_pytorch_model.safetensors")
    shutil.copytree(folder / "alone", folder / "model/vae")
    save_file(state, folder / "diffusers-names.safetensors")
    beside = {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}
    bare = {name.removeprefix("first_stage_model."): value for name, value in original.items()}
    save_file(bare | beside, folder / "vae-ft-mse.safetensors")
    save_file(original, folder / "prefixed.safetensors")
    whole = tiny_models.single_file_state()
    save_file(whole | original, folder / "whole.safetensors")
    of_folder = [folder / "alone", folder / "model", folder / "alone/diffusion_pytorch_model.safetensors"]
    return [*of_folder, *sorted(folder.glob("*.safetensors"))]


@pytest.mark.filterwarnings("ignore:.*not used. 2 names .loss.logvar")
def test_a_vae_of_every_layout(folder, single, tmp_path):
    expected = doubled(tiny_models.vae_state())
    paths = vaes(tmp_path)
    assert len(paths) == 7
    for path, model in zip(paths, cycle((folder, single)), strict=False):
        sd = loading.load(model, vae=path)
        assert sd.vae.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in sd.vae.state_dict().items())
        assert sd.config.changes == (f"VAE of {path}",) and str(path) in sd.provenance
        assert sd.config.files[1].is_relative_to(path)
        assert torch.equal(sd.unet.conv_in.weight, tiny_models.unet_state()["conv_in.weight"])


@pytest.mark.filterwarnings("ignore:.*not used. 1 names .text_projection")
def test_a_text_encoder_of_every_layout(folder, single, tmp_path):
    state = {name: value for name, value in tiny_models.text_state().items() if "position_ids" not in name}
    state = doubled(state)
    named = {f"text_model.{name}": value for name, value in state.items()}
    tiny_models.write_json(tmp_path / "model/text_encoder/config.json", tiny_models.TEXT_SETTINGS)
    save_file(named, tmp_path / "model/text_encoder/model.safetensors")
    clip = {"model_type": "clip", "text_config": tiny_models.TEXT_SETTINGS}
    tiny_models.write_json(tmp_path / "clip/config.json", clip)
    save_file(named | {"text_projection.weight": torch.ones(48, 48)}, tmp_path / "clip/model.safetensors")
    save_file(named, tmp_path / "clip_l.safetensors")
    save_file(state, tmp_path / "bare.safetensors")
    save_file(single_names("text_encoder", state), tmp_path / "prefixed.safetensors")
    paths = [*(tmp_path / name for name in ("model", "model/text_encoder", "clip")), *tmp_path.glob("*.safetensors")]
    for path, model in zip(paths, cycle((folder, single)), strict=False):
        sd = loading.load(model, text_encoder=path)
        loaded = {name.removeprefix("text_model."): value for name, value in sd.text.model.state_dict().items()}
        assert loaded.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_a_checkpoint_that_lacks_one_says_how_to_give_it(single, folder, tmp_path):
    path = tmp_path / "model.safetensors"
    for lacking, option, choice in (
        ("first_stage_model.", "holds no VAE; give --vae PATH (vae=)", {"vae": folder}),
        (
            "cond_stage_model.",
            "holds no text encoder; give --text-encoder PATH (text_encoder=)",
            {"text_encoder": folder},
        ),
    ):
        save_file({name: v for name, v in load_file(single).items() if not name.startswith(lacking)}, path)
        tiny_models.write_tokenizer(tmp_path)
        message = refused(path, option)
        assert "lies beside it" not in message
        holds(loading.load(path, **choice))
    save_file({name: v for name, v in load_file(single).items() if not name.startswith("first_stage_model.")}, path)
    tiny_models.save(tiny_models.vae_state(), tmp_path / "model.vae.safetensors")
    refused(path, "model.vae.safetensors lies beside it")
    holds(loading.load(path, vae=tmp_path / "model.vae.safetensors"))
    save_file(load_file(single), path)
    assert loading.load(path).config.notes == ("model.vae.safetensors lies beside it; --vae takes it",)

    relinked(folder, tmp_path / "folder", without="vae/")
    refused(tmp_path / "folder", "there is no vae in this folder; give --vae PATH (vae=)")
    holds(loading.load(tmp_path / "folder", vae=folder))
    relinked(folder, tmp_path / "other", without="text_encoder/")
    holds(loading.load(tmp_path / "other", text_encoder=folder / "text_encoder"))


def test_what_is_no_vae_of_sd15(folder, single, tmp_path):
    state = tiny_models.vae_state()
    tiny_models.write_json(tmp_path / "xl/config.json", tiny_models.VAE_SETTINGS | {"scaling_factor": 0.13025})
    save_file(state, tmp_path / "xl/diffusion_pytorch_model.safetensors")
    refused(folder, "scales its latents by 0.13025, SD 1.5's by 0.18215", vae=tmp_path / "xl")
    refused(folder, "0.13025", vae=tmp_path / "xl/diffusion_pytorch_model.safetensors")
    save_file(state, tmp_path / "xl.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    refused(folder, "SDXL's VAE", vae=tmp_path / "xl.safetensors")
    save_file(tiny_models.unet_state(), tmp_path / "unet.safetensors")
    refused(folder, "holds no VAE", vae=tmp_path / "unet.safetensors")
    save_file({name: v for name, v in state.items() if name != "quant_conv.bias"}, tmp_path / "cut.safetensors")
    refused(folder, "1 missing (quant_conv.bias)", vae=tmp_path / "cut.safetensors")
    refused(folder, "there is no such file or folder", vae=tmp_path / "nowhere")
    refused(folder, "pickle", vae=Path(shutil.copy(__file__, tmp_path / "vae.pt")))
    refused(single, "holds no text encoder", text_encoder=tmp_path / "unet.safetensors")
    refused(single, "config.json: the file is missing", vae=tmp_path)
