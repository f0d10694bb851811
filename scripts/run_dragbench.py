"""DragBench: edits every sample of the published data set's layout, and evaluates the results.

    python scripts/run_dragbench.py DATA RESULTS --weights weights/sd15/v1-5-pruned-emaonly.safetensors --json FILE
    python scripts/run_dragbench.py DATA RESULTS --evaluate-only --json FILE     results that are there, of any program
    torchrun --nproc-per-node 8 scripts/run_dragbench.py DATA RESULTS …          each process takes its share

DATA is `category/sample/` with `original_image.png` and `meta_data.pkl`: prompt, points (handle and target by turns, x
and y) and mask (other than 0 may move). RESULTS gets `category/sample/dragged_image.png`, as the published evaluation
expects it, and `trace.json` beside it. A sample's folder is there whole or not at all, so that a run that was cut short
is taken up by running it again; with many machines RESULTS must be a folder that they share.

Exit code 0; 1 if there are samples without a result, each named with its reason; 2 for what was asked wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dragsa import checks, cli, files, loading, pictures
from dragsa.config import EditConfig
from dragsa.evaluation import distances, dragbench
from dragsa.evaluation.processes import Outcome, Processes, each
from dragsa.loading import StableDiffusion
from dragsa.model.blocks import check_taps


def build_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="dragbench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("results", type=Path, metavar="RESULTS")
    parser.add_argument("--evaluate-only", action="store_true", default=False, help="edit nothing")
    parser.add_argument("--edit-only", action="store_true", default=False, help="evaluate nothing")
    parser.add_argument("--again", action="store_true", default=False, help="edit finished samples anew, too")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="every single result, and the means")
    parser.add_argument("--seed", type=cli.whole(0), default=42, metavar="N", help="a sample's is of it and its name")
    parser.add_argument(
        "--metric-tap",
        default=distances.TAP,
        metavar="NAME",
        help=f"features of the mean distance [{distances.TAP}, as published; decoder3 for the small model]",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS_HELP)
    model.add_argument("--device", default="cpu", help="cpu (default), or cuda: one for each process of a machine")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the networks")
    model.add_argument("--threads", metavar="N", type=cli.whole(1), help="CPU threads of each process")
    loop = (
        ("--drag-step S", "S: drag at level T - S"),
        ("--control-step A", "A: control from here; or 'never'"),
        ("--tap NAME", "features F come from here"),
        ("--updates N", "at most so many updates of the latent"),
        ("--lr ETA", "η, the learning rate"),
    )
    cli.add_groups(parser, {"schedule": cli.EDIT["schedule"], "drag and control": loop})
    return parser


def run(options: dict[str, Any], processes: Processes) -> int:
    """Edit and evaluate as the options say, and return the exit code."""
    data, results, seed, tap = (options[name] for name in ("data", "results", "seed", "metric_tap"))
    config = checked(options)
    names = processes.from_first(lambda: dragbench.sample_names(data))
    sd = load(options)

    def unfinished() -> list[str]:
        expected = dragbench.settings(sd, config, seed)
        return [name for name in names if options["again"] or not dragbench.is_finished(results, name, expected)]

    def edit(name: str) -> None:
        dragbench.edit_sample(sd, dragbench.read_sample(data, name), results, config, seed)

    def evaluate(name: str) -> dict[str, Any]:
        return dragbench.evaluate_sample(sd, dragbench.read_sample(data, name), results, seed, config.size, tap)

    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if not options["evaluate_only"]:
        failed |= each(processes.from_first(unfinished), processes, edit, "editing", cli.one_line).failed
    if not options["edit_only"]:
        there = [name for name in names if name not in failed]
        outcome = each(there, processes, evaluate, "evaluating", cli.one_line)
        rows, failed = outcome.rows, failed | outcome.failed
    if processes.rank > 0:
        return 0
    report(options, sd, config, Outcome(rows, failed))
    print(f"{len(names) - len(failed)} of {len(names)} samples done", flush=True)
    return 1 if failed else 0


def checked(options: dict[str, Any]) -> EditConfig:
    """Return the edits' config. Raises ValueError or OSError for what is asked wrongly, before any work."""
    results = options["results"]
    if options["evaluate_only"] and options["edit_only"]:
        raise ValueError("--evaluate-only and --edit-only leave nothing to do")
    if not results.is_dir() and (options["evaluate_only"] or results.exists()):
        raise NotADirectoryError(f"{results}: not a folder")
    if options["json"] is not None:
        files.check_output(options["json"], overwrite=True)
    config = replace(cli.config_of(options), paste=False)  # as the published figures were measured
    checks.settings(config, [((0, 0), (0, 0))])  # as every sample's, which has drags
    check_taps((options["metric_tap"],), None)
    return config


def load(options: dict[str, Any]) -> StableDiffusion:
    """Return the model, on this process's device."""
    if "threads" in options:
        torch.set_num_threads(options["threads"])
    device = options["device"]
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    return loading.load(cli.weights_of(options).resolve(), device, getattr(torch, options["dtype"]))


def report(options: dict[str, Any], sd: StableDiffusion, config: EditConfig, outcome: Outcome) -> None:
    """Print the means and each failure's reason, and write every number where --json says."""
    seed, tap = options["seed"], options["metric_tap"]
    found = dragbench.summaries(outcome.rows, seed) if outcome.rows else {}
    if found:
        print(f"features of the mean distance: {tap} of {sd.provenance}")
        if why := distances.why_no_fidelity():
            print(f"no image fidelity: {why}")
        print(dragbench.table(found))
    if options["json"] is not None:
        told = {
            "data": str(options["data"]),
            "results": str(options["results"]),
            "metrics": {
                "features_of": sd.provenance,  # not SD 2.1's, as the published figures'
                "tap": tap,
                "timestep": distances.TIMESTEP,
                "draws": distances.DRAWS,
                "size": config.size,
                "seed": seed,
                "no_fidelity": distances.why_no_fidelity(),
            },
            "edited": None if options["evaluate_only"] else dragbench.settings(sd, config, seed),
            "summary": {title: asdict(summary) for title, summary in found.items()},
            "samples": outcome.rows,
            "failed": dict(sorted(outcome.failed.items())),
            "versions": pictures.versions(),
        }
        files.save_json(told, options["json"], overwrite=True)
    for name, reason in sorted(outcome.failed.items()):
        print(f"dragbench: failed: {name}: {reason}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    processes = Processes(int(os.environ.get("RANK", 0)), 1)  # until it has joined the others
    try:
        options = vars(build_parser().parse_args(arguments))
        processes = Processes.join()
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            return run(options, processes)
    except KeyboardInterrupt:
        print("dragbench: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        if processes.rank == 0:
            print(f"dragbench: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if processes.count == 1:
            raise
        print(f"dragbench: process {processes.rank} stops, another is gone? {cli.one_line(error)}", file=sys.stderr)
        return 1
    finally:
        processes.leave()


def show_warning(message: Warning | str, *rest: Any) -> None:
    print(f"dragbench: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
