"""SD 1.5's tensor names: the original single file's, and those of a diffusers folder.

Names in, names out; no file is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

UNET, VAE, TEXT = "unet", "vae", "text_encoder"  # the networks, by their folders' names
WORDS = {UNET: "UNet", VAE: "VAE", TEXT: "text encoder"}

# Tensors of the single file that belong to no network: the noise schedule, and the running mean's (EMA) counters.
_SCHEDULE = """
    betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
    log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
    posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2
"""
BOOKKEEPING = frozenset(_SCHEDULE.split()) | {"model_ema.decay", "model_ema.num_updates"}
POSITIONS = "embeddings.position_ids"  # 0 … 76 in the text encoder, written by some versions of transformers

# Tensors within the networks' names that no result depends on: the VAE's training, CLIP's other half.
_UNUSED = {
    UNET: re.compile(r"(?!)"),  # none
    VAE: re.compile(r"loss\.|model_ema\."),
    TEXT: re.compile(r"(.*\.)?(logit_scale|text_projection|visual_projection|vision_model)(\..*)?$"),
}
ROOTS = {UNET: "model.diffusion_model.", VAE: "first_stage_model.", TEXT: "cond_stage_model."}

LDM = {UNET: "model.diffusion_model", VAE: "first_stage_model", TEXT: "cond_stage_model.transformer.text_model"}

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
    **{f"{LDM[UNET]}.{theirs}": f"{UNET}.{ours}" for theirs, ours in _unet_renames()},
    **{f"{LDM[VAE]}.{theirs}": f"{VAE}.{ours}" for theirs, ours in _vae_renames()},
    LDM[TEXT]: TEXT,
}
_BACK = {ours: theirs for theirs, ours in RENAMES.items()}

# Other names that occur in single files: newer spellings of the VAE's attention, a text encoder without its prefix.
_READ = RENAMES | {
    f"{LDM[VAE]}.{half}.mid.attn_1.{alias}": f"{VAE}.{half}.{_VAE_ATTENTION_AT}{new}"
    for half in ("encoder", "decoder")
    for _, *aliases, new in _VAE_ATTENTION
    for alias in (*aliases, new)
}
_READ[LDM[TEXT].removesuffix(".text_model")] = TEXT


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """Return the name with its longest beginning that the table has replaced; None if the table has none."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        if new := table.get(".".join(parts[:n])):
            return ".".join([new, *parts[n:]])
    return None


def from_single_file(name: str) -> tuple[str, str] | None:
    """Return (component, diffusers' name) of a tensor of the single file, or None for a name that is not SD 1.5's."""
    new = _renamed(name, _READ)
    if new is None:
        return None
    component, _, rest = new.partition(".")
    return component, rest


def is_unused(component: str, name: str) -> bool:
    """Tell if a tensor of this name, in a network's own file or folder, is known to be of no use."""
    return bool(_UNUSED[component].match(name))


def is_outside(name: str) -> bool:
    """Tell if a tensor of a single file belongs to none of the three networks, or is known to be of no use there."""
    for component, root in ROOTS.items():
        if name.startswith(root):
            return is_unused(component, name.removeprefix(root))
    return True


def network_of(name: str) -> str | None:
    """Return the network that a single file's tensor stands in by the beginning of its name."""
    return next((component for component, root in ROOTS.items() if name.startswith(root)), None)


def to_single_file(component: str, name: str) -> str:
    """Return the single file's name of a tensor named as diffusers does: unchanged if the name is not SD 1.5's."""
    return _renamed(f"{component}.{name}", _BACK) or name


def ema_name(name: str) -> str:
    """Return the name of the running mean (EMA) of the UNet's tensor `name`, both by the single file's names."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def newest(component: str, name: str) -> str:
    """Return a diffusers name in the newest spelling of the VAE's attention and of CLIP."""
    if component == TEXT:
        return name.removeprefix("text_model.")
    before, at, layer = name.rpartition(_VAE_ATTENTION_AT)
    if component == VAE and at:
        for *older, new in _VAE_ATTENTION:
            for old in older:
                if layer.startswith(f"{old}."):
                    return f"{before}{at}{new}{layer.removeprefix(old)}"
    return name
