"""The optimisers of an update: plain descent as the paper has it, Adam as DragDiffusion does, and Adam-mini.

Adam is written out because `torch.optim.Adam` rounds otherwise: in the last bits, which a drag makes much of. That and
plain descent have their plain twins in the loop of `edit` in scripts/plain.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class AdamState(NamedTuple):
    mean: Tensor  # of the gradient, decayed
    square: Tensor  # of its square
    steps: int


def adam(
    latent: Tensor,
    gradient: Tensor,
    state: AdamState | None,
    lr: float,
    squared: Callable[[Tensor], Tensor] = torch.square,
) -> tuple[Tensor, AdamState]:
    """Take one step of Adam (Kingma and Ba 2015, algorithm 1) with β = 0.9, 0.999 and ε = 1e-8.

    squared: of the gradient, its square by elements or what stands for that.
    """
    if state is None:
        state = AdamState(torch.zeros_like(gradient), torch.zeros_like(gradient), 0)
    steps = state.steps + 1
    mean = torch.lerp(state.mean, gradient, 1 - 0.9)
    square = 0.999 * state.square + (1 - 0.999) * squared(gradient)
    deviation = square.sqrt() / math.sqrt(1 - 0.999**steps) + 1e-8
    return latent - lr / (1 - 0.9**steps) * mean / deviation, AdamState(mean, square, steps)


def mean_square(gradient: Tensor) -> Tensor:
    """Return one value for the whole latent: with it Adam is Adam-mini (Zhang et al. 2024) of a single block.

    Adam moves every element by about η, however small its gradient: far from the handles too, where that is noise. By
    one common scale a latent changes where the loss depends on it, and is kept elsewhere.
    """
    return gradient.square().mean()


def sgd(latent: Tensor, gradient: Tensor, state: None, lr: float) -> tuple[Tensor, None]:
    """Take the paper's plain gradient step, z ← z - η ∂L/∂z."""
    return latent - lr * gradient, None


# Given the latent, its gradient, the state that the last update left (None at first) and η: the latent and the state.
Descend = Callable[[Tensor, Tensor, Any, float], tuple[Tensor, Any]]

OPTIMIZERS: dict[str, Descend] = {
    "adam": adam,
    "adam-mini": partial(adam, squared=mean_square),
    "sgd": sgd,
}
