"""Hashes of published files, and files that only look like SD 1.5."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from loading_checks import meta_file, refused

from dragsa import loading
from dragsa.config import VAEConfig
from dragsa.loading import WeightsError, known_files

INVENTORY = json.loads((Path(__file__).parents[1] / "golden" / "sd15_single_file_tensors.json").read_text())


UNET_IN, UNET_K = (
    "model.diffusion_model.input_blocks.0.0.weight",
    ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"),
)

UNET_OUT = "model.diffusion_model.output_blocks.0.0.in_layers.0.weight"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({UNET_IN: (32, 9, 3, 3)}, "inpainting"),
        ({UNET_IN: (32, 8, 3, 3)}, "InstructPix2Pix"),
        ({UNET_IN: (32, 4, 3, 3), UNET_K: (32, 1024)}, "as SD-Turbo is"),
        ({UNET_IN: (32, 4, 3, 3), UNET_OUT: (32,)}, "BK-SDM, as small-sd and tiny-sd"),
        ({UNET_IN: (32, 4, 3, 3), "model.diffusion_model.time_embed.cond_proj.weight": (4, 4)}, "an LCM"),
        ({UNET_IN: (32, 4, 3, 3), UNET_K: (32, 1024)}, "Stable Diffusion 2"),
        ({UNET_IN: (32, 4, 3, 3), "cond_stage_model.model.ln_final.weight": (4,)}, "Stable Diffusion 2"),
        ({UNET_IN: (32, 4, 3, 3), "conditioner.embedders.0.transformer.x": (4,)}, "SDXL"),
        ({"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.conv_in.weight": (4, 4, 3, 3)}, "a VAE alone"),
        ({"first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3)}, "a VAE alone"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 32)}, "a LoRA"),
        ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 32)}, "a LoRA"),
        ({"control_model.input_blocks.0.0.weight": (32, 4, 3, 3)}, "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "a ControlNet"),
        ({"conv_in.weight": (32, 4, 3, 3), "time_embedding.linear_1.bias": (128,)}, "a UNet alone"),
        ({"text_model.final_layer_norm.weight": (48,)}, "a text encoder alone"),
        ({"model.diffusion_model.joint_blocks.0.x": (4,)}, "diffusion transformer"),
        ({"something.else": (4,)}, "holds no UNet and no VAE and no text encoder"),
        ({UNET_IN: (32, 4, 3, 3)}, "holds no VAE and no text encoder"),
    ],
)
def test_look_alikes_in_one_file(tmp_path, shapes, words):
    refused(meta_file(tmp_path / "model.safetensors", shapes), words)


def test_verify(folder, tmp_path, monkeypatch):
    found = loading.verify(folder)
    assert [entry.file.parent.name for entry in found] == ["text_encoder", "unet", "vae"]
    assert all(entry.known is None for entry in found)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(known_files, "KNOWN_FILES", (known_files.KnownFile("a known name", None, digest),))
    assert loading.verify(file) == [(file, digest, "a known name")]
    with pytest.raises(WeightsError):
        loading.verify(tmp_path)


def test_known_files_follow_from_the_inventory():
    """The single file's length: a header sorted by name, then four bytes a parameter (eight a position)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(INVENTORY):
        kind, width = ("I64", 8) if name.endswith("position_ids") else ("F32", 4)
        kind = "I32" if name == "model_ema.num_updates" else kind
        begin, end = end, end + width * int(torch.Size(INVENTORY[name]).numel())
        header[name] = {"dtype": kind, "shape": INVENTORY[name], "data_offsets": [begin, end]}
    length = 8 + len(json.dumps(header, separators=(",", ":"))) + end
    sizes = {entry.name: entry.size for entry in known_files.KNOWN_FILES}
    assert sizes["v1-5-pruned-emaonly.safetensors"] == length
    assert all(len(entry.sha256) == 64 for entry in known_files.KNOWN_FILES)
    assert VAEConfig().scaling_factor == 0.18215
