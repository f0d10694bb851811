"""The compiled motion-supervision step, whole or by regions.

"whole" is the step as one graph, from the latent to the gradient. "regions" compiles a ResBlock and a transformer, each
once for every shape it is met in, and reuses them all over the network: less to compile, less to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from dragsa.model import unet as networks

SHAPES = 64  # that one function may be compiled for: a network has some 20 kinds of region


class CompileError(ValueError):
    """The compiler gave up; the message is its own first line, and says what to do."""


# One graph for each case, and none for sizes in general; each function's graphs are counted for themselves.
_SETTINGS: dict[str, Any] = {"fullgraph": True, "dynamic": False, "recompile_limit": SHAPES, "isolate_recompiles": True}


@cache
def regions(backend: str | Callable[..., Any] = "inductor") -> networks.Run:
    """Return how a pass runs its regions when each kind of them is compiled once. It raises CompileError."""
    compiled = torch.compile(_region, backend=backend, **_SETTINGS)

    def run(name: str, region: Any, *arguments: Any) -> Any:  # the name is of no account to the graph
        return attempt(compiled, region, *arguments)

    return run


def _region(region: Callable[..., Any], *arguments: Any) -> Any:
    return region(*arguments)


@cache
def whole(
    step: Callable[..., Any], device_type: str = "cpu", backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """Compile a step with its gradient inside as one graph; on CUDA replayed as a CUDA graph. It raises CompileError.

    What it returns there lives until it is called again.
    """
    mode = "reduce-overhead" if device_type == "cuda" and backend == "inductor" else None
    compiled = torch.compile(step, backend=backend, mode=mode, **_SETTINGS)

    def run(*arguments: Any) -> Any:
        # torch.autograd.grad is traced into the graph only where this says so.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return attempt(compiled, *arguments)

    return run


def attempt(compiled: Callable[..., Any], *arguments: Any) -> Any:
    """Call what is compiled. Raises CompileError, in one line, for what the compiler cannot do."""
    try:
        return compiled(*arguments)
    except torch._dynamo.exc.RecompileError:  # somebody asked for it
        raise
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompileError(f"compiling failed ({reason}); compile='off' does without") from error
