"""LoRA (Hu et al. 2021): low-rank changes of the UNet's attention, learnt from one picture as DragDiffusion does first.

A LoRA is a value, and a UNet under it is another UNet that shares every other tensor: nothing is registered, and the
first UNet stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dragsa import ddim
from dragsa.config import LoRAConfig
from dragsa.hooks import AttentionHook
from dragsa.layouts import fitting
from dragsa.layouts.fitting import Shape, WeightsError
from dragsa.loading import LAYERS, LoRA, StableDiffusion
from dragsa.loading.text_encoder import with_weights
from dragsa.model.layers import Attention
from dragsa.model.unet import UNet, UNetOutput

DEFAULT = LoRAConfig()
LINEAR = ("to_q", "to_k", "to_v", "to_out.0")


def attention_layers(unet: UNet) -> dict[str, Shape]:
    """Map the name of each self- and cross-attention's q, k, v and out layers to its (outputs, inputs)."""
    return {
        f"{name}.{linear}": tuple(module.get_submodule(linear).weight.shape)  # type: ignore[arg-type]
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
        for linear in LINEAR
    }


def start(unet: UNet, rank: int = LoRAConfig.rank, seed: int = 42) -> LoRA:
    """Return a LoRA that changes nothing yet, float32: `down` normal with deviation 1 / rank, `up` zero."""
    generator = torch.Generator().manual_seed(seed)
    layers, device = attention_layers(unet), unet.conv_in.weight.device
    down = {name: torch.randn(rank, n, generator=generator).to(device) / rank for name, (_, n) in layers.items()}
    return LoRA(down, {name: torch.zeros(m, rank, device=device) for name, (m, _) in layers.items()})


def apply_to(sd: StableDiffusion, lora: LoRA, strength: float = 1.0, name: str = "") -> StableDiffusion:
    """Return the model under a LoRA of its UNet, of its text encoder or of both; `sd` itself is not changed.

    name: the LoRA's in the model's provenance. Layers of the text encoder that a clip skip leaves out change nothing.
    Raises WeightsError that lists layers which are none of the model's, and misshapen ones.
    """
    unet, text = apply(sd.unet, lora, strength), sd.text
    if lora.text is not None:
        read_at = text.model.config.num_hidden_layers
        kept = [layer for layer in lora.text.down if not read_at <= int(layer.split(".")[2]) < LAYERS]
        own = LoRA({layer: lora.text.down[layer] for layer in kept}, {layer: lora.text.up[layer] for layer in kept})
        text = with_weights(text, merged(text.model, own, strength))
    told = f"LoRA {name or 'of rank ' + str(lora.rank)} at {strength:g}"
    config = replace(sd.config, changes=(*sd.config.changes, told), notes=(*sd.config.notes, *lora.notes))
    return replace(sd, unet=unet, text=text, config=config)


def apply(unet: UNet, lora: LoRA, strength: float = 1.0) -> UNet:
    """Return the UNet with weights W + strength · up · down, frozen. It shares all other tensors with `unet`.

    `unet` itself is not changed. A LoRA's part for the text encoder plays no role here: see `apply_to`. Raises
    WeightsError that lists layers which are none of this UNet's, and misshapen ones.
    """
    with torch.no_grad():
        return sharing(unet, merged(unet, lora, strength))


def sharing(unet: UNet, changed: Mapping[str, Tensor]) -> UNet:
    """Return another UNet, frozen, that shares every tensor with this one but those that are changed."""
    with torch.device("meta"):
        other = type(unet)(unet.config)
    return fitting.adopt(other, {**unet.state_dict(), **changed})


def merged(network: nn.Module, lora: LoRA, strength: float = 1.0) -> dict[str, Tensor]:
    """Return the changed weights by their names in the network, in its type; differentiable in `up` and `down`.

    Raises WeightsError for layers that the network does not have, and for misshapen ones.
    """
    weights = {name.removeprefix("text_model."): (name, weight) for name, weight in network.named_parameters()}
    wanted = {name: _shape(weight.shape) for name, (_, weight) in weights.items()}
    given = {f"{name}.weight": _shape((len(lora.up[name]), *down.shape[1:])) for name, down in lora.down.items()}
    if problem := fitting.misfit({name: shape for name, shape in wanted.items() if name in given}, given):
        raise WeightsError(f"the LoRA does not fit the model: {problem}")
    changed = {}
    for name, down in lora.down.items():
        theirs, weight = weights[f"{name}.weight"]
        change = strength * (lora.up[name] @ down.flatten(1))  # (outputs, inputs · height · width)
        changed[theirs] = weight + change.to(weight).view_as(weight)
    return changed


def _shape(shape: Sequence[int]) -> Shape:
    """Return a weight's shape, that of a 1×1 convolution as a linear layer's, which does the same."""
    return (*shape[:2],) if all(side == 1 for side in shape[2:]) else (*shape,)


# --- training ---------------------------------------------------------------------------------------------------------


class Adapted(NamedTuple):
    """A picture's LoRA, the loss of each step that trained it (steps,), and the UNet under the LoRA."""

    lora: LoRA
    losses: Tensor
    unet: UNet


def noise_loss(unet: ddim.Denoiser, z_0: Tensor, context: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return the noise-prediction loss mean |ε(z_t, t) - noise|², with z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) noise.

    z_0 (1, C, h, w) clean latent, context (1, n, C'), t (B,) timesteps from 0 to 999, noise (B, C, h, w).
    """
    signal = ddim.training_alpha_bars().to(z_0)[t][:, None, None, None]  # (B, 1, 1, 1)
    z_t = signal.sqrt() * z_0 + (1 - signal).sqrt() * noise  # (B, C, h, w)
    return F.mse_loss(unet(z_t, t, context.expand(len(t), -1, -1)).eps, noise)


def adapt(
    unet: UNet,
    z_0: Tensor,
    context: Tensor,
    config: LoRAConfig = DEFAULT,
    seed: int = 42,
    progress: ddim.Progress | None = None,
) -> Adapted:
    """Train a LoRA of one picture and apply it: AdamW on the noise-prediction loss at random timesteps and noise.

    z_0 (1, C, h, w) is the picture's latent, context (1, n, C') its prompt's. DragDiffusion draws the latent anew from
    the VAE's posterior at each step; here it is the posterior's mean throughout. The seed decides everything, on every
    device. The UNet is not changed. Raises ValueError for numbers and shapes that cannot be used.
    """
    for name in ("steps", "batch", "rank"):
        value = getattr(config, name)
        if not ddim.is_whole(value) or value < 1:
            raise ValueError(f"LoRA training: {name} must be a whole number from 1, came {value!r}")
    if z_0.ndim != 4 or z_0.shape[0] != 1 or context.ndim != 3 or context.shape[0] != 1:
        came = f"{tuple(z_0.shape)} and {tuple(context.shape)}"
        raise ValueError(f"LoRA training: latent and context must be (1, C, h, w) and (1, n, C'), came {came}")
    lora, generator = start(unet, config.rank, seed), torch.Generator().manual_seed(seed + 1)
    parameters = [factor.requires_grad_() for factor in (*lora.down.values(), *lora.up.values())]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, fused=True, weight_decay=config.weight_decay)
    losses, own = [], sharing(unet, {})  # whose weights a call may replace while others use the given one

    def changed(z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> UNetOutput:
        """Run the UNet with its weights replaced for this call, so that the gradient reaches the LoRA."""
        return functional_call(own, merged(own, lora), (z, t, context, attention))

    with torch.enable_grad():
        for step in range(config.steps):
            t = torch.randint(ddim.TRAINING_STEPS, (config.batch,), generator=generator).to(z_0.device)
            noise = torch.randn(config.batch, *z_0.shape[1:], generator=generator).to(z_0)
            loss = noise_loss(changed, z_0, context, t, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if progress is not None:
                progress(step + 1, config.steps)
    down, up = ({name: x.detach() for name, x in part.items()} for part in (lora.down, lora.up))
    learnt = LoRA(down, up)
    return Adapted(learnt, torch.stack(losses), apply(unet, learnt))
