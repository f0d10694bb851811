"""CLIP's text model from its config: without values, and of its numbers alone."""

from __future__ import annotations

import pytest
import tiny_models

from dragsa.loading import text_encoder


def test_built_without_values_but_for_positions():
    model = text_encoder.build(text_encoder.config_from_transformers(tiny_models.TEXT_SETTINGS))
    assert all(value.is_meta for value in model.parameters())
    assert not any(value.is_meta for value in model.buffers())


def test_no_name_in_a_config_reaches_further_than_clips_numbers() -> None:
    """Under a key such as "attn_implementation" a name would have transformers fetch a kernel, which is code."""
    settings = {**tiny_models.TEXT_SETTINGS, "hidden_size": 64}
    plain = text_encoder.config_from_transformers(settings).to_dict()
    names = ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"]
    names += ["auto_map", "quantization_config", "custom_pipelines", "_name_or_path", "dtype", "torch_dtype"]
    odd = text_encoder.config_from_transformers({**settings, **dict.fromkeys(names, "owner/kernel")})
    assert odd.to_dict() == plain and "owner/kernel" not in repr(vars(odd))


def test_numbers_that_are_none_are_named() -> None:
    wrong = {"hidden_size": 64.5, "num_hidden_layers": 2**31, "vocab_size": "many", "eos_token_id": -3}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"text encoder config: {name} must be a whole number up to"):
            text_encoder.config_from_transformers({**tiny_models.TEXT_SETTINGS, name: value})


def test_another_kind_of_model_is_named() -> None:
    with pytest.raises(ValueError, match="'t5'"):
        text_encoder.config_from_transformers(tiny_models.TEXT_SETTINGS | {"model_type": "t5"})
