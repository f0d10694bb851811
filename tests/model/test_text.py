"""Prompts to context: against transformers' own way with them, and what happens at the ends of a prompt."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import TOKENS, VOCABULARY

from dragsa import loading
from dragsa.loading import text_encoder
from dragsa.loading.tokenizer import load_tokenizer
from dragsa.model import text

START, END = VOCABULARY.index("<|startoftext|>"), VOCABULARY.index("<|endoftext|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def encoder(folder) -> text.TextEncoder:
    return loading.load(folder).text


def numbers(*tokens: str) -> list[int]:
    return [VOCABULARY.index(token) for token in tokens]


def test_tokens_are_start_prompt_end_padding(encoder):
    row = encoder.tokenise(["a RED  dot"])[0].tolist()
    body = numbers("a</w>", "red</w>", "dot</w>")
    assert row == [START, *body, *[END] * (TOKENS - 4)]
    assert encoder.tokenise([""])[0].tolist() == [START, *[END] * (TOKENS - 1)]
    assert encoder.tokenise([]).shape == (0, TOKENS)


def test_embedding_is_transformers_last_hidden_state(folder, encoder):
    from transformers import CLIPTextConfig, CLIPTextModel

    reference = CLIPTextModel(CLIPTextConfig(**tiny_models.TEXT_SETTINGS)).eval()
    names = {name.removeprefix("text_model."): name for name in reference.state_dict()}
    state = {names[name]: value for name, value in tiny_models.text_state().items() if name in names}
    reference.load_state_dict(state)
    prompts = ["red cat", "", "a dot a cat"]
    ids = encoder.tokenizer(prompts, padding="max_length", max_length=TOKENS, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
    came = encoder.embed(prompts)
    assert came.shape == (3, TOKENS, 48) and came.dtype == torch.float32 and not came.requires_grad
    torch.testing.assert_close(came, expected, rtol=0, atol=1e-5)
    normed = (came - reference.state_dict()[names["final_layer_norm.bias"]]) / reference.state_dict()[
        names["final_layer_norm.weight"]
    ]
    assert normed.mean(dim=-1).abs().max() < 1e-4  # behind the final norm
    assert torch.equal(came, encoder.embed(prompts))


def test_every_token_knows_its_place(encoder):
    """Position numbers are no part of a file; were they wrong, padding tokens could not be told apart."""
    context = encoder.embed([""])[0]
    assert torch.unique(context[1:].round(decimals=3), dim=0).shape[0] == TOKENS - 1
    positions = {name: value for name, value in encoder.model.named_buffers() if name.endswith("position_ids")}
    assert [value.tolist() for value in positions.values()] == [[list(range(TOKENS))]]


def test_a_prompt_that_fits_is_taken_whole_and_a_longer_one_is_cut_with_a_warning(encoder):
    fits = " ".join(["cat"] * (TOKENS - 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = encoder.tokenise([fits])
    assert whole[0].tolist() == [START, *numbers("cat</w>") * (TOKENS - 2), END]
    with pytest.warns(UserWarning, match="16 tokens, 14 fit; cut off: 'red dot'") as caught:
        cut = encoder.tokenise([f"{fits} red dot"])
    assert torch.equal(cut, whole) and len(caught) == 1
    with pytest.warns(UserWarning, match="cut off: 'red dot'"):
        assert encoder.embed([f"{fits} red dot", "cat"]).shape == (2, TOKENS, 48)


def test_the_tokenizer_may_ask_for_fewer_tokens_than_the_model_has_places(folder, encoder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = 9
    short = text.TextEncoder(encoder.model, tokenizer)
    assert short.tokens == 9 and short.embed(["cat"]).shape == (1, 9, 48)


def test_tokenizer_json_alone_gives_the_same_tokens(folder, encoder, tmp_path):
    load_tokenizer(folder / "tokenizer").save_pretrained(tmp_path / "all")
    (tmp_path / "alone").mkdir()
    (tmp_path / "all/tokenizer.json").rename(tmp_path / "alone/tokenizer.json")
    other = text.TextEncoder(encoder.model, load_tokenizer(tmp_path / "alone"))
    for prompt in ("a red dot", "", "Caterpillar, red"):
        assert torch.equal(other.tokenise([prompt]), encoder.tokenise([prompt]))


def test_what_does_not_belong_together_is_refused(folder, encoder):
    with pytest.raises(ValueError, match="list of strings"):
        encoder.embed("one string")
    few = text_encoder.build(text_encoder.config_from_transformers(tiny_models.TEXT_SETTINGS | {"vocab_size": 59}))
    with pytest.raises(ValueError, match="knows 60 tokens, the text model 59"):
        text.TextEncoder(few, load_tokenizer(folder / "tokenizer"))
