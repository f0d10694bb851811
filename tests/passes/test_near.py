"""A pass that ends at the near cells gives the whole map's features there, and their gradient."""

import copy

import golden_cases
import pytest
import torch

from dragsa.kernels import windows
from dragsa.kernels.windows import Cells
from dragsa.model import unet
from dragsa.passes.near import Near, run_near


def inputs(h, w):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 77, golden_cases.CONTEXT_DIM, generator=generator)
    return torch.randn(1, 4, h, w, generator=generator), text


@pytest.mark.parametrize("tap", ["block08", "block13", "block14", "decoder1", "decoder2", "decoder3", "decoder4"])
@pytest.mark.parametrize("size", [(16, 16), (13, 19)])
def test_the_near_cells_are_the_whole_maps(tap, size):
    net, (z, text) = copy.deepcopy(golden_cases.golden_unet()).double(), inputs(*size)
    z, text = z.double().requires_grad_(), text.double()
    whole = net(z, 401, text, taps=(tap,), until=tap).taps[tap]
    h, w = whole.shape[-2:]
    cells = Cells(torch.tensor([[0, 1], [h - 2, h - 1], [h - 2, h - 1]]), torch.tensor([[1, 2], [0, 1], [1, 2]]))
    run = run_near(unet.call, tap, Near(cells, (h, w)))
    part = unet.read(net.walk(z, net.condition(401, text), run=run), z.dtype, (tap,), tap).taps[tap]
    there = torch.zeros(h, w, dtype=torch.bool)
    there.flatten()[windows.index(cells, w)] = True
    assert not part[:, :, ~there].any()
    torch.testing.assert_close(part[:, :, there], whole[:, :, there], rtol=1e-9, atol=1e-9)
    slope = torch.randn(part.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * there
    came, expected = (torch.autograd.grad((x * slope).sum(), z)[0] for x in (part, whole))
    torch.testing.assert_close(came, expected, rtol=1e-8, atol=1e-8)
