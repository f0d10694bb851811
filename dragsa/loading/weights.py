"""Safetensors to networks: SD 1.5's official single file, or a folder in the diffusers layout.

The networks are built on the meta device, without values, and take the mapped file's tensors by assignment, so that
loading a file in its own type makes no second copy of it. Names and shapes must fit both ways. Only safetensors is
opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dragsa.config import UNetConfig, VAEConfig
from dragsa.loading import published
from dragsa.loading.published import TEXT, UNET, VAE
from dragsa.model import diffusers, fitting, text, unet, vae
from dragsa.model.fitting import Shape, WeightsError, adopt, listed, misfit
from dragsa.pictures import images


@dataclass(frozen=True)
class ModelConfig:
    """What was loaded: the networks' widths, and where every part of it came from."""

    unet: UNetConfig
    vae: VAEConfig
    tokens: int  # a prompt's length as the UNet sees it
    path: Path
    layout: str  # "single file" or "diffusers folder"
    files: tuple[Path, ...]
    copy: str  # which of the UNet's two copies in a single file: "EMA", or "the only one"
    stored: tuple[str, ...]  # the types found in the files: "F16", "F32", ...
    tokenizer: Path  # the folder it was read from


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The networks of one model, and pictures and prompts in and out of them."""

    unet: unet.UNet
    vae: vae.VAE
    text: text.TextEncoder
    config: ModelConfig

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def provenance(self) -> str:
        """Where the weights came from, in words."""
        config = self.config
        which = "" if config.copy == "the only one" else f", {config.copy} weights"
        return f"{config.path} ({config.layout}{which})"

    @torch.no_grad()
    def encode(self, image: Image.Image | Tensor) -> Tensor:
        """A PIL picture, or float (B, 3, H, W) in [-1, 1] -> z_0, float32 (B, 4, H/8, W/8): the scaled posterior mean.

        Raises ValueError for another shape or type, and unless H and W are multiples of 8.
        """
        if isinstance(image, Image.Image):
            image = images.to_tensor(image)  # (1, 3, H, W)
        if not image.is_floating_point():
            raise ValueError(f"a picture's tensor must be float in [-1, 1], came {image.dtype}")
        return self.vae.encode(image.to(self.device))

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """z_0 (B, 4, h, w) -> picture, float32 (B, 3, 8h, 8w): about [-1, 1], not clamped."""
        return self.vae.decode(z0.to(self.device))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> context, float32 (B, tokens, C). A prompt that is too long is cut, with a warning."""
        return self.text.embed(prompts)


def load(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> StableDiffusion:
    """Load SD 1.5, or a model of its structure, from a single safetensors file or a diffusers folder.

    The networks are frozen, in evaluation mode, and hold `dtype`. On the CPU, tensors stored in that type stay mapped
    to the file, which must not be overwritten in place while they are used; others are converted one at a time.

    Raises WeightsError for whatever is not complete weights of SD 1.5's structure, with the names that do not fit, and
    where no tokenizer is found; ValueError for a device or type that cannot be used.
    """
    path, device = Path(path), usable(device, dtype)
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file or folder")
    opened = _open_folder(path, dtype) if path.is_dir() else _open_single_file(path)
    _check_fit(path, opened)
    tokenizer = opened.tokenizer or _find_tokenizer(path)
    try:
        encoder = text.TextEncoder(opened.text.module, text.load_tokenizer(tokenizer))
    except Exception as error:  # whatever transformers makes of a damaged tokenizer
        raise WeightsError(f"{tokenizer}: {_one_line(error)}") from None
    for part in opened.parts:
        _adopt(part.module, _read(part.sources, device, dtype), part.component)
    sources = [source for part in opened.parts for source in part.sources.values()]
    config = ModelConfig(
        unet=opened.unet.module.config,
        vae=opened.vae.module.config,
        tokens=encoder.tokens,
        path=path,
        layout="diffusers folder" if path.is_dir() else "single file",
        files=tuple(dict.fromkeys(source.file for source in sources)),
        copy=opened.copy,
        stored=tuple(sorted({source.info.dtype for source in sources})),
        tokenizer=tokenizer,
    )
    return StableDiffusion(opened.unet.module, opened.vae.module, encoder.to(device).eval(), config)


def usable(device: str | torch.device, dtype: torch.dtype) -> torch.device:
    """The device. Raises ValueError for one that is not there, and for a type that weights cannot have."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f"the weights' type must be float32, bfloat16, float16 or float64, came {dtype}")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {_one_line(error)}") from None
    if found.type == "meta":
        raise ValueError("device 'meta' holds no values; give cpu or cuda")
    return found


# --- the two layouts --------------------------------------------------------------------------------------------------


class TensorInfo(NamedTuple):
    """What a safetensors file says of one tensor; `start` and `end` are bytes from the beginning of the file."""

    dtype: str
    shape: Shape
    start: int
    end: int


class Source(NamedTuple):
    """Where a tensor comes from: a file, its name there, and what the file says of it."""

    file: Path
    name: str
    info: TensorInfo


class Part(NamedTuple):
    """One network, still without values, and the tensors found for it by their diffusers names."""

    component: str
    module: Any
    sources: dict[str, Source]
    spell: Callable[[str], str]  # a diffusers name as the file would spell it


class Opened(NamedTuple):
    """What a file or folder holds, before any value is read."""

    unet: Part
    vae: Part
    text: Part
    left_over: list[str]  # tensors that belong to no network, as the file spells them
    tokenizer: Path | None  # None where the layout has no place for one
    copy: str

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        return self.unet, self.vae, self.text


def _open_single_file(path: Path) -> Opened:
    """The official layout: all networks in one file, by the original program's names, and no settings."""
    tensors = read_header(path)
    if what := published.look_alike({name: info.shape for name, info in tensors.items()}):
        raise WeightsError(f"{path}: this is {what}; dragsa takes SD 1.5 as a whole")

    plain, ema = set(), {}
    if any(name.startswith("model_ema.diffusion_model") for name in tensors):
        with torch.device("meta"):
            plain = {published.to_single_file(UNET, name) for name in unet.UNet().state_dict()}
        ema = {flat: name for name in plain if (flat := published.ema_name(name)) in tensors}

    found: dict[str, dict[str, Source]] = {UNET: {}, VAE: {}, TEXT: {}}
    left_over = []
    for name, info in tensors.items():
        if name in published.BOOKKEEPING or name.endswith(published.POSITIONS) or (ema and name in plain):
            continue
        component, ours = published.from_single_file(ema.get(name, name)) or ("", name)
        if not component or ours in found[component]:
            left_over.append(name)
        else:
            found[component][ours] = Source(path, name, _squeezed(component, ours, info))
    if absent := [published.WORDS[component] for component, sources in found.items() if not sources]:
        raise WeightsError(f"{path}: holds no {' and no '.join(absent)}; dragsa takes SD 1.5 as a whole")

    def part(component: str, settings: Callable[[Mapping[str, Shape]], dict[str, Any]]) -> Part:
        def spell(name: str) -> str:
            theirs = published.to_single_file(component, name)
            return published.ema_name(theirs) if ema and component == UNET else theirs

        sources = found[component]
        module = _build(component, settings({name: source.info.shape for name, source in sources.items()}), path)
        return Part(component, module, sources, spell)

    parts = part(UNET, _unet_settings), part(VAE, _vae_settings), part(TEXT, _text_settings)
    return Opened(*parts, left_over, tokenizer=None, copy="EMA" if ema else "the only one")


def _unet_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """diffusers' settings for a UNet known by its shapes alone; heads and groups are SD 1.5's."""
    default = UNetConfig()
    keys = [f"down_blocks.{level}.attentions.1.transformer_blocks.0.attn2.to_k.weight" for level in range(3)]
    return {
        "block_out_channels": [
            _commonest(shapes, _witnesses(f"down_blocks.{level}"), 0, width)
            for level, width in enumerate(default.widths)
        ],
        "cross_attention_dim": _commonest(shapes, keys, 1, default.context_dim),
        "attention_head_dim": default.heads[0],
        "norm_num_groups": default.groups,
    }


def _vae_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {
        "block_out_channels": [
            _commonest(shapes, _witnesses(f"encoder.down_blocks.{level}"), 0, width)
            for level, width in enumerate(VAEConfig().widths)
        ]
    }


def _text_settings(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """transformers' settings for a CLIP text model known by its shapes alone."""
    norms = ["final_layer_norm.weight", "final_layer_norm.bias", "encoder.layers.0.layer_norm1.weight"]
    width = _commonest(shapes, norms, 0, 768)
    vocabulary = _commonest(shapes, ["embeddings.token_embedding.weight"], 0, 49408)
    return {
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,  # CLIP's last two
        "eos_token_id": vocabulary - 1,
        "max_position_embeddings": _commonest(shapes, ["embeddings.position_embedding.weight"], 0, 77),
        "hidden_size": width,
        "intermediate_size": _commonest(shapes, [f"encoder.layers.{n}.mlp.fc1.bias" for n in range(3)], 0, 4 * width),
        "num_hidden_layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}),
        "num_attention_heads": max(1, width // text.HEAD_WIDTH),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _witnesses(stage: str) -> list[str]:
    """Tensors whose first side is the stage's width; three, so that one misshapen tensor misleads nobody."""
    return [f"{stage}.resnets.1.{name}" for name in ("norm1.weight", "norm2.weight", "conv2.bias")]


def _commonest(shapes: Mapping[str, Shape], names: Sequence[str], axis: int, otherwise: int) -> int:
    """The commonest size of an axis of the named tensors; a file that has none of them fails the comparison later."""
    return mode([shapes[name][axis] for name in names if len(shapes.get(name, ())) > axis] or [otherwise])


# The noise schedule that SD 1.5 was trained on, and `ddim.Schedule` has.
NOISE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FILES = {UNET: "diffusion_pytorch_model", VAE: "diffusion_pytorch_model", TEXT: "model"}


def _open_folder(folder: Path, dtype: torch.dtype) -> Opened:
    """The diffusers layout: a folder for each network, with its settings, and one for the tokenizer."""
    for name, what in (("text_encoder_2", "Stable Diffusion XL (SDXL)"), ("transformer", "a diffusion transformer")):
        if (folder / name).is_dir():
            raise WeightsError(f"{folder}: this is {what} (it has {name}/); dragsa takes SD 1.5")
    absent = [name for name in (UNET, VAE, TEXT, "tokenizer") if not (folder / name).is_dir()]
    if absent:
        lacking = f"there is no {', no '.join(absent)} in this folder"
        raise WeightsError(f"{folder}: {_what_folder(folder) or lacking}")
    if (folder / "scheduler" / "scheduler_config.json").exists():
        scheduler = _settings(folder / "scheduler" / "scheduler_config.json")
        for key, expected in NOISE.items():
            if scheduler.get(key, expected) != expected:
                raise WeightsError(f"{folder}: the scheduler's {key} must be {expected}, came {scheduler[key]}")
        prediction = scheduler.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise WeightsError(
                f"{folder}: this model predicts {prediction} (as SD 2.x often does), not the noise; dragsa takes SD 1.5"
            )

    left_over = []

    def part(component: str) -> Part:
        settings = folder / component / "config.json"
        module = _build(component, _settings(settings), settings)
        file = _weights_file(folder / component, FILES[component], dtype)
        sources: dict[str, Source] = {}
        for name, info in read_header(file).items():
            ours = published.newest(component, name)
            if component == TEXT and ours == published.POSITIONS:
                continue
            if ours in sources:
                left_over.append(f"{component}/{name}")
            else:
                sources[ours] = Source(file, name, _squeezed(component, ours, info))
        return Part(component, module, sources, f"{component}/{{}}".format)

    parts = part(UNET), part(VAE), part(TEXT)
    if not _has_tokenizer(folder / "tokenizer"):
        raise WeightsError(f"{folder / 'tokenizer'}: neither vocab.json with merges.txt nor tokenizer.json is there")
    return Opened(*parts, left_over, tokenizer=folder / "tokenizer", copy="the only one")


def _build(component: str, settings: Mapping[str, Any], origin: Path) -> nn.Module:
    """A network without values, from its settings as diffusers or transformers write them."""
    try:
        with torch.device("meta"):
            if component == UNET:
                return unet.UNet(diffusers.unet_config(settings))
            if component == VAE:
                return vae.VAE(diffusers.vae_config(settings))
        return text.build(text.config_from_transformers(settings))
    except Exception as error:  # transformers has kinds of its own
        raise WeightsError(f"{origin}: {_one_line(error)}") from None


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise WeightsError(f"{file}: the file is missing")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise WeightsError(f"{file}: not JSON ({_one_line(error)})") from None
    if not isinstance(settings, dict):
        raise WeightsError(f"{file}: settings must be a JSON object")
    return settings


def _weights_file(folder: Path, stem: str, dtype: torch.dtype) -> Path:
    """The network's file: the full one, or the fp16 variant if that is what is wanted or all there is."""
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    for name in reversed(names) if dtype == torch.float16 else names:
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    hint = f"; {pickles[0]} is a pickle, which is never opened" if pickles else ""
    raise WeightsError(f"{folder}: there is no {names[0]}{hint}")


def _what_folder(folder: Path) -> str:
    """What a folder is that lacks a model's parts, if that can be told."""
    kind = _settings(folder / "config.json").get("_class_name", "") if (folder / "config.json").exists() else ""
    for name, what in (("ControlNet", "a ControlNet"), ("Autoencoder", "a VAE alone"), ("UNet", "a UNet alone")):
        if name in kind:
            return f"this is {what}; dragsa takes the folder with all of SD 1.5's parts"
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if known := published.look_alike({name: info.shape for name, info in read_header(file).items()}):
            return f"{file.name} is {known}; dragsa takes SD 1.5 as a whole"
    if files:
        return f"give the path of the file itself: {', '.join(file.name for file in files[:10])}"
    if any(file.suffix in PICKLES for file in folder.iterdir()):
        return "holds only pickles (PyTorch's own format), which are never opened; get the .safetensors files"
    return "the folder is empty" if not any(folder.iterdir()) else ""


# --- fitting tensors to networks --------------------------------------------------------------------------------------


def _squeezed(component: str, name: str, info: TensorInfo) -> TensorInfo:
    """The VAE's attention was made of 1×1 convolutions, and is of linear layers: sides of 1 at a shape's end go."""
    shape = info.shape
    if component == VAE and ".attentions." in name:
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
    return info._replace(shape=shape)


def _wanted(part: Part) -> dict[str, Shape]:
    """The shapes that a network wants, as the file would spell them; transformers' names differ between versions."""
    own = fitting.shapes(part.module.state_dict())
    return {part.spell(published.newest(part.component, name)): shape for name, shape in own.items()}


def _check_fit(path: Path, opened: Opened) -> None:
    wanted, given = {}, {}
    for part in opened.parts:
        wanted.update(_wanted(part))
        given.update({part.spell(name): source.info.shape for name, source in part.sources.items()})
    problem = misfit(wanted, given, opened.left_over)
    if problem:
        raise WeightsError(f"{path}: does not fit SD 1.5's structure: {problem}")
    sources = [source for part in opened.parts for source in part.sources.values()]
    if odd := [f"{source.name} {source.info.dtype}" for source in sources if source.info.dtype not in DTYPES]:
        raise WeightsError(f"{path}: {listed('tensors are not floats', odd)}")
    width, context = opened.text.module.config.hidden_size, opened.unet.module.config.context_dim
    if width != context:
        raise WeightsError(f"{path}: the text encoder is {width} wide, but the UNet takes a context of {context}")


def _adopt(module: nn.Module, tensors: Mapping[str, Tensor], component: str) -> None:
    """Give the module these tensors, by diffusers names."""
    keys = {published.newest(component, key): key for key in module.state_dict()}
    adopt(module, {keys[name]: tensor for name, tensor in tensors.items()})


# --- safetensors ------------------------------------------------------------------------------------------------------

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, without values. Raises WeightsError if it is none or is damaged."""
    size = file.stat().st_size
    with file.open("rb") as raw:
        start = raw.read(64)
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or length > 100_000_000:  # the format's own limit
            raise WeightsError(f"{file}: {_not_safetensors(file, start)}")
        raw.seek(8)
        header = raw.read(length)
    try:
        if len(header) < length:
            raise WeightsError(f"{file}: the file is cut short, within its header; download it again")
        entries = json.loads(header)
        tensors = {}
        for name in entries.keys() - {"__metadata__"}:
            begin, end = entries[name]["data_offsets"]
            tensors[name] = TensorInfo(
                entries[name]["dtype"], tuple(entries[name]["shape"]), 8 + length + begin, 8 + length + end
            )
        promised = max((info.end for info in tensors.values()), default=8 + length)
        if size < promised:
            raise WeightsError(f"{file}: the file is cut short, {size} of {promised} bytes; download it again")
        with safe_open(file, framework="pt"):  # which checks everything else that the format asks for
            pass
    except WeightsError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file}: damaged ({_one_line(error)}); download it again") from None
    return dict(sorted(tensors.items()))


def _not_safetensors(file: Path, start: bytes) -> str:
    """What a file is that does not begin as safetensors does."""
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "this is Git LFS's pointer to the weights, not the weights; run `git lfs pull`"
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if pickled or start.startswith(b"PK\x03\x04") or file.suffix.lower() in PICKLES:
        return "this is a pickle (PyTorch's own format), which can run any code and is never opened; get .safetensors"
    return "this is not a safetensors file"


def _read(sources: Mapping[str, Source], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors on the device: mapped where they are stored as wanted, else converted one at a time."""
    tensors = {}
    for file in dict.fromkeys(source.file for source in sources.values()):
        with safe_open(file, framework="pt") as mapped, file.open("rb") as raw:
            for name, source in sources.items():
                if source.file == file:
                    tensor = _read_one(mapped, raw, source, device, dtype)
                    tensors[name] = tensor.reshape(source.info.shape)
    return tensors


def _read_one(mapped: Any, raw: BufferedReader, source: Source, device: torch.device, dtype: torch.dtype) -> Tensor:
    info, stored = source.info, DTYPES[source.info.dtype]
    # Older writers let tensors begin at any byte; what is not aligned cannot be used where it lies.
    if stored == dtype and device.type == "cpu" and info.start % dtype.itemsize == 0:
        return mapped.get_tensor(source.name)
    # Read beside the mapping, or the file's pages would pile up in memory next to the converted values.
    buffer = bytearray(info.end - info.start)
    raw.seek(info.start)
    raw.readinto(buffer)
    return torch.frombuffer(buffer, dtype=stored).to(device, dtype)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- the tokenizer of a single file -----------------------------------------------------------------------------------


def _has_tokenizer(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()


def _find_tokenizer(file: Path) -> Path:
    """The folder with the tokenizer of a single file: beside it, in the Hugging Face cache, or downloaded to there."""
    beside = file.resolve().parent
    for folder in (file.parent / "tokenizer", file.parent, beside / "tokenizer", *_cached_tokenizers()):
        if _has_tokenizer(folder):
            return folder
    try:
        return _download_tokenizer()
    except Exception as error:  # of every kind, from a network
        raise WeightsError(
            f"{file}: a single file holds no tokenizer, and there is none beside it or in the Hugging Face cache; put "
            f"vocab.json and merges.txt of {published.TOKENIZER_REPOSITORY} into {file.parent / 'tokenizer'} "
            f"(download: {_one_line(error)})"
        ) from None


def _cached_tokenizers() -> Iterator[Path]:
    """Folders of the local Hugging Face cache where CLIP's tokenizer may be."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    for repository, inside in ((published.TOKENIZER_REPOSITORY, "."), (published.REPOSITORY, "tokenizer")):
        for snapshot in sorted(cache.glob(f"models--{repository.replace('/', '--')}/snapshots/*")):
            yield snapshot / inside


def _download_tokenizer() -> Path:
    """CLIP's tokenizer into the Hugging Face cache; its folder. Raises whatever a network raises."""
    check_online()
    from huggingface_hub import hf_hub_download

    for name in ("merges.txt", "vocab.json"):
        file = hf_hub_download(published.TOKENIZER_REPOSITORY, name)
    return Path(file).parent


def check_online() -> None:
    """Raises OSError soon if Hugging Face cannot be reached, where huggingface_hub tries on for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # the way there is the proxy's
    there = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = there.port or (80 if there.scheme == "http" else 443)
    try:
        socket.create_connection((there.hostname or "", port), timeout=3).close()
    except OSError as error:
        raise OSError(f"{there.hostname} cannot be reached: {error}") from None


# --- hashes -----------------------------------------------------------------------------------------------------------


class Verified(NamedTuple):
    """A file, its hash, and the published file that has this hash, if one has."""

    file: Path
    sha256: str
    known: str | None


def verify(path: str | Path) -> list[Verified]:
    """The hash of a weights file, or of every safetensors file in a folder and below it, looked up among the known.

    Known are SD 1.5's published files and those of the small model that ships.

    Raises WeightsError if there is none.
    """
    path = Path(path)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise WeightsError(f"{path}: there is no safetensors file")
    known = {entry.sha256: entry.name for entry in (*published.KNOWN_FILES, *published.SHIPPED_FILES)}
    hashed = ((file, sha256(file)) for file in files)
    return [Verified(file, digest, known.get(digest)) for file, digest in hashed]


def sha256(file: Path) -> str:
    with file.open("rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()
