"""Windows of a map: taken out, put back once, and carried to the coarser map that an upsampling starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dragsa.kernels import windows
from dragsa.kernels.windows import Cells

OVERLAPPING = Cells(torch.tensor([[0, 1, 2], [1, 2, 3], [1, 2, 3]]), torch.tensor([[3, 4], [4, 5], [4, 5]]))


def test_cells_that_several_windows_share_are_put_back_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5 * 6, dtype=torch.float64, requires_grad=True)
    at = windows.index(OVERLAPPING, 6)
    assert at.shape == (18,) and len(set(at.tolist())) == 10
    there = torch.zeros(5 * 6, dtype=torch.float64)
    there[at] = 1
    came = windows.put(windows.take(x, at).tanh(), at, (5, 6))
    expected = (x.tanh() * there).unflatten(2, (5, 6))
    assert torch.equal(came, expected)
    slope = torch.randn_like(came)
    torch.testing.assert_close(*(torch.autograd.grad((y * slope).sum(), x)[0] for y in (came, expected)))


class Largest(TorchDispatchMode):
    """Holds the number of elements of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_putting_back_takes_memory_for_each_cell_once() -> None:
    at = torch.randint(0, 20 * 20, (5_000,), generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        windows.put(torch.ones(1, 2, 5_000), at, (20, 20))
    assert largest.numbers <= 2 * 5_000


def test_an_upsampled_windows_cells_come_from_the_coarser_ones() -> None:
    """A convolution of 3 × 3 on the upsampled map, from the coarse cells alone; even and odd sizes, every border."""
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 3, 3)
    for coarse, fine in (((8, 8), (16, 16)), ((5, 7), (9, 14)), ((5, 7), (10, 13)), ((2, 2), (4, 3))):
        x = torch.randn(1, 3, *coarse)
        whole = F.conv2d(F.interpolate(x, size=fine, mode="nearest"), weight, padding=1)
        for first in range(fine[0] - 2):
            columns = min(first, fine[1] - 2) + torch.arange(2)
            wanted = Cells(first + torch.arange(3)[None], columns[None])
            at = windows.index(windows.coarser(wanted, fine, coarse), coarse[1])
            part = windows.put(windows.take(x.flatten(2), at), at, coarse)
            window = windows.surrounded(F.interpolate(part, size=fine, mode="nearest"), wanted)
            expected = whole[:, :, first : first + 3, columns[0] : columns[0] + 2]
            torch.testing.assert_close(F.conv2d(window, weight), expected)


def test_a_product_too_large_to_make_is_made_an_axis_at_a_time() -> None:
    torch.manual_seed(0)
    along_y, along_x = torch.rand(2, 5, 3, dtype=torch.float64), torch.rand(2, 4, 6, dtype=torch.float64)
    cells, samples = torch.rand(2, 7, 18, dtype=torch.float64), torch.rand(2, 7, 5, 4, dtype=torch.float64)
    whole = windows.product(along_y, along_x)
    parts = whole._replace(both=None)
    assert whole.both is not None
    torch.testing.assert_close(windows.sample(cells, parts), windows.sample(cells, whole))
    torch.testing.assert_close(windows.back(samples, parts), windows.back(samples, whole))
    assert windows.product(torch.ones(1, 2**9, 2**4), torch.ones(1, 2**9, 2**4)).both is None
