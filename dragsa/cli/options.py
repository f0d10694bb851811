"""The options of the commands, on the command line and in a job file's JSON.

The tables make the argparse actions, which the command line, the help and the job files all go by.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from dragsa import config
from dragsa.cli.readers import (
    LARGEST,
    blocks,
    drag,
    embedding,
    extent,
    listed,
    lora,
    optional_path,
    scale,
    whole,
    whole_or_never,
)

Options = dict[str, Any]  # the options that were given, by their long names with underscores; files are Paths

# A value is read by a function, is one of some words, or is read by argparse under these keyword arguments.
Reader = Callable[[str], Any] | tuple[str, ...] | dict[str, Any]
# Rows of the tables below: an option's flag with its value's name, the help, and how the value is read, where that is
# not by the type of the setting of this name.
Rows = tuple[tuple[str, str] | tuple[str, str, Reader], ...]
FLAG = {"action": "store_true"}  # an option without a value
CHOICE = {"action": argparse.BooleanOptionalAction}  # and one that can be taken back, by --no-…

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


class Formatter(argparse.HelpFormatter):
    """Wraps all of a help's text but its examples, which are to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


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
        ("--preset", "the numbers not given (default sd15; for the models of weights/ their own)"),
        ("--steps T", "T, the steps from noise to picture", whole(1)),
        ("--variant", "the schedule's timesteps and clean end"),
        ("--guidance SCALE", "scale of classifier-free guidance; 1 is none"),
        ("--fixed-point N", "fixed-point iterations in each step of the inversion"),
        ("--size PX", "working size: a longer side above it is reduced to it; from noise PX or WIDTHxHEIGHT", extent),
    ),
    "control": (
        ("--control-step A", "denoising step, counted from z_T, from which Key and Value are the source's; or 'never'"),
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
        ("--drag-step S", "S: the drag is at level T - S, so many denoising steps from z_T"),
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
        ("--loss", "over the features' channels: their mean, DragDiffusion's, or their sum, as the paper prints it"),
        (
            "--drag-guidance SCALE",
            "of the drag's own passes, from 1: DragDiffusion's for generated pictures; 1 is none",
        ),
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
        ("--frames DIR", "the drag's pictures so far (x̂_0, decoded), in a folder or a .gif", Path),
        ("--trace DIR", "a folder that shows the edit's inside: index.html and its pictures", Path),
        ("--every N", "of --frames and --trace: a picture every N updates (default 5)", whole(1)),
        ("--explain", "tell the network's passes as they happen: how many, where, of what, under what", FLAG),
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
UI: dict[str, Rows] = {
    "": (
        ("--host ADDRESS", "listen there (default 127.0.0.1: this machine alone; others need the printed token)", str),
        ("--port N", "and at this port (default 7860; 0: any that is free)", whole(0, 65535)),
        ("--open", "show the page in the browser", FLAG),
        ("--megapixels N", "of a picture, at most (default 20)", whole(1)),
        ("--megabytes N", "of a file, at most (default 64)", whole(1)),
    ),
    "model": (
        ("--weights PATH", f"{WEIGHTS_HELP}; may be repeated", {"type": Path, "action": "append"}),
        *EDIT["model"][1:],
    ),
}
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


_DISC = 'dragsa edit scripts/demo/disc.png --prompt "a red disc on a cyan ground" --drag 42,79:70,59 --radius 9'
_FACE = '--prompt "a white face on a purple ground" --guidance 3'
# By command: two that work, in a checkout.
EXAMPLES: dict[str, tuple[str, str]] = {
    "edit": (
        f"{_DISC} --drag-step 10 --mask scripts/demo/mask.png --out moved.png",
        f"dragsa edit --from-noise {_FACE} --drag 73,74:86,74 --radius 5 --out turned.png --frames turned.gif",
    ),
    "generate": (
        f"dragsa generate {_FACE} --out face.png",
        'dragsa generate --prompt "a yellow disc on a cyan ground" --seed 7 --size 128x96 --out disc.png',
    ),
    "ui": ("dragsa ui", "dragsa ui --port 8080 --weights weights/small"),
    "fetch": ("dragsa fetch", "dragsa fetch folder-fp16 --to weights/sd15"),
    "info": ("dragsa info --verify", "dragsa info --weights weights/small --size 768x512 --json"),
    "bench": ("dragsa bench --quick", "dragsa bench --only update,memory --threads 2 --markdown bench.md"),
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
        ". Points are pixels (x, y) of the picture as given; 0,0 is at the upper left. In brackets stand the defaults, "
        "sd15's and after a semicolon small's where it has others. What can go wrong is looked for first; then --out "
        "is written first, and --json last.",
        EDIT,
    ),
    "generate": (
        "draw a picture from a prompt and a seed",
        ": the one that `edit --from-noise` edits under the same options. In brackets stand the defaults, sd15's and "
        "after a semicolon small's where it has others.",
        GENERATE,
    ),
    "ui": (
        "open a page on which pictures are edited by hand",
        ": press on the picture, pull, let go. It needs the extra ui, two packages: pip install 'dragsa[ui]'. Nothing "
        "is written but what the page is asked to save.",
        UI,
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
        how: dict[str, Any] = {"description": about, "epilog": "\n  ".join(["examples:", *EXAMPLES[name]])}
        how |= {"allow_abbrev": False, "argument_default": argparse.SUPPRESS, "formatter_class": Formatter}
        command = commands.add_parser(name, help=summary, **how)
        add_groups(command, groups)
    return parser


def add_groups(command: argparse.ArgumentParser, groups: Mapping[str, Rows]) -> None:
    """Add options in groups by their titles, "" for the command's first ones.

    With a schedule the help has the numbers of SD 1.5's preset and of the shipped model's. Other programs take that of
    `EDIT`, and rows of other settings.
    """
    presets = (config.EditConfig.sd15(), config.EditConfig.small()) if "schedule" in groups else ()
    defaults = [{**asdict(preset), **asdict(preset.drag), "drag": ()} for preset in presets]  # --drag is the points
    for title, rows in groups.items():
        group = command.add_argument_group(title) if title else command
        for option, text, *given in rows:
            flag, _, metavar = option.partition(" ")
            name = flag.removeprefix("--").replace("-", "_")
            read = given[0] if given else READERS.get(TYPES[name]) or get_args(TYPES[name])
            how: dict[str, Any] = {"metavar": metavar} if metavar else {}
            how |= read if isinstance(read, dict) else {"choices" if isinstance(read, tuple) else "type": read}
            if default := "; ".join(dict.fromkeys(default_text(one.get(name, ())) for one in defaults)):
                text += f" [{default}]"
            group.add_argument(flag, help=text, **how)


def default_text(value: Any) -> str:
    """Return a setting as the command line has it; "" for an empty tuple."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "never" if value is None else str(value)
