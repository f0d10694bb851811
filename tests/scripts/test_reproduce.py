"""The reproductions: what they work on, that they are the package's own edits, and what they conclude from numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reproduce
from PIL import Image

from dragsa import cli, editing, loading
from dragsa.config import DragConfig, EditConfig, LoRAConfig
from dragsa.evaluation import distances, experiments, quality, rivals, round_trips, runs, steps_table, subjects
from dragsa.evaluation.experiments import Choice, Finished, Item
from dragsa.evaluation.subjects import Subject
from dragsa.methods import lora
from dragsa.pictures import images

FAST = EditConfig(DragConfig(updates=2, lr=0.05), steps=4, drag_step=2, control_step=2, size=64, mask_blocks=(5, 6))
JOBS: list[dict[str, Any]] = [
    {
        "image": "dot.png",
        "mask": "mask.png",
        "drag": [[[20, 30], [40, 30]]],
        "prompt": "a cat",
        "target_prompt": "a dot",
    }
    | {"object_words": ["cat", "dot"]},
    {"from_noise": True, "drag": [[[20, 30], [40, 30]]], "prompt": "a cat", "target_prompt": "a dot"},
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number as small as it can be and still say something."""
    monkeypatch.setattr(steps_table, "TABLE_STEPS", (1, 2))
    monkeypatch.setattr(steps_table, "BEYOND", (3,))
    monkeypatch.setattr(steps_table, "TABLE_UPDATES", 1)
    monkeypatch.setattr(rivals, "FIGURE_STEP", 2)
    monkeypatch.setattr(round_trips, "TRIP_STEPS", (3, 4))
    monkeypatch.setattr(runs, "LoRAConfig", partial(LoRAConfig, steps=2))
    monkeypatch.setattr(distances, "DRAWS", 1)
    monkeypatch.setattr(cli, "config_of", lambda options: FAST)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    y, x = np.mgrid[:64, :64]
    levels = np.stack([x * 4, y * 4, x * 0 + 90], axis=2).astype(np.uint8)
    levels[22:38, 12:28] = (250, 240, 20)
    Image.fromarray(levels).save(tmp_path / "dot.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 16, 56, 44))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "jobs.json").write_text(json.dumps(JOBS))
    return tmp_path / "jobs.json"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_all_of_ones_own_pictures(
    quick: None,
    jobs: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    asked = ["all", str(out), "--weights", str(tiny_folder), "--images", str(jobs), "--workers", "1"]
    plain, broken = editing.edit, [0]

    def edit(*args: Any, **options: Any) -> editing.EditResult:
        broken[0] += 1
        if broken[0] == 7:  # of figure 2's four edits and figure 3's, the second figure's third
            raise OSError("no space left on device")
        return plain(*args, **options)

    monkeypatch.setattr(editing, "edit", edit)
    assert reproduce.main(asked) == 2
    assert capsys.readouterr().err.endswith("reproduce: error: no space left on device\n")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*")}
    folders = sorted(str(path.relative_to(out)) for path in out.glob("*/*") if path.is_dir())
    assert folders == ["fig2/01-dot", "inversion/01-dot_3", "inversion/01-dot_4"]  # and nothing of what broke off
    assert not list(out.glob("*.png"))

    assert reproduce.main(asked) == 0
    done = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    assert ["fig3", "02-noise"] in done and ["fig2", "01-dot"] not in done and len(done) == 5
    assert before == {path: path.stat().st_mtime_ns for path in before}  # what was done is not done again
    told = {name: json.loads((out / f"{name}.json").read_text()) for name in reproduce.EXPERIMENTS}
    assert not any(setting["config"]["paste"] for one in told.values() for setting in one["settings"])
    assert all((out / f"{name}.png").is_file() for name in told)
    assert set(told["fig2"]["items"]["01-dot"]["results"]) == {
        "mutual",
        "union",
        "masked",
        "prompt-to-prompt",
        "then dragged",
    }
    assert "masked" not in told["fig3"]["items"]["02-noise"]["results"]  # no words were given
    of_rivals = told["fig4"]["items"]["01-dot"]["results"]
    assert list(of_rivals)[-1] == "ours" and len(of_rivals) == 5
    assert all(row["background"] > 0 and row["left"] >= 0 for row in of_rivals.values())
    assert told["fig4"]["settings"][-1]["config"]["drag_step"] == 2 and told["fig4"]["seed"] == 42
    assert sorted(told["table1"]["items"]) == ["01-dot_1", "01-dot_2", "01-dot_3"]
    verdicts = {s["verdict"] for one in told.values() for s in one["summary"].get("statements", ())}
    assert verdicts == {"not decided, too few pictures (1)"}

    capsys.readouterr()
    assert reproduce.main([*asked, "--seed", "7"]) == 2
    assert "a run with other seed; give another folder" in capsys.readouterr().err
    assert reproduce.main([*asked, "--list", "artwork"]) == 2
    assert "a run with other list; give another folder" in capsys.readouterr().err
    changed = [{**JOBS[0], "drag": [[[20, 30], [44, 30]]]}, JOBS[1]]
    jobs.write_text(json.dumps(changed))
    assert reproduce.main(asked) == 2
    assert "a run with other own; give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("job", "what", "says"),
    [
        ({**JOBS[0], "lr": 0.1}, "fig4", "jobs.json, job 1: lr is the reproduction's own; a job says image"),
        ({**JOBS[0], "from_noise": True}, "fig4", "job 1: give either image or from_noise"),
        ({**JOBS[0], "drag": [[[20, 30], [64, 30]]]}, "fig4", "job 1: point 64,30 lies outside"),
        ({**JOBS[0], "mask": "jobs.json"}, "fig4", "job 1: "),
        (JOBS[1], "fig2", "nothing to do: fig2: no job has an image, a target prompt and a drag"),
        (JOBS[0], "fig3", "no job has from_noise"),
        (None, "fig4", "the drawn scenes are for weights/small"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    quick: None,
    jobs: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    job: Any,
    what: str,
    says: str,
) -> None:
    jobs.write_text(json.dumps(job))
    images_given = [] if job is None else ["--images", str(jobs)]
    assert reproduce.main([what, str(tmp_path / "out"), "--weights", str(tiny_folder), *images_given]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("reproduce: error: ") and says in last and not (tmp_path / "out").exists()


# --- what is done -----------------------------------------------------------------------------------------------------


def test_rivals_share_a_lora_and_each_pays_for_it(
    quick: None, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, plain = [], lora.adapt

    def adapt(*args: Any, **more: Any) -> lora.Adapted:
        trained.append(args[3].steps)
        return plain(*args, **more)

    monkeypatch.setattr("dragsa.methods.adapt", adapt)
    (subject,) = subjects.benchmark("drawn", 1, 64, seed=3)
    choice = Choice(FAST, 2.0, 3, None, None)
    configs = experiments.configs_of(rivals.settings(choice))
    done = rivals.do(loading.load(tiny_folder), Item("fig4", (subject,)), configs)
    assert trained == [2]
    rows = done.figures["results"]
    assert {name for name, row in rows.items() if row["seconds"]["lora"] > 0} == {n for n in rows if "lora" in n}
    assert all(row["seconds"]["all"] == pytest.approx(sum(row["stages"].values())) for row in rows.values())
    assert len({done.pictures[name].tobytes() for name in rows}) == 5
    ours, first = configs["ours"], configs["dragdiffusion-first"]
    assert (ours.drag_step, ours.control_step) == (2, 2) and (first.drag_step, first.control_step) == (2, None)
    assert {config.drag for config in configs.values()} == {FAST.drag}


def test_where_style_is_measured_the_figure_says_whose_is_kept(tmp_path: Path) -> None:
    choice, seconds = Choice(FAST, 2.0, 3, None, None), {"all": 1.0, "lora": 0.0}
    finished = []
    for number, subject in enumerate(subjects.benchmark("artwork", 5, 64, seed=3)):
        kept = {"dragdiffusion": 1.0 + number, "ours": 3.0 + number}
        plain = {"left": 2.0, "share": 0.1, "background": 1.0, "changed": 1.0, "seconds": seconds}
        figures = {name: {**plain, "style_margin": margin} for name, margin in kept.items()}
        item = Item("fig4", (subject,))
        assert subject.picture is not None
        runs.save(
            tmp_path / item.name,
            {"source": subject.picture, **dict.fromkeys(kept, subject.picture)},
            {"figures": {"prompt": subject.prompt, "results": figures}},
        )
        finished.append(Finished(item, tmp_path / item.name))
    found = {
        one["says"]: (one["mean"], one["verdict"]) for one in rivals.report(choice, finished).summary["statements"]
    }
    theirs = "DragDiffusion with K/V control, without LoRA"
    assert found[f"ours keeps more of the style than {theirs}"] == (2.0, "borne out")
    assert found[f"ours leaves less of the distance than {theirs}"][1].startswith("not decided")


def test_the_table_is_by_the_papers_optimiser_and_learning_rate() -> None:
    base = replace(FAST, drag=replace(FAST.drag, optimizer="adam-mini", lr=1.0, radius=3))
    choice, paper = Choice(base, 2.0, 42, None, None), EditConfig.paper().drag
    config = steps_table.table_config(choice)
    printed = experiments.configs_of(steps_table.settings(choice))["paper"]
    assert (printed.drag.radius, printed.drag.anchor) == (1, 0) == (paper.radius, paper.anchor)
    assert replace(printed, drag=config.drag) == config
    assert (config.drag.optimizer, config.drag.lr) == (paper.optimizer, paper.lr) and config.drag.radius == 3
    assert "adam, learning rate 0.01" in experiments.drag_words(config)


def test_a_cell_of_the_table_is_its_edit(quick: None, tiny_folder: Path) -> None:
    sd, (subject,) = loading.load(tiny_folder), subjects.restyled("drawn", 1, 64, seed=42)
    choice = Choice(replace(FAST, drag=replace(FAST.drag, radius=3), paste=False), 2.0, 42, None, None)
    configs = experiments.configs_of(steps_table.settings(choice))
    column = steps_table.do(sd, Item("table1", (subject,), 2), configs)
    assert list(column.figures["results"]) == [
        steps_table.name_of(setting, step) for setting in ("table", "paper") for step in (None, 1, 2)
    ]
    beyond = steps_table.do(sd, Item("table1", (subject,), 3), configs)
    assert list(beyond.figures["results"]) == ["table, control 2", "paper, control 2"]
    config = replace(configs["table"], drag_step=2, control_step=1, source_kv="none")
    assert (config.drag.lr, config.drag.updates, config.guidance) == (0.01, 1, 2.0)
    alone = editing.edit(
        sd, subject.picture, subject.drags, subject.mask, subject.prompt, subject.target_prompt, config=config
    )
    apart = np.abs(np.asarray(column.pictures["table, control 1"], int) - np.asarray(alone.image, int))
    assert apart.max() <= 1  # of another batch
    figures = column.figures["results"]
    assert subject.picture is not None
    free, first = (figures[steps_table.name_of("table", step)] for step in (None, 1))
    assert free[steps_table.OWN] == pytest.approx(1) and first[steps_table.OWN] < 0.999
    assert first["changed"] == quality.difference(subject.picture, column.pictures["table, control 1"])
    assert column.pictures["paper, control 1"].tobytes() != column.pictures["table, control 1"].tobytes()


def test_trips_are_the_round_trips_picture_by_picture(quick: None, tiny_folder: Path) -> None:
    sd, choice = loading.load(tiny_folder), Choice(FAST, 2.0, 42, 3, None)
    item = next(item for item in round_trips.items(choice) if item.part == 3)
    assert len(item.subjects) == 3
    done = round_trips.do(sd, item, {"round trip": FAST})
    second = item.subjects[1]
    assert second.picture is not None
    alone = round_trips.round_trips(sd, images.to_tensor(second.picture), [second.prompt], 3)
    found = done.figures["dB against the VAE's"][second.name]
    assert found == pytest.approx({v: db.item() for v, db in alone[round_trips.AGAINST_VAE].items()}, abs=1e-3)


# --- what is concluded ------------------------------------------------------------------------------------------------


def test_rank_correlation() -> None:
    ranks: Callable[..., float] = lambda *xy: steps_table.rank_correlation(*map(np.array, xy))  # noqa: E731
    assert ranks([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert ranks([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert ranks([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)  # 1 - 6 Σ d² / (n (n² - 1))
    assert ranks([1, 2, 3], [5, 5, 7]) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(ranks([1, 2, 3], [5, 5, 5]))


def test_table_and_settling(quick: None) -> None:
    """Figures that fall with the drag step and rise with the control step, and level off."""
    columns = {s: {f"table, control {a}": {"changed": 10 * a - 3 * s, "flat": 1.0} for a in (1, 2)} for s in (1, 2)}
    found = partial(steps_table.correlations, {"one": columns}, "table")
    assert found("changed", "drag") == pytest.approx({"one": -1})
    assert found("changed", "control") == pytest.approx({"one": 1})
    assert found("flat", "drag") == {"one": None}
    assert steps_table.settling({1: 10.0, 2: 6.0, 3: 5.0}) == pytest.approx(4 - 1)


def test_the_round_trips_conclusion_is_the_numbers(tmp_path: Path) -> None:
    few = [Subject(f"s{n}", "", 1) for n in range(5)]
    finished = []
    for n, subject in enumerate(few):
        row = {"restored": 30.0 + n, "even": 29.0, "dragdiffusion": 30.0, "masactrl": 30.0, "omitted": 27.0 + n}
        folder = tmp_path / subject.name
        folder.mkdir()
        (folder / "figures.json").write_text(json.dumps({"dB against the VAE's": {subject.name: row}}))
        finished.append(Finished(Item("inversion", (subject,), 10), folder))
    report = round_trips.report(Choice(FAST, 1.0, 42, None, None), finished)
    (said,) = report.summary["statements"]
    assert said["verdict"] == "borne out" and said["mean"] == pytest.approx(3)
    assert report.summary["dB"]["restored"][10]["mean"] == pytest.approx(32)
    assert report.summary["restored minus"]["even"][10]["mean"] == pytest.approx(3)
