"""The download script without a network: a stand-in for the hub writes what it is told to."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import fetch_weights
import pytest

from dragsa import loading

CONTENT = b"weights"
NAME = "model.safetensors"


@pytest.fixture
def hub(monkeypatch):
    """Return the list of files that the hub was asked for; it answers each with CONTENT."""
    asked = []

    def hf_hub_download(repository: str, name: str, local_dir: Path) -> None:
        assert repository == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        asked.append(name)
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(CONTENT)

    known = loading.KnownFile(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    monkeypatch.setattr(loading, "check_online", lambda: None)
    monkeypatch.setitem(fetch_weights.KNOWN, NAME, known)
    monkeypatch.setitem(fetch_weights.WHAT, "single", (NAME, "tokenizer/vocab.json"))
    return asked


def test_downloads_what_is_not_there_and_checks_it(hub, tmp_path, capsys):
    assert fetch_weights.main(["--to", str(tmp_path)]) == 0
    assert hub == [NAME, "tokenizer/vocab.json"] and (tmp_path / NAME).read_bytes() == CONTENT
    assert "hash checked" in capsys.readouterr().out
    assert fetch_weights.main(["--to", str(tmp_path)]) == 0
    assert len(hub) == 2  # neither is asked for again
    (tmp_path / NAME).write_bytes(b"damaged")  # of the right length
    assert fetch_weights.main(["--to", str(tmp_path)]) == 0
    assert hub[2:] == [NAME] and (tmp_path / NAME).read_bytes() == CONTENT


def test_a_wrong_hash_is_an_error_and_leaves_no_file(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(fetch_weights.KNOWN, NAME, loading.KnownFile(NAME, None, 64 * "0"))
    assert fetch_weights.main(["--to", str(tmp_path)]) == 2
    assert not (tmp_path / NAME).exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_offline_or_without_the_package_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_weights.main(["--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "HF_HUB_OFFLINE" in error and error.count("\n") == 1
    monkeypatch.setattr(loading, "check_online", lambda: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert fetch_weights.main(["folder", "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "dragsa[fetch]" in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_every_layout_has_its_networks_tokenizer_and_known_hashes():
    for what, names in fetch_weights.WHAT.items():
        assert {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= set(names)
        tensors = [name for name in names if name.endswith(".safetensors")]
        assert len(tensors) == (3 if "folder" in what else 1)
        assert all(name in fetch_weights.KNOWN for name in tensors)
