"""The options of the commands, and how their values are read: on the command line, and in a job file's JSON.

The tables make the argparse actions, which the command line, the help and the job files all go by.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from dragsa import config
from dragsa.config import BLOCKS

Options = dict[str, Any]  # the options that were given, by their long names with underscores; files are Paths

# A value is read by a function, is one of some words, or is read by argparse under these keyword arguments.
Reader = Callable[[str], Any] | tuple[str, ...] | dict[str, Any]
# Rows of the tables below: an option's flag with its value's name, the help, and how the value is read, where that is
# not by the type of the setting of this name.
Rows = tuple[tuple[str, str] | tuple[str, str, Reader], ...]
FLAG = {"action": "store_true"}  # an option without a value
CHOICE = {"action": argparse.BooleanOptionalAction}  # and one that can be taken back, by --no-…

LARGEST = 8192  # pixels, of a working picture's side
THREADS = max(256, os.cpu_count() or 1)  # with some thousands PyTorch crashes
WEIGHTS_HELP = (
    "a safetensors file, or a folder in the diffusers layout (default: $DRAGSA_WEIGHTS, else the model that ships)"
)
WHAT = ("single", "single-both", "folder", "folder-fp16")  # the layouts that can be fetched
PARTS_HELP = (
    "of roof, update, memory, fused, tracking, handles, denoise, recompiles, and by name alone compile (the "
    "compiler's minutes) and whole (an edit by stages)"
)


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError for a mistake, which `main` shows on one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def whole(lowest: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least `lowest`, and at most as many as 63 bits hold or `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or not lowest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, came {text!r}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, came {text!r}")
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


def extent(text: str) -> int | tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be pixels, N or WIDTHxHEIGHT, came {text!r}")
    if max(int(side) for side in found.groups("0")) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST} pixels, came {text!r}")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def listed(one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return a reader of values with commas between them, each of which `one` reads; repeated ones count once."""
    return lambda text: tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))


@dataclass(frozen=True)
class FileWith:
    """A file and what was written behind it: a LoRA's scale, or an embedding's token, None where there was none."""

    file: Path
    extra: float | str | None = None

    def __str__(self) -> str:
        """Return the text that reads as this."""
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


# Readers of settings, by the types that `config` gives them; of other types are words, which `get_args` knows.
READERS: dict[Any, Reader] = {int: whole(0), int | None: whole_or_never, float: scale, bool: FLAG, str: str}
READERS |= {tuple[int, ...]: blocks, tuple[str, ...]: listed(str)}
TYPES = {**get_type_hints(config.DragConfig), **get_type_hints(config.EditConfig)}
TYPES |= {"preset": config.Preset, "dtype": config.DType}

SOURCE: Rows = (
    ("--prompt TEXT", "describes the source (default: nothing)", str),
    ("--negative-prompt TEXT", "what guidance leads away from (default: nothing)", str),
    ("--seed N", "default 42", whole(0)),
)
CHANGES: Rows = (
    ("--ema", "of a file with two copies of its UNet: the mean", {"action": argparse.BooleanOptionalAction}),
    ("--vae PATH", "a file or folder to take the VAE from", Path),
    ("--text-encoder PATH", "a file or folder to take the text encoder from", Path),
    ("--clip-skip N", "read prompts at the text encoder's last layer (1), the one before (2), …", whole(1)),
    ("--lora FILE[:SCALE]", "apply a LoRA (at 1); may be repeated", {"type": lora, "action": "append"}),
    ("--embedding FILE[:TOKEN]", "a textual inversion; may be repeated", {"type": embedding, "action": "append"}),
)
OUTPUT: Rows = (
    ("--out PNG", "the result; required", Path),
    ("--json FILE", "every setting and every measurement", Path),
)
WRITING: Rows = (
    ("--force", "replace files that are there", FLAG),
    ("--quiet", "no progress on a terminal", FLAG),
)
# The options of a command, in groups of its help.
EDIT: dict[str, Rows] = {
    "": (
        ("image IMAGE", "the picture: any format, mode, size and aspect", {"type": optional_path, "nargs": "?"}),
        ("--from-noise", "no IMAGE: edit the picture that --prompt and --seed generate", FLAG),
        ("--drag X0,Y0:X1,Y1", "move this handle there; may be repeated", {"type": drag, "action": "append"}),
        ("--mask PNG", "of the picture's size: white may move, black should stay", Path),
        ("--target-prompt TEXT", "describes the edited picture", str),
        ("--job FILE", "JSON: these options by name, a list of such jobs (scripts/demo/jobs.json), or a report", Path),
        ("--keep-going", "do a list's other jobs where one fails, and exit with 1 (default)", CHOICE),
        ("--skip-existing", "leave outputs that are there, and jobs that have all of theirs", FLAG),
        *SOURCE,
    ),
    "model": (
        ("--weights PATH", WEIGHTS_HELP, optional_path),
        *CHANGES,
        ("--device DEVICE", "cpu (default), cuda, cuda:1, …", str),
        ("--dtype", "of the networks (default float32)"),
        ("--threads N", "CPU threads (default: PyTorch's choice)", whole(1, THREADS)),
    ),
    "schedule": (
        ("--preset", "the numbers not given (default sd15; small for the model that ships)"),
        ("--steps T", "T, the steps from noise to picture", whole(1)),
        ("--variant", "the schedule's timesteps and clean end"),
        ("--guidance SCALE", "scale of classifier-free guidance; 1 is none"),
        ("--fixed-point N", "fixed-point iterations in each step of the inversion"),
        ("--size PX", "working size: a longer side above it is reduced to it; from noise PX or WIDTHxHEIGHT", extent),
    ),
    "control": (
        ("--control-step A", "denoising step from which Key and Value are the source's, or 'never'"),
        ("--control-blocks BLOCKS", "in these transformer blocks, such as 11,12,15 or 11-16"),
        ("--control", "attend to the source, to source and edit, or object to object"),
        ("--object-words WORDS", "for masked: the prompts' words for the object, such as disc,star"),
        ("--mask-blocks BLOCKS", "for masked: the blocks whose cross-attention locates the object"),
        ("--mask-threshold SHARE", "for masked: attention above this is the object"),
        ("--blend", "outside the mask take the source's latents", CHOICE),
        ("--paste", "outside the mask give back the picture's pixels", CHOICE),
        ("--crop", "auto: of a large picture edit the part about drags and mask alone, and put it back"),
    ),
    "LoRA": (("--lora-steps N", "steps that train a LoRA on the picture first: 80 in DragDiffusion, 0 for none"),),
    "drag": (
        ("--drag-step S", "S, the denoising steps before the drag, which is at level T - S"),
        ("--tap NAME", "features F: block01 … block16, decoder1 … or a sum such as block14+block15"),
        ("--updates N", "at most this many updates of the latent"),
        ("--lr ETA", "η, the learning rate"),
        ("--radius R1", "r_1, half the side of the supervised patch"),
        ("--track-radius R2", "r_2, half the side of the tracking window"),
        ("--lam LAMBDA", "λ, the weight of the mask term"),
        (
            "--anchor SHARE",
            "weight of the first latent's patch in the motion-supervision target: 0 is the paper's loss",
        ),
        ("--reach CELLS", "arrival threshold: a handle nearer than this to its target has arrived"),
        ("--optimizer", "adam-mini: one scale for all; sgd: the paper's plain descent"),
        ("--reference", "tracking looks for the feature of h^0 or of h^k"),
        ("--patience N", "stop after N updates without a move, or 'never'"),
        ("--lost-patience N", "stop after N updates that lose a handle, or 'never'"),
        ("--stall N", "stop after N updates without coming nearer, and go back; or 'never'"),
    ),
    "speed and memory": (
        ("--compile", "how an update is compiled; see `dragsa bench`"),
        ("--checkpoint", "gradient checkpointing: less memory, a third more time"),
        ("--source-kv", "source's K and V kept for later jobs; inversion approximates"),
        ("--source-kv-memory BYTES", "how much of them stays in memory; the rest goes to files"),
    ),
    "output": (
        *OUTPUT,
        ("--source PNG", "the picture before the edit", Path),
        ("--path PNG", "the handles' path drawn over the picture", Path),
        ("--sheet PNG", "source, path and result side by side", Path),
        *WRITING,
    ),
}
GENERATE = {"": SOURCE, "model": EDIT["model"], "schedule": EDIT["schedule"], "output": OUTPUT + WRITING}
INFO: Rows = (
    ("--weights PATH", WEIGHTS_HELP, optional_path),
    *CHANGES,
    ("--verify", "look the files' sha256 up among the published ones; exit code 1 if one is not known", FLAG),
    ("--size PX", "grids for a picture of this size (default 512)", extent),
    ("--json", "print JSON in place of tables", FLAG),
)
BENCH: dict[str, Rows] = {
    "": (
        ("--only PARTS", PARTS_HELP, listed(str)),
        ("--sizes PX", "sides of square pictures [512]", listed(whole(8, LARGEST))),
        ("--handles N", "numbers of handles [1,20]", listed(whole(1, 1000))),
        ("--modes NAMES", "of updates: {float32,bfloat16}-checkpoint or [baseline,float32,bfloat16]", listed(str)),
        ("--baseline", "updates and memory of DragDiffusion's way alone", FLAG),
        ("--repeats N", "of everything, after one that is not counted [5]", whole(1)),
        ("--steps N", "denoising steps timed, and T of a whole edit [2]", whole(1)),
        ("--updates N", "of a whole edit [2]", whole(1)),
        ("--quick", "tiny networks and pictures: shows that it runs, not how fast", FLAG),
    ),
    "model": (
        ("--weights PATH", "a file or folder, in place of seeded values", str),
        ("--width", "of the seeded networks (default sd15)", ("sd15", "tiny")),
        ("--device DEVICE", "cpu (default), cuda, cuda:1, …", str),
        ("--threads N", "CPU threads (default: all cores)", whole(1, THREADS)),
    ),
    "output": (
        ("--json FILE", "every repeat, the machine, and the goals", Path),
        ("--markdown FILE", "the tables that are printed", Path),
        ("--chart PNG", "bars of times, memory and goals", Path),
        *WRITING,
    ),
}


FETCH: Rows = (
    (
        "what",
        "single: one file with the EMA weights, 4.3 GB (default); single-both: with the plain weights too, 7.7 GB; "
        "folder: the diffusers layout, 4.3 GB; folder-fp16: the same in half precision, 2.1 GB",
        {"nargs": "?", "choices": WHAT, "default": WHAT[0]},
    ),
    ("--to FOLDER", "where to (default weights/sd15)", Path),
)

# By command: its summary, what its description adds, and its options.
COMMANDS: dict[str, tuple[str, str, dict[str, Rows]]] = {
    "edit": (
        "edit a picture by drags, by a changed prompt, or by both",
        ". Points are pixels (x, y) of the picture as given; 0,0 is at the upper left. Numbers in brackets are the "
        "paper's. What can go wrong is looked for first; then --out is written first, and --json last.",
        EDIT,
    ),
    "generate": (
        "draw a picture from a prompt and a seed",
        ": the one that `edit --from-noise` edits under the same options. Numbers in brackets are the paper's.",
        GENERATE,
    ),
    "fetch": (
        "download Stable Diffusion 1.5's published weights",
        ". An interrupted download is taken up where it stopped; each file is compared with its published sha256. "
        "Needs huggingface_hub: pip install 'dragsa[fetch]'.",
        {"": FETCH},
    ),
    "info": ("show what weights hold", ": their networks, block by block, as loaded.", {"": INFO}),
    "bench": (
        "measure the drag loop's speed and memory on this machine",
        ", by parts, and what its goals ask of both, against the loop as DragDiffusion's program does it; print "
        "Markdown tables. No weights are needed: networks of SD 1.5's width get seeded values. Plan some 20 minutes on "
        "two cores and 15 GB of memory, and two minutes for --quick.",
        BENCH,
    ),
}


def build_parser() -> Parser:
    """Return the parser. It leaves out options that are not given: those of a job file or a preset then apply."""
    parser = Parser(prog="dragsa", description="Edit pictures by dragging points and by changing prompts.")
    parser.add_argument("--version", action="store_true", help="print the versions of dragsa and of what it runs on")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)
    for name, (summary, more, groups) in COMMANDS.items():
        about = f"{summary[0].upper()}{summary[1:]}{more}"
        command = commands.add_parser(
            name, help=summary, description=about, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        add_groups(command, groups)
    return parser


def add_groups(command: argparse.ArgumentParser, groups: Mapping[str, Rows]) -> None:
    """Add options in groups by their titles, "" for the command's first ones.

    With a schedule the help has the paper's numbers. Other programs take that of `EDIT`, and rows of other settings.
    """
    paper = asdict(config.EditConfig.paper()) if "schedule" in groups else {}
    defaults = {**paper.pop("drag", {}), **paper}
    for title, rows in groups.items():
        group = command.add_argument_group(title) if title else command
        for option, text, *given in rows:
            flag, _, metavar = option.partition(" ")
            name = flag.removeprefix("--").replace("-", "_")
            read = given[0] if given else READERS.get(TYPES[name]) or get_args(TYPES[name])
            how: dict[str, Any] = {"metavar": metavar} if metavar else {}
            how |= read if isinstance(read, dict) else {"choices" if isinstance(read, tuple) else "type": read}
            if default := default_text(defaults.get(name, ())):
                text += f" [{default}]"
            group.add_argument(flag, help=text, **how)


def default_text(value: Any) -> str:
    """Return a setting as the command line has it; "" for an empty tuple."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "never" if value is None else str(value)
