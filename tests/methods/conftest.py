"""A text encoder without values, for what asks only for a prompt's tokens."""

from __future__ import annotations

import pytest
import tiny_models

from dragsa.model import text


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> text.TextEncoder:
    """Words of one token: red, dot, cat, single letters. Others take more: "do" is 1, "dog" 2 (do + g)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.write_tokenizer(folder)
    config = text.config_from_transformers(tiny_models.TEXT_SETTINGS)
    return text.TextEncoder(text.build(config), text.load_tokenizer(folder))
