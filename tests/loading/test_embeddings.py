"""Textual inversions: tokens and vectors of files, in prompts, against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from tiny_loras import drawn
from torch import Tensor

from dragsa import loading
from dragsa.loading import WeightsError
from dragsa.loading.tokenizer import load_tokenizer
from dragsa.methods import prompt_to_prompt


def written(path: Path, **tensors: Tensor) -> Path:
    save_file(tensors, path)
    return path


def test_tokens_are_names_of_tensors_or_of_the_file_or_given(tmp_path):
    one, three = drawn(1, 48), drawn(2, 3, 48)
    unnamed = written(tmp_path / "bad-hands.safetensors", emb_params=three)
    ((token, vectors),) = loading.read_embeddings(unnamed)
    assert token == "bad-hands" and torch.equal(vectors, three)
    assert [found.token for found in loading.read_embeddings(unnamed, "hands")] == ["hands"]
    save_file({"<cat-toy>": one.half()}, tmp_path / "learned_embeds.safetensors")
    ((token, vectors),) = loading.read_embeddings(tmp_path / "learned_embeds.safetensors")
    assert token == "<cat-toy>" and torch.equal(vectors, one.half().float()[None])
    both = written(tmp_path / "both.safetensors", first=one, second=three)
    assert [found.token for found in loading.read_embeddings(both)] == ["first", "second"]
    with pytest.raises(WeightsError, match="holds the tokens first, second"):
        loading.read_embeddings(both, "third")


def test_a_token_becomes_its_vectors(folder, tmp_path):
    sd = loading.load(folder)
    path = written(tmp_path / "toy.safetensors", emb_params=drawn(1, 3, 48))
    more = loading.add_embedding(sd, path)
    plain, known = sd.text.tokenise(["a red cat"]), more.text.tokenise(["a red cat"])
    assert torch.equal(plain, known) and torch.equal(sd.embed(["a red cat"]), more.embed(["a red cat"]))
    row = more.text.tokenise(["a toy cat"])[0].tolist()
    table = more.text.model.get_input_embeddings().weight
    assert torch.equal(table[row[2:5]], drawn(1, 3, 48)) and row[5] == plain[0, 3] and len(row) == tiny_models.TOKENS
    assert more.config.changes == (f"embedding {path} as 'toy'",) and sd.config.changes == ()
    assert len(sd.text.tokenizer) + 3 == len(more.text.tokenizer)
    found = dict(prompt_to_prompt.words(more.text, "a toy cat"))
    assert found == {"a": (1,), "toy": (2, 3, 4), "cat": (5,)}
    with pytest.warns(UserWarning, match="16 tokens, 14 fit"):
        assert more.text.tokenise(["toy " * 5 + "cat"]).shape == (1, tiny_models.TOKENS)


def test_what_cannot_be_learnt(folder, tmp_path):
    sd = loading.load(folder)
    for tensors, says in (
        ({"emb_params": drawn(1, 2, 1024)}, r"vectors of 'bad' must be \(n, 48\), came \(2, 1024\)"),
        ({"clip_l": drawn(1, 2, 48), "clip_g": drawn(1, 2, 1280)}, "SDXL"),
        ({"emb_params": drawn(1, 2, 3, 48)}, "not a textual inversion"),
        ({"emb_params": torch.ones(2, 48, dtype=torch.int32)}, "not a textual inversion"),
        ({"emb_params": torch.ones(0, 48)}, "not a textual inversion"),
        ({"emb_params": torch.full((2, 48), torch.nan)}, "is NaN or infinite"),
        ({"red</w>": drawn(1, 48)}, "is a token already"),
        ({" ": drawn(1, 48)}, "is a token already"),
    ):
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(WeightsError, match=says):
            loading.add_embedding(sd, tmp_path / "bad.safetensors")
    path = written(tmp_path / "toy.safetensors", emb_params=drawn(1, 48))
    once = loading.add_embedding(sd, path)
    with pytest.raises(WeightsError, match="is a token already"):
        loading.add_embedding(once, path)
    assert loading.add_embedding(once, path, "other").text.learned.keys() > once.text.learned.keys()
    with pytest.raises(WeightsError, match="there is no such file"):
        loading.read_embeddings(tmp_path / "none.safetensors")


def pipeline(folder: Path) -> Any:
    """diffusers' pipeline with the tiny text encoder and tokenizer, and nothing else."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = CLIPTextModel(CLIPTextConfig(**tiny_models.TEXT_SETTINGS)).eval()
    names = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
    encoder.load_state_dict({names[name]: value for name, value in tiny_models.text_state().items() if name in names})
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = tiny_models.TOKENS
    parts = dict.fromkeys(("vae", "unet", "safety_checker", "feature_extractor"))
    return diffusers.StableDiffusionPipeline(
        text_encoder=encoder, tokenizer=tokenizer, requires_safety_checker=False,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), **parts,
    )  # fmt: skip


PROMPTS = ["a <toy> cat", "<toy>", "red <toy>, <toy> dot", "no toy", "a single one"]


def test_diffusers_gives_the_same_embedding(folder, tmp_path):
    pipe, sd = pipeline(folder), loading.load(folder)
    save_file({"<toy>": drawn(1, 3, 48)}, tmp_path / "toy.safetensors")
    save_file({"single": drawn(2, 48)}, tmp_path / "one.safetensors")
    for file in ("toy.safetensors", "one.safetensors"):
        pipe.load_textual_inversion(tmp_path / file)
        sd = loading.add_embedding(sd, tmp_path / file)
    for prompt in PROMPTS:
        with torch.no_grad():
            expected = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        torch.testing.assert_close(sd.embed([prompt]), expected, rtol=0, atol=1e-5)


def test_the_layer_before_the_last_and_then_the_final_norm(folder, single):
    """As diffusers' `clip_skip` counts from 0: the hidden state behind the layer, then the final norm."""
    encoder = pipeline(folder).text_encoder
    norm = next(module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))
    for skip in (1, 2):
        for path in (folder, single):
            sd = loading.load(path, clip_skip=skip)
            with torch.no_grad():
                states = encoder(sd.text.tokenise(["a red cat"]), output_hidden_states=True).hidden_states
                expected = norm(states[-skip])
            torch.testing.assert_close(sd.embed(["a red cat"]), expected, rtol=0, atol=1e-5)
    assert "clip skip 2" in sd.provenance
    for path in (folder, single):
        for wrong in (0, 3, True, 1.5):
            with pytest.raises(WeightsError, match="clip skip must be a whole number from 1 to its 2 layers"):
                loading.load(path, clip_skip=wrong)  # type: ignore[arg-type]


def test_what_a_header_says_of_layers_is_told(tmp_path):
    words = {"modelspec.encoder_layer": "2", "ss_clip_skip": "2", "format": "pt"}
    save_file(tiny_models.single_file_state(), tmp_path / "model.safetensors", words)
    tiny_models.write_tokenizer(tmp_path)
    notes = loading.load(tmp_path / "model.safetensors").config.notes
    assert notes == ("encoder layer 2 is said by modelspec.encoder_layer", "clip skip 2 is said by ss_clip_skip")
