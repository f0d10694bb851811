"""A pass of the UNet as the drag loop wants it: all that does not change from update to update computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dragsa import motion
from dragsa.config import DragConfig
from dragsa.ddim import Noise
from dragsa.hooks import AttentionHook, Named
from dragsa.layouts import fitting
from dragsa.model import unet as networks
from dragsa.model.blocks import ACTIVATIONS
from dragsa.model.unet import Conditioning, Run, UNet
from dragsa.passes import compiling, near


class FeatureExtractor(Protocol):
    """The part of a UNet that a drag asks for: taps, and an early end of the pass."""

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Any: ...


class Pass(NamedTuple):
    """features: (1, C, h', w') at the tap, or the sum of several. eps: (1, 4, h, w), None if it ended there."""

    features: Tensor
    eps: Tensor | None


class PreparedPass(Protocol):
    """One pass for the loop: of the whole network, or as far as the tap.

    handles (n, 2) and `size`, that of the features of an earlier pass: where a pass as far as the tap may look at the
    cells near the handles alone. Without a size it computes all of them.
    """

    def __call__(self, latent: Tensor, handles: Tensor, whole: bool, size: tuple[int, int] | None = None) -> Pass: ...


@torch.no_grad()
def prepare(
    unet: FeatureExtractor,
    noise: Noise,
    context: Tensor,
    config: DragConfig,
    mode: str = "off",
    attention: AttentionHook | None = None,
) -> PreparedPass:
    """Prepare a network's passes at one level and context.

    Of a UNet, the time embedding and cross-attention's K/V are computed here, once for all updates. Any other callable
    is called as it is. mode: "off" is eager; "regions" compiles each ResBlock and transformer now; "whole" is the
    caller's to compile. attention: a hook for every pass, which then computes all cells. Raises ValueError where
    another callable than a UNet is to be compiled or checkpointed, for a module whose weights are such that no gradient
    passes through it, and for a context of other rows than `config.drag_guidance` asks for.

    context: (1, n, C'), or with `config.drag_guidance` (2, n, C'), the unconditional one first: see `as_one`.
    """
    rows = 1 if config.drag_guidance == 1 else 2
    if context.shape[0] != rows:
        raise ValueError(f"drag_guidance {config.drag_guidance:g} needs a context of {rows} rows, came {len(context)}")
    if isinstance(unet, nn.Module) and any(parameter.is_inference() for parameter in unet.parameters()):
        raise ValueError(
            "the network was loaded under torch.inference_mode, and no gradient passes through such weights: load it "
            "outside of that"
        )
    hook = None if attention is None else Named(attention, ("target uncond", "target")[-rows:])
    if not isinstance(unet, UNet):
        if config.checkpoint or mode != "off":
            what = "checkpoint" if config.checkpoint else "compile"
            raise ValueError(f"drag: {what} is for dragsa's own UNet, came {type(unet).__name__}")
        network: Any = unet
        hooked = network if hook is None else partial(network, attention=hook)
        return Plain(hooked, noise, context, config)
    run = compiling.regions() if mode == "regions" else networks.call
    if config.checkpoint:
        run = partial(checkpointed, run)
    unet = frozen(unet)
    return Conditioned(unet, unet.condition(noise.timestep, context), run, config, hook)


@dataclass(frozen=True, eq=False)
class Plain:
    """A callable that is asked for its taps, and nothing more is known of."""

    unet: FeatureExtractor
    noise: Noise
    context: Tensor
    config: DragConfig

    def __call__(self, latent: Tensor, handles: Tensor, whole: bool, size: tuple[int, int] | None = None) -> Pass:
        taps = taps_of(self.config)
        z, until = latent.expand(len(self.context), -1, -1, -1), None if whole else taps[-1]
        out = self.unet(z, self.noise.timestep, self.context, taps=taps, until=until)
        return as_one(Pass(summed(out.taps, taps), out.eps), self.config.drag_guidance)


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A UNet with its conditioning computed, and the way in which its regions are run."""

    unet: UNet
    conditioning: Conditioning
    run: Run
    config: DragConfig
    hook: AttentionHook | None

    def __call__(self, latent: Tensor, handles: Tensor, whole: bool, size: tuple[int, int] | None = None) -> Pass:
        taps, run, guidance = taps_of(self.config), self.run, self.config.drag_guidance
        if not whole and size is not None and len(taps) == 1 and self.hook is None and guidance == 1:
            grid = motion.CELLS * latent.shape[2], motion.CELLS * latent.shape[3]
            cells = near.looked_at(handles, size, grid, self.config.radius, self.config.track_radius)
            if cells.cells.rows.numel() * cells.cells.columns.shape[1] <= near.MOST * size[0] * size[1]:
                run = near.run_near(run, taps[0], cells)
        z = latent if guidance == 1 else latent.expand(2, -1, -1, -1)
        activations = self.unet.walk(z, self.conditioning, self.hook, run)
        out = networks.read(activations, latent.dtype, taps, None if whole else taps[-1])
        return as_one(Pass(summed(out.taps, taps), out.eps), guidance)


def as_one(rows: Pass, scale: float) -> Pass:
    """Return a pass of two rows, the unconditional and the conditional one, as that of one latent under guidance s.

    eps is ε_∅ + s (ε - ε_∅). Features are both rows' side by side, (2, C, h, w) -> (1, 2 C, h, w), the unconditional
    one's weighted by (s - 1) / (2 s - 1) and the conditional one's by s / (2 s - 1), the ratio of their shares in eps:
    so DragDiffusion's program does it for generated pictures. The mean over channels is then over 2 C. At 1 there is
    one row, which is returned as it is.
    """
    if scale == 1:
        return rows
    uncond, cond = rows.features.chunk(2)
    features = torch.cat([(scale - 1) * uncond, scale * cond], dim=1) / (2 * scale - 1)  # (1, 2 C, h, w)
    if rows.eps is None:
        return Pass(features, None)
    eps_uncond, eps = rows.eps.chunk(2)
    return Pass(features, eps_uncond + scale * (eps - eps_uncond))


def taps_of(config: DragConfig) -> tuple[str, ...]:
    """Return the activations whose sum the features are, in forward order."""
    return tuple(sorted(config.tap.split("+"), key=list(ACTIVATIONS).index))


def summed(activations: dict[str, Tensor], taps: tuple[str, ...]) -> Tensor:
    return reduce(torch.add, [activations[name] for name in taps])


def checkpointed(run: Run, name: str, region: nn.Module, *arguments: Any) -> Any:
    """Run a region with gradient checkpointing (Chen et al. 2016): the gradient keeps its input alone.

    The rest is computed again on the way back, attention hooks included: a third more time for less memory.
    """
    if not torch.is_grad_enabled():
        return run(name, region, *arguments)
    return checkpoint(run, name, region, *arguments, use_reentrant=False, preserve_rng_state=False)


def frozen(unet: UNet) -> UNet:
    """Return a UNet of the same tensors, of which none wants a gradient; the given one stays as others may use it."""
    if not any(parameter.requires_grad for parameter in unet.parameters()):
        return unet
    with torch.device("meta"):
        twin = UNet(unet.config)
    return fitting.adopt(twin, unet.state_dict())
