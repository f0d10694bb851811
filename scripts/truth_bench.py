"""The benchmark with exact truth: held-out scenes, edited, and compared with the scenes drawn as asked.

    python scripts/truth_bench.py run RUN           the edits of every case under every setting, then the table
    python scripts/truth_bench.py run RUN --settings rivals     the same with others' methods beside ours
    python scripts/truth_bench.py run RUN --settings published  … DragDiffusion's programs by their published numbers
    python scripts/truth_bench.py run RUN --settings parts      … without some of the small preset's parts
    python scripts/truth_bench.py run RUN --settings precision  … with networks in bfloat16
    python scripts/truth_bench.py run RUN --settings printed    … as the paper prints the descent and the loss
    python scripts/truth_bench.py run RUN --settings all        … others' methods, and warped pixels without a network
    python scripts/truth_bench.py run RUN --list artwork …      any of these on scenes of artwork, not on drawn ones
    python scripts/truth_bench.py table RUN         the table again, from what the folder RUN holds
    python scripts/truth_bench.py export FOLDER     the cases alone, for other programs to edit

A case that is done is a folder in RUN: its pictures, every result as <setting>.png and its figures as <setting>.json,
there whole or not at all. A run that was broken off goes on where it stood. `--workers` processes share the work, and
under torchrun the ranks do too. `table` writes RUN/results.json, RUN/table.md and RUN/sheet.png.

Where an object is in a result is measured in the picture, never taken from the edit's own tracking.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dragsa import cli
from dragsa.evaluation import lists, runs, truth, truth_tables
from dragsa.evaluation.runs import SETTINGS


def arguments_of(arguments: Sequence[str] | None) -> Any:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    for name, does in (("run", "make the edits"), ("table", "the tables of a run"), ("export", "write the cases")):
        one = sub.add_parser(name, help=does, description=does)
        one.add_argument("folder", type=Path)
        if name != "export":
            one.add_argument("--rows", type=cli.whole(0), default=4, help="of each kind on the sheet")
        if name != "table":
            runs.add_case_options(one, cli.whole, "figures")
        if name == "run":
            one.add_argument("--settings", choices=tuple(SETTINGS), default="headline", help="which list of them")
            runs.add_run_options(one, cli.whole)
    options = parser.parse_args(arguments)
    if options.command == "run":
        options.weights = options.weights or cli.shipped(lists.WEIGHTS[options.list])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = arguments_of(arguments)
        if options.command == "export":
            options.folder.mkdir(parents=True, exist_ok=True)
            for case in lists.cases_of(options.list, options.cases, options.limit, options.size):
                truth.save(options.folder, case, {})
        elif options.command == "table":
            print(truth_tables.write_tables(options.folder, options.rows))
        else:
            begin = time.perf_counter()
            ours = replace(cli.config_of({"weights": options.weights}), size=options.size, paste=False)
            if truth.run_as_asked(options, SETTINGS[options.settings](ours)):
                print(truth_tables.write_tables(options.folder, options.rows))
            print(f"{time.perf_counter() - begin:.0f} s in this run", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"truth_bench: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
