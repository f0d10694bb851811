from pathlib import Path

import pytest
import tiny_models
import torch


class Graphs:
    """A backend of torch.compile that keeps each graph and runs it as it is: tracing and its guards are tested."""

    def __init__(self) -> None:
        self.traced: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        self.traced.append(graph)
        return graph


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with seeded values in the diffusers layout, for `dragsa.load`. Read it, do not write to it."""
    return tiny_models.write_folder(tmp_path_factory.mktemp("models") / "tiny")
