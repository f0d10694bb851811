"""The benchmark: that its baseline computes DragDiffusion's numbers, and what is made of the measurements.

Times are never asserted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from typing import Any

import golden_cases
import pytest
import torch
from torch import Tensor, nn

from dragsa import drag
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.kernels import patch_loss
from dragsa.model.attention import GEGLU
from dragsa.model.unet import UNetOutput
from dragsa.pictures import trace
from dragsa.speed import bench, bench_report
from dragsa.speed.bench import Lap, Measurement, Report, Settings

TINY = Settings(sizes=(64,), width="tiny", repeats=1, steps=1, updates=1, threads=1)


def golden_problem(case: golden_cases.Case) -> bench.Problem:
    settings, (h, w), keep = case.settings, case.latent_hw, None
    if settings["mask_box_y0y1x0x1"] is not None:
        top, bottom, left, right = settings["mask_box_y0y1x0x1"]
        keep = torch.ones(4 * h, 4 * w)
        keep[top:bottom, left:right] = 0
        keep = drag.to_latent_grid(keep, torch.zeros(1, 4, h, w))
    config = DragConfig(
        tap="decoder3",
        lr=settings["lr"],
        radius=settings["r_m"],
        track_radius=settings["r_p"],
        lam=settings["lam"],
    )
    schedule = Schedule(50, "dragdiffusion")
    level = int((schedule.timesteps == settings["timestep"]).nonzero()) + 1
    return bench.Problem(
        case.input("z", 1, 4, h, w),
        drag.noise_at(schedule, level, torch.device("cpu")),
        case.input("text", 1, 77, golden_cases.CONTEXT_DIM),
        case.points("handles"),
        case.points("targets"),
        keep,
        config,
    )


@pytest.mark.parametrize("case", golden_cases.cases("drag"), ids=lambda case: case.tag)
def test_the_baseline_is_the_stored_run(case):
    unet = bench.as_published(golden_cases.golden_unet())
    updates = list(islice(bench.baseline_updates(unet, golden_problem(case)), case.settings["iters"]))
    stored = case.outputs
    losses = torch.tensor([update.loss for update in updates])
    assert torch.equal(torch.stack([update.handles for update in updates])[1:].flip(2), stored["track"])
    torch.testing.assert_close(losses, stored["loss"], rtol=0, atol=1e-4 * stored["loss"].max().item())
    z_out = stored["z_out"]
    torch.testing.assert_close(updates[-1].latent, z_out, rtol=0, atol=1e-4 * z_out.abs().max().item())


def test_at_the_border_the_patch_is_the_references():
    """Patches cut by each side and corner, moved off the map and along it."""
    dense = torch.randn(1, 5, 12, 14, generator=torch.Generator().manual_seed(0))
    for handle in ([0.0, 0.0], [13.0, 11.0], [0.4, 6.0], [13.0, 3.6], [6.0, 0.0], [5.7, 11.0], [6.0, 6.0]):
        for d in ([9.0, 0.0], [-9.0, 4.0], [-3.0, -9.0], [2.0, 9.0]):
            handles = torch.tensor([handle])
            targets = handles + torch.tensor([d])
            expected = patch_loss.motion_supervision_loss_reference(dense, handles, targets, 2)
            torch.testing.assert_close(bench.pull(dense, handles[0], targets[0], 2), expected)


def test_the_baseline_ends_when_every_handle_is_there():
    case = golden_cases.cases("drag")[0]
    at = golden_problem(case)
    far = replace(at.config, reach=1000.0)
    assert list(bench.baseline_updates(golden_cases.golden_unet(), at._replace(config=far))) == []


@pytest.fixture(scope="module")
def net():
    return bench.network(TINY, torch.float32)


@pytest.mark.parametrize("masked", [False, True])
def test_both_loops_see_the_same_losses(net, masked):
    at = bench.problem(net.config, 64, "cpu", masked, handles=2)
    theirs = [update.loss for update in islice(bench.baseline_updates(net, at), 3)]
    ours = list(islice(bench.drag_updates(net, at), 3))
    assert [lap.loss for lap in ours] == pytest.approx(theirs, rel=1e-4)
    assert set(ours[1].seconds) == {"forward", "loss", "backward", "optimiser", "tracking"}
    assert len(set(theirs)) == 3


def test_the_baselines_layers_are_pytorchs_on_the_same_weights(net):
    twin = bench.as_published(net)
    convolutions = {type(layer) for layer in twin.modules() if isinstance(layer, nn.Conv2d)}
    assert convolutions == {nn.Conv2d, bench.PlainConvolution}
    assert {type(layer) for layer in twin.modules() if isinstance(layer, GEGLU)} == {bench.PlainGEGLU}
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_the_timed_loop_is_drag_latent(net):
    at = bench.problem(net.config, 64, "cpu", masked=False)
    config = replace(at.config, updates=3, patience=None, lost_patience=None)
    arguments = net, at.z, bench.LEVEL, at.context, Schedule(50, "dragdiffusion"), at.handles, at.targets, None, config
    losses = [lap.loss for lap in islice(bench.drag_updates(net, at), 3)]
    assert losses == drag.drag_latent(*arguments).losses.tolist()


def test_seeded_networks_are_finite_and_the_same():
    """The same values in every type, but for rounding; nothing overflows."""
    first, again, narrow = (bench.network(TINY, dtype) for dtype in (torch.float32, torch.float32, torch.bfloat16))
    for one, other, rounded in zip(first.parameters(), again.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(one, other) and torch.equal(one.bfloat16(), rounded) and not one.requires_grad
    at = bench.problem(first.config, 64, "cpu", masked=True)
    eps = first(at.z, at.noise.timestep, at.context).eps
    assert eps.isfinite().all() and 0.01 < eps.std() < 100


def test_what_an_update_computes():
    """More with a mask, and by the baseline, which computes the whole map; attention is a part of it."""
    plain, masked, baseline = (
        bench.count_flops(bench.TINY[0], 64, "decoder3", masked, baseline)
        for masked, baseline in ((False, False), (True, False), (False, True))
    )
    assert plain.forward < baseline.forward == masked.forward
    assert plain.backward < baseline.backward < masked.backward
    assert 0 < plain.attention < 0.5 * plain.total
    # Two products forward; on the way back four, or two where K and V are the text's, 77 tokens.
    assert plain.attention_forward < plain.attention_backward < 2 * plain.attention_forward
    blocks = (5, 64, 32), (5, 16, 32), (5, 4, 64), (1, 1, 64)  # how many, of how many cells, how wide
    of_self = sum(number * cells**2 * width for number, cells, width in blocks)
    of_text = sum(number * cells * 77 * width for number, cells, width in blocks)
    assert masked.attention_forward == 4 * (of_self + of_text)
    assert masked.attention_backward == 8 * of_self + 4 * of_text
    rates = bench.Roof(matmul=2.0, convolution=4.0, attention=1.0)
    assert rates.least(bench.Flops(70, 50, 8, 12)) == 100 / 4 + 20


# --- what is made of the measurements


def test_cases_are_measured_in_turns_and_the_first_does_not_count():
    seen = []

    def case(name):
        for n in range(10):
            seen.append(name)
            yield Lap({"a": float(n), "b": 1.0}, loss=float(n))

    laps = bench.interleaved({"one": case("one"), "two": case("two")}, 3, lambda text: None, "")
    assert seen == ["one", "two"] * 4
    assert [lap.total for lap in laps["two"]] == [2.0, 3.0, 4.0]
    row = bench.measured("update", "one", 64, laps["one"])
    assert row.values == (2.0, 3.0, 4.0) and row.median == 3.0
    assert row.parts == {"a": (1.0, 2.0, 3.0), "b": (1.0, 1.0, 1.0)} and row.losses == (1.0, 2.0, 3.0)


def test_a_ratio_is_of_medians():
    assert bench_report.ratio([10.0, 30.0, 100.0], [3.0, 1.0, 2.0]) == 15.0


@pytest.mark.parametrize(
    "relation, bound, value, reached",
    [
        ("at least", 2.5, 2.5, True),
        ("at least", 2.5, 2.49, False),
        ("at most", 0.45, 0.45, True),
        ("at most", 0.45, 0.46, False),
        ("under", 1.05, 1.0499, True),
        ("under", 1.05, 1.05, False),
        ("exactly", 0, 0.0, True),
        ("exactly", 0, 1.0, False),
    ],
)
def test_when_a_goal_is_reached(relation, bound, value, reached):
    goal = bench_report.Goal("speed", "update", "slow", "fast", relation, bound)
    assert goal.reached_by(value) is reached
    rows = [Measurement("update", "slow", 64, (value,)), Measurement("update", "fast", 64, (1.0,))]
    assert bench_report.verdict(goal, rows, 64).measured == value
    assert bench_report.verdict(goal, rows, 64).reached is reached
    assert bench_report.verdict(goal, rows, 512) == (goal, None)
    assert bench_report.verdict(goal, rows[:1], 64).reached is None


CASES = {
    ("update", "baseline"): (20.0, 22.0, 21.0),
    ("update", "baseline, mask"): (24.0, 25.0, 26.0),
    ("update", "float32"): (12.0, 15.0, 13.0),
    ("update", "bfloat16"): (7.0, 7.0, 7.0),
    ("update", "bfloat16, mask"): (12.0, 16.0, 12.5),
    ("memory", "baseline"): (6.7e9,),
    ("memory", "bfloat16"): (2.9e9,),
    ("fused", "dense"): (0.5, 0.5),
    ("fused", "fused"): (0.004, 0.004),
    ("tracking", "dense"): (0.1,),
    ("tracking", "fused"): (0.01,),
    ("denoise", "first edit"): (30.0,),
    ("denoise", "second edit"): (15.0,),
    ("recompiles", "whole"): (0.0,),
    ("handles", "1 handle"): (8.0,),
    ("handles", "20 handles"): (8.1,),
}


def planted(**changes: tuple[float, ...]) -> Report:
    """A report of invented measurements at 512 px."""
    flops = bench.Flops(600, 600, 100, 100)
    rows = []
    for (part, case), values in CASES.items():
        unit = "bytes" if part == "memory" else "seconds"
        parts = {"forward": values, "backward": values} if part == "update" else {}
        seen = changes.get(f"{part}_{case.split(',')[0]}", values)
        row = Measurement(part, case, 512, seen, unit, parts)
        if part == "update":
            row = replace(row, flops=flops, losses=(2.0, 4.0001, 8.0) if case == "float32" else (2.0, 4.0, 8.0))
        rows.append(row)
    machine = {**bench.machine_of(TINY, 1), "load": [0.5, 1.0]}
    return Report(Settings(), machine, trace.versions(), {"float32": bench.Roof(1e9, 2e9, 5e8)}, tuple(rows), 60.0)


def goals_of(report: Report) -> list[list[str]]:
    """Measured, goal and reached of the table's rows."""
    lines = bench_report.goals_table(report).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def test_the_goals_are_a_table():
    assert goals_of(planted()) == [
        ["3×", "at least 2.5×; aim 3×", "yes"],
        ["2×", "at least 1.7×; aim 2.2×", "yes"],
        ["1.62×", "at least 1.4×", "yes"],
        ["0.433", "at most 0.45", "yes"],
        ["125×", "at least 100×", "yes"],
        ["10×", "at least 50×", "**no**"],
        ["2×", "at least 1.8×", "yes"],
        ["0", "0", "yes"],
        ["1.01", "under 1.05", "yes"],
    ]
    assert goals_of(planted(memory_baseline=()))[3] == ["not measured", "at most 0.45", "-"]
    assert goals_of(planted(update_float32=(17.0,)))[2] == ["1.24×", "at least 1.4×", "**no**"]


def test_every_part_is_a_table_and_what_failed_is_said():
    text = bench_report.markdown(planted())
    # 1,200 operations, 200 of attention's: 1,000 at 2 GFLOP/s and 200 at 0.5 take 0.9 µs of the 21 s
    assert "| baseline | 21 | 20 | 22 | 21 | 21 | 1.2e-06 | 5.71e-08 | 0.00 |" in text
    assert "| bfloat16 | 7 | 7 | 7 | 7 | 7 | 1.2e-06 | 1.71e-07 |  |" in text  # of a type without a known roof
    assert "The losses of float32 are those of baseline to 2.5e-05 of them." in text
    failed = planted(memory_baseline=())
    failed = replace(failed, rows=(*failed.rows, Measurement("memory", "float32", 512, (), "bytes", note="killed")))
    assert "| baseline | failed |" in bench_report.markdown(failed)
    assert "float32: killed." in bench_report.markdown(failed)
    for title in ("One update", "Peak memory", "Tracking", "Denoising", "Best rates"):
        assert f"**{title}" in text


def test_the_json_has_every_repeat_and_is_strict():
    found = json.loads(json.dumps(bench_report.to_json(planted()), allow_nan=False))
    assert set(found) == {
        *("command", "settings", "machine", "versions", "seconds", "size", "goals", "roof", "measurements"),
    }
    row = next(one for one in found["measurements"] if one["part"] == "update" and one["case"] == "float32")
    assert row["values"] == [12.0, 15.0, 13.0] and row["median"] == 13.0 and row["unit"] == "seconds"
    assert row["flops"]["forward"] == 600
    assert [goal["reached"] for goal in found["goals"]].count(False) == 1
    assert found["settings"]["repeats"] == 5 and found["machine"]["threads"] == 1


def test_the_chart_shows_longer_bars_for_more():
    picture = bench_report.chart(planted())
    grey = [n for n in range(picture.height) if picture.getpixel((430, n)) == (0xA0, 0xA0, 0xA0)]
    assert grey, "the baseline's bar"
    longer = bench_report.chart(planted(update_float32=(40.0,)))
    blue = (0x20, 0x60, 0xFF)

    def bars(shown: Any) -> list[int]:
        return [sum(shown.getpixel((x, y)) == blue for x in range(420, 1200)) for y in range(shown.height)]

    assert max(bars(longer)) > 1.4 * max(bars(picture)[: picture.height // 3])


# --- measuring


def test_peak_memory_is_of_the_process_alone():
    """A child of a large process is not billed for it."""
    held = torch.ones(100_000_000)
    task = {"task": "memory", "mode": None, "size": 64}
    small = bench.in_child(task, TINY)["bytes"]
    assert bench.peak_memory("cpu") > held.nbytes + small / 2
    assert 50e6 < small < 600e6


def test_a_child_that_fails_says_why():
    with pytest.raises(bench.ChildError, match=r"ended with code 1: KeyError: 'float8'"):
        bench.in_child({"task": "memory", "mode": "float8", "size": 64, "masked": False}, TINY)


def test_laps_of_a_process_of_its_own_are_the_loops():
    task = {"task": "update", "mode": "float32", "masked": False, "size": 64}
    expected = [lap.loss for lap in islice(bench.updates_of(TINY, task), 3)]
    with bench.processes({"one": task, "other": task}, TINY) as cases:
        laps = bench.interleaved(cases, 2, lambda text: None, "")
    for case in ("one", "other"):
        assert [lap.loss for lap in laps[case]] == pytest.approx(expected[1:], rel=1e-5)
        assert set(laps[case][0].seconds) == {"forward", "loss", "backward", "optimiser", "tracking"}


def test_a_process_that_ends_takes_its_comparison_with_it():
    task = {"task": "update", "mode": "float32", "masked": False, "size": 64}
    rows = bench.in_turns("update", TINY, 64, lambda text: None, {"a": task, "b": {**task, "mode": "float8"}}, 1)
    assert [(row.case, row.values) for row in rows] == [("a", ()), ("b", ())]
    assert {row.note for row in rows} == {"b ended with code 1: KeyError: 'float8'"}


@pytest.mark.parametrize("name", bench.MODES)
def test_the_memory_of_each_mode_is_that_of_an_update(name):
    for masked in (False, True):
        task = {"mode": name, "masked": masked, "size": 64}
        assert bench.memory_task(TINY, task)["bytes"] > 0


@pytest.mark.parametrize("part", ["update", "handles", "denoise", "whole", "fused", "tracking"])
def test_each_part_is_measured(part):
    found = bench.run(replace(TINY, only=(part,), modes=("baseline", "float32")))
    assert found.rows and {row.part for row in found.rows} == {part}
    assert all(len(row.values) >= 1 and min(row.values) > 0 for row in found.rows)
    wanted = {goal.over for goal in bench_report.GOALS if goal.part == part and "bfloat16" not in str(goal.under)}
    assert wanted <= {row.case for row in found.rows}


class Toy:
    """A network that is one convolution; with `counting` one that knows how often it was called."""

    def __init__(self, counting: bool) -> None:
        self.weight = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(3)) / 10
        self.calls, self.counting = 0, counting

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Any:
        self.calls += self.counting
        return UNetOutput(None, {taps[0]: nn.functional.conv2d(z, self.weight, padding=2) * (1 + self.calls)})


def test_recompiles_are_counted(monkeypatch):
    monkeypatch.setattr(bench, "UPDATES", 4)
    at = bench.problem(bench.TINY[0], 64, "cpu", masked=False)
    plain, counting = (bench.traced_updates(Toy(counting), at) for counting in (False, True))
    assert plain.graphs == 1 and plain.places > 1
    assert counting.graphs > 1


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"only": ("speed",)}, "only: 'speed' is none of roof, update"),
        ({"modes": ("float8",)}, "modes: 'float8' is none of baseline"),
        ({"sizes": (100,)}, "sizes are multiples of 8 from 64, came 100"),
        ({"sizes": (32,)}, "came 32"),
        ({"repeats": 0}, "repeats must be a whole number from 1, came 0"),
        ({"handles": (1, 0)}, "handles must be a whole number from 1, came 0"),
    ],
)
def test_wrong_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)
