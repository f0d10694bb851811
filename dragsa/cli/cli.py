"""The command line: `dragsa edit`, `dragsa generate`, `dragsa info`, `dragsa bench`.

Networks and tensors are imported only once the arguments are understood, so that help and mistakes cost no time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from dragsa import files
from dragsa.config import BLOCKS, DragConfig, EditConfig

if TYPE_CHECKING:
    from PIL import Image

    from dragsa import editing
    from dragsa.loading import StableDiffusion
    from dragsa.pictures import trace

Options = dict[str, Any]  # what was given, by the options' long names with underscores

PICTURES_OUT = ("out", "source", "path", "sheet")
PATHS_IN = ("image", "mask", "weights")
PRESETS = ("paper", "sd15", "dragdiffusion", "masactrl", "small")
LARGEST = 8192  # pixels, of a working picture's side
SMALL = Path(__file__).resolve().parents[2] / "weights" / "small"  # the model that ships, in a checkout
LISTS = ("control_blocks", "mask_blocks", "object_words", "size")  # options that a job file may have as lists
PLAIN_HELP = ("drag", "control_blocks", "mask_blocks", "object_words", "blend")  # options whose help has the default
# Options for which null in a job file is the word "never".
NEVER = ("control_step", "patience", "lost_patience", "stall")


# --- arguments --------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Mistakes are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def whole(lowest: int) -> Callable[[str], int]:
    """Reads a whole number of at least `lowest` that 63 bits hold."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or not lowest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, came {text!r}")
        return int(text)

    return read


def scale(text: str) -> float:
    """Reads a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, came {text!r}")
    return number


def whole_or_never(text: str) -> int | None:
    return None if text == "never" else whole(0)(text)


def drag(text: str) -> tuple[tuple[float, float], tuple[float, float]]:
    number = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
    found = re.fullmatch(f"{number},{number}:{number},{number}", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be X0,Y0:X1,Y1 (handle and target in pixels), came {text!r}")
    x0, y0, x1, y1 = map(float, found.groups())
    return (x0, y0), (x1, y1)


def blocks(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise argparse.ArgumentTypeError(f"must be blocks such as 11-16 or 11,12,14, came {text!r}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not 1 <= first <= last <= BLOCKS:
            raise argparse.ArgumentTypeError(f"blocks are numbered 1 to {BLOCKS}, from low to high, came {text!r}")
        found += range(first, last + 1)
    return tuple(found)


def listed(one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Reads values with commas between them."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))

    return read


def extent(text: str) -> int | tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be pixels, N or WIDTHxHEIGHT, came {text!r}")
    if max(int(side) for side in found.groups("0")) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST} pixels, came {text!r}")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def build_parser() -> Parser:
    """Every option's default is its absence, so that a preset, a job file and the line itself can be laid over."""

    def command(name: str, summary: str, description: str) -> Parser:
        made = commands.add_parser(
            name, help=summary, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        made.set_defaults(command=name)
        return made

    parser = Parser(prog="dragsa", description="Edit pictures by dragging points and by changing prompts.")
    parser.add_argument("--version", action="store_true", help="print the versions of dragsa and of what it runs on")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)

    edit = command(
        "edit",
        "edit a picture by drags, by a changed prompt, or by both",
        "Edit a picture by drags, by a changed prompt, or by both. Points are pixels (x, y) of the picture as given, "
        "0,0 the upper left one. Nothing is written unless everything succeeds.",
    )
    edit.add_argument("image", metavar="IMAGE", nargs="?", help="the picture: any format, mode, size and aspect")
    edit.add_argument("--from-noise", action="store_true", help="no IMAGE: edit what --prompt and --seed generate")
    edit.add_argument(
        "--drag", metavar="X0,Y0:X1,Y1", type=drag, action="append", help="move this handle there; may be repeated"
    )
    edit.add_argument("--mask", metavar="PNG", help="of the picture's size; white may move, black should stay")
    edit.add_argument("--target-prompt", metavar="TEXT", help="what the edited picture shows")
    edit.add_argument("--job", metavar="FILE", help="JSON: these options by name, or a list of such jobs")
    add_model_options(edit)
    add_schedule_options(edit)
    control = edit.add_argument_group("control")
    control.add_argument(
        "--control-step",
        metavar="A",
        type=whole_or_never,
        help="A: from this denoising step on, the edit takes Key and Value from the source; or 'never'",
    )
    control.add_argument(
        "--control-blocks", metavar="BLOCKS", type=blocks, help="in these transformer blocks, such as 11,12,15 [11-16]"
    )
    control.add_argument(
        "--control",
        choices=("mutual", "union", "masked"),
        help="attend to the source alone, to it and itself, or object to object and ground to ground",
    )
    control.add_argument(
        "--object-words",
        metavar="WORDS",
        type=listed(str),
        help="for masked: the object's words in the prompts, such as disc,star",
    )
    control.add_argument(
        "--mask-blocks", metavar="BLOCKS", type=blocks, help="for masked: whose cross-attention tells the object"
    )
    control.add_argument("--mask-threshold", metavar="SHARE", type=scale, help="for masked: over it is the object")
    control.add_argument(
        "--blend",
        action=argparse.BooleanOptionalAction,
        help="outside of the mask take the source's latents, so that nothing moves there [no]",
    )
    edit.add_argument_group("LoRA").add_argument(
        "--lora-steps",
        metavar="N",
        type=whole(0),
        help="train a LoRA on the picture first, as DragDiffusion does with 80 steps; 0 is none",
    )
    loop = edit.add_argument_group("drag")
    loop.add_argument(
        "--drag-step",
        metavar="S",
        type=whole(0),
        help="S: drag the latent after so many denoising steps, at level T - S",
    )
    loop.add_argument("--tap", metavar="NAME", help="features F: block01 … block16, decoder1 … or block14+block15, …")
    loop.add_argument("--updates", metavar="N", type=whole(0), help="at most so many updates of the latent")
    loop.add_argument("--lr", metavar="ETA", type=scale, help="η, the learning rate")
    loop.add_argument("--radius", metavar="R1", type=whole(0), help="r_1, half the side of the supervised patch")
    loop.add_argument("--track-radius", metavar="R2", type=whole(0), help="r_2, half the side of the tracking window")
    loop.add_argument("--lam", metavar="LAMBDA", type=scale, help="λ, the weight of the mask term")
    loop.add_argument(
        "--anchor", metavar="SHARE", type=scale, help="of the first latent's patch in what the patches are pulled to"
    )
    loop.add_argument("--reach", metavar="CELLS", type=scale, help="a handle so near to its target is there")
    loop.add_argument("--optimizer", choices=("adam", "adam-mini", "sgd"), help="sgd: the paper's plain descent")
    loop.add_argument(
        "--reference", choices=("first", "current"), help="tracking looks for the feature of h^0 or of h^k"
    )
    loop.add_argument(
        "--patience", metavar="N", type=whole_or_never, help="give up after N updates without a move; or 'never'"
    )
    loop.add_argument(
        "--lost-patience", metavar="N", type=whole_or_never, help="and after N that lose a handle; or 'never'"
    )
    loop.add_argument(
        "--stall", metavar="N", type=whole_or_never, help="and after N without coming nearer, and go back; or 'never'"
    )
    cost = edit.add_argument_group("speed and memory")
    cost.add_argument("--compile", choices=("auto", "off", "whole", "regions"), help="of an update; see `dragsa bench`")
    cost.add_argument(
        "--checkpoint", action="store_true", help="gradient checkpointing: less memory, a third more time"
    )
    cost.add_argument(
        "--source-kv",
        choices=("exact", "inversion", "none"),
        help="which K and V of the source serve later edits of it in a job file; inversion approximates",
    )
    cost.add_argument(
        "--source-kv-memory", metavar="BYTES", type=whole(0), help="of them in memory; what is over goes to files"
    )
    output = add_output_options(edit, "the result")
    output.add_argument("--source", metavar="PNG", help="the picture before the edit")
    output.add_argument("--path", metavar="PNG", help="the handles' path drawn over the picture")
    output.add_argument("--sheet", metavar="PNG", help="source, path and result side by side")

    generate = command(
        "generate",
        "draw a picture from a prompt and a seed",
        "Draw a picture from a prompt and a seed: the one that `edit --from-noise` edits under the same options.",
    )
    add_model_options(generate)
    add_schedule_options(generate)
    add_output_options(generate, "the picture")

    add_defaults(edit)
    add_defaults(generate)

    info = command("info", "show what weights hold", "Show the networks of some weights: block by block, as loaded.")
    info.add_argument("--weights", metavar="PATH", help=WEIGHTS_HELP)
    info.add_argument(
        "--verify",
        action="store_true",
        help="look the files' sha256 up among the published ones; exit code 1 if one is not known",
    )
    info.add_argument("--size", metavar="PX", type=extent, help="grids for a picture of this size (default 512)")
    info.add_argument("--json", action="store_true", help="print JSON in place of tables")

    add_bench_options(
        command(
            "bench",
            "measure the drag loop's speed and memory on this machine",
            "Measure the drag loop by parts, its memory, and what its goals ask of both, against the loop as "
            "DragDiffusion's program does it; print Markdown tables. No weights are needed: networks of SD 1.5's width "
            "get seeded values. Plan some 20 minutes on two cores and 15 GB of memory, and two minutes for --quick.",
        )
    )
    return parser


def add_defaults(command: Parser) -> None:
    """The paper's numbers behind the help of the options that they are for."""
    paper = EditConfig.paper()
    numbers = {**asdict(paper.drag), **asdict(paper)}
    for action in command._actions:
        if action.help and action.dest in numbers and action.dest not in PLAIN_HELP:
            action.help += f" [{numbers[action.dest]}]"


WEIGHTS_HELP = "a safetensors file, or a folder in the diffusers layout (default: $DRAGSA_WEIGHTS, else weights/small)"


def add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", metavar="TEXT", help="what the source shows (default: nothing)")
    command.add_argument("--seed", metavar="N", type=whole(0), help="default 42")
    model = command.add_argument_group("model")
    model.add_argument("--weights", metavar="PATH", help=WEIGHTS_HELP)
    model.add_argument("--device", help="cpu (default), cuda, cuda:1, …")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the networks (default float32)")
    model.add_argument("--threads", metavar="N", type=whole(1), help="CPU threads (default: PyTorch's choice)")


def add_schedule_options(command: argparse.ArgumentParser) -> None:
    schedule = command.add_argument_group("schedule")
    schedule.add_argument(
        "--preset",
        choices=PRESETS,
        help="every number that is not given (default sd15; small for the model that ships; paper's in brackets)",
    )
    schedule.add_argument("--steps", metavar="T", type=whole(1), help="T, the steps from noise to picture")
    schedule.add_argument("--variant", help="restored, even, dragdiffusion, masactrl or omitted")
    schedule.add_argument("--guidance", metavar="SCALE", type=scale, help="classifier-free guidance; 1 is none")
    schedule.add_argument(
        "--fixed-point", metavar="N", type=whole(0), help="fixed-point iterations a step of the inversion"
    )
    schedule.add_argument(
        "--size",
        metavar="PX",
        type=extent,
        help="working size: a picture's longer side is fitted to this; from noise PX or WIDTHxHEIGHT",
    )


def add_output_options(command: argparse.ArgumentParser, what: str) -> argparse._ArgumentGroup:
    output = command.add_argument_group("output")
    output.add_argument("--out", metavar="PNG", help=f"{what}; required")
    output.add_argument("--json", metavar="FILE", help="what was done, with every number, and what was measured")
    output.add_argument("--force", action="store_true", help="replace files that are there")
    output.add_argument("--quiet", action="store_true", help="no progress on a terminal")
    return output


def add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--only",
        metavar="PARTS",
        type=listed(str),
        help="of roof, update, memory, fused, tracking, handles, denoise, recompiles, and by name alone compile (the "
        "compiler's minutes; recorded for compile=auto) and whole (an edit by stages)",
    )
    bench.add_argument("--sizes", metavar="PX", type=listed(whole(8)), help="sides of square pictures [512]")
    bench.add_argument("--handles", metavar="N", type=listed(whole(1)), help="numbers of handles [1,20]")
    bench.add_argument(
        "--modes",
        metavar="NAMES",
        type=listed(str),
        help="of updates: baseline,float32,bfloat16 and float32-checkpoint, bfloat16-checkpoint [the first three]",
    )
    bench.add_argument("--baseline", action="store_true", help="updates and memory of DragDiffusion's way alone")
    bench.add_argument("--repeats", metavar="N", type=whole(1), help="of everything, after one that is not counted [5]")
    bench.add_argument("--steps", metavar="N", type=whole(1), help="denoising steps timed, and T of a whole edit [2]")
    bench.add_argument("--updates", metavar="N", type=whole(1), help="of a whole edit [2]")
    bench.add_argument("--quick", action="store_true", help="tiny networks and pictures: that it runs, not how fast")
    model = bench.add_argument_group("model")
    model.add_argument("--weights", metavar="PATH", help="a file or folder, in place of seeded values")
    model.add_argument("--width", choices=("sd15", "tiny"), help="of the seeded networks (default sd15)")
    model.add_argument("--device", help="cpu (default), cuda, cuda:1, …")
    model.add_argument("--threads", metavar="N", type=whole(1), help="CPU threads (default: all cores)")
    output = bench.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="every repeat, the machine, and the goals")
    output.add_argument("--markdown", metavar="FILE", help="the tables that are printed")
    output.add_argument("--chart", metavar="PNG", help="bars of times, memory and goals")
    output.add_argument("--force", action="store_true", help="replace files that are there")
    output.add_argument("--quiet", action="store_true", help="no progress on a terminal")


# --- job files --------------------------------------------------------------------------------------------------------


def read_jobs(path: Path, parser: Parser) -> list[Options]:
    """The jobs of a JSON file, their values understood as the command line's are. ValueError names the job and key."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    jobs = value if isinstance(value, list) else [value]
    if not jobs or not all(isinstance(job, dict) for job in jobs):
        raise ValueError(f"{path}: must hold a job ({{option: value}}) or a list of jobs")
    read = []
    for n, job in enumerate(jobs, start=1):
        try:
            options = vars(parser.parse_args(["edit", *job_arguments(job, known_options(parser))]))
        except ValueError as error:
            raise ValueError(f"{path}, job {n}: {error}") from None
        for key in (*PATHS_IN, *PICTURES_OUT, "json"):
            if key in options:
                options[key] = str(path.parent / options[key])
        read.append(options)
    return read


def known_options(parser: Parser) -> dict[str, argparse.Action]:
    """The options of `edit` by name, less those that make no sense in a job."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices["edit"]._actions
    return {action.dest: action for action in actions if action.dest not in ("help", "job", "quiet")}


def job_arguments(job: Mapping[str, Any], known: Mapping[str, argparse.Action]) -> list[str]:
    """A job as the arguments that mean the same."""
    arguments: list[str] = []
    image: list[str] = []
    for key, value in job.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(f"unknown key {key!r}: the keys are {', '.join(sorted(known))}")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool) != (known[name].nargs == 0) and value is not None:
            raise ValueError(f"{key}: must {'not ' if isinstance(value, bool) else ''}be true or false, came {value!r}")
        if name == "image":
            image = ["--", str(value)]
        elif value is True:
            arguments.append(flag)
        elif value is False:
            arguments += ["--no-blend"] if name == "blend" else []
        elif value is None:
            arguments += [f"{flag}=never"] if name in NEVER else []
        elif name == "drag":
            arguments += [f"{flag}={drag_text(one)}" for one in (value if isinstance(value, list) else [value])]
        elif name in LISTS and isinstance(value, list):
            arguments.append(f"{flag}={('x' if name == 'size' else ',').join(map(str, value))}")
        elif isinstance(value, str | int | float):
            arguments.append(f"{flag}={value}")
        else:
            raise ValueError(f"{key}: came {json.dumps(value)}, expected a text or a number")
    return arguments + image


def drag_text(value: Any) -> str:
    """A drag of a job file, "X0,Y0:X1,Y1" or [[X0, Y0], [X1, Y1]], as the command line has it."""
    if isinstance(value, str):
        return value
    try:
        (x0, y0), (x1, y1) = value
    except (TypeError, ValueError):
        raise ValueError(f"drag: must be [[X0, Y0], [X1, Y1]] or 'X0,Y0:X1,Y1', came {json.dumps(value)}") from None
    return f"{x0},{y0}:{x1},{y1}"


# --- progress ---------------------------------------------------------------------------------------------------------


class Progress:
    """An observer that keeps one line on a terminal up to date and takes it away at the end; elsewhere it is silent."""

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self.stream = stream
        self.shown = not quiet and stream.isatty()
        self.pixels_per_cell = 2.0  # of the picture, so that distances are told in its pixels
        self.label = ""  # which of several jobs
        self._stage, self._begun, self._drawn = "", 0.0, 0.0

    def __call__(self, event: trace.StageProgress | trace.DragProgress) -> None:
        from dragsa.pictures import trace

        if not self.shown:
            return
        if isinstance(event, trace.DragProgress):
            left = max(event.distances, default=0.0) * self.pixels_per_cell
            self._draw("drag", event.update, event.total, f"loss {event.loss:.4g}, {left:.1f} px left")
        else:
            self._draw(event.stage, event.done, event.total)

    def say(self, text: str) -> None:
        """Something that has no steps to count."""
        if self.shown:
            self._write(f"{self.label}{text}")

    def erase(self) -> None:
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _draw(self, stage: str, done: int, total: int, words: str = "") -> None:
        now = time.monotonic()
        if stage != self._stage or done == 0:
            self._stage, self._begun, self._drawn = stage, now, 0.0
        if now - self._drawn < 0.05 and done < total:
            return
        self._drawn = now
        filled = round(20 * done / total) if total else 20
        if not words and 0 < done < total:
            seconds = round((now - self._begun) / done * (total - done))
            words = f"{seconds // 60}:{seconds % 60:02d} left"
        self._write(f"{self.label}{stage:<10} [{'#' * filled}{'.' * (20 - filled)}] {done}/{total}  {words}")

    def _write(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0: the terminal does not know
        except (OSError, ValueError):
            columns = 80
        self.stream.write(f"\r\x1b[K{line[: max(1, columns - 1)]}")
        self.stream.flush()


# --- what edit and generate share -------------------------------------------------------------------------------------


def config_of(options: Options) -> EditConfig:
    """The preset's numbers with those that were given laid over."""
    suits = "small" if weights_of(options).resolve() == SMALL else "sd15"
    preset: EditConfig = getattr(EditConfig, options.get("preset", suits))()
    given = dict(options)
    if isinstance(given.get("size"), tuple):
        given["size"] = max(given["size"])
    drag_names = {one.name for one in fields(DragConfig)}
    edit_names = {one.name for one in fields(EditConfig)} - {"drag"}
    loop = replace(preset.drag, **{key: value for key, value in given.items() if key in drag_names})
    return replace(preset, drag=loop, **{key: value for key, value in given.items() if key in edit_names})


def weights_of(options: Options) -> Path:
    """Where the weights are: as given, by the environment, or those beside the package in a checkout."""
    if path := options.get("weights") or os.environ.get("DRAGSA_WEIGHTS"):
        return Path(path)
    if SMALL.is_dir():
        return SMALL
    raise ValueError("no weights: give --weights PATH or set DRAGSA_WEIGHTS (weights/README.md says what to get)")


def check_outputs(options: Options, names: Sequence[str], taken: set[Path]) -> None:
    """Raise an error unless `--out` is given and every output can be written; `taken` are those of earlier jobs."""
    if "out" not in options:
        raise ValueError("--out PNG is missing: where should the picture go?")
    check_paths(options, (*names, "json"), taken)


def check_paths(options: Options, names: Sequence[str], taken: set[Path]) -> None:
    """Raise an error unless these outputs, where they are asked for, can be written; `taken` is added to."""
    from dragsa.pictures import images

    for name in names:
        if name not in options:
            continue
        path = files.check_output(options[name], options.get("force", False))
        if name not in ("json", "markdown"):
            images.check_format(path)
        if path.resolve() in taken:
            raise ValueError(f"{path}: two outputs of the same name")
        taken.add(path.resolve())


@dataclass
class Session:
    """The model that is loaded and the source that is prepared, kept from job to job."""

    progress: Progress
    jobs: int = 1  # edits that are to come; of a single one nothing is kept for a later one
    seconds_loading: float = 0.0
    _model: tuple[Any, StableDiffusion] | None = None
    _source: tuple[Any, editing.Source] | None = None

    def model(self, options: Options) -> StableDiffusion:
        import torch

        from dragsa import loading

        if "threads" in options:
            torch.set_num_threads(options["threads"])
        path, device, dtype = weights_of(options), options.get("device", "cpu"), options.get("dtype", "float32")
        key = (path.resolve(), device, dtype)
        if self._model is None or self._model[0] != key:
            self.progress.say(f"loading {path}")
            self._model = self._source = None
            begin = time.perf_counter()
            self._model = key, loading.load(path, device, getattr(torch, dtype))
            self.seconds_loading = time.perf_counter() - begin
        else:
            self.seconds_loading = 0.0
        return self._model[1]

    def source(
        self, sd: StableDiffusion, picture: Image.Image | None, options: Options, config: EditConfig
    ) -> tuple[editing.Source, bool]:
        """The source of the edit, and whether it was there from the job before."""
        from dragsa import editing

        assert self._model is not None
        prompt, seed, size = options.get("prompt", ""), options.get("seed", 42), options.get("size")
        key = (
            *(self._model[0], options.get("image"), prompt, seed, config.size, size),
            *(config.steps, config.variant, config.fixed_point, config.lora_steps),
            *(() if picture is not None else (config.guidance,)),
        )
        if self._source is not None and self._source[0] == key:
            return self._source[1], True
        extent = size if isinstance(size, tuple) else None
        source = editing.prepare(sd, picture, prompt, seed, config, size=extent, observe=self.progress)
        self._source = key, source
        return source, False


def measured(options: Options, sd: StableDiffusion, seconds: Mapping[str, float], begin: float) -> dict[str, Any]:
    """What stands in the JSON of every command: what was asked for, where it ran, and what it cost."""
    import torch

    files = {key: str(Path(options[key]).resolve()) for key in (*PATHS_IN, *PICTURES_OUT, "json") if key in options}
    given = {key: value for key, value in options.items() if key not in ("command", "version", "quiet")}
    return {
        "options": {**given, **files},  # a job file that does the same again
        "device": str(sd.device),
        "dtype": str(sd.unet.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seconds": {**seconds, "total": time.perf_counter() - begin},
        "peak_memory_bytes": peak_memory(),
    }


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# --- the commands -----------------------------------------------------------------------------------------------------


def run_edit(given: Options, parser: Parser, progress: Progress) -> None:
    jobs = [given]
    if "job" in given:
        over = {key: value for key, value in given.items() if key != "job"}
        jobs = [{**job, **over} for job in read_jobs(Path(given["job"]), parser)]
    taken: set[Path] = set()
    for n, options in enumerate(jobs, start=1):
        try:
            check_job(options, taken)
        except (OSError, ValueError) as error:
            if "job" not in given:
                raise
            raise ValueError(f"{given['job']}, job {n}: {one_line(error)}") from None
    session = Session(progress, len(jobs))
    for n, options in enumerate(jobs, start=1):
        progress.label = f"{n}/{len(jobs)} " if len(jobs) > 1 else ""
        edit_one(options, session)


def check_job(options: Options, taken: set[Path]) -> None:
    """Raise an error for whatever can be known to be wrong before the weights are loaded."""
    from dragsa import editing
    from dragsa.pictures import images

    if ("image" in options) == options.get("from_noise", False):
        raise ValueError("give either IMAGE or --from-noise")
    if "drag" not in options and "target_prompt" not in options:
        raise ValueError("nothing to change: give --drag, --target-prompt, or both")
    check_outputs(options, PICTURES_OUT, taken)
    config = config_of(options)
    if options.get("from_noise"):
        editing.check_generated(config)
        size = options["size"] if isinstance(options.get("size"), tuple) else (config.size, config.size)
    elif isinstance(options.get("size"), tuple):
        raise ValueError("--size: one number; a picture keeps its aspect")
    else:
        size = images.open_picture(options["image"]).size
    editing.check(config, options.get("drag", ()), options.get("mask"), size)


def edit_one(options: Options, session: Session) -> None:
    from dragsa import editing, pictures

    begin = time.perf_counter()
    config = config_of(options)
    if session.jobs == 1 and config.control_step is not None:  # without control there is nothing to keep
        config = replace(config, source_kv="none")
    picture = None if options.get("from_noise") else pictures.open_picture(options["image"])
    sd = session.model(options)
    source, reused = session.source(sd, picture, options, config)
    session.progress.pixels_per_cell = source.picture.width / pictures.grid_size(source.working_size)[0]
    target_prompt = options.get("target_prompt")
    drags, mask = options.get("drag", ()), options.get("mask")
    result = editing.edit(sd, source, drags, mask, target_prompt=target_prompt, config=config, observe=session.progress)

    before = {} if reused else source.seconds
    stages = {
        name: before.get(name, 0) + result.trace.seconds.get(name, 0) for name in {**before, **result.trace.seconds}
    }
    seconds = {"loading": session.seconds_loading, **stages}
    report = {"command": "edit", **pictures.to_json(result.trace), **measured(options, sd, seconds, begin)}
    report["source_reused"] = reused
    made = {"out": result.image, "source": result.source}
    if "path" in options:
        made["path"] = pictures.draw_path(result.source, result.trace)
    if "sheet" in options:
        made["sheet"] = pictures.sheet(pictures.panels_of(result.source, result.image, result.trace))
    write(options, made, report)


def write(options: Options, made: Mapping[str, Image.Image], report: dict[str, Any]) -> None:
    """The outputs that were asked for; the JSON is the last, so that where it is, everything is."""
    from dragsa.pictures import images

    force = options.get("force", False)
    for name, picture in made.items():
        if name in options:
            images.save_picture(picture, options[name], force)
    if "json" in options:
        files.save_json(report, options["json"], force)


def run_generate(options: Options, progress: Progress) -> None:
    from dragsa import editing
    from dragsa.pictures import trace

    check_outputs(options, ("out",), set())
    config = config_of(options)
    editing.check(config, (), None)
    begin = time.perf_counter()
    session = Session(progress)
    sd = session.model(options)
    source, _ = session.source(sd, None, options, config)
    report = {
        "command": "generate",
        "weights": sd.provenance,
        "prompt": source.prompt,
        "seed": source.seed,
        "size": list(source.picture.size),
        "config": asdict(config),
        "versions": trace.versions(),
        **measured(options, sd, {"loading": session.seconds_loading, **source.seconds}, begin),
    }
    write(options, {"out": source.picture}, report)


@dataclass(frozen=True)
class Block:
    """One row of the block table: a transformer block, its other names, and its shape at a size."""

    block: str
    diffusers: str
    original: str
    grid: tuple[int, int]  # (width, height) in cells
    channels: int
    heads: int


def block_table(unet: Any, size: tuple[int, int]) -> list[Block]:
    """The UNet's transformer blocks with the shapes that a pass over a picture of `size` pixels really has.

    The pass is made on the meta device: the weights' shapes, no values.
    """
    import torch

    from dragsa import hooks
    from dragsa.model import unet as unet_module

    names: dict[int, tuple[str, str]] = {unet_module.MIDDLE: ("mid_block.attentions.0", "middle_block.1")}
    for level, (_, blocks, _) in enumerate(unet_module.ENCODER):
        for n, block in enumerate(blocks):
            if block is not None:
                names[block] = f"down_blocks.{level}.attentions.{n}", f"input_blocks.{1 + 3 * level + n}.1"
    for level, (_, blocks3, _) in enumerate(unet_module.DECODER):
        for n, block in enumerate(blocks3):
            if block is not None:
                names[block] = f"up_blocks.{level}.attentions.{n}", f"output_blocks.{3 * level + n}.1"

    z = torch.empty(1, unet.config.latent_channels, size[1] // 8, size[0] // 8, device="meta")
    context = torch.empty(1, 1, unet.config.context_dim, device="meta")
    shapes = {name: torch.empty_like(value, device="meta") for name, value in unet.state_dict().items()}
    taps = tuple(f"{hooks.block_name(n)}{kind}" for n in sorted(names) for kind in ("", ".kv"))
    read = torch.func.functional_call(unet, shapes, (z, torch.zeros(1, device="meta"), context), {"taps": taps}).taps
    rows = []
    for n, (diffusers, original) in sorted(names.items()):
        name = hooks.block_name(n)
        _, channels, height, width = read[name].shape
        rows.append(Block(name, diffusers, original, (width, height), channels, read[f"{name}.kv"].key.shape[1]))
    return rows


def run_info(options: Options, progress: Progress) -> int:
    """Exit code 1 if the files were to be verified and one is not known."""
    from dragsa import loading
    from dragsa.pictures import trace

    size: Any = options.get("size", 512)
    size = size if isinstance(size, tuple) else (size, size)
    if min(size) < 8 or size[0] % 8 or size[1] % 8:
        raise ValueError(f"--size: sides must be multiples of 8, came {size[0]}×{size[1]}")
    verified = loading.verify(weights_of(options)) if options.get("verify") else []
    if not options.get("json"):
        for one in verified:  # before the loading, which may fail for the very reason that is looked for
            print(f"{one.sha256}  {one.file}: {one.known or 'not a published file'}")
    sd = Session(progress).model(options)
    rows = block_table(sd.unet, size)
    parts = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    progress.erase()
    if options.get("json"):
        report = {
            "weights": sd.provenance,
            "stored": list(sd.config.stored),
            "parameters": parameters,
            "size": list(size),
            "blocks": [asdict(row) for row in rows],
            "versions": trace.versions(),
        }
        if verified:
            report["files"] = [{"file": str(one.file), "sha256": one.sha256, "known": one.known} for one in verified]
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(sd.provenance)
        print("stored as " + ", ".join(sd.config.stored))
        print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in parameters.items()))
        lines = [("block", "diffusers", "original", f"grid at {size[0]}×{size[1]} px", "channels", "heads")]
        for row in rows:
            grid = f"{row.grid[0]}×{row.grid[1]}"
            lines.append((row.block, row.diffusers, row.original, grid, str(row.channels), str(row.heads)))
        widths = [max(len(line[n]) for line in lines) for n in range(6)]
        for line in lines:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    return 0 if all(one.known for one in verified) else 1


BASELINE = {"modes": ("baseline",), "only": ("roof", "update", "memory")}
QUICK = {"width": "tiny", "sizes": (128,), "repeats": 2}


def run_bench(given: Options, progress: Progress) -> None:
    from dragsa.pictures import images
    from dragsa.speed import bench, bench_report

    over = {**(BASELINE if given.get("baseline") else {}), **(QUICK if given.get("quick") else {})}
    options = {**over, **given}
    if given.get("baseline") and "modes" in given:
        raise ValueError("--baseline measures one mode: leave out --modes")
    names = {one.name for one in fields(bench.Settings)}
    settings = bench.Settings(**{key: value for key, value in options.items() if key in names})
    check_paths(options, ("json", "markdown", "chart"), set())
    report = bench.run(settings, progress.say)
    progress.erase()
    tables, force = bench_report.markdown(report), options.get("force", False)
    print(tables, end="")
    if "markdown" in options:
        files.save_bytes(tables.encode(), options["markdown"], force)
    if "chart" in options:
        images.save_picture(bench_report.chart(report), options["chart"], force)
    if "json" in options:
        files.save_json(bench_report.to_json(report), options["json"], force)


# --- main -------------------------------------------------------------------------------------------------------------


def one_line(error: Exception) -> str:
    """An error's message on one line; the system's own as `file: reason`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def warnings_on_one_line(progress: Progress) -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        progress.erase()
        print(f"dragsa: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what was asked wrongly, 130 when interrupted."""
    progress = Progress(sys.stderr, quiet=True)
    try:
        parser = build_parser()
        options = vars(parser.parse_args(arguments))
        if options.pop("version"):
            from dragsa.pictures import trace

            print("\n".join(f"{name} {version}" for name, version in trace.versions().items()))
            return 0
        command = options.get("command")
        if command is None:
            raise ValueError("no command: edit, generate, info or bench (dragsa --help)")
        progress = Progress(sys.stderr, quiet=options.get("quiet", False))
        with warnings_on_one_line(progress):
            if command == "edit":
                run_edit(options, parser, progress)
            elif command == "generate":
                run_generate(options, progress)
            elif command == "bench":
                run_bench(options, progress)
            else:
                return run_info(options, progress)
    except KeyboardInterrupt:
        progress.erase()
        print("dragsa: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # PyTorch's own, of any device
            raise
        progress.erase()
        print(f"dragsa: error: {one_line(error)}", file=sys.stderr)
        return 2
    progress.erase()
    return 0


if __name__ == "__main__":
    sys.exit(main())
