"""What is inside an edit, against what it is by its definition."""

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from tiny_loras import drawn, tiny_unet

import dragsa
from dragsa import looking, tracking
from dragsa.ddim import Guided
from dragsa.hooks import AttentionHook, Maps, MutualSelfAttention


def test_the_predicted_latent_is_the_one_that_was_noised() -> None:
    schedule, z_0, noise = dragsa.Schedule(10), drawn(1, 1, 4, 8, 8), drawn(2, 1, 4, 8, 8)
    asked = []

    def knows(z: torch.Tensor, t: torch.Tensor, context: torch.Tensor, **_: Any) -> Any:
        asked.append(int(t))
        return SimpleNamespace(eps=noise, taps={})

    guided = Guided(knows, drawn(3, 1, 5, 48))
    for level in (1, 4, 10):
        alpha_bar = schedule.alpha_bars[level]
        z = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
        torch.testing.assert_close(looking.predicted(guided, z, schedule, level), z_0, rtol=1e-4, atol=1e-4)
    assert asked == schedule.timesteps[[0, 3, 9]].tolist()
    assert looking.predicted(guided, z_0, schedule, 0) is z_0
    with pytest.raises(ValueError, match="level"):
        looking.predicted(guided, z_0, schedule, 11)


def test_a_trajectory_has_a_picture_of_each_level_and_of_what_it_is_taken_for(tiny_folder: Any) -> None:
    sd, schedule, latents = dragsa.load(tiny_folder), dragsa.Schedule(4), drawn(1, 5, 1, 4, 8, 8)
    guided = Guided(sd.unet, sd.embed(["a red dot"]))
    moments = looking.trajectory(sd, guided, latents, schedule, [4, 0])
    assert [moment.level for moment in moments] == [4, 0]
    assert moments[1].latent.tobytes() == moments[1].predicted.tobytes() and moments[0].latent.size == (64, 64)
    assert moments[0].latent.tobytes() != moments[0].predicted.tobytes()
    frames = looking.frames(sd, guided, [latents[4], latents[3]], schedule, 4)
    assert frames[0].tobytes() == moments[0].predicted.tobytes() != frames[1].tobytes()


def test_the_best_match_is_trackings_and_the_second_stands_apart() -> None:
    features, grid = drawn(1, 1, 6, 8, 9), (16, 18)
    for seed, radius in ((2, 3), (3, 5), (4, 1)):
        reference, handle = drawn(seed, 6), torch.tensor([[7.0, 5.0 + seed]])
        expected = tracking.track(features, reference[None], handle, radius, grid)
        found = looking.distance_map(features, reference, handle[0].tolist(), radius, grid)
        assert [*found.best] == expected.points[0].tolist() and found.distances.shape == grid
        at = found.distances[found.best[1], found.best[0]]
        torch.testing.assert_close(at, expected.distance[0])
        if radius == 1:  # all of its window is near
            assert found.second is None or max(abs(a - b) for a, b in zip(found.best, found.second, strict=True)) > 1
            continue
        assert found.second is not None
        (bx, by), (sx, sy) = found.best, found.second
        assert (bx - sx) ** 2 + (by - sy) ** 2 > 4 and found.distances[sy, sx] >= at
        assert max(abs(sx - 7), abs(sy - 5 - seed)) <= radius


def test_attention_from_a_point_under_control_is_the_sources() -> None:
    unet, context, t = tiny_unet(), drawn(1, 2, 9, 48), torch.tensor(401)
    guided, pair = Guided(unet, context), drawn(2, 2, 4, 8, 8)
    control: AttentionHook = MutualSelfAttention((12,))
    found = looking.attention_from(guided, pair, t, 12, (20.0, 9.0), control)
    assert found.own.shape == found.controlled.shape == (4, 4)
    torch.testing.assert_close(found.own.sum(), torch.tensor(1.0))
    torch.testing.assert_close(found.controlled.sum(), torch.tensor(1.0))
    alone = Maps(kind="self", blocks=(12,))
    unet(pair[1:], t, context[1:], attention=alone)
    torch.testing.assert_close(found.own, alone.found[0].weights[0, 1, 2].view(4, 4))  # (20, 9) of 32 × 32 cells
    for x, same_cell in ((15.6, True), (23.4, True), (15.4, False), (23.6, False)):
        near = looking.attention_from(guided, pair, t, 12, (x, 9.0), control)
        assert torch.equal(near.own, found.own) is same_cell
    # Another source changes where it looks under control, and not where it looks without.
    other = looking.attention_from(guided, torch.cat([pair[:1] + 1, pair[1:]]), t, 12, (20.0, 9.0), control)
    torch.testing.assert_close(other.own, found.own)
    assert (other.controlled - found.controlled).abs().max() > 1e-4
    # The same picture twice, under the same prompt: both are one.
    same = looking.attention_from(
        guided._replace(context=context[:1]), pair[:1].repeat(2, 1, 1, 1), t, 12, (-0.5, 31.5), control
    )
    torch.testing.assert_close(same.own, same.controlled)
    assert tiny_models.UNET.context_dim == 48
