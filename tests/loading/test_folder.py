"""Folders in the diffusers layout, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from loading_checks import holds, meta_file, refused, relinked
from safetensors.torch import load_file

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
        ("unet/config.json", {"in_channels": 8}, "InstructPix2Pix"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "LCM"),
        ("unet/config.json", {"mid_block_type": None}, "BK-SDM, as small-sd and tiny-sd"),
        ("unet/config.json", {"layers_per_block": 1}, "BK-SDM"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts sample"),
        ("scheduler/scheduler_config.json", {"prediction_type": None}, "prediction_type is null; write"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 1000}, "another noise schedule"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "another noise schedule"),
        ("scheduler/scheduler_config.json", {"trained_betas": "many"}, "another noise schedule"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor must be a positive number"),
        ("vae/config.json", {"scaling_factor": "0.18215"}, "scaling_factor must be a positive number"),
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


def test_settings_that_say_nothing_else(folder, tmp_path):
    """What is null or false is what SD 1.5 has; β given one by one may be its own."""
    beta = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).tolist()
    scheduler, vae = "scheduler/scheduler_config.json", "vae/config.json"
    for n, (file, changes) in enumerate(
        (
            (scheduler, {"rescale_betas_zero_snr": False, "trained_betas": None}),
            (scheduler, {"rescale_betas_zero_snr": None, "trained_betas": beta, "beta_schedule": "linear"}),
            (vae, {"scaling_factor": None}),
        )
    ):
        target = relinked(folder, tmp_path / str(n), without=file)
        tiny_models.write_json(target / file, json.loads((folder / file).read_text()) | changes)
        sd = loading.load(target)
        holds(sd)
        assert sd.vae.config.scaling_factor == 0.18215


def test_folders_of_other_things(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder is empty")
    refused(tmp_path / "nowhere", "there is no such file or folder; `dragsa fetch`")
    refused(tmp_path / "emty", f"there is no such file or folder; did you mean {tmp_path / 'empty'}?")
    relinked(folder, tmp_path / "models/tiny")
    refused(tmp_path / "models", f"did you mean {tmp_path / 'models/tiny'}?")

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


def sharded(folder: Path, target: Path, component: str, index: str, shard: str) -> Path:
    """The folder with one network in two files and an index; `shard` is formatted with 1 and 2."""
    stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    relinked(folder, target, without=f"{component}/{stem}")
    state = load_file(folder / component / f"{stem}.safetensors")
    listed = {name: shard.format(1 + n % 2) for n, name in enumerate(state)}
    for file in set(listed.values()):
        part = {name: value for name, value in state.items() if listed[name] == file}
        tiny_models.save(part, target / component / file)
    tiny_models.write_json(target / component / index, {"metadata": {}, "weight_map": listed})
    return target / component / index


def test_networks_in_several_files(folder, tmp_path):
    stem = "diffusion_pytorch_model"
    for n, (component, index, shard) in enumerate(
        (
            (
                "unet",
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model-{:05}-of-00002.safetensors",
            ),
            (
                "vae",
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model-{:05}-of-00002.safetensors",
            ),
            ("text_encoder", "model.safetensors.index.json", "model-{:05}-of-00002.safetensors"),
            ("unet", f"{stem}.safetensors.fp16.index.json", "d.fp16-{:05}-of-00002.safetensors"),
            ("text_encoder", "model.safetensors.index.fp16.json", "model.fp16-{:05}-of-00002.safetensors"),
        )
    ):
        sharded(folder, tmp_path / str(n), component, index, shard)
        sd = loading.load(tmp_path / str(n))
        holds(sd)
        assert len(sd.config.files) == 4


def test_broken_indices(folder, tmp_path):
    index = sharded(
        folder, tmp_path, "vae", "diffusion_pytorch_model.safetensors.index.json", "part-{:05}-of-00002.safetensors"
    )
    listed = json.loads(index.read_text())["weight_map"]
    name = next(iter(listed))
    for changed, words in (
        ({"weight_map": listed | {name: "../elsewhere.safetensors"}}, "lists '../elsewhere.safetensors'"),
        ({"weight_map": listed | {name: "missing.safetensors"}}, "which is not there"),
        ({"weight_map": {key: file for key, file in listed.items() if key != name}}, f"does not list {name}"),
        ({"weight_map": listed | {"more": listed[name]}}, "lists more in part-"),
        ({"weight_map": [1]}, "weight_map must give"),
        ({}, "weight_map must give"),
    ):
        tiny_models.write_json(index, changed)
        refused(tmp_path, "diffusion_pytorch_model.safetensors.index.json", words)


def test_another_variant_if_it_is_all_there_is(folder, tmp_path):
    relinked(folder, tmp_path, without="unet/diffusion")
    for name in ("bf16", "ema"):
        (tmp_path / f"unet/diffusion_pytorch_model.{name}.safetensors").symlink_to(
            folder / "unet/diffusion_pytorch_model.safetensors"
        )
        if name == "bf16":
            holds(loading.load(tmp_path))
    refused(
        tmp_path, "which variant? diffusion_pytorch_model.bf16.safetensors, diffusion_pytorch_model.ema.safetensors"
    )


def test_a_repository_in_the_cache(folder, tmp_path):
    root = tmp_path / "models--someone--a-model"
    relinked(folder, root / "snapshots/aaa")
    holds(loading.load(root))
    relinked(folder, root / "snapshots/bbb", without="vae/")
    refused(root, "2 versions and no main one")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("aaa\n")
    sd = loading.load(root)
    holds(sd)
    assert sd.config.path == root / "snapshots/aaa"
    (root / "refs/main").write_text("ccc")
    refused(root, "2 versions and no main one")
