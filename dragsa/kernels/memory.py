"""Memory of the CPU that tensors leave is kept for those to come, as PyTorch itself does on a GPU.

glibc gives a block of over 32 MB back to the system whenever it is freed, and the end of its heap too. A loop whose
every turn has tensors of the same sizes then gets all of them anew, page by page, each page zeroed by the system first:
in float32 a twentieth of a drag update at 512×512.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# The parameters of mallopt, by their numbers in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
NEVER = -1
# What blocks outside of the heap, and the heap's free end, come to by themselves where large blocks come and go. Once a
# parameter has been set, none is adapted any more.
ADAPTED = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}


_lock = threading.Lock()
_inside = 0  # loops, of several threads or one within another


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Within it the main thread's freed memory stays with the process; then it is given back.

    It does nothing without glibc, or where the tensors are on another device. Whatever else has set the three
    parameters (`ADAPTED`), they are afterwards as glibc would have adapted them.
    """
    global _inside
    glibc = _glibc()
    if glibc is None or device.type != "cpu":
        yield
        return
    with _lock:
        _inside += 1
        glibc.mallopt(MMAP_MAX, 0)
        glibc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for parameter, value in ADAPTED.items():
                    glibc.mallopt(parameter, value)
                glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The process's C library, if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
