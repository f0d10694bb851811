"""Names of the original single file and of diffusers, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dragsa.loading import names
from dragsa.model.unet import UNet
from dragsa.model.vae import VAE

INVENTORY = json.loads((Path(__file__).parents[1] / "golden" / "sd15_single_file_tensors.json").read_text())

# Pairs written by hand, component by component, from the two programs' own listings.
SPOTS = {
    "time_embed.0.weight": "time_embedding.linear_1.weight",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.2.0.in_layers.2.weight": "down_blocks.0.resnets.1.conv1.weight",
    "input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight": (
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"
    ),
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.8.1.proj_in.weight": "down_blocks.2.attentions.1.proj_in.weight",
    "input_blocks.9.0.op.bias": "down_blocks.2.downsamplers.0.conv.bias",
    "input_blocks.11.0.emb_layers.1.weight": "down_blocks.3.resnets.1.time_emb_proj.weight",
    "middle_block.0.out_layers.0.weight": "mid_block.resnets.0.norm2.weight",
    "middle_block.1.norm.weight": "mid_block.attentions.0.norm.weight",
    "middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
    "output_blocks.0.0.in_layers.0.weight": "up_blocks.0.resnets.0.norm1.weight",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.3.1.proj_out.weight": "up_blocks.1.attentions.0.proj_out.weight",
    "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
    "output_blocks.8.2.conv.bias": "up_blocks.2.upsamplers.0.conv.bias",
    "output_blocks.9.1.transformer_blocks.0.ff.net.0.proj.weight": (
        "up_blocks.3.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    ),
    "output_blocks.11.0.skip_connection.bias": "up_blocks.3.resnets.2.conv_shortcut.bias",
    "out.0.weight": "conv_norm_out.weight",
    "out.2.bias": "conv_out.bias",
}
VAE_SPOTS = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.0.block.1.norm2.weight": "encoder.down_blocks.0.resnets.1.norm2.weight",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
    "encoder.mid.block_1.conv1.weight": "encoder.mid_block.resnets.0.conv1.weight",
    "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "encoder.norm_out.bias": "encoder.conv_norm_out.bias",
    "decoder.mid.attn_1.norm.weight": "decoder.mid_block.attentions.0.group_norm.weight",
    "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.mid.block_2.norm1.weight": "decoder.mid_block.resnets.1.norm1.weight",
    "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
    "decoder.up.3.block.2.conv2.weight": "decoder.up_blocks.0.resnets.2.conv2.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "quant_conv.weight": "quant_conv.weight",
    "post_quant_conv.bias": "post_quant_conv.bias",
}


def test_rename_table_is_a_bijection_between_the_official_inventory_and_the_networks():
    with torch.device("meta"):
        networks = {"unet": UNet(), "vae": VAE()}
    wanted = {
        (component, name): tuple(value.shape)
        for component, network in networks.items()
        for name, value in network.state_dict().items()
    }
    came = {}
    for name, shape in INVENTORY.items():
        place = names.from_single_file(name)
        if name in names.BOOKKEEPING:
            assert place is None
            continue
        assert place is not None and place not in came, name
        assert names.to_single_file(*place) == name
        squeezed = shape[:2] if place[0] == "vae" and ".attentions." in place[1] else shape
        came[place] = tuple(squeezed)
    text = {name: shape for (component, name), shape in came.items() if component == "text_encoder"}
    assert len(text) == 197 and text["embeddings.token_embedding.weight"] == (49408, 768)
    assert {place: shape for place, shape in came.items() if place[0] != "text_encoder"} == wanted


def test_names_written_by_hand():
    for prefix, component, spots in (
        ("model.diffusion_model", "unet", SPOTS),
        ("first_stage_model", "vae", VAE_SPOTS),
    ):
        for theirs, ours in spots.items():
            assert names.from_single_file(f"{prefix}.{theirs}") == (component, ours)
    layer = "encoder.layers.11.self_attn.k_proj.weight"
    assert names.from_single_file(f"cond_stage_model.transformer.text_model.{layer}") == ("text_encoder", layer)
    assert names.from_single_file("model.diffusion_model.input_blocks.12.0.weight") is None
    assert names.from_single_file("model_ema.decay") is None
    assert (
        names.ema_name("model.diffusion_model.input_blocks.1.1.proj_in.weight")
        == "model_ema.diffusion_modelinput_blocks11proj_inweight"
    )


def test_ema_names_are_distinct():
    plain = [name for name in INVENTORY if name.startswith("model.diffusion_model.")]
    assert len({names.ema_name(name) for name in plain}) == len(plain) == 686
