"""Prompt to context: transformers' CLIP text model and tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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
