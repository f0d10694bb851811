"""Weights, settings and tokenizers from files."""

from dragsa.layouts.fitting import WeightsError
from dragsa.loading.folder import FILES
from dragsa.loading.known_files import KNOWN_FILES, REPOSITORY, KnownFile, sha256, verify
from dragsa.loading.lora_files import LoRA, read_lora, save_lora
from dragsa.loading.pipeline import from_pipeline
from dragsa.loading.stable_diffusion import ModelConfig, StableDiffusion, load, usable
from dragsa.loading.tokenizer import check_online

__all__ = ["FILES", "KNOWN_FILES", "REPOSITORY", "KnownFile", "LoRA", "ModelConfig", "StableDiffusion"]
__all__ += [
    "WeightsError",
    "check_online",
    "from_pipeline",
    "load",
    "read_lora",
    "save_lora",
    "sha256",
    "usable",
    "verify",
]
