"""LoRA (Hu et al. 2021): low-rank changes of the UNet's attention, learnt from one picture as DragDiffusion does first.

A LoRA is a value, and a UNet under it is another UNet that shares every other tensor: nothing is registered, and the
first UNet stays as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from dragsa import ddim, files
from dragsa.config import LoRAConfig
from dragsa.hooks import AttentionHook
from dragsa.loading import weights
from dragsa.model import fitting
from dragsa.model.fitting import Shape, WeightsError
from dragsa.model.layers import Attention
from dragsa.model.unet import UNet, UNetOutput

LINEAR = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, eq=False)
class LoRA:
    """Changes of weights by the layer's name: W + up · down.

    down: layer -> (rank, inputs). up: layer -> (outputs, rank). Where a file's α is not its rank, α / rank is in `up`.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.down.keys() != self.up.keys():
            one_sided = fitting.listed("layers", sorted(self.down.keys() ^ self.up.keys()))
            raise ValueError(f"a LoRA has a down and an up factor for each layer, came one alone for {one_sided}")

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max((down.shape[0] for down in self.down.values()), default=0)


def attention_layers(unet: UNet) -> dict[str, Shape]:
    """q, k, v and out of every self- and cross-attention: the layer's name -> (outputs, inputs)."""
    return {
        f"{name}.{linear}": tuple(module.get_submodule(linear).weight.shape)  # type: ignore[arg-type]
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
        for linear in LINEAR
    }


def start(unet: UNet, rank: int = LoRAConfig.rank, seed: int = 42) -> LoRA:
    """A LoRA that changes nothing yet, float32: `down` normal with deviation 1 / rank, `up` zero."""
    generator = torch.Generator().manual_seed(seed)
    layers, device = attention_layers(unet), unet.conv_in.weight.device
    down = {name: torch.randn(rank, n, generator=generator).to(device) / rank for name, (_, n) in layers.items()}
    return LoRA(down, {name: torch.zeros(m, rank, device=device) for name, (m, _) in layers.items()})


def apply(unet: UNet, lora: LoRA, strength: float = 1.0) -> UNet:
    """The UNet with weights W + strength · up · down, frozen. It shares all other tensors with `unet`, which stays.

    For an edit: `dataclasses.replace(sd, unet=lora.apply(sd.unet, found))`. Raises WeightsError where names or shapes
    do not fit.
    """
    check_fit(unet, lora)
    with torch.device("meta"):
        changed = UNet(unet.config)
    with torch.no_grad():
        return fitting.adopt(changed, {**unet.state_dict(), **merged(unet, lora, strength)})


def merged(unet: UNet, lora: LoRA, strength: float = 1.0) -> dict[str, Tensor]:
    """The changed weights by their names in the UNet, in its type. Differentiable in `up` and `down`."""
    changed = {}
    for name, down in lora.down.items():
        weight = unet.get_parameter(f"{name}.weight")
        change = strength * (lora.up[name] @ down)  # (outputs, inputs)
        changed[f"{name}.weight"] = weight + change.to(weight)
    return changed


def check_fit(unet: UNet, lora: LoRA) -> None:
    """Raise a WeightsError that lists layers which are no attention layer's of this UNet, and misshapen ones.

    It may leave out layers; those are not changed.
    """
    layers = attention_layers(unet)
    given = {name: (lora.up[name].shape[0], down.shape[1]) for name, down in lora.down.items()}
    problem = fitting.misfit({name: shape for name, shape in layers.items() if name in given}, given)
    if problem:
        raise WeightsError(f"the LoRA does not fit the UNet's attention: {problem}")


# --- training ---------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """`losses`: each step's, (steps,)."""

    lora: LoRA
    losses: Tensor


class _Changed(NamedTuple):
    """The UNet with some of its weights replaced for the call, so that the gradient reaches what they are made of."""

    unet: UNet
    weights: dict[str, Tensor]

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> UNetOutput:
        return functional_call(self.unet, self.weights, (z, t, context, attention))


def noise_loss(unet: ddim.Denoiser, z_0: Tensor, context: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The noise-prediction loss mean |ε(z_t, t) - noise|², z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) noise.

    z_0 (1, C, h, w) clean latent, context (1, n, C'), t (B,) timesteps from 0 to 999, noise (B, C, h, w).
    """
    signal = ddim.training_alpha_bars().to(z_0)[t][:, None, None, None]  # (B, 1, 1, 1)
    z_t = signal.sqrt() * z_0 + (1 - signal).sqrt() * noise  # (B, C, h, w)
    return F.mse_loss(unet(z_t, t, context.expand(len(t), -1, -1)).eps, noise)


def train(
    unet: UNet,
    z_0: Tensor,
    context: Tensor,
    steps: int = LoRAConfig.steps,
    lr: float = LoRAConfig.learning_rate,
    batch: int = LoRAConfig.batch,
    rank: int = LoRAConfig.rank,
    seed: int = 42,
    progress: ddim.Progress | None = None,
) -> Trained:
    """A LoRA of one picture: AdamW on the noise-prediction loss at random timesteps with random noise.

    z_0 (1, C, h, w) is the picture's latent, context (1, n, C') its prompt's. DragDiffusion draws the latent anew from
    the VAE's posterior at each step; here it is the posterior's mean throughout. The seed decides everything, on every
    device. The UNet is not changed. Raises ValueError for numbers and shapes that cannot be used.
    """
    for name, value in (("steps", steps), ("batch", batch), ("rank", rank)):
        if not ddim.is_whole(value) or value < 1:
            raise ValueError(f"LoRA training: {name} must be a whole number from 1, came {value!r}")
    if z_0.ndim != 4 or z_0.shape[0] != 1 or context.ndim != 3 or context.shape[0] != 1:
        came = f"{tuple(z_0.shape)} and {tuple(context.shape)}"
        raise ValueError(f"LoRA training: latent and context must be (1, C, h, w) and (1, n, C'), came {came}")
    lora, generator = start(unet, rank, seed), torch.Generator().manual_seed(seed + 1)
    parameters = [factor.requires_grad_() for factor in (*lora.down.values(), *lora.up.values())]
    optimizer = torch.optim.AdamW(parameters, lr=lr, fused=True, weight_decay=LoRAConfig.weight_decay)
    losses = []
    with torch.enable_grad():
        for step in range(steps):
            t = torch.randint(ddim.TRAINING_STEPS, (batch,), generator=generator).to(z_0.device)
            noise = torch.randn(batch, *z_0.shape[1:], generator=generator).to(z_0)
            loss = noise_loss(_Changed(unet, merged(unet, lora)), z_0, context, t, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if progress is not None:
                progress(step + 1, steps)
    down, up = ({name: x.detach() for name, x in part.items()} for part in (lora.down, lora.up))
    return Trained(LoRA(down, up), torch.stack(losses))


# --- files ------------------------------------------------------------------------------------------------------------

# How the layouts of diffusers spell a layer's two factors, the newest first; older ones are brought to it.
PREFIX, DOWN, UP, ALPHA = "unet.", ".lora_A.weight", ".lora_B.weight", ".alpha"
OLDER = (
    (re.compile(r"\.processor\.to_(q|k|v)_lora\."), r".to_\1.lora."),
    (re.compile(r"\.processor\.to_out_lora\."), r".to_out.0.lora."),
    (re.compile(r"\.lora\.down\.weight$"), DOWN),
    (re.compile(r"\.lora\.up\.weight$"), UP),
)
METADATA = "lora_adapter_metadata"  # diffusers' name of the settings within the file


def save(lora: LoRA, path: str | Path, overwrite: bool = False) -> None:
    """Write a safetensors file in diffusers' layout, for `load_lora_weights`: whole or not at all.

    Raises FileExistsError if the file is there and `overwrite` is not set.
    """
    tensors = {}
    for name, down in lora.down.items():
        tensors[f"{PREFIX}{name}{DOWN}"] = down.detach().cpu().contiguous()
        tensors[f"{PREFIX}{name}{UP}"] = lora.up[name].detach().cpu().contiguous()
    files.save_bytes(to_safetensors(tensors, metadata={"format": "pt"}), path, overwrite)


def read(path: str | Path) -> LoRA:
    """A LoRA of the UNet from a safetensors file in diffusers' layout, today's or an older one, float32.

    α is taken from the file's settings or from a layer's own; without either it is the rank. Raises WeightsError for
    another file, and for tensors that belong to no low-rank change of a UNet's layer.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    weights.read_header(path)  # which says what else it may be
    with safe_open(path, framework="pt") as file:
        tensors = {newest(name): file.get_tensor(name) for name in sorted(file.keys())}
        settings = _settings(path, (file.metadata() or {}).get(METADATA, "{}"))

    layers = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    known = {f"{layer}{part}" for layer in layers for part in (DOWN, UP, ALPHA)}
    if not layers or not tensors.keys() <= known:
        other = fitting.listed("unknown tensors", [name for name in tensors if name not in known])
        raise WeightsError(f"{path}: not a LoRA of the UNet in diffusers' layout: {other}")
    if absent := [layer for layer in layers if f"{layer}{UP}" not in tensors]:
        raise WeightsError(f"{path}: {fitting.listed('layers without an up factor', absent)}; download it again")

    down, up = {}, {}
    for layer in layers:
        a, b = tensors[f"{layer}{DOWN}"].float(), tensors[f"{layer}{UP}"].float()
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            came = f"{list(a.shape)} and {list(b.shape)}"
            raise WeightsError(f"{path}: {layer} must be (rank, inputs) and (outputs, rank), came {came}")
        alpha = tensors[f"{layer}{ALPHA}"].item() if f"{layer}{ALPHA}" in tensors else _alpha(settings, layer)
        rank = a.shape[0]
        divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
        down[layer], up[layer] = a, b if alpha is None else b * (alpha / divisor)
    return LoRA(down, up)


def newest(name: str) -> str:
    """A tensor's name as the newest layout has it, without the network's prefix."""
    name = name.removeprefix(PREFIX)
    for older, newer in OLDER:
        name = older.sub(newer, name)
    return name


def _settings(path: Path, text: str) -> dict[str, Any]:
    """peft's settings as diffusers keeps them in the file, of the UNet, without the network's prefix."""
    try:
        settings = {name.removeprefix(PREFIX): value for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise WeightsError(f"{path}: its {METADATA} is not a JSON object") from None
    if settings.get("use_dora"):
        raise WeightsError(f"{path}: this is a DoRA, which scales whole weights; dragsa takes plain LoRA")
    return settings


def _alpha(settings: Mapping[str, Any], layer: str) -> float | None:
    """α of a layer: its own, by the name's end, else that of all; None where the settings say nothing."""
    for name, alpha in (settings.get("alpha_pattern") or {}).items():
        if f".{layer}".endswith(f".{name.removeprefix('^')}"):
            return alpha
    return settings.get("lora_alpha")
