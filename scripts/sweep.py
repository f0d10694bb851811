"""One number of the edit after another, each at several values, on the benchmark's cases for choosing settings.

    python scripts/sweep.py run RUN --sweep tap --sweep level         ready lists: see SWEEPS
    python scripts/sweep.py run RUN --vary lr=0.01,0.02,0.04          any number of DragConfig or EditConfig
    python scripts/sweep.py run RUN --set tap=block14 --vary ...      from other numbers than the preset's
    python scripts/sweep.py table RUN                                 the tables again, from what the folder holds

All settings of a picture share its inversion, those that differ only after the drag share the drag, and those of one
level the source's K/V, which the first pays for. The folder is as truth_bench.py makes it: a case is there whole or not
at all, a run goes on where it stood, and the work is shared by `--workers` processes and torchrun's ranks. `table`
writes RUN/sweep.csv, RUN/results.json, RUN/chart.png and RUN/sheet.png. Differences are from the same case under the
base's numbers, so they are surer than the means are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from dragsa import cli, files
from dragsa.config import Preset
from dragsa.evaluation import lists, runs, sweeps, truth
from dragsa.evaluation.edits import VARIANTS
from dragsa.evaluation.runs import Setting
from dragsa.evaluation.sweeps import Change, Plan

SWEEPS: dict[str, list[Change]] = {
    "tap": [
        *({"tap": tap} for tap in ("block13", "block14", "block15", "block16", "decoder2", "decoder3")),
        *({"tap": taps} for taps in ("block14+block15", "block14+block16", "block14+block15+block16")),
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
    "handles": [{"handles": name} for name in VARIANTS],
}


def parsed(key: str, value: str) -> Any:
    """Read a value as given on the command line: a number, `none`, blocks as `11-16`, or a word."""
    if key == "control_blocks":
        first, _, last = value.partition("-")
        return tuple(range(int(first), int(last or first) + 1))
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return None if value == "none" else value


def assignment(given: str) -> tuple[str, list[Any]]:
    """Read `lr=0.01,0.02`: the name, and the values."""
    key, equals, values = given.partition("=")
    if not equals or not values:
        raise ValueError(f"expected NAME=VALUE or NAME=VALUE,VALUE…, came {given!r}")
    return key, [parsed(key, value) for value in values.split(",")]


def arguments_of(arguments: Sequence[str] | None) -> Any:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("run", help="make the edits", description="make the edits")
    one.add_argument("--sweep", action="append", default=[], choices=tuple(SWEEPS), help="a ready list, repeatable")
    one.add_argument("--vary", action="append", default=[], metavar="NAME=V,V…", help="a list of your own, repeatable")
    one.add_argument("--set", action="append", default=[], metavar="NAME=V", help="of the base, repeatable")
    one.add_argument("--base", choices=get_args(Preset), help="the preset to start from; by default the weights' own")
    runs.add_case_options(one, cli.whole, "settings")
    runs.add_run_options(one, cli.whole)
    for command in (one, sub.add_parser("table", help="the tables of a run", description="the tables of a run")):
        command.add_argument("folder", type=Path)
        command.add_argument("--rows", type=cli.whole(0), default=4, help="of each kind on the sheet")
    options = parser.parse_args(arguments)
    if options.command == "run":
        options.weights = options.weights or cli.shipped(lists.WEIGHTS[options.list])
    return options


def plan_of(options: Any) -> Plan:
    """Return the plan that the command line asks for. Raises ValueError for one without a sweep."""
    of_base = {}
    for given in options.set:
        key, values = assignment(given)
        if len(values) != 1:
            raise ValueError(f"--set takes one value, came {given!r}")
        of_base[key] = values[0]
    preset = {} if options.base is None else {"preset": options.base}
    start = replace(cli.config_of({"weights": options.weights, **preset}), size=options.size, paste=False)
    base = sweeps.changed(Setting(sweeps.BASE, start, "five"), of_base, sweeps.BASE)
    listed: dict[str, list[Change]] = {name: SWEEPS[name] for name in options.sweep}
    listed |= {key: [{key: value} for value in values] for key, values in map(assignment, options.vary)}
    if not listed:
        raise ValueError(f"nothing to sweep: give --sweep ({', '.join(SWEEPS)}) or --vary NAME=V,V…")
    return sweeps.plan(base, listed)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = arguments_of(arguments)
        if options.command == "run":
            planned = plan_of(options)
            more = {name: getattr(options, name) for name in ("list", "cases", "published")}
            runs.claim(options.folder, planned.settings, options.weights, **more)
            rows = [row._asdict() for row in planned.rows]
            files.save_json(rows, options.folder / "sweep.json", overwrite=True)
            if not truth.run_as_asked(options, planned.settings, explain=False):
                return 0  # another rank is still at work, and makes the tables
        print(sweeps.write_tables(options.folder, options.rows))
    except (OSError, ValueError) as error:
        print(f"sweep: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
