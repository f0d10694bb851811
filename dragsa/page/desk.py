"""Things that a page is opened with: the models to choose from, its form, and how a job is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dragsa import checks
from dragsa.config import EditConfig
from dragsa.editing import Drag
from dragsa.loading import StableDiffusion

Job = dict[str, Any]  # options of `dragsa edit` by their names, as a job file has them


@dataclass(frozen=True)
class Asked:
    """An edit that is asked for: all that a job says but its picture and its mask."""

    config: EditConfig
    drags: tuple[Drag, ...] = ()  # in pixels of the picture
    prompt: str = ""
    target_prompt: str | None = None
    negative_prompt: str = ""
    seed: int = 42

    @property
    def of_source(self) -> tuple[Any, ...]:
        """All that its source depends on but picture and model: an edit that shares it needs no inversion."""
        return self.prompt, self.negative_prompt, self.seed, checks.of_source(self.config)


@dataclass(frozen=True)
class Example:
    """A picture to begin with, what it shows, and the settings that its size asks for, by their fields on the page."""

    picture: Path
    prompt: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Desk:
    """Things that the program which opens the page lays out on it.

    `models`: how each is loaded, by the name that the page shows. `form`: groups of settings and the presets' values,
    for the page to draw. `read(model, job)` gives what a job asks for; `jobs_in(value, model)` the jobs of a job file's
    JSON, as the page has them; `to_file(model, job)` a job of the page as a job file has it. All three raise ValueError
    in one line. An upload has at most `megabytes`, a picture at most `megapixels`.
    """

    models: Mapping[str, Callable[[], StableDiffusion]]
    form: Mapping[str, Any]
    read: Callable[[str, Mapping[str, Any]], Asked]
    jobs_in: Callable[[Any], list[Job]]
    to_file: Callable[[str, Mapping[str, Any]], Job]
    example: Example | None = None
    megabytes: float = 64
    megapixels: float = 20
    tabs: int = 32  # open at once
