"""Measures edited pictures of drawn scenes, or of scenes of artwork, against the exact truth, whoever made the edits.

    python scripts/evaluate.py FOLDER       every result in a folder of cases: FOLDER/<case>/<name>.png
    python scripts/evaluate.py --check      the evaluator's own error, on pictures whose truth is known
    python scripts/evaluate.py --check --list artwork       the same on scenes of artwork

Places in a result are found by fitting the scene to it. FOLDER/<case> is as `truth_bench.py export` writes it; the
figures are written to FOLDER/metrics.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dragsa import cli, files, loading
from dragsa.evaluation import art_cases, art_figures, cases, figures, lists, truth_tables


def checked(name: str, limit: int | None, sd: loading.StableDiffusion) -> str:
    """Return the evaluator's own errors on both parts of a list as a table."""
    if name == lists.ARTWORK:
        listed = [case for which in art_cases.FIRST for case in art_cases.list_cases(which, limit)]
        return art_figures.check_table(art_figures.check(listed, sd))
    drawn = [case for which in cases.FIRST for case in cases.cases(which, limit)]
    return figures.check_table(figures.check(drawn, sd))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of cases with results")
    parser.add_argument("--check", action="store_true", help="measure the evaluator's own error instead")
    parser.add_argument("--list", choices=lists.NAMES, default=lists.DRAWN, help="whose cases the check takes")
    parser.add_argument("--limit", type=cli.whole(1), help="check only so many cases of each kind and list")
    parser.add_argument("--weights", type=Path, help=f"whose VAE the check uses, {lists.WEIGHTS_HELP}")
    try:
        options = parser.parse_args(arguments)
        if options.check:
            if options.folder is not None:
                raise ValueError("--check takes no folder")
            weights = options.weights or cli.shipped(lists.WEIGHTS[options.list])
            print(checked(options.list, options.limit, loading.load(weights)))
        elif options.folder is None:
            raise ValueError("give a folder of results, or --check")
        else:
            results = lists.measure_folder(options.folder)
            files.save_json(results, options.folder / "metrics.json", overwrite=True)
            print(truth_tables.overall(results, "result"))
    except (OSError, ValueError) as error:
        print(f"evaluate: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
