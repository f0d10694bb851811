"""ControlNet: diffusers' ControlNet on its UNet, and its residuals on ours."""

import gallery_peers as peers
import pytest
import torch
from gallery.controlnet import controlled


@pytest.mark.parametrize("size", [(16, 16), (20, 28)], ids=str)
def test_residuals_of_a_controlnet(size):
    from diffusers import ControlNetModel

    torch.manual_seed(7)
    unet, (z, t, context) = peers.theirs(), peers.inputs(2, *size)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    for name, value in net.named_parameters():
        if "controlnet_" in name:  # the convolutions that are zero before training
            value.data = torch.randn_like(value) * 0.1
    hint = torch.rand(2, 3, 2 * size[0], 2 * size[1])
    with torch.no_grad():
        down, mid = net(z, t, context, hint, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        plain, expected = (unet(z, t, context, **more).sample for more in ({}, added))
    peers.agrees(peers.ours()(z, t, context, attention=controlled(down, mid)).eps, expected, plain)
