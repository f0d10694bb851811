"""What is published of SD 1.5: its tensors' names in the single file, its files' hashes, and what only looks like it.

Names and shapes in, names and words out; no file is opened here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]

UNET, VAE, TEXT = "unet", "vae", "text_encoder"  # the networks, by their folders' names
WORDS = {UNET: "UNet", VAE: "VAE", TEXT: "text encoder"}

# --- names ------------------------------------------------------------------------------------------------------------

# Tensors of the single file that belong to no network: the schedule, and the count behind the running mean (EMA).
_SCHEDULE = """
    betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2
"""
BOOKKEEPING = frozenset(_SCHEDULE.split()) | {"model_ema.decay", "model_ema.num_updates"}
POSITIONS = "embeddings.position_ids"  # 0 … 76 in the text encoder, written by some versions of transformers

_LDM = {UNET: "model.diffusion_model", VAE: "first_stage_model", TEXT: "cond_stage_model.transformer.text_model"}

_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}

# The layers of the VAE's attention as the original, older diffusers and newer diffusers spell them.
_VAE_ATTENTION = (
    ("norm", "group_norm", "group_norm"),
    ("q", "query", "to_q"),
    ("k", "key", "to_k"),
    ("v", "value", "to_v"),
    ("proj_out", "proj_attn", "to_out.0"),
)
_VAE_ATTENTION_AT = "mid_block.attentions.0."


def _unet_renames() -> Iterator[tuple[str, str]]:
    def resnet(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        return ((f"{theirs}.{old}", f"{ours}.{new}") for old, new in _UNET_RESNET.items())

    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    for level in range(4):  # input blocks are counted through: a level's two ResBlocks, then its halving
        for layer in range(2):
            n = 1 + 3 * level + layer
            yield from resnet(f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{layer}")
            if level < 3:
                yield f"input_blocks.{n}.1", f"down_blocks.{level}.attentions.{layer}"
        if level < 3:
            yield f"input_blocks.{3 * level + 3}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
    yield from resnet("middle_block.0", "mid_block.resnets.0")
    yield "middle_block.1", "mid_block.attentions.0"
    yield from resnet("middle_block.2", "mid_block.resnets.1")
    for level in range(4):  # from the coarsest up
        for layer in range(3):
            n = 3 * level + layer
            yield from resnet(f"output_blocks.{n}.0", f"up_blocks.{level}.resnets.{layer}")
            if level > 0:
                yield f"output_blocks.{n}.1", f"up_blocks.{level}.attentions.{layer}"
        if level < 3:  # the doubling stands behind the attention, where there is one
            behind = 1 if level == 0 else 2
            yield f"output_blocks.{3 * level + 2}.{behind}.conv", f"up_blocks.{level}.upsamplers.0.conv"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def _vae_renames() -> Iterator[tuple[str, str]]:
    for half, way, layers, resample in (("encoder", "down", 2, "downsample"), ("decoder", "up", 3, "upsample")):
        yield f"{half}.conv_in", f"{half}.conv_in"
        for level in range(4):
            n = level if half == "encoder" else 3 - level  # the decoder's levels count from the finest, which is last
            stage = f"{half}.{way}_blocks.{level}"
            for layer in range(layers):
                for old, new in _VAE_RESNET.items():
                    yield f"{half}.{way}.{n}.block.{layer}.{old}", f"{stage}.resnets.{layer}.{new}"
            if level < 3:
                yield f"{half}.{way}.{n}.{resample}.conv", f"{stage}.{resample}rs.0.conv"
        for n in (0, 1):
            for old, new in _VAE_RESNET.items():
                yield f"{half}.mid.block_{n + 1}.{old}", f"{half}.mid_block.resnets.{n}.{new}"
        for old, _, new in _VAE_ATTENTION:
            yield f"{half}.mid.attn_1.{old}", f"{half}.{_VAE_ATTENTION_AT}{new}"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"


# The single file's name of a module -> component and diffusers' name. The rest of a tensor's name stays as it is.
RENAMES: dict[str, str] = {
    **{f"{_LDM[UNET]}.{theirs}": f"{UNET}.{ours}" for theirs, ours in _unet_renames()},
    **{f"{_LDM[VAE]}.{theirs}": f"{VAE}.{ours}" for theirs, ours in _vae_renames()},
    _LDM[TEXT]: TEXT,
}
_BACK = {ours: theirs for theirs, ours in RENAMES.items()}

# Other names that are met in single files: newer spellings of the VAE's attention, a text encoder without its prefix.
_READ = RENAMES | {
    f"{_LDM[VAE]}.{half}.mid.attn_1.{alias}": f"{VAE}.{half}.{_VAE_ATTENTION_AT}{new}"
    for half in ("encoder", "decoder")
    for _, *aliases, new in _VAE_ATTENTION
    for alias in (*aliases, new)
}
_READ[_LDM[TEXT].removesuffix(".text_model")] = TEXT


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """The name with its longest beginning that stands in the table replaced; None if there is none."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        if new := table.get(".".join(parts[:n])):
            return ".".join([new, *parts[n:]])
    return None


def from_single_file(name: str) -> tuple[str, str] | None:
    """A tensor's name in the single file -> (component, diffusers' name), or None for a name that is not SD 1.5's."""
    new = _renamed(name, _READ)
    if new is None:
        return None
    component, _, rest = new.partition(".")
    return component, rest


def to_single_file(component: str, name: str) -> str:
    """The inverse: a tensor's diffusers name -> the single file's. A name that is not SD 1.5's comes back unchanged."""
    return _renamed(f"{component}.{name}", _BACK) or name


def ema_name(name: str) -> str:
    """Where the single file keeps the running mean of the UNet's tensor `name`, both by the single file's names."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def newest(component: str, name: str) -> str:
    """A tensor's name in a diffusers folder, in the newest spelling of the VAE's attention and of CLIP."""
    if component == TEXT:
        return name.removeprefix("text_model.")
    before, at, layer = name.rpartition(_VAE_ATTENTION_AT)
    if component == VAE and at:
        for *older, new in _VAE_ATTENTION:
            for old in older:
                if layer.startswith(f"{old}."):
                    return f"{before}{at}{new}{layer.removeprefix(old)}"
    return name


# --- look-alikes ------------------------------------------------------------------------------------------------------

_MARKS = (
    (("control_model.", "controlnet_", "input_hint_block."), "a ControlNet"),
    (("lora", "hada_w", "lokr_w"), "a LoRA, which only changes a model"),
    (("conditioner.embedders.", "add_embedding.", "label_emb."), "Stable Diffusion XL (SDXL)"),
    (("joint_blocks.", "double_blocks.", "double_stream"), "a diffusion transformer (SD 3, Flux)"),
    (("motion_modules.",), "an animation module"),
    (("string_to_param", "emb_params"), "a textual inversion"),
)


def look_alike(shapes: Mapping[str, Shape]) -> str | None:
    """What a file with these tensors is, if it is known and not a whole SD 1.5; None if it may be one."""
    lower = [name.lower() for name in shapes]
    for marks, what in _MARKS:
        if any(mark in name for name in lower for mark in marks):
            return what
    channels = (*shapes.get(f"{_LDM[UNET]}.input_blocks.0.0.weight", ()), 0, 0)[1]
    if channels == 9:
        return "an inpainting model (9 input channels)"
    if channels == 8:
        return "a model edited by instructions (8 input channels)"
    context = next((shape[-1] for name, shape in shapes.items() if shape and name.endswith("attn2.to_k.weight")), 0)
    if context == 1024 or any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "Stable Diffusion 2.x (context 1024, often v-prediction)"
    if context == 2048:
        return "Stable Diffusion XL (SDXL)"

    def holds(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in shapes)

    if not holds(f"{_LDM[UNET]}.", "model_ema.diffusion_model"):
        if holds("first_stage_model.", "encoder.conv_in.", "decoder.conv_in."):
            return "a VAE alone"
        if holds("down_blocks.", "time_embedding."):
            return "a UNet alone, by diffusers' names; it goes into a folder with the other parts"
        if holds("text_model.", "embeddings.token_embedding.", "cond_stage_model."):
            return "a text encoder alone"
    return None


# --- files ------------------------------------------------------------------------------------------------------------

REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZER_REPOSITORY = "openai/clip-vit-large-patch14"


class KnownFile(NamedTuple):
    """A published file: its path in the repository, its length in bytes where that is known, and its hash."""

    name: str
    size: int | None
    sha256: str


KNOWN_FILES = (
    KnownFile(
        "v1-5-pruned-emaonly.safetensors",
        4_265_146_304,
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    ),
    KnownFile(
        "v1-5-pruned.safetensors",
        7_703_324_286,
        "1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6",
    ),
    KnownFile(
        "unet/diffusion_pytorch_model.safetensors",
        3_438_167_540,
        "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
    ),
    KnownFile(
        "unet/diffusion_pytorch_model.fp16.safetensors",
        None,
        "c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21",
    ),
    KnownFile(
        "vae/diffusion_pytorch_model.safetensors",
        334_643_276,
        "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
    ),
    KnownFile(
        "vae/diffusion_pytorch_model.fp16.safetensors",
        None,
        "4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c",
    ),
    KnownFile(
        "text_encoder/model.safetensors",
        492_265_874,
        "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
    ),
    KnownFile(
        "text_encoder/model.fp16.safetensors",
        None,
        "77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e",
    ),
)

# The small model in weights/small, which ships with the checkout.
SHIPPED_FILES = (
    KnownFile(
        "the small model's text_encoder/model.safetensors",
        282_776,
        "cf7a7611a61cd11bbc2e5168ee17b6d203c0f3343f91e156f0bc4e62636a774a",
    ),
    KnownFile(
        "the small model's unet/diffusion_pytorch_model.safetensors",
        17_290_264,
        "ac8a74b0f6ccdec5de6dadb96d51824f913713486c96c410096367909b36639a",
    ),
    KnownFile(
        "the small model's vae/diffusion_pytorch_model.safetensors",
        2_668_942,
        "80a73c0cd22a008507da37923ccaa22f3e3925dfc3cc900a8e59df137075e3a8",
    ),
)
