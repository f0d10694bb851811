"""ToMe: half of the tokens against the authors' package, which merges by the keys here as well."""

import gallery_peers as peers
import pytest
from gallery.tome import ToMe
from torch.nn import functional as F

merge = pytest.importorskip("tomesd.merge")


@pytest.mark.parametrize("size", [(16, 16), (10, 14), (9, 14)], ids=str)
def test_half_of_the_tokens(size):
    unet, z = peers.theirs(), peers.inputs(2, *size)
    plain = unet(*z).sample

    def merged(q, k, v):
        def tokens(x):
            return x.transpose(1, 2).flatten(2)

        h, w = size
        together, apart = merge.bipartite_soft_matching_random2d(tokens(k), w, h, 2, 2, h * w // 2, no_rand=True)
        heads = [together(tokens(x)).unflatten(2, (q.shape[1], -1)).transpose(1, 2) for x in (q, k, v)]
        out = apart(tokens(F.scaled_dot_product_attention(*heads)))
        return out.unflatten(2, (q.shape[1], -1)).transpose(1, 2)

    ends = ("down_blocks.0", "up_blocks.3")
    names = [name for name in unet.attn_processors if "attn1" in name and name.startswith(ends)]
    assert len(names) == 5
    unet.set_attn_processor(unet.attn_processors | dict.fromkeys(names, peers.processor(merged)))
    peers.agrees(peers.ours()(*z, attention=ToMe(0.5)).eps, unet(*z).sample, plain)
