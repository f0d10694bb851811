"""The tokenizer of a single file: beside it, in the cache, or nowhere."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import tiny_models
from loading_checks import refused, relinked

from dragsa import loading
from dragsa.loading import tokenizer


def test_tokenizer_beside_the_file_or_in_the_cache(single, tmp_path, monkeypatch):
    file = tmp_path / "weights" / "model.safetensors"
    file.parent.mkdir()
    file.symlink_to(single)
    assert loading.load(file).config.tokenizer == single.parent / "tokenizer"  # behind the link

    file.unlink()
    file.write_bytes(single.read_bytes())
    message = refused(file, "holds no tokenizer", "vocab.json and merges.txt", str(file.parent / "tokenizer"))
    assert "HF_HUB_OFFLINE" in message
    sd15 = tmp_path / "hub/models--stable-diffusion-v1-5--stable-diffusion-v1-5/snapshots/0/tokenizer"
    tiny_models.write_tokenizer(sd15)
    assert loading.load(file).config.tokenizer == sd15
    clip = tmp_path / "hub/models--openai--clip-vit-large-patch14/snapshots/0"
    tiny_models.write_tokenizer(clip)
    assert loading.load(file).config.tokenizer == clip
    tiny_models.write_tokenizer(file.parent)
    assert loading.load(file).config.tokenizer == file.parent
    tiny_models.write_tokenizer(file.parent / "tokenizer")
    assert loading.load(file).config.tokenizer == file.parent / "tokenizer"


def test_no_network_is_an_error_at_once(single, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError("unreachable")))
    (tmp_path / "model.safetensors").write_bytes(single.read_bytes())
    refused(tmp_path / "model.safetensors", "holds no tokenizer", "unreachable")


def test_tokenizer_of_another_model(single, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(single.read_bytes())
    tiny_models.write_tokenizer(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary["ß"] = len(vocabulary)
    tiny_models.write_json(tmp_path / "vocab.json", vocabulary)
    refused(tmp_path / "model.safetensors", f"{len(vocabulary)} tokens", str(len(vocabulary) - 1))


def test_merges_that_were_cut_short_are_refused(folder, tmp_path):
    """With fewer merges every word that they made would be spelt by its letters, in silence."""
    relinked(folder, tmp_path / "model", without="tokenizer")
    tiny_models.write_tokenizer(tmp_path / "model/tokenizer")
    merges = tmp_path / "model/tokenizer/merges.txt"
    text = merges.read_text()
    loading.load(tmp_path / "model")
    for cut, word in ((text[:-8], "cat</w>"), (text[: text.index("d o")], "do"), ("", "re")):
        merges.write_text(cut)
        assert "cut short" in refused(
            tmp_path / "model", "merges.txt makes", "of the 6 words in vocab.json", repr(word)
        )
    merges.write_text(text)
    tokenizer.load_tokenizer(merges.parent).save_pretrained(merges.parent)  # tokenizer.json is read in their place
    merges.write_text("")
    assert loading.load(tmp_path / "model").text.tokenise(["cat"])[0, 1] == tiny_models.VOCABULARY.index("cat</w>")


def test_the_small_model_has_all_its_merges():
    tokenizer.check_whole(Path(__file__).parents[2] / "weights/small/tokenizer")


def test_docstrings_are_asked_for(folder):
    """Without them transformers cannot be imported, and says so in many lines."""
    code = f"import dragsa; dragsa.load({str(folder)!r})"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("which Python leaves out under -OO: run it with -O")
