"""The operations of an update are counted."""

from __future__ import annotations

from dragsa.speed.laps import Flops
from dragsa.speed.machine import Roof, count_flops
from dragsa.speed.problems import WIDTHS


def test_what_an_update_computes():
    """More with a mask, and by the baseline, which computes the whole map; attention is a part of it."""
    plain, masked, baseline = (
        count_flops(WIDTHS["tiny"][0], 64, masked, baseline)
        for masked, baseline in ((False, False), (True, False), (False, True))
    )
    assert plain.forward < baseline.forward == masked.forward
    assert plain.backward < baseline.backward < masked.backward
    assert 0 < plain.attention < 0.5 * plain.total
    # Two products forward; on the way back four, or two where K and V are the text's, 77 tokens.
    assert plain.attention_forward < plain.attention_backward < 2 * plain.attention_forward
    blocks = (5, 64, 32), (5, 16, 32), (5, 4, 64), (1, 1, 64)  # how many, of how many cells, how wide
    of_self = sum(number * cells**2 * width for number, cells, width in blocks)
    of_text = sum(number * cells * 77 * width for number, cells, width in blocks)
    assert masked.attention_forward == 4 * (of_self + of_text)
    assert masked.attention_backward == 8 * of_self + 4 * of_text
    rates = Roof(matmul=2.0, convolution=4.0, attention=1.0)
    assert rates.least(Flops(70, 50, 8, 12)) == 100 / 4 + 20
