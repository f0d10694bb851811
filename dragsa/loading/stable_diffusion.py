"""A whole model, loaded from a single file or a diffusers folder.

The networks are built on the meta device, without values, and take the mapped file's tensors by assignment, so that
loading a file in its own type makes no second copy of it. Names and shapes must fit both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dragsa import pictures
from dragsa.config import UNetConfig, VAEConfig
from dragsa.layouts import fitting
from dragsa.layouts.fitting import WeightsError
from dragsa.loading import names
from dragsa.loading.folder import open_folder
from dragsa.loading.parts import check_fit
from dragsa.loading.safetensors import one_line, read_tensors
from dragsa.loading.single_file import open_single_file
from dragsa.loading.tokenizer import find_tokenizer
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
    copy: str  # which of the UNet's two copies in a single file: "EMA", or "the only one"
    stored: tuple[str, ...]  # the types found in the files: "F16", "F32", ...
    tokenizer: Path  # the folder it was read from


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The networks of one model, and pictures and prompts in and out of them."""

    unet: UNet
    vae: VAE
    text: text.TextEncoder
    config: ModelConfig

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def provenance(self) -> str:
        """The weights' origin, in words."""
        config = self.config
        which = "" if config.copy == "the only one" else f", {config.copy} weights"
        return f"{config.path} ({config.layout}{which})"

    @torch.no_grad()
    def encode(self, image: Image.Image | Tensor) -> Tensor:
        """Encode a PIL picture, or float (B, 3, H, W) in [-1, 1], to z_0, float32 (B, 4, H/8, W/8).

        z_0 is the scaled mean of the VAE's posterior.
        Raises ValueError for another shape or type, and unless H and W are multiples of 8.
        """
        if isinstance(image, Image.Image):
            image = pictures.to_tensor(image)  # (1, 3, H, W)
        if not image.is_floating_point():
            raise ValueError(f"a picture's tensor must be float in [-1, 1], came {image.dtype}")
        return self.vae.encode(image.to(self.device))

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """Decode z_0 (B, 4, h, w) to a picture, float32 (B, 3, 8h, 8w): about [-1, 1], not clamped."""
        return self.vae.decode(z0.to(self.device))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts as context, float32 (B, tokens, C). A prompt that is too long is cut, with a warning."""
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
    opened = open_folder(path, dtype) if path.is_dir() else open_single_file(path)
    check_fit(path, opened)
    tokenizer = opened.tokenizer or find_tokenizer(path)
    unet, vae, text_model = (part.module for part in opened.parts)
    try:
        encoder = text.TextEncoder(text_model, text.load_tokenizer(tokenizer))
    except Exception as error:  # whatever transformers makes of a damaged tokenizer
        raise WeightsError(f"{tokenizer}: {one_line(error)}") from None
    for part in opened.parts:
        keys = {names.newest(part.component, key): key for key in part.module.state_dict()}
        tensors = read_tensors(part.file, part.tensors, device, dtype)
        fitting.adopt(part.module, {keys[name]: tensor for name, tensor in tensors.items()})
    config = ModelConfig(
        unet=unet.config,
        vae=vae.config,
        tokens=encoder.tokens,
        path=path,
        layout="diffusers folder" if path.is_dir() else "single file",
        files=tuple(dict.fromkeys(part.file for part in opened.parts)),
        copy=opened.copy,
        stored=tuple(sorted({info.dtype for part in opened.parts for info in part.tensors.values()})),
        tokenizer=tokenizer,
    )
    return StableDiffusion(unet, vae, encoder.to(device).eval(), config)


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
