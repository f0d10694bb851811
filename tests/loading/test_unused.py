"""What files hold beside the networks: named and left, or refused where it changes what a network computes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import tiny_models
import torch
from loading_checks import holds, refused, relinked
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragsa import loading

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def written(path: Path, extra: dict[str, Tensor]) -> Path:
    save_file(tiny_models.single_file_state() | extra, path)
    tiny_models.write_tokenizer(path.parent)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.transformer.vision_model.post_layernorm.bias",
        "global_step",
        "logvar",
        "scale_factor",
        "first_stage_model.loss.discriminator.main.0.weight",
        "embedding_manager.string_to_param_dict.*",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "control_model.input_blocks.0.0.weight",
        "string_to_param.*",
        "conditioner.embedders.0.x",
    ],
)
def test_what_lies_beside_the_networks_is_named_and_left(tmp_path, name):
    path = written(tmp_path / "model.safetensors", {name: torch.ones(4)})
    with pytest.warns(UserWarning, match="not used: 1 names") as caught:
        sd = loading.load(path)
    holds(sd)
    assert sd.config.unused == (name,) and len(caught) == 1 and name in str(caught[0].message)


def test_a_plain_model_warns_of_nothing(single, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loading.load(single).config.unused == loading.load(folder).config.unused == ()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({f"{UNET}.scale_weight": torch.tensor(2.0)}, "scaled float8 weights, 1 scales"),
        ({f"{UNET}.weight_scale": torch.tensor(2.0)}, "scaled float8 weights, 1 scales"),
        ({"model.diffusion_model.time_embed.cond_proj.weight": torch.ones(4, 4)}, "an LCM"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.ones(4, 4)}, "SDXL"),
        ({f"{UNET}.bias": torch.ones(32)}, f"1 left over ({UNET}.bias)"),
        ({f"{UNET}.lora_down.weight": torch.ones(4, 32)}, "1 left over"),
        ({"first_stage_model.encoder.more": torch.ones(4)}, "1 left over (first_stage_model.encoder.more)"),
        ({"cond_stage_model.transformer.text_model.more": torch.ones(4)}, "1 left over (cond_stage_model."),
    ],
)
def test_what_stands_within_a_network_is_refused(tmp_path, extra, says):
    refused(written(tmp_path / "model.safetensors", extra), says)


def test_scaled_weights_in_float8(tmp_path):
    state = tiny_models.single_file_state()
    state[f"{UNET}.weight"] = state[f"{UNET}.weight"].to(torch.float8_e4m3fn)
    state[f"{UNET}.scale_weight"] = torch.tensor(2.0)
    state["model.diffusion_model.scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(state, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "scaled float8", f"{UNET}.scale_weight", "float16")


def test_other_networks_of_a_folder_are_named(folder, tmp_path):
    relinked(folder, tmp_path)
    (tmp_path / "safety_checker").mkdir()
    tiny_models.save({"x": torch.ones(1)}, tmp_path / "safety_checker/model.safetensors")
    tiny_models.write_json(tmp_path / "feature_extractor/preprocessor_config.json", {})
    with pytest.warns(UserWarning, match=r"not used: 1 names \(safety_checker/\)"):
        sd = loading.load(tmp_path)
    holds(sd)


def test_the_other_half_of_clip_and_layers_that_the_settings_leave_out(folder, tmp_path):
    file = "text_encoder/model.safetensors"
    relinked(folder, tmp_path, without=file)
    state = load_file(folder / file)
    more = {name.replace("layers.1.", "layers.2."): value.clone() for name, value in state.items() if ".1." in name}
    more |= {
        "text_projection.weight": torch.ones(48, 48),
        "vision_model.x": torch.ones(1),
        "logit_scale": torch.ones(()),
    }
    tiny_models.save(state | more, tmp_path / file)
    with pytest.warns(UserWarning, match="not used: 19 names"):
        sd = loading.load(tmp_path)
    holds(sd)


def test_a_merge_of_many_leftovers_is_still_named_by_what_it_is_not(tmp_path):
    """A file without a UNet is what it holds; one with a UNet is a model that lacks something."""
    state = tiny_models.single_file_state() | {"control_model.x": torch.ones(1), "lora_te_x.alpha": torch.ones(1)}
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in state.items() if not name.startswith("first_stage_model")}, path)
    refused(path, "holds no VAE; give --vae PATH")
    save_file({"control_model.x": torch.ones(1)}, path)
    refused(path, "a ControlNet")
    save_file({"string_to_param.*": torch.ones(1)}, path)
    refused(path, "a textual inversion; give it with the model, by --embedding")
