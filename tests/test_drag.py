"""The drag loop: against stored runs, a single step, the mask, and what it must leave alone."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import golden_cases
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy_drag import CONTEXT, HANDLES, SCHEDULE, TARGETS, Out, Toy, drag_toy, latent, step

from dragsa import ddim, drag, motion, passes
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.drag import DragResult, drag_latent


@cache
def golden_run(tag: str) -> DragResult:
    case = golden_cases.case(tag)
    settings, (h, w) = case.settings, case.latent_hw
    mask = None
    if settings["mask_box_y0y1x0x1"] is not None:
        top, bottom, left, right = settings["mask_box_y0y1x0x1"]
        mask = torch.zeros(4 * h, 4 * w)
        mask[top:bottom, left:right] = 1
    config = DragConfig(
        tap="decoder3",
        updates=settings["iters"],
        lr=settings["lr"],
        radius=settings["r_m"],
        track_radius=settings["r_p"],
        lam=settings["lam"],
    )
    schedule = Schedule(50, "dragdiffusion")
    level = int((schedule.timesteps == settings["timestep"]).nonzero()) + 1
    return drag_latent(
        golden_cases.golden_unet(),
        case.input("z", 1, 4, h, w),
        level,
        case.input("text", 1, 77, golden_cases.CONTEXT_DIM),
        schedule,
        case.points("handles"),
        case.points("targets"),
        mask,
        config,
    )


@pytest.mark.parametrize("case", golden_cases.cases("drag"), ids=lambda case: case.tag)
def test_stored_run(case):
    result, stored = golden_run(case.tag), case.outputs
    updates, n = case.settings["iters"], len(case.settings["handles_yx"])
    assert result.reason == "budget"
    assert result.handles.shape == (updates, n, 2)
    assert torch.equal(result.handles[0], case.points("handles"))
    assert torch.equal(result.handles[1:].flip(2), stored["track"])
    torch.testing.assert_close(result.losses, stored["loss"], rtol=0, atol=1e-4 * stored["loss"].max().item())
    torch.testing.assert_close(result.latent, stored["z_out"], rtol=0, atol=1e-4 * stored["z_out"].abs().max().item())
    torch.testing.assert_close(result.distances, (case.points("targets") - result.handles).norm(dim=2))


def test_the_same_bits_twice():
    first, again = drag_toy(mask=torch.ones(64, 64)), drag_toy(mask=torch.ones(64, 64))
    for one, other in zip(first, again, strict=True):
        assert one == other if isinstance(one, str) else torch.equal(one, other)


def test_nothing_given_is_changed():
    z, handles, targets, mask = latent(), HANDLES.clone(), TARGETS.clone(), torch.zeros(64, 64)
    mask[10:50, 10:50] = 1
    before = [tensor.clone() for tensor in (z, handles, targets, mask)]
    result = drag_toy(z=z, handles=handles, targets=targets, mask=mask)
    result.latent.zero_()
    result.handles.zero_()
    for tensor, was in zip((z, handles, targets, mask), before, strict=True):
        assert torch.equal(tensor, was)
    assert not z.requires_grad


def test_every_update_is_observed():
    seen: list[drag.Update] = []
    config = DragConfig(tap="decoder3", updates=4)
    result = drag_latent(
        Toy(), latent(), 35, CONTEXT, SCHEDULE, HANDLES, TARGETS, config=config, observe=seen.append
    )  # fmt: skip
    assert [update.update for update in seen] == [1, 2, 3, 4]
    assert {update.total for update in seen} == {4}
    assert torch.tensor([update.loss for update in seen]).equal(result.losses)
    assert torch.stack([update.handles for update in seen]).equal(result.handles)
    assert torch.stack([update.distances for update in seen]).equal(result.distances)
    assert seen[-1].latent.equal(result.latent)
    assert not seen[0].latent.equal(latent())


def test_an_anchor_pulls_to_the_first_latent_s_patch():
    """The loss of one step, with all, a part and none of the first patch in what is pulled to."""
    net = Toy()
    later, moved, grid = latent(seed=1), torch.tensor([[26.0, 23.0]]), (64, 64)
    first = step(net).first_pass
    features = F.conv2d(later, net.weight, padding=2)
    for anchor in (0.0, 0.3, 1.0):
        came = step(net, later, moved, first_pass=first, anchor=anchor, track_radius=0)
        pulled_to = motion.patches(features, moved, 1, grid) * (1 - anchor)
        pulled_to = pulled_to + motion.patches(first.features, HANDLES, 1, grid) * anchor
        expected = motion.motion_supervision_loss_reference(features, moved, TARGETS, 1, grid, target_patch=pulled_to)
        torch.testing.assert_close(came.loss, expected)


def test_an_anchor_is_what_the_first_patch_had_inside_of_the_border():
    net, later, moved, grid = Toy(), latent(seed=1), torch.tensor([[26.0, 23.0]]), (64, 64)
    first = step(net, handles=torch.tensor([[0.0, 63.0]])).first_pass
    features = F.conv2d(later, net.weight, padding=2)
    came = step(net, later, moved, first_pass=first, anchor=0.3, track_radius=0)
    pulled_to, anchor = (motion.patches(f, at, 1, grid) for f, at in ((features, moved), (first.features, HANDLES)))
    anchor = motion.patches(first.features, torch.tensor([[0.0, 63.0]]), 1, grid)
    pulled_to[:, :, :2, 1:] = 0.7 * pulled_to[:, :, :2, 1:] + 0.3 * anchor[:, :, :2, 1:]  # not its left and lower edge
    expected = motion.motion_supervision_loss_reference(features, moved, TARGETS, 1, grid, target_patch=pulled_to)
    torch.testing.assert_close(came.loss, expected)


# --- one step ---------------------------------------------------------------------------------------------------------


def test_the_step_is_told_the_level():
    net = Toy()
    step(net)
    assert net.asked == [(681, "decoder3")]
    step(net, frozen=torch.ones(16, 16))
    assert net.asked[1] == (681, None)


def test_a_sum_of_taps_is_the_sum_of_their_features() -> None:
    """The pass ends behind the last of them, and both pull."""

    class Two(Toy):
        def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Out:
            (features,) = super().__call__(z, t, context, taps=taps, until=until).taps.values()
            return Out(None, {"block14": 2 * features, "block15": -0.5 * features})

    net = Two()
    both, twice = step(net, tap="block14+block15"), step(Toy(spoil=lambda _, features: 1.5 * features))
    assert net.asked == [(681, "block15")]
    torch.testing.assert_close(both.loss, twice.loss)
    torch.testing.assert_close(both.gradient, twice.gradient)
    assert torch.equal(both.first_pass.features, 1.5 * step().first_pass.features)
    assert torch.equal(step(Two(), tap="block15+block14").loss, both.loss)  # in whatever order they are named


@pytest.mark.parametrize("tap", ["block14", "decoder3", "decoder2"])
def test_an_update_looks_at_no_cell_that_it_does_not_compute(tap: str) -> None:
    """Handles at every border, close to each other and alone: as by the whole map, which the first pass computes."""
    net = copy.deepcopy(golden_cases.golden_unet()).double().requires_grad_(False)
    noise, config = ddim.noise_at(SCHEDULE, 35, torch.device("cpu")), DragConfig(tap=tap, radius=7, anchor=0.25)
    context = torch.randn(1, 77, golden_cases.CONTEXT_DIM, dtype=torch.float64)
    run = passes.prepare(net, noise, context, config)
    z = latent(16, 13).double()
    handles = torch.tensor([[0.0, 63.0], [51.0, 0.0], [20.0, 30.0], [22.5, 31.0], [30.2, 8.0]])
    targets = torch.tensor([[10.0, 50.0], [51.0, 20.0], [30.0, 20.0], [3.0, 40.0], [50.0, 8.0]])
    task = drag.Task(z, noise, context, handles, targets, None, config)
    first_pass = drag.motion_supervision_step(run, task).first_pass
    moved, computed = z + 0.1 * latent(16, 13, seed=1).double(), []

    def whole_map(latent, handles, whole, size):
        return run(latent, handles, whole)

    ways: list[Any] = [run, whole_map]
    for passing in ways:
        at = drag.motion_supervision_step(passing, task._replace(latent=moved), first_pass)
        computed.append((at, at.first_pass.features.abs().sum(dim=1) > 0))
    (part, of_part), (whole, of_whole) = computed
    assert of_whole.all() and not of_part.all()
    assert torch.equal(part.handles, whole.handles) and torch.equal(part.lost, whole.lost)
    torch.testing.assert_close(part.loss, whole.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(part.gradient, whole.gradient, rtol=1e-7, atol=1e-9)


def test_windows_over_the_grid_and_handles_without_number() -> None:
    """A radius is bounded by the grid, and the windows of all handles by a number that memory has room for."""
    largest, over = (drag_toy(updates=2, anchor=0.25, radius=r, track_radius=r) for r in (63, 10**9))
    assert torch.equal(largest.latent, over.latent)
    many = HANDLES[:1].expand(5000, 2)
    with pytest.raises(ValueError, match=r"5000 handles are too many: of windows of 15 × 15 .* at most 4660"):
        drag_toy(handles=many, targets=many + 1, radius=7)


def test_an_arrived_handle_is_skipped_and_the_others_go_on():
    handles, targets = torch.tensor([[20.0, 20.0], [40.0, 44.0]]), torch.tensor([[21.0, 21.0], [50.0, 20.0]])
    both, alone = step(handles=handles, targets=targets), step(handles=handles[1:], targets=targets[1:])
    assert torch.equal(both.loss, alone.loss)
    torch.testing.assert_close(both.gradient, alone.gradient)
    assert both.distances[0] < 2
    assert step(handles=handles, targets=targets, reach=1.0).loss > both.loss


def test_sgd_is_plain_descent():
    first = step()
    result = drag_toy(updates=1, lr=0.25, optimizer="sgd")
    torch.testing.assert_close(result.latent, latent() - 0.25 * first.gradient)
    torch.testing.assert_close(result.losses[0], first.loss)


def test_the_printed_loss_is_a_sum_over_channels_and_the_mask_term_stands_in_it_as_it_is():
    frozen = torch.ones(16, 16)
    before = step(frozen=frozen).first_pass
    moved = before._replace(z_prev=before.z_prev - 1)  # the mask term is λ times 4 · 16 · 16
    mean, total = (step(first_pass=moved, lam=1 / 1024, frozen=frozen, loss=loss).loss for loss in ("mean", "sum"))
    term = 1.0
    assert mean > term  # and not the term alone
    torch.testing.assert_close(total - term, before.features.shape[1] * (mean - term))


def test_what_is_looked_for():
    """With "first" the first latent's feature at the first handle, with "current" at the handle as it is now."""
    first_pass = step().first_pass
    there = torch.tensor([[28.0, 24.0]])
    for reference, expected in (("first", [[26.0, 22.0]]), ("current", [[28.0, 24.0]])):
        found = step(handles=there, first_pass=first_pass, reference=reference, track_radius=2)
        sought = first_pass.features[0, :, 5, 5] if reference == "first" else None
        assert found.handles.shape == (1, 2)
        if reference == "current":
            assert found.handles.tolist() == expected
        else:
            dense = F.interpolate(first_pass.features, size=(64, 64), mode="bilinear")[0]
            sought = dense[:, 20, 20]
            window = (dense[:, 22:27, 26:31] - sought[:, None, None]).abs().sum(dim=0)
            row, column = divmod(int(window.argmin()), 5)
            assert found.handles.tolist() == [[26.0 + column, 22.0 + row]]


# --- the mask


def test_the_mask_term():
    """A latent step below the first one's by a known amount costs λ times that, where the mask keeps."""
    frozen = (latent(seed=4)[0, 0] > 0).float()
    moved = latent(seed=5)
    at = step(frozen=frozen)
    free = step()
    torch.testing.assert_close(at.loss, free.loss)  # nothing has moved yet
    torch.testing.assert_close(at.gradient, free.gradient)
    assert free.first_pass.z_prev is None
    first_pass = at.first_pass._replace(z_prev=at.first_pass.z_prev - moved)
    held = step(first_pass=first_pass, frozen=frozen, lam=0.3)
    without = step(first_pass=first_pass, frozen=None, lam=0.3)
    expected = 0.3 * (moved.abs() * frozen).sum()
    torch.testing.assert_close(held.loss - without.loss, expected, rtol=1e-4, atol=1e-4)


def test_the_mask_term_is_on_the_next_latent():
    z, frozen = latent(), torch.ones(16, 16)
    alpha_bar, prev = SCHEDULE.alpha_bars[35], SCHEDULE.alpha_bars[34]
    eps = z.tanh()
    clean = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    torch.testing.assert_close(step(frozen=frozen).first_pass.z_prev, prev.sqrt() * clean + (1 - prev).sqrt() * eps)


def test_the_mask_holds_what_is_outside():
    mask = torch.zeros(64, 64)
    mask[:, 20:] = 1  # the handle at (20, 20) pulls on either side of its edge
    outside = 1 - drag.to_latent_grid(mask, latent())
    changes = []
    for lam in (0.0, 0.02, 1.0):
        result = drag_toy(mask=mask, lam=lam, updates=12, lr=0.02)
        changes.append(((result.latent - latent()).abs() * outside).sum().item())
    assert changes[2] < 0.3 * changes[0]
    assert changes[2] < changes[1] < changes[0]


def test_a_black_mask_or_none_ends_the_pass_at_the_tap():
    free = drag_toy()
    for net, mask, lam in ((Toy(), torch.zeros(64, 64), 0.1), (Toy(), torch.ones(64, 64), 0.0)):
        result = drag_toy(net, mask=mask, lam=lam)
        assert {until for _, until in net.asked} == {"decoder3"}
        assert torch.equal(result.latent, free.latent)
    net = Toy()
    drag_toy(net, mask=torch.ones(64, 64, dtype=torch.bool))
    assert {until for _, until in net.asked} == {None}


def test_the_mask_on_the_latents_grid():
    mask = torch.zeros(64, 96)
    mask[8:40, 12:60] = 1
    small = drag.to_latent_grid(mask, latent(16, 24))
    assert small.shape == (16, 24)
    assert small[2:10, 3:15].all()
    assert small.sum() == 8 * 12


# --- types and errors


def test_a_bfloat16_network_has_a_float32_latent():
    case = golden_cases.case("drag_one")
    unet = copy.deepcopy(golden_cases.golden_unet()).bfloat16()
    text = case.input("text", 1, 77, golden_cases.CONTEXT_DIM).bfloat16()
    z = case.input("z", 1, 4, 16, 16)
    config = DragConfig(tap="decoder3", updates=1, lr=0.02)
    arguments = 35, text, Schedule(50, "dragdiffusion"), case.points("handles"), case.points("targets"), None, config
    result = drag_latent(unet, z, *arguments)
    assert result.latent.dtype == result.losses.dtype == torch.float32
    torch.testing.assert_close(result.losses[0], golden_run(case.tag).losses[0], rtol=0.05, atol=0)
    assert ((result.latent - z).abs() <= 0.0201).all()
    assert not torch.equal(result.latent, result.latent.bfloat16().float())


def test_under_no_grad():
    with torch.no_grad():
        result = drag_toy()
    assert torch.equal(result.latent, drag_toy().latent)
    assert not result.latent.requires_grad


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"z": torch.zeros(2, 4, 16, 16)}, r"expected \(1, 4, h, w\), came \(2, 4, 16, 16\)"),
        ({"z": torch.zeros(4, 16, 16)}, r"came \(4, 16, 16\)"),
        ({"level": 0}, r"level must be a whole number from 1 to T = 50, came 0"),
        ({"level": 51}, r"came 51"),
        ({"handles": [20.0, 20.0]}, r"handles must be \(n, 2\) of \(x, y\), n at least 1, came \(2,\)"),
        ({"handles": torch.zeros(0, 2), "targets": torch.zeros(0, 2)}, r"came \(0, 2\)"),
        ({"targets": torch.zeros(2, 2)}, r"came 1 handles, 2 targets"),
        ({"handles": [[20.0, 63.6]]}, r"handle 1 at \(20, 63\.6\) lies outside of the supervision grid, 64 cells wide"),
        ({"targets": [[-0.6, 3.0]]}, r"target 1 at \(-0\.6, 3\) lies outside"),
        ({"targets": [[float("nan"), 3.0]]}, r"target 1 at \(nan, 3\) lies outside"),
        ({"mask": torch.ones(16, 16)}, r"mask must be \(64, 64\), on the supervision grid, came \(16, 16\)"),
        ({"mask": torch.full((64, 64), 255.0)}, r"mask must hold numbers from 0"),
        ({"mask": torch.full((64, 64), torch.nan)}, r"mask must hold numbers from 0"),
        ({"config": DragConfig(tap="block17")}, r"features cannot be read at 'block17': known are block01"),
        ({"config": DragConfig(tap="block14+block17")}, r"features cannot be read at 'block14\+block17'"),
        ({"config": DragConfig(tap="block13+block14")}, r"features of block13\+block14 cannot be added: they differ"),
        ({"config": DragConfig(tap="block13+decoder3")}, r"features of block13\+decoder3 cannot be added: they differ"),
        ({"config": DragConfig(tap="block14.kv")}, r"features cannot be read at 'block14\.kv'"),
        ({"config": DragConfig(optimizer="lion")}, r"optimizer must be one of adam, adam-mini, sgd, came 'lion'"),  # type: ignore[arg-type]
        ({"config": DragConfig(reference="last")}, r"reference must be one of first, current, came 'last'"),  # type: ignore[arg-type]
        ({"config": DragConfig(updates=-1)}, r"updates must be a whole number from 0, came -1"),
        ({"config": DragConfig(radius=1.5)}, r"radius must be a whole number from 0, came 1\.5"),  # type: ignore[arg-type]
        ({"config": DragConfig(patience=0)}, r"patience must be a whole number from 1, came 0"),
        ({"config": DragConfig(stall=0)}, r"stall must be a whole number from 1, came 0"),
        ({"config": DragConfig(anchor=1.5)}, r"anchor must be a number from 0 to 1, came 1.5"),
        ({"config": DragConfig(lr=float("nan"))}, r"lr must be a number from 0, came nan"),
        ({"config": DragConfig(lam=-0.1)}, r"lam must be a number from 0, came -0\.1"),
    ],
)
def test_wrong_arguments(changes, message):
    net = Toy()
    arguments = {
        "z": latent(), "level": 35, "context": CONTEXT, "schedule": SCHEDULE, "handles": HANDLES, "targets": TARGETS
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        drag_latent(net, **{**arguments, **changes})
    assert net.asked == []


def test_points_on_the_edge_of_the_grid():
    corners = torch.tensor([[-0.5, -0.5], [63.5, 63.5]])
    result = drag_toy(handles=corners, targets=corners.flip(0), updates=2)
    assert len(result.losses) == 2
    assert ((result.final_handles >= 0) & (result.final_handles <= 63)).all()
