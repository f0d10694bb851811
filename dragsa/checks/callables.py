"""Checks of the functions that an edit or a drag is given, and of what they return."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor

# By argument: what its function is called with, by position.
PARAMETERS = {
    "control": ("step",),
    "hook": ("site", "q", "k", "v", "attend"),
    "supervision": ("run", "task", "first_pass", "lap"),
    "optimizer": ("latent", "gradient", "state", "lr"),
    "observe": ("event",),
}
PARAMETERS["attention"] = PARAMETERS["hook"]
Given = TypeVar("Given")


def functions(**given: Any) -> None:
    """Raise a ValueError that names the first of these which is neither None nor a function of its parameters."""
    for name, value in given.items():
        if value is None:
            continue
        if not callable(value):
            raise ValueError(f"{name} must be a function, came {value!r}")
        if not takes(value, *PARAMETERS[name]):
            if name == "control" and takes(value, *PARAMETERS["hook"]):
                raise ValueError(
                    "control is a function of the step that returns a hook (lambda step: hook), came a hook"
                )
            form = ", ".join(PARAMETERS[name])
            raise ValueError(f"{name} is a function of ({form}), came one of {inspect.signature(value)}")


def takes(function: Any, *parameters: str) -> bool:
    """Tell whether a function can be called with these by position; so is one whose signature cannot be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*parameters)
    except TypeError:
        return False
    return True


def hook(given: Given) -> Given:
    """Return what a control gave for a step. Raises ValueError for what is neither a hook nor None."""
    functions(hook=given)
    return given


def supervised(found: Given) -> Given:
    """Return what a supervision returned. Raises ValueError unless it has a loss that can be minimised.

    Within a graph nothing is looked at: the first update of a drag is never compiled.
    """
    if torch.compiler.is_compiling():
        return found
    if not hasattr(found, "loss"):
        raise ValueError(f"supervision must return a drag.Supervision, came {type(found).__name__}")
    loss = found.loss
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError("supervision: the loss must be a scalar that depends on task.latent")
    return found
