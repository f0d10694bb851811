"""The hooks of the controls that an edit names."""

from __future__ import annotations

import pytest

from dragsa.config import EditConfig
from dragsa.hooks import Composed
from dragsa.methods import control_hook
from dragsa.methods.masactrl import CrossMaps, PromptMaskedSelfAttention, UnionSelfAttention


def test_mutual_is_the_samplers_own(encoder):
    assert control_hook(EditConfig(), encoder, "a cat", "a dot") is None


def test_union(encoder):
    new_hook = control_hook(EditConfig(control="union", control_blocks=(12, 13)), encoder, "a cat", "a dot")
    assert new_hook is not None and new_hook() == UnionSelfAttention((12, 13))


def test_masked_looks_for_the_objects_words_in_each_prompt(encoder):
    config = EditConfig(control="masked", object_words=("dog", "dot"), mask_blocks=(5, 6), mask_threshold=0.4)
    new_hook = control_hook(config, encoder, "a dog", "red dot")
    assert new_hook is not None
    first, second = (new_hook() for _ in range(2))
    assert isinstance(first, Composed) and isinstance(second, Composed)
    maps, masked = first.hooks
    assert isinstance(maps, CrossMaps) and isinstance(masked, PromptMaskedSelfAttention)
    assert (maps.blocks, masked.blocks, masked.threshold) == ((5, 6), config.control_blocks, 0.4)
    assert (masked.source_tokens, masked.target_tokens) == ((2, 3), (2,))
    assert isinstance(second.hooks[0], CrossMaps)
    assert second.hooks[0].maps is not maps.maps  # each step looks anew
    with pytest.raises(ValueError, match="the prompt 'a cat' has none of the object's words dog, dot"):
        control_hook(config, encoder, "a dog", "a cat")
