"""`dragsa fetch` without a network: a stand-in for the hub writes what it is told to."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import run

from dragsa import loading
from dragsa.cli import fetch
from dragsa.cli.options import WHAT

CONTENT = b"weights"
NAME = "v1-5-pruned-emaonly.safetensors"
FILES = [NAME, *fetch.TOKENIZER]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(monkeypatch):
    """Return the stand-in: `asked`, the files that it was asked for, and `content`, what it answers each with."""
    stand_in = SimpleNamespace(asked=[], content=CONTENT)

    def hf_hub_download(repository: str, name: str, local_dir: Path, force_download: bool) -> None:
        assert repository == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        assert force_download == (local_dir / name).exists()
        stand_in.asked.append(name)
        if stand_in.content is None:
            raise KeyboardInterrupt
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(stand_in.content)

    known = loading.KnownFile(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    monkeypatch.setattr(loading, "check_online", lambda: None)
    monkeypatch.setattr(loading, "KNOWN_FILES", (known,))
    return stand_in


def test_downloads_what_is_not_there_and_checks_it(hub, tmp_path, capsys):
    assert run("fetch", "--to", tmp_path) == 0
    assert hub.asked == FILES and (tmp_path / NAME).read_bytes() == CONTENT
    said = capsys.readouterr().out
    assert "hash checked" in said and said.endswith(f"use it with --weights {tmp_path / NAME}\n")
    assert run("fetch", "--to", tmp_path) == 0
    assert len(hub.asked) == len(FILES)  # none is asked for again
    (tmp_path / NAME).write_bytes(b"damaged")  # of the right length
    (tmp_path / "tokenizer/vocab.json").write_bytes(b"")
    assert run("fetch", "single", "--to", tmp_path) == 0
    assert hub.asked[len(FILES) :] == [NAME, "tokenizer/vocab.json"]
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "tokenizer/vocab.json").read_bytes() == CONTENT


@pytest.mark.parametrize(("content", "says"), [(b"others", "the hash is not the published one"), (b"", "the hash")])
def test_a_wrong_hash_is_an_error_and_leaves_no_file(hub, tmp_path, capsys, content, says):
    hub.content = content
    assert run("fetch", "--to", tmp_path) == 2
    assert not (tmp_path / NAME).exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said


def test_an_empty_file_is_none(hub, tmp_path, capsys):
    (tmp_path / NAME).write_bytes(CONTENT)
    hub.content = b""
    assert run("fetch", "--to", tmp_path) == 2
    assert "vocab.json: what came is empty" in capsys.readouterr().err and not any((tmp_path / "tokenizer").iterdir())


def test_an_interrupt_is_one_line(hub, tmp_path, capsys):
    hub.content = None
    assert run("fetch", "--to", tmp_path) == 130
    assert capsys.readouterr().err == "dragsa: interrupted\n" and not any(tmp_path.iterdir())


def test_offline_or_without_the_package_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("fetch", "--to", tmp_path) == 2
    error = capsys.readouterr().err
    assert "HF_HUB_OFFLINE" in error and error.count("\n") == 1
    monkeypatch.setattr(loading, "check_online", lambda: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run("fetch", "folder", "--to", tmp_path) == 2
    error = capsys.readouterr().err
    assert "dragsa[fetch]" in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_every_layout_has_its_networks_tokenizer_and_known_hashes():
    known = {entry.name for entry in loading.KNOWN_FILES}
    for what in WHAT:
        names = fetch.files_of(what)
        assert {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= set(names)
        tensors = [name for name in names if name.endswith(".safetensors")]
        assert len(tensors) == (3 if "folder" in what else 1)
        assert set(tensors) <= known


def test_the_script_is_a_door_to_it(tmp_path):
    asked = [sys.executable, ROOT / "scripts/fetch_weights.py", "folder-fp16", "--to", tmp_path / "sd15"]
    done = subprocess.run(asked, env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "dragsa: error: no download: HF_HUB_OFFLINE is set\n"
