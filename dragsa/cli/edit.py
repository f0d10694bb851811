"""`dragsa edit` and `dragsa generate`, and what they share: configuration, weights, session, outputs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragsa.cli.jobs import NO_KEYS, OF_ONE_RUN, read_jobs
from dragsa.cli.looking import Looker, check_looking, tells, watched, write_looking
from dragsa.cli.options import Options
from dragsa.cli.outputs import FILES, FOLDERS, check_apart, check_outputs, is_kept, place, write, write_report
from dragsa.cli.progress import Failed, Progress, at_work, first_interrupt_ends_the_drag, is_told, one_line
from dragsa.cli.weights import SMALL, changes_of, load_changed
from dragsa.config import DragConfig, EditConfig, suiting
from dragsa.files import WHERE

if TYPE_CHECKING:
    from PIL import Image

    from dragsa import editing
    from dragsa.loading import StableDiffusion
    from dragsa.looking import Edited, Pass
    from dragsa.pictures import Observer


def suits(weights: Path) -> str:
    """Return the preset that a model brings, by the widths of its UNet, before it is loaded."""
    try:
        settings = json.loads((weights / "unet" / "config.json").read_bytes())
        return suiting(tuple(settings["block_out_channels"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # loading says what is wrong with it
        return "sd15"


def config_of(options: Options) -> EditConfig:
    """Return the preset's configuration with the numbers that were given in place of its own."""
    preset: EditConfig = getattr(EditConfig, options.get("preset") or suits(weights_of(options)))()
    loop = {one.name: options[one.name] for one in fields(DragConfig) if one.name in options}
    edit = {one.name: options[one.name] for one in fields(EditConfig) if one.name in options}
    if isinstance(edit.get("size"), tuple):
        edit["size"] = max(edit["size"])
    edit["drag"] = replace(preset.drag, **loop)  # the option of this name is the points
    return replace(preset, **edit)


def weights_of(options: Options) -> Path:
    """Return the path of the weights: given, in the environment, or those of the model that ships."""
    if path := options.get("weights") or os.environ.get("DRAGSA_WEIGHTS"):
        return Path(path)
    if SMALL.is_dir():
        return SMALL
    raise ValueError(f"no weights: give --weights PATH or set DRAGSA_WEIGHTS; {WHERE}")


@dataclass
class Session:
    """The model that is loaded and the source that is prepared, kept from job to job."""

    progress: Progress
    looker: Looker | None = None  # what observes the job that is done
    seconds_loading: float = 0.0
    _model: tuple[Any, StableDiffusion] | None = None
    _source: tuple[Any, editing.Source] | None = None
    _hashes: dict[str, str] | None = None

    def model(self, options: Options) -> StableDiffusion:
        import torch

        if "threads" in options:
            torch.set_num_threads(options["threads"])
        path, device, dtype = weights_of(options), options.get("device", "cpu"), options.get("dtype", "float32")
        key, begin = (place(path), device, dtype, changes_of(options), tells(options)), time.perf_counter()
        self.seconds_loading = 0.0
        if self._model is None or self._model[0] != key:
            self.progress.say(f"loading {path}")
            self._model = self._source = self._hashes = None
            sd = load_changed(path, options)
            self._model = key, watched(sd, self.told) if tells(options) else sd
            self.seconds_loading = time.perf_counter() - begin
        return self._model[1]

    @property
    def observer(self) -> Observer:
        return self.progress if self.looker is None else self.looker

    def told(self, one: Pass) -> None:
        """Take a pass of a network that is watched."""
        if self.looker is not None:
            self.looker.tell(one)

    def hashes(self, sd: StableDiffusion) -> dict[str, str]:
        """Return the sha256 of each of the weights' files, by its name `within` the weights' own path."""
        from dragsa.loading import known_files

        if self._hashes is None:
            root = sd.config.path if sd.config.path.is_dir() else sd.config.path.parent
            self.progress.say("hashing the weights")
            self._hashes = {within(root, file): known_files.sha256(file) for file in sd.config.files}
        return self._hashes

    def source(
        self, sd: StableDiffusion, picture: Image.Image | None, options: Options, config: EditConfig
    ) -> tuple[editing.Source, bool]:
        """Return the source of the edit, and whether the job before had prepared it."""
        from dragsa import checks, editing

        assert self._model is not None
        prompt, seed, size = options.get("prompt", ""), options.get("seed", 42), options.get("size")
        negative = options.get("negative_prompt", "")
        content = None if picture is None else (picture.mode, picture.size, sha256(picture.tobytes()).digest())
        made = checks.of_source(config, generated=picture is None)
        key = self._model[0], content, prompt, negative, seed, size, made
        if self._source is not None and self._source[0] == key:
            return self._source[1], True
        extent = size if isinstance(size, tuple) else None
        told: dict[str, Any] = {"observe": self.observer, "negative_prompt": negative}
        self._source = key, editing.prepare(sd, picture, prompt, seed, config, size=extent, **told)
        return self._source[1], False


def within(root: Path, file: Path) -> str:
    """Return a file's path in a folder; of one that lies elsewhere, as `--vae` names it, the whole."""
    root, file = root.absolute(), file.absolute()
    return str(file.relative_to(root) if file.is_relative_to(root) else place(file))


def measured(options: Options, sd: StableDiffusion, seconds: Mapping[str, float], begin: float) -> dict[str, Any]:
    """Return the part of the JSON that both commands have: the options, where the command ran, and what it cost."""
    import torch

    unasked = ("command", "version", "weights_sha256", *NO_KEYS, *OF_ONE_RUN)
    given = {key: value for key, value in options.items() if key not in unasked}
    files: dict[str, Any] = {key: str(place(value)) for key, value in given.items() if isinstance(value, Path)}
    for key in ("lora", "embedding"):
        files |= {key: [str(one.within(Path.cwd())) for one in given[key]]} if key in given else {}
    return {
        "options": {**given, **files},  # a job file that does the same again
        "device": str(sd.device),
        "dtype": str(sd.unet.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seconds": {**seconds, "total": time.perf_counter() - begin},
        "peak_memory_bytes": peak_memory(),
    }


def every_option(options: Options) -> Options:
    """Return the options, and those that were not given as they were in force: they make the same edit again."""
    config = config_of(options)
    values = {one.name: getattr(config.drag, one.name) for one in fields(DragConfig)}
    values |= {one.name: getattr(config, one.name) for one in fields(EditConfig) if one.name != "drag"}
    weights = weights_of(options)
    preset = options.get("preset") or suits(weights)
    return {**values, "seed": 42, **options, "weights": weights, "preset": preset}


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_edit(given: Options, progress: Progress) -> int:
    """Check every job, then run them; options on the command line replace those of the job file.

    A job of a list that fails is named, and the others are done. Returns 1 if one failed, else 0.
    """
    jobs = jobs_of(given)
    taken: set[Path] = set()
    for n, options in enumerate(jobs, start=1):
        try:
            check_job(options, taken)
        except (OSError, ValueError) as error:
            if "job" not in given:
                raise
            raise ValueError(f"{given['job']}, job {n}: {one_line(error)}") from None
    check_apart([given, *jobs])
    session, failed = Session(progress), False
    for n, options in enumerate(jobs, start=1):
        if all(is_kept(options, name) for name in (*FILES, *FOLDERS) if name in options):
            continue
        progress.label = f"{n}/{len(jobs)} " if len(jobs) > 1 else ""
        try:
            edit_one(options, session, alone=len(jobs) == 1)
        except (OSError, ValueError, MemoryError, RuntimeError, Failed) as error:
            if len(jobs) == 1 or not is_told(error):
                raise
            failed = True
            progress.fail(f"{given['job']}, job {n}: {one_line(error)}")
            if not given.get("keep_going", True):
                break
    return 1 if failed else 0


def jobs_of(given: Options) -> list[Options]:
    """Return the jobs that are asked for. Raises ValueError for a preset over a job that has all of its numbers."""
    if "job" not in given:
        return [given]
    over, jobs = {key: value for key, value in given.items() if key != "job"}, read_jobs(given["job"])
    for n, job in enumerate(jobs, start=1):
        other = {**job, "preset": over.get("preset", job.get("preset"))}
        if "preset" in job and other["preset"] != job["preset"] and config_of(other) == config_of(job):
            said = f"--preset {other['preset']} would change nothing: the job gives the numbers itself, as reports do"
            raise ValueError(f"{given['job']}, job {n}: {said}; give those that should differ")
    return [{**job, **over} for job in jobs]


def check_job(options: Options, taken: set[Path]) -> None:
    """Raise an error for a mistake that can be found before the weights are loaded.

    What an earlier job will write can be looked at only when its turn has come, by `check_fit`.
    """
    from dragsa import checks, methods

    if ("image" in options) == options.get("from_noise", False):
        raise ValueError("give either IMAGE or --from-noise")
    if "drag" not in options and "target_prompt" not in options:
        raise ValueError("nothing to change: give --drag, --target-prompt, or both")
    to_come = any(place(options[name]) in taken for name in ("image", "mask") if options.get(name))
    config, prompt = config_of(options), options.get("prompt", "")
    checks.words(prompt, options.get("target_prompt"))
    if config.object_words:  # without any `checks.settings` asks for them
        methods.check_object_words(config, prompt, options.get("target_prompt") or prompt)
    if not to_come:
        check_fit(options, config)
    check_outputs(options, taken)  # last, as --force may be all that these lack
    check_looking(options, config)


def check_fit(options: Options, config: EditConfig) -> None:
    """Raise an error for drags, a mask and settings that do not fit the picture, or one another."""
    from dragsa import checks, pictures

    if options.get("from_noise"):
        size = drawn_size(options, config)
        checks.generation(config, size)
    elif isinstance(options.get("size"), tuple):
        raise ValueError("--size: one number; a picture keeps its aspect")
    else:
        size = pictures.open_picture(options["image"]).size
    for name in ("out", "source", "path"):
        if name in options:
            pictures.check_format(options[name], size)
    checks.settings(config, options.get("drag", ()), options.get("mask"), size)


def edit_one(options: Options, session: Session, alone: bool) -> None:
    """Edit one picture and write what was asked for. One that is alone keeps nothing of its source for later ones."""
    from dragsa import pictures
    from dragsa.checks import outcomes

    begin = time.perf_counter()
    config = config_of(options)
    check_fit(options, config)
    if alone and config.control_step is not None:  # without control there is nothing to keep
        config = replace(config, source_kv="none")
    sd = session.model(options)
    with at_work():
        hashes = session.hashes(sd) if "json" in options or "weights_sha256" in options else None
        if options.get("weights_sha256", hashes) != hashes:
            session.progress.warn(f"{weights_of(options)} holds other weights than those of the report")
        session.looker = looker = Looker(options, config, session.progress)
        with first_interrupt_ends_the_drag(session.progress):
            result, edited, reused = make(sd, session, options, config)
        looker.close()
        source = edited.source

        seconds = {"loading": session.seconds_loading, **({} if reused else source.seconds)}
        for stage, more in result.trace.seconds.items():
            seconds[stage] = seconds.get(stage, 0) + more
        told = measured(every_option(options), sd, seconds, begin)
        report = {"command": "edit", **pictures.to_json(result.trace), **told}
        report |= {"weights_sha256": hashes, "source_reused": reused}
        made = {
            "out": lambda: result.image,
            "source": lambda: result.source,
            "path": lambda: pictures.draw_path(result.source, result.trace),
            "sheet": lambda: pictures.sheet(pictures.panels_of(result.source, result.image, result.trace)),
        }
        write(options, made)
        write_looking(options, sd, replace(edited, latents=looker.latents, passes=looker.said))
        write_report(options, report)
        session.progress.tell(f"{options['out']}: {outcomes.in_short(result.trace)}", sys.stdout)
    if result.trace.stop == "not finite":
        raise Failed("the drag ended at numbers that are not finite; the picture is that of the last good update")


def make(
    sd: StableDiffusion, session: Session, options: Options, config: EditConfig
) -> tuple[editing.EditResult, Edited, bool]:
    """Make an edit; return with it that of the part which was cut out, and whether the job before had its source."""
    from dragsa import editing, looking, pictures

    used: list[tuple[Edited, bool]] = []
    whole = replace(config, crop="none")  # of the picture, or of the part that is cut out of it

    def edited(picture: Image.Image | None, drags: Any, mask: Any) -> editing.EditResult:
        source, reused = session.source(sd, picture, options, whole)
        session.progress.pixels_per_cell = source.picture.width / pictures.grid_size(source.working_size)[0]
        told: dict[str, Any] = {"target_prompt": options.get("target_prompt"), "observe": session.observer}
        result = editing.edit(sd, source, drags, mask, config=whole, **told)
        used.append((looking.Edited(source, result, drags, mask), reused))
        return result

    picture = None if options.get("from_noise") else pictures.open_picture(options["image"])
    asked = picture, options.get("drag", ()), options.get("mask")
    result = pictures.edit_part(edited, *asked, config.size) if config.crop == "auto" else edited(*asked)
    ((part, reused),) = used
    return result, part, reused


def drawn_size(options: Options, config: EditConfig) -> tuple[int, int]:
    """Return the size of a picture that is generated."""
    given = options.get("size")
    return given if isinstance(given, tuple) else (config.size, config.size)


def run_generate(options: Options, progress: Progress) -> int:
    from dragsa import checks, pictures
    from dragsa.checks import notices

    check_outputs(options, set())
    config = config_of(options)
    checks.settings(config, (), None)
    checks.words(options.get("prompt"))
    checks.generation(config, drawn_size(options, config))
    pictures.check_format(options["out"], drawn_size(options, config))
    notices.warn_of_unused(config, options.get("negative_prompt", ""), generated=True)
    begin = time.perf_counter()
    session = Session(progress)
    sd = session.model(options)
    with at_work():
        source, _ = session.source(sd, None, options, config)
    report = {
        "command": "generate",
        "weights": sd.provenance,
        "prompt": source.prompt,
        "negative_prompt": source.negative_prompt,
        "seed": source.seed,
        "size": list(source.picture.size),
        "config": asdict(config),
        "versions": pictures.versions(),
        **measured(options, sd, {"loading": session.seconds_loading, **source.seconds}, begin),
    }
    with at_work():
        write(options, {"out": lambda: source.picture})
        write_report(options, report)
    return 0
