"""The benchmark's cases: each is the edit that its kind says, and can be written down and read again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dragsa.evaluation import cases, edits, lists, scenes, truth
from dragsa.pictures import images

LISTS = {which: cases.cases(which) for which in ("figures", "settings")}
ALL = LISTS["figures"] + LISTS["settings"]


def of(kind: str) -> list[cases.Case]:
    return [case for case in ALL if case.kind == kind]


def test_there_are_a_hundred_twenty_of_each_kind_and_no_seed_is_in_both_lists() -> None:
    for listed in LISTS.values():
        assert [sum(case.kind == kind for case in listed) for kind in cases.KINDS] == [20] * 5
        assert len({case.name for case in listed}) == 100
    seeds = [{case.seed for case in listed} for listed in LISTS.values()]
    assert not seeds[0] & seeds[1] and len(seeds[0]) == len(seeds[1]) == 100
    assert seeds[0] | seeds[1] <= set(scenes.HELD_OUT_SEEDS)


def test_a_shorter_list_is_the_long_ones_beginning() -> None:
    assert cases.cases("figures", limit=2) == LISTS["figures"][:10]


def test_edits_are_as_large_as_their_kind_says() -> None:
    for case in of("move") + of("protect"):
        (drag,) = case.drags("one")
        assert 0.1 * 128 <= math.dist(*drag) <= 0.3 * 128 + 1e-6
    for case in of("two"):
        assert all(0.1 * 128 <= math.dist(*drag) <= 0.25 * 128 + 1e-6 for drag in case.drags("one"))
        assert len(case.drags("one")) == 2 and len(case.drags("five")) == 10
    for case in of("resize"):
        assert abs(case.after.size - case.before.size) / 2 >= 0.08
        assert math.dist(*case.drags("five")[0]) == 0  # the centre is held
        assert math.dist(*case.drags("one")[0]) == pytest.approx(0.85 * 64 * abs(case.after.size - case.before.size))
    for case in of("turn"):
        assert case.before.size >= 0.54 and math.dist(*case.drags("one")[0]) >= 0.1 * 128


def test_nothing_else_changes() -> None:
    may = {
        "move": {"x", "y"},
        "resize": {"size"},
        "turn": {"yaw"},
        "two": {"x", "y", "neighbour"},
        "protect": {"x", "y"},
    }
    for case in ALL:
        changed = {name for name in vars(case.before) if getattr(case.before, name) != getattr(case.after, name)}
        assert changed == may[case.kind]
        assert scenes.is_clear(case.before) and scenes.is_clear(case.after)
        assert (case.before.neighbour is not None) == (case.kind in ("two", "protect"))


def test_the_mask_holds_both_places_and_every_handle_and_keeps_off_a_protected_neighbour() -> None:
    for case in LISTS["figures"][::2]:
        places = torch.stack([scenes.object_mask(scene) for scene in (case.before, case.after)]).amax(dim=0)
        for variant in ("one", "five"):
            for point in [point for drag in case.drags(variant) for point in drag]:
                assert case.mask[round(point[1]), round(point[0])] == 1
        if case.kind == "protect":
            assert case.before.neighbour is not None
            beside = scenes.object_mask(case.before.neighbour)
            assert (case.mask[beside > 0] == 0).all()
            # What is kept of the neighbour's surroundings is all that the object may lose.
            assert (case.mask[(places > 0.5) & (edits.dilated(beside, edits.ROOM_BESIDE) == 0)] == 1).all()
        else:
            assert (case.mask[places > 0.5] == 1).all()
        assert set(case.mask.unique().tolist()) == {0.0, 1.0}


def test_a_mask_beside_is_less_than_one_that_protects_nothing() -> None:
    assert any((case.mask.sum() < replace(case, kind="move").mask.sum()) for case in of("protect"))


def test_a_case_is_the_same_after_it_was_written_down(tmp_path: Path) -> None:
    for case in LISTS["figures"][:5]:
        truth.save(tmp_path, case, {})
        folder = tmp_path / case.name
        assert lists.load(folder) == case
        drawn = images.to_tensor(images.open_picture(folder / "truth.png"))[0]
        assert (drawn - scenes.draw(case.after)).abs().max() <= 1.01 / 255
        assert (images.open_mask(folder / "mask.png", (128, 128), (128, 128)) == case.mask).all()


def test_a_folder_without_a_case_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text('{"kind": "move"}')
    with pytest.raises(ValueError, match="not a case of this benchmark"):
        lists.load(tmp_path)
    with pytest.raises(ValueError, match="no list of cases 'training'; there are figures, settings"):
        cases.cases("training")
