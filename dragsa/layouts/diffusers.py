"""diffusers' settings of a UNet and a VAE, and which of them are not SD 1.5's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dragsa.config import UNetConfig, VAEConfig, is_whole

_SD2 = "SD 2's UNet (context 1024, linear projections); dragsa takes SD 1.5's"
_LOOK_ALIKES = {
    ("in_channels", 9): "an inpainting UNet (9 input channels); dragsa takes SD 1.5's, which has 4",
    ("addition_embed_type", "text_time"): "SDXL's UNet (added text and size embeddings); dragsa takes SD 1.5's",
    ("use_linear_projection", True): _SD2,
    ("cross_attention_dim", 1024): _SD2,
}
# What the settings must say for the architecture to be SD 1.5's; a missing key means the same there.
_UNET: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "attention_type": "default",
    **dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "transformer_layers_per_block"), 1),
    **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), 3),
    **dict.fromkeys(("center_input_sample", "only_cross_attention", "dual_cross_attention"), False),
    **dict.fromkeys(("use_linear_projection",), False),
    **dict.fromkeys(("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim")),
    **dict.fromkeys(("time_cond_proj_dim", "time_embedding_act_fn", "timestep_post_act")),
}
_VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "act_fn": "silu",
    **dict.fromkeys(("in_channels", "out_channels"), 3),
    **dict.fromkeys(("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"), True),
    "shift_factor": None,
}


def unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Read diffusers' UNet2DConditionModel settings.

    Raises a ValueError that names the first setting which is not SD 1.5's, and look-alikes by what they are.
    """
    for (key, value), what in _LOOK_ALIKES.items():
        if config.get(key) == value:
            raise ValueError(f"this is {what}")
    _check(config, _UNET, "UNet")
    channels, widths = config.get("in_channels", 4), tuple(config.get("block_out_channels", UNetConfig.widths))
    if config.get("out_channels", channels) != channels:
        raise ValueError(f"UNet config: out_channels must be in_channels, came {config['out_channels']}, {channels}")
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)  # diffusers' old misnomer
    heads = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
    groups = config.get("norm_num_groups", 32)
    context = config.get("cross_attention_dim", 1280)
    named = {"block_out_channels": widths, "attention_head_dim": heads, "norm_num_groups": groups}
    _check_counts({**named, "in_channels": channels, "cross_attention_dim": context}, "UNet")
    if len(widths) != 4 or len(heads) != 4:
        raise ValueError(f"UNet config: four levels as in SD 1.5, came widths {list(widths)} and heads {list(heads)}")
    for width, n in zip(widths, heads, strict=True):
        if width % n or width % groups:
            raise ValueError(f"UNet config: width {width} is not a multiple of its {n} heads and {groups} groups")
    return UNetConfig(widths, heads, context, groups, channels)


def vae_config(config: Mapping[str, Any]) -> VAEConfig:
    """Read diffusers' AutoencoderKL settings. Raises a ValueError that names what is not SD 1.5's."""
    _check(config, _VAE, "VAE")
    widths = tuple(config.get("block_out_channels", VAEConfig.widths))
    groups, channels = config.get("norm_num_groups", 32), config.get("latent_channels", 4)
    _check_counts({"block_out_channels": widths, "norm_num_groups": groups, "latent_channels": channels}, "VAE")
    if len(widths) != 4 or any(width % groups for width in widths):
        raise ValueError(f"VAE config: four widths, multiples of {groups} groups, came {list(widths)}")
    scaling = config.get("scaling_factor", 0.18215)
    if not isinstance(scaling, int | float) or isinstance(scaling, bool) or not 0 < scaling < math.inf:
        raise ValueError(f"VAE config: scaling_factor must be a number over 0, came {scaling!r}")
    return VAEConfig(widths, groups, channels, scaling)


def _check_counts(counts: Mapping[str, Any], what: str) -> None:
    """Raise a ValueError that names the first count, or tuple of counts, that is no whole number from 1."""
    for key, value in counts.items():
        for one in value if isinstance(value, tuple) else (value,):
            if not is_whole(one) or one < 1:
                raise ValueError(f"{what} config: {key} must be a whole number from 1 as in SD 1.5, came {one!r}")


def _check(config: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise a ValueError that names the first setting which is another than expected."""
    for key, value in expected.items():
        came = config.get(key, value)
        if (list(came) if isinstance(came, tuple) else came) != value:
            raise ValueError(f"{what} config: {key} must be {value!r} as in SD 1.5, came {came!r}")
