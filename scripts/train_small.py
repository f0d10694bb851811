"""Train the small model on drawn scenes, from nothing to a folder that dragsa and diffusers load.

    python scripts/train_small.py all                  # vae, latents, unet, export, one after the other
    python scripts/train_small.py vae --minutes 22     # one stage; minutes of training in all, over every run of it
    python scripts/train_small.py export               # what there is now (averaged weights) to weights/small
    python scripts/train_small.py evaluate             # held-out figures of an exported folder

A stage that was interrupted goes on from its last checkpoint in the work folder; a stage that is complete is passed
over; `--fresh` starts again. A stage is planned over its minutes, counted while the processor works on it: the learning
rate falls as they pass, so the number of updates depends on the machine. Every update draws its own random numbers from
the seed and the update's number.

The VAE learns from drawn pictures that never repeat. Then pictures are encoded once (`latents`), the latents' mean and
spread per channel are folded into the VAE's 1×1 convolutions so that SD 1.5's scaling factor holds as it is, and the
UNet and the text encoder learn together from the latents and captions.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scenes
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dragsa import ddim
from dragsa.config import UNetConfig, VAEConfig
from dragsa.model.unet import UNet
from dragsa.model.vae import VAE

ROOT = Path(__file__).resolve().parents[1]
VAE_CONFIG = VAEConfig(widths=(16, 32, 64, 64), groups=4)
UNET_CONFIG = UNetConfig(widths=(32, 64, 128, 128), heads=(2, 4, 4, 4), context_dim=64, groups=4)
TOKENS = 16  # of a prompt, with start and end
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Plan:
    """The training's numbers."""

    seed: int = 0
    size: int = 128  # pixels of a picture's side
    vae_minutes: float = 30.0
    unet_minutes: float = 150.0
    vae_lr: float = 1.2e-3
    crop: int = 64  # the VAE's crops, for the first part of its training
    crop_part: float = 0.8
    crops: int = 8  # a batch
    pictures: int = 2  # a batch of whole pictures, after that
    kl: float = 1e-4
    bfloat16: bool = False  # autocast in the VAE's training: faster where the processor has it, slower elsewhere
    latents: int = 16_000
    unet_lr: float = 1e-3
    unet_batch: int = 16
    unet_decay: float = 0.6  # the learning rate falls from this part of the training on
    empty_prompts: float = 0.1
    snr: float = 5.0  # weight min(1, snr / (signal-to-noise ratio)): nearly clean latents count less
    held_out: int = 32  # scenes watched during training
    log_seconds: float = 60.0
    save_seconds: float = 180.0
    export_seconds: float = 900.0


# ------------------------------------------------------------------------------------------------- a training's frame


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


def train(
    name: str,
    work: Path,
    module: nn.Module,
    minutes: float,
    batches: Any,
    rate: Any,
    watch: Any,
    decay: float,
    plan: Plan,
    weight_decay: float,
    export: Any = None,
) -> nn.Module:
    """Train `module` with AdamW for so many minutes of processor time, and return its average.

    `batches(step, progress)` gives the loss and what to log of one update, `rate(progress)` the learning rate, and
    `watch(average)` a line about held-out data. The checkpoint is `work/name.pt`; a training goes on from it.
    """
    average = Average(module, decay)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=rate(0.0), betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
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
    say(f"{name}: {count(module):,} parameters, from update {step}, {before / 60:.1f} of {minutes:.1f} min passed")

    def save() -> None:
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
            group["lr"] = rate(passed) * min(1.0, (step + 1) / 50)
        loss, report, pictures = batches(step, passed)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        average.update(step)
        step += 1
        done, total, counted = done + pictures, total + report, counted + 1
        now = time.thread_time()
        if now - logged > plan.log_seconds or step in (200, 1000):
            say(
                f"{name} {step:6d}  {(before + now - began) / 60:5.1f} min  loss {total / counted:.4f}  "
                f"{done / (now - logged):5.1f} pictures/s  lr {optimiser.param_groups[0]['lr']:.1e}  "
                f"{watch(average.module)}"
            )
            logged, done, total, counted = time.thread_time(), 0, 0.0, 0
        if now - saved > plan.save_seconds:
            save()
            saved = time.thread_time()
        if export is not None and now - exported > plan.export_seconds:
            export(average.module)
            exported = time.thread_time()
    if step > first:
        save()
    say(f"{name}: trained, {step} updates, {watch(average.module)}")
    return average.module


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def write_whole(path: Path, write: Any) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


def generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 10_000_019 + step)


# ----------------------------------------------------------------------------------------------------------- the VAE


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


def scene_batch(seed: int, step: int, batch: int) -> list[scenes.Scene]:
    rng = random.Random(seed * 10_000_019 + step)
    return [scenes.random_scene(rng.choice(scenes.TRAINING_SEEDS)) for _ in range(batch)]


def crop_corners(batch: Sequence[scenes.Scene], size: int, window: int, rng: random.Random) -> Tensor:
    """Top left pixels (B, 2) of crops, three of four of them near the object."""
    corners = []
    for scene in batch:
        if rng.random() < 0.75:
            spread = scene.size / 2
            middle = [(c + rng.uniform(-spread, spread)) * size - window / 2 for c in (scene.x, scene.y)]
        else:
            middle = [rng.uniform(0, size - window) for _ in range(2)]
        corners.append([min(max(round(c), 0), size - window) for c in middle])
    return torch.tensor(corners)


def train_vae(work: Path, plan: Plan) -> VAE:
    torch.manual_seed(plan.seed)
    vae = VAE(VAE_CONFIG)
    start_vae(vae)
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(step: int, progress: float) -> tuple[Tensor, float, int]:
        if progress < plan.crop_part:
            batch = scene_batch(plan.seed, step, plan.crops)
            corners = crop_corners(batch, plan.size, plan.crop, random.Random(step))
            pictures = scenes.draw_batch(batch, plan.size, corners, plan.crop)
        else:
            pictures = scenes.draw_batch(scene_batch(plan.seed, step, plan.pictures), plan.size)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
            mean, logvar = vae.encode_moments(pictures)
            mean, logvar = mean.float(), logvar.float()
            noise = torch.randn(mean.shape, generator=generator(plan.seed, step))
            again = vae.decoder(vae.post_quant_conv(mean + (0.5 * logvar).exp() * noise)).float()
        error = again - pictures
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        lead = max(0.02, 1 - progress / 0.1)  # at first the latent is led towards a small picture
        small = (mean[:, :3] - 1.5 * F.avg_pool2d(pictures, 8)).square().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + plan.kl * kl + lead * small
        return loss, error.detach().abs().mean().item(), len(pictures)

    watched = [scenes.random_scene(seed) for seed in scenes.HELD_OUT_SEEDS[: plan.held_out]]
    held_out = scenes.draw_batch(watched, plan.size)

    def watch(average: nn.Module) -> str:
        db = scenes.psnr(reconstruct(average, held_out), held_out)
        return f"held-out PSNR {db.mean():.2f} dB, least {db.min():.2f}"

    def rate(progress: float) -> float:
        return plan.vae_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    average = train("vae", work, vae, plan.vae_minutes, batches, rate, watch, 0.999, plan, weight_decay=1e-4)
    assert isinstance(average, VAE)
    return average


@torch.no_grad()
def reconstruct(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Encode to the posterior's mean and decode: (B, 3, H, W) in [-1, 1]."""
    assert isinstance(vae, VAE)
    return torch.cat([vae.decode(vae.encode(some)) for some in pictures.split(16)]).clamp(-1, 1)


# ------------------------------------------------------------------------------------------------------- the latents


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


def encode_latents(work: Path, vae: VAE, plan: Plan) -> dict[str, Any]:
    """Scaled latents of training and held-out scenes, and the normalised VAE: cached in `work/latents.pt`."""
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    rng = random.Random(plan.seed + 1)
    seeds = rng.sample(scenes.TRAINING_SEEDS, plan.latents) + list(scenes.HELD_OUT_SEEDS[:512])
    say(f"latents: encoding {len(seeds)} pictures")
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    chunks = []
    with torch.inference_mode():
        for some in torch.tensor(seeds).split(32):
            pictures = scenes.draw_batch([scenes.random_scene(seed) for seed in some.tolist()], plan.size)
            chunks.append(vae.encode_moments(pictures)[0])
    latents = torch.cat(chunks)
    std, mean = torch.std_mean(latents[: plan.latents], dim=(0, 2, 3))
    normalise(vae, mean, std)
    latents = (latents - mean[:, None, None]) / std[:, None, None]
    cache = {
        "latents": latents[: plan.latents].clone(),
        "seeds": torch.tensor(seeds[: plan.latents]),
        "held_out": latents[plan.latents :].clone(),
        "held_out_seeds": torch.tensor(seeds[plan.latents :]),
        "vae": vae.state_dict(),
    }
    write_whole(path, lambda temporary: torch.save(cache, temporary))
    say(f"latents: done; channel means were {mean.tolist()}, spreads {std.tolist()}")
    return cache


# ---------------------------------------------------------------------------------------------------- the tokenizer


def write_tokenizer(folder: Path, words: Sequence[str] = scenes.WORDS, tokens: int = TOKENS) -> None:
    """A byte-pair tokenizer in CLIP's format in which every one of `words` is one token, and any text has some."""
    letters = list(_bytes_to_letters())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        # Merges added later rank lower, so they never come between the merges of an earlier word.
        parts = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:
            parts = _merged(parts, merge)
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            merges.append(merge)
            parts = _merged(parts, merge)
    vocabulary += ["".join(merge) for merge in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    more = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": tokens}
    write_json(folder / "tokenizer_config.json", special | more)


def _merged(parts: list[str], merge: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == merge:
            out[-1] += part
        else:
            out.append(part)
    return out


def _bytes_to_letters() -> Iterator[str]:
    """A printable letter for each byte: printable Latin-1 for itself, the others from U+0100 on (GPT-2's alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from (chr(b) for b in printable)
    yield from (chr(256 + i) for i in range(256 - len(printable)))


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Prompts -> token numbers (B, TOKENS)."""
    options: dict[str, Any] = {"padding": "max_length", "max_length": TOKENS, "truncation": True}
    return tokenizer(list(prompts), return_tensors="pt", **options).input_ids


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=UNET_CONFIG.context_dim,
        intermediate_size=4 * UNET_CONFIG.context_dim,
        projection_dim=UNET_CONFIG.context_dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


# ---------------------------------------------------------------------------------------------------------- the UNet


class Denoiser(nn.Module):
    """UNet and text encoder, which are trained together."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.unet = UNet(UNET_CONFIG)
        self.text = CLIPTextModel(config)
        with torch.no_grad():  # begin with every residual branch, and the prediction, at nothing
            for name, module in self.unet.named_modules():
                if name.endswith(("conv2", "proj_out", "conv_out")):
                    module.weight.zero_()
                    module.bias.zero_()

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Noise prediction of latents (B, 4, h, w) at timesteps (B,) for prompts of tokens (B, n)."""
        context = self.text(input_ids=tokens).last_hidden_state  # (B, n, context_dim)
        return self.unet(z.contiguous(memory_format=torch.channels_last), t, context).eps


def noised(z: Tensor, t: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """z_t = √ᾱ_t z + √(1 - ᾱ_t) noise."""
    signal = abar[t][:, None, None, None]
    return signal.sqrt() * z + (1 - signal).sqrt() * noise


def caption_tokens(tokenizer: CLIPTokenizer, seeds: Tensor) -> Tensor:
    """Four captions of each scene, from plain to with place and look: token numbers (4, B, TOKENS)."""
    drawn = [scenes.random_scene(seed) for seed in seeds.tolist()]
    kinds = [(False, False), (False, True), (True, False), (True, True)]
    return torch.stack([tokenize(tokenizer, [scenes.caption(s, *kind) for s in drawn]) for kind in kinds])


def train_unet(work: Path, cache: dict[str, Any], plan: Plan) -> Denoiser:
    write_tokenizer(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(plan.seed)
    denoiser = Denoiser(text_config(tokenizer))
    denoiser.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    latents, tokens = cache["latents"], caption_tokens(tokenizer, cache["seeds"])
    empty = tokenize(tokenizer, [""])[0]
    abar = ddim.training_alpha_bars().float()
    weights = (plan.snr * (1 - abar) / abar).clamp(max=1)

    def batches(step: int, progress: float) -> tuple[Tensor, float, int]:
        rng = generator(plan.seed, step)
        n = plan.unet_batch
        chosen = torch.randint(len(latents), (n,), generator=rng)
        z = latents[chosen]
        # One timestep from each of n equal parts of the thousand: the loss varies less from update to update.
        t = ((torch.arange(n) + torch.rand(n, generator=rng)) * (1000 / n)).long().clamp(max=999)
        kinds = torch.multinomial(torch.tensor([0.6, 0.15, 0.1, 0.15]), n, replacement=True, generator=rng)
        prompts = tokens[kinds, chosen]
        prompts = torch.where((torch.rand(n, generator=rng) < plan.empty_prompts)[:, None], empty, prompts)
        noise = torch.randn(z.shape, generator=rng)
        errors = (denoiser(noised(z, t, noise, abar), t, prompts) - noise).square().mean(dim=(1, 2, 3))
        return (weights[t] * errors).mean(), errors.detach().mean().item(), n

    held_out = cache["held_out"][:128]
    held_out_tokens = caption_tokens(tokenizer, cache["held_out_seeds"][:128])[0]
    rng = generator(plan.seed, -1)
    held_out_t = torch.arange(len(held_out)) * 1000 // len(held_out)
    held_out_noise = torch.randn(held_out.shape, generator=rng)

    @torch.no_grad()
    def watch(average: nn.Module) -> str:
        z = noised(held_out, held_out_t, held_out_noise, abar)
        parts = zip(z.split(32), held_out_t.split(32), held_out_tokens.split(32), strict=True)
        eps = torch.cat([average(*part) for part in parts])
        losses = (eps - held_out_noise).square().mean(dim=(1, 2, 3))
        quarters = " ".join(f"{part.mean():.4f}" for part in losses.chunk(4))
        return f"held-out loss {losses.mean():.4f} (by quarter of t: {quarters})"

    def rate(progress: float) -> float:
        falling = max(0.0, (progress - plan.unet_decay) / (1 - plan.unet_decay))
        return plan.unet_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))

    def export(average: nn.Module) -> None:
        assert isinstance(average, Denoiser)
        write_model(work / "export", cache, average, work / "tokenizer")

    average = train(
        "unet", work, denoiser, plan.unet_minutes, batches, rate, watch, 0.999, plan, weight_decay=1e-4, export=export
    )
    assert isinstance(average, Denoiser)
    export(average)
    return average


# ------------------------------------------------------------------------------------------------------- the folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model(folder: Path, cache: dict[str, Any], denoiser: Denoiser, tokenizer: Path) -> None:
    """The model as a folder of diffusers' layout, in float16: each file put in place whole; other files there stay.

    `cache` is that of `encode_latents`, which has the VAE and the latents' size.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export") as temporary:
        new = Path(temporary)
        for name in ("unet", "vae", "text_encoder", "scheduler"):
            (new / name).mkdir()
        shutil.copytree(tokenizer, new / "tokenizer")
        save_half(new / "unet" / "diffusion_pytorch_model.safetensors", denoiser.unet.state_dict())
        save_half(new / "vae" / "diffusion_pytorch_model.safetensors", cache["vae"])
        text = {key: value for key, value in denoiser.text.state_dict().items() if not key.endswith("position_ids")}
        if not any(key.startswith("text_model.") for key in text):
            text = {f"text_model.{key}": value for key, value in text.items()}
        save_half(new / "text_encoder" / "model.safetensors", text)
        write_configs(new, denoiser.text.config, 8 * cache["latents"].shape[-1])
        for part in sorted(new.iterdir()):
            place = folder / part.name
            folder.mkdir(exist_ok=True)
            if part.is_dir():
                for file in part.iterdir():
                    place.mkdir(exist_ok=True)
                    os.replace(file, place / file.name)
            else:
                os.replace(part, place)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"export: {folder}, {size / 1e6:.1f} MB")


def save_half(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({k: v.to(torch.float16).contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def write_configs(folder: Path, text: CLIPTextConfig, size: int) -> None:
    unet, vae = UNET_CONFIG, VAE_CONFIG
    cross = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
    write_json(
        folder / "unet" / "config.json",
        {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": list(unet.heads),  # the published key counts heads
            "block_out_channels": list(unet.widths),
            "center_input_sample": False,
            "cross_attention_dim": unet.context_dim,
            "down_block_types": [*cross[0], "DownBlock2D"],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": unet.latent_channels,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-05,
            "norm_num_groups": unet.groups,
            "out_channels": unet.latent_channels,
            "sample_size": size // 8,
            "up_block_types": ["UpBlock2D", *cross[1]],
        },
    )
    write_json(
        folder / "vae" / "config.json",
        {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(vae.widths),
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": vae.latent_channels,
            "layers_per_block": 2,
            "norm_num_groups": vae.groups,
            "out_channels": 3,
            "sample_size": size,
            "scaling_factor": vae.scaling_factor,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
    )
    config = text.to_dict() | {"architectures": ["CLIPTextModel"], "dtype": "float32"}
    write_json(folder / "text_encoder" / "config.json", config)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDIMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def export_now(work: Path, folder: Path) -> None:
    """What the checkpoints hold now, averaged, as a folder."""
    cache = torch.load(work / "latents.pt", weights_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    denoiser = Denoiser(text_config(tokenizer))
    denoiser.load_state_dict(torch.load(work / "unet.pt", weights_only=True)["average"])
    write_model(folder, cache, denoiser, work / "tokenizer")


def evaluate(folder: Path, count: int = 200) -> None:
    """Print the VAE's reconstruction of held-out scenes: PSNR, and where and in what colour the objects are found."""
    vae = VAE(VAE_CONFIG).eval()
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict({key: value.float() for key, value in tensors.items()})
    size = json.loads((folder / "vae" / "config.json").read_text())["sample_size"]
    held_out = [scenes.random_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:count]]
    pictures = scenes.draw_batch(held_out, size)
    again = reconstruct(vae, pictures)
    db = scenes.psnr(again, pictures)
    print(f"VAE on {count} held-out scenes: PSNR mean {db.mean():.2f} dB, least {db.min():.2f} dB")
    for shape in scenes.SHAPES:
        chosen = torch.tensor([scene.shape == shape for scene in held_out])
        print(f"  {shape:9s} {db[chosen].mean():.2f} dB ({int(chosen.sum())} scenes)")
    shifts, overlaps, objects, grounds = [], [], [], []
    for scene, picture in zip(held_out, again, strict=True):
        place, truth = scenes.locate(picture, scene), scenes.keypoints(scene, size)["centre"]
        error = scenes.colour_error(picture, scene)
        shifts.append(math.dist(place[:2], truth))
        overlaps.append(scenes.overlap(picture, scene))
        objects.append(error.object)
        grounds.append(error.ground)
    mean = {name: sum(v) / count for name, v in (("overlap", overlaps), ("object", objects), ("ground", grounds))}
    print(f"  place off by at most {max(shifts):.2f} px; overlap with the truth {mean['overlap']:.3f} mean")
    print(f"  colour error of the object {mean['object']:.1f}, of the ground {mean['ground']:.1f} (of 255)")


# ----------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("stage", choices=("all", "vae", "latents", "unet", "export", "evaluate"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "small", help="checkpoints and caches")
    parser.add_argument("--out", type=Path, default=ROOT / "weights" / "small", help="the exported folder")
    parser.add_argument("--minutes", type=float, help="of training, for the stage vae or unet")
    parser.add_argument("--vae-minutes", type=float, default=Plan.vae_minutes)
    parser.add_argument("--unet-minutes", type=float, default=Plan.unet_minutes)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--size", type=int, default=Plan.size, help="pixels of a picture's side, a multiple of 64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action="store_true", help="autocast in the VAE's training")
    parser.add_argument("--fresh", action="store_true", help="forget the stage's checkpoint")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.size < 64 or options.size % 64:
        parser.error(f"--size: must be a multiple of 64, came {options.size}")
    minutes = {name: options.minutes or getattr(options, f"{name}_minutes") for name in ("vae", "unet")}
    plan = Plan(options.seed, options.size, minutes["vae"], minutes["unet"], bfloat16=options.bfloat16)
    work, stage = options.work, options.stage
    if options.fresh:
        files = {"vae": ("vae",), "latents": ("latents",), "unet": ("unet",), "all": ("vae", "latents", "unet")}
        for name in files.get(stage, ()):
            (work / f"{name}.pt").unlink(missing_ok=True)
    if stage in ("all", "vae"):
        train_vae(work, plan)
    if stage in ("all", "latents"):
        need(work / "vae.pt", "vae")
        vae = VAE(VAE_CONFIG)
        vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["average"])
        encode_latents(work, vae, plan)
    if stage in ("all", "unet"):
        need(work / "latents.pt", "latents")
        train_unet(work, torch.load(work / "latents.pt", weights_only=True), plan)
    if stage in ("all", "export"):
        need(work / "unet.pt", "unet")
        export_now(work, options.out)
    if stage in ("all", "evaluate"):
        need(options.out / "model_index.json", "export")
        evaluate(options.out)


def need(path: Path, stage: str) -> None:
    if not path.exists():
        print(f"train_small: there is no {path}; run the stage `{stage}` first", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
