"""The tokenizer: read from its folder; that of a single file, which holds none, is found here or downloaded."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dragsa.layouts.fitting import WeightsError
from dragsa.loading.known_files import REPOSITORY, TOKENIZER_REPOSITORY
from dragsa.loading.safetensors import one_line

FEW = 10_000  # tokens, under which a model knows the words of its vocabulary alone


def has_tokenizer(folder: Path) -> bool:
    """Tell if the folder holds CLIP's tokenizer, in either of its two forms."""
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder (`vocab.json` and `merges.txt`, or `tokenizer.json`), without a network."""
    import transformers

    # Version 4 has a second class for the one that reads tokenizer.json; version 5 has only that one.
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    return kind.from_pretrained(str(folder), local_files_only=True)


def check_whole(folder: Path) -> None:
    """Raise a ValueError where `merges.txt` does not make the tokens of `vocab.json`.

    Of a file that was cut short the words that are missing would be spelt by letters, without an error. A byte has two
    tokens, the start and the end of a text one each, and each merge makes one: CLIP's 49,408 are 512, 48,894 and 2.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return  # which is read in place of the two
    tokens = json.loads((folder / "vocab.json").read_bytes())
    made = {"".join(line.split()) for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()}
    words = [token for token in tokens if len(token.removesuffix("</w>")) > 1 and not re.fullmatch(r"<\|.*\|>", token)]
    if lost := [word for word in words if word not in made]:
        raise ValueError(
            f"merges.txt makes {len(words) - len(lost)} of the {len(words)} words in vocab.json, and not "
            f"{lost[0]!r}: it was cut short, or is another model's; get both again"
        )


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """Return the words that a tokenizer of few tokens, as the small model's, spells in parts; of a large one none."""
    if len(tokenizer) >= FEW:
        return []
    words = dict.fromkeys(word.strip(",.;:!?()'\"") for word in prompt.split())
    return [word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) > 1]


def find_tokenizer(file: Path, *others: Path) -> Path:
    """Return the folder with a single file's tokenizer: beside it, in the Hugging Face cache, or downloaded to there.

    others: files or folders beside which it may be as well. Raises WeightsError where there is none.
    """
    beside = [folder for one in (file, *others) for folder in (one.parent, one.resolve().parent, one)]
    folders = [inside for folder in beside for inside in (folder / "tokenizer", folder)]
    for folder in (*folders, *_cached_tokenizers()):
        if has_tokenizer(folder):
            return folder
    try:
        return _download_tokenizer()
    except Exception as error:  # a network raises errors of every kind
        raise WeightsError(
            f"{file}: a single file holds no tokenizer, and there is none beside it or in the Hugging Face cache; put "
            f"vocab.json and merges.txt of {TOKENIZER_REPOSITORY} into {file.parent / 'tokenizer'} "
            f"(download: {one_line(error)})"
        ) from None


def _cached_tokenizers() -> Iterator[Path]:
    """Yield folders of the local Hugging Face cache where CLIP's tokenizer may be; none where nobody is at home."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"))  # without a home as it is
    for repository, inside in ((TOKENIZER_REPOSITORY, "."), (REPOSITORY, "tokenizer")):
        for snapshot in sorted(cache.glob(f"models--{repository.replace('/', '--')}/snapshots/*")):
            yield snapshot / inside


def _download_tokenizer() -> Path:
    """Download CLIP's tokenizer into the Hugging Face cache and return its folder. Raises whatever a network raises."""
    check_online()
    from huggingface_hub import hf_hub_download

    for name in ("merges.txt", "vocab.json"):
        file = hf_hub_download(TOKENIZER_REPOSITORY, name)
    return Path(file).parent


def check_online() -> None:
    """Raise OSError soon if Hugging Face cannot be reached, where huggingface_hub tries on for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # only the proxy knows if it can be reached
    there = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = there.port or (80 if there.scheme == "http" else 443)
    try:
        socket.create_connection((there.hostname or "", port), timeout=3).close()
    except OSError as error:
        raise OSError(f"{there.hostname} cannot be reached: {error}") from None
