"""Sweeps of the benchmark: one number of the edit after another, each at several values."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dragsa import checks, files, pictures
from dragsa.config import DragConfig, EditConfig
from dragsa.evaluation import runs, sheets, tables, truth_tables
from dragsa.evaluation.edits import VARIANTS
from dragsa.evaluation.runs import Results, Setting
from dragsa.evaluation.tables import Mean

BASE = "base"
FIXED = {"drag", "paste", "crop"}  # of EditConfig: the benchmark edits whole pictures, and measures what was drawn
Change = Mapping[str, Any]  # names of DragConfig's or EditConfig's fields, or "handles", and their values
PANEL = 260  # pixels of a chart's panel
TABLE = ("share", "overlap", "object_colour", "shape", "background_error", "truth_db")


class Row(NamedTuple):
    """A setting's place in a sweep: which sweep, the value as text, and the name of the setting that has it."""

    sweep: str
    value: str
    setting: str


class Plan(NamedTuple):
    """The settings to be run, each once, and the rows that they are shown in."""

    settings: list[Setting]
    rows: list[Row]


def plan(base: Setting, sweeps: Mapping[str, Sequence[Change]]) -> Plan:
    """Return every sweep's settings from one base. A value equal to the base's is the base's row."""
    settings, rows = {BASE: base}, []
    for sweep, changes in sweeps.items():
        for change in changes:
            value = ",".join(text(v) if len(change) == 1 else f"{k}={text(v)}" for k, v in change.items())
            setting = changed(base, change, name=",".join(f"{k}={text(v)}" for k, v in change.items()))
            same = (name for name, other in settings.items() if replace(other, name=setting.name) == setting)
            name = next(same, setting.name)
            settings.setdefault(name, setting)
            rows.append(Row(sweep, value, name))
    return Plan([*settings.values()], rows)


def changed(setting: Setting, change: Change, name: str) -> Setting:
    """Return the setting with other numbers. Raises ValueError for an unknown name or a value out of range."""
    config, handles = setting.config, setting.handles
    assert config is not None
    of_drag, of_edit = ({field.name for field in fields(kind)} - FIXED for kind in (DragConfig, EditConfig))
    for key, value in change.items():
        if key == "handles":
            handles = value
        elif key in of_drag:
            config = replace(config, drag=replace(config.drag, **{key: value}))
        elif key in of_edit:
            config = replace(config, **{key: value})
        else:
            known = ", ".join(sorted(of_drag | of_edit | {"handles"}))
            raise ValueError(f"no setting {key!r}; there are {known}")
    if handles not in VARIANTS:
        raise ValueError(f"handles must be one or five, came {handles!r}")
    checks.settings(config)
    return Setting(name, config, handles)


def text(value: Any) -> str:
    """Return a value as it stands in names and tables; a run of blocks as `11-16`."""
    if isinstance(value, tuple) and value:
        return f"{value[0]}-{value[-1]}"
    return "none" if value in (None, ()) else str(value)


def table(rows: Sequence[Row], results: Results) -> list[dict[str, Any]]:
    """Return each row's means with their intervals, and its difference from the base in the share left by case."""
    found = []
    base = results[BASE]
    for sweep, value, setting in (Row(BASE, "", BASE), *rows):
        of_case = results[setting]
        line: dict[str, Any] = {"sweep": sweep, "value": value, "cases": len(of_case)}
        shared = {case: [of_case[case]["share"] - base[case]["share"]] for case in of_case if case in base}
        means = {figure: tables.summary(of_case, figure).per_picture for figure in TABLE}
        for name, mean in {**means, "share - base": tables.summarise(shared).per_picture}.items():
            line |= {name: mean.mean, f"{name} low": mean.low, f"{name} high": mean.high}
        line["halved"] = sum(figures["share"] < 0.5 for figures in of_case.values()) / max(1, len(of_case))
        line["not found"] = sum(not figures["found"] for figures in of_case.values())
        by_kind = {f"share, {kind}": (kind, "share") for kind in truth_tables.kinds_of(results)} | {
            "angle left, turn": ("turn", "yaw_left")
        }
        for name, (kind, figure) in by_kind.items():
            line[name] = tables.summary(tables.of_kind(of_case, kind), figure).per_picture.mean
        spent = [(figures["drag"]["updates"], figures["seconds"]["all"]) for figures in of_case.values()]
        line["updates"], line["seconds"] = map(statistics.fmean, zip(*spent, strict=True)) if spent else (None, None)
        found.append(line)
    return found


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the table's main columns as Markdown."""
    by_kind = dict.fromkeys(name for line in lines for name in line if name.startswith("share, "))
    of_kinds = {name: (name, 2) for name in (*by_kind, "angle left, turn")}
    columns = {"share left": ("share", 2), "− base": ("share - base", 2), "halved": ("halved", 0), **of_kinds}
    columns |= {"IoU": ("overlap", 2), "object's colour": ("object_colour", 1), "shape": ("shape", 2)}
    columns |= {"background": ("background_error", 1), "truth dB": ("truth_db", 1)}
    columns |= {"updates": ("updates", 0), "s": ("seconds", 1)}
    rows = []
    for line in lines:
        row = {"sweep": line["sweep"], "value": line["value"]}
        for heading, (name, digits) in columns.items():
            row[heading] = tables.text(_mean(line, name), digits, sign=name == "share - base")
        rows.append({**row, "halved": f"{line['halved']:.0%}"})
    return tables.markdown(rows)


def write_tables(folder: Path, rows: int = 4) -> str:
    """Write sweep.csv, results.json, chart.png and sheet.png of a sweep's folder, and return the table as text."""
    results = runs.read(folder)
    path = folder / "sweep.json"
    if not path.is_file():
        raise ValueError(f"{folder}: a run of truth_bench.py, not of sweep.py")
    planned = [Row(**row) for row in json.loads(path.read_text())]
    lines = table(planned, results)
    written = io.StringIO()
    writer = csv.DictWriter(written, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.save_bytes(written.getvalue().encode(), folder / "sweep.csv", overwrite=True)
    files.save_json({"table": lines, "results": results}, folder / "results.json", overwrite=True)
    pictures.save_picture(chart(lines), folder / "chart.png", overwrite=True)
    pictures.save_picture(truth_tables.sheet(folder, list(results), rows), folder / "sheet.png", overwrite=True)
    return markdown(lines)


def chart(lines: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw the share left of every value with its interval beside the base's, a panel for each sweep."""
    base, *rest = lines
    most = max(1.0, *(line[name] or 0.0 for line in lines for name in ("share", "share high")))
    panels = []
    for sweep in dict.fromkeys(line["sweep"] for line in rest):
        mine = [line for line in rest if line["sweep"] == sweep]
        means = {"mean": [_mean(line, "share") for line in mine], BASE: [Mean(base["share"], None, None)] * len(mine)}
        values = [line["value"].replace("+", "\n+") for line in mine]
        title = f"{sweep}: share of the distance left"
        panels.append(sheets.chart(title, values, means, "", height=PANEL, span=(0.0, most)))
    whole = Image.new("RGB", (900, max(1, len(panels)) * PANEL), "white")
    for n, panel in enumerate(panels):
        whole.paste(panel, (0, n * PANEL))
    return whole


def _mean(line: Mapping[str, Any], name: str) -> Mean:
    """Return a mean of the table's line, with its interval where it has one."""
    return Mean(line[name], line.get(f"{name} low"), line.get(f"{name} high"))
