"""Tensors to modules: names and shapes must fit both ways, and the tensors are taken as they are, not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

Shape = tuple[int, ...]
M = TypeVar("M", bound=nn.Module)


class WeightsError(ValueError):
    """These are not weights that can be loaded; the message says why and what to do."""


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def misfit(wanted: Mapping[str, Shape], given: Mapping[str, Shape], left_over: Sequence[str] = ()) -> str:
    """Say what is missing, left over or misshapen: the first ten of each, and how many. Empty if everything fits."""
    misshapen = [
        f"{name} {list(given[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    lists = {
        "missing": [name for name in wanted if name not in given],
        "left over": [*left_over, *(name for name in given if name not in wanted)],
        "misshapen": misshapen,
    }
    return "; ".join(listed(what, names) for what, names in lists.items() if names)


def listed(what: str, names: Sequence[str]) -> str:
    """Say how many names there are, and the first ten of them."""
    more = f", and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} {what} ({', '.join(names[:10])}{more})"


def fit(module: M, tensors: Mapping[str, Tensor]) -> M:
    """Return the module with these tensors as `adopt` does. Raises WeightsError that lists those which do not fit."""
    if problem := misfit(shapes(module.state_dict()), shapes(tensors)):
        raise WeightsError(f"the tensors do not fit the {type(module).__name__}: {problem}")
    return adopt(module, tensors)


def adopt(module: M, tensors: Mapping[str, Tensor]) -> M:
    """Return the module with these tensors as its own; frozen, in evaluation mode. The caller's stay as they are."""
    module.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()}, assign=True)
    return module.requires_grad_(False).eval()
