"""Weights, settings and tokenizers from files."""

from dragsa.layouts.fitting import WeightsError
from dragsa.loading.embeddings import Embedding, add_embedding, read_embeddings
from dragsa.loading.folder import FILES
from dragsa.loading.known_files import KNOWN_FILES, REPOSITORY, KnownFile, sha256, verify
from dragsa.loading.lora_files import LoRA, read_lora, save_lora
from dragsa.loading.pipeline import from_pipeline
from dragsa.loading.settings import LAYERS
from dragsa.loading.stable_diffusion import ModelConfig, StableDiffusion, files_of, load, usable
from dragsa.loading.tokenizer import check_online

__all__ = ["FILES", "KNOWN_FILES", "LAYERS", "REPOSITORY", "Embedding", "KnownFile", "LoRA", "ModelConfig"]
__all__ += ["StableDiffusion", "WeightsError", "add_embedding", "check_online", "files_of"]
__all__ += ["from_pipeline", "load", "read_embeddings", "read_lora", "save_lora", "sha256", "usable", "verify"]
