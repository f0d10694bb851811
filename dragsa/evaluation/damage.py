"""Files that are right, and a thousand ways to damage them: what loads then, and what is refused.

Of weights, tiny files of every kind (a single file, a folder, a LoRA, a VAE, a textual inversion) are damaged by a
seeded hand in their headers, their bodies or their settings.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dragsa import loading
from dragsa.config import UNetConfig, VAEConfig
from dragsa.evaluation import training
from dragsa.loading import names, text_encoder
from dragsa.model import unet, vae

WIDTH = 32
TEXT: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 16,
    "hidden_act": "quick_gelu",
    "bos_token_id": 58,
    "eos_token_id": 59,
    "pad_token_id": 59,
}
State = dict[str, torch.Tensor]


# --- files that are right


def seeded(module: torch.nn.Module, seed: int) -> State:
    """Return values for a module's tensors, by their names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in module.state_dict().items()}


def networks() -> dict[str, State]:
    """Return the three networks' tensors, by component and diffusers' names."""
    with torch.device("meta"):
        first, second = unet.UNet(UNetConfig((WIDTH,) * 4, context_dim=WIDTH)), vae.VAE(VAEConfig((WIDTH,) * 4))
    modules = {
        names.UNET: first,
        names.VAE: second,
        names.TEXT: text_encoder.build(text_encoder.config_from_transformers(TEXT)),
    }
    return {
        component: {names.newest(component, name): value for name, value in seeded(module, n).items()}
        for n, (component, module) in enumerate(modules.items())
    }


def write_tokenizer(folder: Path) -> None:
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(letter * 2 for letter in letters[:6])]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: n for n, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [f"{letter} {letter}" for letter in letters[:6]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def write_originals(folder: Path) -> dict[str, Path]:
    """Write one right file or folder of each kind."""
    states = networks()
    single = {names.to_single_file(part, name): v for part, state in states.items() for name, v in state.items()}
    ema = {names.ema_name(name): v + 1 for name, v in single.items() if name.startswith(names.LDM[names.UNET])}
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{layer}.lora_down.weight": torch.ones(2, WIDTH), f"{layer}.lora_up.weight": torch.ones(WIDTH, 2)}
    kinds = {
        "single file": (folder / "single/model.safetensors", single),
        "with EMA": (folder / "ema/model.safetensors", single | ema),
        "LoRA": (folder / "lora/one.safetensors", lora | {f"{layer}.alpha": torch.tensor(1.0)}),
        "VAE": (folder / "vae/one.safetensors", states[names.VAE]),
        "embedding": (folder / "embedding/toy.safetensors", {"emb_params": torch.ones(2, WIDTH)}),
    }
    for path, state in kinds.values():
        write_tokenizer(path.parent / "tokenizer")
        save_file(state, path, {"format": "pt"})
    settings = {**training.settings(UNetConfig((WIDTH,) * 4, context_dim=WIDTH), VAEConfig((32,) * 4), 64)}
    settings["text_encoder/config.json"] = TEXT
    for name, value in settings.items():
        (folder / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "folder" / name).write_text(json.dumps(value))
    write_tokenizer(folder / "folder/tokenizer")
    for component, state in states.items():
        save_file(state, folder / "folder" / component / f"{loading.FILES[component]}.safetensors")
    return {kind: path for kind, (path, _) in kinds.items()} | {"folder": folder / "folder"}


# --- damage


def parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's header and body."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, body: bytes) -> bytes:
    text_ = json.dumps(header).encode()
    return struct.pack("<Q", len(text_)) + text_ + body


def of_header(change: Callable[[dict[str, Any], str, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    """Return a mutation that changes one tensor's entry of the header."""

    def mutate(data: bytes, hand: random.Random) -> bytes:
        header, body = parted(data)
        change(header, hand.choice([name for name in header if name != "__metadata__"]), hand)
        return joined(header, body)

    return mutate


def rename(header: dict[str, Any], name: str, hand: random.Random) -> None:
    other = hand.choice(["x", "model." + name, name + ".more", name.upper(), "lora." + name, name[: len(name) // 2]])
    header[other] = header.pop(name)


def reshape(header: dict[str, Any], name: str, hand: random.Random) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = hand.choice([shape[::-1], [*shape, 1], shape[1:], [], [-1], ["a"], None, [2**40, 2**40]])


def retype(header: dict[str, Any], name: str, hand: random.Random) -> None:
    header[name]["dtype"] = hand.choice(["F16", "BF16", "I32", "U8", "F64", "F8_E4M3", "Q4", "", None, 1, ["F32"]])


def move(header: dict[str, Any], name: str, hand: random.Random) -> None:
    begin, end = header[name]["data_offsets"]
    others = [[begin, end + 4], [begin - 4, end], [end, begin], [0], None, "x", [-1, 0]]
    header[name]["data_offsets"] = hand.choice(others)


def swap(header: dict[str, Any], name: str, hand: random.Random) -> None:
    """Exchange two tensors' places of equal size: a right file of other values."""
    one, other = header[name], header[hand.choice([key for key in header if key != "__metadata__"])]
    if one["shape"] == other["shape"]:
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def drop(header: dict[str, Any], name: str, hand: random.Random) -> None:
    del header[name]


def metadata(header: dict[str, Any], name: str, hand: random.Random) -> None:
    words = ["v", "epsilon", "", "stable-diffusion-xl-v1-base/vae", "{", "[1]", '{"r": "x"}', '{"lora_alpha": null}']
    keys = ["modelspec.prediction_type", "modelspec.architecture", "lora_adapter_metadata", "ss_clip_skip", "x"]
    header["__metadata__"] = hand.choice([{hand.choice(keys): hand.choice(words)}, 1, {"a": 1}, None])


def add(header: dict[str, Any], name: str, hand: random.Random) -> None:
    end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    more = ["v_pred", "ztsnr", "alphas_cumprod", "global_step", "first_stage_model.loss.x", f"{name}.scale_weight"]
    header[hand.choice(more)] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def cut(data: bytes, hand: random.Random) -> bytes:
    return data[: hand.randrange(len(data))]


def grow(data: bytes, hand: random.Random) -> bytes:
    return data + hand.randbytes(hand.randrange(1, 100))


def flip(data: bytes, hand: random.Random) -> bytes:
    """Change some bytes of the length or the header."""
    changed, length = bytearray(data), struct.unpack("<Q", data[:8])[0]
    for _ in range(hand.randrange(1, 4)):
        changed[hand.randrange(8 + length)] = hand.randrange(256)
    return bytes(changed)


def spoil(data: bytes, hand: random.Random) -> bytes:
    """Make a number of the body NaN or infinite, or another."""
    length = struct.unpack("<Q", data[:8])[0]
    at = 8 + length + 4 * hand.randrange((len(data) - 8 - length) // 4)
    return data[:at] + struct.pack("<f", hand.choice([float("nan"), float("inf"), 1.0])) + data[at + 4 :]


def replace_all(data: bytes, hand: random.Random) -> bytes:
    begins = [b"", b"GGUF", b"PK\x03\x04", b"\x80\x02", b"version https://git-lfs", b"<html>", b"\xff" * 8 + b"{"]
    return hand.choice(begins) + hand.randbytes(hand.randrange(50))


def of_settings(data: bytes, hand: random.Random) -> bytes:
    """Change a setting of a JSON file to something else."""
    values: list[Any] = [None, True, -1, 0, 1.5, "x", [], {}, [1, 2], 10**30, float("nan"), "v_prediction", 2**31]
    settings = json.loads(data)
    settings[hand.choice(sorted(settings))] = hand.choice(values)
    return json.dumps(settings).encode() if hand.random() < 0.7 else data[: hand.randrange(len(data))]


HEADERS = {one.__name__: of_header(one) for one in (rename, reshape, retype, move, swap, drop, metadata, add)}
BODIES = {one.__name__: one for one in (cut, grow, flip, spoil, replace_all)}


# --- outcomes


def stored(file: Path) -> State:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def holds(sd: loading.StableDiffusion) -> bool:
    """Tell if each of a model's weights is a tensor of its files, no two of them the same one."""
    values = [value for file in sd.config.files for value in stored(file).values() if value.is_floating_point()]
    left = Counter(value.float().numpy().tobytes() for value in values)
    weights = [value for module in (sd.unet, sd.vae, sd.text.model) for value in module.parameters()]
    return not Counter(value.float().numpy().tobytes() for value in weights) - left


def outcome(kind: str, path: Path, originals: dict[str, Path]) -> str:
    """Load what was damaged, and say how that ended: "loaded", "refused", or another thing that it must not."""
    try:
        if kind == "LoRA":
            lora = loading.read_lora(path)
            right = all(factor.isfinite().all() for factor in (*lora.down.values(), *lora.up.values()))
        elif kind == "embedding":
            right = all(found.vectors.isfinite().all() for found in loading.read_embeddings(path))
        else:
            sd = loading.load(originals["single file"], vae=path) if kind == "VAE" else loading.load(path)
            sd.check_finite()
            right = holds(sd)
        return "loaded" if right else "WRONG VALUES"
    except loading.WeightsError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 4000 else f"LONG MESSAGE {error}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def damaged(kind: str, original: Path, target: Path, hand: random.Random) -> tuple[str, Path]:
    """Copy an original, damage it in one way, and return the way and the copy."""
    shutil.copytree(original if kind == "folder" else original.parent, target)
    path = target if kind == "folder" else target / original.name
    file = path
    if kind == "folder":
        files = sorted(one for one in target.rglob("*") if one.suffix in (".json", ".safetensors"))
        file = hand.choice(files)
    if file.suffix == ".json":
        file.write_bytes(of_settings(file.read_bytes(), hand))
        return "settings", path
    way, mutate = hand.choice([*HEADERS.items(), *BODIES.items()])
    file.write_bytes(mutate(file.read_bytes(), hand))
    return way, path


def hostile_pickle(hand: random.Random) -> bytes:
    """Return a program of random steps, or a right sample of DragBench with some bytes changed, to be half of steps."""
    steps = bytes(pickle._Unpickler.dispatch)
    if hand.random() < 0.5:
        pieces = (bytes([hand.choice(steps)]) + hand.randbytes(hand.choice([0, 0, 1, 2, 4, 8])) for _ in range(60))
        return b"\x80\x04](" + b"".join(pieces) + b"."
    sample = {"prompt": "a", "points": [[1, 2], [3.5, 4]], "mask": np.zeros((8, 8), np.uint8)}
    data = bytearray(pickle.dumps(sample, hand.randrange(6)))
    for _ in range(hand.randrange(1, 4)):
        data[hand.randrange(len(data))] = hand.choice([hand.randrange(256), hand.choice(steps)])
    return bytes(data)


class Damaged(NamedTuple):
    """One damaged file: what it was, what was done to it, and how loading it ended."""

    kind: str
    way: str
    end: str  # "loaded", "refused", or what must not be

    @property
    def is_right(self) -> bool:
        return self.end in ("loaded", "refused")


def damaged_files(cases: int, seed: int = 0) -> list[Damaged]:
    """Damage so many files, one after the other, and load each. Raises ValueError where one that is right fails."""
    ends = []
    with tempfile.TemporaryDirectory() as temporary:
        originals = write_originals(Path(temporary) / "originals")
        for kind, path in originals.items():
            if (end := outcome(kind, path, originals)) != "loaded":
                raise ValueError(f"{kind}: the file that is right: {end}")
        for case in range(cases):
            hand, kind = random.Random(f"{seed} {case}"), [*originals][case % len(originals)]
            target = Path(temporary) / f"case{case}"
            way, path = damaged(kind, originals[kind], target, hand)
            ends.append(Damaged(kind, way, outcome(kind, path, originals)))
            shutil.rmtree(target)
    return ends
