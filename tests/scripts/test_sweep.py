"""Sweeps: the right settings, each once, and tables from the folder alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import sweep

from dragsa.config import DragConfig, EditConfig
from dragsa.evaluation import cases, sweeps, truth
from dragsa.evaluation.runs import Setting
from dragsa.pictures import images

FAST = EditConfig(DragConfig(updates=1), steps=4, drag_step=2, control_step=2, size=64)


def test_a_plan_has_each_setting_once_and_every_value_a_row() -> None:
    plan = sweeps.plan(
        Setting("base", FAST, "five"),
        {"lr": [{"lr": 0.01}, {"lr": 0.04}], "again": [{"lr": 0.04}], "level": [{"drag_step": 1}]},
    )
    assert [setting.name for setting in plan.settings] == ["base", "lr=0.04", "drag_step=1"]
    assert [(row.sweep, row.value, row.setting) for row in plan.rows] == [
        ("lr", "0.01", "base"),
        ("lr", "0.04", "lr=0.04"),
        ("again", "0.04", "lr=0.04"),
        ("level", "1", "drag_step=1"),
    ]
    changed = plan.settings[1].config
    assert changed is not None and changed.drag.lr == 0.04 and changed.drag_step == FAST.drag_step


def test_the_ready_sweeps_fit_the_small_model() -> None:
    plan = sweeps.plan(Setting("base", EditConfig.small(), "five"), sweep.SWEEPS)
    assert {row.sweep for row in plan.rows} == set(sweep.SWEEPS)
    assert len({setting.name for setting in plan.settings}) == len(plan.settings)
    for rows in sweep.SWEEPS:
        assert len({row.setting for row in plan.rows if row.sweep == rows}) == len(sweep.SWEEPS[rows])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("lr=0.01,0.02", ("lr", [0.01, 0.02])),
        ("control_step=none,4", ("control_step", [None, 4])),
        ("control_blocks=11-13,16", ("control_blocks", [(11, 12, 13), (16,)])),
        ("tap=block14", ("tap", ["block14"])),
    ],
)
def test_values_on_the_command_line(given: str, expected: tuple[str, list[Any]]) -> None:
    assert sweep.assignment(given) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "no setting 'speed'; there are "),
        ({"tap": "block99"}, "cannot be read at 'block99'"),
        ({"handles": "six"}, "handles must be one or five"),
        ({"paste": True}, "no setting 'paste'; there are "),  # nor does the benchmark crop
        ({"crop": "auto"}, "no setting 'crop'; there are "),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweeps.changed(Setting("base", FAST, "five"), change, "x")


def test_a_command_line_without_a_sweep_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["run", str(tmp_path / "run")]) == 2
    assert sweep.main(["run", str(tmp_path / "run"), "--vary", "lr"]) == 2
    assert sweep.main(["run", str(tmp_path / "run"), "--set", "lr=1,2", "--vary", "lr=0.1"]) == 2
    assert capsys.readouterr().err.count("sweep: error: ") == 3
    assert not (tmp_path / "run").exists()


def test_a_sweep_from_the_command_line(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    of_base = ("steps=4", "drag_step=2", "control_step=2", "updates=1", "tap=block14")
    arguments = ["run", str(run), "--weights", str(tiny_folder), "--size", "64", "--limit", "1", "--workers", "1"]
    arguments += [word for one in of_base for word in ("--set", one)]
    arguments += ["--vary", "control_step=none,2", "--vary", "tap=block16", "--no-published"]
    assert sweep.main(arguments) == 0
    capsys.readouterr()
    with (run / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sweep"], row["value"]) for row in rows] == [
        ("base", ""),
        ("control_step", "none"),
        ("control_step", "2"),
        ("tap", "block16"),
    ]
    assert all(row["cases"] == "5" for row in rows)
    assert not any(setting["config"]["paste"] for setting in json.loads((run / "run.json").read_text())["settings"])
    assert rows[2]["share"] == rows[0]["share"] and float(rows[2]["share - base"]) == 0
    single = json.loads((run / "turn-00" / "tap=block16.json").read_text())
    assert float(rows[3]["share, turn"]) == pytest.approx(single["share"])
    assert images.open_picture(run / "chart.png").size == (900, 520)
    before = (run / "sweep.csv").read_bytes()
    assert sweep.main(["table", str(run)]) == 0
    assert (run / "sweep.csv").read_bytes() == before
    assert capsys.readouterr().out.count("\n| ") == 5  # the line under the heads and four rows


def test_a_run_of_the_benchmark_is_no_sweep(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = cases.cases("settings", limit=1, size=64)[:1]
    truth.run(tmp_path, listed, [Setting("no-edit")], tiny_folder, published=False)
    assert sweep.main(["table", str(tmp_path)]) == 2
    assert "not of sweep.py" in capsys.readouterr().err
