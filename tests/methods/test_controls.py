"""The hooks of the controls that an edit names."""

from __future__ import annotations

import pytest

from dragsa.config import EditConfig
from dragsa.hooks import MutualSelfAttention
from dragsa.methods import control_at
from dragsa.methods.masactrl import PromptMaskedSelfAttention, UnionSelfAttention


def test_mutual_is_the_samplers_own(encoder):
    hook_at = control_at(EditConfig(control_step=3, control_blocks=(12,)), encoder, "a cat", "a dot")
    assert [hook_at(step) for step in (2, 3, 49)] == [None, *[MutualSelfAttention((12,))] * 2]
    assert control_at(EditConfig(control_step=None), encoder, "a cat", "a dot")(49) is None


def test_union(encoder):
    hook_at = control_at(EditConfig(control="union", control_blocks=(12, 13)), encoder, "a cat", "a dot")
    assert hook_at(10) == UnionSelfAttention((12, 13))


def test_masked_looks_for_the_objects_words_in_each_prompt(encoder):
    config = EditConfig(control="masked", object_words=("dog", "dot"), mask_blocks=(5, 6), mask_threshold=0.4)
    hook_at = control_at(config, encoder, "a dog", "red dot")
    first, second = hook_at(10), hook_at(11)
    assert isinstance(first, PromptMaskedSelfAttention) and isinstance(second, PromptMaskedSelfAttention)
    assert (first.mask_blocks, first.blocks, first.threshold) == ((5, 6), config.control_blocks, 0.4)
    assert (first.source_tokens, first.target_tokens) == ((2, 3), (2,))
    assert second.maps is not first.maps  # each step looks anew
    with pytest.raises(ValueError, match="the prompt 'a cat' has none of the object's words dog, dot"):
        control_at(config, encoder, "a dog", "a cat")


def test_object_words_are_told_without_case_and_punctuation(encoder):
    for words in (("dot",), ("Dot.",), ("“dot”", ",")):
        config = EditConfig(control="masked", object_words=words)
        for prompt, tokens in (("red dot", (2,)), ("Red DOT", (2,)), ("red dot, cat", (2, 3)), ("dot; red", (1, 2))):
            hook = control_at(config, encoder, prompt, prompt)(10)
            assert isinstance(hook, PromptMaskedSelfAttention)
            assert hook.source_tokens == tokens
    with pytest.raises(ValueError, match="has none of the object's words do"):
        control_at(EditConfig(control="masked", object_words=("do",)), encoder, "a dot", "a dot")
