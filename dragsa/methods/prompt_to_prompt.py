"""Prompt-to-Prompt (Hertz et al. 2022): the source's attention maps kept, word by word, under another prompt.

A map A enters a layer's result only as A v, so that whatever is linear in the maps can be done to the values instead:
(A M) v = A (M v). Swapping, refining and re-weighting maps therefore need nothing but the plain attention itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dragsa.hooks import Attend, Site
from dragsa.model.blocks import check_blocks
from dragsa.model.text import TextEncoder

SELF_BLOCKS = tuple(range(5, 11))  # self-attention replaced: those of at most 16×16 cells at 512 px
KINDS = ("replacement", "refinement")

Positions = tuple[int, ...]  # of tokens in the context, of which 0 is the start token
Window = float | tuple[float, float]  # fractions of the steps, from and until; a number is until, from the beginning


# --- words and tokens -------------------------------------------------------------------------------------------------


def token_numbers(text: TextEncoder, prompt: str) -> list[int]:
    """Return the prompt's tokens without start, end and padding. Raises ValueError if they do not fit the context."""
    numbers = text.numbers(prompt)
    if len(numbers) > text.tokens - 2:
        raise ValueError(f"the prompt has {len(numbers)} tokens, {text.tokens - 2} fit; shorten it: {prompt!r}")
    return numbers


def words(text: TextEncoder, prompt: str) -> list[tuple[str, Positions]]:
    """Return the prompt's words, parted by spaces, each with its tokens' positions.

    Raises ValueError if the words cannot be told apart in the tokens.
    """
    parts = [(word, token_numbers(text, word)) for word in prompt.split()]
    if [number for _, numbers in parts for number in numbers] != token_numbers(text, prompt):
        raise ValueError(f"the words of {prompt!r} cannot be told apart in its tokens")
    found, begin = [], 1
    for word, numbers in parts:
        found.append((word, tuple(range(begin, begin + len(numbers)))))
        begin += len(numbers)
    return found


def tokens_of(text: TextEncoder, prompt: str, word: str) -> Positions:
    """Return the positions of every token of every occurrence of a word. Raises ValueError if the prompt lacks it."""
    found = words(text, prompt)
    at = tuple(position for known, positions in found if known == word for position in positions)
    if not at:
        raise ValueError(f"no word {word!r} in the prompt: its words are {', '.join(known for known, _ in found)}")
    return at


class Alignment(NamedTuple):
    """The source's tokens that stand for each of the target's.

    mapper (n, n): column j weighs the source tokens' maps that make the target's j-th. aligned (n,): 1 where there are
    any, 0 where the token is new and keeps its own map.
    """

    mapper: Tensor
    aligned: Tensor


def replacement(text: TextEncoder, source: str, target: str) -> Alignment:
    """Align prompts of equally many words, word by word.

    A word's tokens go one to one. Where they differ in number, the sum of the source word's maps is shared equally
    among the target word's tokens, and everything behind shifts as far as the end token. Padding keeps its place.
    Raises ValueError for prompts with different numbers of words.
    """
    theirs, ours = ([tokens for _, tokens in words(text, prompt)] for prompt in (source, target))
    if len(theirs) != len(ours):
        raise ValueError(f"replacement needs prompts of as many words, came {source!r} and {target!r}; use refinement")
    return Alignment(mapper_of(text, source, target, zip(theirs, ours, strict=True)), torch.ones(text.tokens))


def refinement(text: TextEncoder, source: str, target: str) -> Alignment:
    """Align the longest common subsequence of tokens: what the target has besides is new."""
    same = common(token_numbers(text, source), token_numbers(text, target))
    mapper = mapper_of(text, source, target, (((i + 1,), (j + 1,)) for i, j in same))
    return Alignment(mapper, mapper.sum(dim=0))


def mapper_of(text: TextEncoder, source: str, target: str, pairs: Iterable[tuple[Positions, Positions]]) -> Tensor:
    """Return the mapper (n, n) of prompts whose tokens at these positions stand for each other.

    Start and end go to each other; the padding to its own place, but never before the source's end.
    """
    mapper, last = torch.zeros(text.tokens, text.tokens), text.tokens - 1
    for theirs, ours in pairs:
        if len(theirs) == len(ours):
            mapper[list(theirs), list(ours)] = 1
        else:
            mapper[torch.tensor(theirs)[:, None], torch.tensor(ours)] = 1 / len(ours)
    source_end, target_end = (1 + len(token_numbers(text, prompt)) for prompt in (source, target))
    mapper[0, 0] = mapper[source_end, target_end] = 1
    for j in range(target_end + 1, last + 1):
        mapper[min(max(j, source_end + 1), last), j] = 1
    return mapper


def common(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places (i, j) of a longest common subsequence, with the target's earliest tokens among equals.

    Needleman and Wunsch's alignment where a match counts 1, a gap 0, and unequal tokens are never matched.
    """
    best = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, theirs in enumerate(source):
        for j, ours in enumerate(target):
            best[i + 1][j + 1] = max(best[i + 1][j], best[i][j + 1], best[i][j] + (theirs == ours))
    places, i, j = [], len(source), len(target)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            places.append((i, j))
    return places[::-1]


# --- the hook, and when it acts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PromptToPrompt:
    """Source and target side by side, the target's maps made of the source's.

    Cross-attention, in every layer: A' = ((A_source M) a + A_target (1 - a)) c, column by column, with the mapper M,
    `aligned` a and the equalizer c, where `replaced` (n,) is 1; A_target where it is 0. Self-attention, in
    `self_blocks`: A' = A_source. The values are the target's own. The batch is (source, target), or with guidance that
    pair unconditional and then conditional: only the last, conditional pair is edited, and no source row is.
    """

    alignment: Alignment
    equalizer: Tensor
    replaced: Tensor
    self_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_blocks(self.self_blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind == "self" and site.block not in self.self_blocks:
            return attend(q, k, v)
        if q.shape[0] not in (2, 4):
            raise ValueError(f"{site.name}: expected one pair of rows (source, target), or two, came {q.shape[0]} rows")
        (q_s, q_t), (k_s, k_t), v_t = q[-2:].split(1), k[-2:].split(1), v[-1:]  # (1, heads, n, d) each
        if site.kind == "self":
            edited = attend(q_s, k_s, v_t)
        else:
            if k.shape[2] != len(self.replaced):
                raise ValueError(f"{site.name}: expected {len(self.replaced)} tokens of context, came {k.shape[2]}")
            mapper, aligned = (x.to(v) for x in self.alignment)
            scale, replaced = self.equalizer.to(v), self.replaced.to(v)
            taken = (aligned * scale * replaced)[:, None] * v_t
            kept = ((1 - aligned) * scale * replaced + 1 - replaced)[:, None] * v_t
            edited = attend(q_s, k_s, mapper @ taken) + attend(q_t, k_t, kept)
        return torch.cat([attend(q[:-1], k[:-1], v[:-1]), edited])


@dataclass(frozen=True, eq=False)
class PromptEdit:
    """A change of prompt, and between which steps it acts: `hook_at` gives each step's hook.

    windows (n, 2): for each of the target's tokens, from and until which fraction of the steps its map is replaced.
    self_window: the same for self-attention.
    """

    alignment: Alignment
    equalizer: Tensor
    windows: Tensor
    self_window: tuple[float, float]
    self_blocks: tuple[int, ...] = SELF_BLOCKS

    def hook_at(self, step: int, steps: int) -> PromptToPrompt | None:
        """Return the hook of step 0 … steps - 1, counted from the noisiest; None where nothing is edited."""
        begin, end = steps * self.windows[:, 0], steps * self.windows[:, 1]
        replaced = ((begin <= step) & (step < end)).float()  # (n,)
        in_self = steps * self.self_window[0] <= step < steps * self.self_window[1]
        if not in_self and not replaced.any():
            return None
        return PromptToPrompt(self.alignment, self.equalizer, replaced, self.self_blocks if in_self else ())


def prompt_edit(
    text: TextEncoder,
    source: str,
    target: str,
    kind: str = "replacement",
    scales: Mapping[str, float] | None = None,
    cross_replace: Window = 0.8,
    self_replace: Window = 0.4,
    word_replace: Mapping[str, Window] | None = None,
    self_blocks: tuple[int, ...] = SELF_BLOCKS,
) -> PromptEdit:
    """Set up Prompt-to-Prompt from `source` to `target`: "replacement" of words, or "refinement" by further ones.

    `scales` re-weights words of the target, alone (with the target the source itself) or besides. Cross-attention is
    edited during `cross_replace` of the steps, and that of single words of the target during `word_replace`'s;
    self-attention during `self_replace`. Raises ValueError for a kind, word or window that there is not.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of prompt edit {kind!r}: known are {', '.join(KINDS)}")
    check_blocks(self_blocks)
    alignment = (replacement if kind == "replacement" else refinement)(text, source, target)
    windows = torch.tensor([window(cross_replace)] * text.tokens, dtype=torch.float64)  # (n, 2)
    for word, fraction in (word_replace or {}).items():
        windows[list(tokens_of(text, target, word))] = torch.tensor(window(fraction), dtype=torch.float64)
    factors = torch.ones(text.tokens)  # of each token's map
    for word, scale in (scales or {}).items():
        factors[list(tokens_of(text, target, word))] = scale
    return PromptEdit(alignment, factors, windows, window(self_replace), self_blocks)


def window(fraction: Window) -> tuple[float, float]:
    """Return from and until, with 0 ≤ from ≤ until ≤ 1. Raises ValueError for another window."""
    begin, end = fraction if isinstance(fraction, tuple) else (0.0, fraction)
    if not 0 <= begin <= end <= 1:
        raise ValueError(f"a window of the steps lies between 0 and 1, came {fraction!r}")
    return float(begin), float(end)
