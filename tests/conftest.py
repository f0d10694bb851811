"""Fixtures of all tests. Only those that need torch import it: the process that hands out the tests does not."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of every later garbage collection, which would look at all of it."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or what the interpreter's end cannot collect is told as leaked


class Graphs:
    """A backend of torch.compile that keeps each graph and runs it as it is: tracing and its guards are tested."""

    def __init__(self) -> None:
        self.traced: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        self.traced.append(graph)
        return graph


@pytest.fixture
def graphs() -> Graphs:
    import torch

    torch._dynamo.reset()
    return Graphs()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with seeded values in the diffusers layout, for `dragsa.load`. Read it, do not write to it."""
    import tiny_models

    return tiny_models.write_folder(tmp_path_factory.mktemp("models") / "tiny")
