"""Prompt-to-Prompt: which words stand for which, and the edited maps against maps worked out by hand."""

from __future__ import annotations

from typing import Any

import golden_cases
import pytest
import torch
from torch import Tensor

from dragsa import ddim
from dragsa.hooks import Site
from dragsa.methods import prompt_to_prompt
from dragsa.methods.prompt_to_prompt import Alignment, PromptToPrompt, prompt_edit

CROSS, SELF = Site(9, "cross", (1, 2)), Site(9, "self", (1, 3))


def pairs(alignment: Alignment, below: int) -> list[tuple[int, int]]:
    """(source, target) of the mapper's entries of 1 in the first columns."""
    return [(i, j) for j, i in alignment.mapper.T[:below].nonzero().tolist() if alignment.mapper[i, j] == 1]


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_and_their_tokens(encoder):
    assert prompt_to_prompt.words(encoder, "a red  dog") == [("a", (1,)), ("red", (2,)), ("dog", (3, 4))]
    assert prompt_to_prompt.tokens_of(encoder, "a dog a", "a") == (1, 4)
    with pytest.raises(ValueError, match="no word 'cat' in the prompt: its words are a, dog"):
        prompt_to_prompt.tokens_of(encoder, "a dog", "cat")
    with pytest.raises(ValueError, match="the prompt has 15 tokens, 14 fit"):
        prompt_to_prompt.words(encoder, "a " * 15)


def test_replacement_of_a_word_by_one_of_as_many_tokens(encoder):
    alignment = prompt_to_prompt.replacement(encoder, "a red cat", "a red dot")
    assert torch.equal(alignment.mapper, torch.eye(16)) and torch.equal(alignment.aligned, torch.ones(16))


def test_replacement_by_a_word_of_more_tokens(encoder):
    mapper = prompt_to_prompt.replacement(encoder, "a cat red", "a dog red").mapper
    expected = torch.zeros(16, 16)
    expected[0, 0] = expected[1, 1] = 1
    expected[2, 3] = expected[2, 2] = 0.5  # cat's map to do and g
    expected[3, 4] = expected[4, 5] = 1  # red, and the end token
    for n in range(6, 16):
        expected[n, n] = 1  # padding
    assert torch.equal(mapper, expected)


def test_replacement_by_a_word_of_fewer_tokens(encoder):
    mapper = prompt_to_prompt.replacement(encoder, "a dog red", "a cat red").mapper
    expected = torch.zeros(16, 16)
    expected[0, 0] = expected[1, 1] = 1
    expected[2, 2] = expected[3, 2] = 1  # the sum of do's and g's
    expected[4, 3] = expected[5, 4] = 1
    expected[6, 5] = 1  # padding, not the source's end token
    for n in range(6, 16):
        expected[n, n] = 1
    assert torch.equal(mapper, expected)


def test_replacement_needs_as_many_words(encoder):
    with pytest.raises(ValueError, match="as many words, came 'a cat' and 'a red cat'; use refinement"):
        prompt_to_prompt.replacement(encoder, "a cat", "a red cat")


def test_refinement_keeps_what_is_common(encoder):
    alignment = prompt_to_prompt.refinement(encoder, "a cat", "a red cat e")
    assert pairs(alignment, 8) == [(0, 0), (1, 1), (2, 3), (3, 5), (6, 6), (7, 7)]
    assert alignment.aligned.tolist() == [1, 1, 0, 1, 0, 1] + [1] * 10
    shorter = prompt_to_prompt.refinement(encoder, "a red cat", "cat a")  # one of the two can be kept
    assert pairs(shorter, 6) == [(0, 0), (3, 1), (4, 3), (5, 4), (5, 5)]
    assert shorter.aligned.tolist() == [1, 1, 0] + [1] * 13


@pytest.mark.parametrize(
    ("source", "target", "places"),
    [
        ("abc", "abc", [(0, 0), (1, 1), (2, 2)]),
        ("ab", "xaxbx", [(0, 1), (1, 3)]),
        ("axb", "ab", [(0, 0), (2, 1)]),
        ("a", "aa", [(0, 0)]),
        ("aa", "a", [(0, 0)]),
        ("abcd", "bdac", [(1, 0), (3, 1)]),
        ("", "ab", []),
        ("xy", "ab", []),
    ],
)
def test_longest_common_tokens(source, target, places):
    assert prompt_to_prompt.common([ord(c) for c in source], [ord(c) for c in target]) == places


def test_equalizer_names_words(encoder):
    edit = prompt_edit(encoder, "a dog red", "a dog red", scales={"dog": 3.0, "red": -1.0})
    assert edit.equalizer.tolist() == [1, 1, 3, 3, -1] + [1] * 11


# --- maps -------------------------------------------------------------------------------------------------------------


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return maps(q, k) @ v


def maps_as_values() -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v whose values are the unit vectors, so that a layer's result is its maps: two heads, three tokens.

    The source's maps are [0.5, 0.3, 0.2] for every query and head, and the target's [0.1, 0.2, 0.7].
    """
    k = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]).double().log()[:, None, :, None].expand(2, 2, 3, 1)
    return torch.ones(2, 2, 2, 1, dtype=torch.float64), k, torch.eye(3, dtype=torch.float64).expand(2, 2, 3, 3)


SWAP = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # the source's second token is the target's third
SHARE = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])  # the source's second is the target's second and third
ONE = torch.ones(3)


@pytest.mark.parametrize(
    ("mapper", "aligned", "equalizer", "replaced", "expected"),
    [
        (torch.eye(3), ONE, ONE, ONE, [0.5, 0.3, 0.2]),
        (SWAP, ONE, ONE, ONE, [0.5, 0.2, 0.3]),
        (SHARE, ONE, ONE, ONE, [0.5, 0.15, 0.15]),
        (SWAP, ONE, ONE, 0 * ONE, [0.1, 0.2, 0.7]),  # before or behind the window
        (SWAP, ONE, ONE, torch.tensor([0.0, 1, 1]), [0.1, 0.2, 0.3]),  # one word's window is over
        (torch.eye(3), torch.tensor([1.0, 1, 0]), ONE, ONE, [0.5, 0.3, 0.7]),  # the last token is new
        (torch.eye(3), ONE, torch.tensor([1.0, 4, -1]), ONE, [0.5, 1.2, -0.2]),  # re-weighted
        (torch.eye(3), torch.tensor([1.0, 1, 0]), torch.tensor([1.0, 1, 2]), ONE, [0.5, 0.3, 1.4]),  # new, and so
        (torch.eye(3), ONE, torch.tensor([1.0, 4, 4]), torch.tensor([1.0, 1, 0]), [0.5, 1.2, 0.7]),
    ],
)
@pytest.mark.parametrize("guided", [False, True])
def test_cross_attention_maps_by_hand(mapper, aligned, equalizer, replaced, expected, guided):
    q, k, v = maps_as_values()
    if guided:
        q, k, v = (torch.cat([x.flip(0), x]) for x in (q, k, v))
    out = PromptToPrompt(Alignment(mapper, aligned), equalizer, replaced)(CROSS, q, k, v, attend)
    assert torch.allclose(out[-1], torch.tensor(expected, dtype=torch.float64).expand(2, 2, 3), atol=1e-6)
    assert torch.equal(out[:-1], attend(q, k, v)[:-1])  # the source, and all of the unconditional pair


def test_maps_of_drawn_heads_are_edited_head_by_head():
    q, k, v = drawn(1, 2, 2, 5, 4), drawn(2, 2, 2, 3, 4), drawn(3, 2, 2, 3, 4)
    mapper, aligned, scale = drawn(4, 3, 3), torch.tensor([1.0, 0, 1]), torch.tensor([1.0, 2, 0.5])
    out = PromptToPrompt(Alignment(mapper, aligned), scale, ONE)(CROSS, q, k, v, attend)
    for head in range(2):
        theirs, own = maps(q, k)[:, head]
        edited = (theirs @ mapper * aligned + own * (1 - aligned)) * scale
        assert torch.allclose(out[1, head], edited @ v[1, head])


def test_self_attention_takes_the_sources_maps_and_its_own_values():
    q, k, v = drawn(1, 4, 2, 3, 4), drawn(2, 4, 2, 3, 4), drawn(3, 4, 2, 3, 4)
    hook = PromptToPrompt(Alignment(torch.eye(3), ONE), ONE, ONE, self_blocks=(9,))
    out = hook(SELF, q, k, v, attend)
    assert torch.allclose(out[3], maps(q, k)[2] @ v[3])
    assert torch.equal(out[:3], attend(q, k, v)[:3])
    assert torch.equal(hook(Site(11, "self", (1, 3)), q, k, v, attend), attend(q, k, v))


def test_wrong_batches_and_contexts_name_the_site():
    hook = PromptToPrompt(Alignment(torch.eye(3), ONE), ONE, ONE)
    with pytest.raises(ValueError, match=r"block09 cross-attention: expected one pair .* came 3 rows"):
        hook(CROSS, drawn(0, 3, 2, 3, 4), drawn(1, 3, 2, 3, 4), drawn(2, 3, 2, 3, 4), attend)
    with pytest.raises(ValueError, match="block09 cross-attention: expected 3 tokens of context, came 5"):
        hook(CROSS, drawn(0, 2, 2, 5, 4), drawn(1, 2, 2, 5, 4), drawn(2, 2, 2, 5, 4), attend)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_each_step_has_its_hook(encoder):
    edit = prompt_edit(
        encoder, "a cat", "a dot", cross_replace=0.8, self_replace=(0.1, 0.3), word_replace={"dot": (0.2, 0.5)}
    )
    hooks: list[Any] = [edit.hook_at(step, 10) for step in range(10)]
    assert [hook is not None for hook in hooks] == [True] * 8 + [False] * 2
    assert [step for step in range(8) if hooks[step].self_blocks] == [1, 2]
    assert [step for step in range(8) if hooks[step].replaced[2]] == [2, 3, 4]
    assert all(hooks[step].replaced[[0, 1, 3, 15]].all() for step in range(8))
    assert sum(edit.hook_at(step, 50) is not None for step in range(50)) == 40
    late = prompt_edit(encoder, "a cat", "a dot", cross_replace=0.0, self_replace=0.5).hook_at(0, 10)
    assert late is not None and late.self_blocks and not late.replaced.any()


def test_what_cannot_be_edited(encoder):
    for changes, says in (
        ({"kind": "swap"}, "unknown kind of prompt edit 'swap': known are replacement, refinement"),
        ({"cross_replace": 1.2}, "a window of the steps lies between 0 and 1, came 1.2"),
        ({"self_replace": (0.5, 0.2)}, "between 0 and 1"),
        ({"scales": {"cat": 2.0}}, "no word 'cat'"),
        ({"self_blocks": (17,)}, "no transformer block 17"),
    ):
        with pytest.raises(ValueError, match=says):
            prompt_edit(encoder, "a cat", "a dot", **changes)


# --- in the network ---------------------------------------------------------------------------------------------------


def sampled(encoder, edit, guidance=(1.0, 4.0)) -> tuple[Tensor, Tensor]:
    """Source and target from one latent in three steps: with the edit, and without."""
    net, schedule = golden_cases.golden_unet(), ddim.Schedule(3)
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(1, 4, 8, 16, generator=generator)
    uncond, context = torch.randn(3, encoder.tokens, 48, generator=generator).split([1, 2])

    def run(hook_at):
        return ddim.sample_controlled(net, z, z, context, schedule, guidance=guidance, uncond=uncond, hook_at=hook_at)[
            -1
        ]

    return run(lambda step: edit.hook_at(step, 3)), run(lambda step: None)


def test_an_edit_through_the_hook_alone(encoder):
    edited, free = sampled(encoder, prompt_edit(encoder, "a cat", "a dog", cross_replace=0.8, self_replace=0.4))
    assert torch.allclose(edited[0], free[0], atol=1e-5)
    assert not torch.allclose(edited[1], free[1], atol=1e-2)
    idle, free = sampled(encoder, prompt_edit(encoder, "a cat", "a dog", cross_replace=0.0, self_replace=0.0))
    assert torch.equal(idle, free)


def test_the_same_prompt_re_weighted_by_one_is_the_source(encoder):
    """Maps taken from a source that is the target itself change nothing; a weight that is not 1 does."""
    net, schedule = golden_cases.golden_unet(), ddim.Schedule(3)
    generator = torch.Generator().manual_seed(4)
    z, context = torch.randn(1, 4, 8, 16, generator=generator), torch.randn(1, 16, 48, generator=generator)

    def run(scales):
        edit = prompt_edit(encoder, "a cat", "a cat", scales=scales, cross_replace=1.0, self_replace=1.0)
        pair = context.expand(2, -1, -1)
        return ddim.sample_controlled(net, z, z, pair, schedule, hook_at=lambda step: edit.hook_at(step, 3))[-1]

    same, stronger = run({}), run({"cat": 5.0})
    assert torch.allclose(same[1], same[0], atol=1e-5)
    assert torch.allclose(stronger[0], same[0], atol=1e-5) and not torch.allclose(stronger[1], same[1], atol=1e-3)
