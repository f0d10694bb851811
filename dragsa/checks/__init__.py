"""Check that what is asked for fits together: a ValueError in one line, before any work is done, where it does not."""

from dragsa.checks.callables import functions, hook, supervised
from dragsa.checks.requests import configured, generation, request, settings, words
from dragsa.checks.tensors import drag_on, drag_settings, looked_at, mask_on, motion, points_about, points_of, tracking

__all__ = [
    "configured",
    "drag_on",
    "drag_settings",
    "functions",
    "generation",
    "hook",
    "looked_at",
    "mask_on",
    "motion",
    "points_about",
    "points_of",
    "request",
    "settings",
    "supervised",
    "tracking",
    "words",
]
