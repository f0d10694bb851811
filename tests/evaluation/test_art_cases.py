"""The cases of artwork: each is the edit that its kind says, and can be written down and read again."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from dragsa.evaluation import art_cases, art_points, art_scenes, artwork, lists, scenes, truth
from dragsa.evaluation.art_cases import ArtCase
from dragsa.evaluation.art_scenes import STRUCTURED, Pull
from dragsa.evaluation.edits import VARIANTS
from dragsa.pictures import images

LISTED = art_cases.list_cases()
SETTINGS = art_cases.list_cases("settings")


def of(kind: str) -> list[ArtCase]:
    return [case for case in LISTED if case.kind == kind]


def alpha_at(case: ArtCase, scene: art_scenes.ArtScene, point: tuple[float, float]) -> float:
    covered = torch.stack([case.covered(thing) for thing in scene.things]).amax(dim=0)
    return covered[round(point[1]), round(point[0])].item()


def test_there_are_twenty_of_each_kind_in_thirds_and_halves() -> None:
    assert Counter(case.kind for case in LISTED) == dict.fromkeys(art_cases.KINDS, 20)
    assert len({case.name for case in LISTED}) == 120
    assert Counter(case.novelty for case in LISTED) == dict.fromkeys(art_cases.NOVELTIES, 40)
    for kind in art_cases.KINDS:
        assert sum(case.before.ground.pattern in STRUCTURED for case in of(kind)) == 10
        assert min(Counter(case.novelty for case in of(kind)).values()) >= 6
    assert sum(case.after.thing.size > case.before.thing.size for case in of("resize")) == 10
    for case in LISTED:
        trained = [artwork.is_trained(thing.name, thing.style) for thing in case.before.things]
        assert trained == [case.novelty == "seen"] * len(trained)


def test_no_seed_is_in_both_lists_or_in_training() -> None:
    seeds = [case.seed for case in (*LISTED, *SETTINGS)]
    assert len(seeds) == len(set(seeds)) == 240 and set(seeds) <= set(scenes.HELD_OUT_SEEDS)
    assert art_cases.list_cases(limit=2) == LISTED[:12]
    with pytest.raises(ValueError, match="no list of cases 'training'; there are figures, settings"):
        art_cases.list_cases("training")


def test_edits_are_as_large_as_their_kind_says() -> None:
    for case in LISTED:
        ways = [math.dist(*drag) / 128 for drag in case.drags("one")]
        if case.kind in ("move", "protect", "two"):
            assert all(0.099 <= way <= (0.25 if case.kind == "two" else 0.3) + 1e-6 for way in ways)
        if case.kind == "part":
            assert 0.06 - 1e-6 <= ways[0] <= 0.1 + 1e-6 and len(ways) == 1
        if case.kind == "rotate":
            turned = abs(case.after.thing.rotation - case.before.thing.rotation)
            assert math.radians(20) <= turned <= math.radians(60) and len(ways) == 2 and max(ways) >= 0.1
        if case.kind == "resize":
            assert abs(case.after.thing.size - case.before.thing.size) >= 0.16


def test_nothing_else_changes() -> None:
    may = {"resize": {"size"}, "rotate": {"rotation"}, "part": {"pull"}}
    for case in LISTED:
        assert case.before.ground == case.after.ground
        was, now = case.before.thing, case.after.thing
        changed = {name for name in vars(was) if getattr(was, name) != getattr(now, name)}
        assert changed == may.get(case.kind, {"x", "y"})
        assert (case.before.neighbour == case.after.neighbour) == (case.kind != "two")
        assert (case.before.neighbour is not None) == (case.kind in ("two", "protect"))
        assert art_scenes.is_clear(case.before) and art_scenes.is_clear(case.after)


def test_handles_stand_on_the_thing_and_the_mask_lets_them_move() -> None:
    some = [case for n, case in enumerate((*LISTED, *SETTINGS)) if n // len(art_cases.KINDS) % 8 == 0]
    assert Counter(case.kind for case in some) == dict.fromkeys(art_cases.KINDS, 5)
    for case in some:
        for variant in VARIANTS:
            for name, (handle, target) in zip(case.handle_names(variant), case.drags(variant), strict=True):
                assert alpha_at(case, case.before, handle) > 0.5, (case.name, name)
                if math.dist(handle, target) > 3:
                    assert case.mask[round(handle[1]), round(handle[0])] == 1
                    assert case.mask[round(target[1]), round(target[0])] == 1


def test_handles_and_targets_are_inside_of_the_picture() -> None:
    least, most = (128 * edge - 0.5 for edge in (art_cases.EDGE, 1 - art_cases.EDGE))
    for case in (*LISTED, *SETTINGS):
        assert set(case.handle_names("one")) <= set(case.handle_names("five"))
        assert all(least <= place <= most for drag in case.drags("five") for point in drag for place in point), (
            case.name
        )


def test_the_mask_holds_all_that_changes_and_keeps_off_a_protected_neighbour() -> None:
    for case in LISTED[:12]:
        changed = (images.to_tensor(case.truth) - images.to_tensor(case.source))[0].abs().amax(dim=0) > 0.02
        assert (case.mask[changed] == 1).all() or case.kind == "protect"
        if case.kind == "protect" and case.before.neighbour is not None:
            assert (case.mask[case.covered(case.before.neighbour) > 0] == 0).all()
        assert set(case.mask.unique().tolist()) == {0.0, 1.0}


def test_a_pulled_part_comes_to_its_target() -> None:
    for case in of("part")[:4]:
        ((x, y), (to_x, to_y)) = case.drags("one")[0]
        drawn = [images.to_tensor(picture)[0] for picture in (case.source, case.truth)]
        rounded = [
            picture[:, round(v) - 1 : round(v) + 2, round(u) - 1 : round(u) + 2].mean(dim=(1, 2))
            for picture, u, v in zip(drawn, (x, to_x), (y, to_y), strict=True)
        ]
        assert (rounded[0] - rounded[1]).abs().max() < 0.25, case.name


def test_what_stands_out_stands_out_from_both_sides() -> None:
    """Of two places that are two rays apart or less, the drawing reaches as far behind the one as behind the other."""
    ray = 2 * math.pi / art_points.RAYS
    for name in artwork.shipped().names:
        for style in artwork.STYLES:
            solid = art_points.Solid(name, style)
            u, v = solid.centre
            rays = [round(math.atan2(x - u, v - y) / ray) for x, y in art_points.outstanding(name, style)]
            for one, other in combinations(rays, 2):
                if abs(math.remainder(one - other, art_points.RAYS)) <= 2:
                    assert solid.extent(one * ray) == pytest.approx(solid.extent(other * ray)), (name, style)


def test_where_a_pull_brings_a_place_is_what_is_drawn_there() -> None:
    pull = Pull(0.2, -0.1, 0.1, 0.06, 0.4)
    thing = art_scenes.Thing("bear", "noto", 0.5, 0.5, 0.6, 0.4, True, pull)
    for place in ((0.2, -0.1), (0.1, 0.0), (-0.3, 0.3), (0.35, -0.2)):
        x, y = art_scenes.to_picture(thing, *art_points.carried(pull, place), 128)
        back = art_scenes.to_sprite(thing, torch.tensor((x + 0.5) / 128), torch.tensor((y + 0.5) / 128))
        assert torch.stack(back).tolist() == pytest.approx(place, abs=1e-4)


def test_a_written_case_is_read_again(tmp_path: Path) -> None:
    for case in LISTED[:6]:
        truth.save(tmp_path, case, {})
        assert lists.load(tmp_path / case.name) == case
        drawn = images.to_tensor(images.open_picture(tmp_path / case.name / "truth.png"))[0]
        assert (drawn - art_scenes.draw(case.after, artwork.shipped())).abs().max() <= 1.01 / 255
    (tmp_path / "case.json").write_text('{"list": "artwork", "kind": "move"}')
    with pytest.raises(ValueError, match="not a case of this benchmark"):
        lists.load(tmp_path)
    with pytest.raises(ValueError, match="no list 'photographs'; there are drawn, artwork"):
        lists.cases_of("photographs")


def test_words_say_where_a_thing_is() -> None:
    case = of("move")[0]
    corner = replace(case.before, thing=replace(case.before.thing, x=0.3, y=0.3))
    name, style = corner.thing.name.replace("-", " "), corner.thing.style
    ground = f"{style} style on a {corner.ground.colour} ground"
    assert case.caption(corner) == f"a {name} in {ground}"
    assert case.caption(corner, full=True) == f"a {name} at the top left in {ground}"
