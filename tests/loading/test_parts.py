"""Tensors must fit the networks, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from loading_checks import refused, relinked
from safetensors.torch import load_file

import dragsa
from dragsa import loading
from dragsa.loading import WeightsError, settings
from dragsa.model.unet import UNet


def test_from_diffusers_takes_the_tensors_as_they_are():
    state = dict(tiny_models.unet_state())
    unet = UNet.from_diffusers(tiny_models.UNET_SETTINGS, state)
    assert unet.conv_in.weight.data_ptr() == state["conv_in.weight"].data_ptr()
    del state["conv_in.bias"]
    state["surplus"] = torch.zeros(1)
    state["conv_out.bias"] = torch.zeros(5)
    with pytest.raises(WeightsError) as caught:
        UNet.from_diffusers(tiny_models.UNET_SETTINGS, state)
    message = str(caught.value)
    assert "1 missing (conv_in.bias)" in message and "1 left over (surplus)" in message
    assert "1 misshapen (conv_out.bias [5] instead of [4])" in message


def test_what_does_not_fit_is_listed_by_the_files_own_names(single, tmp_path):
    state = load_file(single)
    for n in range(12):
        del state[f"model.diffusion_model.output_blocks.{n}.0.in_layers.0.weight"]
    state["first_stage_model.surplus"] = torch.zeros(1)
    state["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    state["first_stage_model.encoder.down.0.block.1.norm1.weight"] = torch.ones(96)  # not the level's width for that
    tiny_models.save(state, tmp_path / "model.safetensors")
    message = refused(
        tmp_path / "model.safetensors",
        "12 missing (model.diffusion_model.output_blocks.0.0.in_layers.0.weight, ",
        "and 2 more)",
        "1 left over (first_stage_model.surplus)",
        "2 misshapen",
        "model.diffusion_model.out.2.bias [5] instead of [4]",
        "first_stage_model.encoder.down.0.block.1.norm1.weight [96] instead of [32]",
    )
    assert message.count("in_layers.0.weight") == 10


@pytest.mark.parametrize(
    ("component", "file"), [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")]
)
def test_folders_are_strict_too(folder, tmp_path, component, file):
    relinked(folder, tmp_path, without=f"{component}/{file}")
    state = load_file(folder / component / f"{file}.safetensors")
    state["surplus.weight"] = state.pop("decoder.conv_in.bias" if component == "vae" else "conv_in.bias")
    tiny_models.save(state, tmp_path / component / f"{file}.safetensors")
    message = refused(tmp_path, f"1 missing ({component}/", f"1 left over ({component}/surplus.weight)")
    assert "conv_in.bias" in message


def test_one_layer_under_two_spellings_is_left_over(folder, tmp_path):
    relinked(folder, tmp_path, without="vae/diffusion")
    state = dict(tiny_models.vae_state())
    state["encoder.mid_block.attentions.0.query.weight"] = state["encoder.mid_block.attentions.0.to_q.weight"].clone()
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    refused(tmp_path, "1 left over", "encoder.mid_block.attentions.0.")


def test_text_encoder_of_another_model(folder, tmp_path):
    relinked(folder, tmp_path, without="unet")
    settings = tiny_models.UNET_SETTINGS | {"cross_attention_dim": 56}
    tiny_models.write_json(tmp_path / "unet/config.json", settings)
    state = {
        name: torch.zeros(value.shape[0], 56) if "attn2.to_k" in name or "attn2.to_v" in name else value
        for name, value in tiny_models.unet_state().items()
    }
    tiny_models.save(state, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    refused(tmp_path, "48", "56")


def test_weights_that_are_no_floats(folder, tmp_path):
    relinked(folder, tmp_path, without="vae/diffusion")
    state = dict(tiny_models.vae_state())
    state["quant_conv.weight"] = state["quant_conv.weight"].to(torch.int8)
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    refused(tmp_path, "quant_conv.weight I8")


def test_a_text_encoder_that_lacks_its_last_layers(folder, single, tmp_path):
    """A single file has no settings that would say how many there are: SD 1.5's has 12, the small model's two."""
    state = {name: value for name, value in load_file(single).items() if "encoder.layers.1." not in name}
    tiny_models.save(state, tmp_path / "model.safetensors")
    layer = "cond_stage_model.transformer.text_model.encoder.layers.{}.layer_norm1.bias"
    refused(tmp_path / "model.safetensors", "16 missing", layer.format(1))

    def stacked(layers: int) -> Path:
        for n in range(2, layers):
            for name, value in load_file(single).items():
                if "encoder.layers.1." in name:
                    state[name.replace("layers.1.", f"layers.{n}.")] = value
        whole = state | {name: value for name, value in load_file(single).items() if "encoder.layers.1." in name}
        tiny_models.save(whole, tmp_path / "model.safetensors")
        tiny_models.write_tokenizer(tmp_path)
        return tmp_path / "model.safetensors"

    refused(stacked(11), "16 missing", layer.format(11))
    whole: Any = loading.load(stacked(12)).text.model
    assert whole.config.num_hidden_layers == 12
    refused(stacked(13), "16 left over", layer.format(12))

    relinked(folder, tmp_path / "folder", without="text_encoder/model")
    cut = {name: value for name, value in tiny_models.text_state().items() if "layers.1." not in name}
    tiny_models.save(cut, tmp_path / "folder/text_encoder/model.safetensors")
    refused(tmp_path / "folder", "16 missing (text_encoder/encoder.layers.1.")


def test_the_width_of_clip_means_twelve_layers():
    shapes = {"final_layer_norm.weight": (768,), "encoder.layers.0.mlp.fc1.bias": (3072,)}
    assert settings.text_settings(shapes)["num_hidden_layers"] == 12


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("unet/diffusion_pytorch_model", "mid_block.resnets.0.conv1.weight", torch.nan),
        ("vae/diffusion_pytorch_model", "decoder.conv_out.bias", torch.inf),
        ("text_encoder/model", "final_layer_norm.weight", -torch.inf),
    ],
)
def test_weights_that_are_not_finite_are_named_before_any_work(folder, tmp_path, file, name, value):
    relinked(folder, tmp_path, without=file)
    state = {key: one.clone() for key, one in load_file(folder / f"{file}.safetensors").items()}
    key = name if name in state else f"text_model.{name}"
    state[key].view(-1)[0] = value
    tiny_models.save(state, tmp_path / f"{file}.safetensors")
    sd = loading.load(tmp_path)
    with pytest.raises(WeightsError, match=rf"1 weights are NaN or infinite \({file.split('/')[0]}\..*{name}\)"):
        dragsa.prepare(sd, None, "a red dot", config=dragsa.EditConfig(size=64, steps=999))
    loading.load(folder).check_finite()


def test_weights_too_large_for_the_type_are_not_finite(folder, tmp_path):
    relinked(folder, tmp_path, without="vae/diffusion")
    state = {name: value.clone() for name, value in tiny_models.vae_state().items()}
    state["decoder.conv_in.weight"].view(-1)[3] = 1e5
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    loading.load(tmp_path).check_finite()
    with pytest.raises(WeightsError, match=r"vae\.decoder\.conv_in\.weight"):
        loading.load(tmp_path, dtype=torch.float16).check_finite()
