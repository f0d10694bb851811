"""`dragsa ui`: the page, laid out with this command's models, options and jobs."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dragsa import config
from dragsa.cli.edit import SMALL, config_of, suits, weights_of
from dragsa.cli.jobs import read_job
from dragsa.cli.options import CHANGES, CHOICE, EDIT, FLAG, TYPES, Options, default_text
from dragsa.cli.outputs import place
from dragsa.cli.progress import Progress, one_line
from dragsa.cli.readers import FileWith
from dragsa.cli.weights import load_changed
from dragsa.config import DragConfig, EditConfig

if TYPE_CHECKING:
    from dragsa.page import Asked, Desk

GROUPS = ("schedule", "control", "LoRA", "drag", "speed and memory")
# The numbers that the page shows first: how large, how early, how long, how fast, how much round a handle, how true.
FIRST = ("size", "drag_step", "updates", "lr", "radius", "guidance")
SETTINGS = [one.name for kind in (EditConfig, DragConfig) for one in fields(kind) if one.name != "drag"]
WORDS = ("prompt", "target_prompt", "negative_prompt", "seed")
OF_MODEL = (*(row[0].partition(" ")[0].removeprefix("--").replace("-", "_") for row in CHANGES), "dtype")
OF_START = (*OF_MODEL, "device", "threads")
DEMO = SMALL.parents[1] / "scripts" / "demo" / "disc.png"  # in a checkout


def run_ui(options: Options, progress: Progress) -> int:
    try:
        from dragsa.page import server
    except ModuleNotFoundError as error:
        raise ValueError(f"the page needs the package {error.name}: pip install 'dragsa[ui]'") from None
    if "threads" in options:
        import torch

        torch.set_num_threads(options["threads"])
    host, desk = options.get("host", "127.0.0.1"), desk_of(options)
    sock, token = server.listen(host, options.get("port", 7860)), server.token_for(host)
    where = server.address(sock, token)
    print(f"dragsa: the page is {where} (Ctrl-C ends it)", flush=True)
    if options.get("open"):
        webbrowser.open(where)
    server.server_of(server.Page(desk, token)).run(sockets=[sock])
    return 0


def desk_of(options: Options) -> Desk:
    """Return what the page is laid out with. Raises ValueError for weights that are not there."""
    from dragsa.page import Desk, Example

    shop = Shop(options)
    models = {name: partial(load_changed, path, options) for name, path in shop.paths.items()}
    # One handle moves the disc whole where its patch is as large as the disc, and the drag comes early.
    disc = Example(DEMO, "a red disc on a cyan ground", {"drag_step": "10", "radius": "9"})
    example = disc if SMALL in shop.paths.values() and DEMO.is_file() else None
    most = {name: options[name] for name in ("megabytes", "megapixels") if name in options}
    return Desk(models, shop.form(), shop.read, shop.jobs_in, shop.to_file, example, **most)


class Shop:
    """Jobs and settings, read as those of `dragsa edit` with the model options that the page was started with."""

    def __init__(self, options: Options) -> None:
        self.start = {key: options[key] for key in OF_START if key in options}
        self.paths: dict[str, Path] = {}
        for path in options.get("weights") or [weights_of({})]:
            if not path.exists():
                raise ValueError(f"{path}: there is no such file or folder")
            stem = path.resolve().name
            name = next(name for name in (stem, str(path)) if name not in self.paths)
            self.paths[name] = path

    def form(self) -> dict[str, Any]:
        """Return the settings in groups, and their values by preset, as the command line writes them."""
        groups = []
        for title in GROUPS:
            rows = [row for row in EDIT[title] if name_of(row[0]) in SETTINGS]
            groups.append({"title": title, "rows": [self.row(*row) for row in rows]})
        presets = {}
        for preset in get_args(config.Preset):
            values: EditConfig = getattr(EditConfig, preset)()
            presets[preset] = {
                name: default_text(getattr(values if hasattr(values, name) else values.drag, name)) for name in SETTINGS
            }
        suited = {name: suits(path) for name, path in self.paths.items()}
        return {"first": FIRST, "groups": groups, "presets": presets, "suited": suited}

    def row(self, option: str, text: str, how: Any = None) -> dict[str, Any]:
        """Return one setting: its name, its help, and its words where it is one of some."""
        name = name_of(option)
        words = ["yes", "no"] if how in (FLAG, CHOICE) or TYPES[name] is bool else list(get_args(TYPES[name]))
        return {"name": name, "help": text, "words": words if all(isinstance(word, str) for word in words) else []}

    def read(self, model: str, job: Mapping[str, Any]) -> Asked:
        """Return what a job of the page asks for."""
        from dragsa.page import Asked

        options = {**self.parsed(job), "weights": self.paths[model]}
        told = {name: options[name] for name in WORDS if name in options}
        return Asked(config_of(options), tuple(options.get("drag", ())), **told)

    def jobs_in(self, value: Any) -> list[dict[str, Any]]:
        """Return the jobs of a job file or a report, for the page: texts, drags, and the names of its two files."""
        jobs = value if isinstance(value, list) else [value]
        if not jobs or not all(isinstance(job, dict) for job in jobs):
            raise ValueError("the file must hold a job ({option: value}) or a list of jobs")
        return [self.told(n, job) for n, job in enumerate(jobs, start=1)]

    def told(self, n: int, job: Mapping[str, Any]) -> dict[str, Any]:
        try:
            options = read_job(job)
        except ValueError as error:
            raise ValueError(f"job {n}: {one_line(error)}") from None
        if options.get("from_noise"):
            raise ValueError(f"job {n}: it draws its picture from noise; save that by `dragsa generate` and open it")
        for key in OF_MODEL:
            started = self.start.get(key, "float32" if key == "dtype" else None)
            if key in options and plain(options[key]) != plain(started):
                flag = f"--{key.replace('_', '-')}"
                raise ValueError(f"job {n}: it asks for {flag}: start `dragsa ui` with the same")
        told: dict[str, Any] = {name: options[name] for name in WORDS if name in options}
        told |= {name: default_text(options[name]) for name in ("preset", *SETTINGS) if name in options}
        told |= {name: Path(options[name]).name for name in ("image", "mask") if options.get(name)}
        if "weights" in options:
            same = [name for name, path in self.paths.items() if place(path) == place(Path(options["weights"]))]
            if not same:
                raise ValueError(f"job {n}: its weights are not among those that the page was started with (--weights)")
            told["model"] = same[0]
        return {**told, "drag": options.get("drag", [])}

    def to_file(self, model: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return a job of the page as one of a job file, with the model and how it is run."""
        options = self.parsed(job)
        told = {key: plain(value) for key, value in options.items() if key in (*WORDS, "preset", "drag", *SETTINGS)}
        start = {key: plain(value) for key, value in self.start.items()}
        if place(self.paths[model]) != place(weights_of({})):
            start["weights"] = str(self.paths[model].resolve())
        return {**told, **start}

    def parsed(self, job: Mapping[str, Any]) -> Options:
        """Return a job's options. Raises ValueError for a key that is not the page's to give."""
        for key in job:
            if key not in (*WORDS, *SETTINGS, "preset", "drag"):
                raise ValueError(f"{key}: nothing that the page may set")
        given = {key: yes_or_no(value) if TYPES.get(key) is bool else value for key, value in job.items()}
        options = read_job(given)
        if isinstance(options.get("size"), tuple):
            raise ValueError("size: one number; a picture keeps its aspect")
        return options


def name_of(option: str) -> str:
    return option.partition(" ")[0].removeprefix("--").replace("-", "_")


def yes_or_no(value: Any) -> Any:
    """Return True or False for the words that stand for them."""
    return {"yes": True, "no": False}.get(value, value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Return an option's value as JSON has it; files by their whole paths."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, FileWith):  # the file keeps its name, by which an embedding is called
        return str(FileWith(place(value.file.parent) / value.file.name, value.extra))
    return str(place(value)) if isinstance(value, Path) else value
