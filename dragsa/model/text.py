"""Prompt to context: transformers' CLIP text model and tokenizer, built without any default weights.

transformers is imported only where it is used, because importing it takes seconds.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dragsa.config import is_whole
from dragsa.layouts import fitting

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


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`: `vocab.json` and `merges.txt`, or `tokenizer.json`. Never looks at the network."""
    import transformers

    # Version 4 has a second class for the one that reads tokenizer.json; version 5 has only that one.
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    return kind.from_pretrained(str(folder), local_files_only=True)


def known_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    """Return those of the tokens that the tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in tokens if token in vocabulary]


class TextEncoder(nn.Module):
    """CLIP's text model with its tokenizer: prompts in, context of the UNet's cross-attention out.

    learned: a textual inversion's first token -> all of its tokens, one a vector. Raises a ValueError where tokenizer
    and model do not belong together.
    """

    def __init__(self, model: Any, tokenizer: Any, learned: Mapping[int, Sequence[int]] | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.learned = dict(learned or {})
        config: Any = model.config
        self.width: int = config.hidden_size
        self.tokens: int = min(tokenizer.model_max_length, config.max_position_embeddings)
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        if None in special:
            raise ValueError("the tokenizer has no start, end or padding token; it is not CLIP's")
        if max(*special, len(tokenizer) - 1) >= config.vocab_size:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} tokens, the text model {config.vocab_size}; "
                "put the tokenizer that belongs to the model beside it"
            )

    def tokenise(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> token numbers (B, tokens): start, the prompt's, end, padding.

        A prompt that does not fit is cut, with a warning that shows what was left out.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of strings, not one string")
        start, end, padding = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        room = self.tokens - 2
        rows = []
        for prompt in prompts:
            body = self.numbers(prompt)
            if len(body) > room:
                cut = self.tokenizer.decode(body[room:]).strip()
                warnings.warn(f"the prompt has {len(body)} tokens, {room} fit; cut off: {cut!r}", stacklevel=2)
            row = [start, *body[:room], end]
            rows.append(row + [padding] * (self.tokens - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.tokens)  # (B, tokens)

    def numbers(self, prompt: str) -> list[int]:
        """Prompt -> its tokens, however many, without start, end and padding; for a learnt one, all of its own."""
        body = self.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [number for one in body for number in self.learned.get(one, (one,))]

    def with_weights(self, changed: Mapping[str, Tensor]) -> TextEncoder:
        """Return the encoder with these weights in place of its own, by their names; it shares all others."""
        return self._rebuilt(self.model.config, changed, self.tokenizer, self.learned)

    def with_token(self, token: str, vectors: Tensor) -> TextEncoder:
        """Return the encoder with a token more, which stands for vectors (n, width) of its own: textual inversion.

        As diffusers does, vectors after the first are tokens too, TOKEN_1 …; a prompt need not have them. Raises
        ValueError for a token that is there already, and for vectors of another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width or not len(vectors):
            raise ValueError(f"vectors of {token!r} must be (n, {self.width}), came {tuple(vectors.shape)}")
        tokens = [token, *(f"{token}_{n}" for n in range(1, len(vectors)))]
        tokenizer, config = copy.deepcopy(self.tokenizer), copy.deepcopy(self.model.config)
        if not token.strip() or known_tokens(tokenizer, tokens) or tokenizer.add_tokens(tokens) != len(tokens):
            raise ValueError(f"{token!r} is a token already; give the vectors another name")
        numbers = tokenizer.convert_tokens_to_ids(tokens)
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        table = self.model.get_input_embeddings().weight  # (vocabulary, width)
        wider = table.new_zeros(config.vocab_size, self.width)
        wider[: len(table)] = table
        wider[numbers] = vectors.to(table)
        name = next(name for name in self.model.state_dict() if name.endswith("token_embedding.weight"))
        return self._rebuilt(config, {name: wider}, tokenizer, {**self.learned, numbers[0]: tuple(numbers)})

    def _rebuilt(
        self, config: Any, changed: Mapping[str, Tensor], tokenizer: Any, learned: Mapping[int, Sequence[int]]
    ) -> TextEncoder:
        model = fitting.adopt(build(config), {**self.model.state_dict(), **changed})
        return TextEncoder(model, tokenizer, learned).to(next(self.model.parameters()).device).eval()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> the last hidden state behind the final norm, float32 (B, tokens, width).

        No attention mask, as Stable Diffusion was trained: padding takes part. Warns when a prompt is cut. Raises
        ValueError for float64 under older versions of transformers, whose causal mask is of float32's numbers.
        """
        if not prompts:
            raise ValueError("no prompts: give at least one, such as the empty one")
        numbers = self.tokenise(prompts).to(next(self.model.parameters()).device)
        try:
            return self.model(input_ids=numbers).last_hidden_state.float()  # (B, tokens, width)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise ValueError(
                "this version of transformers has no float64: load float32, or install 5.0 or newer"
            ) from None
