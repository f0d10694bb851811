"""Memory that is freed inside `kept` stays with the process, and is given back afterwards: run by test_memory.py.

A process of its own: pages are counted, and those that earlier tests have left to the allocator would count too.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from dragsa import drag
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.kernels import memory
from dragsa.model.unet import UNetOutput

CPU = torch.device("cpu")

SIZE = 2**26  # bytes, over what glibc takes from its memory by itself


def pages_taken() -> int:
    """Return the pages that a tensor takes after a slightly larger one has gone.

    The first is larger because an aligned block looks for more than it takes.
    """
    torch.ones(SIZE // 4 + 2**10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def held() -> int:
    """Return the bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_freed_memory_is_kept_inside_and_given_back_after() -> None:
    all_of_it = SIZE // resource.getpagesize()
    assert pages_taken() > all_of_it / 2
    before = held()
    with memory.kept(CPU):
        with memory.kept(CPU):
            assert pages_taken() < all_of_it / 20
        assert pages_taken() < all_of_it / 20
        assert held() > before + SIZE / 2
    assert held() < before + SIZE / 2
    assert pages_taken() > all_of_it / 2


def test_it_is_given_back_after_an_error_too() -> None:
    with pytest.raises(KeyError), memory.kept(CPU):
        raise KeyError
    assert pages_taken() > SIZE / resource.getpagesize() / 2


def test_a_drag_keeps_it() -> None:
    taken = []

    def network(z: torch.Tensor, *_: object, **__: object) -> UNetOutput:
        taken.append(pages_taken())
        return UNetOutput(None, {"decoder3": 2 * z})

    at = torch.tensor([[8.0, 8.0]])
    z, config = torch.randn(1, 4, 8, 8), DragConfig(tap="decoder3", updates=2, compile="off")
    drag.drag_latent(network, z, 5, torch.zeros(1, 1, 1), Schedule(10), at, at + 9, config=config)
    assert len(taken) == 2 and max(taken) < SIZE / resource.getpagesize() / 20
