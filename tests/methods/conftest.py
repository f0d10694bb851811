"""A text encoder without values, for what asks only for a prompt's tokens."""

from __future__ import annotations

import pytest
import tiny_models

from dragsa.loading import text_encoder
from dragsa.loading.tokenizer import load_tokenizer
from dragsa.model import text


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> text.TextEncoder:
    """Words of one token: red, dot, cat, single letters. Others take more: "do" is 1, "dog" 2 (do + g)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.write_tokenizer(folder)
    config = text_encoder.config_from_transformers(tiny_models.TEXT_SETTINGS)
    return text.TextEncoder(text_encoder.build(config), load_tokenizer(folder))
