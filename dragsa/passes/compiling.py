"""The compiled motion-supervision step, whole or by regions, and whether it is worth its start.

"whole" is the step as one graph, from the latent to the gradient. "regions" compiles a ResBlock and a transformer, each
once for every shape it is met in, and reuses them all over the network: less to compile, less to gain.

The compiler keeps what it has made in a folder on disk (`cache_folder`), so that a later process starts sooner, "warm"
rather than "cold". Even so a start can take longer than an edit gains by it. `decide` tells, by what `record` was given
for the same case on this machine; where nothing was measured it says "off".
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dragsa.config import DragConfig
from dragsa.model import unet as networks

MODES = ("whole", "regions")
RECORDS = "DRAGSA_COMPILE_RECORDS"  # the environment variable that names the records' file
SHAPES = 64  # that one function may be compiled for: a network has some 20 kinds of region


class CompileError(ValueError):
    """The compiler gave up; the message is its own first line, and says what to do."""


@dataclass(frozen=True)
class Case:
    """All that the seconds of an update depend on."""

    device: str  # its name and, on a CPU, the number of threads
    dtype: str
    torch: str  # its version
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    latent: tuple[int, int]  # (h, w)
    tap: str
    mask: bool  # with the mask term the pass is a whole one
    checkpoint: bool

    @property
    def key(self) -> str:
        return json.dumps(asdict(self))


class Seconds(NamedTuple):
    """What was measured of one case and mode. An eager and a compiled update, and the first compiled one, which
    compiles, with the compiler's cache empty (cold) and filled (warm)."""

    eager: float
    compiled: float
    cold: float
    warm: float


def case(unet: networks.UNet, latent: Tensor, config: DragConfig, mask: bool) -> Case:
    """The case of a drag of `latent` (1, 4, h, w), with or without the mask term."""
    weight = unet.conv_in.weight
    if weight.device.type == "cuda":
        device = torch.cuda.get_device_name(weight.device)
    else:
        device = f"{weight.device.type} {platform.machine()}, {torch.get_num_threads()} threads"
    return Case(
        device=device,
        dtype=str(unet.dtype).removeprefix("torch."),
        torch=torch.__version__,
        widths=unet.config.widths,
        heads=unet.config.heads,
        latent=(latent.shape[2], latent.shape[3]),
        tap=config.tap,
        mask=mask,
        checkpoint=config.checkpoint,
    )


# --- what is compiled

# One graph for each case, and none for sizes in general; each function's graphs are counted for themselves.
_SETTINGS: dict[str, Any] = {
    "fullgraph": True,
    "dynamic": False,
    "recompile_limit": SHAPES,
    "isolate_recompiles": True,
}


@cache
def regions(backend: str | Callable[..., Any] = "inductor") -> networks.Run:
    """How a UNet runs its regions (`run=`) when each kind of them is compiled once. It raises CompileError."""
    return partial(attempt, torch.compile(networks.call, backend=backend, **_SETTINGS))


@cache
def whole(
    step: Callable[..., Any], device_type: str = "cpu", backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """A step with its gradient inside as one graph; on CUDA replayed as a CUDA graph. It raises CompileError.

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


# --- whether to


def decide(at: Case, updates: int, handles: int = 1, path: Path | None = None) -> str:
    """ "whole", "regions" or "off": what takes the least time for so many updates, by the records at `path`.

    A compiled one must start first: in no time where this process has done so for as many handles, warm where the
    compiler's cache has, else cold. Without a record of this very case: "off".
    """
    found = records(path).get(at.key, {})
    best, least = "off", float("inf")
    for mode, seconds in found.items():
        start = 0.0
        if (at, mode, handles) not in _started:
            start = seconds.warm if _mark(at, mode, handles).exists() else seconds.cold
        total = start + updates * seconds.compiled
        if total < min(least, updates * seconds.eager):
            best, least = mode, total
    return best


def started(at: Case, mode: str, handles: int) -> None:
    """Remember that this process, and with it the compiler's cache on disk, has compiled for this case."""
    _started.add((at, mode, handles))
    with suppress(OSError):  # a cache that cannot be written is no cache
        mark = _mark(at, mode, handles)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


_started: set[tuple[Case, str, int]] = set()


def _mark(at: Case, mode: str, handles: int) -> Path:
    """A file in the compiler's cache: where the cache is gone, so is the mark."""
    digest = hashlib.sha256(f"{at.key} {mode} {handles}".encode()).hexdigest()[:16]
    return cache_folder() / f"dragsa-{digest}"


def cache_folder() -> Path:
    """Where the compiler keeps its results between processes: $TORCHINDUCTOR_CACHE_DIR, or a temporary folder's own."""
    from torch._inductor.runtime.runtime_utils import cache_dir

    return Path(cache_dir())


def records_path() -> Path:
    """$DRAGSA_COMPILE_RECORDS, or `~/.cache/dragsa/compile.json`."""
    named = os.environ.get(RECORDS)
    return Path(named) if named else Path.home() / ".cache" / "dragsa" / "compile.json"


def records(path: Path | None = None) -> dict[str, dict[str, Seconds]]:
    """What was measured, by case and mode; nothing where there is no file, or none that can be read."""
    try:
        stored = json.loads((path or records_path()).read_text())
        return {
            key: {mode: Seconds(**seconds) for mode, seconds in modes.items() if mode in MODES}
            for key, modes in stored.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def record(at: Case, mode: str, seconds: Seconds, path: Path | None = None) -> None:
    """Add a measurement to the records, in place of an earlier one of the same case and mode.

    Raises ValueError for an unknown mode, or seconds that are not positive.
    """
    if mode not in MODES:
        raise ValueError(f"compile mode must be one of {', '.join(MODES)}, came {mode!r}")
    if not all(0 < one < float("inf") for one in seconds):
        raise ValueError(f"seconds must be positive, came {seconds}")
    path = path or records_path()
    kept = records(path)
    kept.setdefault(at.key, {})[mode] = seconds
    text = json.dumps({key: {m: s._asdict() for m, s in modes.items()} for key, modes in kept.items()}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".compile-", delete=False) as file:
        file.write(text + "\n")
    os.replace(file.name, path)
