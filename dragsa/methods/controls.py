"""The controls that an edit names: each gives, step by step, the attention hook of source and target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dragsa.config import EditConfig
from dragsa.ddim import HookAt
from dragsa.hooks import AttentionHook, MutualSelfAttention
from dragsa.methods import masactrl, prompt_to_prompt
from dragsa.model.text import TextEncoder

Control = Callable[[EditConfig, TextEncoder, str, str], Callable[[], AttentionHook]]


def mutual(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> Callable[[], AttentionHook]:
    """Return a function that makes a step's hook: the target attends to the source."""
    return partial(MutualSelfAttention, config.control_blocks)


def union(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> Callable[[], AttentionHook]:
    """Return the same for a target that attends to the source and to itself."""
    return partial(masactrl.UnionSelfAttention, config.control_blocks)


def masked(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> Callable[[], AttentionHook]:
    """Return the same for object and ground apart. Raises ValueError if a prompt has none of the object's words."""
    return partial(
        masactrl.masked_by_prompt,
        _object_tokens(text, prompt, config.object_words),
        _object_tokens(text, target_prompt, config.object_words),
        config.control_blocks,
        config.mask_blocks,
        config.mask_threshold,
    )


CONTROLS: dict[str, Control] = {"mutual": mutual, "union": union, "masked": masked}


def control_at(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> HookAt:
    """Return the hook of each denoising step, counted from z_T: from the A-th on a new one of the control named.

    Raises ValueError for a "masked" control if a prompt has none of the object's words.
    """
    return partial(_from_step, config.control_step, CONTROLS[config.control](config, text, prompt, target_prompt))


def _from_step(first: int | None, new_hook: Callable[[], AttentionHook], step: int) -> AttentionHook | None:
    return new_hook() if first is not None and step >= first else None


def _object_tokens(text: TextEncoder, prompt: str, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the positions in the context of those of the object's words that a prompt has."""
    found = [at for word, positions in prompt_to_prompt.words(text, prompt) if word in wanted for at in positions]
    if not found:
        raise ValueError(f"masked control: the prompt {prompt!r} has none of the object's words {', '.join(wanted)}")
    return tuple(found)
