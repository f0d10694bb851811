"""Freed memory on the CPU, counted in a process that nothing else has used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dragsa.kernels import memory

CASES = Path(__file__).with_name("memory_alone.py")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(memory._glibc() is None or "LD_PRELOAD" in os.environ, reason="of glibc's allocator alone")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="pages are not counted")
def test_in_a_fresh_process() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(CASES)]
    run = subprocess.run(command, cwd=CASES.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
