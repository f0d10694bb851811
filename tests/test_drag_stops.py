"""Each rule by which the drag loop ends, and the latent that it then gives back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_drag import CONTEXT, HANDLES, SCHEDULE, TARGETS, Toy, drag_toy, latent

from dragsa import drag
from dragsa.config import DragConfig
from dragsa.drag import drag_latent


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


def test_the_observer_ends_it():
    seen: list[drag.Update] = []

    def two(update: drag.Update) -> str | None:
        seen.append(update)
        return "stop" if update.update == 2 else None

    net, config = Toy(), DragConfig(tap="decoder3", updates=20, lr=0.01)
    result = drag_latent(net, latent(), 35, CONTEXT, SCHEDULE, HANDLES, TARGETS, config=config, observe=two)
    assert result.reason == "stopped" and len(net.asked) == len(result.losses) == 2
    assert torch.equal(result.latent, seen[1].latent)


def test_not_moving_between_cells():
    def still(run, task, first_pass, lap):
        return drag.motion_supervision(run, task, first_pass, lap)._replace(handles=torch.full((1, 2), 20.6))

    config = DragConfig(tap="decoder3", updates=20, lr=0.0, patience=4)
    given = Toy(), latent(), 35, CONTEXT, SCHEDULE, HANDLES, TARGETS
    result = drag_latent(*given, config=config, supervision=still)
    assert result.reason == "not moving" and len(result.losses) < 6


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
