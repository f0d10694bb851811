"""CLIP's text model built without any default weights, and copies of one that have other weights or more tokens.

transformers is imported only where it is used, because importing it takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dragsa.config import is_whole
from dragsa.layouts import fitting
from dragsa.model.text import TextEncoder

HEAD_WIDTH = 64  # width of a head in every published CLIP text model
# What is taken of a config: with other keys transformers may fetch code, such as that of an attention by its name.
NUMBERS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
NUMBERS += ["max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"]
TAKEN = [*NUMBERS, "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout"]


def config_from_transformers(settings: Mapping[str, Any]) -> Any:
    """Make transformers' CLIPTextConfig of `text_encoder/config.json`: of the numbers that CLIP needs, and no more.

    Raises ValueError for another kind of model, and for a number that is none.
    """
    from transformers import CLIPTextConfig

    kind = settings.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise ValueError(f"this is a {kind!r}; the text encoder of SD 1.5 is a 'clip_text_model'")
    for name in NUMBERS:
        value, most = settings.get(name, 1), 100 if name == "num_hidden_layers" else 2**20
        if value is not None and not (is_whole(value) and 0 <= value <= most):
            raise ValueError(f"text encoder config: {name} must be a whole number up to {most}, came {value!r}")
    return CLIPTextConfig(**{name: settings[name] for name in TAKEN if name in settings})


def build(config: Any) -> nn.Module:
    """A CLIPTextModel on the meta device, except for its position numbers, which no file needs to hold."""
    from transformers import CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(config)
    for module in model.modules():
        if "position_ids" in module._buffers:
            positions = torch.arange(config.max_position_embeddings)[None]  # (1, tokens)
            module.register_buffer("position_ids", positions, persistent=False)
    return model


def with_weights(text: TextEncoder, changed: Mapping[str, Tensor]) -> TextEncoder:
    """Return the encoder with these weights in place of its own, by their names; it shares all others."""
    return _rebuilt(text, text.model.config, changed, text.tokenizer, text.learned)


def with_token(text: TextEncoder, token: str, vectors: Tensor) -> TextEncoder:
    """Return the encoder with a token more, which stands for vectors (n, width) of its own: textual inversion.

    As diffusers does, vectors after the first are tokens too, TOKEN_1 …; a prompt need not have them. Raises
    ValueError for a token that is there already, and for vectors of another width.
    """
    if vectors.ndim != 2 or vectors.shape[1] != text.width or not len(vectors):
        raise ValueError(f"vectors of {token!r} must be (n, {text.width}), came {tuple(vectors.shape)}")
    tokens = [token, *(f"{token}_{n}" for n in range(1, len(vectors)))]
    tokenizer, config = copy.deepcopy(text.tokenizer), copy.deepcopy(text.model.config)
    if not token.strip() or known_tokens(tokenizer, tokens) or tokenizer.add_tokens(tokens) != len(tokens):
        raise ValueError(f"{token!r} is a token already; give the vectors another name")
    numbers = tokenizer.convert_tokens_to_ids(tokens)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    table = text.model.get_input_embeddings().weight  # (vocabulary, width)
    wider = table.new_zeros(config.vocab_size, text.width)
    wider[: len(table)] = table
    wider[numbers] = vectors.to(table)
    name = next(name for name in text.model.state_dict() if name.endswith("token_embedding.weight"))
    return _rebuilt(text, config, {name: wider}, tokenizer, {**text.learned, numbers[0]: tuple(numbers)})


def known_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    """Return those of the tokens that the tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in tokens if token in vocabulary]


def _rebuilt(
    text: TextEncoder, config: Any, changed: Mapping[str, Tensor], tokenizer: Any, learned: Mapping[int, Sequence[int]]
) -> TextEncoder:
    model = fitting.adopt(build(config), {**text.model.state_dict(), **changed})
    return TextEncoder(model, tokenizer, learned).to(next(text.model.parameters()).device).eval()
