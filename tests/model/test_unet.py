"""The UNet against stored numbers, its taps and early end, odd latent sizes, and what it refuses."""

import golden_cases
import pytest
import torch

from dragsa.config import UNetConfig
from dragsa.model import blocks, unet
from dragsa.model.blocks import block_name


@pytest.mark.parametrize("case", golden_cases.cases("unet"), ids=lambda case: case.tag)
def test_golden(case):
    batch = case.settings["batch"]
    z, text = case.input("z", batch, 4, *case.latent_hw), case.input("text", batch, 77, golden_cases.CONTEXT_DIM)
    blocks = [block_name(n) for n in range(1, 17)]
    stages = ["mid", "decoder1", "decoder2", "decoder3", "decoder4"]
    out = golden_cases.golden_unet()(z, case.settings["timestep"], text, taps=(*blocks, *stages))
    assert golden_cases.relative(out.eps, case.outputs["eps"]) < 2e-4
    for n, name in enumerate(blocks):
        assert golden_cases.relative(out.taps[name], case.outputs[f"transformer_{n:02d}"]) < 2e-4, name
    for n, name in enumerate(stages):
        assert golden_cases.relative(out.taps[name], case.outputs[f"decoder_stage_{n}"]) < 2e-4, name


def inputs(height=16, width=16, batch=1):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 4, height, width, generator=generator)
    return z, torch.randn(batch, 77, golden_cases.CONTEXT_DIM, generator=generator)


def test_every_tap_has_the_documented_grid_and_channels():
    z, text = inputs(16, 24)
    taps = golden_cases.golden_unet()(z, 401, text, taps=blocks.TAPS).taps
    assert set(taps) == set(blocks.TAPS)
    assert list(taps)[:6] == ["block01.kv", "block01", "block02.kv", "block02", "encoder1", "block03.kv"]
    widths, grids = (32, 64, 96, 96), ((16, 24), (8, 12), (4, 6), (2, 3))
    levels = [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    for n, level in enumerate(levels, start=1):
        assert taps[block_name(n)].shape == (1, widths[level], *grids[level])
        tokens = grids[level][0] * grids[level][1]
        for part in taps[f"{block_name(n)}.kv"]:
            assert part.shape == (1, 8, tokens, widths[level] // 8)
    assert taps["encoder1"].shape == (1, 32, 8, 12) and taps["encoder4"].shape == (1, 96, 2, 3)
    assert taps["decoder3"].shape == (1, 64, 16, 24) and taps["decoder4"].shape == (1, 32, 16, 24)


def test_early_end_computes_the_same_and_nothing_after_it():
    net, (z, text) = golden_cases.golden_unet(), inputs()
    whole = net(z, 401, text, taps=("block11.kv", "block14"))
    ran = []
    handles = [net.up_blocks[3].resnets[n].register_forward_hook(lambda *_, n=n: ran.append(n)) for n in range(3)]
    try:
        early = net(z, 401, text, taps=("block11.kv", "block14"), until="block14")
    finally:
        for handle in handles:
            handle.remove()
    assert early.eps is None and ran == [0]
    assert torch.equal(early.taps["block14"], whole.taps["block14"])
    assert torch.equal(early.taps["block11.kv"].value, whole.taps["block11.kv"].value)


def test_taps_stay_in_the_graph():
    z, text = inputs()
    out = golden_cases.golden_unet()(z.requires_grad_(), 401, text, taps=("block14",), until="block14")
    (gradient,) = torch.autograd.grad(out.taps["block14"].square().sum(), z)
    assert gradient.abs().max() > 0


def test_timestep_may_be_a_number_or_one_for_each_row():
    net, (z, text) = golden_cases.golden_unet(), inputs(batch=2)
    mixed = net(z, torch.tensor([21, 401]), text).eps
    for row, t in enumerate((21, 401)):
        alone = net(z[row : row + 1], t, text[row : row + 1]).eps
        assert golden_cases.relative(mixed[row : row + 1], alone) < 1e-5


@pytest.mark.parametrize("size", [(9, 13), (5, 20), (12, 7), (2, 3)])
def test_any_latent_size(size):
    z, text = inputs(*size)
    assert golden_cases.golden_unet()(z, 401, text).eps.shape == z.shape


def test_bfloat16_network_keeps_the_latents_type():
    net = unet.UNet(UNetConfig((32, 32, 32, 32), (2, 2, 2, 2), 48, 8)).to(torch.bfloat16)
    z, text = inputs()
    out = net(z, 401, text, taps=("block14",))
    assert out.eps.dtype == torch.float32 and out.taps["block14"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"taps": ("block17",)}, "unknown tap 'block17'"),
        ({"until": "block11.kv"}, "unknown end 'block11.kv'"),
        ({"taps": ("block15",), "until": "block14"}, "'block15' lies behind the pass's end 'block14'"),
        ({"z": torch.zeros(1, 3, 8, 8)}, r"latent must be \(B, 4, h, w\), came \(1, 3, 8, 8\)"),
        ({"context": torch.zeros(1, 77, 768)}, r"context must be \(1, tokens, 48\), came \(1, 77, 768\)"),
        ({"context": torch.zeros(2, 77, 48)}, r"context must be \(1, tokens, 48\), came \(2, 77, 48\)"),
    ],
)
def test_refusals(arguments, says):
    z, text = inputs(8, 8)
    with pytest.raises(ValueError, match=says):
        golden_cases.golden_unet()(**{"z": z, "t": 401, "context": text, **arguments})
