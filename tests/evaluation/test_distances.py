"""The published metrics: against the dense way of computing them, by hand, and on scenes whose truth is known."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.nn import functional as F

import dragsa
from dragsa.evaluation import cases, distances, scenes
from dragsa.evaluation.distances import Sample
from dragsa.pictures import images

SMALL = Path(__file__).parents[2] / "weights" / "small"


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return dragsa.load(tiny_folder)


def random_features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("grid, size", [((6, 5), (29, 37)), ((8, 8), (64, 64)), ((1, 4), (9, 5)), ((9, 7), (4, 6))])
def test_similarities_are_those_of_the_whole_map(grid, size):
    features, references = random_features(1, 7, *grid), random_features(3, 7, seed=1)
    dense = F.interpolate(features, size[::-1], mode="bilinear")  # (1, C, H, W)
    expected = F.cosine_similarity(references[:, :, None, None], dense, dim=1)
    torch.testing.assert_close(distances.similarities(features, references, size), expected)


def test_the_first_maximum_in_reading_order():
    similarity = torch.zeros(2, 3, 4)
    similarity[0, 1, 3] = similarity[0, 2, 0] = 1
    where = torch.ones(3, 4, dtype=torch.bool)
    where[0] = where[1, 0] = False
    assert distances.first_maximum(similarity).tolist() == [[3, 1], [0, 0]]
    assert distances.first_maximum(similarity, where).tolist() == [[3, 1], [1, 1]]


def test_discs_about_the_drag():
    handles, targets = torch.tensor([[10.0, 10.0], [10.0, 10.0]]), torch.tensor([[30.0, 10.0], [12.0, 10.0]])
    near = distances.near_the_drag(handles, targets, (60, 40))
    radius = 20 / math.sqrt(2)  # 14.14
    assert near.shape == (2, 40, 60)
    assert near[0, 10, 44] and not near[0, 10, 45] and near[0, 24, 10] and not near[0, 25, 10]
    assert near[0, 10, 20] and not near[0, 21, 20] and radius > math.hypot(10, 9.9)
    assert near[1, 10, 16] and not near[1, 10, 17]  # at least 5 px, and 5 is outside


def marked(size, marks):
    """Features of the picture's own resolution: one direction everywhere, and others at marked pixels (x, y)."""
    features = torch.zeros(1, 4, size[1], size[0])
    features[:, 0] = 1
    for (x, y), direction in marks.items():
        features[0, :, y, x] = torch.tensor(direction)
    return features


def test_three_distances_of_one_name():
    size, handle, target = (40, 20), (10, 10), (16, 10)
    wanted, alike, faint = [0.0, 1, 0, 0], [0.0, 1, 0.1, 0], [0.0, 1, 0.5, 0]
    source = marked(size, {handle: wanted})
    edited = marked(size, {(36, 2): wanted, (17, 14): alike, (15, 12): faint})
    mask = torch.zeros(20, 40)
    mask[11:13, 10:20] = 1
    found = distances.distances(source, edited, [(handle, target)], size, mask)
    assert found.found_whole == ((36, 2),) and found.whole_px[0] == pytest.approx(math.hypot(20, 8))
    assert found.masked_px is not None
    assert found.found_masked == ((15, 12),) and found.masked_px[0] == pytest.approx(math.hypot(1, 2))
    assert found.found_near == ((17, 14),) and found.normalised[0] == pytest.approx(math.hypot(1 / 40, 4 / 20))
    for none in (None, torch.zeros(20, 40)):
        assert distances.distances(source, edited, [(handle, target)], size, none).masked_px is None


def test_every_handle_is_found_where_nothing_moved():
    features, size = random_features(1, 16, 8, 8), (64, 64)
    handles = [(13, 20), (33.0, 41.0), (50, 11)]
    found = distances.distances(features, features, [(h, (30, 30)) for h in handles], size, torch.ones(64, 64))
    assert found.found_masked is not None
    assert [*found.found_whole] == [*found.found_masked] == handles
    assert list(found.whole_px) == pytest.approx([math.dist(h, (30, 30)) for h in handles])


def test_features_are_the_mean_over_noise_at_that_timestep(tiny):
    picture = images.to_picture(torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    found = distances.dift(tiny, picture, "red dot", seed=5, size=80)
    z_0 = tiny.encode(images.to_tensor(picture, images.working_size(90, 70, 80)))
    noise = torch.randn(8, *z_0.shape[1:], generator=torch.Generator().manual_seed(5))
    scheduler: Any = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    context = tiny.embed(["red dot"])
    expected = []
    for draw in noise:
        z = scheduler.add_noise(z_0, draw[None], torch.tensor(261))
        expected.append(tiny.unet(z, 261, context, taps=("decoder2",)).taps["decoder2"])
    torch.testing.assert_close(found, torch.cat(expected).mean(dim=0, keepdim=True), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, distances.dift(tiny, picture, "red dot", seed=6, size=80))
    assert not torch.equal(found, distances.dift(tiny, picture, "", seed=5, size=80))


def test_a_picture_has_its_own_seed():
    names = ("animals/a", "animals/b", "animals/a:edited")
    seeds = {distances.picture_seed(name, base) for name in names for base in (42, 43)}
    assert len(seeds) == 6 and all(0 <= seed < 2**53 for seed in seeds)
    assert distances.picture_seed("animals/a") == 88096455075141


def test_source_and_result_draw_noise_of_their_own(tiny, monkeypatch):
    seen = []

    def dift(sd, picture, prompt, seed, size, tap):
        seen.append((picture.size, prompt, seed))
        return random_features(1, 4, 4, 4)

    monkeypatch.setattr(distances, "dift", dift)
    source, edited = Image.new("RGB", (30, 20)), Image.new("L", (60, 40))
    distances.measure(tiny, Sample("c/s", source, "red", (((3, 4), (5, 6)),), None), edited, 7, 64)
    seeds = [distances.picture_seed(f"c/s:{which}", 7) for which in ("source", "edited")]
    assert seen == [((30, 20), "red", seed) for seed in seeds] and seeds[0] != seeds[1]


def test_what_does_not_fit_is_said():
    features = random_features(1, 4, 4, 4)
    for drags, mask, words in (
        ([], None, "no drags"),
        ([((3, 4), (30, 6))], None, "30,6 lies outside"),
        ([((3, 4), (5, 6))], torch.ones(8, 9), "mask"),
    ):
        with pytest.raises(ValueError, match=words):
            distances.distances(features, features, drags, (20, 16), mask)


def test_a_true_result_is_near_and_no_edit_is_not():
    """On the small model, with features fine enough for its pictures."""
    sd = dragsa.load(SMALL)
    before = scenes.Scene("disc", "red", 0.35, 0.5, 0.36, 0.0, 0.0, "blue", (0.05, 0.05), texture=3)
    after = replace(before, x=0.6)
    start, goal = scenes.keypoints(before), scenes.keypoints(after)
    drags = [(start[name], goal[name]) for name in cases.FIVE]
    source, truth = (images.to_picture(scenes.draw(scene)) for scene in (before, after))
    features = [
        distances.dift(sd, picture, scenes.caption(before), seed, 128, "decoder3")
        for picture, seed in ((source, 1), (source, 2), (truth, 3))
    ]
    everywhere = torch.ones(128, 128)
    idle, right = (distances.distances(features[0], other, drags, source.size, everywhere) for other in features[1:])
    asked = sum(math.dist(*drag) for drag in drags)
    for form, unit in (("whole_px", 1), ("masked_px", 1), ("normalised", 128)):
        assert unit * sum(getattr(idle, form)) == pytest.approx(asked, rel=0.2)
        assert unit * sum(getattr(right, form)) < 0.4 * asked


@pytest.fixture
def with_lpips(monkeypatch):
    def install(module):
        distances._perceptual.cache_clear()
        monkeypatch.setitem(sys.modules, "lpips", module)

    yield install
    distances._perceptual.cache_clear()


def test_image_fidelity_is_one_minus_lpips(with_lpips):
    class LPIPS:
        def __init__(self, net, verbose):
            assert net == "alex"

        def eval(self):
            return self

        def __call__(self, a, b):
            assert a.shape == b.shape == (1, 3, 224, 224)
            return (a - b).abs().mean().reshape(1, 1, 1, 1) / 2

    with_lpips(SimpleNamespace(LPIPS=LPIPS))
    black, white, grey = (Image.new("RGB", (50, 40), (level,) * 3) for level in (0, 255, 51))
    assert distances.fidelity(black, black) == 1 and distances.fidelity(black, white) == 0
    assert distances.fidelity(black, grey.resize((20, 30))) == pytest.approx(0.8)
    assert distances.why_no_fidelity() is None


@pytest.mark.parametrize(
    "error, words",
    [
        (None, r"dragsa\[metrics\]"),
        (RuntimeError("operator torchvision::nms\ndoes not exist"), "lpips cannot be used: operator torchvision::nms"),
        (OSError("no network"), "AlexNet's weights could not be fetched: no network"),
    ],
)
def test_without_lpips_there_is_a_reason(with_lpips, error, words):
    def LPIPS(**_):
        raise error

    with_lpips(None if error is None else SimpleNamespace(LPIPS=LPIPS))
    black = Image.new("RGB", (50, 40))
    assert distances.fidelity(black, black) is None
    assert re.search(words, distances.why_no_fidelity() or "")
