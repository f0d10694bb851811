"""DragBench: edits every sample of the published data set's layout, and evaluates the results.

    python scripts/dragbench.py DATA RESULTS --weights weights/sd15/v1-5-pruned-emaonly.safetensors --json FILE
    python scripts/dragbench.py DATA RESULTS --evaluate-only --json FILE     results that are there, of whatever program
    torchrun --nproc-per-node 8 scripts/dragbench.py DATA RESULTS …          each process takes its share

DATA is `category/sample/` with `original_image.png` and `meta_data.pkl`: prompt, points (handle and target by turns, x
and y) and mask (other than 0 may move). RESULTS gets `category/sample/dragged_image.png`, as the published evaluation
expects it, and `trace.json` beside it. A sample's folder is there whole or not at all, so that a run that was cut short
is taken up by running it again; with many machines RESULTS must be a folder that they share.

Exit code 0; 1 if there are samples without a result, each named with its reason; 2 for what was asked wrongly.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import intervals
import measure_small
import numpy as np
import plain_pickle
import published_metrics
import torch
from PIL import Image
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from dragsa import cli, editing, files, hooks, loading
from dragsa.config import EditConfig
from dragsa.editing import Drag
from dragsa.loading import StableDiffusion
from dragsa.pictures import images, trace

PICTURE, META, RESULT, TRACE = "original_image.png", "meta_data.pkl", "dragged_image.png", "trace.json"
FORMS = published_metrics.FORMS
FIDELITY = "image fidelity, 1 - LPIPS"
PATIENCE = datetime.timedelta(days=7)  # of a process whose share is done, for the others


# --- the data set -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """`mask` is bool (H, W), true where something may move; None where the data set's is empty."""

    name: str  # category/sample
    picture: Image.Image
    prompt: str
    drags: tuple[Drag, ...]
    mask: Tensor | None


def sample_names(data: Path) -> list[str]:
    """`category/sample` of every folder that has a sample's picture or its meta data, sorted.

    Raises FileNotFoundError where there are none.
    """
    found = {
        f"{file.parent.parent.name}/{file.parent.name}"
        for file in data.glob("*/*/*")
        if file.name in (PICTURE, META) and not file.parent.name.startswith(".")
    }
    if not found:
        raise FileNotFoundError(f"{data}: no samples there (category/sample/{PICTURE} and {META})")
    return sorted(found)


def read_sample(data: Path, name: str) -> Sample:
    """A sample, checked. Raises ValueError or OSError that says which file is not as it should be."""
    folder = data / name
    picture = images.open_picture(folder / PICTURE)
    meta = plain_pickle.load(folder / META)
    for key, kinds in (("prompt", str), ("points", list | tuple | np.ndarray), ("mask", np.ndarray | None)):
        if not isinstance(meta, dict) or not isinstance(meta.get(key), kinds):
            raise ValueError(f"{folder / META}: expected a dictionary with prompt, points and mask; {key} is not so")
    try:
        points = np.asarray(meta["points"], dtype=np.float64)  # (2 n, 2): handle, target, handle, …
        if not len(points) or points.shape != (len(points), 2) or len(points) % 2:
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(f"{folder / META}: points must be handle and target by turns, (x, y) each") from None
    images.to_grid(points.tolist(), picture.size, picture.size)  # raises for one outside
    drags = tuple(((x0, y0), (x1, y1)) for x0, y0, x1, y1 in points.reshape(-1, 4).tolist())
    mask = meta.get("mask")
    if mask is None or not mask.any():
        return Sample(name, picture, meta["prompt"], drags, None)
    if mask.shape != picture.size[::-1]:
        raise ValueError(
            f"{folder / META}: the mask is {mask.shape}; the picture, {picture.size[::-1]} (height, width)"
        )
    return Sample(name, picture, meta["prompt"], drags, torch.from_numpy(np.asarray(mask > 0)))


# --- one sample -------------------------------------------------------------------------------------------------------


def edit_sample(sd: StableDiffusion, sample: Sample, results: Path, config: EditConfig, seed: int) -> None:
    """Edit a sample and put its picture and trace into RESULTS, whole or not at all, in place of what is there."""
    begin = time.perf_counter()
    own = published_metrics.picture_seed(sample.name, seed)
    result = editing.edit(sd, sample.picture, sample.drags, sample.mask, sample.prompt, seed=own, config=config)
    made = {
        "sample": sample.name,
        **trace.to_json(result.trace),
        **settings(sd, config, seed),
        "device": str(sd.device),
        "seconds_in_all": time.perf_counter() - begin,
    }
    folder = results / sample.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        shutil.rmtree(left_over)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        images.save_picture(result.image, part / RESULT)
        files.save_json(made, part / TRACE)
        if folder.exists():
            os.replace(folder, part / "before")
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder / "before", ignore_errors=True)


def settings(sd: StableDiffusion, config: EditConfig, seed: int) -> dict[str, Any]:
    """What results of one run have in common, as their traces hold it."""
    dtype = str(sd.unet.dtype).removeprefix("torch.")
    common = {"config": asdict(config), "weights": sd.provenance, "dtype": dtype, "base_seed": seed}
    return json.loads(json.dumps(common))


def is_finished(results: Path, name: str, expected: dict[str, Any]) -> bool:
    """Whether a sample's result is there. Raises ValueError where it was made under other settings than `expected`."""
    folder = results / name
    if not (folder / RESULT).exists():
        return False
    try:
        made = dict(json.loads((folder / TRACE).read_text()))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{folder}: a result without a readable {TRACE}; --again to replace it") from None
    for key, value in expected.items():
        if made.get(key) != value:
            raise ValueError(f"{folder}: made with another {key}; take another folder, or --again to replace it")
    return True


def evaluate_sample(
    sd: StableDiffusion, sample: Sample, results: Path, seed: int, size: int, tap: str
) -> dict[str, Any]:
    """Every number of one sample's result, for JSON. Raises ValueError or OSError where it has none."""
    file = results / sample.name / RESULT
    if not file.exists():
        raise FileNotFoundError(f"{file}: no result")
    edited = images.open_picture(file)
    found = published_metrics.measure(
        sd, sample.picture, edited, sample.drags, sample.mask, sample.prompt, sample.name, seed, size, tap
    )
    row: dict[str, Any] = {
        "drags": [{"handle": list(handle), "target": list(target)} for handle, target in sample.drags],
        **found.to_json(),
        "fidelity": published_metrics.fidelity(sample.picture, edited),
    }
    own = file.with_name(TRACE)
    if own.exists():  # not beside another program's results
        row["seconds"] = json.loads(own.read_text()).get("seconds_in_all")
    return row


# --- all samples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processes:
    """This process among those that `torchrun` started; one of one without it."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> Processes:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls(0, 1)
        store, rank, count = next(rendezvous("env://"))
        # Started again after a process died, the store still holds the addresses of the time before.
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # What is gathered is small and on the CPU, whatever the networks run on.
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
        return cls(rank, count)

    def share(self, names: Sequence[str]) -> Sequence[str]:
        return names[self.rank :: self.count]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives the first process, in every one; its error is every one's."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except (OSError, ValueError) as error:
                box[1] = error
        distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def gather(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The rows of every process, by name in order, in every one of them."""
        parts: list[Any] = [rows]
        if self.count > 1:
            parts = [None] * self.count
            distributed.all_gather_object(parts, rows)
        merged = {name: row for part in parts for name, row in part.items()}
        return {name: merged[name] for name in sorted(merged)}

    def leave(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@dataclass(frozen=True)
class Outcome:
    """What became of a list of samples: a row for each that went well, and the reason for each that did not."""

    rows: dict[str, Any]
    failed: dict[str, str]


def each(names: Sequence[str], processes: Processes, do: Callable[[str], Any], doing: str) -> Outcome:
    """Do this process's share, one sample after the other, and gather: a sample that fails does not lose the others."""
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    share = processes.share(names)
    for n, name in enumerate(share, start=1):
        print(f"dragbench: {doing} {n}/{len(share)} {name}", file=sys.stderr, flush=True)
        try:
            rows[name] = do(name)
        except Exception as error:  # whatever it is: hundreds of samples do not wait for one
            failed[name] = cli.one_line(error)
    return Outcome(processes.gather(rows), processes.gather(failed))


def summaries(rows: dict[str, Any], seed: int) -> dict[str, intervals.Summary]:
    """Every metric over the samples, by the names that tables give them."""
    columns = {title: {name: row[key] or () for name, row in rows.items()} for title, key in FORMS.items()}
    for title, key in ((FIDELITY, "fidelity"), ("seconds", "seconds")):
        columns[title] = {name: [row.get(key)] for name, row in rows.items()}
    return {title: intervals.summarise(values, seed) for title, values in columns.items()}


def table(found: dict[str, intervals.Summary]) -> str:
    """One line a metric, with the mean that is published under its name: over the handles, or over the pictures."""
    lines = []
    for title, summary in found.items():
        if not summary.pictures:
            continue
        by_handle = title in FORMS and FORMS[title] not in published_metrics.BY_PICTURE
        mean = summary.per_handle if by_handle else summary.per_picture
        over = f"{summary.handles} handles" if by_handle else f"{summary.pictures} pictures"
        digits = 1 if "px" in title or title == "seconds" else 3
        lines.append({"metric": title, "mean (95 %)": intervals.text(mean, digits), "over": over})
    return measure_small.table(lines)


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
        default=published_metrics.TAP,
        metavar="NAME",
        help=f"features of the mean distance [{published_metrics.TAP}, as published; decoder3 for the small model]",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--weights", metavar="PATH", help=cli.WEIGHTS_HELP)
    model.add_argument("--device", default="cpu", help="cpu (default), or cuda: one for each process of a machine")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the networks")
    model.add_argument("--threads", metavar="N", type=cli.whole(1), help="CPU threads of each process")
    cli.add_schedule_options(parser)
    loop = parser.add_argument_group("drag and control")
    loop.add_argument("--drag-step", metavar="S", type=cli.whole(0), help="S: drag at level T - S")
    loop.add_argument("--control-step", metavar="A", type=cli.whole_or_never, help="A: control from here; or 'never'")
    loop.add_argument("--tap", metavar="NAME", help="features F come from here")
    loop.add_argument("--updates", metavar="N", type=cli.whole(0), help="at most so many updates of the latent")
    loop.add_argument("--lr", metavar="ETA", type=cli.scale, help="η, the learning rate")
    cli.add_defaults(parser)
    return parser


def run(options: dict[str, Any], processes: Processes) -> int:
    """Edit and evaluate as the options say; the exit code."""
    data, results, seed = options["data"], options["results"], options["seed"]
    if options["evaluate_only"] and options["edit_only"]:
        raise ValueError("--evaluate-only and --edit-only leave nothing to do")
    if not results.is_dir() and (options["evaluate_only"] or results.exists()):
        raise NotADirectoryError(f"{results}: not a folder")
    if options["json"] is not None:
        files.check_output(options["json"], overwrite=True)
    config = cli.config_of(options)
    editing.check(config, [((0, 0), (0, 0))])  # as every sample's, which has drags
    hooks.check_taps((options["metric_tap"],), None)
    if "threads" in options:
        torch.set_num_threads(options["threads"])
    device = options["device"]
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    names = processes.from_first(lambda: sample_names(data))
    sd = loading.load(cli.weights_of(options).resolve(), device, getattr(torch, options["dtype"]))

    failed: dict[str, str] = {}
    if not options["evaluate_only"]:
        expected = settings(sd, config, seed)

        def unfinished() -> list[str]:
            return [name for name in names if options["again"] or not is_finished(results, name, expected)]

        def edit(name: str) -> None:
            edit_sample(sd, read_sample(data, name), results, config, seed)

        failed |= each(processes.from_first(unfinished), processes, edit, "editing").failed
    rows: dict[str, Any] = {}
    if not options["edit_only"]:

        def evaluate(name: str) -> dict[str, Any]:
            sample = read_sample(data, name)
            return evaluate_sample(sd, sample, results, seed, config.size, options["metric_tap"])

        outcome = each([name for name in names if name not in failed], processes, evaluate, "evaluating")
        rows, failed = outcome.rows, failed | outcome.failed
    if processes.rank > 0:
        return 0

    found = summaries(rows, seed) if rows else {}
    if found:
        print(f"features of the mean distance: {options['metric_tap']} of {sd.provenance}")
        if why := published_metrics.why_no_fidelity():
            print(f"no image fidelity: {why}")
        print(table(found))
    if options["json"] is not None:
        report = {
            "data": str(data),
            "results": str(results),
            "metrics": {
                "features_of": sd.provenance,  # not SD 2.1's, as the published figures'
                "tap": options["metric_tap"],
                "timestep": published_metrics.TIMESTEP,
                "draws": published_metrics.DRAWS,
                "size": config.size,
                "seed": seed,
                "no_fidelity": published_metrics.why_no_fidelity(),
            },
            "edited": None if options["evaluate_only"] else settings(sd, config, seed),
            "summary": {title: intervals.to_json(summary) for title, summary in found.items()},
            "samples": rows,
            "failed": dict(sorted(failed.items())),
            "versions": trace.versions(),
        }
        files.save_json(report, options["json"], overwrite=True)
    for name, reason in sorted(failed.items()):
        print(f"dragbench: failed: {name}: {reason}", file=sys.stderr)
    print(f"{len(names) - len(failed)} of {len(names)} samples done", flush=True)
    return 1 if failed else 0


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
