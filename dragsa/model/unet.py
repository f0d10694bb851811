"""SD 1.5's UNet, at any width: a table of stages, one walk through it, and what is read on the way.

Submodules carry diffusers' names, so that its folders load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dragsa.config import UNetConfig
from dragsa.hooks import KV, AttentionHook, block_name, check_taps
from dragsa.kernels import cells
from dragsa.kernels.cells import Cells
from dragsa.kernels.convolution import Convolution
from dragsa.model import fitting
from dragsa.model.attention import GroupNorm, Transformer

# Each stage: its tap, the transformer block behind each of its ResBlocks (None: no transformer there), and whether it
# ends in a change of resolution. The channels of a stage are the config's width of the same level.
#            tap        transformers        resample    level
Row = tuple[str, tuple[int | None, ...], bool]
ENCODER: tuple[Row, ...] = (
    ("encoder1", (1, 2), True),  #            0   64×64 cells at 512 px
    ("encoder2", (3, 4), True),  #            1   32×32
    ("encoder3", (5, 6), True),  #            2   16×16
    ("encoder4", (None, None), False),  #     3   8×8
)
MIDDLE = 7  #                                 3   8×8: ResBlock, block07, ResBlock
DECODER: tuple[Row, ...] = (
    ("decoder1", (None, None, None), True),  # 3   8×8, and up
    ("decoder2", (8, 9, 10), True),  #        2   16×16
    ("decoder3", (11, 12, 13), True),  #      1   32×32
    ("decoder4", (14, 15, 16), False),  #     0   64×64
)


def _activations() -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for level, (name, blocks, down) in enumerate(ENCODER):
        found |= {block_name(block): (level, level) for block in blocks if block}
        found[name] = level, level + down
    found |= {block_name(MIDDLE): (3, 3), "mid": (3, 3)}
    for level, (name, blocks, up) in zip((3, 2, 1, 0), DECODER, strict=True):
        found |= {block_name(block): (level, level) for block in blocks if block}
        found[name] = level, level - up
    return found


ACTIVATIONS = _activations()  # every activation that has a name, in forward order -> the levels of its width and grid


class UNetOutput(NamedTuple):
    """`eps`: noise prediction (B, 4, h, w), None when the pass ended early. `taps`: name -> activation or KV."""

    eps: Tensor | None
    taps: dict[str, Any]


class Conditioning(NamedTuple):
    """What a pass takes from the timestep and the context, and nothing from the latent."""

    time: tuple[Tensor, ...]  # the time embedding as each ResBlock adds it, (B, c_out), in forward order
    kv: tuple[KV, ...]  # cross-attention's key and value of block01 … block16, each (B, heads, tokens, d)


# How a pass runs its regions, the ResBlocks and the transformers: it is given one and its arguments.
Run = Callable[..., Any]


def call(region: nn.Module, *arguments: Any) -> Any:
    """As it is."""
    return region(*arguments)


def checkpointed(region: nn.Module, *arguments: Any, run: Run = call) -> Any:
    """Gradient checkpointing (Chen et al. 2016): of what the gradient needs only the region's input is kept.

    The rest is computed again on the way back, attention hooks included: a third more time for less memory.
    """
    if not torch.is_grad_enabled():
        return run(region, *arguments)
    return checkpoint(run, region, *arguments, use_reentrant=False, preserve_rng_state=False)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them, and a residual."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps=1e-5)
        self.conv1 = Convolution(c_in, c_out)
        self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = GroupNorm(groups, c_out, eps=1e-5)
        self.conv2 = Convolution(c_out, c_out)
        self.conv_shortcut = Convolution(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, c_in, h, w), time (B, c_out), what `time_emb_proj` makes of the embedding -> (B, c_out, h, w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + time[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ⌈h/2⌉, ⌈w/2⌉)."""
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Convolution(width, width)

    def forward(self, x: Tensor, grid: tuple[int, int], wanted: Cells | None = None) -> Tensor:
        """To the size of the skip that comes next, which is not always twice the size; zero but for what is wanted."""
        x = F.interpolate(x, size=grid, mode="nearest")
        if wanted is None:
            return self.conv(x)
        some = F.conv2d(cells.surrounded(x, wanted), self.conv.weight, self.conv.bias)  # (n, C, K, L)
        return cells.put(some.transpose(0, 1).flatten(1)[None], cells.index(wanted, grid[1]), grid)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, 4 width): cosines then sines at frequencies 1 … 1/10000, through two layers."""
        half = self.width // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angle = t.float()[:, None] * frequency  # (B, width / 2)
        sinusoid = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.linear_1.weight.dtype)  # (B, width)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class Stage(nn.Module):
    """ResBlocks, the transformers behind them, and the change of resolution at the end, where there are any."""

    resnets: Sequence[ResBlock]
    attentions: Sequence[Transformer]
    downsamplers: Sequence[nn.Module]
    upsamplers: Sequence[nn.Module]

    def __init__(self, **lists: Sequence[nn.Module]) -> None:
        super().__init__()
        for name, modules in lists.items():
            if modules:  # an empty list has no name in the published files
                self.add_module(name, nn.ModuleList(modules))


class UNet(nn.Module):
    """The noise prediction ε(z, t, context) of SD 1.5, with taps, an early end, and an attention hook."""

    down_blocks: Sequence[Stage]
    up_blocks: Sequence[Stage]

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:  # noqa: B008 (a frozen value)
        super().__init__()
        self.config = config
        widths, groups, time_dim = config.widths, config.groups, 4 * config.widths[0]

        def resnet(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, time_dim, groups)

        def transformers(blocks: tuple[int | None, ...], level: int) -> list[Transformer]:
            width, heads = widths[level], config.heads[level]
            return [Transformer(width, config.context_dim, heads, groups) for block in blocks if block]

        self.time_embedding = TimeEmbedding(widths[0])
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        c, skips = widths[0], [widths[0]]

        stages = []
        for level, (_, blocks, down) in enumerate(ENCODER):
            width = widths[level]
            resnets = [resnet(c, width), resnet(width, width)]
            halving = [Downsample(width)] if down else []
            stages.append(Stage(resnets=resnets, attentions=transformers(blocks, level), downsamplers=halving))
            c, skips = width, skips + [width] * (3 if down else 2)
        self.down_blocks = nn.ModuleList(stages)  # type: ignore[assignment]

        self.mid_block = Stage(resnets=[resnet(c, c), resnet(c, c)], attentions=transformers((MIDDLE,), 3))

        stages = []
        for level, (_, blocks, up) in zip((3, 2, 1, 0), DECODER, strict=True):
            width = widths[level]
            resnets = []
            for _ in blocks:
                resnets.append(resnet(c + skips.pop(), width))
                c = width
            doubling = [Upsample(width)] if up else []
            stages.append(Stage(resnets=resnets, attentions=transformers(blocks, level), upsamplers=doubling))
        self.up_blocks = nn.ModuleList(stages)  # type: ignore[assignment]

        self.conv_norm_out = GroupNorm(groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UNet:
        """A UNet from diffusers' config keys and tensor names; the tensors are taken as they are, not copied.

        Raises a WeightsError that lists what is missing, left over or misshapen, or says which setting is not SD 1.5's.
        """
        with torch.device("meta"):
            unet = cls(config_from_diffusers(config))
        problem = fitting.misfit(fitting.shapes(unet.state_dict()), fitting.shapes(state))
        if problem:
            raise fitting.WeightsError(f"the tensors do not fit the UNet: {problem}")
        return fitting.adopt(unet, state)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def condition(self, t: Tensor | int, context: Tensor) -> Conditioning:
        """What passes at this timestep and context have in common, for `forward` to be given: computed once for all.

        t: timestep(s), a number or (B,). context: (B, tokens, context_dim).
        """
        t = torch.as_tensor(t, device=context.device).expand(context.shape[0])  # (B,)
        time = F.silu(self.time_embedding(t))  # (B, 4 width): every ResBlock wants it activated
        context = context.to(self.dtype)
        stages = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return Conditioning(
            tuple(resnet.time_emb_proj(time) for stage in stages for resnet in stage.resnets),
            tuple(
                transformer.key_value(context) for stage in stages for transformer in getattr(stage, "attentions", ())
            ),
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor | int,
        context: Tensor,
        attention: AttentionHook | None = None,
        taps: tuple[str, ...] = (),
        until: str | None = None,
        conditioning: Conditioning | None = None,
        run: Run = call,
        wanted: Cells | None = None,
    ) -> UNetOutput:
        """One pass.

        z: latent (B, C, h, w), any h and w. t: timestep(s), a number or (B,). context: (B, tokens, context_dim).
        attention: called by every attention layer in place of plain attention. taps: names of the activations to return
        (`hooks.TAPS`). until: the pass ends behind this activation, and eps is None; nothing after it is computed.
        conditioning: what `condition` made of t and context, which are then not looked at. run: how ResBlocks and
        transformers are run: `call`, `checkpointed`, or one that compiles them. wanted: the cells of the activation
        `until` that are wanted, of one latent: where it is a block or a stage of the decoder, the last transformer
        (and the upsampling behind it) computes these alone, a hook sees their queries alone, and the others are zero.

        The network runs in its weights' type; eps comes back in the latent's, taps as they are. Raises ValueError for
        an unknown tap, one that lies behind `until`, a wrong shape, and `wanted` cells of another tap or of several
        latents.
        """
        check_taps(taps, until)
        if wanted is not None and (until is None or z.shape[0] != 1 or taps != (until,)):
            raise ValueError("wanted cells are of the one tap that ends the pass, and of one latent")
        self._check_shapes(z, context, conditioning)
        conditioning = self.condition(t, context) if conditioning is None else conditioning
        read: dict[str, Any] = {}
        end = None if wanted is None or until is None else (until, wanted)
        for name, activation in self.walk(z, conditioning, attention, run, end):
            if name in taps:
                read[name] = activation
            if name == until:
                break
        if len(read) != len(set(taps)):
            behind = next(name for name in taps if name not in read)
            raise ValueError(f"tap {behind!r} lies behind the pass's end {until!r}")
        return UNetOutput(activation.to(z.dtype) if until is None else None, read)

    def walk(
        self,
        z: Tensor,
        conditioning: Conditioning,
        attention: AttentionHook | None,
        run: Run = call,
        end: tuple[str, Cells] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """The pass itself: yields every named activation in forward order, and ("eps", noise prediction) at the end.

        end: a block or a stage of the decoder where it will be left, and the cells that are wanted of it.
        """
        time, cross = iter(conditioning.time), conditioning.kv
        x = self.conv_in(z.to(self.dtype))  # (B, widths[0], h, w)
        skips = [x]

        for module, (name, blocks, down) in zip(self.down_blocks, ENCODER, strict=True):
            for layer, block in enumerate(blocks):
                x = run(module.resnets[layer], x, next(time))
                if block is not None:
                    x, kv = run(module.attentions[layer], x, cross[block - 1], block, attention)
                    yield f"{block_name(block)}.kv", kv
                    yield block_name(block), x
                skips.append(x)
            if down:
                x = module.downsamplers[0](x)  # (B, c, ⌈h/2⌉, ⌈w/2⌉)
                skips.append(x)
            yield name, x

        x = run(self.mid_block.resnets[0], x, next(time))
        x, kv = run(self.mid_block.attentions[0], x, cross[MIDDLE - 1], MIDDLE, attention)
        yield f"{block_name(MIDDLE)}.kv", kv
        yield block_name(MIDDLE), x
        x = run(self.mid_block.resnets[1], x, next(time))
        yield "mid", x

        for module, (name, blocks, up) in zip(self.up_blocks, DECODER, strict=True):
            of_stage = end[1] if end is not None and end[0] == name else None
            for layer, block in enumerate(blocks):
                x = run(module.resnets[layer], torch.cat([x, skips.pop()], dim=1), next(time))
                if block is not None:
                    wanted = end[1] if end is not None and end[0] == block_name(block) else None
                    if of_stage is not None and layer == len(blocks) - 1:
                        wanted = cells.coarser(of_stage, skips[-1].shape[-2:], x.shape[-2:]) if up else of_stage
                    at = None if wanted is None else cells.index(wanted, x.shape[3])
                    x, kv = run(module.attentions[layer], x, cross[block - 1], block, attention, at)
                    yield f"{block_name(block)}.kv", kv
                    yield block_name(block), x
            if up:
                x = module.upsamplers[0](x, skips[-1].shape[-2:], of_stage)  # (B, c, 2h, 2w), or one less
            yield name, x

        yield "eps", self.conv_out(F.silu(self.conv_norm_out(x)))

    def _check_shapes(self, z: Tensor, context: Tensor, conditioning: Conditioning | None) -> None:
        channels, width = self.config.latent_channels, self.config.context_dim
        if z.ndim != 4 or z.shape[1] != channels:
            raise ValueError(f"latent must be (B, {channels}, h, w), came {tuple(z.shape)}")
        if conditioning is not None:
            if len(conditioning.time[0]) != len(z):
                raise ValueError(f"conditioning must be of {len(z)} rows, came {len(conditioning.time[0])}")
        elif context.ndim != 3 or context.shape[2] != width or context.shape[0] != z.shape[0]:
            raise ValueError(f"context must be ({z.shape[0]}, tokens, {width}), came {tuple(context.shape)}")


# What diffusers' config must say for the architecture to be SD 1.5's; a missing key means the same there.
_EXPECTED = {
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "transformer_layers_per_block": 1,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "attention_type": "default",
}


def config_from_diffusers(config: Mapping[str, Any]) -> UNetConfig:
    """diffusers' UNet2DConditionModel config -> UNetConfig.

    Raises a ValueError that names the first setting which is not SD 1.5's, and look-alikes by what they are.
    """
    channels = config.get("in_channels", 4)
    if channels == 9:
        raise ValueError("this is an inpainting UNet (9 input channels); dragsa takes SD 1.5's, which has 4")
    if config.get("addition_embed_type") == "text_time":
        raise ValueError("this is SDXL's UNet (added text and size embeddings); dragsa takes SD 1.5's")
    if config.get("use_linear_projection") or config.get("cross_attention_dim") == 1024:
        raise ValueError("this is SD 2's UNet (context 1024, linear projections); dragsa takes SD 1.5's")
    for key, expected in _EXPECTED.items():
        came = config.get(key, expected)
        if (list(came) if isinstance(came, tuple) else came) != expected:
            raise ValueError(f"UNet config: {key} must be {expected!r} as in SD 1.5, came {came!r}")
    if config.get("out_channels", channels) != channels:
        raise ValueError(f"UNet config: out_channels must be in_channels, came {config['out_channels']}, {channels}")

    widths = tuple(config.get("block_out_channels", UNetConfig.widths))
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)  # diffusers' old misnomer
    heads = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
    groups = config.get("norm_num_groups", 32)
    if groups is None:
        raise ValueError("UNet config: norm_num_groups must be a number as in SD 1.5, came None")
    if len(widths) != 4 or len(heads) != 4:
        raise ValueError(f"UNet config: four levels as in SD 1.5, came widths {list(widths)} and heads {list(heads)}")
    for width, n in zip(widths, heads, strict=True):
        if width % n or width % groups:
            raise ValueError(f"UNet config: width {width} is not a multiple of its {n} heads and {groups} groups")
    return UNetConfig(widths, heads, config.get("cross_attention_dim", 1280), groups, channels)
