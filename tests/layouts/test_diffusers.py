"""diffusers' settings: what is SD 1.5's, and what only looks like it."""

from __future__ import annotations

import pytest

from dragsa.config import UNetConfig
from dragsa.layouts import diffusers

SD15 = {"block_out_channels": [32, 64, 96, 96], "cross_attention_dim": 48, "attention_head_dim": 8}


def test_config_from_diffusers():
    config = diffusers.unet_config(SD15)
    assert config == UNetConfig((32, 64, 96, 96), (8, 8, 8, 8), 48, 32, 4)
    per_level = diffusers.unet_config({**SD15, "attention_head_dim": [2, 4, 4, 4], "norm_num_groups": 4})
    assert per_level.heads == (2, 4, 4, 4) and per_level.groups == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"cross_attention_dim": 1024}, "SD 2"),
        ({"use_linear_projection": True}, "SD 2"),
        ({"addition_embed_type": "text_time"}, "SDXL"),
        ({"layers_per_block": 1}, "layers_per_block must be 2"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu'"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "down_block_types"),
        ({"block_out_channels": [32, 64, 96]}, "four levels"),
        ({"norm_num_groups": 5}, "not a multiple"),
        *(
            ({"norm_num_groups": odd}, "norm_num_groups must be a whole number from 1")
            for odd in (0.5, -1, 0, None, "4")
        ),
        *(
            ({"attention_head_dim": odd}, "attention_head_dim must be a whole number")
            for odd in (-1, [8, 8, 0.5, 8], "8")
        ),
        ({"cross_attention_dim": [48]}, "cross_attention_dim must be a whole number"),
        ({"block_out_channels": [32, 64, 96, None]}, "block_out_channels must be a whole number"),
        ({"in_channels": True, "out_channels": True}, "in_channels must be a whole number"),
    ],
)
def test_config_refusals(change, says):
    with pytest.raises(ValueError, match=says):
        diffusers.unet_config({**SD15, **change})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_num_groups", 0.5),
        ("norm_num_groups", -1),
        ("norm_num_groups", None),
        ("attention_head_dim", -1),
        ("attention_head_dim", [8, 8, 8, "8"]),
        ("cross_attention_dim", 2**40),
        ("block_out_channels", [320, 640, 1280, 0]),
        ("in_channels", True),
    ],
)
def test_settings_that_are_no_numbers_are_named(key: str, value: object) -> None:
    config = {**SD15, key: value}
    if key == "in_channels":
        config["out_channels"] = value
    with pytest.raises(ValueError, match=f"UNet config: {key} must be a whole number from 1, came"):
        diffusers.unet_config(config)


@pytest.mark.parametrize("key", ["norm_num_groups", "latent_channels"])
def test_a_vaes_numbers_too(key: str) -> None:
    with pytest.raises(ValueError, match=f"VAE config: {key} must be a whole number from 1, came -4"):
        diffusers.vae_config({key: -4})
