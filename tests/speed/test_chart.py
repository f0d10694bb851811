"""The chart's bars are as long as what they show."""

from __future__ import annotations

from typing import Any

from dragsa import speed


def test_the_chart_shows_longer_bars_for_more(planted):
    picture = speed.draw_chart(planted())
    grey = [n for n in range(picture.height) if picture.getpixel((430, n)) == (0xA0, 0xA0, 0xA0)]
    assert grey, "the baseline's bar"
    longer = speed.draw_chart(planted(update_float32=(40.0,)))
    blue = (0x20, 0x60, 0xFF)

    def bars(shown: Any) -> list[int]:
        return [sum(shown.getpixel((x, y)) == blue for x in range(420, 1200)) for y in range(shown.height)]

    assert max(bars(longer)) > 1.4 * max(bars(picture)[: picture.height // 3])
