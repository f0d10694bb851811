"""Cases are measured in turns."""

from __future__ import annotations

from dragsa.speed.laps import Lap, in_turns


def test_cases_are_measured_in_turns_and_the_first_does_not_count():
    seen = []

    def case(name):
        for n in range(10):
            seen.append(name)
            yield Lap({"a": float(n), "b": 1.0}, loss=float(n))

    one, two = in_turns("update", 64, {"one": case("one"), "two": case("two")}, 3, lambda text: None)
    assert seen == ["one", "two"] * 4
    assert (one.part, one.case, one.size, two.case) == ("update", "one", 64, "two")
    assert one.values == two.values == (2.0, 3.0, 4.0) and one.median == 3.0
    assert one.parts == {"a": (1.0, 2.0, 3.0), "b": (1.0, 1.0, 1.0)} and one.losses == (1.0, 2.0, 3.0)
