"""The paper's figures and its table again, as far as the given model can draw them.

    python scripts/reproduce.py fig2 [FOLDER]       a real picture: inverted, changed by the prompt, then dragged
    python scripts/reproduce.py fig3 [FOLDER]       the same of a generated picture
    python scripts/reproduce.py fig4 [FOLDER]       source, DragDiffusion without and with its LoRA, ours
    python scripts/reproduce.py table1 [FOLDER]     control step 4 … 8 by drag step 4 … 8
    python scripts/reproduce.py inversion [FOLDER]  the round trip under each schedule variant: the restored first step
    python scripts/reproduce.py all [FOLDER]        all of them

FOLDER is out/reproduce by default. The small model that ships knows drawn scenes, and is shown held-out ones, whose
truth is known. `--weights` takes SD 1.5, and `--images JOBS.json` your own pictures: a job file of `dragsa edit`, of
which image, from_noise, seed, prompt, target_prompt, drag, mask and object_words count.

Each writes FOLDER/<name>.png and FOLDER/<name>.json, with every number and setting, and whether our numbers bear out
what the paper says of its own. scripts/README.md has what came out, under "The paper's figures again". A
finished picture is a folder that is there whole or not at all: an interrupted run is continued by running it again. A
run with other settings, weights, seed or pictures is refused.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dragsa import cli
from dragsa.evaluation import experiments, lists, prompts, rivals, round_trips, runs, steps_table, subjects
from dragsa.evaluation.experiments import Choice, Experiment
from dragsa.evaluation.subjects import Subject

FOLDER = Path("out") / "reproduce"
GUIDANCE = {"small": runs.GUIDANCE, "sd15": 7.5}  # of edits by the prompt

EXPERIMENTS = {
    "inversion": round_trips.INVERSION,
    "fig2": prompts.FIG2,
    "fig3": prompts.FIG3,
    "fig4": rivals.FIG4,
    "table1": steps_table.TABLE1,
}


def chosen(options: Any) -> Choice:
    """Return the command line's choices. Raises ValueError for a model that cannot draw the scenes."""
    name = lists.WEIGHTS[options.list]
    small = options.weights.resolve() == cli.shipped(name)
    own = None if options.images is None else tuple(own_subjects(options.images, options.seed))
    if own is None and not small:
        raise ValueError(f"the {options.list} scenes are for weights/{name}: give your own with --images JOBS.json")
    base = replace(cli.config_of({"weights": str(options.weights)}), paste=False)  # as published figures were measured
    return Choice(base, GUIDANCE["small" if small else "sd15"], options.seed, options.count, own, options.list)


def own_subjects(path: Path, seed: int) -> list[Subject]:
    """Return the pictures of a job file. Raises ValueError that names the job and what is wrong with it."""
    found: list[Subject] = []
    for number, options in enumerate(cli.read_jobs(path), start=1):
        try:
            found.append(subjects.of_job(options, number, seed))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, job {number}: {cli.one_line(error)}") from None
    return found


def with_work(names: Sequence[str], choice: Choice) -> dict[str, Experiment]:
    """Return the experiments that there are pictures for. Raises ValueError where there is nothing to do."""
    there = {name: EXPERIMENTS[name] for name in names if EXPERIMENTS[name].items(choice)}
    missing = {name: EXPERIMENTS[name].needs for name in names if name not in there}
    for name, needs in missing.items():
        print(f"{name}: left out, {needs}", file=sys.stderr)
    if not there:
        raise ValueError(f"nothing to do: {'; '.join(f'{name}: {needs}' for name, needs in missing.items())}")
    return there


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=(*EXPERIMENTS, "all"))
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"default {FOLDER}")
    parser.add_argument("--weights", type=Path, help=f"a safetensors file or a diffusers folder, {lists.WEIGHTS_HELP}")
    own = "your own pictures, as `dragsa edit --job` has them"
    parser.add_argument("--images", type=Path, metavar="JOBS.json", help=own)
    kinds = "of drawn scenes, or of artwork for inversion, fig4 and table1"
    parser.add_argument("--list", choices=lists.NAMES, default=lists.DRAWN, help=kinds)
    parser.add_argument("--seed", type=cli.whole(0), default=42)
    count = "drawn pictures for each; by default as many as take minutes"
    parser.add_argument("--count", type=cli.whole(1), help=count)
    parser.add_argument("--workers", type=cli.whole(1), help="processes; by default one for each core")
    try:
        options = parser.parse_args(arguments)
        options.weights = options.weights or cli.shipped(lists.WEIGHTS[options.list])
        choice = chosen(options)
        there = with_work(list(EXPERIMENTS) if options.what == "all" else [options.what], choice)
        options.folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        experiments.run(options.folder, there, choice, options.weights, options.workers or runs.default_workers())
        print(f"{time.perf_counter() - begin:.0f} s in this run", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"reproduce: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
