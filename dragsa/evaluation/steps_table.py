"""Table 1: the edit at every control step and drag step, by the base's patches and by the paper's."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dragsa import editing
from dragsa.config import EditConfig
from dragsa.evaluation import experiments, quality, sheets, subjects
from dragsa.evaluation.experiments import Choice, Configs, Done, Experiment, Finished, Item, Report
from dragsa.evaluation.prompts import edited
from dragsa.evaluation.runs import Setting
from dragsa.evaluation.sheets import Panel, Row
from dragsa.evaluation.tables import Mean
from dragsa.loading import StableDiffusion

TABLE_STEPS = tuple(range(4, 9))  # of control and of drag in the paper's table 1
BEYOND = (10, 12)  # drag steps, at the last of the control steps: whether the change has settled
TABLE_LR, TABLE_UPDATES = 0.01, 80  # the paper's
COUNT = 5  # drawn pictures
TABLE, PAPERS = "table", "paper"  # the settings: the base's patches, and the paper's r_1 without an anchor


def table_config(choice: Choice) -> EditConfig:
    """Return the base with the paper's learning rate, updates and optimiser."""
    optimizer = EditConfig.paper().drag.optimizer
    drag = replace(choice.base.drag, lr=TABLE_LR, updates=TABLE_UPDATES, optimizer=optimizer)
    return replace(choice.base, drag=drag, guidance=choice.guidance)


def settings(choice: Choice) -> list[Setting]:
    """Return the two settings; control and drag step are the table's, and the item's part is the drag step."""
    base, paper = table_config(choice), EditConfig.paper().drag
    printed = replace(base.drag, radius=paper.radius, anchor=paper.anchor)
    return [Setting(TABLE, base), Setting(PAPERS, replace(base, drag=printed))]


def items(choice: Choice) -> list[Item]:
    if choice.own is None:
        mine = subjects.restyled(choice.of_list, choice.count or COUNT, choice.base.size, choice.seed)
    else:
        mine = [s for s in choice.own if s.picture is not None and s.drags and s.target_prompt]
    return [Item("table1", (subject,), step) for subject in mine for step in (*TABLE_STEPS, *BEYOND)]


Columns = Mapping[int, Mapping[str, Mapping[str, Any]]]  # drag step -> `name_of` -> figures
FREE = "without control"


def name_of(setting: str, control_step: int | None) -> str:
    """Return the name of a setting's edit at a control step, or without control."""
    return f"{setting}, {FREE if control_step is None else f'control {control_step}'}"


OWN = "like the prompt's own"  # what the prompt gives without control


def do(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """Make one drag step's edits under every control step, and without control, as the prompt alone would have it."""
    (subject,), step = item.subjects, item.part
    assert subject.picture is not None
    source = editing.prepare(sd, subject.picture, subject.prompt, subject.seed, configs[TABLE])
    steps: tuple[int | None, ...] = (None, *TABLE_STEPS) if step in TABLE_STEPS else (TABLE_STEPS[-1],)
    pictures, figures = {}, {}
    for setting, control_step in itertools.product(configs, steps):
        name, free = name_of(setting, control_step), name_of(setting, None)
        now = replace(configs[setting], drag_step=step, control_step=control_step)
        pictures[name] = edited(sd, source, now, subject, subject.drags)
        figures[name] = {
            "changed": quality.difference(subject.picture, pictures[name]),
            OWN: quality.likeness(pictures[name], pictures[free]) if free in pictures else None,
        }
    given = {"prompt": subject.prompt, "target_prompt": subject.target_prompt, "drags": subject.drags}
    return Done({"source": subject.picture, **pictures}, {**given, "drag step": step, "results": figures})


def report(choice: Choice, finished: Sequence[Finished]) -> Report:
    by_subject: dict[str, dict[int, Finished]] = {}
    for one in finished:
        by_subject.setdefault(one.item.subjects[0].name, {})[one.item.part] = one
    values = {name: {step: one.results for step, one in columns.items()} for name, columns in by_subject.items()}
    found = {setting.name: found_of(values, setting.name) for setting in settings(choice)}
    configs = experiments.configs_of(settings(choice))

    first = next(iter(by_subject.values()))
    shown = first[TABLE_STEPS[0]]
    subject = shown.item.subjects[0]
    rows = [*_rows(first, {setting: one["changed"] for setting, one in found.items()})]
    rows.append(Row("source", [shown.source_panel()]))
    notes = [
        f"{subject.prompt}, to become {subject.target_prompt}. T = {choice.base.steps}, "
        f"{experiments.drag_words(configs[TABLE])}, guidance {choice.guidance:g}, seed {choice.seed}; on the right "
        f"{experiments.drag_words(configs[PAPERS])}. Changed: mean difference from the source, of 255; the mean is "
        f"over {len(by_subject)} pictures. Like the prompt's: structural similarity to the same prompt and drag "
        "without control."
    ]
    for setting, config in configs.items():
        of = f"The paper, r_1 = {config.drag.radius}, {config.drag.anchor:g} anchored"
        notes += [
            f"{of}: {one['says']}. Ours: {one['verdict']}, {one['found']}." for one in found[setting]["statements"]
        ]
    title = "Table 1: control step (rows) by drag step (columns)"
    heads = [f"drag step {step}, r_1 = {one.drag.radius}" for one in configs.values() for step in TABLE_STEPS]
    summary = {**found[TABLE], "at the paper's r_1": found[PAPERS], "notes": notes}
    return Report(sheets.sheet(title, heads, rows, notes), summary)


def found_of(values: Mapping[str, Columns], setting: str) -> dict[str, Any]:
    """Return a setting's means by cell, and whether they bear out what the paper says of them. values: by picture."""

    def cell(key: str, control_step: int, step: int) -> Mean:
        name = name_of(setting, control_step)
        return experiments.mean_over({picture: rows[step][name][key] for picture, rows in values.items()})

    last, table = TABLE_STEPS[-1], [(a, s) for a in TABLE_STEPS for s in TABLE_STEPS]
    changed = {cell_name(a, s): asdict(cell("changed", a, s)) for a, s in [*table, *((last, s) for s in BEYOND)]}
    like = {cell_name(a, s): asdict(cell(OWN, a, s)) for a, s in table}
    lower, later = (correlations(values, setting, *of) for of in (("changed", "drag"), (OWN, "control")))
    at_last = {
        picture: {s: rows[s][name_of(setting, last)]["changed"] for s in rows} for picture, rows in values.items()
    }
    settled = {picture: settling(changed_at) for picture, changed_at in at_last.items()}
    says = [
        experiments.statement(
            "the lower the drag step, the larger the change (rank correlation of drag step and change)", lower, -1
        ),
        experiments.statement(
            f"the change has settled from drag step {last} on (by how much steeper it falls, a step, from "
            f"{TABLE_STEPS[0]} to {last} than from {last} to {BEYOND[-1]})",
            settled,
            1,
        ),
        experiments.statement(
            "a later control step follows the target prompt's structure more (rank correlation of control step and "
            "likeness to what the prompt gives without control)",
            later,
            1,
        ),
    ]
    return {"changed": changed, OWN: like, "statements": says}


def cell_name(control_step: int, step: int) -> str:
    return f"A {control_step}, S {step}"


def _rows(columns: Mapping[int, Finished], changed: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return the sheet's rows: one subject's edits at each control step and without control, the settings side by side.

    changed: by setting and cell, the mean over all subjects.
    """
    figures = {step: columns[step].results for step in TABLE_STEPS}
    rows = []
    for control_step in (*TABLE_STEPS, None):
        panels = []
        for setting, step in itertools.product(changed, TABLE_STEPS):
            name = name_of(setting, control_step)
            lines = [f"changed {figures[step][name]['changed']:.1f}"]
            if control_step is not None:
                lines[0] += f", mean {changed[setting][cell_name(control_step, step)]['mean']:.1f}"
                lines.append(f"like the prompt's {figures[step][name][OWN]:.2f}")
            panels.append(Panel(columns[step].picture(name), tuple(lines)))
        rows.append(Row(FREE if control_step is None else f"control step {control_step}", panels))
    return rows


def correlations(values: Mapping[str, Columns], setting: str, key: str, step: str) -> dict[str, float | None]:
    """Return for each picture Spearman's rank correlation of a setting's figure with the drag or the control step.

    Over the other step's values one by one, and the mean of those: they are steps of one picture, not further draws.
    """
    found = {}
    for name, columns in values.items():
        table = np.array([[columns[s][name_of(setting, a)][key] for s in TABLE_STEPS] for a in TABLE_STEPS])  # (A, S)
        lines = table if step == "drag" else table.T
        rows = [rank_correlation(np.array(TABLE_STEPS), line) for line in lines]
        found[name] = None if any(math.isnan(row) for row in rows) else statistics.fmean(rows)
    return found


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's coefficient: Pearson's of the ranks, equal values sharing theirs. NaN where all are equal."""
    ranks = [[(v < one).sum() + (v == one).sum() / 2 for one in v] for v in (x, y)]
    if any(len(set(row)) == 1 for row in ranks):
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


def settling(changed: Mapping[int, float]) -> float:
    """Return by how much less the change alters, a step, beyond the table's last drag step than within the table."""
    first, last, end = TABLE_STEPS[0], TABLE_STEPS[-1], BEYOND[-1]
    within = abs(changed[first] - changed[last]) / (last - first)
    return within - abs(changed[last] - changed[end]) / (end - last)


TABLE1 = Experiment("no job has an image, a target prompt and a drag", settings, items, do, report)
