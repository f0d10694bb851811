"""Check that every setting is of its annotation and within its range."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dragsa.config import DragConfig, EditConfig, is_whole

# Settings that are whole numbers, and those that are numbers, each with the least of them; and shares of something.
_WHOLE = {"updates": 0, "radius": 0, "track_radius": 0, "patience": 1, "lost_patience": 1, "stall": 1, "drag_step": 0}
_WHOLE |= {"control_step": 0, "fixed_point": 0, "lora_steps": 0, "source_kv_memory": 0}
_NUMBERS = {"lr": 0, "lam": 0, "reach": 0, "guidance": 0, "drag_guidance": 1}
_SHARES = ("anchor", "mask_threshold")


def check(config: DragConfig | EditConfig) -> None:
    """Raise a ValueError that names the first setting which is not of its annotation, or out of its range."""
    for name, kind in get_type_hints(type(config)).items():
        value, may_be_none = getattr(config, name), type(None) in get_args(kind)
        if may_be_none and value is None:
            continue
        problem = misfit(value, get_args(kind)[0] if may_be_none else kind)
        if name in _WHOLE and not (is_whole(value) and value >= _WHOLE[name]):
            problem = f"a whole number from {_WHOLE[name]}"
        if name in _NUMBERS and (problem or not _NUMBERS[name] <= value < math.inf):
            problem = f"a number from {_NUMBERS[name]}"
        if name in _SHARES and (problem or not 0 <= value <= 1):
            problem = "a number from 0 to 1"
        if problem:
            raise ValueError(f"{name} must be {problem}, came {value!r}")


def misfit(value: Any, kind: Any) -> str:
    """Return in words what a value had to be, for one that is not of the kind that annotates it, else ""."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return "" if isinstance(value, str) and value in inner else f"one of {', '.join(inner)}"
    if get_origin(kind) is tuple:
        whole = isinstance(value, tuple) and not any(misfit(one, inner[0]) for one in value)
        return "" if whole else f"a tuple of {'texts' if inner[0] is str else 'whole numbers'}"
    if kind is int:
        if is_whole(value):
            return "" if abs(int(value)) < 2**63 else "a whole number that tensors hold, under 2^63"
        return "a whole number"
    if kind is float:
        return "" if isinstance(value, numbers.Real) and not isinstance(value, bool) else "a number"
    return "" if isinstance(value, kind) else {bool: "True or False", str: "a text"}.get(kind, f"a {kind.__name__}")
