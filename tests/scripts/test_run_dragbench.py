"""The DragBench runner on a small data set of the published layout: whole or not at all, resumed, shared, evaluated."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_dragbench
from PIL import Image

import dragsa
from dragsa import editing
from dragsa.config import EditConfig
from dragsa.evaluation import distances, dragbench, scenes
from dragsa.pictures import images

ROOT = Path(__file__).parents[2]
NAMES = ["animals/JH_1", "animals/JH_2", "human_head/LC_1"]
QUICK = ["--preset", "paper", "--steps", "4", "--drag-step", "2", "--updates", "2", "--size", "64"]


def write_sample(folder, seed=0, **changes):
    """A sample as the data set's own labelling program saves it, of 72×64 pixels."""
    scene = scenes.random_scene(scenes.HELD_OUT_SEEDS[seed])
    folder.mkdir(parents=True)
    images.to_picture(scenes.draw(scene, 72)[:, :64]).save(folder / "original_image.png")
    mask = np.zeros((64, 72), np.uint8)
    mask[10:50, 8:60] = 1
    meta = {"prompt": scenes.caption(scene), "points": [[20, 30], (31, 33), [40, 22], [44, 20]], "mask": mask}
    (folder / "meta_data.pkl").write_bytes(pickle.dumps({**meta, **changes}))


@pytest.fixture
def data(tmp_path):
    for n, name in enumerate(NAMES):
        write_sample(tmp_path / "data" / name, n)
    (tmp_path / "data" / ".DS_Store").write_bytes(b"")
    (tmp_path / "data" / "animals" / ".DS_Store").write_bytes(b"")
    return tmp_path / "data"


load = cache(dragsa.load)


@pytest.fixture
def run(data, tmp_path, tiny_folder, capfd, monkeypatch):
    """Runs the program; gives its exit code, its JSON and what it printed."""
    monkeypatch.setattr(run_dragbench.loading, "load", load)

    def run(*more, results=tmp_path / "results"):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        given = [str(data), str(results), "--weights", str(tiny_folder), "--json", str(report), *QUICK, *more]
        code = run_dragbench.main(given)
        printed = capfd.readouterr()
        return code, json.loads(report.read_text()) if report.exists() else None, printed.out + printed.err

    return run


def files_of(folder):
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.filterwarnings("ignore:the prompt has")  # of the tiny model's tokenizer
def test_every_sample_is_edited_and_evaluated(run, data, tmp_path, tiny_folder):
    code, report, printed = run("--seed", "7")
    assert code == 0 and report["failed"] == {} and list(report["samples"]) == NAMES
    assert sorted(files_of(tmp_path / "results")) == sorted(
        f"{name}/{file}" for name in NAMES for file in ("dragged_image.png", "trace.json")
    )
    sd = load(tiny_folder)
    sample = dragbench.read_sample(data, NAMES[1])
    result = Image.open(tmp_path / "results" / NAMES[1] / "dragged_image.png")
    config = EditConfig.paper(steps=4, drag_step=2, size=64, drag=dragsa.DragConfig(updates=2), paste=False)
    alone = editing.edit(sd, sample.picture, sample.drags, sample.mask, sample.prompt, config=config)
    assert result.size == (72, 64) and result.tobytes() == alone.image.tobytes()
    found = distances.measure(sd, sample, result, 7, 64)
    assert found.masked_px is not None
    row = report["samples"][NAMES[1]]
    assert row["whole_px"] == list(found.whole_px) and row["masked_px"] == list(found.masked_px)
    assert row["normalised"] == list(found.normalised) and row["seconds"] > 0
    trace = json.loads((tmp_path / "results" / NAMES[1] / "trace.json").read_text())
    assert trace["seed"] == distances.picture_seed(NAMES[1], 7) and trace["config"]["steps"] == 4
    whole = [px for name in NAMES for px in report["samples"][name]["whole_px"]]
    summary = report["summary"]["mean distance, whole picture [px]"]
    assert summary["per_handle"]["mean"] == pytest.approx(sum(whole) / 6) and summary["handles"] == 6
    assert f"{sum(whole) / 6:.1f} (" in printed and "6 handles" in printed and "3 pictures" in printed


def test_a_sample_alone_has_the_numbers_that_it_has_in_company(run, data):
    together = run()[1]["samples"]
    for name in NAMES[:2]:
        shutil.rmtree(data / name)
    alone = run()[1]["samples"]
    assert list(alone) == NAMES[2:] and alone[NAMES[2]] == together[NAMES[2]]


def test_what_is_finished_is_passed_over(run, tmp_path):
    results = tmp_path / "results"
    run("--edit-only")
    before = files_of(results)
    shutil.rmtree(results / NAMES[1])
    code, _, printed = run("--edit-only")
    after = files_of(results)
    assert code == 0 and after.keys() == before.keys()
    assert {file.rpartition("/")[0] for file in after if after[file] != before[file]} == {NAMES[1]}
    assert NAMES[1] in printed and NAMES[0] not in printed
    run("--edit-only", "--again")
    assert all(mtime != after[file] for file, mtime in files_of(results).items()) and len(after) == 6


def test_results_of_other_settings_are_not_mixed(run, tmp_path):
    run("--edit-only")
    before = files_of(tmp_path / "results")
    for more, what in ((["--lr", "0.5"], "config"), (["--seed", "1"], "base_seed"), (["--dtype", "float16"], "dtype")):
        code, _, printed = run("--edit-only", *more)
        assert code == 2 and f"{NAMES[0]}: made with another {what}" in printed and printed.count("\n") == 1
    (tmp_path / "results" / NAMES[0] / "trace.json").write_text("[1")
    code, _, printed = run("--edit-only")
    assert code == 2 and "without a readable trace.json" in printed
    assert files_of(tmp_path / "results").keys() == before.keys()


def test_a_sample_that_fails_is_named_and_does_not_lose_the_others(run, data, tmp_path):
    mask = np.ones((64, 72), np.uint8)

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    bad: dict[str, tuple[dict[str, Any], str]] = {
        "points outside": ({"points": [[20, 30], [90, 30]]}, "point 90,30 lies outside"),
        "a point alone": ({"points": [[20, 30], [21, 30], [1, 1]]}, "handle and target by turns"),
        "no points": ({"points": []}, "handle and target by turns"),
        "points of three": ({"points": [[1, 2, 3]] * 4}, "handle and target by turns"),
        "another mask": ({"mask": mask.T}, "the mask is (72, 64)"),
        "no prompt": ({"prompt": None}, "prompt is not so"),
        "hostile": ({"prompt": Hostile()}, "it names posix.system"),
    }
    for name, (changes, _) in bad.items():
        write_sample(data / "bad" / name, **changes)
    (data / "bad" / "no picture").mkdir()
    shutil.copy(data / NAMES[0] / "meta_data.pkl", data / "bad" / "no picture")
    code, report, printed = run()
    assert code == 1 and list(report["samples"]) == NAMES and "3 of 11 samples done" in printed
    reasons = {f"bad/{name}": reason for name, (_, reason) in bad.items()} | {"bad/no picture": "no such file"}
    assert report["failed"].keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in report["failed"][name] and f"failed: {name}: " in printed
    assert not (tmp_path / "ran").exists() and not (tmp_path / "results" / "bad").exists()


def test_a_result_is_there_whole_or_not_at_all(run, tmp_path, monkeypatch):
    results = tmp_path / "results"
    save = dragbench.files.save_json

    def fails(value, path, overwrite=False):
        if value.get("sample") == NAMES[0]:
            raise OSError("disk full")
        save(value, path, overwrite)

    with monkeypatch.context() as patch:
        patch.setattr(dragbench.files, "save_json", fails)
        code, report, _ = run("--edit-only")
    assert code == 1 and report["failed"] == {NAMES[0]: "disk full"}
    assert [file.name for file in (results / "animals").iterdir()] == ["JH_2"]
    (results / "animals" / ".JH_1.99.part").mkdir()  # as a process leaves it that is killed
    code, report, _ = run("--edit-only")
    assert code == 0 and sorted(file.name for file in (results / "animals").iterdir()) == ["JH_1", "JH_2"]


def test_results_of_another_program(run, data, tmp_path):
    theirs = tmp_path / "theirs"
    for name in NAMES[:2]:
        (theirs / name).mkdir(parents=True)
        Image.open(data / name / "original_image.png").resize((80, 80)).save(theirs / name / "dragged_image.png")
    before = files_of(theirs)
    code, report, printed = run("--evaluate-only", "--metric-tap", "decoder3", results=theirs)
    assert code == 1 and list(report["samples"]) == NAMES[:2] and report["edited"] is None
    assert list(report["failed"]) == NAMES[2:] and report["failed"][NAMES[2]].endswith("no result")
    assert report["metrics"]["tap"] == "decoder3" and files_of(theirs) == before
    assert report["summary"]["seconds"]["per_picture"]["mean"] is None
    if distances.why_no_fidelity():
        assert report["samples"][NAMES[0]]["fidelity"] is None and report["metrics"]["no_fidelity"] in printed


def test_masks_as_they_are_found(data, tmp_path):
    for n, (mask, expected) in enumerate(
        (
            (None, None),
            (np.zeros((64, 72), np.float32), None),
            (np.eye(64, 72, dtype=np.float32) * 0.25, 64),
            (np.full((64, 72), 255, np.uint8), 64 * 72),
        )
    ):
        write_sample(data / "masks" / str(n), mask=mask)
        found = dragbench.read_sample(data, f"masks/{n}").mask
        assert (None if found is None else int(found.sum())) == expected


@pytest.mark.parametrize(
    "more, words",
    [
        (["--evaluate-only"], "not a folder"),
        (["--evaluate-only", "--edit-only"], "leave nothing to do"),
        (["--steps", "0"], "--steps"),
        (["--drag-step", "9"], "drag step S"),
        (["--json", "nowhere/report.json"], "there is no folder nowhere"),
        (["--weights", "nowhere"], "nowhere: there is no such file"),
        (["--metric-tap", "decoder9"], "decoder9"),
    ],
)
def test_what_is_asked_wrongly(run, tmp_path, more, words):
    code, _, printed = run(*more)
    assert code == 2 and words in printed and printed.count("\n") == 1 and printed.startswith("dragbench: error: ")
    assert not (tmp_path / "results").exists()


def test_no_samples(tmp_path, capsys):
    assert run_dragbench.main([str(tmp_path), str(tmp_path / "results")]) == 2
    assert "no samples there" in capsys.readouterr().err


# Two processes as `torchrun` starts them, its store kept from one start to the next. In the first one the second
# process dies in its second sample. (Forked, so that what takes seconds is imported once.)
TWICE = """
import multiprocessing, os, sys, time
import run_dragbench
from dragsa.evaluation import dragbench
from torch.distributed import TCPStore
from transformers import CLIPTextModel, CLIPTokenizer

def dies(sd, sample, results, config, seed):
    os.write(1, f"edited {os.environ['RANK']} {sample.name}\\n".encode())  # in one piece
    if sample.name == "b/4" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(9)
    edit(sd, sample, results, config, seed)

def process(rank, start):
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    time.sleep(2 * rank * (start == "1"))  # the first looks for the second before that has said where it is
    sys.exit(run_dragbench.main())

edit, dragbench.edit_sample = dragbench.edit_sample, dies
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
for start in ("0", "1"):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = start
    both = [multiprocessing.get_context("fork").Process(target=process, args=(rank, start)) for rank in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    print("ended", *(one.exitcode for one in both), flush=True)
"""


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_two_processes_of_which_one_dies(tmp_path, tiny_folder):
    data, results, report = (tmp_path / name for name in ("data", "results", "report.json"))
    names = ["a/1", "a/2", "b/3", "b/4"]
    for n, name in enumerate(names):
        write_sample(data / name, n)
    given = [data, results, "--weights", tiny_folder, "--json", report, *QUICK]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", TWICE, *given], env=environment, capture_output=True, text=True, timeout=280
    )
    first, _, second = ran.stdout.partition("ended 1 9\n")  # the one that waits for a dead one ends too
    assert second, ran.stderr
    assert "process 0 stops" in ran.stderr
    assert sorted(first.splitlines()) == ["edited 0 a/1", "edited 0 b/3", "edited 1 a/2", "edited 1 b/4"]
    assert [line for line in second.splitlines() if line.startswith(("edited", "ended"))] == [
        "edited 0 b/4",
        "ended 0 0",
    ]
    assert ran.stdout.count("mean distance, whole picture") == 1  # of one process, and of all samples
    found = json.loads(report.read_text())
    assert list(found["samples"]) == names and found["failed"] == {}
    assert sorted(files_of(results)) == sorted(
        f"{name}/{file}" for name in names for file in ("dragged_image.png", "trace.json")
    )
    sd, sample = load(tiny_folder), dragbench.read_sample(data, "b/4")
    row = dragbench.evaluate_sample(sd, sample, results, 42, 64, distances.TAP)
    assert json.loads(json.dumps(row)) == found["samples"]["b/4"]
