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
import datetime
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from dragsa import checks, cli, files, loading, pictures
from dragsa.config import EditConfig
from dragsa.evaluation import distances, dragbench
from dragsa.loading import StableDiffusion
from dragsa.model.blocks import check_taps

PATIENCE = datetime.timedelta(days=7)  # of a process whose share is done, for the others
Rows = dict[str, Any]  # by sample


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
    model.add_argument("--threads", metavar="N", type=cli.whole(1, 256), help="CPU threads of each process")
    loop = (
        ("--drag-step S", "S: drag at level T - S"),
        ("--control-step A", "A: control from here; or 'never'"),
        ("--tap NAME", "features F come from here"),
        ("--updates N", "at most so many updates of the latent"),
        ("--lr ETA", "η, the learning rate"),
    )
    cli.add_groups(parser, {"schedule": cli.EDIT["schedule"], "drag and control": loop})
    return parser


# --- processes that share the samples, as `torchrun` starts them


def join() -> None:
    """Join the other processes, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        store, rank, count = next(rendezvous("env://"))
        # Started again after a process died, the store still holds the addresses of the time before.
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # What is gathered is small and on the CPU, whatever the networks run on.
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)


def is_first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def from_first(make: Callable[[], Any]) -> Any:
    """Return in every process what `make` gives the first one, or raise its error in every one."""
    box: list[Any] = [None]
    if is_first():
        try:
            box[0] = make()
        except (OSError, ValueError) as error:
            box[0] = error
    if distributed.is_initialized():
        distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def gathered(rows: Rows) -> Rows:
    """Return in every process the rows of all, by name in order."""
    parts: list[Any] = [rows]
    if distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, rows)
    return dict(sorted((name, row) for part in parts for name, row in part.items()))


def each(names: Sequence[str], do: Callable[[str], Any], doing: str) -> tuple[Rows, dict[str, str]]:
    """Do this process's share, one sample after the other; return a row or the reason of its failure for each of all.

    A sample that fails does not lose the others.
    """
    rows, failed = {}, {}
    alone = not distributed.is_initialized()
    share = names if alone else names[distributed.get_rank() :: distributed.get_world_size()]
    for n, name in enumerate(share, start=1):
        print(f"dragbench: {doing} {n}/{len(share)} {name}", file=sys.stderr, flush=True)
        try:
            rows[name] = do(name)
        except Exception as error:  # whatever it is: hundreds of samples do not wait for one
            failed[name] = cli.one_line(error)
    return gathered(rows), gathered(failed)


# --- the run


def run(options: dict[str, Any]) -> int:
    """Edit and evaluate as the options say, and return the exit code."""
    data, results, seed, tap = (options[name] for name in ("data", "results", "seed", "metric_tap"))
    config = checked(options)
    names = from_first(lambda: dragbench.sample_names(data))
    sd = load(options)

    def unfinished() -> list[str]:
        expected = dragbench.settings(sd, config, seed)
        return [name for name in names if options["again"] or not dragbench.is_finished(results, name, expected)]

    def edit(name: str) -> None:
        dragbench.edit_sample(sd, dragbench.read_sample(data, name), results, config, seed)

    def evaluate(name: str) -> dict[str, Any]:
        return dragbench.evaluate_sample(sd, dragbench.read_sample(data, name), results, seed, config.size, tap)

    rows: Rows = {}
    failed: dict[str, str] = {}
    if not options["evaluate_only"]:
        _, failed = each(from_first(unfinished), edit, "editing")
    if not options["edit_only"]:
        rows, more = each([name for name in names if name not in failed], evaluate, "evaluating")
        failed = dict(sorted({**failed, **more}.items()))
    if not is_first():
        return 0
    report(options, sd, config, rows, failed)
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


def report(
    options: dict[str, Any], sd: StableDiffusion, config: EditConfig, rows: Rows, failed: dict[str, str]
) -> None:
    """Print the means and each failure's reason, and write every number where --json says."""
    seed, tap = options["seed"], options["metric_tap"]
    found = dragbench.summaries(rows, seed) if rows else {}
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
            "samples": rows,
            "failed": failed,
            "versions": pictures.versions(),
        }
        files.save_json(told, options["json"], overwrite=True)
    for name, reason in failed.items():
        print(f"dragbench: failed: {name}: {reason}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = vars(build_parser().parse_args(arguments))
        join()
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            return run(options)
    except KeyboardInterrupt:
        print("dragbench: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError) as error:
        if is_first():
            print(f"dragbench: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not distributed.is_initialized():
            raise
        words = f"process {os.environ['RANK']} stops, another is gone? {cli.one_line(error)}"
        print(f"dragbench: {words}", file=sys.stderr)
        return 1
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def show_warning(message: Warning | str, *rest: Any) -> None:
    print(f"dragbench: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
