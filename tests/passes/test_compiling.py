"""One graph for each configuration of a pass and of a step: hooks on and off, the first latent and all later ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from passes.short_drag import CONFIG, HANDLES, SCHEDULE, TARGETS, dragged, inputs

from dragsa import ddim, drag, passes
from dragsa.config import DragConfig
from dragsa.hooks import KV, MutualSelfAttention, ReplayKV, compose
from dragsa.model.unet import UNet


def test_the_whole_step_is_one_graph_wherever_the_handles_are(net: UNet, graphs: Any) -> None:
    (z, text), frozen = inputs(), torch.rand(8, 8).round()
    noise = ddim.noise_at(SCHEDULE, 35, z.device)
    step = passes.whole(drag.motion_supervision_step, z.device.type, graphs)
    task = drag.Task(z, noise, text, HANDLES, TARGETS, frozen, CONFIG)
    first_pass = drag.motion_supervision_step(passes.prepare(net, noise, text, CONFIG), task).first_pass
    for n, shift in enumerate((0.0, 1.0, 2.5, -1.0)):
        # Another edit of that size: conditioning, latent, handles and targets are new.
        run = passes.prepare(net, noise, text + shift, CONFIG, "whole")
        other = task._replace(latent=z + 0.1 * shift, handles=HANDLES + shift, targets=TARGETS - shift)
        arguments = run, other, first_pass
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            came, expected = step(*arguments), drag.motion_supervision_step(*arguments)
        assert torch.allclose(came.loss, expected.loss, rtol=1e-4)
        assert torch.equal(came.handles, expected.handles)
        assert torch.allclose(came.gradient, expected.gradient, atol=1e-4 * expected.gradient.abs().max().item())
    assert len(graphs.traced) == 1


def test_only_dragsas_own_network_is_compiled(net: UNet) -> None:
    z, text = inputs()
    noise = ddim.noise_at(SCHEDULE, 35, z.device)
    with pytest.raises(ValueError, match="compile is for dragsa's own UNet, came function"):
        passes.prepare(lambda *a, **k: net(*a, **k), noise, text, CONFIG, "regions")
    with pytest.raises(ValueError, match="compile must be one of auto, off, whole, regions, came 'on'"):
        dragged(net, replace(CONFIG, compile="on"))  # type: ignore[arg-type]


def passing(site, q, k, v, attend):
    return attend(q, k, v)


def test_a_pass_has_one_graph_with_a_hook_and_one_without(net, graphs):
    run = torch.compile(net, fullgraph=True, backend=graphs)
    z, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        record = net(z, 401, text, taps=("block01.kv",), until="block01").taps["block01.kv"]

    def off(t):
        return run(torch.randn_like(z), torch.tensor(t), text, taps=("block01",), until="block01")

    def on(t):
        new = {1: KV(torch.randn_like(record.key), torch.randn_like(record.value))}
        hook = compose(passing, ReplayKV(new))
        return run(torch.randn_like(z), torch.tensor(t), text, attention=hook, taps=("block01",), until="block01")

    with torch.no_grad():
        off(981), on(981)
        assert len(graphs.traced) == 2
        with torch._dynamo.config.patch(error_on_recompile=True):
            for t in (961, 941, 921):
                off(t), on(t)
        assert len(graphs.traced) == 2


def test_a_compiled_hook_computes_what_the_plain_one_does(net, graphs):
    run, (z, text) = (
        torch.compile(net, fullgraph=True, backend=graphs),
        (torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)),
    )
    arguments = {"taps": ("block02", "block01.kv"), "until": "block02"}
    with torch.no_grad():
        hook = MutualSelfAttention((1, 2))
        eager, traced = (f(z, torch.tensor(401), text, attention=hook, **arguments) for f in (net, run))
        plain = net(z, torch.tensor(401), text, **arguments)
    for came, expected in zip(
        (traced.taps["block02"], *traced.taps["block01.kv"]),
        (eager.taps["block02"], *eager.taps["block01.kv"]),
        strict=True,
    ):
        assert torch.allclose(came, expected, atol=1e-5)
    assert not torch.allclose(plain.taps["block02"], eager.taps["block02"], atol=1e-4)


def test_motion_supervision_is_traced_once_whatever_moves(net, graphs):
    run = torch.compile(drag.motion_supervision, fullgraph=True, backend=graphs)
    z, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    noise = ddim.noise_at(ddim.Schedule(50), 35, z.device)
    handles, targets = torch.tensor([[5.0, 6.0], [20.0, 12.0]]), torch.tensor([[15.0, 16.0], [10.0, 12.0]])
    config = DragConfig(tap="block01")  # without a mask the pass ends there

    task = drag.Task(z, noise, text, handles, targets, None, config)
    prepared = passes.prepare(net, noise, text, config)
    first = run(prepared, task._replace(latent=z.clone().requires_grad_())).first_pass
    run(prepared, task._replace(latent=z.clone().requires_grad_()), first)
    assert len(graphs.traced) == 2  # without and with a first pass to compare with
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shift in (1.0, 2.5, -1.0):
            latent = (z + 0.1 * shift).requires_grad_()
            moved = task._replace(latent=latent, handles=handles + shift, targets=targets - shift)
            traced, eager = run(prepared, moved, first), drag.motion_supervision(prepared, moved, first)
            assert torch.allclose(traced.loss, eager.loss, rtol=1e-4)
            assert torch.equal(traced.handles, eager.handles)
            came, expected = (torch.autograd.grad(at.loss, latent)[0] for at in (traced, eager))
            assert torch.allclose(came, expected, atol=1e-4 * expected.abs().max().item())
    assert len(graphs.traced) == 2
