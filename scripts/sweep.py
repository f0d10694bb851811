"""One number of the edit after another, each at several values, on the benchmark's cases for choosing settings.

    python scripts/sweep.py run RUN --sweep tap --sweep level         ready lists: see SWEEPS
    python scripts/sweep.py run RUN --vary lr=0.01,0.02,0.04          any number of DragConfig or EditConfig
    python scripts/sweep.py run RUN --set tap=block14 --vary ...      from other numbers than the small model's
    python scripts/sweep.py table RUN                                 the tables again, from what the folder holds

All settings of a picture share its inversion, those that differ only after the drag share the drag, and those of one
level the source's K/V, which the first pays for. The folder is as truth_bench.py makes it: a case is there whole or not
at all, a run goes on where it stood, and the work is shared by `--workers` processes and torchrun's ranks. `table`
writes RUN/sweep.csv, RUN/results.json, RUN/chart.png and RUN/sheet.png. Differences are from the same case under the
base's numbers, so they are surer than the means are.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import cases
import intervals
import truth_bench
from PIL import Image, ImageDraw, ImageFont
from truth_bench import Setting

from dragsa import cli, editing, files
from dragsa.config import DragConfig, EditConfig
from dragsa.pictures import images

BASE = "base"
Change = Mapping[str, Any]  # names of DragConfig's or EditConfig's fields, or "handles", and their values

SWEEPS: dict[str, list[Change]] = {
    "tap": [
        {"tap": tap}
        for tap in (
            *("block13", "block14", "block15", "block16", "decoder2", "decoder3"),
            *("block14+block15", "block14+block16", "block14+block15+block16"),
        )
    ],
    "level": [{"drag_step": step} for step in (5, 10, 15, 20, 25, 30, 35)],
    "lr": [{"lr": lr} for lr in (0.01, 0.02, 0.05, 0.1)],
    "radius": [{"radius": radius} for radius in (0, 1, 2, 3, 5)],
    "track": [{"track_radius": radius} for radius in (2, 3, 5, 8)],
    "lam": [{"lam": lam} for lam in (0.0, 0.1, 0.5, 1.0)],
    "updates": [{"updates": updates} for updates in (40, 80, 120, 200)],
    "control": [{"control_step": step} for step in (None, 0, 4, 10, 20, 30, 40)],
    "blocks": [{"control_blocks": tuple(range(first, 17))} for first in (7, 9, 11, 13, 15)],
    "optimizer": [
        *({"optimizer": name} for name in ("adam", "adam-mini")),
        *({"optimizer": "sgd", "lr": lr} for lr in (0.01, 0.1, 1.0)),
    ],
    "reference": [{"reference": name} for name in ("first", "current")],
    "handles": [{"handles": name} for name in ("one", "five")],
}
TABLE = ("share", "overlap", "object_colour", "shape", "background_error", "truth_db")


@dataclass(frozen=True)
class Row:
    """A setting's place in a sweep: which sweep, the value as text, and the name of the setting that has it."""

    sweep: str
    value: str
    setting: str


@dataclass(frozen=True)
class Plan:
    """The settings to be run, each once, and the rows that they are shown in."""

    settings: tuple[Setting, ...]
    rows: tuple[Row, ...]


def plan(base: EditConfig, sweeps: Mapping[str, Sequence[Change]], handles: str = "five") -> Plan:
    """Every sweep's settings from one base. A value that is the base's own is the base's row, not another edit."""
    start = Setting(BASE, base, handles)
    settings, rows = {BASE: start}, []
    for sweep, changes in sweeps.items():
        for change in changes:
            value = ",".join(text(v) if len(change) == 1 else f"{k}={text(v)}" for k, v in change.items())
            setting = changed(start, change, name=",".join(f"{k}={text(v)}" for k, v in change.items()))
            same = [name for name, other in settings.items() if replace(other, name=setting.name) == setting]
            settings.setdefault(same[0] if same else setting.name, setting)
            rows.append(Row(sweep, value, same[0] if same else setting.name))
    return Plan(tuple(settings.values()), tuple(rows))


def changed(setting: Setting, change: Change, name: str) -> Setting:
    """The setting with other numbers. Raises ValueError for a name that there is not, or a value out of its range."""
    config, handles = setting.config, setting.handles
    assert config is not None
    of_drag, of_edit = ({field.name for field in fields(kind)} for kind in (DragConfig, EditConfig))
    for key, value in change.items():
        if key == "handles":
            handles = value
        elif key in of_drag:
            config = replace(config, drag=replace(config.drag, **{key: value}))
        elif key in of_edit and key != "drag":
            config = replace(config, **{key: value})
        else:
            known = ", ".join(sorted(of_drag | of_edit - {"drag"} | {"handles"}))
            raise ValueError(f"no setting {key!r}; there are {known}")
    if handles not in ("one", "five"):
        raise ValueError(f"handles must be one or five, came {handles!r}")
    editing.check(config)
    return Setting(name, config, handles)


def text(value: Any) -> str:
    """A value as it stands in names and tables; a run of blocks as `11-16`."""
    if isinstance(value, tuple):
        return f"{value[0]}-{value[-1]}" if value else "none"
    return "none" if value is None else str(value)


def parsed(key: str, value: str) -> Any:
    """A value as given on the command line: a number, `none`, blocks as `11-16`, or a word."""
    if key == "control_blocks":
        first, _, last = value.partition("-")
        return tuple(range(int(first), int(last or first) + 1))
    if value == "none":
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def assignment(given: str) -> tuple[str, list[Any]]:
    """`lr=0.01,0.02` -> the name, and the values."""
    key, equals, values = given.partition("=")
    if not equals or not values:
        raise ValueError(f"expected NAME=VALUE or NAME=VALUE,VALUE…, came {given!r}")
    return key, [parsed(key, value) for value in values.split(",")]


# -------------------------------------------------------------------------------------------------------- the results


def table(rows: Sequence[Row], results: truth_bench.Results) -> list[dict[str, Any]]:
    """Each row's means with their intervals, and its difference from the base in the share left, case by case."""
    found = []
    base = results[BASE]
    for row in (Row(BASE, "", BASE), *rows):
        of_case = results[row.setting]
        line: dict[str, Any] = {"sweep": row.sweep, "value": row.value, "cases": len(of_case)}
        for figure in TABLE:
            mean = truth_bench.summary(of_case, figure).per_picture
            line |= {figure: mean.mean, f"{figure} low": mean.low, f"{figure} high": mean.high}
        shared = {case: [of_case[case]["share"] - base[case]["share"]] for case in of_case if case in base}
        against = intervals.summarise(shared).per_picture
        line |= {"share - base": against.mean, "share - base low": against.low, "share - base high": against.high}
        line["halved"] = sum(figures["share"] < 0.5 for figures in of_case.values()) / max(1, len(of_case))
        line["not found"] = sum(not figures["found"] for figures in of_case.values())
        for kind in cases.KINDS:
            mine = {case: figures for case, figures in of_case.items() if figures["kind"] == kind}
            line[f"share, {kind}"] = truth_bench.summary(mine, "share").per_picture.mean
        turned = {case: figures for case, figures in of_case.items() if figures["kind"] == "turn"}
        line["angle left, turn"] = truth_bench.summary(turned, "yaw_left").per_picture.mean
        line["updates"] = _mean(figures["drag"]["updates"] for figures in of_case.values())
        line["seconds"] = _mean(figures["seconds"]["all"] for figures in of_case.values())
        found.append(line)
    return found


def _mean(values: Any) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table's main columns as Markdown."""
    heads = ["sweep", "value", "share left", "− base", "halved", *(f"share, {kind}" for kind in cases.KINDS)]
    heads += ["angle left, turn", "IoU", "object's colour", "shape", "background", "truth dB", "updates", "s"]
    rows = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]

    def mean(line: Mapping[str, Any], name: str, digits: int = 2, sign: bool = False) -> str:
        if line[name] is None:
            return "–"
        plain = f"{line[name]:{'+' if sign else ''}.{digits}f}"
        low, high = line.get(f"{name} low"), line.get(f"{name} high")
        return plain if low is None or high is None else f"{plain} ({low:.{digits}f} to {high:.{digits}f})"

    for line in lines:
        cells = [line["sweep"], line["value"], mean(line, "share"), mean(line, "share - base", sign=True)]
        cells += [f"{line['halved']:.0%}", *(mean(line, f"share, {kind}") for kind in cases.KINDS)]
        cells += [
            mean(line, "angle left, turn"),
            mean(line, "overlap"),
            mean(line, "object_colour", 1),
            mean(line, "shape"),
        ]
        cells += [mean(line, "background_error", 1), mean(line, "truth_db", 1), mean(line, "updates", 0)]
        cells += [mean(line, "seconds", 1)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def write_tables(folder: Path, rows: int = 4) -> str:
    """sweep.csv, results.json, chart.png and sheet.png of what a sweep's folder holds; gives the table as text."""
    results = truth_bench.read(folder)
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
    images.save_picture(chart(lines), folder / "chart.png", overwrite=True)
    images.save_picture(truth_bench.sheet(folder, list(results), rows), folder / "sheet.png", overwrite=True)
    return markdown(lines)


def chart(lines: Sequence[Mapping[str, Any]]) -> Image.Image:
    """The share left of every value with its interval, a panel for each sweep; a grey line where the base stands."""
    base, *rest = lines
    sweeps = list(dict.fromkeys(line["sweep"] for line in rest))
    width, height, left, step = 900, 260, 60, 110
    font, small = ImageFont.load_default(16), ImageFont.load_default(12)
    whole = Image.new("RGB", (width, max(1, len(sweeps)) * height), "white")
    ink = ImageDraw.Draw(whole)
    ends = [line[name] for line in lines for name in ("share", "share high") if line[name] is not None]
    most = max(1.0, *ends) if ends else 1.0
    for panel, sweep in enumerate(sweeps):
        top, bottom = panel * height + 40, (panel + 1) * height - 40

        def at(share: float, top: int = top, bottom: int = bottom) -> float:
            return bottom - (bottom - top) * share / most

        ink.text((left, top - 32), f"{sweep}: share of the distance left", fill="black", font=font)
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            ink.line((left, at(tick), width - 20, at(tick)), fill="#e0e0e0")
            ink.text((18, at(tick) - 7), f"{tick:.2f}", fill="black", font=small)
        if base["share"] is not None:
            ink.line((left, at(base["share"]), width - 20, at(base["share"])), fill="#909090", width=2)
        mine = [line for line in rest if line["sweep"] == sweep]
        apart = min(step, (width - left - 60) / max(1, len(mine)))
        points = []
        for n, line in enumerate(mine):
            x = left + apart * (n + 0.5)
            ink.text((x, bottom + 8), line["value"].replace("+", "\n+"), fill="black", font=small, anchor="ma")
            if line["share"] is None:
                continue
            if line["share low"] is not None:
                ink.line((x, at(line["share low"]), x, at(line["share high"])), fill="#2060ff", width=2)
            points.append((x, at(line["share"])))
        ink.line(points, fill="#2060ff")
        for x, y in points:
            ink.ellipse((x - 4, y - 4, x + 4, y + 4), fill="#2060ff")
    return whole


# --------------------------------------------------------------------------------------------------- the command line


def arguments_of(arguments: Sequence[str] | None) -> Any:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("run", help="make the edits", description="make the edits")
    one.add_argument("--sweep", action="append", default=[], choices=tuple(SWEEPS), help="a ready list, repeatable")
    one.add_argument("--vary", action="append", default=[], metavar="NAME=V,V…", help="a list of your own, repeatable")
    one.add_argument("--set", action="append", default=[], metavar="NAME=V", help="of the base, repeatable")
    one.add_argument("--base", choices=("small", "paper"), default="small", help="the preset to start from")
    truth_bench.add_case_options(one, which="settings")
    truth_bench.add_run_options(one)
    for command in (one, sub.add_parser("table", help="the tables of a run", description="the tables of a run")):
        command.add_argument("folder", type=Path)
        command.add_argument("--rows", type=cli.whole(0), default=4, help="of each kind on the sheet")
    return parser.parse_args(arguments)


def plan_of(options: Any) -> Plan:
    """What the command line asks for."""
    preset = EditConfig.small if options.base == "small" else EditConfig.paper
    of_base = {}
    for given in options.set:
        key, values = assignment(given)
        if len(values) != 1:
            raise ValueError(f"--set takes one value, came {given!r}")
        of_base[key] = values[0]
    base = changed(Setting(BASE, preset(size=options.size), "five"), of_base, BASE)
    sweeps: dict[str, list[Change]] = {name: SWEEPS[name] for name in options.sweep}
    for given in options.vary:
        key, values = assignment(given)
        sweeps[key] = [{key: value} for value in values]
    if not sweeps:
        raise ValueError(f"nothing to sweep: give --sweep ({', '.join(SWEEPS)}) or --vary NAME=V,V…")
    assert base.config is not None and base.handles is not None
    return plan(base.config, sweeps, base.handles)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = arguments_of(arguments)
        if options.command == "run":
            planned = plan_of(options)
            listed = cases.cases(options.cases, options.limit, options.size)
            truth_bench.claim(options.folder, planned.settings, options.weights)
            files.save_json([asdict(row) for row in planned.rows], options.folder / "sweep.json", overwrite=True)
            workers = truth_bench.workers_of(options)
            if not truth_bench.run(
                options.folder, listed, planned.settings, options.weights, workers, options.published, explain=False
            ):
                return 0  # another rank is still at work, and makes the tables
        print(write_tables(options.folder, options.rows))
    except (OSError, ValueError) as error:
        print(f"sweep: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
