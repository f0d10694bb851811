"""FreeU at 24×16 against diffusers' own."""

import gallery_peers as peers
import pytest
from gallery.freeu import freeu


@pytest.mark.parametrize("size", [(24, 16), (20, 28)], ids=str)
def test_the_published_factors(size):
    unet, z = peers.theirs(), peers.inputs(2, *size)
    plain = unet(*z).sample
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    peers.agrees(peers.ours()(*z, attention=freeu((0.9, 0.2), (1.5, 1.6))).eps, unet(*z).sample, plain)
