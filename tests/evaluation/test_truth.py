"""The benchmark's runs: the edits are the package's own, and a folder is all that the tables are made of."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragsa import editing, loading, source_kv
from dragsa.config import DragConfig, EditConfig
from dragsa.evaluation import cases, lists, runs, truth, truth_tables
from dragsa.evaluation.edits import VARIANTS
from dragsa.evaluation.runs import CAPTION, MAIN, Setting, published, rivals
from dragsa.methods import lora

FAST = EditConfig(DragConfig(updates=2, lr=0.05), steps=6, drag_step=2, control_step=3, size=64, paste=False)
SETTINGS = [
    Setting("no-edit"),
    Setting("reconstruction", FAST),
    Setting(MAIN, FAST, "five"),
    Setting("no-control", replace(FAST, control_step=None), "five"),
]
LISTED = cases.cases("figures", limit=1, size=64)[:3]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Path:
    return tiny_folder


@pytest.fixture(scope="module")
def sd(model: Path) -> loading.StableDiffusion:
    return loading.load(model)


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three cases, begun by one process and ended by two."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert truth.run(folder, LISTED[:1], SETTINGS, model, published=False, explain=False)
    assert truth.run(folder, LISTED, SETTINGS, model, workers=2, published=False, explain=False)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"control_step": None},
        {"blend": True, "control_step": 0},
        {"guidance": 2.0},
        {"lora_steps": 2},
        {"control": "union", "control_step": 4},
    ],
    ids=["ours", "no control", "blended", "guided", "under a LoRA", "union"],
)
def test_a_case_is_the_packages_edit(sd: loading.StableDiffusion, changes: dict[str, Any]) -> None:
    case, config = LISTED[0], replace(FAST, **changes)
    source = editing.prepare(sd, case.source, case.prompt, config=config)
    setting = Setting("it", config, "five")
    result = truth.run_case(sd, case, [setting], published=False, explain=False)["it"]
    picture, course = result.picture, result.figures["drag"]
    edited = editing.edit(sd, replace(source), case.drags("five"), case.mask, config=config)  # with nothing recorded
    assert np.abs(np.asarray(picture, int) - np.asarray(edited.image, int)).max() <= 1
    assert course["losses"] == pytest.approx(edited.trace.losses)
    assert course["stop"] == edited.trace.stop
    idle = truth.reconstruct(sd, source, config.steps - config.drag_step)
    assert np.abs(np.asarray(picture, int) - np.asarray(idle, int)).max() > 2  # the drag did something


def test_later_edits_of_a_case_take_the_sources_pass_from_the_first(
    sd: loading.StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = LISTED[0]
    names, replayed = ["first", "blended", "no-control"], []
    configs = [FAST, replace(FAST, blend=True), replace(FAST, control_step=None)]
    settings = [Setting(name, config, "five") for name, config in zip(names, configs, strict=True)]
    alone = {s.name: truth.run_case(sd, case, [s], published=False, explain=False)[s.name] for s in settings}
    sample = source_kv.replayed

    def counted(*args: Any, **options: Any) -> Any:
        replayed.append(args)
        return sample(*args, **options)

    monkeypatch.setattr(source_kv, "replayed", counted)
    together = truth.run_case(sd, case, settings, published=False, explain=False)
    assert len(replayed) == 2
    for name in names:
        pictures = (np.asarray(results[name].picture, int) for results in (together, alone))
        assert np.abs(np.subtract(*pictures)).max() <= 1, name
    assert len({result.picture.tobytes() for result in together.values()}) == 3


def test_the_first_drag_alone_is_explained(sd: loading.StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EditConfig] = []

    def drawable(sd: object, case: object, config: EditConfig) -> dict[str, float]:
        asked.append(config)
        return {"share": 0.0}

    monkeypatch.setattr(truth, "drawable", drawable)
    still = replace(FAST, drag=replace(FAST.drag, updates=0))
    settings = [
        SETTINGS[1],
        Setting("first", still, "five"),
        Setting("second", replace(still, control_step=None), "five"),
    ]
    results = truth.run_case(sd, LISTED[0], settings, published=False)
    assert [name for name, result in results.items() if "drawable" in result.figures] == ["first"] and asked == [still]
    assert all(results[name].figures["share"] > 0.5 for name in ("first", "second"))


def test_settings_of_one_drag_share_it(sd: loading.StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"prepare": 0, "drag_source": 0}

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def count(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, count)

    counted(editing, "prepare")
    counted(truth, "drag_source")
    other = Setting("one-handle", FAST, "one")
    results = truth.run_case(sd, LISTED[0], [*SETTINGS, other], published=False, explain=False)
    assert calls == {"prepare": 1, "drag_source": 2}
    assert list(results) == [setting.name for setting in [*SETTINGS, other]]
    dragged = {setting.name for setting in [*SETTINGS, other] if setting.handles in VARIANTS}
    assert {name for name, (_, row) in results.items() if "told_right" in row} == dragged
    assert results["no-edit"].picture == LISTED[0].source


def test_another_source_of_keys_and_values_is_another_edit(sd: loading.StableDiffusion) -> None:
    settings = [Setting(name, replace(FAST, source_kv=name), "five") for name in ("exact", "inversion")]
    both, alone = (
        truth.run_case(sd, LISTED[0], some, published=False, explain=False) for some in (settings, settings[1:])
    )
    assert both["inversion"].picture.tobytes() == alone["inversion"].picture.tobytes()


def test_one_handle_of_a_whole_object_holds_a_patch_of_its_size() -> None:
    small = EditConfig.small()
    setting = Setting("one-handle", small, "one", fitted=True)
    of_kind = {case.kind: case for case in cases.cases("figures", limit=1)}
    for kind, case in of_kind.items():
        config = setting.config_for(case)
        assert config is not None
        if kind in ("turn", "resize"):
            assert config == small  # the handle is a nose, or a point of the outline
            continue
        sizes = [case.before.size] + ([case.before.neighbour.size] if kind == "two" and case.before.neighbour else [])
        radius = config.drag.radius
        assert replace(config, drag=replace(config.drag, radius=small.drag.radius)) == small
        # Its corner, in cells of the grid, is nearest to the outline of the smaller object; 64 cells to the width.
        assert abs(math.sqrt(2) * radius - min(sizes) * 64 / 2) <= math.sqrt(2) / 2
    assert Setting("one-handle", small, "one").config_for(of_kind["move"]) == small


def test_rivals_differ_in_the_method_alone() -> None:
    small, theirs = EditConfig.small(size=64, paste=False), EditConfig.dragdiffusion()
    settings = {setting.name: setting for setting in rivals(small)}
    assert settings["ours"] == Setting("ours", small, "five")
    for name, control, steps in (
        ("dragdiffusion-first", None, 0),
        ("dragdiffusion-first-lora", None, 80),
        ("dragdiffusion", 0, 0),
        ("dragdiffusion-lora", 0, 80),
    ):
        config = settings[name].config
        assert config is not None and settings[name].handles == "five"
        assert (config.control_step, config.lora_steps, config.variant) == (control, steps, theirs.variant)
        own = {name: getattr(small, name) for name in ("control_step", "lora_steps", "variant")}
        assert replace(config, **own) == small
    masactrl = settings["masactrl"].config
    assert masactrl is not None and settings["masactrl"].handles == CAPTION
    assert (masactrl.variant, masactrl.control_step, masactrl.size) == ("masactrl", 4, 64)


def test_every_setting_is_of_the_size_asked_for_and_pastes_nothing() -> None:
    ours = EditConfig.small(size=64, paste=False)
    said = [setting.config for settings in runs.SETTINGS.values() for setting in settings(ours)]
    assert {(config.size, config.paste) for config in said if config is not None} == {(64, False)}


def test_others_programs_run_by_their_published_numbers() -> None:
    """Levels counted from z_0, updates, the reach in cells, steps of the LoRA, and where control begins."""

    def numbers(config: EditConfig) -> tuple[Any, ...]:
        drag = config.drag
        level = config.steps - config.drag_step
        return level, drag.updates, drag.reach, config.lora_steps, config.control_step, drag.tap

    configs = {setting.name: setting.config for setting in published(EditConfig.small())}
    said = {name: numbers(config) for name, config in configs.items() if config is not None and "program" in name}
    first, last = (40, 40, 1.0), (35, 80, 2.0)
    assert said == {
        "first-program": (*first, 0, None, "decoder3"),
        "first-program-lora": (*first, 200, None, "decoder3"),
        "last-program": (*last, 0, 0, "decoder3"),
        "last-program-lora": (*last, 80, 0, "decoder3"),
        "first-program-our-tap": (*first, 0, None, "block14"),
        "first-program-our-tap-lora": (*first, 200, None, "block14"),
        "last-program-our-tap": (*last, 0, 0, "block14"),
        "last-program-our-tap-lora": (*last, 80, 0, "block14"),
    }
    assert configs.keys() <= truth_tables.METHODS.keys()
    at_one_tap = [setting.name for setting in published(EditConfig.sd15()) if "program" in setting.name]
    assert at_one_tap == ["first-program", "first-program-lora", "last-program", "last-program-lora"]


def test_a_lora_is_trained_once_for_a_case_and_paid_by_all_who_use_it(
    sd: loading.StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, asked, plain, edit = [], [], lora.adapt, editing.edit

    def adapt(*args: Any, **options: Any) -> lora.Adapted:
        trained.append(args[3].steps)
        return plain(*args, **options)

    def edited(sd: Any, source: Any, **options: Any) -> editing.EditResult:
        asked.append((source.prompt, options["target_prompt"]))
        return edit(sd, source, **options)

    monkeypatch.setattr("dragsa.methods.adapt", adapt)
    monkeypatch.setattr(editing, "edit", edited)
    with_lora = replace(FAST, lora_steps=2)
    settings = [
        Setting("ours", FAST, "five"),
        Setting("lora", with_lora, "five"),
        Setting("lora-no-control", replace(with_lora, control_step=None), "five"),
        Setting("prompt", replace(FAST, guidance=2.0), CAPTION),
    ]
    case = next(case for case in cases.cases("figures", limit=1, size=64) if case.kind == "move")
    results = truth.run_case(sd, case, settings, published=False)
    assert trained == [2]
    seconds = {name: result.figures["seconds"] for name, result in results.items()}
    assert seconds["lora"]["lora"] == seconds["lora-no-control"]["lora"] > 0 and "lora" not in seconds["ours"]
    for spent in seconds.values():
        assert spent["all"] == pytest.approx(sum(value for name, value in spent.items() if name != "all"))
    assert len({result.picture.tobytes() for result in results.values()}) == 4
    (words,) = asked
    assert words == (case.caption(case.before, full=True), case.caption(case.after, full=True))
    assert " at the " in words[0] and "drag" not in results["prompt"].figures


ORPHANS = """
import sys, time
from pathlib import Path
from dragsa.evaluation import runs

def work(item):
    Path(item).touch()
    time.sleep(600)
    return item

if __name__ == "__main__":
    runs.share_out(work, sys.argv[1:], workers=2)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script, begun = tmp_path / "script.py", [tmp_path / "first", tmp_path / "second"]
    script.write_text(ORPHANS)
    root = str(Path(runs.__file__).parents[2])
    command = [sys.executable, str(script), *map(str, begun)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root})
    try:
        until = time.monotonic() + 120
        while not all(file.exists() for file in begun) and time.monotonic() < until:
            time.sleep(0.1)
        assert all(file.exists() for file in begun)
    finally:
        process.kill()
    process.communicate(timeout=60)  # its end of the pipe is the workers' too: it closes with the last of them


KILLED = """
import os, signal
from dragsa.evaluation import runs

def work(item):
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return item

if __name__ == "__main__":
    try:
        runs.share_out(work, ["done", "killed", "left"], workers=2)
    except OSError as error:
        print("told:", error)
"""


def test_a_killed_worker_ends_the_run_and_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    command = [sys.executable, str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    assert ran.stdout.splitlines()[-1].startswith("told: a worker was killed") and "run the same again" in ran.stdout


def test_a_single_worker_computes_with_one_thread_too(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs.each(lambda sd, item: f"{item}: {torch.get_num_threads()}", ["threads"], model)
        assert capsys.readouterr().out == "threads: 1\n" and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_networks_of_another_type_are_a_copy(sd: loading.StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.cases("figures", limit=1, size=64)[0]
    used, prepare = [], editing.prepare

    def prepared(own: loading.StableDiffusion, *args: Any, **options: Any) -> editing.Source:
        used.append([next(network.parameters()).dtype for network in (own.unet, own.vae, own.text)])
        return prepare(own, *args, **options)

    monkeypatch.setattr(editing, "prepare", prepared)
    settings = [Setting("wide", FAST, "five"), Setting("narrow", FAST, "five", "bfloat16")]
    results = truth.run_case(sd, case, settings, published=False, explain=False)
    assert used == [[torch.float32] * 3, [torch.bfloat16] * 3]
    assert next(sd.unet.parameters()).dtype == torch.float32
    assert results["wide"].picture.tobytes() != results["narrow"].picture.tobytes()


def test_a_run_has_every_case_once_and_goes_on_where_it_stood(finished: Path, model: Path) -> None:
    folders = sorted(path.name for path in finished.iterdir() if path.is_dir())
    assert folders == sorted(case.name for case in LISTED)  # and no folder of a part
    for case in LISTED:
        assert lists.load(finished / case.name) == case
        assert {file.stem for file in (finished / case.name).glob("*.png")} >= {setting.name for setting in SETTINGS}
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/*.json")}
    assert truth.run(finished, LISTED, SETTINGS, model, published=False)
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("*/*.json")}


def test_a_run_of_other_settings_is_refused(finished: Path, model: Path) -> None:
    with pytest.raises(ValueError, match="a run with other settings; give another folder"):
        truth.run(finished, LISTED, SETTINGS[:2], model)


def test_other_cases_of_the_same_names_are_refused(model: Path, tmp_path: Path) -> None:
    idle, others = SETTINGS[:1], cases.cases("settings", limit=1, size=64)[:1]
    assert truth.run(tmp_path, LISTED[:1], idle, model, published=False)
    with pytest.raises(ValueError, match="a run with other cases; give another folder"):
        truth.run(tmp_path, others, idle, model, published=False)
    changes: list[dict[str, Any]] = [{"size": 128}, {"after": LISTED[1].after}]
    for change in changes:  # as another option, or other code, would make it
        with pytest.raises(ValueError, match="its move-00 is another case"):
            truth.run(tmp_path, [replace(LISTED[0], **change), LISTED[1]], idle, model, published=False)
    assert not (tmp_path / LISTED[1].name).exists()
    with pytest.raises(ValueError, match="a run with other published; give another folder"):
        truth.run(tmp_path, LISTED[:1], idle, model)


def test_a_case_that_breaks_off_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(runs.files, "save_json", broken)
    with pytest.raises(OSError, match="no space"):
        truth.save(tmp_path, LISTED[0], {})
    assert not list(tmp_path.iterdir())


def test_ranks_do_the_list_between_them(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        done.append(truth.run(tmp_path, LISTED, SETTINGS[:1], model, published=False))
        if rank == 0:
            assert {path.parent.name for path in tmp_path.glob("*/case.json")} == {LISTED[0].name, LISTED[2].name}
    assert done == [False, True]


def course(stop: str, tracked: float) -> dict[str, Any]:
    return {"share": 0.8, "drag": {"stop": stop, "asked_cells": [10.0, 10.0], "tracked_cells": [tracked, tracked]}}


@pytest.mark.parametrize(
    ("figures", "without", "reason"),
    [
        ({"share": 0.5}, None, None),
        (course("tracking lost", 9), None, "tracking lost"),
        (course("not moving", 1), None, "not moving"),
        (course("budget", 4), None, "budget used up"),
        (course("budget", 2), None, "drag undone"),
        (course("reached", 0), None, "drag undone"),
        (course("reached", 0), {"share": 0.7}, "drag undone"),
        (course("tracking lost", 9), {"share": 0.3}, "control pulls back"),
        (course("reached", 0) | {"drawable": {"share": 0.3, "overlap": 0.9}}, {"share": 0.3}, "model cannot draw it"),
        (course("reached", 0) | {"drawable": {"share": 0.1, "overlap": 0.5}}, None, "model cannot draw it"),
        (course("reached", 0) | {"drawable": {"share": 0.1, "overlap": 0.9}}, None, "drag undone"),
    ],
)
def test_failures_are_sorted_by_rule(figures: dict[str, Any], without: dict[str, Any] | None, reason: str) -> None:
    assert truth.why_failed(figures, without) == reason
    assert reason is None or reason in truth.REASONS
