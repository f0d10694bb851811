"""What makes an update of the drag loop cheaper must leave its numbers alone; and when compiling is worth its start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dragsa import ddim, drag
from dragsa.config import DragConfig, UNetConfig
from dragsa.kernels.convolution import Convolution
from dragsa.model import unet as networks
from dragsa.model.attention import GEGLU, GroupNorm, LayerNorm
from dragsa.model.unet import UNet
from dragsa.passes import compiling
from dragsa.passes.compiling import Seconds

HANDLES, TARGETS = torch.tensor([[5.0, 6.0], [20.0, 12.0]]), torch.tensor([[15.0, 16.0], [10.0, 12.0]])
CONFIG = DragConfig(updates=3, compile="off")
SCHEDULE = ddim.Schedule(50)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig((8, 8, 8, 8), (2, 2, 2, 2), 16, 4)).requires_grad_(False)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)


def dragged(net: UNet, config: DragConfig = CONFIG) -> drag.DragResult:
    z, text = inputs()
    return drag.drag_latent(net, z, 35, text, SCHEDULE, HANDLES, TARGETS, torch.ones(32, 32), config)


def test_conditioning_gives_the_same_pass_and_decides_it(net: UNet) -> None:
    z, text = inputs()
    with torch.no_grad():
        made = net.condition(torch.tensor(401), text)
        # Neither the timestep nor the context is looked at where there is conditioning.
        assert torch.equal(net(z, 1, 0 * text, conditioning=made).eps, net(z, 401, text).eps)
        with pytest.raises(ValueError, match="conditioning must be of 2 rows, came 1"):
            net(torch.cat([z, z]), 401, text, conditioning=made)


def test_the_loop_computes_its_conditioning_once(net: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    made, condition = [], UNet.condition

    def counted(self: UNet, t: torch.Tensor, context: torch.Tensor) -> networks.Conditioning:
        made.append(t)
        return condition(self, t, context)

    monkeypatch.setattr(UNet, "condition", counted)
    assert len(dragged(net).losses) == 3
    assert len(made) == 1


def test_checkpointing_keeps_less_and_changes_no_number(net: UNet) -> None:
    def kept_and_gradient(run: networks.Run) -> tuple[int, torch.Tensor]:
        z, text = inputs()
        z, kept = z.requires_grad_(), 0

        def keep(x: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = net(z, 401, text, run=run).eps
        (gradient,) = torch.autograd.grad(out.square().sum(), z)
        return kept, gradient

    (plain, expected), (less, came) = (kept_and_gradient(run) for run in (networks.call, networks.checkpointed))
    assert less < plain / 2
    assert torch.allclose(came, expected, rtol=1e-5, atol=1e-6)
    whole, checkpointed = dragged(net), dragged(net, replace(CONFIG, checkpoint=True))
    assert torch.allclose(checkpointed.latent, whole.latent, atol=1e-5)


def test_a_convolution_of_few_cells_is_the_convolution() -> None:
    torch.manual_seed(2)
    layer, x = Convolution(6, 40).requires_grad_(False), torch.randn(2, 6, 5, 7)
    assert layer.is_mostly_weights(x) and not layer.is_mostly_weights(torch.randn(1, 6, 7, 7))
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_the_gated_unit_keeps_its_projection_alone_and_changes_no_number() -> None:
    torch.manual_seed(2)
    unit, x, slope = GEGLU(6, 5).requires_grad_(False), torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 7, 5)
    kept: list[tuple[int, ...]] = []

    def keep(held: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(held.shape))
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        out = unit(x)
    assert [shape for shape in kept if shape[0] == 2] == [(2, 7, 10)]
    first, gate = unit.proj(x).chunk(2, dim=-1)
    expected = first * torch.nn.functional.gelu(gate)
    assert torch.equal(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, x, slope) for one in (out, expected)))


@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize("trained", [False, True])
def test_a_convolution_keeps_its_input_for_its_own_gradient_alone(cells: int, trained: bool) -> None:
    torch.manual_seed(2)
    layer = Convolution(6, 4, cells).requires_grad_(trained)
    x, slope, kept = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(2, 4, 5, 7), []

    def keep(held: torch.Tensor) -> torch.Tensor:
        kept.append(held.shape)
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        out = layer(x)
    assert (x.shape in kept) == trained
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=cells // 2)
    assert torch.equal(out, expected)
    wanted = (x, *layer.parameters()) if trained else (x,)
    came, right = (torch.autograd.grad(y, wanted, slope) for y in (out, expected))
    for one, other in zip(came, right, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_a_convolution_to_and_from_tokens_is_the_convolution(trained: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    layer = Convolution(6, 4, 1).to(dtype).requires_grad_(trained)
    x = torch.randn(2, 6, 5, 7, dtype=dtype, requires_grad=True)
    slope, kept = torch.randn(2, 4, 5, 7, dtype=dtype), []

    def keep(held: torch.Tensor) -> torch.Tensor:
        kept.append(held.data_ptr())
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        tokens = layer.to_tokens(x)
        assert (x.data_ptr() in kept) == trained
        kept.clear()
        out = layer.from_tokens(x.flatten(2).transpose(1, 2), (5, 7))
    assert (x.data_ptr() in kept) == trained
    assert tokens.is_contiguous() and out.is_contiguous()
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias)
    wanted = (x, *layer.parameters()) if trained else (x,)
    right = torch.autograd.grad(expected, wanted, slope)
    for came in (tokens.transpose(1, 2).unflatten(2, (5, 7)), out):
        torch.testing.assert_close(came, expected)
        torch.testing.assert_close(torch.autograd.grad(came, wanted, slope), right)


def test_in_bfloat16_fewer_cells_are_few() -> None:
    torch.manual_seed(2)
    layer = Convolution(96, 8).requires_grad_(False).bfloat16()
    x = torch.randn(1, 96, 2, 3).bfloat16()
    assert layer.is_mostly_weights(x) and not layer.is_mostly_weights(x.repeat(1, 1, 1, 3))
    expected = torch.nn.functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1)
    assert torch.allclose(layer(x).float(), expected, atol=0.02)


@pytest.mark.parametrize("norm", [GroupNorm(2, 8), LayerNorm(8)], ids=["group", "layer"])
def test_norms_keep_their_statistics_in_float32(norm: torch.nn.Module) -> None:
    torch.manual_seed(3)
    x = (torch.randn(2, 8, 8) + 30).bfloat16()  # a mean that bfloat16 holds to an eighth
    slope = torch.randn(2, 8, 8)

    def gradient(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((norm(x) * slope.to(x.dtype)).sum(), x)
        return g.float()

    expected = gradient(norm.float(), x.float())
    came = gradient(norm.bfloat16(), x)
    assert (came - expected).abs().max() < 0.01 * expected.abs().max()


def test_a_networks_parameters_are_as_they_were(net: UNet) -> None:
    trained = UNet(net.config)
    trained.load_state_dict(net.state_dict())
    trained.conv_in.requires_grad_(False)
    before = [p.requires_grad for p in trained.parameters()]
    assert torch.allclose(dragged(trained).latent, dragged(net).latent, atol=1e-5)
    assert [p.requires_grad for p in trained.parameters()] == before and not all(before) and any(before)
    assert all(p.grad is None for p in trained.parameters())


def test_a_drag_works_in_inference_mode(net: UNet) -> None:
    with torch.inference_mode():
        came = dragged(net)
        inside = UNet(net.config)
        with pytest.raises(ValueError, match=r"loaded under torch\.inference_mode"):
            dragged(inside)
    assert torch.equal(came.latent, dragged(net).latent)


def test_the_whole_step_is_one_graph_wherever_the_handles_are(net: UNet) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    (z, text), keep = inputs(), torch.rand(8, 8).round()
    noise = drag.noise_at(SCHEDULE, 35, z.device)
    step = drag.stepper("whole", z.device, backend)
    origin = drag.motion_supervision_step(net, z, noise, text, HANDLES, TARGETS, None, keep, CONFIG).origin
    for n, shift in enumerate((0.0, 1.0, 2.5, -1.0)):
        # Another edit of that size: conditioning, latent, handles and targets are new.
        extract = drag.extractor(net, noise, text + shift, CONFIG, "whole")
        arguments = (extract, z + 0.1 * shift, noise, text, HANDLES + shift, TARGETS - shift, origin, keep, CONFIG)
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            came, expected = step(*arguments), drag.motion_supervision_step(*arguments)
        assert torch.allclose(came.loss, expected.loss, rtol=1e-4)
        assert torch.equal(came.handles, expected.handles)
        assert torch.allclose(came.gradient, expected.gradient, atol=1e-4 * expected.gradient.abs().max())
    assert len(graphs) == 1


def test_only_dragsas_own_network_is_compiled(net: UNet) -> None:
    z, text = inputs()
    noise = drag.noise_at(SCHEDULE, 35, z.device)
    with pytest.raises(ValueError, match="compile is for dragsa's own UNet, came function"):
        drag.extractor(lambda *a, **k: net(*a, **k), noise, text, CONFIG, "regions")
    with pytest.raises(ValueError, match="compile must be one of auto, off, whole, regions, came 'on'"):
        dragged(net, replace(CONFIG, compile="on"))


@pytest.fixture
def own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and the compiler's cache in a folder of the test's, and nothing started in this process."""
    monkeypatch.setenv(compiling.RECORDS, str(tmp_path / "records.json"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_started", set())


@pytest.mark.usefixtures("own_cache")
def test_auto_compiles_only_what_pays_its_start(net: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    z, _ = inputs()
    at = compiling.case(net, z, CONFIG, mask=True)
    assert compiling.decide(at, 10_000) == "off"  # nothing was measured
    compiling.record(at, "regions", Seconds(eager=1.0, compiled=0.5, cold=50.0, warm=5.0))
    compiling.record(at, "whole", Seconds(eager=1.0, compiled=0.25, cold=300.0, warm=20.0))
    assert [compiling.decide(at, updates) for updates in (99, 101, 999, 1001)] == ["off", "regions", "regions", "whole"]
    assert compiling.decide(compiling.case(net, z, CONFIG, mask=False), 10_000) == "off"  # that is another pass
    compiling.started(at, "regions", 1)
    assert compiling.decide(at, 1) == "regions"  # no start is left in this process
    monkeypatch.setattr(compiling, "_started", set())
    assert [compiling.decide(at, updates) for updates in (9, 11)] == ["off", "regions"]  # warm in the next one
    assert compiling.decide(at, 11, handles=2) == "off"  # another number of handles is another graph
    with pytest.raises(ValueError, match="compile mode must be one of"):
        compiling.record(at, "eager", Seconds(1.0, 1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="seconds must be positive"):
        compiling.record(at, "whole", Seconds(1.0, 0.0, 1.0, 1.0))
    compiling.records_path().write_text("not JSON")
    assert compiling.decide(at, 10_000) == "off"
