"""What is compiled is one graph for each configuration: hooks on and off, the first latent and all later ones.

A backend that only counts the graphs stands for the compiler, so that what is tested is tracing and its guards.
"""

import pytest
import torch

from dragsa import ddim, drag, passes
from dragsa.config import DragConfig, UNetConfig
from dragsa.hooks import KV, MutualSelfAttention, ReplayKV, compose
from dragsa.model.unet import UNet


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return UNet(UNetConfig((8, 8, 8, 8), (2, 2, 2, 2), 16, 4)).requires_grad_(False)


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    return []


def compiled(function, graphs):
    def backend(graph, _):
        graphs.append(graph)
        return graph

    return torch.compile(function, fullgraph=True, backend=backend)


def passing(site, q, k, v, attend):
    return attend(q, k, v)


def test_a_pass_has_one_graph_with_a_hook_and_one_without(net, graphs):
    run = compiled(net, graphs)
    z, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        record = {n: net(z, 401, text, taps=(f"block{n}.kv",)).taps[f"block{n}.kv"] for n in (11, 12)}

    def off(t):
        return run(torch.randn_like(z), torch.tensor(t), text, taps=("block14",), until="block14")

    def on(t):
        new = {n: KV(torch.randn_like(kv.key), torch.randn_like(kv.value)) for n, kv in record.items()}
        return run(torch.randn_like(z), torch.tensor(t), text, attention=compose(passing, ReplayKV(new)))

    with torch.no_grad():
        off(981), on(981)
        assert len(graphs) == 2
        with torch._dynamo.config.patch(error_on_recompile=True):
            for t in (961, 941, 921):
                off(t), on(t)
        assert len(graphs) == 2


def test_a_compiled_hook_computes_what_the_plain_one_does(net, graphs):
    run, (z, text) = compiled(net, graphs), (torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16))
    arguments = {"attention": MutualSelfAttention(), "taps": ("block14", "block11.kv")}
    with torch.no_grad():
        eager, traced = (f(z, torch.tensor(401), text, **arguments) for f in (net, run))
    assert torch.allclose(eager.eps, traced.eps, atol=1e-5)
    assert torch.allclose(eager.taps["block14"], traced.taps["block14"], atol=1e-5)


def test_motion_supervision_is_traced_once_whatever_moves(net, graphs):
    run = compiled(drag.motion_supervision, graphs)
    z, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    noise = ddim.noise_at(ddim.Schedule(50), 35, z.device)
    handles, targets = torch.tensor([[5.0, 6.0], [20.0, 12.0]]), torch.tensor([[15.0, 16.0], [10.0, 12.0]])
    frozen = torch.rand(8, 8).round()
    config = DragConfig()

    task = drag.Task(z, noise, text, handles, targets, frozen, config)
    prepared = passes.prepare(net, noise, text, config)
    first = run(prepared, task._replace(latent=z.clone().requires_grad_())).first_pass
    run(prepared, task._replace(latent=z.clone().requires_grad_()), first)
    assert len(graphs) == 2  # without and with a first pass to compare with
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shift in (1.0, 2.5, -1.0):
            latent = (z + 0.1 * shift).requires_grad_()
            moved = task._replace(latent=latent, handles=handles + shift, targets=targets - shift)
            traced, eager = run(prepared, moved, first), drag.motion_supervision(prepared, moved, first)
            assert torch.allclose(traced.loss, eager.loss, rtol=1e-4)
            assert torch.equal(traced.handles, eager.handles)
            gradients = [torch.autograd.grad(at.loss, latent)[0] for at in (traced, eager)]
            assert torch.allclose(*gradients, atol=1e-4 * gradients[1].abs().max())
    assert len(graphs) == 2
