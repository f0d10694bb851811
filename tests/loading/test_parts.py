"""Tensors must fit the networks, both ways."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from loading_checks import refused, relinked
from safetensors.torch import load_file

from dragsa.loading import WeightsError
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
