"""Train the small model on scenes, from nothing to a folder that dragsa and diffusers load.

    python scripts/train_small.py all                  # vae, latents, unet, export, one after the other
    python scripts/train_small.py all --artwork FILE   # on scenes of artwork, too; FILE is fetched if it is not there
    python scripts/train_small.py vae --minutes 22     # one stage; minutes of training in all, over every run of it
    python scripts/train_small.py export               # what there is now (averaged weights) to weights/
    python scripts/train_small.py evaluate             # held-out figures of an exported folder

A stage that was interrupted goes on from its last checkpoint in the work folder; a stage that is complete is passed
over; `--fresh` starts again, with what later stages made of it. A work folder is of one seed, size and artwork. A stage
is planned over its minutes, counted while the processor works on it: the learning rate falls as they pass, so the
number of updates depends on the machine. Every update draws its own random numbers from the seed and the update's
number.

The VAE learns from drawn pictures that never repeat. Then pictures are encoded once (`latents`), the latents' mean and
spread per channel are folded into the VAE's 1×1 convolutions so that SD 1.5's scaling factor holds as it is, and the
UNet and the text encoder learn together from the latents and captions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dragsa import ddim, files, loading
from dragsa.config import UNetConfig, VAEConfig
from dragsa.evaluation import artwork, fit, quality, scenes, training
from dragsa.evaluation.scenes import Scene
from dragsa.evaluation.training import Lessons
from dragsa.kernels import memory
from dragsa.model.unet import UNet
from dragsa.model.vae import VAE

ROOT = Path(__file__).resolve().parents[1]
ENCODED = 1024  # pictures between two savings
STAGES = ("vae", "latents", "unet")  # that leave checkpoints, each made of what the one before it left

UNET = UNetConfig(widths=(32, 64, 128, 128), heads=(2, 4, 4, 4), context_dim=64, groups=4)


@dataclass(frozen=True)
class Plan:
    """The training's numbers."""

    vae: VAEConfig
    unet: UNetConfig = UNET
    tokens: int = 16  # of a prompt, with start and end
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
    device: str = "cpu"
    bfloat16: bool = False  # autocast in the VAE's training: faster where the processor has it, slower elsewhere
    latents: int = 16_000
    unet_lr: float = 1e-3
    unet_batch: int = 16
    unet_decay: float = 0.6  # the learning rate falls from this part of the training on
    empty_prompts: float = 0.1
    snr: float = 5.0  # weight min(1, snr / (signal-to-noise ratio)): nearly clean latents count less
    held_out: int = 32  # scenes watched during training


DRAWN = Plan(VAEConfig(widths=(16, 32, 64, 64), groups=4))
ARTWORK = Plan(  # a narrow last level, so that both models together stay under 40 MB
    VAEConfig(widths=(24, 48, 96, 96), groups=4),
    replace(UNET, widths=(32, 64, 128, 64)),
    tokens=24,
    vae_minutes=190.0,
    unet_minutes=116.0,
    crop_part=0.5,
    latents=24_000,
)


def train_vae(work: Path, plan: Plan, lessons: Lessons) -> VAE:
    torch.manual_seed(plan.seed)
    vae = VAE(plan.vae)
    training.start_vae(vae)
    vae.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(step: int, progress: float) -> tuple[Tensor, float, int]:
        if progress < plan.crop_part:
            batch = lessons.batch(plan.seed, step, plan.crops)
            corners = training.crop_corners(batch, plan.size, plan.crop, random.Random(step))
            pictures = lessons.draw(batch, plan.size, corners, plan.crop)
        else:
            pictures = lessons.draw(lessons.batch(plan.seed, step, plan.pictures), plan.size)
        pictures = pictures.to(plan.device, memory_format=torch.channels_last)
        with torch.autocast(plan.device, torch.bfloat16, enabled=plan.bfloat16):
            mean, logvar = vae.encode_moments(pictures)
            mean, logvar = mean.float(), logvar.float()
            noise = torch.randn(mean.shape, generator=training.generator(plan.seed, step)).to(plan.device)
            again = vae.decoder(vae.post_quant_conv(mean + (0.5 * logvar).exp() * noise)).float()
        error = again - pictures
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        lead = max(0.02, 1 - progress / 0.1)  # at first the latent is led towards a small picture
        small = (mean[:, :3] - 1.5 * F.avg_pool2d(pictures, 8)).square().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + plan.kl * kl + lead * small
        return loss, error.detach().abs().mean().item(), len(pictures)

    watched = [lessons.scene(seed) for seed in scenes.HELD_OUT_SEEDS[: plan.held_out]]
    held_out = lessons.draw(watched, plan.size).to(plan.device)

    def watch(average: VAE) -> str:
        db = quality.psnr(reconstruct(average, held_out), held_out)
        return f"held-out PSNR {db.mean():.2f} dB, least {db.min():.2f}"

    rate = partial(falling, plan.vae_lr)
    return training.train("vae", vae, work, plan.vae_minutes, batches, rate, watch)


def falling(lr: float, part: float) -> float:
    """Return the learning rate after a part of the way down, along half a cosine to a hundredth."""
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


@torch.no_grad()
def reconstruct(vae: VAE, pictures: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1], encoded to the posterior's mean and decoded."""
    return torch.cat([vae.decode(vae.encode(some)) for some in pictures.split(16)]).clamp(-1, 1)


def encode_latents(work: Path, vae: VAE, plan: Plan, lessons: Lessons) -> dict[str, Any]:
    """Return scaled latents of training and held-out scenes and the normalised VAE, cached in `work/latents.pt`."""
    path, of = work / "latents.pt", training.fingerprint(vae.state_dict())
    if path.exists():
        there = torch.load(path, weights_only=True)
        if not torch.equal(there.get("of", of), of):  # one without a note of its VAE is trusted
            refuse(f"{path} is of another VAE than {work / 'vae.pt'} is now; encode again with `latents --fresh`")
        return there
    rng = random.Random(plan.seed + 1)
    seeds = rng.sample(scenes.TRAINING_SEEDS, plan.latents) + list(scenes.HELD_OUT_SEEDS[:512])
    training.say(f"latents: encoding {len(seeds)} pictures")
    begun: dict[str, Any] = {"vae": vae.state_dict(), "seeds": torch.tensor(seeds)}
    part = work / "latents-part.pt"
    chunks = encoded_before(part, begun)
    vae.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def encoded(few: Tensor) -> Tensor:
        pictures = lessons.draw([lessons.scene(seed) for seed in few.tolist()], plan.size)
        return vae.encode_moments(pictures.to(plan.device))[0].cpu()

    for some in begun["seeds"].split(ENCODED)[len(chunks) :]:
        chunks.append(torch.cat([encoded(few) for few in some.split(32)]))
        training.save({**begun, "chunks": chunks}, part)
    latents = torch.cat(chunks)
    vae.cpu()
    std, mean = torch.std_mean(latents[: plan.latents], dim=(0, 2, 3))
    training.normalise(vae, mean, std)
    latents = (latents - mean[:, None, None]) / std[:, None, None]
    cache = {
        "latents": latents[: plan.latents].clone(),
        "seeds": torch.tensor(seeds[: plan.latents]),
        "held_out": latents[plan.latents :].clone(),
        "held_out_seeds": torch.tensor(seeds[plan.latents :]),
        "vae": vae.state_dict(),
        "of": of,
    }
    training.save(cache, path)
    part.unlink()
    training.say(f"latents: done; channel means were {mean.tolist()}, spreads {std.tolist()}")
    return cache


def encoded_before(part: Path, begun: dict[str, Any]) -> list[Tensor]:
    """Return the latents that an interrupted run left, by chunks, if it was of the same VAE and pictures."""
    if not part.exists():
        return []
    left = torch.load(part, weights_only=True)
    same = all(torch.equal(left["vae"][name], value) for name, value in begun["vae"].items())
    return left["chunks"] if same and torch.equal(left["seeds"], begun["seeds"]) else []


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Return the token numbers of prompts, (B, n), filled up to the tokenizer's length."""
    options: dict[str, Any] = {"padding": "max_length", "truncation": True}
    return tokenizer(list(prompts), return_tensors="pt", **options).input_ids


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="quick_gelu",
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


class Denoiser(nn.Module):
    """UNet and text encoder, which are trained together."""

    def __init__(self, config: UNetConfig, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet(config)
        self.text = CLIPTextModel(text_config(tokenizer, config.context_dim))
        with torch.no_grad():  # begin with every residual branch, and the prediction, at nothing
            for name, module in self.unet.named_modules():
                if name.endswith(("conv2", "proj_out", "conv_out")):
                    module.weight.zero_()
                    module.bias.zero_()

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return noise prediction of latents (B, 4, h, w) at timesteps (B,) for prompts of tokens (B, n)."""
        context = self.text(input_ids=tokens).last_hidden_state  # (B, n, context_dim)
        return self.unet(z.contiguous(memory_format=torch.channels_last), t, context).eps


def caption_tokens(tokenizer: CLIPTokenizer, lessons: Lessons, seeds: Tensor) -> Tensor:
    """Return the four captions of each seed's scene: token numbers (4, B, n)."""
    captions = zip(*(training.captions(lessons.scene(seed)) for seed in seeds.tolist()), strict=True)
    return torch.stack([tokenize(tokenizer, kind) for kind in captions])


def train_unet(work: Path, cache: dict[str, Any], plan: Plan, lessons: Lessons) -> Denoiser:
    training.write_tokenizer(work / "tokenizer", lessons.words, plan.tokens)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(plan.seed)
    denoiser = Denoiser(plan.unet, tokenizer)
    denoiser.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    denoiser.to(plan.device)
    latents, tokens = cache["latents"], caption_tokens(tokenizer, lessons, cache["seeds"])
    empty = tokenize(tokenizer, [""])[0]
    abar = ddim.training_alpha_bars().float()
    weights = (plan.snr * (1 - abar) / abar).clamp(max=1)

    def batches(step: int, progress: float) -> tuple[Tensor, float, int]:
        rng = training.generator(plan.seed, step)
        n = plan.unet_batch
        chosen = torch.randint(len(latents), (n,), generator=rng)
        z = latents[chosen]
        # One timestep from each of n equal parts of the thousand: the loss varies less from update to update.
        t = ((torch.arange(n) + torch.rand(n, generator=rng)) * (1000 / n)).long().clamp(max=999)
        kinds = torch.multinomial(torch.tensor([0.6, 0.15, 0.1, 0.15]), n, replacement=True, generator=rng)
        prompts = tokens[kinds, chosen]
        prompts = torch.where((torch.rand(n, generator=rng) < plan.empty_prompts)[:, None], empty, prompts)
        noise = torch.randn(z.shape, generator=rng)
        inputs = (training.noised(z, t, noise, abar), t, prompts)
        eps = denoiser(*(one.to(plan.device) for one in inputs))
        errors = (eps - noise.to(plan.device)).square().mean(dim=(1, 2, 3))
        return (weights[t].to(plan.device) * errors).mean(), errors.detach().mean().item(), n

    held_out = cache["held_out"][:128]
    held_out_t = torch.arange(len(held_out)) * 1000 // len(held_out)
    held_out_noise = torch.randn(held_out.shape, generator=training.generator(plan.seed, -1))
    held_out_z = training.noised(held_out, held_out_t, held_out_noise, abar)
    watched = held_out_z, held_out_t, caption_tokens(tokenizer, lessons, cache["held_out_seeds"][:128])[0]

    @torch.no_grad()
    def watch(average: Denoiser) -> str:
        parts = zip(*(one.to(plan.device).split(32) for one in watched), strict=True)
        eps = torch.cat([average(*part).cpu() for part in parts])
        losses = (eps - held_out_noise).square().mean(dim=(1, 2, 3))
        quarters = " ".join(f"{part.mean():.4f}" for part in losses.chunk(4))
        return f"held-out loss {losses.mean():.4f} (by quarter of t: {quarters})"

    def rate(progress: float) -> float:
        return falling(plan.unet_lr, max(0.0, (progress - plan.unet_decay) / (1 - plan.unet_decay)))

    export = partial(write_model, work / "export", plan, cache, tokenizer=work / "tokenizer")
    average = training.train("unet", denoiser, work, plan.unet_minutes, batches, rate, watch, export)
    export(average)
    return average


def write_model(folder: Path, plan: Plan, cache: dict[str, Any], denoiser: Denoiser, tokenizer: Path) -> None:
    """Write the model in diffusers' layout, in float16: each file put in place whole; other files there stay.

    `cache` is that of `encode_latents`, which has the VAE and the latents' size.
    """
    for name in ("unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        files.save_bytes(file.read_bytes(), folder / "tokenizer" / file.name, overwrite=True)
    training.save_half(folder / "unet" / "diffusion_pytorch_model.safetensors", denoiser.unet.state_dict())
    training.save_half(folder / "vae" / "diffusion_pytorch_model.safetensors", cache["vae"])
    text = {key: value for key, value in denoiser.text.state_dict().items() if not key.endswith("position_ids")}
    if not any(key.startswith("text_model.") for key in text):
        text = {f"text_model.{key}": value for key, value in text.items()}
    training.save_half(folder / "text_encoder" / "model.safetensors", text)
    settings = training.settings(plan.unet, plan.vae, 8 * cache["latents"].shape[-1])
    own = denoiser.text.config.to_dict() | {"architectures": ["CLIPTextModel"], "dtype": "float32"}
    for name, value in {**settings, "text_encoder/config.json": own}.items():
        files.save_json(value, folder / name, overwrite=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    training.say(f"export: {folder}, {size / 1e6:.1f} MB")


def export_now(work: Path, folder: Path, plan: Plan) -> None:
    """Write the averaged networks that the checkpoints hold now as a folder."""
    trained = checkpoint(work, "unet")["average"]
    denoiser = Denoiser(plan.unet, CLIPTokenizer.from_pretrained(work / "tokenizer"))
    denoiser.load_state_dict(trained)
    write_model(folder, plan, checkpoint(work, "latents"), denoiser, work / "tokenizer")


def evaluate(folder: Path, lessons: Lessons, count: int = 200) -> None:
    """Print the VAE's reconstruction of held-out scenes: PSNR, and where and in what colour the objects are found."""
    vae = loading.load(folder).vae
    size = json.loads((folder / "vae" / "config.json").read_text())["sample_size"]
    held_out = [lessons.scene(seed) for seed in scenes.HELD_OUT_SEEDS[:count]]
    pictures = lessons.draw(held_out, size)
    again = reconstruct(vae, pictures)
    db = quality.psnr(again, pictures)
    print(f"VAE on {count} held-out scenes: PSNR mean {db.mean():.2f} dB, least {db.min():.2f} dB")
    kinds = [scene.shape if isinstance(scene, Scene) else scene.thing.style for scene in held_out]
    for kind in dict.fromkeys((*scenes.SHAPES, *artwork.STYLES)):
        chosen = torch.tensor([kind == other for other in kinds])
        if chosen.any():
            print(f"  {kind:9s} {db[chosen].mean():.2f} dB ({int(chosen.sum())} scenes)")
    rows = []
    for scene, picture in zip(held_out, again, strict=True):
        if isinstance(scene, Scene):
            shift = math.dist(fit.locate(picture, scene)[:2], scenes.keypoints(scene, size)["centre"])
            rows.append((shift, fit.overlap(picture, scene), *fit.colour_error(picture, scene)))
    shifts, *others = zip(*rows, strict=True)
    overlap, on_object, on_ground = (sum(values) / len(rows) for values in others)
    print(f"  place off by at most {max(shifts):.2f} px; overlap with the truth {overlap:.3f} mean")
    print(f"  colour error of the object {on_object:.1f}, of the ground {on_ground:.1f} (of 255)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("stage", choices=("all", "vae", "latents", "unet", "export", "evaluate"))
    parser.add_argument("--work", type=Path, help="checkpoints and caches; runs/small, or runs/artwork")
    parser.add_argument("--out", type=Path, help="the exported folder; weights/small, or weights/artwork")
    parser.add_argument("--minutes", type=float, help="of training, for the stage vae or unet")
    parser.add_argument("--vae-minutes", type=float, help="likewise, for the stage all")
    parser.add_argument("--unet-minutes", type=float, help="likewise")
    parser.add_argument("--artwork", type=Path, metavar="FILE", help="scenes of artwork too; fetched if not there")
    parser.add_argument("--seed", type=int, default=DRAWN.seed)
    parser.add_argument("--size", type=int, default=DRAWN.size, help="pixels of a picture's side, a multiple of 64")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action="store_true", help="autocast in the VAE's training")
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoints of the stage and of later ones")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.size < 64 or options.size % 64:
        parser.error(f"--size: must be a multiple of 64, came {options.size}")
    if options.artwork is not None and not options.artwork.exists():
        training.say(f"fetching the artwork to {options.artwork}")
        artwork.fetch(options.artwork)
    lessons = Lessons(None if options.artwork is None else artwork.load(options.artwork))
    plan = replace(DRAWN if options.artwork is None else ARTWORK, **changes(options))
    name = "small" if options.artwork is None else "artwork"
    work, out, stage = options.work or ROOT / "runs" / name, options.out or ROOT / "weights" / name, options.stage
    if options.fresh:
        forget(work, stage)
    if stage != "evaluate":
        claim(work, plan, options.artwork)
    with memory.kept(torch.device(plan.device)):
        if stage in ("all", "vae"):
            train_vae(work, plan, lessons)
        if stage in ("all", "latents"):
            vae = VAE(plan.vae)
            vae.load_state_dict(checkpoint(work, "vae")["average"])
            encode_latents(work, vae, plan, lessons)
        if stage in ("all", "unet"):
            train_unet(work, checkpoint(work, "latents"), plan, lessons)
    if stage in ("all", "export"):
        export_now(work, out, plan)
    if stage in ("all", "evaluate"):
        need(out / "model_index.json", "export")
        evaluate(out, lessons)


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the plan's numbers that the options name."""
    named = {name: getattr(options, name) for name in ("seed", "size", "bfloat16", "device")}
    minutes = {f"{name}_minutes": options.minutes or getattr(options, f"{name}_minutes") for name in ("vae", "unet")}
    return named | {name: value for name, value in minutes.items() if value is not None}


def claim(work: Path, plan: Plan, sprites: Path | None) -> None:
    """Write down what a work folder's networks learn from, or check that it is the same as before.

    A folder with checkpoints and without such a note is trusted. Exits with 2 and one line for one of other numbers.
    """
    named = {name: getattr(plan, name) for name in ("seed", "size", "latents", "tokens")}
    mine = {**named, "vae": asdict(plan.vae), "unet": asdict(plan.unet)}
    mine = json.loads(json.dumps({**mine, "artwork": None if sprites is None else loading.sha256(sprites)}))
    note = work / "plan.json"
    if not any(checkpoints(work, stage) for stage in STAGES):
        work.mkdir(parents=True, exist_ok=True)
        files.save_json(mine, note, overwrite=True)
    elif note.exists():
        theirs = json.loads(note.read_text())
        other = [name for name, value in mine.items() if theirs.get(name) != value]
        if other:
            refuse(f"{work} was begun with other {', '.join(other)}; give the same, another --work, or `all --fresh`")


def forget(work: Path, stage: str) -> None:
    """Remove what a stage and those after it have left."""
    first = 0 if stage == "all" else STAGES.index(stage) if stage in STAGES else len(STAGES)
    for file in (file for one in STAGES[first:] for file in checkpoints(work, one)):
        file.unlink()


def checkpoints(work: Path, stage: str) -> list[Path]:
    """Return the files that a stage has left, whole or in part."""
    return [file for file in (work / f"{stage}.pt", work / f"{stage}-part.pt") if file.exists()]


def checkpoint(work: Path, stage: str) -> dict[str, Any]:
    need(work / f"{stage}.pt", stage)
    return torch.load(work / f"{stage}.pt", weights_only=True)


def need(path: Path, stage: str) -> None:
    if not path.exists():
        refuse(f"there is no {path}; run the stage `{stage}` first")


def refuse(line: str) -> NoReturn:
    print(f"train_small: {line}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
