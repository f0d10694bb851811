"""Table 1: the edit at every control step and drag step."""

from __future__ import annotations

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


def table_config(choice: Choice) -> EditConfig:
    """Return the base with the paper's learning rate, updates and optimiser."""
    optimizer = EditConfig.paper().drag.optimizer
    drag = replace(choice.base.drag, lr=TABLE_LR, updates=TABLE_UPDATES, optimizer=optimizer)
    return replace(choice.base, drag=drag, guidance=choice.guidance)


def settings(choice: Choice) -> list[Setting]:
    """Return the one setting; control and drag step are the table's, and the item's part is the drag step."""
    return [Setting("table", table_config(choice))]


def items(choice: Choice) -> list[Item]:
    if choice.own is None:
        mine = subjects.restyled(choice.count or COUNT, choice.base.size, choice.seed)
    else:
        mine = [s for s in choice.own if s.picture is not None and s.drags and s.target_prompt]
    return [Item("table1", (subject,), step) for subject in mine for step in (*TABLE_STEPS, *BEYOND)]


FREE = "without control"
OWN = "like the prompt's own"  # what the prompt gives without control


def do(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """Make one drag step's edits under every control step, and without control, as the prompt alone would have it."""
    (subject,), step, config = item.subjects, item.part, configs["table"]
    assert subject.picture is not None
    source = editing.prepare(sd, subject.picture, subject.prompt, subject.seed, config)
    steps: tuple[int | None, ...] = (None, *TABLE_STEPS) if step in TABLE_STEPS else (TABLE_STEPS[-1],)
    pictures, figures = {}, {}
    for control_step in steps:
        name = FREE if control_step is None else f"control-{control_step}"
        now = replace(config, drag_step=step, control_step=control_step)
        pictures[name] = edited(sd, source, now, subject, subject.drags)
        figures[name] = {
            "changed": quality.difference(subject.picture, pictures[name]),
            OWN: quality.likeness(pictures[name], pictures[FREE]) if FREE in pictures else None,
        }
    given = {"prompt": subject.prompt, "target_prompt": subject.target_prompt, "drags": subject.drags}
    return Done({"source": subject.picture, **pictures}, {**given, "drag step": step, "results": figures})


def report(choice: Choice, finished: Sequence[Finished]) -> Report:
    by_subject: dict[str, dict[int, Finished]] = {}
    for one in finished:
        by_subject.setdefault(one.item.subjects[0].name, {})[one.item.part] = one
    values = {name: {step: one.results for step, one in columns.items()} for name, columns in by_subject.items()}

    def cell(key: str, control_step: int, step: int) -> Mean:
        return experiments.mean_over(
            {name: rows[step][f"control-{control_step}"][key] for name, rows in values.items()}
        )

    last, table = TABLE_STEPS[-1], [(a, s) for a in TABLE_STEPS for s in TABLE_STEPS]
    means = {(a, s): cell("changed", a, s) for a, s in [*table, *((last, step) for step in BEYOND)]}
    changed = {f"A {a}, S {s}": asdict(mean) for (a, s), mean in means.items()}
    like = {f"A {a}, S {s}": asdict(cell(OWN, a, s)) for a, s in table}
    lower, later = (correlations(values, *of) for of in (("changed", "drag"), (OWN, "control")))
    at_last = {name: {s: rows[s][f"control-{last}"]["changed"] for s in rows} for name, rows in values.items()}
    settled = {name: settling(changed_at) for name, changed_at in at_last.items()}
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
    first = next(iter(by_subject.values()))
    rows = _rows(first, means)
    shown = first[TABLE_STEPS[0]]
    subject = shown.item.subjects[0]
    rows.append(Row("source", [shown.source_panel()]))
    notes = [
        f"{subject.prompt}, to become {subject.target_prompt}. T = {choice.base.steps}, "
        f"{experiments.drag_words(table_config(choice))}, guidance {choice.guidance:g}, seed {choice.seed}. "
        f"Changed: mean difference from the source, of 255; the mean is over {len(by_subject)} pictures. Like the "
        "prompt's: structural similarity to the same prompt and drag without control.",
        *(f"The paper: {one['says']}. Ours: {one['verdict']}, {one['found']}." for one in says),
    ]
    title = "Table 1: control step (rows) by drag step (columns)"
    heads = [f"drag step {step}" for step in TABLE_STEPS]
    summary = {"changed": changed, OWN: like, "statements": says, "notes": notes}
    return Report(sheets.sheet(title, heads, rows, notes), summary)


def _rows(columns: Mapping[int, Finished], changed: Mapping[tuple[int, int], Mean]) -> list[Row]:
    """Return the sheet's rows: one subject's edits at each control step and without control."""
    figures = {step: columns[step].results for step in TABLE_STEPS}
    rows = []
    for control_step in (*TABLE_STEPS, None):
        name = FREE if control_step is None else f"control-{control_step}"
        panels = []
        for step in TABLE_STEPS:
            lines = [f"changed {figures[step][name]['changed']:.1f}"]
            if control_step is not None:
                lines[0] += f", mean {changed[control_step, step].mean:.1f}"
                lines.append(f"like the prompt's {figures[step][name][OWN]:.2f}")
            panels.append(Panel(columns[step].picture(name), tuple(lines)))
        rows.append(Row(FREE if control_step is None else f"control step {control_step}", panels))
    return rows


Columns = Mapping[int, Mapping[str, Mapping[str, Any]]]  # drag step -> control step's name -> figures


def correlations(values: Mapping[str, Columns], key: str, step: str) -> dict[str, float | None]:
    """Return for each picture Spearman's rank correlation of a figure with the drag step or the control step.

    Over the other step's values one by one, and the mean of those: they are steps of one picture, not further draws.
    """
    found = {}
    for name, columns in values.items():
        table = np.array([[columns[s][f"control-{a}"][key] for s in TABLE_STEPS] for a in TABLE_STEPS])  # (A, S)
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
