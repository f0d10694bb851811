"""Means and bootstrap intervals: two ways of weighing, pictures resampled and not handles, order without effect."""

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest

from dragsa.evaluation import tables


def test_handles_and_pictures_weigh_as_they_should():
    found = tables.summarise({"a": [1.0, 2.0, 3.0], "b": [10.0]})
    assert found.per_handle.mean == pytest.approx(4.0) and found.per_picture.mean == pytest.approx(6.0)
    assert (found.pictures, found.handles, found.missing) == (2, 4, 0)


def test_what_is_missing_is_counted_and_left_out():
    found = tables.summarise({"a": [1.0, None, math.nan], "b": [], "c": [math.inf], "d": [3.0]})
    assert found.per_handle.mean == found.per_picture.mean == 2.0
    assert (found.pictures, found.handles, found.missing) == (2, 2, 3)


def test_order_changes_no_bit():
    rng = random.Random(0)
    values = {f"{n:03}": [rng.gauss(0, 1e6) * 10 ** rng.uniform(-9, 3) for _ in range(1 + n % 4)] for n in range(40)}
    shuffled = {name: rng.sample(values[name], len(values[name])) for name in rng.sample(sorted(values), len(values))}
    as_text = [json.dumps(asdict(tables.summarise(one, draws=200))) for one in (values, shuffled)]
    assert as_text[0] == as_text[1]


def test_the_interval_is_that_of_the_mean():
    sample = np.random.default_rng(1).normal(5, 2, 400)
    found = tables.summarise({str(n): [value] for n, value in enumerate(sample)}).per_picture
    half = 1.96 * sample.std() / math.sqrt(len(sample))
    assert found.low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_handles_of_a_picture_are_not_independent():
    sample = np.random.default_rng(2).normal(5, 2, 50)
    once, often = (tables.summarise({str(n): [v] * k for n, v in enumerate(sample)}).per_handle for k in (1, 9))
    assert often.low == pytest.approx(once.low) and often.high == pytest.approx(once.high)


def test_too_little_for_an_interval():
    assert tables.summarise({"a": [4.0, 6.0]}).per_handle == tables.Mean(5.0, None, None)
    assert tables.summarise({}).per_picture == tables.Mean(None, None, None)
    assert [tables.text(tables.Mean(*m)) for m in ((5, None, None), (None,) * 3, (5, 4, 6.25))] == [
        "5.00",
        "–",
        "5.00 (4.00 to 6.25)",
    ]
    with pytest.raises(ValueError, match="draws"):
        tables.summarise({"a": [1.0]}, draws=0)
