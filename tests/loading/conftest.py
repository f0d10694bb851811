"""Small models in both layouts, and no network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.write_folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return tiny_models.write_single_file(tmp_path_factory.mktemp("single") / "model.safetensors")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Whoever reaches for the network, or for this machine's own cache of tokenizers, fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
