"""What an own hook meets: rows with names, biases, maps, regions, and every sampler that takes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gallery_peers as peers
import golden_cases
import pytest
import torch
from torch import Tensor

import dragsa
from dragsa import ddim, drag, hooks, kernels
from dragsa.config import DragConfig
from dragsa.hooks import AtRegions, Attend, Maps, MutualSelfAttention, Site, compose
from dragsa.methods.masactrl import MaskedSelfAttention, UnionSelfAttention
from dragsa.model import blocks
from dragsa.model.layers import ResBlock, Transformer

SCHEDULE = ddim.Schedule(4)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(rows: int) -> Tensor:
    return drawn(1, rows, 4, 8, 12)


def contexts(rows: int, seed: int = 2) -> Tensor:
    return drawn(seed, rows, 77, golden_cases.CONTEXT_DIM)


class Seen:
    """A hook that changes nothing and notes the rows that its sites tell."""

    def __init__(self) -> None:
        self.rows: set[tuple[str, ...]] = set()
        self.calls = 0

    def __call__(self, s: Site, a: Tensor, b: Tensor, c: Tensor, go_on: Attend) -> Tensor:
        self.rows.add(s.rows)
        self.calls += 1
        return go_on(a, b, c)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_samplers_tell_what_the_rows_are() -> None:
    net, uncond = golden_cases.golden_unet(), contexts(1, 5)
    seen = [Seen() for _ in range(7)]
    every: list[Any] = [partial(lambda hook, step: hook, one) for one in seen]
    ddim.sample_controlled(net, latents(1), latents(1), contexts(2), SCHEDULE, 2, hook_at=every[0])
    ddim.sample_controlled(
        net, latents(1), latents(1), contexts(2), SCHEDULE, 1, guidance=(1.0, 6.0), uncond=uncond, hook_at=every[1]
    )
    ddim.sample(net, latents(1), contexts(1), SCHEDULE, 1, guidance=6.0, uncond=uncond, attention=seen[2])
    ddim.sample(net, latents(2), contexts(2), SCHEDULE, 1, rows=("source", "target"), hook_at=every[3])
    ddim.invert(net, latents(1), contexts(1), SCHEDULE, 1, attention=seen[4])
    ddim.invert_fixed_point(net, latents(1), contexts(1), SCHEDULE, 1, iterations=1, attention=seen[5])
    net(latents(2), 1, contexts(2), attention=seen[6])
    pair = ("source", "target")
    guided = ("source uncond", "target uncond", *pair)
    assert [one.rows for one in seen[:4]] == [{pair}, {guided}, {("latent uncond", "latent")}, {pair}]
    assert [one.rows for one in seen[4:]] == [{("latent",)}, {("latent",)}, {()}]


def test_a_hook_for_pairs_refuses_rows_that_are_none() -> None:
    net, uncond = golden_cases.golden_unet(), contexts(1, 5)
    with pytest.raises(ValueError, match=r"block11 self-attention: expected pairs of rows .*, came rows lat"):
        ddim.sample(
            net, latents(1), contexts(1), SCHEDULE, guidance=6.0, uncond=uncond, attention=MutualSelfAttention()
        )
    with pytest.raises(ValueError, match=r"expected pairs of rows .*, came rows target, source"):
        ddim.sample(net, latents(2), contexts(2), SCHEDULE, rows=("target", "source"), attention=MutualSelfAttention())
    with pytest.raises(ValueError, match="rows: expected a name for each of the 2 latents, came 1"):
        ddim.sample(net, latents(2), contexts(2), SCHEDULE, rows=("source",))


def test_one_hook_for_all_steps_or_one_by_step() -> None:
    net, z, context = golden_cases.golden_unet(), latents(2), contexts(2)
    control = MutualSelfAttention()
    late = ddim.sample(net, z, context, SCHEDULE, hook_at=lambda step: control if step >= 2 else None)
    first = ddim.sample(net, z, context, SCHEDULE, stop=2)
    second = ddim.sample(net, first[-1], context, SCHEDULE, start=2, attention=control)
    assert torch.equal(late, torch.cat([first, second[1:]]))
    with pytest.raises(ValueError, match="not both"):
        ddim.sample(net, z, context, SCHEDULE, attention=control, hook_at=lambda step: None)


def test_a_hook_bound_to_the_network_acts_or_is_refused() -> None:
    net, z, context = golden_cases.golden_unet(), latents(2), contexts(2)
    bound = partial(net, attention=MutualSelfAttention())
    assert torch.equal(
        ddim.sample(bound, z, context, SCHEDULE),
        ddim.sample(net, z, context, SCHEDULE, attention=MutualSelfAttention()),
    )
    with pytest.raises(ValueError, match="two hooks"):
        ddim.sample(bound, z, context, SCHEDULE, attention=MutualSelfAttention())


def test_inversion_under_a_hook_is_the_networks_under_it() -> None:
    net, z, context = golden_cases.golden_unet(), latents(1), contexts(1)
    halved: Callable[..., Tensor] = lambda site, q, k, v, attend: attend(q / 2, k, v)  # noqa: E731
    bound = partial(net, attention=halved)
    for invert in (ddim.invert, lambda *a, **o: ddim.invert_fixed_point(*a, **o, iterations=2).latents):
        found = invert(net, z, context, SCHEDULE, attention=halved)
        assert torch.equal(found, invert(bound, z, context, SCHEDULE))
        assert not torch.allclose(found, invert(net, z, context, SCHEDULE), atol=1e-4)


# --- what hooks are made of -------------------------------------------------------------------------------------------


def test_a_bias_is_added_to_the_scores_by_every_hook_it_passes() -> None:
    q, k, v = (drawn(seed, 2, 2, 6, 4).double() for seed in (1, 2, 3))
    outer, inner = drawn(4, 1, 1, 6, 6).double(), drawn(5, 2, 1, 1, 6).double()
    expected = (q @ k.transpose(-1, -2) / 2 + outer + inner).softmax(-1) @ v
    both = compose(
        lambda site, q, k, v, attend: attend(q, k, v, bias=outer), lambda site, q, k, v, attend: attend(q, k, v, inner)
    )
    assert torch.allclose(both(Site(1, "self", (2, 3)), q, k, v, kernels.attend), expected)
    shut = torch.zeros(6).double().masked_fill(torch.arange(6) == 4, -torch.inf)
    without = [0, 1, 2, 3, 5]
    assert torch.allclose(kernels.attend(q, k, v, shut), kernels.attend(q, k[:, :, without], v[:, :, without]))


def test_maps_of_chosen_sites_and_rows() -> None:
    net, uncond = golden_cases.golden_unet(), contexts(1, 5)
    every, some = Maps(kind="self", blocks=(14, 5)), Maps(blocks=(14,), rows=("target",))
    hook = compose(every, some)
    run = partial(
        ddim.sample_controlled, net, latents(1), latents(1), contexts(2), SCHEDULE, 1, guidance=6.0, uncond=uncond
    )
    plain = run(control_step=None)
    assert torch.equal(run(hook_at=lambda step: hook), plain)
    assert [(m.site.block, tuple(m.weights.shape)) for m in every.found] == [(5, (4, 2, 3, 6)), (14, (4, 8, 12, 96))]
    ((site, weights),) = some.found
    assert site.rows[3] == "target" and weights.shape == (1, 8, 12, 77)
    q, k = drawn(6, 2, 3, 4, 8), drawn(7, 2, 3, 5, 8)
    assert torch.allclose(hooks.attention_map(q, k) @ k, kernels.attend(q, k, k), atol=1e-6)
    with pytest.raises(ValueError, match="block14 cross-attention: expected a row 'target', came latent"):
        ddim.sample(net, latents(1), contexts(1), SCHEDULE, 1, attention=Maps(blocks=(14,), rows=("target",)))


def test_a_hook_inside_of_one_that_splits_the_rows_is_not_told_wrong_names() -> None:
    q, k, v = (drawn(seed, 4, 2, 6, 4) for seed in (1, 2, 3))
    site = Site(14, "self", (2, 3), ("source uncond", "target uncond", "source", "target"))
    halves = torch.zeros(2, 3).index_fill(1, torch.tensor([0]), 1)
    for outer in (UnionSelfAttention(), MaskedSelfAttention(halves, halves)):
        spy = Seen()
        assert torch.equal(compose(outer, spy)(site, q, k, v, kernels.attend), outer(site, q, k, v, kernels.attend))
        assert spy.rows == {()} and spy.calls == (2 if isinstance(outer, UnionSelfAttention) else 3)
        with pytest.raises(ValueError, match="expected a row 'target uncond'"):
            named = Maps(kind="self", rows=("target uncond",))
            compose(outer, named)(site, q, k, v, kernels.attend)


def test_diffusers_takes_what_is_composed_but_for_regions() -> None:
    unet, plain = peers.theirs(), compose(MutualSelfAttention(), Maps(kind="self"))
    assert len(hooks.as_processors(hooks.Named(plain, ("source", "target")), unet)) == 32
    own = compose(MutualSelfAttention(), AtRegions(lambda name, call, *x: call(*x)))
    with pytest.raises(ValueError, match="diffusers has no place for a region hook"):
        hooks.as_processors(hooks.Named(own, ()), unet)


def test_a_stochastic_step_is_song_et_als() -> None:
    z, eps, noise = (drawn(seed, 1, 4, 3, 3).double() for seed in (1, 2, 3))
    level, eta = 3, 0.7
    here, prev = SCHEDULE.alpha_bars[level].double(), SCHEDULE.alpha_bars[level - 1].double()
    sigma = eta * ((1 - prev) / (1 - here)).sqrt() * (1 - here / prev).sqrt()
    z_0 = (z - (1 - here).sqrt() * eps) / here.sqrt()
    expected = prev.sqrt() * z_0 + (1 - prev - sigma**2).sqrt() * eps + sigma * noise
    assert torch.allclose(ddim.step_down(z, eps, SCHEDULE, level, eta, noise), expected, atol=1e-6)
    assert torch.equal(ddim.step_down(z, eps, SCHEDULE, level, 0.0, noise), ddim.step_down(z, eps, SCHEDULE, level))
    with pytest.raises(ValueError, match="takes `noise`"):
        ddim.step_down(z, eps, SCHEDULE, level, eta)


def test_the_prediction_by_itself() -> None:
    net, z, context, uncond = golden_cases.golden_unet(), latents(1), contexts(1), contexts(1, 5)
    eps_uncond, eps = net(torch.cat([z, z]), 401, torch.cat([uncond, context])).eps.chunk(2)
    found = ddim.predict(net, z, torch.tensor(401), context, 6.0, uncond)
    assert torch.allclose(found, eps_uncond + 6 * (eps - eps_uncond), atol=1e-5)


# --- regions ----------------------------------------------------------------------------------------------------------


def test_regions_are_the_resblocks_and_transformers_in_forward_order() -> None:
    net, met = golden_cases.golden_unet(), []
    regions = net.regions
    assert len(regions) == 38 and tuple(regions) == blocks.REGIONS
    assert [*regions][:3] == ["encoder1.res1", "block01", "encoder1.res2"]
    assert [name for name, m in regions.items() if isinstance(m, Transformer)] == [
        f"block{n:02d}" for n in range(1, 17)
    ]
    assert len({id(m) for m in regions.values() if isinstance(m, ResBlock)}) == 22

    def noting(name: str, call: Callable[..., Tensor], /, *inputs: Tensor) -> Tensor:
        met.append((name, len(inputs)))
        return call(*inputs)

    z, context = latents(2), contexts(2)
    taps = ("block14", "block07.kv", "decoder2")
    plain, hooked = (net(z, 401, context, hook, taps) for hook in (None, AtRegions(noting)))
    assert [name for name, _ in met] == [*regions]
    assert {name for name, inputs in met if inputs == 2} == {n for n in regions if n.startswith("decoder")}
    assert torch.equal(plain.eps, hooked.eps)
    assert all(torch.equal(plain.taps[name], hooked.taps[name]) for name in ("block14", "decoder2"))
    assert all(torch.equal(*pair) for pair in zip(plain.taps["block07.kv"], hooked.taps["block07.kv"], strict=True))


def test_regions_compose_from_the_outside_in_and_attention_with_them() -> None:
    net, z, context = golden_cases.golden_unet(), latents(2), contexts(2)

    def plus_one(name: str, call: Callable[..., Tensor], /, *inputs: Tensor) -> Tensor:
        return call(*inputs) + 1

    def doubled(name: str, call: Callable[..., Tensor], /, *inputs: Tensor) -> Tensor:
        return 2 * call(*inputs)

    taps: Any = {"taps": ("mid", "block07"), "until": "mid"}
    at = ("mid.res2",)
    plain = net(z, 401, context, **taps).taps["mid"]
    both = net(z, 401, context, compose(AtRegions(plus_one, at), AtRegions(doubled, at)), **taps).taps["mid"]
    assert torch.equal(both, 2 * plain + 1)
    control = MutualSelfAttention((7,))
    mixed = net(z, 401, context, compose(AtRegions(plus_one, at), control), **taps).taps
    alone = net(z, 401, context, control, **taps).taps
    assert torch.equal(mixed["mid"], alone["mid"] + 1) and torch.equal(mixed["block07"], alone["block07"])
    assert not torch.equal(alone["block07"], net(z, 401, context, **taps).taps["block07"])


def test_a_region_hook_goes_through_samplers() -> None:
    net, z, context = golden_cases.golden_unet(), latents(2), contexts(2)
    skipless = AtRegions(lambda name, call, x, skip: call(x, 0 * skip), ("decoder4.res3",))
    found = ddim.sample(net, z, context, SCHEDULE, 1, attention=skipless)
    eps = net(z, SCHEDULE.timesteps[0], context, skipless).eps
    assert torch.equal(found[-1], ddim.step_down(z, eps, SCHEDULE, 1))
    assert not torch.allclose(found, ddim.sample(net, z, context, SCHEDULE, 1), atol=1e-4)


def test_wrong_regions_and_shapes_are_named() -> None:
    net, z, context = golden_cases.golden_unet(), latents(1), contexts(1)
    with pytest.raises(ValueError, match=r"no region 'encoder9.res1': known are encoder1.res1, block01"):
        AtRegions(lambda name, call, *x: call(*x), ("encoder9.res1",))
    for name, says in (("decoder1.res2", r"\(1, \d+, 1, 2\)"), ("block12", r"\(1, \d+, 4, 6\)")):
        half = AtRegions(lambda name, call, *x: call(*x)[..., :1], (name,))
        with pytest.raises(ValueError, match=rf"{name}: the hook must return {says}, came"):
            net(z, 401, context, half)


# --- the drag ---------------------------------------------------------------------------------------------------------


def tiny_drag() -> dict[str, Any]:
    handles, targets = torch.tensor([[12.0, 12.0]]), torch.tensor([[20.0, 14.0]])
    given: dict[str, Any] = {"unet": golden_cases.golden_unet(), "z": drawn(1, 1, 4, 8, 8), "level": 3}
    return {**given, "context": contexts(1), "schedule": SCHEDULE, "handles": handles, "targets": targets}


CONFIG = DragConfig(updates=3, patience=None, lost_patience=None, reach=0.5)


def test_a_drag_under_a_hook_is_the_networks_under_it() -> None:
    """Of the whole map: what ends a pass early at some cells alone would show a hook other queries."""
    halved: Callable[..., Tensor] = lambda site, q, k, v, attend: attend(q / 2, k, v)  # noqa: E731
    seen = Seen()
    given, mask = tiny_drag(), torch.ones(32, 32)
    bound_too = {**given, "unet": partial(given["unet"], attention=halved)}
    found = dragsa.drag_latent(**given, mask=mask, config=CONFIG, attention=halved)
    bound = dragsa.drag_latent(**bound_too, mask=mask, config=CONFIG)
    assert torch.allclose(found.latent, bound.latent, atol=1e-5)
    assert not torch.allclose(found.latent, dragsa.drag_latent(**given, mask=mask, config=CONFIG).latent, atol=1e-4)
    dragsa.drag_latent(**given, config=CONFIG, attention=seen)
    assert seen.rows == {("target",)}


def test_an_own_supervision_adds_its_term() -> None:
    """Total variation of the latent, added to the stock loss: its gradient is that of both."""
    losses: list[tuple[float, float]] = []

    def with_variation(run: Any, task: drag.Task, first_pass: Any, lap: Any) -> drag.Supervision:
        at = drag.motion_supervision(run, task, first_pass, lap)
        variation = task.latent.diff(dim=2).abs().sum() + task.latent.diff(dim=3).abs().sum()
        losses.append((at.loss.item(), variation.item()))
        return at._replace(loss=at.loss + variation)

    stock = dragsa.drag_latent(**tiny_drag(), config=CONFIG)
    found = dragsa.drag_latent(**tiny_drag(), config=CONFIG, supervision=with_variation)
    assert found.losses.tolist() == pytest.approx([sum(pair) for pair in losses])
    assert losses[0][0] == pytest.approx(stock.losses[0].item())
    variations = [pair[1] for pair in losses]
    assert variations == sorted(variations, reverse=True)


def test_an_own_optimizer_makes_every_update() -> None:
    states: list[Any] = []

    def signs(latent: Tensor, gradient: Tensor, state: Any, lr: float) -> tuple[Tensor, Any]:
        states.append(state)
        return latent - lr * gradient.sign(), (state or 0) + 1

    found = dragsa.drag_latent(**tiny_drag(), config=CONFIG, optimizer=signs)
    assert states == [None, 1, 2]
    moved = (found.latent - tiny_drag()["z"]).abs() / CONFIG.lr
    assert torch.allclose(moved, moved.round(), atol=1e-3) and moved.max().round() == 3
