from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with seeded values in the diffusers layout, for `dragsa.load`. Read it, do not write to it."""
    return tiny_models.write_folder(tmp_path_factory.mktemp("models") / "tiny")
