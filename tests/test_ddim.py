"""Schedule, inversion and sampling: stored numbers, and a Gaussian mixture whose noise prediction is exact."""

from typing import NamedTuple, get_args

import golden_cases
import pytest
import torch

from dragsa import ddim, source_kv
from dragsa.config import EditConfig, Variant
from dragsa.ddim import Guided, KVByBlock, Schedule
from dragsa.source_kv import EarlierPass


@pytest.mark.parametrize("case", golden_cases.cases("invert"), ids=lambda case: case.tag)
def test_golden_inversion(case):
    settings = case.settings
    schedule = Schedule(settings["steps"], "dragdiffusion" if settings["steps_offset"] else "masactrl")
    z, text = case.input("z", 1, 4, *case.latent_hw), case.input("text", 1, 77, golden_cases.CONTEXT_DIM)
    latents = ddim.invert(golden_cases.golden_unet(), z, text, schedule, settings["actual_steps"])
    assert golden_cases.relative(latents[:, 0], case.outputs["latents"]) < 2e-4


@pytest.mark.parametrize("case", golden_cases.cases("control"), ids=lambda case: case.tag)
def test_golden_control(case):
    settings = case.settings
    z_source, z_target = (case.input(name, 1, 4, *case.latent_hw) for name in ("z_source", "z_target"))
    text, uncond = case.input("text", 2, 77, golden_cases.CONTEXT_DIM), case.input("uncond", 1, 77, 48)
    latents = ddim.sample_controlled(
        golden_cases.golden_unet(),
        z_source,
        z_target,
        text,
        Schedule(settings["steps"], "dragdiffusion"),
        start=settings["actual_steps"],
        guidance=settings["guidance_scale"],
        uncond=uncond,
        control_step=settings["start_step"],
        control_blocks=range(settings["start_layer"] + 1, 17),
    )
    assert golden_cases.relative(latents, case.outputs["latents"]) < 1e-3


class Eps(NamedTuple):
    eps: torch.Tensor


class Mixture:
    """Two Gaussians of data, one about each of `means`: ε(z, t) in closed form, exact at every level."""

    means = torch.tensor([-1.0, 1.0], dtype=torch.float64)

    def __init__(self, std=0.3):
        self.std = std
        self.alpha_bars = ddim.training_alpha_bars()
        self.asked = []

    def __call__(self, z, t, context, *, attention=None):
        self.asked.append(int(t))
        a = self.alpha_bars[t]
        variance = a * self.std**2 + 1 - a
        away = z[..., None] - a.sqrt() * self.means  # (..., 2)
        weight = (-(away**2) / (2 * variance)).softmax(-1)
        return Eps((1 - a).sqrt() / variance * (weight * away).sum(-1))


def data(rows=8, std=0.3):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, 4, 4, 4, generator=generator, dtype=torch.float64)
    side = torch.randint(0, 2, noise.shape, generator=generator)
    return Mixture.means[side] + std * noise


CONTEXT = torch.zeros(1, 1, 1)


def round_trip_error(variant, steps=50):
    z_0, schedule = data(), Schedule(steps, variant)
    z_T = ddim.invert(Mixture(), z_0, CONTEXT, schedule)[-1]
    back = ddim.sample(Mixture(), z_T, CONTEXT, schedule)[-1]
    return (back - z_0).square().mean().sqrt().item()


def test_round_trip_of_the_oracle():
    errors = {variant: round_trip_error(variant) for variant in ddim.VARIANTS}
    assert errors["restored"] < 0.04 and errors["even"] < 0.04
    assert errors["omitted"] > 1.5 * errors["dragdiffusion"]  # latent and label a level apart are what costs


def test_round_trip_error_falls_with_the_number_of_steps():
    errors = [round_trip_error("restored", steps) for steps in (10, 50, 250)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_inverted_noise_is_standard_normal():
    z_T = ddim.invert(Mixture(), data(64), CONTEXT, Schedule(200, "even"))[-1]
    assert abs(z_T.mean().item()) < 0.05 and abs(z_T.std().item() - 1) < 0.05


def test_samples_follow_the_mixture():
    z_T = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z_0 = ddim.sample(Mixture(), z_T, CONTEXT, Schedule(200, "even"))[-1]
    nearest = (z_0[..., None] - Mixture.means).abs().argmin(-1)
    assert abs(nearest.double().mean().item() - 0.5) < 0.05
    assert abs((z_0 - Mixture.means[nearest]).std().item() - 0.3) < 0.02


def test_fixed_point_inversion_is_the_inverse_of_sampling():
    net, z_0, schedule = Mixture(std=0.7), data(std=0.7), Schedule(50, "restored")
    found = ddim.invert_fixed_point(net, z_0, CONTEXT, schedule, iterations=50, tolerance=1e-10)
    back = ddim.sample(net, found.latents[-1], CONTEXT, schedule)[-1]
    assert found.converged and found.residuals.shape == (50,)
    assert (back - z_0).abs().max() < 1e-7


def test_fixed_point_inversion_says_where_it_did_not_converge():
    # Between two narrow modes ε is so steep near the clean end that the iteration is no contraction there.
    found = ddim.invert_fixed_point(Mixture(), data(), CONTEXT, Schedule(50), iterations=50, tolerance=1e-8)
    assert not found.converged and (found.residuals >= 1e-8).nonzero().flatten().tolist() == [1]


def test_timesteps_and_clean_end_of_each_variant():
    training = ddim.training_alpha_bars().float()
    expected = {
        "restored": (1, 981, 1.0),
        "even": (19, 999, 1.0),
        "dragdiffusion": (1, 981, training[0]),
        "masactrl": (0, 980, training[0]),
        "omitted": (1, 981, training[0]),
    }
    assert set(expected) == set(get_args(Variant))
    for variant in get_args(Variant):
        first, last, clean = expected[variant]
        schedule = Schedule(50, variant)
        assert schedule.timesteps.tolist() == list(range(first, last + 1, 20))
        assert schedule.alpha_bars.shape == (51,) and schedule.alpha_bars[0] == clean
        assert torch.equal(schedule.alpha_bars[1:], training[schedule.timesteps])


def test_which_timesteps_each_direction_asks_for():
    z_0 = data(1)
    expected: dict[Variant, list[int]] = {"restored": [1, 101, 201, 301, 401], "omitted": [101, 201, 301, 401]}
    for variant, up in expected.items():
        schedule, net = Schedule(10, variant), Mixture()
        zs = ddim.invert(net, z_0, CONTEXT, schedule, steps=5)
        assert net.asked == up and zs.shape == (6, *z_0.shape)
        assert torch.equal(zs[0], z_0) and torch.equal(zs[1], z_0) == (variant == "omitted")
        net.asked.clear()
        ddim.sample(net, zs[-1], CONTEXT, schedule, start=5)
        assert net.asked == [401, 301, 201, 101, 1]


def test_any_level_to_any_level():
    z, schedule = data(1), Schedule(20)
    whole = ddim.sample(Mixture(), z, CONTEXT, schedule)
    upper = ddim.sample(Mixture(), z, CONTEXT, schedule, stop=7)
    lower = ddim.sample(Mixture(), upper[-1], CONTEXT, schedule, start=7)
    assert len(upper) == 14 and len(lower) == 8
    assert torch.equal(torch.cat([upper, lower[1:]]), whole)
    assert torch.equal(ddim.sample(Mixture(), z, CONTEXT, schedule, start=0), z[None])


class Conditional:
    """ε is the context's only value, plus z: what guidance makes of it can be worked out by hand."""

    def __call__(self, z, t, context, *, attention=None):
        return Eps(z + context[:, :1, :1, None])


def test_guidance_by_hand():
    z, context, uncond = torch.ones(2, 1, 1, 1), torch.tensor([[[3.0]], [[5.0]]]), torch.tensor([[[1.0]]])
    t = torch.tensor(1)
    guided = Guided(Conditional(), context, uncond)
    assert guided(z, t).eps.flatten().tolist() == [4, 6]
    assert guided._replace(scale=2.0)(z, t).eps.flatten().tolist() == [6, 10]
    assert guided._replace(scale=(1.0, 2.0))(z, t).eps.flatten().tolist() == [4, 10]
    with pytest.raises(ValueError, match="needs `uncond`"):
        guided._replace(uncond=None, scale=2.0)(z, t)
    with pytest.raises(ValueError, match="each of the 2 rows, came 3"):
        guided._replace(scale=(1.0, 2.0, 3.0))(z, t)


def controlled(**changes):
    case = golden_cases.case("control_plain")
    z_source, z_target = (case.input(name, 1, 4, 8, 8) for name in ("a", "b"))
    z_target = changes.pop("z_target", z_target)
    text = case.input("text", 2, 77, golden_cases.CONTEXT_DIM)
    arguments = {"start": 3, "control_step": 0, **changes}
    return ddim.sample_controlled(
        golden_cases.golden_unet(), z_source, z_target, text, Schedule(10), **arguments
    )  # fmt: skip


def test_control_begins_at_its_step_and_leaves_the_source_alone():
    never, late, early = (controlled(control_step=step) for step in (None, 2, 0))
    assert torch.equal(never[:3], late[:3]) and not torch.equal(never[3, 1], late[3, 1])
    assert not torch.equal(early[1, 1], late[1, 1])
    assert torch.equal(never[:, 0], early[:, 0])


def test_blending_keeps_the_source_outside_of_the_mask():
    may_move = torch.zeros(8, 8)
    may_move[:, :4] = 1
    blended, free = controlled(may_move=may_move), controlled()
    assert torch.equal(blended[1:, 0, :, :, 4:], blended[1:, 1, :, :, 4:])
    # To rounding: where a tensor lies in memory may decide how the CPU's kernels add up.
    torch.testing.assert_close(blended[1, 1, :, :, :4], free[1, 1, :, :, :4])


GUIDED = {"uncond": torch.full((1, 77, golden_cases.CONTEXT_DIM), 0.1)}


@pytest.mark.parametrize(
    ("source", "target", "changes"),
    [
        (1.0, 1.0, {}),
        (1.0, 1.0, {"control_step": 1, "control_blocks": (3, 12, 14)}),
        (1.0, 1.0, {"start": 10, "stop": 7}),
        (1.0, 1.0, {"may_move": torch.eye(8)}),
        (1.0, 3.0, GUIDED),
        (2.0, 3.0, {**GUIDED, "control_step": 1, "may_move": torch.eye(8)}),
        (2.0, 1.0, GUIDED),
    ],
)
def test_replayed_is_the_target_of_the_side_by_side_pass(source, target, changes):
    """Recorded beside one target and taken up by another: float32, so equal but for the rounding of another batch."""
    kept: dict[int, KVByBlock] = {}
    case = golden_cases.case("control_plain")
    first = controlled(guidance=(source, target), record=kept.__setitem__, **changes)
    start, stop = changes.get("start", 3), changes.get("stop", 0)
    assert sorted(kept) == list(range(stop + 1, start + 1 - changes.get("control_step", 0)))
    other = case.input("another", 1, 4, 8, 8)
    expected = controlled(z_target=other, guidance=(source, target), **changes)
    net = Rows(golden_cases.golden_unet())
    text = case.input("text", 2, 77, golden_cases.CONTEXT_DIM)[1:]
    latents = dict(zip(range(start, stop - 1, -1), first[:, :1], strict=True))
    came = sample_replayed(net, other, text, kept, latents, guidance=target, **{"start": start, **changes})
    assert torch.equal(first[:, 0], expected[:, 0]) and not torch.equal(first[-1, 1], expected[-1, 1])
    assert came.shape == (start - stop + 1, 1, 4, 8, 8)
    assert golden_cases.relative(came[:, 0], expected[:, 1]) < 1e-5
    assert net.rows == [1 if target == 1 else 2] * (start - stop)


def sample_replayed(net, z, text, kept, latents=None, start=3, stop=0, guidance=1.0, **changes):
    """The target's row alone, on K/V that `kept` has by level."""
    may_move, uncond = changes.pop("may_move", None), changes.pop("uncond", None)
    earlier = EarlierPass("recorded", kept.__getitem__, latents or {}, may_move)
    config = EditConfig(steps=start, **{"control_step": 0, **changes})
    levels = ddim.levels_between(Schedule(10), start, stop)
    guided = Guided(net, text, uncond, guidance)
    return source_kv.replayed(guided, z, Schedule(10), levels, earlier, config)


class Rows:
    """A network, and how many rows each of its passes had."""

    def __init__(self, net):
        self.net, self.rows = net, []

    def __call__(self, z, *rest, **named):
        self.rows.append(len(z))
        return self.net(z, *rest, **named)


def test_recording_changes_no_bit():
    assert torch.equal(controlled(record=lambda level, kv: None), controlled())


def recorded(function, z, **changes):
    """Return what the function gave, and the key of block12 by level that `record` was told."""
    kept: dict[int, KVByBlock] = {}
    text = golden_cases.case("control_plain").input("text", 1, 77, golden_cases.CONTEXT_DIM)
    came = function(
        *(golden_cases.golden_unet(), z, text, Schedule(10)),
        record=kept.__setitem__,
        record_blocks=(12,),
        **changes,
    )
    assert all(set(kv) == {12} for kv in kept.values())
    return came, {level: kv[12].key for level, kv in kept.items()}


def key_of(z, level):
    text = golden_cases.case("control_plain").input("text", 1, 77, golden_cases.CONTEXT_DIM)
    out = golden_cases.golden_unet()(z, Schedule(10).timesteps[level - 1], text, taps=("block12.kv",))
    return out.taps["block12.kv"].key


def test_sampling_and_inversion_record_their_own_passes():
    z = golden_cases.case("control_plain").input("a", 1, 4, 8, 8)
    zs, keys = recorded(ddim.sample, z, start=3)
    assert sorted(keys) == [1, 2, 3]
    assert all(golden_cases.relative(keys[level], key_of(zs[3 - level], level)) < 1e-5 for level in keys)
    # Inversion comes to z_k by the timestep of z_k, from z_{k-1}.
    zs, keys = recorded(ddim.invert, z, steps=3)
    assert sorted(keys) == [1, 2, 3]
    assert all(golden_cases.relative(keys[level], key_of(zs[level - 1], level)) < 1e-5 for level in keys)
    # With fixed points the last pass tells, here the one from plain inversion's z_1.
    _, again = recorded(ddim.invert_fixed_point, z, steps=1, iterations=1, tolerance=0.0)
    assert golden_cases.relative(again[1], key_of(zs[1], 1)) < 1e-5
    # With guidance there are two rows, the unconditional one first.
    _, keys = recorded(ddim.sample, z, start=1, guidance=2.0, **GUIDED)
    assert keys[1].shape[0] == 2 and golden_cases.relative(keys[1][1:], key_of(z, 1)) < 1e-5
    assert golden_cases.relative(keys[1][:1], key_of(z, 1)) > 1e-3


def replayed(kept, **changes):
    case = golden_cases.case("control_plain")
    z, text = case.input("b", 1, 4, 8, 8), case.input("text", 1, 77, golden_cases.CONTEXT_DIM)
    return sample_replayed(golden_cases.golden_unet(), z, text, kept, **changes)


def test_what_was_not_recorded_is_refused():
    kept: dict[int, KVByBlock] = {}
    controlled(record=kept.__setitem__, control_step=1, control_blocks=(12, 13))
    replayed(kept, control_step=1, control_blocks=(13,))
    with pytest.raises(ValueError, match=r"level 3: the source's K/V of blocks \[12\] were not all recorded"):
        replayed(kept, control_blocks=(12,))
    with pytest.raises(ValueError, match=r"level 2: the source's K/V of blocks \[13, 14\] were not all recorded"):
        replayed(kept, control_step=1, control_blocks=(13, 14))
    with pytest.raises(ValueError, match="recorded without guidance, and the edit has it"):
        replayed(kept, control_step=1, control_blocks=(13,), guidance=2.0, **GUIDED)
    with pytest.raises(ValueError, match="for one latent at a time, came 2"):
        recorded(ddim.sample, torch.zeros(2, 4, 8, 8), start=1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Schedule(50, "even-steven"), "unknown schedule variant 'even-steven'"),  # type: ignore[arg-type]
        (lambda: Schedule(0), "steps must be a whole number from 1 to 999, came 0"),
        (lambda: ddim.invert(Mixture(), data(1), CONTEXT, Schedule(5), steps=6), "from 0 to T = 5, came 6"),
        (lambda: ddim.sample(Mixture(), data(1), CONTEXT, Schedule(5), start=2, stop=3), "stop 3 lies above start 2"),
        (lambda: controlled(control_blocks=(17,)), "no transformer block 17"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(ValueError, match=says):
        call()
