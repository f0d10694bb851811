"""Plug-and-Play by its definition in diffusers' UNet: the source's q and k, and what a ResBlock's last layer makes."""

import gallery_peers as peers
import pytest
from gallery.plug_and_play import BLOCKS, RESIDUAL, PlugAndPlay
from torch.nn import functional as F

from dragsa import hooks
from dragsa.model.blocks import TRANSFORMERS


def from_source(x):
    return x[::2].repeat_interleave(2, dim=0)


@pytest.mark.parametrize(("maps", "features"), [(True, True), (True, False), (False, True)])
def test_two_pairs(maps, features):
    unet, z = peers.theirs(), peers.inputs(4)
    plain = unet(*z).sample

    def source_maps(q, k, v):
        return F.scaled_dot_product_attention(from_source(q), from_source(k), v)

    if maps:
        names = [f"{TRANSFORMERS[block].diffusers}.transformer_blocks.0.attn1.processor" for block in BLOCKS]
        assert set(names) < set(unet.attn_processors)
        unet.set_attn_processor(unet.attn_processors | dict.fromkeys(names, peers.processor(source_maps)))
    if features:
        unet.up_blocks[1].resnets[1].conv2.register_forward_hook(lambda module, given, out: from_source(out))
    shortcut = peers.ours().regions[RESIDUAL].get_submodule("conv_shortcut")
    hook = hooks.Named(PlugAndPlay(shortcut, maps, features), ("source uncond", "target uncond", "source", "target"))
    peers.agrees(peers.ours()(*z, attention=hook).eps, unet(*z).sample, plain)


def test_rows_that_are_no_pairs_are_refused():
    hook = hooks.Named(PlugAndPlay(peers.ours().conv_in, features=False), ("latent",))
    with pytest.raises(
        ValueError, match=r"block09 self-attention: expected pairs of rows \(source, target\), came rows"
    ):
        peers.ours()(*peers.inputs(1), attention=hook)
