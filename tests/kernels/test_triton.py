"""The Triton kernels: in Triton's interpreter against torch and the reference, and through the compiler for CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from dragsa.kernels import triton as kernels

CASES = Path(__file__).with_name("triton_interpreted.py")


def test_in_the_interpreter():
    """In a process of its own: Triton decides at its import whether to interpret, and the compiler imports it too."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(CASES)]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=CASES.parents[2], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("feature, accumulated", [("fp32", "fp32"), ("bf16", "fp32"), ("fp64", "fp64")])
def test_compiles_for_cuda(feature, accumulated, tmp_path, monkeypatch):
    """Compile each kernel, since the interpreter lets pass what does not. No GPU is needed: the result is not run."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = kernels._sizes(torch.empty(1, 640, 64, 64, device="meta"), 1, 1, (256, 256))
    constants = {"HAS_TARGET": False, "HAS_ACTIVE": True, **sizes}
    types = {"features": f"*{feature}", "active": "*i1", "first": "*i64", "points": "*fp32"}
    pointers = ("handles", "directions", "loss", "gradient", "scale", "reference", "distance", "given")
    types |= {name: f"*{accumulated}" for name in pointers}
    for kernel in (kernels._pull, kernels._spread, kernels._search):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        values = {name: constants[name] for name in names if name in constants}
        source = ASTSource(kernel, signature, values)
        compiled = compile(source, target=GPUTarget("cuda", 80, 32), options=kernels.ROUNDED)
        assert compiled.asm["cubin"]
