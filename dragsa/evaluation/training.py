"""Training networks on scenes: the loop, what they learn from, the VAE's latents; a folder in diffusers' layout."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from dragsa import files
from dragsa.config import UNetConfig, VAEConfig
from dragsa.evaluation import art_scenes, artwork, scenes
from dragsa.evaluation.art_scenes import ArtScene
from dragsa.evaluation.artwork import Sprites
from dragsa.evaluation.scenes import Scene
from dragsa.model.vae import VAE

ARTWORK = 0.75  # of all scenes, where there are sprites
AVERAGING, WEIGHT_DECAY = 0.999, 1e-4  # of the parameters
LOG, SAVE, EXPORT = 60, 180, 900  # every so many seconds

SMALL = Path(__file__).parents[2] / "weights" / "small"
START, END = "<|startoftext|>", "<|endoftext|>"

Trained = TypeVar("Trained", bound=nn.Module)


def train(
    name: str,
    module: Trained,
    work: Path,
    minutes: float,
    batches: Callable[[int, float], tuple[Tensor, float, int]],
    rate: Callable[[float], float],
    watch: Callable[[Trained], str],
    export: Callable[[Trained], None] | None = None,
) -> Trained:
    """Train a module with AdamW for its minutes of processor time, and return the moving average of its parameters.

    On a GPU minutes are those that pass. The checkpoint is `work/<name>.pt`; a training goes on from it.
    `batches(step, progress)` gives an update's loss, its value for the log and its number of pictures; `rate(progress)`
    the learning rate; `watch(average)` a line about held-out data; `export(average)` writes down what there is.
    `progress` runs from 0 to 1 over the minutes.
    """
    clock = time.thread_time if next(module.parameters()).device.type == "cpu" else time.monotonic
    average = copy.deepcopy(module).requires_grad_(False).eval()
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=rate(0.0), betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True
    )
    parts: dict[str, Any] = {"module": module, "average": average, "optimiser": optimiser}
    path = work / f"{name}.pt"
    step, before = resumed(path, parts)
    first, began = step, clock()
    logged = saved = exported = began
    done, total, counted = 0, 0.0, 0
    size = sum(p.numel() for p in module.parameters())
    say(f"{name}: {size:,} parameters, from update {step}, {before / 60:.1f} of {minutes:.1f} min passed")

    def seconds() -> float:
        return before + clock() - began

    def checkpoint() -> None:
        save({**{key: part.state_dict() for key, part in parts.items()}, "step": step, "seconds": seconds()}, path)

    while (progress := min(1.0, seconds() / (60 * minutes))) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate(progress) * min(1.0, (step + 1) / 50)
        loss, report, pictures = batches(step, progress)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            weight = 1 - min(AVERAGING, (1 + step) / (10 + step))
            torch._foreach_lerp_([*average.parameters()], [p.detach() for p in module.parameters()], weight)
        step += 1
        done, total, counted = done + pictures, total + report, counted + 1
        now = clock()
        if now - logged > LOG or step in (200, 1000):
            say(
                f"{name} {step:6d}  {seconds() / 60:5.1f} min  loss {total / counted:.4f}  "
                f"{done / (now - logged):5.1f} pictures/s  lr {optimiser.param_groups[0]['lr']:.1e}  {watch(average)}"
            )
            logged, done, total, counted = clock(), 0, 0.0, 0
        if now - saved > SAVE:
            checkpoint()
            saved = clock()
        if export is not None and now - exported > EXPORT:
            export(average)
            exported = clock()
    if step > first:
        checkpoint()
    say(f"{name}: trained, {step} updates, {watch(average)}")
    return average


def resumed(path: Path, parts: dict[str, Any]) -> tuple[int, float]:
    """Give the parts the state of a checkpoint, if there is one; return the updates and seconds that led there."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    return state["step"], state["seconds"]


def fingerprint(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a hash of named tensors, uint8 (32,), which tells whether others are the same to the bit."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return torch.tensor([*found.digest()], dtype=torch.uint8)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def save(state: dict[str, Any], path: Path) -> None:
    """Write a dictionary of tensors whole or not at all, as `torch.load` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    torch.save(state, written)
    files.save_bytes(written.getvalue(), path, overwrite=True)


@torch.no_grad()
def start_vae(vae: VAE) -> None:
    """Begin near the identity: colours pass through, every residual branch adds nothing, the posterior is narrow.

    Convolutions outside the residual branches copy channel i to channel i and keep their random weights where there is
    nothing to copy, the last convolution of a branch is zero.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith(("conv1", "conv2", "decoder.conv_out")):
            same = range(min(module.out_channels, module.in_channels))
            module.weight[: len(same)] = 0
            if module.stride[0] == 2:  # the mean of the four pixels that become one
                module.weight[same, same, :2, :2] = 0.25
            else:
                centre = module.kernel_size[0] // 2
                module.weight[same, same, centre, centre] = 1
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


class Lessons:
    """What a model learns from: drawn scenes, and where there are sprites scenes of artwork for most of them.

    A scene follows from its seed. Training and held-out seeds are those of `scenes`; held-out scenes of artwork show
    drawings that training never does.
    """

    def __init__(self, sprites: Sprites | None = None) -> None:
        self.sprites = sprites
        names = () if sprites is None else sprites.names
        self._names = {
            True: [name for name in names if artwork.held_out(name) != "all"],
            False: [name for name in names if artwork.held_out(name) == "all"],
        }

    @property
    def words(self) -> tuple[str, ...]:
        """All words of captions, each once."""
        if self.sprites is None:
            return scenes.WORDS
        names = (word for name in self.sprites.names for word in name.split("-"))
        return tuple(dict.fromkeys((*scenes.WORDS, *art_scenes.WORDS, *names)))

    def scene(self, seed: int) -> Scene | ArtScene:
        """Return the scene of a seed."""
        rng = random.Random(seed + 1)
        if self.sprites is None or rng.random() >= ARTWORK:
            return scenes.random_scene(seed)
        training = seed in scenes.TRAINING_SEEDS
        return art_scenes.random_scene(rng, self._names[training], training=training)

    def batch(self, seed: int, step: int, count: int) -> list[Scene | ArtScene]:
        """Return an update's own random scenes."""
        rng = random.Random(seed * 10_000_019 + step)
        return [self.scene(rng.choice(scenes.TRAINING_SEEDS)) for _ in range(count)]

    def draw(
        self, batch: Sequence[Scene | ArtScene], size: int, corners: Tensor | None = None, window: int = 0
    ) -> Tensor:
        """Return scenes as pictures, as `scenes.draw_batch` does: (B, 3, size, size), or crops of `window` pixels."""
        side = size if corners is None else window
        pictures = torch.empty(len(batch), 3, side, side)
        drawn = [i for i, scene in enumerate(batch) if isinstance(scene, Scene)]
        if drawn:
            some = [scene for scene in batch if isinstance(scene, Scene)]
            pictures[drawn] = scenes.draw_batch(some, size, None if corners is None else corners[drawn], window)
        for i, scene in enumerate(batch):
            if isinstance(scene, ArtScene):
                assert self.sprites is not None
                x, y = (0, 0) if corners is None else corners[i].tolist()
                pictures[i] = art_scenes.draw(scene, self.sprites, size, (x, y), side)
        return pictures


def captions(scene: Scene | ArtScene) -> list[str]:
    """Return four captions of a scene, the one that edits use first."""
    if isinstance(scene, ArtScene):
        return [
            art_scenes.caption(scene, *kind)
            for kind in ((True, True), (False, True), (True, False), (True, True, True))
        ]
    return [scenes.caption(scene, *kind) for kind in ((False, False), (False, True), (True, False), (True, True))]


def crop_corners(batch: Sequence[Scene | ArtScene], size: int, window: int, rng: random.Random) -> Tensor:
    """Return the top left pixels (B, 2) of crops, three of four of them near the object."""
    corners = []
    for scene in batch:
        thing = scene.thing if isinstance(scene, ArtScene) else scene
        if rng.random() < 0.75:
            spread = thing.size / 2
            middle = [(c + rng.uniform(-spread, spread)) * size - window / 2 for c in (thing.x, thing.y)]
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


# ----------------------------------------------------------------------------------- a folder in diffusers' layout


def settings(unet: UNetConfig, vae: VAEConfig, size: int) -> dict[str, dict[str, Any]]:
    """Return the settings of networks for pictures of `size` pixels, by file; without the text encoder's.

    They are those of the model that ships, but for the networks' own numbers.
    """
    own: dict[str, dict[str, Any]] = {
        "unet/config.json": {
            "attention_head_dim": list(unet.heads),  # the published key counts heads
            "block_out_channels": list(unet.widths),
            "cross_attention_dim": unet.context_dim,
            "in_channels": unet.latent_channels,
            "norm_num_groups": unet.groups,
            "out_channels": unet.latent_channels,
            "sample_size": size // 8,
        },
        "vae/config.json": {
            "block_out_channels": list(vae.widths),
            "latent_channels": vae.latent_channels,
            "norm_num_groups": vae.groups,
            "sample_size": size,
            "scaling_factor": vae.scaling_factor,
        },
    }
    names = (*own, "scheduler/scheduler_config.json", "model_index.json")
    return {name: json.loads((SMALL / name).read_text()) | own.get(name, {}) for name in names}


def write_tokenizer(folder: Path, words: Sequence[str], tokens: int) -> None:
    """Write a byte-pair tokenizer in CLIP's format in which each of `words` is one token and any text has some."""
    # A printable letter for each byte (GPT-2's alphabet): Latin-1 for itself, the others from U+0100 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(number) for number in (*printable, *range(256, 512 - len(printable)))]
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        # Merges added later rank lower, so they never come between the merges of an earlier word.
        parts = [*word[:-1], word[-1] + "</w>"]
        for merge in merges:
            parts = _merged(parts, merge)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _merged(parts, merges[-1])
    vocabulary += ["".join(merge) for merge in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    files.save_json({token: i for i, token in enumerate(vocabulary)}, folder / "vocab.json", overwrite=True)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    files.save_json(special, folder / "special_tokens_map.json", overwrite=True)
    more = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": tokens}
    files.save_json(special | more, folder / "tokenizer_config.json", overwrite=True)


def _merged(parts: list[str], merge: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == merge:
            out[-1] += part
        else:
            out.append(part)
    return out


def save_half(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file in float16."""
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    files.save_bytes(safetensors.torch.save(halves, metadata={"format": "pt"}), path, overwrite=True)
