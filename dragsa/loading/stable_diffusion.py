"""A whole model, loaded from a single file or a diffusers folder.

The networks are built on the meta device, without values, and take the mapped file's tensors by assignment, so that
loading a file in its own type makes no second copy of it. Names and shapes must fit both ways.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dragsa import pictures
from dragsa.config import UNetConfig, VAEConfig
from dragsa.files import WHERE
from dragsa.layouts import fitting
from dragsa.layouts.fitting import WeightsError
from dragsa.loading import names
from dragsa.loading.folder import find_snapshot, open_folder
from dragsa.loading.one_network import open_one
from dragsa.loading.parts import Opened, Wanted, check_fit, check_together
from dragsa.loading.safetensors import one_line, read_tensors
from dragsa.loading.single_file import open_single_file
from dragsa.loading.tokenizer import check_whole, find_tokenizer, load_tokenizer, unknown_words
from dragsa.model import text
from dragsa.model.unet import UNet
from dragsa.model.vae import VAE


@dataclass(frozen=True)
class ModelConfig:
    """A loaded model's description: the networks' widths, and where every part of it came from."""

    unet: UNetConfig
    vae: VAEConfig
    tokens: int  # a prompt's length as the UNet sees it
    path: Path
    layout: str  # "single file" or "diffusers folder"
    files: tuple[Path, ...]
    copy: str  # which of the UNet's two copies in a single file: "EMA", "plain", or "the only one"
    stored: tuple[str, ...]  # the types found in the files: "F16", "F32", ...
    tokenizer: Path  # the folder it was read from
    changes: tuple[str, ...] = ()  # what makes it another model than the files', in words
    unused: tuple[str, ...] = ()  # what the files hold and no result depends on
    notes: tuple[str, ...] = ()  # what the files say to the one who runs the model


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The networks of one model, and pictures and prompts in and out of them."""

    unet: UNet
    vae: VAE
    text: text.TextEncoder
    config: ModelConfig

    def __repr__(self) -> str:
        dtype = str(self.unet.dtype).removeprefix("torch.")
        return f"StableDiffusion({self.provenance}, {dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def provenance(self) -> str:
        """The weights' origin, in words."""
        config = self.config
        which = [] if config.copy == "the only one" else [f"{config.copy} weights"]
        kind = ["v-prediction"] if config.unet.prediction == "v_prediction" else []
        return f"{config.path} ({', '.join([config.layout, *which, *kind, *config.changes])})"

    def check_finite(self) -> None:
        """Raise a WeightsError that lists the weights which are NaN or infinite, if there are any."""
        if self._odd:
            raise WeightsError(f"{self.config.path}: {fitting.listed('weights are NaN or infinite', self._odd)}")

    @cached_property
    def _odd(self) -> list[str]:
        """Names of the weights that are not finite, looked for once: it takes reading all of them."""
        parts: dict[str, nn.Module] = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text.model}
        named = (
            (f"{part}.{name}", value) for part, module in parts.items() for name, value in module.named_parameters()
        )
        # The sum of a tensor is not finite if one of its values is not; where it is too large itself, look again.
        return [
            name
            for name, value in named
            if not value.sum(dtype=torch.float32).isfinite() and not value.float().isfinite().all()
        ]

    @torch.no_grad()
    def encode(self, image: Image.Image | Tensor) -> Tensor:
        """Encode a PIL picture, or float (B, 3, H, W) in [-1, 1], to z_0, float32 (B, 4, H/8, W/8).

        z_0 is the scaled mean of the VAE's posterior.
        Raises ValueError for another shape or type, and unless H and W are multiples of 8.
        """
        if isinstance(image, Image.Image):
            image = pictures.to_tensor(image)  # (1, 3, H, W)
        if not isinstance(image, Tensor):
            came = type(image).__name__
            raise ValueError(f"encode takes a picture (pictures.open_picture) or a tensor (B, 3, H, W), came {came}")
        if not image.is_floating_point():
            raise ValueError(f"a picture's tensor must be float in [-1, 1], came {image.dtype}")
        return self.vae.encode(image.to(self.device))

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """Decode z_0 (B, 4, h, w) to a picture, float32 (B, 3, 8h, 8w): about [-1, 1], not clamped."""
        return self.vae.decode(z0.to(self.device))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts as context, float32 (B, tokens, C).

        A prompt that is too long is cut, with a warning. Words that a small model has not met are warned of once.
        """
        words = dict.fromkeys(word for prompt in prompts for word in unknown_words(self.text.tokenizer, prompt))
        if new := [word for word in words if word not in self._told]:
            warnings.warn(f"the model does not know the words: {', '.join(new)}", stacklevel=2)
            self._told.update(new)
        return self.text.embed(prompts)

    @cached_property
    def _told(self) -> set[str]:
        """Words that have been warned of."""
        return set()


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    ema: bool | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    clip_skip: int = 1,
) -> StableDiffusion:
    """Load SD 1.5, or a model of its structure, from a single safetensors file or a diffusers folder.

    The networks are frozen, in evaluation mode, and hold `dtype`. On the CPU, tensors stored in that type stay mapped
    to the file, which must not be overwritten in place while they are used; others are converted one at a time.

    ema: of a file with two copies of its UNet take the running mean; None does so for the published file alone. vae,
    text_encoder: files or folders to take these networks from. clip_skip: the text encoder's layer that prompts are
    read at, 1 for its last, 2 for the one before. What a file holds beside its networks is named in a warning.

    Raises WeightsError for whatever is not complete weights of SD 1.5's structure, with the names that do not fit, and
    where no tokenizer is found; ValueError for a device or type that cannot be used.
    """
    if sys.flags.optimize > 1:
        raise ValueError("transformers reads its own docstrings, which Python leaves out under -OO: run it with -O")
    path, device = find_snapshot(Path(path)), usable(device, dtype)
    instead = _instead(vae, text_encoder)
    opened = open_model(path, Wanted(dtype, ema, clip_skip), instead)
    if opened.unused:
        warnings.warn(f"{path}: not used: {fitting.listed('names', opened.unused)}", stacklevel=2)
    parts = opened.parts
    tokenizer = opened.tokenizer or find_tokenizer(path, *([instead[names.TEXT]] if names.TEXT in instead else []))
    try:
        check_whole(tokenizer)
        encoder = text.TextEncoder(parts[names.TEXT].module, load_tokenizer(tokenizer))
    except Exception as error:  # whatever transformers makes of a damaged tokenizer
        raise WeightsError(f"{tokenizer}: {one_line(error)}") from None
    for part in parts.values():
        keys = {names.newest(part.component, key): key for key in part.module.state_dict()}
        tensors = read_tensors(part.tensors, device, dtype)
        fitting.adopt(part.module, {keys[name]: tensor for name, tensor in tensors.items()})
    unet, decoder = parts[names.UNET].module, parts[names.VAE].module
    skipped = () if clip_skip == 1 else (f"clip skip {clip_skip}",)
    config = ModelConfig(
        unet=unet.config,
        vae=decoder.config,
        tokens=encoder.tokens,
        path=path,
        layout="diffusers folder" if path.is_dir() else "single file",
        files=opened.files,
        copy=opened.copy,
        stored=tuple(sorted({info.dtype for part in parts.values() for info in part.tensors.values()})),
        tokenizer=tokenizer,
        changes=(*(f"{names.WORDS[name]} of {other}" for name, other in instead.items()), *skipped),
        unused=opened.unused,
        notes=opened.notes,
    )
    return StableDiffusion(unet, decoder, encoder.to(device).eval(), config)


def files_of(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    ema: bool | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    clip_skip: int = 1,
) -> tuple[Path, ...]:
    """Return the weights files that `load` takes under these arguments. Raises WeightsError as it does."""
    return open_model(find_snapshot(Path(path)), Wanted(dtype, ema, clip_skip), _instead(vae, text_encoder)).files


def _instead(vae: str | Path | None, text_encoder: str | Path | None) -> dict[str, Path]:
    """Return the files or folders that take the place of a model's networks, by component."""
    others = {names.VAE: vae, names.TEXT: text_encoder}
    return {name: Path(other) for name, other in others.items() if other is not None}


def open_model(path: Path, wanted: Wanted = Wanted(), instead: Mapping[str, Path] | None = None) -> Opened:  # noqa: B008
    """Open a model without reading a value: its networks, all of which fit. instead: by component, where from."""
    instead = {} if instead is None else instead
    if not path.exists():
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1)
        what = f"did you mean {path.with_name(near[0])}?" if near else WHERE
        raise WeightsError(f"{path}: there is no such file or folder; {what}")
    opened = (open_folder if path.is_dir() else open_single_file)(path, wanted, instead)
    check_fit(path, opened.parts.values(), opened.left_over)
    unused = opened.unused
    for component, other in instead.items():
        network = open_one(other, component, wanted)
        check_fit(other, [network.part], network.left_over)
        opened.parts[component] = network.part
        unused = (*unused, *(f"{name} of {other}" for name in network.unused))
    check_together(path, opened.parts)
    parts = {component: opened.parts[component] for component in names.WORDS}
    return opened._replace(parts=parts, unused=unused)


def usable(device: str | torch.device, dtype: torch.dtype) -> torch.device:
    """Return the device. Raises ValueError for one that is not there, and for a type that weights cannot have."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f"the weights' type must be float32, bfloat16, float16 or float64, came {dtype}")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = one_line(error).partition(". ")[0]
        if not str(device).startswith("cuda"):  # PyTorch's words for other names are pages
            reason = "PyTorch has no such device here; give cpu or cuda"
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
    if found.type == "meta":
        raise ValueError("device 'meta' holds no values; give cpu or cuda")
    return found
