"""Warped pixels: a similarity is found and carried out exactly, holes are filled smoothly, held parts stay."""

from __future__ import annotations

import math

import pytest
import torch

from dragsa.evaluation import cases, figures, warp
from dragsa.evaluation.scenes import Scene, draw
from dragsa.pictures import images

BY_KIND = {case.kind: case for case in cases.cases("settings", limit=1)}


def test_a_similarity_is_found_from_its_points() -> None:
    angle, scale, shift = 0.4, 1.3, torch.tensor([5.0, -2.0], dtype=torch.float64)
    matrix = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    handles = torch.tensor([[10.0, 20], [40, 25], [30, 60]], dtype=torch.float64)
    found = warp.similarity(handles, handles @ matrix.T + shift)
    assert torch.allclose(found[0], matrix) and torch.allclose(found[1], shift)
    moved = warp.similarity(handles[:1], handles[:1] + shift)
    assert torch.equal(moved[0], torch.eye(2, dtype=torch.float64)) and torch.allclose(moved[1], shift)


def test_handles_that_go_apart_are_parted() -> None:
    left = torch.tensor([[20.0, 40], [30, 40], [25, 50]], dtype=torch.float64)
    right = left + torch.tensor([60.0, 0])
    handles = torch.cat([left, right])
    one_way = handles + torch.tensor([9.0, 0])
    two_ways = torch.cat([left + torch.tensor([0, 20.0]), right + torch.tensor([0, -20.0])])
    assert warp.grouped(handles, one_way, near=1) == [[0, 1, 2, 3, 4, 5]]
    assert sorted(map(sorted, warp.grouped(handles, two_ways, near=1))) == [[0, 1, 2], [3, 4, 5]]
    assert warp.grouped(handles, two_ways, near=20) == [[0, 1, 2, 3, 4, 5]]  # nearly a rotation of the six


def test_a_hole_in_a_ramp_is_the_ramp() -> None:
    ramp = (torch.linspace(-0.8, 0.8, 32)[None, :] + torch.linspace(-0.1, 0.1, 32)[:, None]).expand(3, 32, 32)
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[8:24, 5:20] = True
    assert (warp.filled(torch.where(hole, 0.0, ramp), hole) - ramp).abs().max() < 1e-3
    assert torch.equal(warp.filled(ramp, ~hole | hole), ramp)


def test_a_spline_goes_through_its_points_and_keeps_a_plane() -> None:
    places = torch.rand(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    values = torch.rand(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(warp.thin_plate(places, values)(places), values, atol=1e-6)
    plane = places @ torch.tensor([[0.1, 0], [0.02, -0.3]], dtype=torch.float64) + 2
    between = places.flip(0) * 0.7
    expected = between @ torch.tensor([[0.1, 0], [0.02, -0.3]], dtype=torch.float64) + 2
    assert torch.allclose(warp.thin_plate(places, plane)(between), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["move", "resize", "two", "protect"])
def test_drawn_objects_are_brought_to_their_places(kind: str) -> None:
    case = BY_KIND[kind]
    source = images.to_tensor(case.source)[0]
    result = warp.warped(source, case.drags("five"), case.mask)
    assert torch.equal(result[:, case.mask == 0], source[:, case.mask == 0])
    found = figures.measure(images.to_picture(result), case)
    assert found["share"] < 0.12 and found["overlap"] > 0.75


def test_a_part_is_bent_and_the_rest_is_held() -> None:
    source = draw(Scene("disc", "red", 0.5, 0.5, 0.5, ground="blue"))
    mask = torch.zeros(128, 128)
    mask[20:108, 64:120] = 1
    drags = [((90.0, 64.0), (98.0, 64.0)), ((64.0, 64.0), (64.0, 64.0)), ((40.0, 64.0), (40.0, 64.0))]
    result = warp.warped(source, drags, mask)
    assert torch.equal(result[:, :, :64], source[:, :, :64])
    red = (result - torch.tensor([0.72, -0.76, -0.72])[:, None, None]).norm(dim=0) < 0.3
    assert red[64, 102] and not red[64, 107]  # the outline was at 95
    assert abs(red[:, 64].sum() - (source[0, :, 64] > 0.3).sum()) <= 2
