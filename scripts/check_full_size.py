"""SD 1.5's official single file at its full width, with seeded values: read by dragsa and by diffusers, and compared.

Writes a file with every name and shape of the published one (fp16, 2.1 GB; with --float32 also as float32, 4.3 GB),
compares noise prediction, decoded picture and text embedding in float32, and measures in fresh processes how much
memory loading takes. Needs diffusers, about 12 GB of memory and 2 to 7 GB of disk; no network. Not a part of the tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig

import dragsa
from dragsa import ddim
from dragsa.config import UNetConfig, VAEConfig
from dragsa.evaluation import training
from dragsa.pictures import open_picture, save_picture, to_picture

INVENTORY = Path(__file__).parents[1] / "tests" / "golden" / "sd15_single_file_tensors.json"
TOLERANCE = 5e-4  # relative to the largest value
MEMORY = 1.2  # peak over the bare interpreter with torch, as a multiple of the file's size
PROMPTS = ["a photograph of an astronaut riding a horse", ""]

TOKENS: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
TEXT = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, **TOKENS).to_dict()


def seeded(name: str, shape: list[int]) -> Tensor:
    """Return a tensor of the file, drawn by its name; matrices of unit gain and norms near one keep results finite."""
    if name.endswith("position_ids"):
        return torch.arange(shape[-1])[None]  # (1, 77)
    if name in ("alphas_cumprod", "betas"):
        alpha_bars = ddim.training_alpha_bars()  # (1000,)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
        return (alpha_bars if name == "alphas_cumprod" else 1 - alpha_bars / before).half()
    if name == "model_ema.num_updates":
        return torch.zeros((), dtype=torch.int32)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return (noise / noise[0].numel() ** 0.5).half()
    return (0.1 * noise + (1.0 if name.endswith(".weight") else 0.0)).half()


def write_files(folder: Path, float32: bool) -> list[Path]:
    """Write the single file, as fp16 and if asked as float32 of the same values, with tokenizer and settings."""
    tensors = {name: seeded(name, shape) for name, shape in json.loads(INVENTORY.read_text()).items()}
    files = [folder / "sd15-seeded-fp16.safetensors"]
    save_file(tensors, files[0])
    if float32:
        files.append(folder / "sd15-seeded-fp32.safetensors")
        save_file({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, files[1])

    tokens = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    tokens += [f"unused{n}" for n in range(49406 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    settings = {
        **training.settings(UNetConfig(), VAEConfig(), 512),
        "text_encoder/config.json": {**TEXT, "architectures": ["CLIPTextModel"]},
        "tokenizer/vocab.json": {token: n for n, token in enumerate(tokens)},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
    }
    for name, value in settings.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return files


# --- memory: each in a process of its own

BARE = "import torch"
LOAD = "import torch, dragsa; sd = dragsa.load({path!r}, dtype=torch.{dtype})"
READ = LOAD + "; sum(p.sum() for n in (sd.unet, sd.vae, sd.text) for p in n.parameters())"
PEAK = "; print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def peak(code: str) -> int:
    """Return peak resident memory of a fresh interpreter that runs the code, in bytes."""
    done = subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1])


def measure_memory(files: list[Path]) -> bool:
    """Print a table of what loading takes; whether loading in a file's own type stays within bounds."""
    bare, good = peak(BARE), True
    print(f"\nmemory over the bare interpreter with torch ({bare / 1e6:.0f} MB)")
    print(f"{'file':30} {'as':10} {'GB':>6} {'loading':>9} {'× file':>7} {'all read':>9} {'× file':>7}")
    for file in files:
        own = "float16" if file.stem.endswith("fp16") else "float32"
        for dtype in ("float16", "float32"):
            size = file.stat().st_size
            loading, read = (peak(code.format(path=str(file), dtype=dtype)) - bare for code in (LOAD, READ))
            costs = " ".join(f"{cost / 1e9:9.2f} {cost / size:7.2f}" for cost in (loading, read))
            print(f"{file.name:30} {dtype:10} {size / 1e9:6.2f} {costs}", flush=True)
            good &= dtype != own or loading <= MEMORY * size
    return good


# --- computation


def inputs(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return latent (1, 4, side, side), context (1, 77, 768), picture (1, 3, 8 side, 8 side)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, side, side, generator=generator)
    context = torch.randn(1, 77, 768, generator=generator)
    return z, context, torch.rand(1, 3, 8 * side, 8 * side, generator=generator) * 2 - 1


@torch.no_grad()
def by_dragsa(file: Path, side: int) -> dict[str, Tensor]:
    sd = dragsa.load(file)
    z, context, picture = inputs(side)
    results = {f"noise prediction, t = {t}": sd.unet(z, t, context).eps for t in (1, 401, 981)}
    return results | {"decode": sd.decode(z), "encode": sd.encode(picture), "text embedding": sd.embed(PROMPTS)}


@torch.no_grad()
def by_diffusers(file: Path, side: int) -> dict[str, Tensor]:
    import diffusers.utils.logging
    import transformers.utils.logging
    from diffusers import StableDiffusionPipeline

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipe: Any = StableDiffusionPipeline.from_single_file(
        str(file), config=str(file.parent), torch_dtype=torch.float32, local_files_only=True
    )
    z, context, picture = inputs(side)
    results = {f"noise prediction, t = {t}": pipe.unet(z, t, context).sample for t in (1, 401, 981)}
    scale = pipe.vae.config.scaling_factor
    results["decode"] = pipe.vae.decode(z / scale).sample
    results["encode"] = pipe.vae.encode(picture).latent_dist.mean * scale
    ids = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    results["text embedding"] = pipe.text_encoder(ids["input_ids"]).last_hidden_state
    return results


def compare(file: Path, side: int) -> bool:
    """Print a table of differences; whether all are within the tolerance."""
    start = time.perf_counter()
    ours, between = by_dragsa(file, side), time.perf_counter()
    theirs, end = by_diffusers(file, side), time.perf_counter()
    took = f"{between - start:.0f} s dragsa, {end - between:.0f} s it"
    print(f"\nagainst diffusers, float32, latent {side}×{side} ({took})")
    print(f"{'':28} {'largest value':>14} {'difference':>11} {'relative':>9}")
    good = True
    for what, expected in theirs.items():
        largest, difference = expected.abs().max().item(), (ours[what] - expected).abs().max().item()
        print(f"{what:28} {largest:14.4f} {difference:11.1e} {difference / largest:9.1e}")
        good &= difference <= TOLERANCE * largest  # false for what is not finite
    return good


# --- an edit


def measure_edit(file: Path, side: int, threads: int) -> bool:
    """Edit a picture of noise on the command line, in a process of its own: 4 steps, 2 updates. Print what it cost."""
    picture, result, report = (file.parent / name for name in ("noise.png", "edited.png", "edited.json"))
    save_picture(to_picture(inputs(side // 8)[2]), picture, overwrite=True)
    near, far = side // 4, side // 2
    files = [str(picture), "--weights", str(file), "--out", str(result), "--json", str(report), "--force"]
    numbers = f"--drag {near},{near}:{far},{far} --steps 4 --drag-step 1 --control-step 1 --updates 2"
    words = "4 steps, S = A = 1, 2 updates, block14"
    print(f"\nan edit of {side}×{side} px in float32, {threads} threads: {words}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "dragsa", "edit", *files, *numbers.split(), "--threads", str(threads)], check=True
    )
    done = json.loads(report.read_text())
    for stage, seconds in done["seconds"].items():
        print(f"{stage:12} {seconds:8.1f} s")
    print(f"peak memory  {done['peak_memory_bytes'] / 1e9:8.2f} GB, the mapped file with it; stopped: {done['stop']}")
    return len(done["updates"]) == 2 and open_picture(result).size == (side, side)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the files there; without it they are removed at the end")
    parser.add_argument("--float32", action="store_true", help="measure memory with a float32 file too")
    parser.add_argument("--latent", type=int, default=16, metavar="SIDE", help="side of the latent (default 16)")
    parser.add_argument("--edit", type=int, metavar="PX", help="and edit a picture of that side, such as 512")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_files(folder, options.float32)
        print(f"{files[0]}: {files[0].stat().st_size:,} bytes")
        good = compare(files[0], options.latent)
        good &= measure_memory(files)
        if options.edit:
            good &= measure_edit(files[0], options.edit, options.threads)
    print("\nall within bounds" if good else "\nNOT within bounds")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
