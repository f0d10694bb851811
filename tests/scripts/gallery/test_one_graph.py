"""Every hook of the gallery in a compiled pass: one graph over five steps with new tensors in each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from gallery.controlnet import SKIPS, controlled
from gallery.freeu import freeu
from gallery.ip_adapter import IPAdapter
from gallery.own_control import union
from gallery.pag import Perturbed
from gallery.plug_and_play import PlugAndPlay
from gallery.style_aligned import style_aligned
from gallery.tome import ToMe
from torch import Tensor

from dragsa import hooks
from dragsa.config import UNetConfig
from dragsa.hooks import KV, AttentionHook, Named
from dragsa.model.unet import UNet

PAIRS = "source uncond", "target uncond", "source", "target"


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig((8, 8, 8, 8), (2, 2, 2, 2), 16, 4)).requires_grad_(False)


def traced_once(net: UNet, graphs: Any, hook_at: Callable[[int], AttentionHook], rows: int, **where: Any) -> None:
    run = torch.compile(net, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for step in range(5):
            z, context, t = torch.randn(rows, 4, 8, 8), torch.randn(rows, 5, 16), torch.tensor(981 - 20 * step)
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                came = run(z, t, context, attention=hook_at(step), **where)
            expected, plain = net(z, t, context, attention=hook_at(step), **where), net(z, t, context, **where)
            for one, other, without in zip(
                *((out.eps, *out.taps.values()) for out in (came, expected, plain)), strict=True
            ):
                assert one is None or (
                    torch.allclose(one, other, atol=1e-5) and not torch.allclose(one, without, atol=1e-4)
                )
    assert len(graphs.traced) == 1


def adapted(step: int) -> AttentionHook:
    generator = torch.Generator().manual_seed(step)
    return IPAdapter({n: KV(*torch.randn(2, 1, 2, 3, 4, generator=generator)) for n in range(1, 17)}, 0.6)


IN_ENCODER: dict[str, tuple[Callable[[int], AttentionHook], int]] = {
    "style_aligned": (lambda step: Named(style_aligned, ("style", "a", "b")), 3),
    "ip_adapter": (adapted, 2),
    "tome": (lambda step: ToMe(0.5, (1, 2)), 2),
    "pag": (lambda step: Perturbed((1, 2)), 3),
}


@pytest.mark.parametrize("name", IN_ENCODER)
def test_in_the_encoder(net, graphs, name):
    hook_at, rows = IN_ENCODER[name]
    traced_once(net, graphs, hook_at, rows, taps=("block01",), until="block01")


def test_a_map_that_is_read(net, graphs):
    """The self-attention of SAG, and what heat maps and Attend-and-Excite read: a fresh list each step."""
    run = torch.compile(partial(net, taps=("block01",), until="block01"), fullgraph=True, backend=graphs)
    with torch.no_grad():
        for step in range(5):
            z, context, t = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), torch.tensor(981 - 20 * step)
            for kind in ("self", "cross"):
                seen, expected = hooks.Maps(kind=kind), hooks.Maps(kind=kind)
                with torch._dynamo.config.patch(error_on_recompile=step > 0):
                    run(z, t, context, attention=seen)
                net(z, t, context, attention=expected, taps=("block01",), until="block01")
                assert len(seen.found) == 1
                assert torch.allclose(seen.found[0].weights, expected.found[0].weights, atol=1e-6)
    assert len(graphs.traced) == 2


def residuals(step: int) -> AttentionHook:
    generator = torch.Generator().manual_seed(step)
    down = [torch.randn(1, 8, 1, 1, generator=generator) for _ in SKIPS]
    return Named(controlled(down, torch.randn(1, 8, 1, 1, generator=generator)), PAIRS)


def shared(net: UNet) -> AttentionHook:
    return PlugAndPlay(net.regions["decoder2.res2"].get_submodule("conv_shortcut"))


def test_in_the_decoder_one_within_the_other(net, graphs):
    """Regions (FreeU, ControlNet, Plug-and-Play) and the attention of pairs (Plug-and-Play, the union)."""

    def hook_at(step: int) -> AttentionHook:
        return Named(hooks.compose(freeu(), residuals(step), shared(net), union), PAIRS)

    traced_once(net, graphs, hook_at, 4, taps=("block11",), until="block11")


IN_DECODER: dict[str, Callable[[UNet, int], AttentionHook]] = {
    "freeu": lambda net, step: freeu(),
    "controlnet": lambda net, step: residuals(step),
    "plug_and_play": lambda net, step: Named(shared(net), PAIRS),
    "union": lambda net, step: Named(union, PAIRS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_DECODER)
def test_in_the_decoder(net, graphs, name):
    traced_once(net, graphs, partial(IN_DECODER[name], net), 4, taps=("block11",), until="block11")


def nothing(name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return call(*inputs)


def no_control(site: hooks.Site, q: Tensor, k: Tensor, v: Tensor, attend: hooks.Attend) -> Tensor:
    return attend(q, k, v)


def test_a_hook_that_does_nothing_changes_no_bit(net):
    z, context = torch.randn(2, 4, 9, 12), torch.randn(2, 5, 16)
    plain = net(z, 401, context).eps
    for hook in (no_control, hooks.AtRegions(nothing), hooks.compose(no_control, hooks.AtRegions(nothing), no_control)):
        assert torch.equal(net(z, 401, context, attention=Named(hook, ("source", "target"))).eps, plain)
        assert torch.equal(net(z, 401, context, attention=hook).eps, plain)


def test_wrong_regions_and_shapes_name_what_was_expected(net):
    with pytest.raises(ValueError, match=r"no region 'decoder1\.res4': known are encoder1\.res1, block01"):
        hooks.AtRegions(nothing, ("decoder1.res4",))
    cut = hooks.AtRegions(lambda name, call, *x: call(*x)[:, 1:], ("block05",))
    with pytest.raises(ValueError, match=r"block05: the hook must return \(1, 8, 2, 2\), came \(1, 7, 2, 2\)"):
        net(torch.randn(1, 4, 8, 8), 401, torch.randn(1, 5, 16), attention=cut)
