"""The machine that is measured on: its processor, how busy it is, and the memory of this process."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that these kernels are faster with


def machine_of(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the processor and its instructions, the device, the system, and how busy it is."""
    model, flags = platform.processor() or platform.machine(), set()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {
        "processor": model,
        "instructions": [one for one in INSTRUCTIONS if one in flags],
        "cores": cores(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": platform.platform(),
        "load": load(),
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Return how many processes ran or waited in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has held, on a GPU those of its tensors."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux counts a parent's peak into what getrusage says of its child
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
