"""Own control and own terms: an edit's bytes, the drag's numbers, and FreeDrag by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gallery.own_control import union_at
from gallery.own_term import Smooth, total_variation
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import dragsa
from dragsa import ddim, drag, passes, tracking
from dragsa.config import DragConfig, EditConfig, UNetConfig
from dragsa.drag import FirstPass, Lap, Supervision, Task
from dragsa.methods import FreeDrag
from dragsa.model.unet import UNet, UNetOutput
from dragsa.passes import PreparedPass
from dragsa.passes.prepare import Pass

SCHEDULE = ddim.Schedule(50)
HANDLES, TARGETS = torch.tensor([[5.0, 6.0], [20.0, 12.0]]), torch.tensor([[15.0, 16.0], [10.0, 12.0]])


def test_own_control_gives_the_named_ones_bytes(tiny_folder):
    sd, drags = dragsa.load(tiny_folder), [((20.0, 30.0), (50.0, 40.0))]
    picture = Image.effect_noise((64, 64), 60).convert("RGB").resize((8, 8)).resize((64, 64), Image.Resampling.BICUBIC)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 40, 64))
    loop = DragConfig(updates=2, lr=0.05)
    config = EditConfig.paper(size=64, steps=6, drag_step=2, control_step=4, drag=loop, guidance=6.0, blend=True)
    source = dragsa.prepare(sd, picture, "a red disc", config=config)
    own, named, other = (
        dragsa.edit(sd, source, drags, mask, target_prompt="a blue star", config=config, control=control)
        for control in (union_at, "union", lambda step: None)
    )
    assert own.image.tobytes() == named.image.tobytes() != other.image.tobytes()
    assert len(own.trace.losses) == 2 and "union_at" in str(own.trace.control)


def stock_parts(
    run: PreparedPass, task: Task, first_pass: FirstPass | None = None, lap: Lap = drag.no_lap
) -> Supervision:
    """The paper's supervision as a user would write it with the public parts."""
    config, handles, grid = task.config, task.handles, task.grid
    size = None if first_pass is None else tuple(first_pass.features.shape[-2:])
    features, eps = run(task.latent, handles, task.frozen is not None, size)  # type: ignore[arg-type]
    lost = torch.zeros_like(handles[:, 0], dtype=torch.bool)
    if first_pass is not None:
        sought = tracking.sample_points(first_pass.features, first_pass.handles.trunc(), grid)
        handles, match = tracking.track(features, sought, handles, config.track_radius, grid)
        lost = match >= tracking.chance(first_pass.features, sought)
    distances = (task.targets - handles).norm(dim=1)
    active = distances >= config.reach
    loss = dragsa.motion_supervision_loss(features, handles, task.targets, config.radius, grid, active)
    kept, z_prev = drag.mask_term(task, eps, first_pass)
    first = FirstPass(features.detach(), z_prev, handles.clone())
    return Supervision(loss + kept, handles, distances, lost, first)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig((8, 8, 8, 8), (2, 2, 2, 2), 16, 4)).requires_grad_(False)


def given() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 16, generator=generator)


def dragged(net: UNet, supervision: Any = None, mask: Tensor | None = None, config: DragConfig | None = None) -> Any:
    z, text = given()
    config = DragConfig(updates=4, lr=0.05, compile="off") if config is None else config
    return drag.drag_latent(net, z, 35, text, SCHEDULE, HANDLES, TARGETS, mask, config, supervision=supervision)


@pytest.mark.parametrize("masked", [False, True])
def test_the_stock_parts_are_the_stock_drag(net, masked):
    mask = (torch.arange(32) < 20).float().expand(32, 32) if masked else None
    stock, own, other = (dragged(net, one, mask) for one in (None, stock_parts, Smooth(0.5)))
    assert len(stock.losses) == 4
    for came, expected in zip(own[:5], stock[:5], strict=True):
        assert torch.equal(came, expected)
    assert torch.equal(dragged(net, Smooth(0.0), mask).latent, stock.latent)
    assert not torch.equal(other.latent, stock.latent)


def convolution(z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> UNetOutput:
    """A network of one layer, traced in no time: the UNet's own graph is tested in tests/passes."""
    weight = torch.arange(6.0 * 4 * 9).sin().reshape(6, 4, 3, 3) / 10
    return UNetOutput(z.tanh() if until is None else None, {taps[0]: F.conv2d(z, weight, padding=1)})


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_they_are_the_stock_step_in_one_graph(graphs, masked):
    (z, text), config = given(), DragConfig(tap="block14", compile="off")
    noise, frozen = ddim.noise_at(SCHEDULE, 35, z.device), torch.rand(8, 8).round() if masked else None
    step = passes.whole(drag.motion_supervision_step, "cpu", graphs)
    task = Task(z, noise, text, HANDLES, TARGETS, frozen, config)
    prepared = passes.prepare(convolution, noise, text, config)
    first = drag.motion_supervision_step(prepared, task).first_pass
    for n, shift in enumerate((0.0, 1.0)):
        now = task._replace(latent=z + 0.1 * shift, handles=HANDLES + shift, targets=TARGETS - shift)
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            own = step(prepared, now, first, drag.no_lap, stock_parts)
        stock = drag.motion_supervision_step(prepared, now, first)
        assert torch.equal(own.handles, stock.handles)
        assert torch.allclose(own.loss, stock.loss, rtol=1e-4)
        assert torch.allclose(own.gradient, stock.gradient, atol=1e-4 * stock.gradient.abs().max().item())
    assert len(graphs.traced) == 1


def test_total_variation_by_hand():
    z = torch.tensor([[[[1.0, 4.0], [2.0, 0.0]]]])
    assert total_variation(z) == 3 + 2 + 1 + 4  # along the rows, then down the columns


# --- FreeDrag by hand: features that rise by one from column to column, so that a shift is its own loss -------------


def ramp(shift: float) -> PreparedPass:
    """Passes whose features on the grid 32×32 are x - shift in every row, whatever the latent."""

    def run(latent: Tensor, handles: Tensor, whole: bool, size: Any = None) -> Pass:
        return Pass((torch.arange(32.0) - shift).expand(1, 1, 32, 32) + 0 * latent.sum(), None)

    return run


def follow(shifts: list[float], expected: float = 1.0, target: float = 26.0) -> list[Supervision]:
    """One handle from (10, 16) to (target, 16): what each update finds."""
    free, found, first = FreeDrag(expected), [], None
    handles, end = torch.tensor([[10.0, 16.0]]), torch.tensor([[target, 16.0]])
    noise = ddim.noise_at(SCHEDULE, 35, torch.device("cpu"))
    for shift in shifts:
        task = Task(torch.zeros(1, 4, 8, 8), noise, torch.zeros(1, 5, 16), handles, end, None, DragConfig())
        found.append(free(ramp(shift), task, first, drag.no_lap))
        first, handles = first or found[0].first_pass, found[-1].handles
    return found


def at(found: list[Supervision]) -> list[float]:
    return [round(one.handles[0, 0].item(), 4) for one in found]


def test_free_drag_goes_to_where_the_loss_is_what_is_expected():
    # Ten points up to four cells ahead: 10.4, 10.8, … with losses 0.4, 0.8, …; the nearest to 0.9 is 0.8.
    found = follow([0.0] * 5, expected=0.9)
    assert at(found) == [10.8] * 5
    assert [round(one.loss.item(), 4) for one in found] == [0.8] * 5
    assert found[0].distances.item() == pytest.approx(15.2)


def test_free_drag_goes_on_at_once_when_the_loss_is_small():
    # 0.3 under an expected 0.9 is small: the template takes its share of the 0.3, and is looked for anew.
    found = follow([0.0, 0.5, 0.5], expected=0.9)
    assert found[1].loss.item() == pytest.approx(0.3) and at(found)[:2] == [10.8, 10.8]
    share = 1 / (1 + 9 ** ((0.3 / 0.9 - 0.2) / 0.6))
    template = 10 + 0.3 * share  # the ramp's value there
    losses = [abs(10.8 + 0.4 * n - 0.5 - template) for n in range(1, 11)]
    best = min(range(10), key=lambda n: abs(losses[n] - 0.9))
    assert at(found)[2] == pytest.approx(10.8 + 0.4 * (best + 1)) and found[2].loss.item() == pytest.approx(
        losses[best]
    )


def test_free_drag_stays_where_the_loss_fell_and_goes_back_where_it_rose():
    fell = follow([0.0] * 5 + [0.1], expected=0.9)  # 0.7 at the end, of 0.8 at the beginning
    assert at(fell)[-1] == pytest.approx(10.8)
    share = 1 / (1 + 9 ** ((0.7 / 0.9 - 0.2) / 0.6))
    assert fell[-1].loss.item() == pytest.approx(0.7 * (1 - share), rel=1e-4)
    rose = follow([0.0] * 5 + [-0.1], expected=0.9)  # 0.9 at the end
    template = 10 + 0.9 / (1 + 9 ** ((1 - 0.2) / 0.6))
    line = [6.8 + 0.8 * n for n in range(1, 11)]  # from four cells behind to four ahead
    assert at(rose)[-1] == pytest.approx(min(line, key=lambda x: abs(x + 0.1 - template)), abs=1e-4)


def test_free_drag_has_arrived_where_the_template_is_matched():
    found = follow([0.0, 0.5, 0.5, 1.4], 0.9, 13.0)
    away = 13 - at(found)[2]
    assert 0 < away < DragConfig().reach
    assert found[2].loss > 0.45 and found[2].distances.item() == DragConfig().reach  # unlike its template: not there
    assert found[3].loss < 0.45 and found[3].distances.item() == pytest.approx(away, abs=1e-4)
    assert at(follow([0.0], 0.9, 10.8)) == [10.0]  # one that is near from the beginning is not pulled


def test_free_drag_s_patches_reach_over_the_border():
    handles, end = torch.tensor([[0.0, 16.0]]), torch.tensor([[31.0, 31.0]])
    noise, config = ddim.noise_at(SCHEDULE, 35, torch.device("cpu")), DragConfig(radius=3)
    task = Task(torch.zeros(1, 4, 8, 8), noise, torch.zeros(1, 5, 16), handles, end, None, config)
    free = FreeDrag(0.9)
    found = free(ramp(0.0), task, None, drag.no_lap)
    # Of the seven columns of the template -3 … 0 show the border's 0, and 0.8 of a cell on, -0.2 to 3.8.
    assert free.template[0].unflatten(0, (7, 7))[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3]
    x = found.handles[0, 0].item()
    expected = sum(max(0, n + x) - max(0, n) for n in range(-3, 4)) / 7
    assert x > 0 and found.loss.item() == pytest.approx(expected, rel=1e-4)


def test_free_drag_in_a_drag(net):
    config = DragConfig(updates=12, lr=0.05, compile="off", patience=None)
    mask = (torch.arange(32) < 20).float().expand(32, 32)
    plain, free = dragged(net, None, mask, config), dragged(net, FreeDrag(0.2), mask, config)
    assert free.reason == "budget" and not torch.equal(free.latent, plain.latent)
    assert (free.handles[-1] != free.handles[0]).any()
    with pytest.raises(ValueError, match="FreeDrag: expected loss and length must be over 0, came 0"):
        FreeDrag(0)
