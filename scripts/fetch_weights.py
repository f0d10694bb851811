"""Download Stable Diffusion 1.5's published weights to weights/sd15, or to where --to says.

An interrupted download is taken up where it stopped. Every weights file is checked against its published sha256; one
that is there already, with the right hash, is not downloaded again. Needs huggingface_hub: `pip install dragsa[fetch]`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dragsa import loading

OF_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER = tuple(f"tokenizer/{name}" for name in OF_TOKENIZER)
SETTINGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


def folder_files(variant: str) -> tuple[str, ...]:
    networks = [f"{folder}/{stem}{variant}.safetensors" for folder, stem in loading.FILES.items()]
    return (*SETTINGS, *TOKENIZER, *networks)


WHAT = {
    "single": ("v1-5-pruned-emaonly.safetensors", *TOKENIZER),
    "single-both": ("v1-5-pruned.safetensors", *TOKENIZER),
    "folder": folder_files(""),
    "folder-fp16": folder_files(".fp16"),
}
KNOWN = {entry.name: entry for entry in loading.KNOWN_FILES}


def intact(file: Path, known: loading.KnownFile) -> bool:
    """Return True if the file is there with the published length and hash."""
    if not file.is_file() or (known.size is not None and file.stat().st_size != known.size):
        return False
    return loading.sha256(file) == known.sha256


def fetch(names: Sequence[str], target: Path) -> None:
    """Download the files, by their names in the repository, into `target`. Raises OSError that says why not."""
    for name in names:
        known = KNOWN.get(name)
        file = target / name
        if intact(file, known) if known else file.is_file():
            print(f"{file}: is there already")
            continue
        download(name, target)
        if known and not intact(file, known):
            file.unlink(missing_ok=True)
            reason = f"the hash is not the published one ({known.sha256}); the file was removed, try again"
            raise OSError(f"{file}: {reason}")
        print(f"{file}: {'hash checked' if known else 'downloaded'}")


def download(name: str, target: Path) -> None:
    """Download one file from the repository, resumed where an earlier download of it stopped."""
    try:
        loading.check_online()
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise OSError("huggingface_hub is not installed: pip install 'dragsa[fetch]'") from None
    except OSError as error:
        raise OSError(f"no download: {error}") from None
    try:
        hf_hub_download(loading.REPOSITORY, name, local_dir=target)
    except Exception as error:  # of every kind, from a network
        raise OSError(f"{name}: {' '.join(str(error).split())}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        nargs="?",
        default="single",
        choices=WHAT,
        help="single: one file with the EMA weights, 4.3 GB (the default); single-both: with the plain weights too, "
        "7.7 GB; folder: the diffusers layout, 4.3 GB; folder-fp16: the same in half precision, 2.1 GB",
    )
    parser.add_argument("--to", type=Path, default=Path("weights/sd15"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        fetch(WHAT[options.what], options.to)
    except OSError as error:
        print(f"fetch_weights: {error}", file=sys.stderr)
        return 2
    print(f"use it with --weights {options.to / WHAT[options.what][0] if 'single' in options.what else options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
