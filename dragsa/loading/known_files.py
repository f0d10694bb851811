"""Published files by their hashes, and files that only look like SD 1.5."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dragsa.layouts.fitting import WeightsError
from dragsa.loading.names import LDM, UNET, VAE
from dragsa.loading.safetensors import TensorInfo

REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZER_REPOSITORY = "openai/clip-vit-large-patch14"


class KnownFile(NamedTuple):
    """A published file: its path in the repository, its length in bytes where that is known, and its hash."""

    name: str
    size: int | None
    sha256: str


def _known(table: str, owner: str = "") -> tuple[KnownFile, ...]:
    """Read lines of sha256, length ("-" where it is not known) and path."""
    rows = (line.split() for line in table.strip().splitlines())
    return tuple(KnownFile(owner + name, None if size == "-" else int(size), digest) for digest, size, name in rows)


KNOWN_FILES = _known("""
    6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa 4265146304 v1-5-pruned-emaonly.safetensors
    1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6 7703324286 v1-5-pruned.safetensors
    19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1 3438167540 unet/diffusion_pytorch_model.safetensors
    c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21 - unet/diffusion_pytorch_model.fp16.safetensors
    a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c 334643276 vae/diffusion_pytorch_model.safetensors
    4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c - vae/diffusion_pytorch_model.fp16.safetensors
    d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334 492265874 text_encoder/model.safetensors
    77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e - text_encoder/model.fp16.safetensors
""")
PUBLISHED_WITH_EMA = tuple(entry for entry in KNOWN_FILES if entry.name == "v1-5-pruned.safetensors")
SHIPPED_FILES = _known(
    """
    cf7a7611a61cd11bbc2e5168ee17b6d203c0f3343f91e156f0bc4e62636a774a 282776 text_encoder/model.safetensors
    ac8a74b0f6ccdec5de6dadb96d51824f913713486c96c410096367909b36639a 17290264 unet/diffusion_pytorch_model.safetensors
    80a73c0cd22a008507da37923ccaa22f3e3925dfc3cc900a8e59df137075e3a8 2668942 vae/diffusion_pytorch_model.safetensors
    """,
    owner="the small model's ",
) + _known(
    """
    386ce40bede31d4d643023ca70b6b659a5ac7b19a2abb6531eb38c53ad39c4e2 664104 text_encoder/model.safetensors
    18c02a4aa91a6a09257d10749097536de7e41ce505f6aa16d82221934fab465d 12537136 unet/diffusion_pytorch_model.safetensors
    23f35b9b365192e56a6505dc5dd9ec1469d6ef0f3756e6a72b607912704639d7 5947734 vae/diffusion_pytorch_model.safetensors
    """,
    owner="the artwork model's ",
)


class Verified(NamedTuple):
    """A file, its hash, and the published file that has this hash, if one has."""

    file: Path
    sha256: str
    known: str | None


def verify(path: str | Path, taken: Sequence[Path] = ()) -> list[Verified]:
    """Hash the files that loading takes of `path`, and look each up among the known.

    taken: those files; without any, the file itself, or every safetensors file in the folder and below it. Known are SD
    1.5's published files and those of the two models that ship. Raises WeightsError if there is no file.
    """
    path = Path(path)
    files = sorted(taken) or (sorted(path.rglob("*.safetensors")) if path.is_dir() else [path])
    if not files or not files[0].exists():
        raise WeightsError(f"{path}: there is no safetensors file")
    known = {entry.sha256: entry.name for entry in (*KNOWN_FILES, *SHIPPED_FILES)}
    hashed = ((file, sha256(file)) for file in files)
    return [Verified(file, digest, known.get(digest)) for file, digest in hashed]


def is_one_of(file: Path, published: Sequence[KnownFile]) -> bool:
    """Tell if this is one of the files: by length first, so that hardly any other file is hashed."""
    alike = [entry for entry in published if entry.size == file.stat().st_size]
    return bool(alike) and sha256(file) in [entry.sha256 for entry in alike]


def sha256(file: Path) -> str:
    """Return the file's hash in hexadecimal digits."""
    with file.open("rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


# Parts of tensors' names that tell a kind of model, each in lower case: of a file without a UNet, since whole models
# may have leftovers of these beside it; of one that is no whole model; and of its UNet alone.
_WITHOUT_UNET = (
    (("control_model.", "controlnet_", "input_hint_block."), "a ControlNet"),
    (("lora", "hada_w", "lokr_w"), "a LoRA, which only changes a model; give it with the model, by --lora"),
    (("motion_modules.",), "an animation module"),
    (("string_to_param", "emb_params"), "a textual inversion; give it with the model, by --embedding"),
)
_NOT_WHOLE = (
    (("conditioner.embedders.", "add_embedding."), "Stable Diffusion XL (SDXL)"),
    (("joint_blocks.", "double_blocks.", "double_stream"), "a diffusion transformer (SD 3, Flux)"),
)
_WITHIN = (
    (("label_emb.",), "Stable Diffusion XL (SDXL)"),
    (("joint_blocks.", "double_blocks."), "a diffusion transformer (SD 3, Flux)"),
    (("time_embed.cond_proj.",), "an LCM, whose guidance is an input of its UNet; take an SD 1.5 and the LCM-LoRA"),
)
_CHANNELS = {
    9: "an inpainting model (9 input channels)",
    8: "a model edited by instructions (InstructPix2Pix, 8 input channels)",
}
_CONTEXTS = {
    1024: "Stable Diffusion 2.x (context 1024, often v-prediction), as SD-Turbo is",
    2048: "Stable Diffusion XL (SDXL)",
}
_DISTILLED = "a distilled model without a middle block (BK-SDM, as small-sd and tiny-sd)"
# Beginnings of tensors' names where there is no UNet by the single file's names.
_ALONE = (
    (("first_stage_model.", "encoder.conv_in.", "decoder.conv_in."), "a VAE alone; give it with the model, by --vae"),
    (
        ("down_blocks.", "time_embedding."),
        "a UNet alone, by diffusers' names; it goes into a folder with the other parts",
    ),
    (("text_model.", "embeddings.token_embedding.", "cond_stage_model."), "a text encoder alone"),
)


def look_alike(tensors: Mapping[str, TensorInfo]) -> str | None:
    """Name the kind of model that a file with these tensors is; None if it may be a whole SD 1.5, or is unknown."""

    def holds(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in tensors)

    has_unet = holds(f"{LDM[UNET]}.")
    whole = has_unet and holds(f"{LDM[VAE]}.") and holds("cond_stage_model.")
    lower, of_unet = "\n".join(tensors).lower(), "\n".join(name for name in tensors if name.startswith(LDM[UNET]))
    kinds = [
        (of_unet, _WITHIN),
        *([] if whole else [(lower, _NOT_WHOLE)]),
        *([] if has_unet else [(lower, _WITHOUT_UNET)]),
    ]
    for text, marked in kinds:
        if what := next((what for marks, what in marked if any(mark in text for mark in marks)), None):
            return what
    first = tensors.get(f"{LDM[UNET]}.input_blocks.0.0.weight")
    if first and (what := _CHANNELS.get((*first.shape, 0, 0)[1])):
        return what
    keys = (info.shape for name, info in tensors.items() if info.shape and name.endswith("attn2.to_k.weight"))
    context = 1024 if holds("cond_stage_model.model.") else next(keys, (0,))[-1]
    if context in _CONTEXTS:
        return _CONTEXTS[context]
    if holds(f"{LDM[UNET]}.output_blocks.") and not holds(f"{LDM[UNET]}.middle_block."):
        return _DISTILLED
    if has_unet or holds("model_ema.diffusion_model"):
        return None
    return next((what for beginnings, what in _ALONE if holds(*beginnings)), None)
