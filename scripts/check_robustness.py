"""Use dragsa in hostile and unlucky ways, by a seeded hand: every outcome must be a right one.

Right is a result that is what it says it is, or a refusal in one line that leaves nothing behind. Every other outcome
is counted and shown, and fails. It prints a table of kinds; some twenty minutes on one core, no network. Not a part of
the tests. Needs hypothesis (`pip install -e .[check]`) and a system with forks.

    python scripts/check_robustness.py
    python scripts/check_robustness.py --only pickles --cases 5000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image, ImageOps

import dragsa
from dragsa import cli, loading, pictures
from dragsa.evaluation import damage, plain_pickle

SMALL = dragsa.EditConfig.small(size=64, steps=3, drag_step=1, control_step=1)
SMALL = replace(SMALL, drag=replace(SMALL.drag, updates=1))
NUMBERS = ["--size=64", "--steps=3", "--drag-step=1", "--control-step=1", "--updates=1", "--drag=20,20:30,30"]
Wrong = list[str]


@cache
def model() -> loading.StableDiffusion:
    return dragsa.load(cli.SMALL)


def picture(mode: str = "RGB", size: tuple[int, int] = (72, 64)) -> Image.Image:
    """A ramp with a square on it."""
    y, x = np.mgrid[: size[1], : size[0]]
    levels = np.stack([x * 3 % 256, y * 3 % 256, x * 0 + 90], axis=2)
    levels[20:36, 16:32] = (250, 240, 20)
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def told(error: BaseException) -> str:
    """Return an error as a wrong outcome, with the place where it was raised."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {' '.join(str(error).split())[:150]}"


def run(arguments: list[str]) -> tuple[int | str, str]:
    """Run the command line in this process; return its exit code, or what it raised, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            return cli.main(arguments), said.getvalue()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 0, said.getvalue()
        except Exception as error:
            return told(error), said.getvalue()


def outcome(arguments: list[str], out: Path) -> str | None:
    """Run an edit that writes `out`; return what is wrong with how it ended, if anything is."""
    before = sorted(out.parent.iterdir())
    code, said = run(arguments)
    errors = [line for line in said.splitlines() if not line.startswith("dragsa: warning: ")]
    if code == 0:
        if errors and "--explain" not in arguments:
            return f"success that says {errors[0]!r}"
        if out.exists():
            Image.open(out).load()
        return None
    if code not in (1, 2):
        return str(code)
    if code == 2 and sorted(out.parent.iterdir()) != before:
        return f"refused, and something is written: {said}"
    return None if len(errors) == 1 and errors[0].startswith("dragsa: error: ") else f"exit {code} and {errors}"


def sampled(cases: int, seed: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], str | None]) -> Wrong:
    """Return what is wrong with so many cases of a strategy."""
    wrong = []

    def once(case: Any) -> None:
        if problem := check(case):
            wrong.append(f"{problem}: {case!r:.200}")

    settings = hypothesis.settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(once)))()
    return wrong


# --- the kinds, by their names in the table: each takes a number of cases and a seed, and returns what is wrong


def weights(cases: int, seed: int) -> Wrong:
    ends = damage.damaged_files(cases, seed)
    return [f"{one.kind}, {one.way}: {one.end}" for one in ends if not one.is_right]


def pickles(cases: int, seed: int) -> Wrong:
    """Programs of random opcodes, and right files of which some bytes are changed."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for case in range(cases):
            hand, file = random.Random(f"{seed} {case}"), Path(folder) / "meta_data.pkl"
            file.write_bytes(damage.hostile_pickle(hand))
            begin = time.perf_counter()
            try:
                plain_pickle.load(file)
            except ValueError as error:
                if "\n" in str(error) or len(str(error)) > 500:
                    wrong.append(f"case {case}: a long message")
            except Exception as error:
                wrong.append(f"case {case}: {told(error)}")
            if time.perf_counter() - begin > 10:
                wrong.append(f"case {case}: {time.perf_counter() - begin:.0f} s")
    return wrong


ODD: list[Any] = [None, True, -1, 0, 1, 1.5, float("nan"), float("inf"), 10**9, 10**30, "", "x", b"x"]
ODD += [(), (1,), ("a",), [1], {}]
LONG = ("updates", "lora_steps", "fixed_point", "steps", "compile")  # with larger values they are right, and take long
SHORT: list[Any] = [None, True, -1, 0, 1, 1.5, float("nan"), "x", "off", (), [2], -(10**30)]


def some(values: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Return dictionaries of up to so many of the values, by their names."""
    names = st.lists(st.sampled_from(sorted(values)), max_size=most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen}))


def odd_fields(kind: type) -> dict[str, st.SearchStrategy[Any]]:
    """Return the values for each field of a configuration: odd ones, some of which are right."""
    names = [one.name for one in fields(kind) if one.name != "drag"]
    return {name: st.sampled_from(SHORT if name in LONG else ODD) for name in names}


def calls(cases: int, seed: int) -> Wrong:
    """`dragsa.edit` with any values for some of its arguments: a result of the picture's size, or one line."""
    shown, anything, corners = picture(), st.sampled_from(ODD), st.floats(-5, 80) | st.sampled_from([0, 63, 71.5, 1e30])
    point = st.tuples(corners, corners)
    arguments = {
        "image": st.sampled_from([None, picture("L"), picture("RGBA"), np.asarray(shown)]) | anything,
        "drags": st.lists(st.tuples(point, point), max_size=3) | anything,
        "mask": st.sampled_from([Image.new("L", shown.size, 255), np.ones((64, 72))]) | anything,
        "prompt": st.text(max_size=20) | st.sampled_from(["a red disc", "\udcff", "a" * 5000]) | anything,
        "target_prompt": st.sampled_from(["a blue star", ""]) | anything,
        "negative_prompt": st.sampled_from(["", "blurred"]) | anything,
        "seed": st.sampled_from([0, 42, 2**63 - 1, 2**70]) | anything,
        "control": st.sampled_from(["mutual", "union", "masked"]) | anything,
    }
    asked = st.tuples(
        some(arguments, 2), some(odd_fields(dragsa.EditConfig), 1), some(odd_fields(dragsa.DragConfig), 1)
    )

    def check(case: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> str | None:
        given, of_edit, of_drag = case
        config = replace(SMALL, drag=replace(SMALL.drag, **of_drag), **of_edit)
        try:
            result = dragsa.edit(model(), **{"image": shown, "drags": [((20, 20), (30, 30))], **given}, config=config)
        except (ValueError, OSError) as error:
            return None if "\n" not in str(error) and len(str(error)) < 3000 else f"a long message: {error}"
        except Exception as error:
            return told(error)
        return None if result.image.size == result.source.size else f"a result of {result.image.size}"

    return sampled(cases, seed, asked, check)


WORDS = ["", "0", "1", "2", "3", "-1", "1.5", "nan", "inf", "1e309", "99999999999999999999", "x", "never", "yes", "ß"]
WORDS += ["11-16", "16-11", "64x64", "cpu", "hpu", "cuda:9", "block14+block15", "decoder3", "20,20:30,30", "0,0:1e9,1"]
FILES = ["new.png", "new.jpg", "new.gif", "new.doc", "no/new.png", ".", "", "a.png", "text.png", "mask.png", "job.json"]
LIMITED = ("--steps", "--updates", "--fixed-point", "--lora-steps", "--compile", "--threads", "--size")


def commands(cases: int, seed: int) -> Wrong:
    """`dragsa edit` with any value for any option, and job files of any JSON."""
    parser = cli.Parser()
    cli.add_groups(parser, cli.EDIT)
    actions = [action for action in parser._actions if action.option_strings and "--help" not in action.option_strings]
    texts = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=8)

    def values(action: argparse.Action) -> st.SearchStrategy[list[str]]:
        name = action.option_strings[0]
        if action.nargs == 0:
            return st.sampled_from([[one] for one in action.option_strings])
        pool = st.sampled_from(["0", "-1", "1", "2", "1.5", "x", "", "99999999999999999999"])
        if name not in LIMITED:
            pool = texts | st.sampled_from(FILES) | st.sampled_from([str(one) for one in action.choices or ["1"]])
        return pool.map(lambda value: [f"{name}={value}"])

    asked = st.lists(st.sampled_from(actions).flatmap(values), max_size=4)
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*WORDS, *FILES])
    keys = [action.dest for action in actions if action.option_strings[0] not in LIMITED]
    job = st.dictionaries(
        st.sampled_from(keys) | st.text(max_size=4), leaves | st.lists(leaves, max_size=3), max_size=3
    )

    def check(case: tuple[list[list[str]], Any]) -> str | None:
        options, written = case
        arguments = ["edit", "a.png", *NUMBERS, "--out=out.png", *(one for option in options for one in option)]
        if written is not None:
            arguments.append("--job=job.json")
            Path("job.json").write_text(json.dumps(written))
        problem = outcome(arguments, Path("out.png"))
        for file in Path().iterdir():
            if file.is_dir():  # of frames, or of a trace
                shutil.rmtree(file)
            elif file.name not in ("a.png", "mask.png", "text.png"):
                file.unlink()
        return problem

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text.png").write_text("no picture")
        picture().save("a.png")
        Image.new("L", (72, 64), 255).save("mask.png")
        return sampled(cases, seed, st.tuples(asked, st.none() | job | st.lists(job, max_size=2)), check)


MODES = (*Image.MODES, "LA", "La", "PA", "RGBa")


def kinds_of_pictures(cases: int, seed: int) -> Wrong:
    """Every mode that Pillow has, each in every format that it writes and reads, and each EXIF orientation."""
    wrong: Wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for mode in MODES:
            with contextlib.suppress(ValueError):  # of modes that Pillow makes of grey pictures alone
                shown = picture("L").convert(mode)
                shown = picture().convert(mode)
            if mode == "F":  # of which Pillow makes 0 to 255
                shown = shown.point(lambda level: level * (1 / 255) + 0)
            try:
                if dragsa.edit(model(), shown, [((20, 20), (30, 30))], config=SMALL).image.size != shown.size:
                    wrong.append(f"mode {mode}: another size")
            except Exception as error:
                wrong.append(f"mode {mode}: {told(error)}")
            wrong += [f"{mode} in {problem}" for problem in in_formats(shown, folder)]
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture().save(folder / "turned.tiff", exif=exif)
            upright = ImageOps.exif_transpose(Image.open(folder / "turned.tiff"))
            if pictures.open_picture(folder / "turned.tiff").tobytes() != upright.tobytes():
                wrong.append(f"EXIF {orientation}: not upright")
    return wrong


def in_formats(shown: Image.Image, folder: Path) -> Iterator[str]:
    """Open a picture in each format that Pillow writes and reads, edit it if it is RGB, and yield what is wrong."""
    for suffix in sorted({kind: suffix for suffix, kind in Image.registered_extensions().items()}.values()):
        file, out = folder / f"in{suffix}", folder / "out.png"
        try:
            shown.save(file)
            size = Image.open(file).size
            Image.open(file).load()
        except Exception:  # what Pillow cannot write and read
            continue
        try:
            problem = None if pictures.open_picture(file).size == size else "another size"
            if shown.mode == "RGB":
                problem = problem or outcome(["edit", str(file), *NUMBERS, f"--out={out}", "--force"], out)
        except Exception as error:
            problem = told(error)
        if problem:
            yield f"{suffix}: {problem}"


@contextlib.contextmanager
def child(work: Callable[[], int]) -> Iterator[int]:
    """Give the number of a forked process that works, its output in files of the working folder."""
    number = os.fork()
    if number == 0:
        code = 70
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with Path("err").open("w") as said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = work()
        os._exit(code)
    yield number


def kills(cases: int, seed: int) -> Wrong:
    """Processes that are interrupted, ended or killed at any moment: each output is whole or not there."""
    wrong, model_of = [], cli.SMALL
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        picture().save("a.png")
        arguments = ["edit", "a.png", *NUMBERS, f"--weights={model_of}", "--updates=8", "--out=out.png"]
        arguments += ["--json=out.json", "--sheet=sheet.png", "--source-kv-memory=0", "--force"]
        run(arguments)  # once, so that what is imported late is there
        for case in range(cases):
            hand = random.Random(f"{seed} {case}")
            for old in Path().glob("*out*"):
                old.unlink()
            how = hand.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
            with child(lambda: cli.main(arguments)) as number:
                time.sleep(hand.uniform(0, 4))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, how)
                code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            if code not in (0, 130, -how) or "Traceback" in Path("err").read_text():
                wrong.append(f"case {case}: exit {code} by {how.name}: {Path('err').read_text()[-200:]!r}")
            try:
                _ = [Image.open(file).load() for file in ("out.png", "sheet.png") if Path(file).exists()]
                _ = [json.loads(Path(file).read_text()) for file in ("out.json",) if Path(file).exists()]
            except Exception as error:
                wrong.append(f"case {case}: {told(error)}")
            if code == 130 and list(Path().glob("*.part")):
                wrong.append(f"case {case}: an interrupt left a part")
    return wrong


def disks(cases: int, seed: int) -> Wrong:
    """A disk that is full at some output, and a folder that cannot be written to."""
    wrong, outputs = [], ["--out=o.png", "--source=s.bmp", "--path=p.png", "--sheet=q.png", "--json=o.json"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path(folder).chmod(0o777)
        Path("sub").mkdir()
        picture().save("a.png")
        run(["edit", "a.png", *NUMBERS, "--out=first.png"])

        def full(limit: int) -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return cli.main(["edit", "a.png", *NUMBERS, "--force", *outputs])

        def forbidden() -> int:
            os.chmod("sub", 0o555)
            if os.getuid() == 0:
                os.setuid(65534)
            return cli.main(["edit", "a.png", *NUMBERS, "--out=sub/o.png"])

        for case in range(cases):
            limit = random.Random(f"{seed} {case}").randrange(1000, 20_000)
            work, right = (forbidden, (2,)) if case % 5 == 4 else (lambda: full(limit), (0, 1))  # noqa: B023
            with child(work) as number:
                code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            said = [line for line in Path("err").read_text().splitlines() if "warning" not in line]
            refused = work is not forbidden or "cannot be written to" in said[0]
            if code not in right or (code and len(said) != 1) or not refused or list(Path().rglob("*.part")):
                wrong.append(f"case {case}: exit {code} and {said}")
    return wrong


def held() -> tuple[int, int, int]:
    """Return this process's memory in KiB, its open files, and the temporary files that are there."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4, len(os.listdir("/proc/self/fd")), len(os.listdir(tempfile.gettempdir()))


def many(cases: int, seed: int) -> Wrong:
    """Edits of each sort in one process, one after the other: it grows neither in memory nor in files."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        before, tempfile.tempdir = tempfile.tempdir, folder
        source = dragsa.prepare(model(), picture(), config=SMALL)
        sorts: list[dict[str, Any]] = [
            {"image": picture(), "drags": [((20, 20), (30, 30))]},
            {"image": source, "drags": [((20, 20), (30, 30))], "mask": Image.new("L", (72, 64), 255)},
            {"image": source, "target_prompt": "a blue star"},
            {"image": None, "drags": [((20, 20), (30, 30))], "prompt": "a red disc"},
        ]
        seen = []
        for n in range(cases):
            config = replace(SMALL, source_kv_memory=0 if n % 3 else 2**20)
            dragsa.edit(model(), config=config, **sorts[n % len(sorts)])
            seen.append(held())
        tempfile.tempdir = before
    early, late = seen[len(seen) // 4], seen[-1]
    wrong = [f"memory grew by {(late[0] - early[0]) // 1024} MiB"] if late[0] > early[0] + 64 * 1024 else []
    return wrong + [
        f"{what} grew" for what, a, b in zip(("files", "folders"), early[1:], late[1:], strict=True) if b > a + 1
    ]


def together(cases: int, seed: int) -> Wrong:
    """Two threads with one model, and two processes with one output: the same bytes as alone."""
    wrong: Wrong = []
    asked = [[((20, 20), (30, 30))], [((40, 30), (30, 40))]]
    alone = [dragsa.edit(model(), picture(), drags, config=SMALL).image.tobytes() for drags in asked]

    def edit(n: int) -> None:
        if dragsa.edit(model(), picture(), asked[n], config=SMALL).image.tobytes() != alone[n]:
            wrong.append(f"thread {n}: other bytes")

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        picture().save("a.png")
        arguments = ["edit", "a.png", *NUMBERS, "--out=o.png", "--force", f"--weights={cli.SMALL}"]
        run(arguments)
        expected = Path("o.png").read_bytes()
        for case in range(cases):
            if case % 2:
                threads = [threading.Thread(target=edit, args=(n,)) for n in range(2)]
                _ = [thread.start() for thread in threads]  # type: ignore[func-returns-value]
                _ = [thread.join() for thread in threads]  # type: ignore[func-returns-value]
                continue
            with child(lambda: cli.main(arguments)) as one, child(lambda: cli.main(arguments)) as two:
                codes = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in (one, two)]
            if codes != [0, 0] or Path("o.png").read_bytes() != expected:
                wrong.append(f"case {case}: exits {codes}")
    return wrong


KINDS: dict[str, tuple[str, Callable[[int, int], Wrong], int]] = {
    "weights": ("mutated weight files", weights, 300),
    "pickles": ("hostile pickles for the DragBench reader", pickles, 3000),
    "calls": ("`edit` with any arguments", calls, 250),
    "commands": ("the command line with any options", commands, 300),
    "pictures": ("every Pillow mode and format, EXIF 1 to 8", kinds_of_pictures, 0),
    "kills": ("signals at random moments", kills, 50),
    "disks": ("full disk, read-only folder", disks, 20),
    "many": ("edits in one process", many, 200),
    "together": ("two threads, two processes", together, 12),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--cases", type=int, help="of the kind, or of each of them; pictures has its own number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", DRAGSA_WEIGHTS=str(cli.SMALL.resolve()))
    torch.set_num_threads(1)
    rows, found = ["| kind | cases | seconds | wrong outcomes |", "| --- | --- | --- | --- |"], []
    for name in [options.only] if options.only else KINDS:
        says, check, usual = KINDS[name]
        cases, begin = options.cases or usual, time.perf_counter()
        wrong = check(cases, options.seed)
        rows.append(f"| {says} | {cases or 'all'} | {time.perf_counter() - begin:.0f} | {len(wrong)} |")
        found += [f"{name}: {one}" for one in wrong]
        print(rows[-1], file=sys.stderr, flush=True)
    print(*rows, sep="\n")
    print(*found[:40], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
