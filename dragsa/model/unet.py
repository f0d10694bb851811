"""SD 1.5's UNet, at any width: one walk through a table of stages, and what is read on the way.

Submodules carry diffusers' names, so that its folders load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragsa import layouts
from dragsa.config import UNetConfig
from dragsa.model.blocks import DECODER, ENCODER, MIDDLE, REGIONS, Stage, block_name, check_taps
from dragsa.model.layers import Downsample, GroupNorm, ResBlock, TimeEmbedding, Transformer, Upsample
from dragsa.model.sites import KV, AttentionHook, RegionHook


class UNetOutput(NamedTuple):
    """`eps`: noise prediction (B, 4, h, w), None when the pass ended early. `taps`: name -> activation or KV."""

    eps: Tensor | None
    taps: dict[str, Any]


class Conditioning(NamedTuple):
    """The part of a pass that depends on the timestep and the context, and not on the latent."""

    time: tuple[Tensor, ...]  # the time embedding as each ResBlock adds it, (B, c_out), in forward order
    kv: tuple[KV, ...]  # cross-attention's key and value of block01 … block16, each (B, heads, tokens, d)
    alpha_bar: Tensor | None = None  # ᾱ of the latent (B,), for a network that predicts v


Run = Callable[..., Any]  # how a pass runs a region: given its name, the module and its arguments


def call(name: str, region: nn.Module, *arguments: Any) -> Any:
    """Run a region as it is."""
    return region(*arguments)


class StageModules(nn.Module):
    """A stage's ResBlocks, the transformers behind them, and its change of resolution, where there are any."""

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

    down_blocks: Sequence[StageModules]
    up_blocks: Sequence[StageModules]

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:  # noqa: B008 (a frozen value)
        super().__init__()
        self.config = config
        widths, groups, time_dim = config.widths, config.groups, 4 * config.widths[0]

        def resnet(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, time_dim, groups)

        def transformers(stage: Stage) -> list[Transformer]:
            width, heads = widths[stage.level], config.heads[stage.level]
            return [Transformer(width, config.context_dim, heads, groups) for block in stage.blocks if block]

        self.time_embedding = TimeEmbedding(widths[0])
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        c, skips = widths[0], [widths[0]]

        down_blocks = []
        for stage in ENCODER:
            width, down = widths[stage.level], stage.end != stage.level
            resnets = [resnet(c, width), resnet(width, width)]
            halving = [Downsample(width)] if down else []
            down_blocks.append(StageModules(resnets=resnets, attentions=transformers(stage), downsamplers=halving))
            c, skips = width, skips + [width] * (3 if down else 2)
        self.down_blocks = nn.ModuleList(down_blocks)  # type: ignore[assignment]

        self.mid_block = StageModules(resnets=[resnet(c, c), resnet(c, c)], attentions=transformers(MIDDLE))

        up_blocks = []
        for stage in DECODER:
            width, resnets = widths[stage.level], []
            for _ in stage.blocks:
                resnets.append(resnet(c + skips.pop(), width))
                c = width
            doubling = [Upsample(width)] if stage.end != stage.level else []
            up_blocks.append(StageModules(resnets=resnets, attentions=transformers(stage), upsamplers=doubling))
        self.up_blocks = nn.ModuleList(up_blocks)  # type: ignore[assignment]

        self.conv_norm_out = GroupNorm(groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UNet:
        """Make a UNet from diffusers' config keys and tensor names; the tensors are taken as they are, not copied.

        Raises a WeightsError that lists what is missing, left over or misshapen, or says which setting is not SD 1.5's.
        """
        with torch.device("meta"):
            unet = cls(layouts.unet_config(config))
        return layouts.fit(unet, state)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def resnets(self) -> list[ResBlock]:
        """The ResBlocks in forward order."""
        stages = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [resnet for stage in stages for resnet in stage.resnets]

    @property
    def transformers(self) -> list[Transformer]:
        """The transformers in forward order, block01 … block16."""
        stages = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [transformer for stage in stages for transformer in getattr(stage, "attentions", ())]

    @property
    def regions(self) -> dict[str, nn.Module]:
        """The ResBlocks and transformers by name (`blocks.REGIONS`), in forward order."""
        resnets, transformers = iter(self.resnets), iter(self.transformers)
        return {name: next(transformers) if name.startswith("block") else next(resnets) for name in REGIONS}

    def condition(self, t: Tensor | int, context: Tensor) -> Conditioning:
        """Compute what passes at this timestep and context have in common. t: a number or (B,). context: (B, n, C')."""
        t = torch.as_tensor(t, device=context.device).expand(context.shape[0])  # (B,)
        time = F.silu(self.time_embedding(t))  # (B, 4 width): every ResBlock wants it activated
        context = context.to(self.dtype)
        predicts_v = self.config.prediction == "v_prediction"
        return Conditioning(
            tuple(resnet.time_emb_proj(time) for resnet in self.resnets),
            tuple(transformer.key_value(context) for transformer in self.transformers),
            training_alpha_bars().to(t.device)[t.long()].float() if predicts_v else None,
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor | int,
        context: Tensor,
        attention: AttentionHook | None = None,
        taps: tuple[str, ...] = (),
        until: str | None = None,
    ) -> UNetOutput:
        """Run one pass.

        z: latent (B, C, h, w), any h and w. t: timestep(s), a number or (B,). context: (B, tokens, context_dim).
        attention: the hook, called by every attention layer in place of plain attention, and by every region where it
        has a method `region` (`hooks.AtRegions`). taps: names of the activations to return
        (`blocks.TAPS`). until: the pass ends behind this activation, and eps is None; nothing after it is computed.

        The network runs in its weights' type; eps comes back in the latent's, taps as they are. Raises ValueError for
        an unknown tap, one that lies behind `until`, and a wrong shape.
        """
        check_taps(taps, until)
        channels, width = self.config.latent_channels, self.config.context_dim
        if z.ndim != 4 or z.shape[1] != channels:
            raise ValueError(f"latent must be (B, {channels}, h, w), came {tuple(z.shape)}")
        if context.ndim != 3 or context.shape[2] != width or context.shape[0] != z.shape[0]:
            raise ValueError(f"context must be ({z.shape[0]}, tokens, {width}), came {tuple(context.shape)}")
        return read(self.walk(z, self.condition(t, context), attention), z.dtype, taps, until)

    def walk(
        self, z: Tensor, conditioning: Conditioning, attention: AttentionHook | None = None, run: Run = call
    ) -> Iterator[tuple[str, Any]]:
        """Walk the pass: yield every named activation in forward order, and ("eps", noise prediction) at the end.

        run: how ResBlocks, transformers and the decoder's upsampling are run. It is given the region's name
        ("encoder1.res1", "block01", "decoder1.up"), the module, and its arguments.
        """
        region = getattr(attention, "region", None)
        convolve = partial(convolved, run, region, iter(conditioning.time))
        transform = partial(transformed, run, region, conditioning.kv, attention)

        x = self.conv_in(z.to(self.dtype))  # (B, widths[0], h, w)
        skips = [x]
        for stage, module in zip(ENCODER, self.down_blocks, strict=True):
            for layer, block in enumerate(stage.blocks):
                x = convolve(f"{stage.name}.res{layer + 1}", module.resnets[layer], x)
                if block is not None:
                    x, kv = transform(block, module.attentions[layer], x)
                    yield f"{block_name(block)}.kv", kv
                    yield block_name(block), x
                skips.append(x)
            if stage.end != stage.level:
                x = module.downsamplers[0](x)  # (B, c, ⌈h/2⌉, ⌈w/2⌉)
                skips.append(x)
            yield stage.name, x

        x = convolve("mid.res1", self.mid_block.resnets[0], x)
        x, kv = transform(7, self.mid_block.attentions[0], x)
        yield "block07.kv", kv
        yield "block07", x
        x = convolve("mid.res2", self.mid_block.resnets[1], x)
        yield "mid", x

        for stage, module in zip(DECODER, self.up_blocks, strict=True):
            for layer, block in enumerate(stage.blocks):
                x = convolve(f"{stage.name}.res{layer + 1}", module.resnets[layer], x, skips.pop())
                if block is not None:
                    x, kv = transform(block, module.attentions[layer], x)
                    yield f"{block_name(block)}.kv", kv
                    yield block_name(block), x
            if stage.end != stage.level:
                size = skips[-1].shape[-2:]  # (2h, 2w), or one less
                x = run(f"{stage.name}.up", module.upsamplers[0], x, size)
            yield stage.name, x

        out, alpha_bar = self.conv_out(F.silu(self.conv_norm_out(x))), conditioning.alpha_bar
        yield "eps", out if alpha_bar is None else eps_of_v(out, z, alpha_bar)


def convolved(
    run: Run, region: RegionHook | None, times: Iterator[Tensor], name: str, module: ResBlock, *maps: Tensor
) -> Tensor:
    """Run a ResBlock, by the hook where there is one, on one map or the decoder's two, backbone and skip."""
    time = next(times)

    def own(*maps: Tensor) -> Tensor:
        return run(name, module, maps[0] if len(maps) == 1 else torch.cat(maps, dim=1), time)

    return own(*maps) if region is None else at_region(region, name, own, module.channels, *maps)


def transformed(
    run: Run,
    region: RegionHook | None,
    cross: tuple[KV, ...],
    attention: AttentionHook | None,
    block: int,
    module: Transformer,
    x: Tensor,
) -> tuple[Tensor, KV | None]:
    """Run a transformer, by the hook where there is one; and return its K/V, if the hook has let it compute them."""
    name, kept = block_name(block), []

    def own(x: Tensor) -> Tensor:
        x, kv = run(name, module, x, cross[block - 1], block, attention)
        kept.append(kv)
        return x

    x = own(x) if region is None else at_region(region, name, own, x.shape[1], x)
    return x, kept[-1] if kept else None


def at_region(hook: RegionHook, name: str, own: Callable[..., Tensor], channels: int, *inputs: Tensor) -> Tensor:
    """Call the hook in place of a region. Raises ValueError where it does not return (B, channels, h, w)."""
    out, expected = hook(name, own, *inputs), (inputs[0].shape[0], channels, *inputs[0].shape[2:])
    if (came := tuple(out.shape) if isinstance(out, Tensor) else out) != expected:
        raise ValueError(f"{name}: the hook must return {expected}, came {came}")
    return out


def read(
    activations: Iterator[tuple[str, Any]], dtype: torch.dtype, taps: tuple[str, ...] = (), until: str | None = None
) -> UNetOutput:
    """Walk as far as `until`, or to the end, and keep what is tapped; eps in `dtype`.

    Raises ValueError for a tap that lies behind `until`.
    """
    found: dict[str, Any] = {}
    for name, activation in activations:
        if name in taps:
            found[name] = activation
        if name == until:
            break
    if len(found) != len(set(taps)):
        behind = next(name for name in taps if name not in found)
        raise ValueError(f"tap {behind!r} lies behind the pass's end {until!r}")
    return UNetOutput(activation.to(dtype) if until is None else None, found)


TRAINING_STEPS = 1000


def training_alpha_bars() -> Tensor:
    """Return ᾱ of the timesteps 0 … 999 of SD 1.5's training, float64 (1000,): β scaled-linear, 0.00085 to 0.012."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - beta, dim=0)


def eps_of_v(v: Tensor, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return ε = √ᾱ v + √(1 - ᾱ) z, where v = √ᾱ ε - √(1 - ᾱ) z_0 (Salimans and Ho 2022, appendix D).

    v, z: (B, C, h, w). alpha_bar: (B,), of z.
    """
    alpha_bar = alpha_bar.to(z)[:, None, None, None]  # (B, 1, 1, 1)
    return alpha_bar.sqrt() * v.to(z.dtype) + (1 - alpha_bar).sqrt() * z
