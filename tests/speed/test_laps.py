"""Cases are measured in turns."""

from __future__ import annotations

from dragsa.speed.laps import Lap, interleaved, measured


def test_cases_are_measured_in_turns_and_the_first_does_not_count():
    seen = []

    def case(name):
        for n in range(10):
            seen.append(name)
            yield Lap({"a": float(n), "b": 1.0}, loss=float(n))

    laps = interleaved({"one": case("one"), "two": case("two")}, 3, lambda text: None, "")
    assert seen == ["one", "two"] * 4
    assert [lap.total for lap in laps["two"]] == [2.0, 3.0, 4.0]
    row = measured("update", "one", 64, laps["one"])
    assert row.values == (2.0, 3.0, 4.0) and row.median == 3.0
    assert row.parts == {"a": (1.0, 2.0, 3.0), "b": (1.0, 1.0, 1.0)} and row.losses == (1.0, 2.0, 3.0)
