"""What one denoising of the source leaves for every later edit: its self-attention's K/V, and its latents, by level.

The target of an edit attends to the source's K and V (section 3.4), and these do not depend on the target. They depend
on the network, the source's prompt and its latents. A source's latents at one level differ with the pass that made
them, since inversion is not quite undone by sampling; so whatever is held is held under its *trajectory*: the level k
whose z_k the source was denoised from, or the inversion itself, whose own K/V stand in for those of a denoising.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dragsa import hooks
from dragsa.hooks import KV
from dragsa.pictures import images

INVERSION = "inversion"
Trajectory = int | str  # the level that the denoising of the source began at, or INVERSION


class Key(NamedTuple):
    """What K/V are of: one self-attention in the pass at z_k, k = `level`, of a trajectory."""

    trajectory: Trajectory
    level: int
    block: int

    @property
    def file_name(self) -> str:
        return f"{self.trajectory}-level{self.level}-{hooks.block_name(self.block)}.safetensors"


class Held(NamedTuple):
    """K/V in memory, or the file they are in. `rows`: 1, or with guidance 2, the unconditional one first."""

    rows: int
    nbytes: int
    device: torch.device
    at: KV | Path

    @property
    def is_there(self) -> bool:
        return isinstance(self.at, KV) or self.at.exists()  # temporary folders are swept by others too


@dataclass(eq=False)
class Recording:
    """The K/V and latents that a source's passes left, and what they are good for.

    K/V over the limit that is given with them go to files, one for each level and block, which are mapped and not read
    when they are wanted; `folder` is where, a temporary one unless `keep_in` gave another. The temporary folder goes
    with `clear`, when nothing refers to the recording any more, and when Python ends. A copy of a recording is empty.
    """

    latents: dict[Trajectory, dict[int, Tensor]] = field(default_factory=dict, repr=False)  # (1, C, h, w) by level
    folder: Path | None = None
    _held: dict[Key, Held] = field(default_factory=dict, repr=False)
    _network: weakref.ref[Any] | None = field(default=None, repr=False)
    _weights: tuple[Any, ...] = field(default=(), repr=False)
    _remove_folder: Callable[[], Any] | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recording, ()

    def of(self, network: Any) -> Recording:
        """The recording, emptied if what it holds is another network's, or the same one's with other weights."""
        state = weights_state(network)
        if self._network is None or self._network() is not network or state != self._weights:
            self.clear()
            self._network, self._weights = weakref.ref(network), state
        return self

    def covers(self, trajectory: Trajectory, levels: Iterable[int], blocks: Iterable[int], rows: int) -> bool:
        """Whether K/V of every one of the blocks at every one of the levels are there, for so many rows or more."""
        keys = [Key(trajectory, level, block) for level in levels for block in blocks]
        held = [self._held.get(key) for key in keys]
        return all(one is not None and one.rows >= rows and one.is_there for one in held)

    def kv(self, trajectory: Trajectory, blocks: Iterable[int], level: int) -> dict[int, KV]:
        """By block, K/V (1 or 2, heads, n, d); from a file, they are mapped. Raises KeyError where there are none."""
        return {block: read(self._held[Key(trajectory, level, block)]) for block in blocks}

    def recorder(
        self, trajectory: Trajectory, levels: Container[int], limit: int
    ) -> Callable[[int, Mapping[int, KV]], None]:
        """The function that is told a pass's level and K/V, and holds those of `levels`.

        It holds them in memory while what is there stays within `limit` bytes, and else in files. Where more than the
        limit is held already, other denoisings' K/V are forgotten first: edits from ever other levels fill no disk.
        """
        others = {key.trajectory for key in self._held} - {trajectory, INVERSION}
        if self.nbytes > limit:
            self._forget(key for key in list(self._held) if key.trajectory in others)
        return partial(self._put, trajectory, levels, limit)

    def _put(
        self, trajectory: Trajectory, levels: Container[int], limit: int, level: int, kv: Mapping[int, KV]
    ) -> None:
        for block, pair in kv.items() if level in levels else ():
            key, rows = Key(trajectory, level, block), pair.key.shape[0]
            if self.covers(trajectory, [level], [block], rows):
                continue
            self._forget([key])
            nbytes, device = sum(x.nbytes for x in pair), pair.key.device
            if self.nbytes_in_memory + nbytes <= limit:
                self._held[key] = Held(rows, nbytes, device, pair)
                continue
            try:
                self._held[key] = Held(rows, nbytes, device, self._write(key, pair))
            except OSError as error:  # the edit need not fail for it: what is not held is computed again
                warnings.warn(f"the source's K/V could not be kept for later edits: {error}", stacklevel=2)

    def keep_latents(self, trajectory: Trajectory, start: int, latents: Tensor) -> None:
        """Hold the source's latents z_start, z_{start-1}, …, (k, 1, C, h, w)."""
        held = self.latents.setdefault(trajectory, {})
        held.update((start - n, z) for n, z in enumerate(latents.clone()))

    def _write(self, key: Key, kv: KV) -> Path:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="dragsa-kv-"))
            self._remove_folder = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        path = self.folder / key.file_name
        images.save_bytes(save({"key": kv.key, "value": kv.value}), path, overwrite=True)
        return path

    def keep_in(self, folder: str | Path) -> None:
        """Write files into this folder, which is made where it is missing, and leave them there when the program ends.

        They are for reading (`key` and `value` by level and block); no later run takes them up. Raises ValueError for a
        folder that is not empty, and once there are files elsewhere.
        """
        folder = Path(folder)
        if any(isinstance(held.at, Path) for held in self._held.values()):
            raise ValueError(f"{folder}: the recorded K/V already have files in {self.folder}")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: give a folder of their own to the recorded K/V")
        self.clear()
        self.folder = folder

    def clear(self) -> None:
        """Forget everything, and delete the files."""
        self._forget(list(self._held))
        self.latents.clear()
        self._network = None
        if self._remove_folder is not None:
            self._remove_folder()
            self.folder = self._remove_folder = None

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            held = self._held.pop(key, None)
            if held is not None and isinstance(held.at, Path):
                with suppress(OSError):  # Windows deletes no file that is mapped
                    held.at.unlink()

    @property
    def nbytes(self) -> int:
        """Of all K/V, in memory and in files."""
        return sum(held.nbytes for held in self._held.values())

    @property
    def nbytes_in_memory(self) -> int:
        return sum(held.nbytes for held in self._held.values() if isinstance(held.at, KV))


def read(held: Held) -> KV:
    if isinstance(held.at, KV):
        return held.at
    with safe_open(held.at, framework="pt", device=str(held.device)) as file:
        return KV(file.get_tensor("key"), file.get_tensor("value"))


def weights_state(network: Any) -> tuple[Any, ...]:
    """What changes when the weights do: where each stands, how often it was written to, and its type."""
    weights = network.parameters() if isinstance(network, nn.Module) else ()
    return tuple((w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights)
