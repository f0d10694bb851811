"""Textual inversions (Gal et al. 2022): files of vectors that a token of the prompt stands for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dragsa.layouts.fitting import WeightsError
from dragsa.loading.safetensors import DTYPES, read_header, read_tensors
from dragsa.loading.stable_diffusion import StableDiffusion
from dragsa.loading.text_encoder import with_token

UNNAMED = "emb_params"  # the one tensor of files that leave the token to the file's name
_LAYERS = (".weight", ".bias", ".alpha")  # what ends in this is a network's, or a LoRA's


class Embedding(NamedTuple):
    """A token and its vectors (n, width), float32."""

    token: str
    vectors: Tensor


def read_embeddings(path: str | Path, token: str | None = None) -> list[Embedding]:
    """Read a textual inversion's tokens and their vectors from a safetensors file.

    A token is a tensor's name, or the file's where that is `emb_params`; or the one given, where there is one tensor.
    Raises WeightsError for another file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    header = read_header(path)
    if {"clip_l", "clip_g"} & header.keys():
        raise WeightsError(f"{path}: this is a textual inversion of Stable Diffusion XL (SDXL); dragsa takes SD 1.5's")
    odd = [name for name, info in header.items() if info.dtype not in DTYPES or len(info.shape) not in (1, 2)]
    odd += [name for name in header if name.endswith(_LAYERS)]
    if odd or not header or any(0 in info.shape for info in header.values()):
        raise WeightsError(f"{path}: not a textual inversion, which holds vectors (n, width) by their tokens")
    if token is not None and len(header) > 1:
        raise WeightsError(f"{path}: holds the tokens {', '.join(header)}, and cannot be given one")
    found = []
    for name, value in read_tensors(header).items():
        if not value.float().isfinite().all():
            raise WeightsError(f"{path}: {name} is NaN or infinite")
        own = path.stem if name == UNNAMED else name
        found.append(Embedding(own if token is None else token, value.float().reshape(-1, value.shape[-1])))
    return found


def add_embedding(sd: StableDiffusion, path: str | Path, token: str | None = None) -> StableDiffusion:
    """Return the model with a textual inversion's tokens in its prompts; `sd` itself is not changed.

    Raises WeightsError for another file, for vectors of another model, and for tokens that it has already.
    """
    text, told = sd.text, []
    for embedding in read_embeddings(path, token):
        try:
            text = with_token(text, *embedding)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from None
        told.append(f"embedding {path} as {embedding.token!r}")
    return replace(sd, text=text, config=replace(sd.config, changes=(*sd.config.changes, *told)))
