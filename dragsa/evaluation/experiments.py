"""Experiments of the reproduction: what is done in one go, what it leaves, and what is concluded from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dragsa import files, pictures
from dragsa.config import EditConfig
from dragsa.evaluation import lists, runs, sheets, tables
from dragsa.evaluation.runs import Setting
from dragsa.evaluation.sheets import Panel
from dragsa.evaluation.subjects import Subject
from dragsa.evaluation.tables import Figures, Mean
from dragsa.loading import StableDiffusion

DECIDING = 5  # pictures at least, for a sentence to stand or fall


@dataclass(frozen=True)
class Item:
    """The work of one go: an experiment's `part`, 0 if it has none, of one subject, or of several."""

    experiment: str
    subjects: tuple[Subject, ...]
    part: int = 0

    @property
    def name(self) -> str:
        first_and_last = dict.fromkeys((self.subjects[0].name, self.subjects[-1].name))
        return "_".join((*first_and_last, *([str(self.part)] if self.part else [])))


class Done(NamedTuple):
    """Pictures by name, and figures as values for JSON."""

    pictures: dict[str, Image.Image]
    figures: dict[str, Any]


class Finished(NamedTuple):
    """An item, and the folder that has it once it is done."""

    item: Item
    folder: Path

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads((self.folder / "figures.json").read_text())

    @property
    def results(self) -> dict[str, Any]:
        """The figures of each result, by its name."""
        return self.figures.get("results", {})

    def picture(self, name: str) -> Image.Image | None:
        file = self.folder / f"{name}.png"
        return pictures.open_picture(file) if file.is_file() else None

    def source_panel(self) -> Panel:
        """The source with the drags on it, if it is there."""
        source = self.picture("source")
        return Panel(source and sheets.with_drags(source, self.item.subjects[0].drags))


class Report(NamedTuple):
    """An experiment's picture, and the numbers over all items."""

    picture: Image.Image
    summary: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """The command line's choices.

    `own`: one's own pictures; None for so many drawn ones of the benchmark's list `of_list`, each experiment's number.
    """

    base: EditConfig
    guidance: float
    seed: int
    count: int | None
    own: tuple[Subject, ...] | None
    of_list: str = lists.DRAWN


Configs = Mapping[str, EditConfig]


class Experiment(NamedTuple):
    """A figure or table of the paper. `needs`: what it lacks where there are no items."""

    needs: str
    settings: Callable[[Choice], list[Setting]]
    items: Callable[[Choice], list[Item]]
    do: Callable[[StableDiffusion, Item, Configs], Done]
    report: Callable[[Choice, Sequence[Finished]], Report]


LEFT_NOTE = {  # drawn or one's own
    True: "Distance left: of where the scene's object is found in the picture, from the exact truth. Background: mean "
    "difference from the truth where no object is, of 255.",
    False: "Distance left: of where DIFT finds the handles in the result. Background: mean difference from the source "
    "outside of the mask, of 255; without a mask it is not measured.",
}


def drag_words(config: EditConfig) -> str:
    drag = config.drag
    return (
        f"tap {drag.tap}, {drag.optimizer}, learning rate {drag.lr:g}, at most {drag.updates} updates, r_1 = "
        f"{drag.radius}, {drag.anchor:g} anchored"
    )


def lines_of(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the lines under a result."""
    lines = []
    if figures["left"] is not None:
        lines.append(f"left {figures['left']:.1f} px ({figures['share']:.0%})")
    if figures["background"] is not None:
        lines.append(f"background {figures['background']:.1f}")
    seconds = figures["seconds"]
    spent = seconds if isinstance(seconds, Mapping) else {"all": seconds, "lora": 0}
    lora = f", LoRA {spent['lora']:.0f}" if spent["lora"] else ""
    return (*lines, f"{spent['all']:.0f} s{lora}")


MEASURED = (
    "left",
    "share",
    "background",
    "changed",
    "yaw_left",
    "object_colour",
    "overlap",
    "truth_db",
    "style_margin",
)


def means_of(finished: Sequence[Finished], result: str) -> dict[str, Any]:
    """Return mean and interval of every figure of one result, over the subjects that have it."""
    rows = {one.item.name: one.results[result] for one in finished if result in one.results}
    found = {
        key: asdict(mean_over({name: row.get(key) for name, row in rows.items()}))
        for key in MEASURED
        if any(row.get(key) is not None for row in rows.values())
    }
    return {"pictures": len(rows), **found}


Values = Mapping[str, float | None]  # of one figure, by the subject's name


def mean_over(values: Values) -> Mean:
    """Return the mean over pictures with its bootstrap interval."""
    return tables.summarise({name: [value] for name, value in values.items()}).per_picture


def differences(mine: Figures, theirs: Figures, figure: str) -> Values:
    """Return one figure of mine minus theirs, of each case that both have."""
    both = {case: (mine[case].get(figure), theirs[case].get(figure)) for case in mine if case in theirs}
    return {case: None if a is None or b is None else a - b for case, (a, b) in both.items()}


def statement(says: str, values: Values, sign: int) -> dict[str, Any]:
    """Return a sentence with the mean it depends on, and a verdict: whether the whole interval has the sign.

    Few pictures may agree by chance, and a bootstrap of few does not see it: under `DECIDING` nothing is decided.
    """
    mean, pictures = mean_over(values), sum(value is not None for value in values.values())
    verdict = "not decided, the interval holds zero"
    if mean.low is None or mean.high is None or pictures < DECIDING:
        verdict = f"not decided, too few pictures ({pictures})"
    elif mean.low > 0 or mean.high < 0:
        verdict = "borne out" if sign * mean.low > 0 else "contradicted"
    told = {"says": says, "sign": sign, "pictures": pictures, "verdict": verdict, "found": tables.text(mean)}
    return {**told, **asdict(mean)}


def run(folder: Path, experiments: Mapping[str, Experiment], choice: Choice, model: Path, workers: int) -> None:
    """Do what is missing of the experiments, then make their pictures and numbers, and print what was found.

    Raises ValueError as `runs.claim` does.
    """
    own = None if choice.own is None else {s.name: s.identity for s in choice.own}
    work: dict[str, list[Work]] = {}
    for name, experiment in experiments.items():
        settings = experiment.settings(choice)
        runs.claim(folder / name, settings, model, seed=choice.seed, own=own, list=choice.of_list)
        configs = configs_of(settings)
        work[name] = [
            (experiment.do, Finished(item, folder / name / item.name), configs) for item in experiment.items(choice)
        ]
    runs.each(_do, [one for row in work.values() for one in row if not one[1].folder.exists()], model, workers)
    for name, experiment in experiments.items():
        finished = [one for _, one, _ in work[name]]
        report = experiment.report(choice, finished)
        told = {
            **json.loads((folder / name / "run.json").read_text()),
            "model": str(model),
            "summary": report.summary,
            "items": {one.item.name: one.figures for one in finished},
        }
        pictures.save_picture(report.picture, folder / f"{name}.png", overwrite=True)
        files.save_json(files.finite(told), folder / f"{name}.json", overwrite=True)
        for line in report.summary["notes"]:
            print(f"{name}: {line}")


def configs_of(settings: Sequence[Setting]) -> dict[str, EditConfig]:
    """Return the settings' configs by name, of those that edit."""
    return {setting.name: setting.config for setting in settings if setting.config is not None}


Work = tuple[Callable[[StableDiffusion, Item, Configs], Done], Finished, Configs]


def _do(sd: StableDiffusion, work: Work) -> str:
    """Do one item, write it whole or not at all, and return the line that says so."""
    (do, (item, folder), configs), begin = work, time.perf_counter()
    done = do(sd, item, configs)
    runs.save(folder, done.pictures, {"figures": done.figures})
    return f"{item.experiment} {item.name}  {time.perf_counter() - begin:.1f} s"
