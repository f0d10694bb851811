"""Folders in the diffusers layout, and what is refused."""

from __future__ import annotations

import json

import pytest
import tiny_models
import torch
from loading_checks import holds, meta_file, refused, relinked

from dragsa import loading


def test_folder(folder):
    sd = loading.load(folder)
    holds(sd)
    assert sd.config.layout == "diffusers folder" and sd.config.tokens == tiny_models.TOKENS
    assert sd.config.stored == ("F32",) and sd.config.tokenizer == folder / "tokenizer"
    assert [file.parent.name for file in sd.config.files] == ["unet", "vae", "text_encoder"]


@pytest.mark.parametrize(
    ("vae_names", "ones"),
    [
        ({"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out.0"}, 0),
        ({"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, 0),
        ({"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}, 2),
        ({"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, 1),
    ],
    ids=["new", "old", "original", "old with a trailing 1"],
)
def test_spellings_of_the_vae_attention(folder, tmp_path, vae_names, ones):
    state = {}
    for name, value in tiny_models.vae_state().items():
        before, at, layer = name.partition("mid_block.attentions.0.")
        old = next((old for old in vae_names if at and layer.startswith(old)), None)
        if old:
            name = before + at + layer.replace(old, vae_names[old])
            if value.ndim == 2:
                value = value[(..., *[None] * ones)]
        state[name] = value
    relinked(folder, tmp_path, without="vae/diffusion")
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    holds(loading.load(tmp_path))


def test_fp16_variant_alone_and_beside_the_full_one(tmp_path):
    tiny_models.write_folder(tmp_path, torch.float16, variant=".fp16")
    sd = loading.load(tmp_path, dtype=torch.float16)
    assert sd.config.stored == ("F16",) and sd.config.files[0].name.endswith(".fp16.safetensors")
    holds(sd, torch.float16)
    assert loading.load(tmp_path).unet.dtype == torch.float32
    tiny_models.write_folder(tmp_path)
    assert loading.load(tmp_path, dtype=torch.float16).config.stored == ("F16",)
    full = loading.load(tmp_path)
    assert full.config.stored == ("F32",)
    holds(full)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "SD 2"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "v_prediction"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule must be scaled_linear"),
        ("text_encoder/config.json", {"model_type": "t5"}, "t5"),
        ("vae/config.json", {"latent_channels": 16, "shift_factor": 0.1}, "shift_factor"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "heads"),
    ],
)
def test_look_alikes_among_folders(folder, tmp_path, file, changes, words):
    relinked(folder, tmp_path, without=file)
    settings = json.loads((folder / file).read_text())
    (tmp_path / file).parent.mkdir(exist_ok=True)
    tiny_models.write_json(tmp_path / file, settings | changes)
    refused(tmp_path, words)


def test_folders_of_other_things(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder is empty")
    refused(tmp_path / "nowhere", "there is no such file or folder")

    relinked(folder, tmp_path / "xl")
    (tmp_path / "xl/text_encoder_2").mkdir()
    refused(tmp_path / "xl", "SDXL")

    refused(relinked(folder / "vae", tmp_path / "vae"), "a VAE alone")
    refused(relinked(folder / "unet", tmp_path / "unet"), "a UNet alone")
    tiny_models.write_json(tmp_path / "control/config.json", {"_class_name": "ControlNetModel"})
    refused(tmp_path / "control", "a ControlNet")

    (tmp_path / "lora").mkdir()
    meta_file(tmp_path / "lora/pytorch_lora_weights.safetensors", {"unet.x.lora.down.weight": (4, 4)})
    refused(tmp_path / "lora", "a LoRA")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "pickled", "pickles")


def test_a_folder_that_holds_a_single_file_says_to_name_it(single):
    refused(single.parent, "give the path of the file itself", "model.safetensors")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer"])
def test_missing_component(folder, tmp_path, component):
    refused(relinked(folder, tmp_path, without=f"{component}/"), f"there is no {component} in this folder")


@pytest.mark.parametrize("file", ["unet/config.json", "vae/diffusion_pytorch_model", "tokenizer/merges.txt"])
def test_missing_file(folder, tmp_path, file):
    message = refused(relinked(folder, tmp_path, without=file), file.split("/")[0])
    assert file.split("/")[1] in message


def test_pickled_weights_in_a_folder_are_named(folder, tmp_path):
    relinked(folder, tmp_path, without="unet/diffusion")
    (tmp_path / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "diffusion_pytorch_model.bin is a pickle")


def test_damaged_settings(folder, tmp_path):
    for n, (file, content) in enumerate(
        (
            ("unet/config.json", "{"),
            ("unet/config.json", '{"a":' * 100_000),
            ("vae/config.json", "[]"),
            ("text_encoder/config.json", '{"hidden_size": "wide"}'),
        )
    ):
        target = relinked(folder, tmp_path / str(n), without=file)
        (target / file).write_text(content)
        refused(target, file)
    target = relinked(folder, tmp_path / "tokenizer", without="tokenizer/vocab.json")
    (target / "tokenizer/vocab.json").write_text("{")
    refused(target, "tokenizer")
