"""The drag loop: against stored runs, each rule for stopping, the mask, and what it must leave alone."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple

import drag_steps
import golden_cases
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa import ddim, drag, motion, passes
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.drag import DragResult, drag_latent

SCHEDULE = Schedule(50)
CONTEXT = torch.zeros(1, 77, 8)


class Out(NamedTuple):
    eps: Tensor | None
    taps: dict[str, Tensor]


class Toy:
    """A network that is one smooth convolution of the latent, so that a drag takes milliseconds.

    Keeps what it was asked. `spoil` may change the features, given the number of the pass, from 1.
    """

    def __init__(self, channels: int = 12, spoil: Any = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(channels, 4, 5, 5, generator=generator) / 10
        self.asked: list[tuple[int, str | None]] = []
        self.spoil = spoil

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Out:
        self.asked.append((int(t), until))
        features = F.conv2d(z, self.weight, padding=2)
        if self.spoil is not None:
            features = self.spoil(len(self.asked), features)
        return Out(z.tanh() if until is None else None, {taps[0]: features})


def latent(h: int = 16, w: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(seed))


HANDLES, TARGETS = torch.tensor([[20.0, 20.0]]), torch.tensor([[40.0, 30.0]])


def drag_toy(net: Any = None, z: Tensor | None = None, handles=HANDLES, targets=TARGETS, mask=None, **config):
    settings = DragConfig(**{"tap": "decoder3", "updates": 6, **config})
    net, z = net or Toy(), latent() if z is None else z
    return drag_latent(net, z, 35, CONTEXT, SCHEDULE, handles, targets, mask, settings)


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


# --- why it stops


def test_reached_before_the_first_pass():
    net, z = Toy(), latent()
    result = drag_toy(
        net, z, handles=torch.tensor([[20.0, 20.0], [5.5, 7.0]]), targets=torch.tensor([[21.0, 21.0], [5.5, 7.0]])
    )
    assert result.reason == "reached"
    assert net.asked == []
    assert torch.equal(result.latent, z)
    result.latent.zero_()
    assert torch.equal(z, latent())
    assert result.losses.shape == (0,)
    assert result.handles.shape == (0, 2, 2)
    assert result.distances.shape == (0, 2)
    assert result.final_handles.tolist() == [[20.0, 20.0], [5.5, 7.0]]


def test_reached_on_the_way():
    def slide(number: int, features: Tensor) -> Tensor:
        """The map moves one native cell, four of the grid, to the right with each pass."""
        return features.roll(number - 1, dims=3)

    net = Toy(spoil=slide)
    result = drag_toy(net, targets=HANDLES + torch.tensor([[9.0, 0.0]]), lr=0.0, track_radius=4, updates=20)
    assert result.reason == "reached"
    assert result.handles[:, 0].tolist() == [[20.0, 20.0], [24.0, 20.0]]
    assert result.final_handles.tolist() == [[28.0, 20.0]]  # one cell from its target, found by the third pass
    assert len(net.asked) == 3


def test_exactly_within_reach_is_not_there():
    result = drag_toy(targets=HANDLES + torch.tensor([[2.0, 0.0]]), lr=0.0, updates=3)
    assert result.reason == "budget"
    result = drag_toy(targets=HANDLES + torch.tensor([[1.99, 0.0]]), lr=0.0, updates=3)
    assert result.reason == "reached"


def test_budget():
    net = Toy()
    result = drag_toy(net, updates=3)
    assert result.reason == "budget"
    assert len(net.asked) == len(result.losses) == 3
    assert torch.equal(result.final_handles, result.handles[-1])
    none = drag_toy(net, updates=0)
    assert none.reason == "budget"
    assert torch.equal(none.latent, latent())
    assert len(net.asked) == 3


@pytest.mark.parametrize("start", [20.0, 20.6])
def test_not_moving(start):
    handles = torch.full((1, 2), start)
    result = drag_toy(handles=handles, lr=0.0, patience=4, updates=20)
    assert result.reason == "not moving"
    assert len(result.losses) == 4
    assert torch.equal(result.final_handles, handles.trunc())
    assert drag_toy(lr=0.0, patience=None, updates=20).reason == "budget"


def test_a_move_starts_the_patience_anew():
    def slide(number: int, features: Tensor) -> Tensor:
        return features.roll(1 if number > 4 else 0, dims=3)

    result = drag_toy(Toy(spoil=slide), lr=0.0, track_radius=4, patience=4, updates=20)
    assert result.reason == "not moving"
    assert result.handles[:, 0, 0].tolist() == [20.0] * 4 + [24.0] * 4


def test_an_arrived_handle_does_not_count_as_moving():
    def shake(number: int, features: Tensor) -> Tensor:
        """The features about the second handle go to and fro by one native cell."""
        shaken = features.clone()
        shaken[:, :, 8:] = features.roll(number % 2, dims=3)[:, :, 8:]
        return shaken

    handles, targets = torch.tensor([[20.0, 10.0], [30.0, 50.0]]), torch.tensor([[40.0, 10.0], [28.0, 50.0]])
    result = drag_toy(
        Toy(spoil=shake), handles=handles, targets=targets, lr=0.0, track_radius=4, reach=7.0, patience=3, updates=20
    )
    assert result.reason == "not moving"
    assert len(result.losses) == 3
    assert (result.handles[1:, 1] != result.handles[:-1, 1]).any()


def hide(*passes: int):
    """In these passes the features about the first handle look like nothing that is sought."""

    def spoil(number: int, features: Tensor) -> Tensor:
        hidden = features.clone()
        if number in passes:
            hidden[:, :, 2:8, 2:8] += 10
        return hidden

    return spoil


def test_tracking_lost():
    result = drag_toy(Toy(spoil=hide(*range(3, 20))), lr=0.0, updates=20, lost_patience=4)
    assert result.reason == "tracking lost"
    assert len(result.losses) == 5  # two passes that see the handle, and the fourth that does not ends the loop
    assert drag_toy(Toy(spoil=hide(*range(3, 20))), lr=0.0, updates=9, lost_patience=None).reason == "budget"


def test_lost_for_a_while_is_not_lost():
    assert drag_toy(Toy(spoil=hide(3, 4, 5, 7, 8, 9)), lr=0.0, updates=11, lost_patience=4).reason == "budget"


def test_an_arrived_handle_is_not_lost():
    handles, targets = torch.tensor([[20.0, 20.0], [40.0, 50.0]]), torch.tensor([[21.0, 20.0], [60.0, 50.0]])
    net = Toy(spoil=hide(*range(2, 20)))
    result = drag_toy(net, handles=handles, targets=targets, lr=0.0, updates=9, lost_patience=2, reach=9.0)
    assert result.reason == "budget"


def away_after(passes: int):
    """The features go one native cell towards the target after two passes, and back and beyond after so many more."""

    def spoil(number: int, features: Tensor) -> Tensor:
        return features.roll(0 if number <= 2 else 1 if number <= 2 + passes else -1, dims=3)

    return spoil


def test_no_nearer():
    seen: list[drag.Update] = []
    config = DragConfig(tap="decoder3", updates=20, lr=0.01, track_radius=8, stall=4)
    result = drag_latent(
        Toy(spoil=away_after(2)), latent(), 35, CONTEXT, SCHEDULE, HANDLES, TARGETS, config=config, observe=seen.append
    )  # fmt: skip
    assert result.reason == "no nearer"
    assert len(result.losses) == 2 + 4  # the third pass is the nearest, and four more are not
    assert result.final_handles[0, 0] > 22 > result.handles[-1, 0, 0]
    assert torch.equal(result.final_handles, result.handles[2])
    assert torch.equal(result.latent, seen[1].latent)  # that pass saw the latent after two updates


def test_no_nearer_at_the_end_of_the_budget():
    """Too few to give up, yet what comes back is the nearest; without the option it is the last."""
    result = drag_toy(Toy(spoil=away_after(2)), track_radius=8, stall=9)
    assert result.reason == "budget"
    assert torch.equal(result.final_handles, result.handles[2])
    last = drag_toy(Toy(spoil=away_after(2)), track_radius=8)
    assert torch.equal(last.final_handles, last.handles[-1])
    assert not torch.equal(last.latent, result.latent)


def test_an_anchor_pulls_to_the_first_latent_s_patch():
    """The loss of one step, with all, a part and none of the first patch in what is pulled to."""
    net, noise = Toy(), ddim.noise_at(SCHEDULE, 35, torch.device("cpu"))
    later, moved, grid = latent(seed=1), torch.tensor([[26.0, 23.0]]), (64, 64)
    first = drag_steps.step(net, latent(), noise, CONTEXT, HANDLES, TARGETS).first_pass
    features = F.conv2d(later, net.weight, padding=2)
    for anchor in (0.0, 0.3, 1.0):
        config = DragConfig(tap="decoder3", anchor=anchor, track_radius=0)
        step = drag_steps.step(net, later, noise, CONTEXT, moved, TARGETS, first, None, config)
        pulled_to = motion.patches(features, moved, 1, grid) * (1 - anchor)
        pulled_to = pulled_to + motion.patches(first.features, HANDLES, 1, grid) * anchor
        expected = motion.motion_supervision_loss_reference(features, moved, TARGETS, 1, grid, target_patch=pulled_to)
        torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_not_finite_features(wrong):
    def spoil(number: int, features: Tensor) -> Tensor:
        return features * wrong if number == 4 else features

    net = Toy(spoil=spoil)
    result = drag_toy(net, updates=20)
    assert result.reason == "not finite"
    expected = drag_toy(updates=2)  # the third update led there
    assert torch.equal(result.latent, expected.latent)
    assert torch.equal(result.losses, expected.losses)
    assert torch.equal(result.handles, expected.handles)
    assert result.final_handles.isfinite().all()


def test_not_finite_at_once():
    z = latent()
    z[0, 0, 0, 0] = torch.nan
    result = drag_toy(z=z, handles=torch.tensor([[3.0, 3.0]]))
    assert result.reason == "not finite"
    assert len(result.losses) == 0
    assert torch.equal(result.latent.nan_to_num(), z.nan_to_num())


@pytest.mark.parametrize("updates", [1, 20])
def test_a_step_to_infinity_is_undone(updates):
    result = drag_toy(lr=1e39, optimizer="sgd", updates=updates)
    assert result.reason == "not finite"
    assert torch.equal(result.latent, latent())
    assert len(result.losses) == 0


# --- one step


def step(
    net: Any = None, z: Tensor | None = None, handles=HANDLES, targets=TARGETS, first_pass=None, frozen=None, **config
):
    settings = DragConfig(**{"tap": "decoder3", **config})
    noise = ddim.noise_at(SCHEDULE, 35, torch.device("cpu"))
    z = latent() if z is None else z
    return drag_steps.step(net or Toy(), z, noise, CONTEXT, handles, targets, first_pass, frozen, settings)


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
    for passing in (run, lambda latent, handles, whole, size: run(latent, handles, whole)):
        at = drag.motion_supervision_step(passing, task._replace(latent=moved), first_pass)
        computed.append((at, at.first_pass.features.abs().sum(dim=1) > 0))
    (part, of_part), (whole, of_whole) = computed
    assert of_whole.all() and not of_part.all()
    assert torch.equal(part.handles, whole.handles) and torch.equal(part.lost, whole.lost)
    torch.testing.assert_close(part.loss, whole.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(part.gradient, whole.gradient, rtol=1e-7, atol=1e-9)


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


def test_adam_is_pytorchs():
    z = latent()
    parameter, state = latent().requires_grad_(), None
    optimizer = torch.optim.Adam([parameter], lr=0.02)
    for seed in range(1, 9):
        gradient = latent(seed=seed) * 10.0 ** (seed - 5)
        z, state = passes.adam(z, gradient, state, 0.02)
        parameter.grad = gradient
        optimizer.step()
        torch.testing.assert_close(z, parameter.detach(), rtol=1e-6, atol=1e-6)


def test_adam_mini_has_one_scale_for_the_whole_latent():
    """Steps are in proportion to the gradient, whatever its size, and nothing moves where it is zero."""
    z = latent()
    gradient = latent(seed=1) * (torch.arange(z.shape[-1]) < 3)
    descend = passes.OPTIMIZERS["adam-mini"]
    first, state = descend(z, gradient, None, 0.02)
    torch.testing.assert_close(first, z - 0.02 * gradient / gradient.square().mean().sqrt())
    second, _ = descend(first, 1000 * gradient, state, 0.02)
    mean = (0.9 * 0.1 + 0.1 * 1000) / (1 - 0.9**2)
    scale = ((0.999 * 0.001 + 0.001 * 1000**2) / (1 - 0.999**2)) ** 0.5
    torch.testing.assert_close(second, first - 0.02 * mean / scale * gradient / gradient.square().mean().sqrt())
    assert torch.equal(second[..., 3:], z[..., 3:])


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
    for net, mask, config in ((Toy(), torch.zeros(64, 64), {}), (Toy(), torch.ones(64, 64), {"lam": 0.0})):
        result = drag_toy(net, mask=mask, **config)
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
        ({"config": DragConfig(optimizer="lion")}, r"optimizer must be one of adam, adam-mini, sgd, came 'lion'"),
        ({"config": DragConfig(reference="last")}, r"reference must be one of first, current, came 'last'"),
        ({"config": DragConfig(updates=-1)}, r"updates must be a whole number from 0, came -1"),
        ({"config": DragConfig(radius=1.5)}, r"radius must be a whole number from 0, came 1\.5"),
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
