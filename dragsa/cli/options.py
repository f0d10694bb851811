"""The options of the commands and how their values are read.

The tables at the end make the argparse actions, which the command line, the help and the job files all go by.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from dragsa import config
from dragsa.config import BLOCKS

Options = dict[str, Any]  # the options that were given, by their long names with underscores; files are Paths

# A row of the tables below: an option's flag, how its value is read, the value's name in the help, and the help.
# A value is read by a function, is one of some words, or is read by argparse under these keyword arguments.
Row = tuple[str, Callable[[str], Any] | tuple[str, ...] | dict[str, Any], str, str]
Rows = tuple[Row, ...]
FLAG = {"action": "store_true"}  # an option without a value

LARGEST = 8192  # pixels, of a working picture's side
WEIGHTS_HELP = "a safetensors file, or a folder in the diffusers layout (default: $DRAGSA_WEIGHTS, else weights/small)"


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError for a mistake, which `main` shows on one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


@dataclass(frozen=True)
class Listable:
    """Read an option's text. A job file may also give a list, which `text` writes as the command line has it."""

    read: Callable[[str], Any]
    text: Callable[[list[Any]], str]

    def __call__(self, text: str) -> Any:
        return self.read(text)


def joined(separator: str) -> Callable[[list[Any]], str]:
    """Return a writer of lists with this between their values."""
    return lambda values: separator.join(map(str, values))


def whole(lowest: int) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least `lowest` that 63 bits hold."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or not lowest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, came {text!r}")
        return int(text)

    return read


def whole_or_never(text: str) -> int | None:
    """Read a whole number of at least 0, or "never", for which a job file has null."""
    return None if text == "never" else whole(0)(text)


def scale(text: str) -> float:
    """Read a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, came {text!r}")
    return number


def optional_path(text: str) -> Path | str:
    """Read a path. Empty text, as from an unset variable, and argparse's mark of an absent IMAGE stay as they are."""
    return text if text in ("", argparse.SUPPRESS) else Path(text)


def read_drag(text: str) -> tuple[tuple[float, float], tuple[float, float]]:
    number = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
    found = re.fullmatch(f"{number},{number}:{number},{number}", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be X0,Y0:X1,Y1 (handle and target in pixels), came {text!r}")
    x0, y0, x1, y1 = map(float, found.groups())
    return (x0, y0), (x1, y1)


def drag_text(value: list[Any]) -> str:
    try:
        (x0, y0), (x1, y1) = value
    except (TypeError, ValueError):
        raise ValueError(f"drag: must be [[X0, Y0], [X1, Y1]] or 'X0,Y0:X1,Y1', came {json.dumps(value)}") from None
    return f"{x0},{y0}:{x1},{y1}"


def read_blocks(text: str) -> tuple[int, ...]:
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


def read_extent(text: str) -> int | tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be pixels, N or WIDTHxHEIGHT, came {text!r}")
    if max(int(side) for side in found.groups("0")) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST} pixels, came {text!r}")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def listed(one: Callable[[str], Any]) -> Listable:
    """Return a reader of values with commas between them, each of which `one` reads; repeated ones count once."""
    return Listable(lambda text: tuple(dict.fromkeys(one(part.strip()) for part in text.split(","))), joined(","))


@dataclass(frozen=True)
class FileWith:
    """A file and what was written behind it: a LoRA's scale, or an embedding's token, None where there was none."""

    file: Path
    extra: float | str | None = None

    def __str__(self) -> str:
        """The text that reads as this."""
        return str(self.file) if self.extra is None else f"{self.file}:{self.extra}"

    def within(self, folder: Path) -> FileWith:
        """Return the same of a file whose path is relative to the folder."""
        return FileWith(folder / self.file, self.extra)


def lora(text: str) -> FileWith:
    """Read FILE or FILE:SCALE; what is no number behind a colon belongs to the file's name."""
    file, _, end = text.rpartition(":")
    try:
        number = float(end)
    except ValueError:
        return FileWith(Path(text))
    if not math.isfinite(number) or not file:
        raise argparse.ArgumentTypeError(f"must be FILE or FILE:SCALE, came {text!r}")
    return FileWith(Path(file), number)


def embedding(text: str) -> FileWith:
    """Read FILE or FILE:TOKEN; a colon that a path goes on behind belongs to the file's name."""
    file, _, token = text.rpartition(":")
    if not file or not token or "/" in token or "\\" in token or token.endswith(".safetensors"):
        return FileWith(Path(text))
    return FileWith(Path(file), token)


drag = Listable(read_drag, drag_text)
blocks = Listable(read_blocks, joined(","))
extent = Listable(read_extent, joined("x"))


EDIT: Rows = (
    ("image", {"type": optional_path, "nargs": "?"}, "IMAGE", "the picture: any format, mode, size and aspect"),
    ("--from-noise", FLAG, "", "no IMAGE: edit the picture that --prompt and --seed generate"),
    ("--drag", {"type": drag, "action": "append"}, "X0,Y0:X1,Y1", "move this handle there; may be repeated"),
    ("--mask", Path, "PNG", "of the picture's size: white may move, black should stay"),
    ("--target-prompt", str, "TEXT", "describes the edited picture"),
    ("--job", Path, "FILE", "JSON: these options by name, or a list of such jobs"),
)
SOURCE: Rows = (
    ("--prompt", str, "TEXT", "describes the source (default: nothing)"),
    ("--negative-prompt", str, "TEXT", "what guidance leads away from (default: nothing)"),
    ("--seed", whole(0), "N", "default 42"),
)
CHANGES: Rows = (
    (
        "--ema",
        {"action": argparse.BooleanOptionalAction},
        "",
        "of a file with two copies of its UNet: the mean",
    ),
    ("--vae", Path, "PATH", "a file or folder to take the VAE from"),
    ("--text-encoder", Path, "PATH", "a file or folder to take the text encoder from"),
    ("--clip-skip", whole(1), "N", "read prompts at the text encoder's last layer (1), the one before (2), …"),
    ("--lora", {"type": lora, "action": "append"}, "FILE[:SCALE]", "apply a LoRA (at 1); may be repeated"),
    ("--embedding", {"type": embedding, "action": "append"}, "FILE[:TOKEN]", "a textual inversion; may be repeated"),
)
MODEL: Rows = (
    ("--weights", optional_path, "PATH", WEIGHTS_HELP),
    *CHANGES,
    ("--device", str, "DEVICE", "cpu (default), cuda, cuda:1, …"),
    ("--dtype", get_args(config.DType), "", "of the networks (default float32)"),
    ("--threads", whole(1), "N", "CPU threads (default: PyTorch's choice)"),
)
SCHEDULE: Rows = (
    ("--preset", get_args(config.Preset), "", "the numbers not given (default sd15; small for the model that ships)"),
    ("--steps", whole(1), "T", "T, the steps from noise to picture"),
    ("--variant", get_args(config.Variant), "", "the schedule's timesteps and clean end"),
    ("--guidance", scale, "SCALE", "scale of classifier-free guidance; 1 is none"),
    ("--fixed-point", whole(0), "N", "fixed-point iterations in each step of the inversion"),
    ("--size", extent, "PX", "working size that a picture's longer side is fitted to; from noise PX or WIDTHxHEIGHT"),
)
CONTROL: Rows = (
    ("--control-step", whole_or_never, "A", "denoising step from which Key and Value are the source's, or 'never'"),
    ("--control-blocks", blocks, "BLOCKS", "in these transformer blocks, such as 11,12,15 or 11-16"),
    ("--control", get_args(config.Control), "", "attend to the source, to source and edit, or object to object"),
    ("--object-words", listed(str), "WORDS", "for masked: the prompts' words for the object, such as disc,star"),
    ("--mask-blocks", blocks, "BLOCKS", "for masked: the blocks whose cross-attention locates the object"),
    ("--mask-threshold", scale, "SHARE", "for masked: attention above this is the object"),
    ("--blend", {"action": argparse.BooleanOptionalAction}, "", "outside the mask take the source's latents"),
)
LORA: Rows = (
    ("--lora-steps", whole(0), "N", "steps that train a LoRA on the picture first: 80 in DragDiffusion, 0 for none"),
)
DRAG: Rows = (
    ("--drag-step", whole(0), "S", "S, the denoising steps before the drag, which is at level T - S"),
    ("--tap", str, "NAME", "features F: block01 … block16, decoder1 … or a sum such as block14+block15"),
    ("--updates", whole(0), "N", "at most this many updates of the latent"),
    ("--lr", scale, "ETA", "η, the learning rate"),
    ("--radius", whole(0), "R1", "r_1, half the side of the supervised patch"),
    ("--track-radius", whole(0), "R2", "r_2, half the side of the tracking window"),
    ("--lam", scale, "LAMBDA", "λ, the weight of the mask term"),
    (
        "--anchor",
        scale,
        "SHARE",
        "weight of the first latent's patch in the motion-supervision target: 0 is the paper's loss",
    ),
    ("--reach", scale, "CELLS", "arrival threshold: a handle nearer than this to its target has arrived"),
    ("--optimizer", get_args(config.Optimizer), "", "adam-mini: one scale for all; sgd: the paper's plain descent"),
    ("--reference", get_args(config.Reference), "", "tracking looks for the feature of h^0 or of h^k"),
    ("--patience", whole_or_never, "N", "stop after N updates without a move, or 'never'"),
    ("--lost-patience", whole_or_never, "N", "stop after N updates that lose a handle, or 'never'"),
    ("--stall", whole_or_never, "N", "stop after N updates without coming nearer, and go back; or 'never'"),
)
COST: Rows = (
    ("--compile", get_args(config.Compile), "", "how an update is compiled; see `dragsa bench`"),
    ("--checkpoint", FLAG, "", "gradient checkpointing: less memory, a third more time"),
    ("--source-kv", get_args(config.SourceKV), "", "source's K and V kept for later jobs; inversion approximates"),
    ("--source-kv-memory", whole(0), "BYTES", "how much of them stays in memory; the rest goes to files"),
)
OUTPUT: Rows = (
    ("--out", Path, "PNG", "the result; required"),
    ("--json", Path, "FILE", "every setting and every measurement"),
)
PICTURES: Rows = (
    ("--source", Path, "PNG", "the picture before the edit"),
    ("--path", Path, "PNG", "the handles' path drawn over the picture"),
    ("--sheet", Path, "PNG", "source, path and result side by side"),
)
WRITING: Rows = (
    ("--force", FLAG, "", "replace files that are there"),
    ("--quiet", FLAG, "", "no progress on a terminal"),
)
INFO: Rows = (
    ("--weights", optional_path, "PATH", WEIGHTS_HELP),
    *CHANGES,
    ("--verify", FLAG, "", "look the files' sha256 up among the published ones; exit code 1 if one is not known"),
    ("--size", extent, "PX", "grids for a picture of this size (default 512)"),
    ("--json", FLAG, "", "print JSON in place of tables"),
)
PARTS_HELP = (
    "of roof, update, memory, fused, tracking, handles, denoise, recompiles, and by name alone compile (the "
    "compiler's minutes) and whole (an edit by stages)"
)
BENCH: Rows = (
    ("--only", listed(str), "PARTS", PARTS_HELP),
    ("--sizes", listed(whole(8)), "PX", "sides of square pictures [512]"),
    ("--handles", listed(whole(1)), "N", "numbers of handles [1,20]"),
    ("--modes", listed(str), "NAMES", "of updates: {float32,bfloat16}-checkpoint or [baseline,float32,bfloat16]"),
    ("--baseline", FLAG, "", "updates and memory of DragDiffusion's way alone"),
    ("--repeats", whole(1), "N", "of everything, after one that is not counted [5]"),
    ("--steps", whole(1), "N", "denoising steps timed, and T of a whole edit [2]"),
    ("--updates", whole(1), "N", "of a whole edit [2]"),
    ("--quick", FLAG, "", "tiny networks and pictures: shows that it runs, not how fast"),
)
BENCH_MODEL: Rows = (
    ("--weights", str, "PATH", "a file or folder, in place of seeded values"),
    ("--width", ("sd15", "tiny"), "", "of the seeded networks (default sd15)"),
    ("--device", str, "DEVICE", "cpu (default), cuda, cuda:1, …"),
    ("--threads", whole(1), "N", "CPU threads (default: all cores)"),
)
BENCH_OUTPUT: Rows = (
    ("--json", Path, "FILE", "every repeat, the machine, and the goals"),
    ("--markdown", Path, "FILE", "the tables that are printed"),
    ("--chart", Path, "PNG", "bars of times, memory and goals"),
)


# By command: its summary, what its description adds, and its options in groups of the help.
COMMANDS: dict[str, tuple[str, str, dict[str, Rows]]] = {
    "edit": (
        "edit a picture by drags, by a changed prompt, or by both",
        ". Points are pixels (x, y) of the picture as given; 0,0 is at the upper left. Numbers in brackets are the "
        "paper's. Nothing is written unless everything succeeds.",
        {
            "": EDIT + SOURCE,
            "model": MODEL,
            "schedule": SCHEDULE,
            "control": CONTROL,
            "LoRA": LORA,
            "drag": DRAG,
            "speed and memory": COST,
            "output": OUTPUT + PICTURES + WRITING,
        },
    ),
    "generate": (
        "draw a picture from a prompt and a seed",
        ": the one that `edit --from-noise` edits under the same options. Numbers in brackets are the paper's.",
        {"": SOURCE, "model": MODEL, "schedule": SCHEDULE, "output": OUTPUT + WRITING},
    ),
    "info": ("show what weights hold", ": their networks, block by block, as loaded.", {"": INFO}),
    "bench": (
        "measure the drag loop's speed and memory on this machine",
        ", by parts, and what its goals ask of both, against the loop as DragDiffusion's program does it; print "
        "Markdown tables. No weights are needed: networks of SD 1.5's width get seeded values. Plan some 20 minutes on "
        "two cores and 15 GB of memory, and two minutes for --quick.",
        {"": BENCH, "model": BENCH_MODEL, "output": BENCH_OUTPUT + WRITING},
    ),
}


def build_parser() -> Parser:
    """Return the parser. It leaves out options that are not given: those of a job file or a preset then apply."""
    parser = Parser(prog="dragsa", description="Edit pictures by dragging points and by changing prompts.")
    parser.add_argument("--version", action="store_true", help="print the versions of dragsa and of what it runs on")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)
    for name, (summary, more, groups) in COMMANDS.items():
        about = f"{summary.capitalize()}{more}"
        command = commands.add_parser(
            name, help=summary, description=about, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        for title, rows in groups.items():
            add_group(command, title, rows)
        if "schedule" in groups:
            add_defaults(command)
    return parser


def add_group(command: argparse.ArgumentParser, title: str, rows: Rows) -> None:
    """Add a table's options under a title, or among the command's first ones if that is empty."""
    group = command.add_argument_group(title) if title else command
    for flag, read, metavar, text in rows:
        how: dict[str, Any] = {"metavar": metavar} if metavar else {}
        if isinstance(read, tuple):
            how["choices"] = read
        elif isinstance(read, dict):
            how |= read
        else:
            how["type"] = read
        group.add_argument(flag, help=text, **how)


def add_schedule_options(command: argparse.ArgumentParser) -> None:
    """Add the options that a program with a schedule shares with `dragsa edit`."""
    add_group(command, "schedule", SCHEDULE)


def add_defaults(command: argparse.ArgumentParser) -> None:
    """Add the paper's numbers to the help of the options that set them."""
    paper = asdict(config.EditConfig.paper())
    numbers = {**paper.pop("drag"), **paper}
    for action in command._actions:
        if action.help and (default := default_text(numbers.get(action.dest, ()))):
            action.help += f" [{default}]"


def default_text(value: Any) -> str:
    """Return a setting as the command line has it; "" for an empty tuple."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "never" if value is None else str(value)
