"""The controls that an edit names, each as attention hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dragsa.config import EditConfig
from dragsa.hooks import AttentionHook
from dragsa.methods import masactrl, prompt_to_prompt
from dragsa.model.text import TextEncoder


def control_hook(
    config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str
) -> Callable[[], AttentionHook] | None:
    """Return a function that makes a step's hook, for the control that the config names.

    None for "mutual", `hooks.MutualSelfAttention`, which the samplers have themselves. Raises ValueError for a "masked"
    control if a prompt has none of the object's words.
    """
    if config.control == "mutual":
        return None
    if config.control == "union":
        return partial(masactrl.UnionSelfAttention, config.control_blocks)
    return partial(
        masactrl.masked_by_prompt,
        _object_tokens(text, prompt, config.object_words),
        _object_tokens(text, target_prompt, config.object_words),
        config.control_blocks,
        config.mask_blocks,
        config.mask_threshold,
    )


def _object_tokens(text: TextEncoder, prompt: str, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the positions in the context of those of the object's words that a prompt has."""
    found = [at for word, positions in prompt_to_prompt.words(text, prompt) if word in wanted for at in positions]
    if not found:
        raise ValueError(f"masked control: the prompt {prompt!r} has none of the object's words {', '.join(wanted)}")
    return tuple(found)
