"""Training networks on drawn scenes: the loop with its average and checkpoints, batches, and the VAE's latents."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dragsa.evaluation import scenes
from dragsa.evaluation.scenes import Scene
from dragsa.model.vae import VAE

AVERAGING, WEIGHT_DECAY = 0.999, 1e-4  # of the parameters


class Average:
    """Exponential moving average of a module's parameters, for use in place of the last ones."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.own: list[Tensor] = list(self.module.parameters())
        self.others: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.own, [p.detach() for p in self.others], weight)


@dataclass(frozen=True)
class Stage:
    """A module, and the training of it. `progress` runs from 0 to 1 over the minutes.

    `batches(step, progress)` gives an update's loss, its value for the log and its number of pictures; `rate(progress)`
    the learning rate; `watch(average)` a line about held-out data; `export(average)` writes down what there is.
    """

    name: str
    module: nn.Module
    minutes: float
    batches: Callable[[int, float], tuple[Tensor, float, int]]
    rate: Callable[[float], float]
    watch: Callable[[nn.Module], str]
    export: Callable[[nn.Module], None] | None = None


def train(stage: Stage, work: Path, log: float, save: float, export: float) -> nn.Module:
    """Train a stage's module with AdamW for its minutes of processor time, and return its average.

    The checkpoint is `work/<name>.pt`; a training goes on from it. `log`, `save` and `export`: every so many seconds.
    """
    name, module, minutes = stage.name, stage.module, stage.minutes
    average = Average(module, AVERAGING)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=stage.rate(0.0), betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True
    )
    path = work / f"{name}.pt"
    step, before = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        average.module.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, before = state["step"], state["seconds"]
    first, began = step, time.thread_time()
    logged = saved = exported = began
    done, total, counted = 0, 0.0, 0
    size = sum(p.numel() for p in module.parameters())
    say(f"{name}: {size:,} parameters, from update {step}, {before / 60:.1f} of {minutes:.1f} min passed")

    def checkpoint() -> None:
        state = {
            "module": module.state_dict(),
            "average": average.module.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
            "seconds": before + time.thread_time() - began,
        }
        write_whole(path, lambda temporary: torch.save(state, temporary))

    def progress() -> float:
        return min(1.0, (before + time.thread_time() - began) / (60 * minutes))

    while progress() < 1:
        passed = progress()
        for group in optimiser.param_groups:
            group["lr"] = stage.rate(passed) * min(1.0, (step + 1) / 50)
        loss, report, pictures = stage.batches(step, passed)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        average.update(step)
        step += 1
        done, total, counted = done + pictures, total + report, counted + 1
        now = time.thread_time()
        if now - logged > log or step in (200, 1000):
            say(
                f"{name} {step:6d}  {(before + now - began) / 60:5.1f} min  loss {total / counted:.4f}  "
                f"{done / (now - logged):5.1f} pictures/s  lr {optimiser.param_groups[0]['lr']:.1e}  "
                f"{stage.watch(average.module)}"
            )
            logged, done, total, counted = time.thread_time(), 0, 0.0, 0
        if now - saved > save:
            checkpoint()
            saved = time.thread_time()
        if stage.export is not None and now - exported > export:
            stage.export(average.module)
            exported = time.thread_time()
    if step > first:
        checkpoint()
    say(f"{name}: trained, {step} updates, {stage.watch(average.module)}")
    return average.module


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


@torch.no_grad()
def start_vae(vae: VAE) -> None:
    """Begin near the identity: colours pass through, every residual branch adds nothing, the posterior is narrow.

    Convolutions outside the residual branches copy channel i to channel i and keep their random weights where there is
    nothing to copy, the last convolution of a branch is zero.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith(("conv1", "conv2", "decoder.conv_out")):
            copied = min(module.out_channels, module.in_channels)
            module.weight[:copied] = 0
            for i in range(copied):
                if module.stride[0] == 2:  # the mean of the four pixels that become one
                    module.weight[i, i, :2, :2] = 0.25
                else:
                    centre = module.kernel_size[0] // 2
                    module.weight[i, i, centre, centre] = 1
            module.bias[:] = 0  # type: ignore[index]
        elif name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
            module.bias.zero_()
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = -6  # type: ignore[index]


@torch.no_grad()
def normalise(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Fold the latents' normalisation, per channel, into the 1×1 convolutions.

    Afterwards the posterior's mean is (old - mean) / (std · scaling factor), so that scaled latents have mean 0 and
    spread 1, and pictures stay the same.
    """
    spread = std * vae.config.scaling_factor
    channels = vae.config.latent_channels
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None and post.bias is not None
    quant.bias[:channels] = (quant.bias[:channels] - mean) / spread
    quant.weight[:channels] /= spread[:, None, None, None]
    quant.bias[channels:] -= 2 * spread.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= spread[None, :, None, None]


def scene_batch(seed: int, step: int, batch: int) -> list[Scene]:
    """Return an update's own random scenes."""
    rng = random.Random(seed * 10_000_019 + step)
    return [scenes.random_scene(rng.choice(scenes.TRAINING_SEEDS)) for _ in range(batch)]


def crop_corners(batch: Sequence[Scene], size: int, window: int, rng: random.Random) -> Tensor:
    """Return the top left pixels (B, 2) of crops, three of four of them near the object."""
    corners = []
    for scene in batch:
        if rng.random() < 0.75:
            spread = scene.size / 2
            middle = [(c + rng.uniform(-spread, spread)) * size - window / 2 for c in (scene.x, scene.y)]
        else:
            middle = [rng.uniform(0, size - window) for _ in range(2)]
        corners.append([min(max(round(c), 0), size - window) for c in middle])
    return torch.tensor(corners)


def generator(seed: int, step: int) -> torch.Generator:
    """Return an update's own source of noise."""
    return torch.Generator().manual_seed(seed * 10_000_019 + step)


def noised(z: Tensor, t: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Return z_t = √ᾱ_t z + √(1 - ᾱ_t) noise."""
    signal = abar[t][:, None, None, None]
    return signal.sqrt() * z + (1 - signal).sqrt() * noise
