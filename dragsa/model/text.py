"""Prompt to context: transformers' CLIP text model and tokenizer, built without any default weights.

transformers is imported only where it is used, because importing it takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HEAD_WIDTH = 64  # width of a head in every published CLIP text model


def config_from_transformers(settings: Mapping[str, Any]) -> Any:
    """`text_encoder/config.json` -> transformers' CLIPTextConfig. Raises ValueError for another kind of model."""
    from transformers import CLIPTextConfig

    kind = settings.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise ValueError(f"this is a {kind!r}; the text encoder of SD 1.5 is a 'clip_text_model'")
    return CLIPTextConfig.from_dict(dict(settings))


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


class TextEncoder(nn.Module):
    """CLIP's text model with its tokenizer: prompts in, context of the UNet's cross-attention out.

    Raises a ValueError where tokenizer and model do not belong together.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
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
            body = self.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            if len(body) > room:
                cut = self.tokenizer.decode(body[room:]).strip()
                warnings.warn(f"the prompt has {len(body)} tokens, {room} fit; cut off: {cut!r}", stacklevel=2)
            row = [start, *body[:room], end]
            rows.append(row + [padding] * (self.tokens - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.tokens)  # (B, tokens)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> the last hidden state behind the final norm, float32 (B, tokens, width).

        No attention mask, as Stable Diffusion was trained: padding takes part. Warns when a prompt is cut.
        """
        if not prompts:
            raise ValueError("no prompts: give at least one, such as the empty one")
        numbers = self.tokenise(prompts).to(next(self.model.parameters()).device)
        return self.model(input_ids=numbers).last_hidden_state.float()  # (B, tokens, width)
