"""IP-Adapter: a file's layers in diffusers' own loader and processors."""

import gallery_peers as peers
import torch
from gallery.ip_adapter import IPAdapter, picture_kv

from dragsa.model.blocks import DIFFUSERS_ORDER, block_name


def test_scale_of_0_6():
    unet, (z, t, context) = peers.theirs(), peers.inputs(2)
    plain, generator, width = unet(z, t, context).sample, torch.Generator().manual_seed(6), context.shape[2]
    layers = {}
    for number, (block, kind) in enumerate(DIFFUSERS_ORDER):
        if kind == "cross":
            inner = peers.ours().regions[block_name(block)].get_parameter("proj_in.weight").shape[0]
            for one in "kv":
                layers[f"{number}.to_{one}_ip.weight"] = torch.randn(inner, width, generator=generator) / width**0.5
    projection = {
        "proj.weight": torch.randn(4 * width, 32, generator=generator),
        "proj.bias": torch.randn(4 * width, generator=generator),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    picture = [torch.randn(2, 1, 32, generator=generator)]
    with torch.no_grad():
        expected = unet(z, t, context, added_cond_kwargs={"image_embeds": picture}).sample
        tokens = unet.encoder_hid_proj(picture)[0].flatten(1, 2)  # (2, 4, width)
    hook = IPAdapter(picture_kv(peers.ours(), layers, tokens), 0.6)
    peers.agrees(peers.ours()(z, t, context, attention=hook).eps, expected, plain)
