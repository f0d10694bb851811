"""`dragsa fetch`: Stable Diffusion 1.5's published weights, from the Hugging Face hub.

An interrupted download is taken up where it stopped. Every weights file is checked against its published sha256; one
that is there already, with the right hash, is not downloaded again. Needs huggingface_hub: `pip install dragsa[fetch]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dragsa.cli.options import WHAT, Options
from dragsa.cli.progress import Progress

if TYPE_CHECKING:
    from dragsa import loading

OF_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER = tuple(f"tokenizer/{name}" for name in OF_TOKENIZER)
SETTINGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


def files_of(what: str) -> tuple[str, ...]:
    """Return the files of a layout, one of `WHAT`, by their names in the repository."""
    from dragsa import loading

    if what.startswith("single"):
        return f"v1-5-pruned{'' if what == 'single-both' else '-emaonly'}.safetensors", *TOKENIZER
    variant = ".fp16" if what == "folder-fp16" else ""
    networks = [f"{folder}/{stem}{variant}.safetensors" for folder, stem in loading.FILES.items()]
    return *SETTINGS, *TOKENIZER, *networks


def run_fetch(options: Options, progress: Progress) -> int:
    """Download a layout's files and say how to use them. Raises OSError that says why not."""
    what, target = options.get("what", WHAT[0]), options.get("to", Path("weights/sd15"))
    names = files_of(what)
    fetch(names, target)
    print(f"use it with --weights {target / names[0] if 'single' in what else target}")
    return 0


def fetch(names: Sequence[str], target: Path) -> None:
    """Download the files, by their names in the repository, into `target`. Raises OSError that says why not."""
    from dragsa import loading

    published = {entry.name: entry for entry in loading.KNOWN_FILES}
    for name in names:
        known, file = published.get(name), target / name
        if is_whole(file, known):
            print(f"{file}: is there already")
            continue
        download(name, target)
        if not is_whole(file, known):
            file.unlink(missing_ok=True)
            reason = f"the hash is not the published one ({known.sha256})" if known else "what came is empty"
            raise OSError(f"{file}: {reason}; the file was removed, try again")
        print(f"{file}: {'hash checked' if known else 'downloaded'}")


def is_whole(file: Path, known: loading.KnownFile | None) -> bool:
    """Return True if the file is there with the published length and hash; one of which none is, if it is not empty."""
    from dragsa import loading

    if not file.is_file() or (known and known.size is not None and file.stat().st_size != known.size):
        return False
    return loading.sha256(file) == known.sha256 if known else file.stat().st_size > 0


def download(name: str, target: Path) -> None:
    """Download one file from the repository, resumed where an earlier download of it stopped.

    It gets its name once it is whole.
    """
    from dragsa import loading

    try:
        loading.check_online()
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise OSError("huggingface_hub is not installed: pip install 'dragsa[fetch]'") from None
    except OSError as error:
        raise OSError(f"no download: {error}") from None
    try:
        # A file that is there and was refused is not to be believed by the hub's own notes on it either.
        hf_hub_download(loading.REPOSITORY, name, local_dir=target, force_download=(target / name).exists())
    except Exception as error:  # of every kind, from a network
        raise OSError(f"{name}: {' '.join(str(error).split())}") from None
