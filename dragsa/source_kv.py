"""Keep the source's self-attention K/V and latents by level, so that one denoising serves later edits, too.

The substitution itself is not here. It is `hooks.MutualSelfAttention` where source and target are denoised side by
side, and `stock.ReplayKV` where K/V that were kept stand in for the source's row.

The target of an edit attends to the source's K and V (section 3.1), and these do not depend on the target. They depend
on the network, the source's prompt and its latents. A source's latents at one level differ with the pass that made
them, since inversion is not quite undone by sampling; so whatever is held is held under its *trajectory*: the level k
whose z_k the source was denoised from, or the inversion itself, whose own K/V stand in for those of a denoising.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dragsa import ddim, files
from dragsa.config import EditConfig
from dragsa.ddim import Guided, KVByBlock, Schedule
from dragsa.hooks import KV, AttentionHook, ReplayKV
from dragsa.model.blocks import block_name

INVERSION = "inversion"
Trajectory = int | str  # the level that the denoising of the source began at, or INVERSION


class Key(NamedTuple):
    """One self-attention, in the pass at z_k, k = `level`, of a trajectory."""

    trajectory: Trajectory
    level: int
    block: int

    @property
    def file_name(self) -> str:
        return f"{self.trajectory}-level{self.level}-{block_name(self.block)}.safetensors"


class Held(NamedTuple):
    """K/V in memory, or the file they are in. `rows`: 1, or with guidance 2, the unconditional one first."""

    rows: int
    nbytes: int
    device: torch.device
    at: KV | Path

    @property
    def is_there(self) -> bool:
        return isinstance(self.at, KV) or self.at.exists()  # temporary folders are swept by others too

    def read(self) -> KV:
        if isinstance(self.at, KV):
            return self.at
        with safe_open(self.at, framework="pt", device=str(self.device)) as file:
            return KV(file.get_tensor("key"), file.get_tensor("value"))


@dataclass(eq=False)
class Recording:
    """The K/V and latents that a source's passes left, and what they are good for.

    K/V over the limit that is given with them go to files, one for each level and block, which are mapped and not read
    when they are wanted; `folder` is where, a temporary one (`files.OwnFolder`) unless `keep_in` gave another. It goes
    with `clear` and with the recording. A copy of a recording is empty, and a forked process has none of its parent's.
    """

    latents: dict[Trajectory, dict[int, Tensor]] = field(default_factory=dict, repr=False)  # (1, C, h, w) by level
    folder: Path | None = None
    _held: dict[Key, Held] = field(default_factory=dict, repr=False)
    _network: weakref.ref[Any] | None = field(default=None, repr=False)
    _state: tuple[Any, ...] = field(default=(), repr=False)  # of the network's weights, and the process
    _own: files.OwnFolder | None = field(default=None, repr=False)
    _process: int = field(default_factory=os.getpid, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recording, ()

    def of(self, network: Any) -> Recording:
        """Return this recording; clear it first if the network or its weights have changed."""
        files.sweep()
        weights = network.parameters() if isinstance(network, nn.Module) else ()
        # What changes when the weights do: where each stands, how often it was written to, and its type.
        state = os.getpid(), *((w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights)
        if self._network is None or self._network() is not network or state != self._state:
            self.clear()
            self._network, self._state = weakref.ref(network), state
        return self

    def covers(self, trajectory: Trajectory, levels: Iterable[int], blocks: Iterable[int], rows: int) -> bool:
        """Tell whether K/V of every block at every level are there, for so many rows or more."""
        held = [self._held.get(Key(trajectory, level, block)) for level in levels for block in blocks]
        return all(one is not None and one.rows >= rows and one.is_there for one in held)

    def kv(self, trajectory: Trajectory, blocks: Iterable[int], level: int) -> dict[int, KV]:
        """Return K/V (1 or 2, heads, n, d) by block, mapped where they are in files. Raises KeyError for none."""
        return {block: self._held[Key(trajectory, level, block)].read() for block in blocks}

    def writer(self, trajectory: Trajectory, levels: Container[int], limit: int) -> ddim.Record:
        """Return the function that is told a pass's level and K/V, and holds those of `levels`.

        It holds them in memory while what is there stays within `limit` bytes, and else in files. Where more than the
        limit is held already, other denoisings' K/V are forgotten first: edits from ever other levels fill no disk.
        """
        others = {key.trajectory for key in self._held} - {trajectory, INVERSION}
        if self.nbytes > limit:
            self._forget(key for key in list(self._held) if key.trajectory in others)

        def put(level: int, kv: Mapping[int, KV]) -> None:
            for block, pair in kv.items() if level in levels else ():
                key, rows, nbytes = Key(trajectory, level, block), len(pair.key), sum(x.nbytes for x in pair)
                if self.covers(trajectory, [level], [block], rows):
                    continue
                self._forget([key])
                try:
                    at: KV | Path = pair if self.nbytes_in_memory + nbytes <= limit else self._write(key, pair)
                    self._held[key] = Held(rows, nbytes, pair.key.device, at)
                except OSError as error:  # the edit need not fail for it: what is not held is computed again
                    warnings.warn(f"the source's K/V could not be kept for later edits: {error}", stacklevel=2)

        return put

    def keep_latents(self, trajectory: Trajectory, start: int, latents: Tensor) -> None:
        """Hold the source's latents z_start, z_{start-1}, …, (k, 1, C, h, w)."""
        held = self.latents.setdefault(trajectory, {})
        held.update((start - n, z) for n, z in enumerate(latents.clone()))

    def _write(self, key: Key, kv: KV) -> Path:
        if self.folder is None:
            self._own = files.OwnFolder()
            self.folder = self._own.path
        path = self.folder / key.file_name
        files.save_bytes(save({"key": kv.key, "value": kv.value}), path, overwrite=True)
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
        """Forget everything, and delete the files; a forked process lets go of those that are its parent's."""
        self._forget(list(self._held))
        self.latents.clear()
        self._network = None
        if self._own is not None or self._process != os.getpid():
            self.folder = self._own = None
        self._process = os.getpid()

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            held = self._held.pop(key, None)
            if held is not None and isinstance(held.at, Path) and self._process == os.getpid():
                with suppress(OSError):  # Windows deletes no file that is mapped
                    held.at.unlink()

    @property
    def nbytes(self) -> int:
        """Bytes of all K/V, in memory and in files."""
        return sum(held.nbytes for held in self._held.values())

    @property
    def nbytes_in_memory(self) -> int:
        return sum(held.nbytes for held in self._held.values() if isinstance(held.at, KV))


# --- an edit's plan ---------------------------------------------------------------------------------------------------


class EarlierPass(NamedTuple):
    """A pass of the source that stands in for denoising it again: its K/V, and its latents z_k, by level."""

    name: str  # "recorded", or "inversion", which approximates
    kv: Callable[[int], KVByBlock]
    latents: Mapping[int, Tensor] | Tensor
    blend: Tensor | None = None  # (h, w) in [0, 1]; where it is 0, the target takes these latents

    def blended(self, z: Tensor, level: int) -> Tensor:
        """Return the target's z_k (1, C, h, w), k = `level`, with these latents where they are taken."""
        return z if self.blend is None else self.latents[level] + self.blend * (z - self.latents[level])

    def hook(self, level: int, blocks: Sequence[int], rows: int) -> ReplayKV:
        """Return the hook that gives these K/V to a pass of one latent: of `rows` 1, or 2 where there is guidance.

        Raises ValueError where the level or a block was not recorded, or the unconditional row is wanted and was not.
        """
        try:
            kv = self.kv(level)
            chosen = {block: kv[block] for block in blocks}
        except KeyError:
            what = f"the source's K/V of blocks {list(blocks)}"
            raise ValueError(f"level {level}: {what} were not all recorded") from None
        if any(len(key) < rows for key, _ in chosen.values()):
            raise ValueError(f"level {level}: the source's K/V were recorded without guidance, and the edit has it")
        return ReplayKV({block: KV(key[-rows:], value[-rows:]) for block, (key, value) in chosen.items()})


class Plan(NamedTuple):
    """The pass from which denoising takes the source's K/V: an earlier one, or this one, which then stores them."""

    earlier: EarlierPass | None
    record: ddim.Record | None
    trajectory: Trajectory
    name: str | None  # that of the earlier pass, or "computed"; None where no K/V are wanted


class SourcePasses(NamedTuple):
    """The passes that a source has had: its recording, and its trajectory z_0 … z_T (T + 1, 1, C, h, w)."""

    recorded: Recording
    latents: Tensor
    generated: bool

    def trajectory(self, level: int) -> Trajectory:
        """Return the name of the source's latents when it is denoised from z_k: a generated one's are always z_T's."""
        return len(self.latents) - 1 if self.generated else level

    def plan(self, config: EditConfig, level: int, blend: bool, keep: bool) -> Plan:
        """Decide, once for an edit whose target leaves the source at z_k, k = `level`. keep: for later edits."""
        own, levels, record = self.trajectory(level), controlled_levels(config, level), None
        earlier = self.earlier(config, level, blend)
        if earlier is None and keep and config.source_kv != "none" and config.control == "mutual":
            record = self.recorded.writer(own, levels, config.source_kv_memory)
        name = "computed" if earlier is None else earlier.name
        return Plan(earlier, record, own, name if levels else None)

    def earlier(self, config: EditConfig, level: int, blend: bool) -> EarlierPass | None:
        """Return the pass that stands in for denoising the source from z_k, k = `level`; None if none suffices.

        K/V must be there at every level under control, of every controlled block, and of the unconditional row too
        where the edit has guidance; to blend, the latent of every level.
        """
        if config.source_kv == "none" or config.control != "mutual":  # what is replayed is the source's K/V alone
            return None
        recorded, own = self.recorded, self.trajectory(level)
        latents = self.latents if self.generated else recorded.latents.get(own, {})
        passes: list[tuple[str, Trajectory, Mapping[int, Tensor] | Tensor]] = [("recorded", own, latents)]
        if config.source_kv == "inversion":
            passes.append(("inversion", INVERSION, self.latents))
        levels, rows = controlled_levels(config, level), 1 if config.guidance == 1 else 2
        for name, trajectory, its_latents in passes:
            blended = not blend or len(its_latents) > level  # z_level … z_0
            if blended and recorded.covers(trajectory, levels, config.control_blocks, rows):
                return EarlierPass(name, partial(recorded.kv, trajectory, config.control_blocks), its_latents)
        return None


def controlled_levels(config: EditConfig, start: int) -> range:
    """Return the levels k, from `start` down, whose step z_k -> z_{k-1} is under control: from the A-th step of all."""
    return range(0) if config.control_step is None else range(min(start, config.steps - config.control_step), 0, -1)


def own_recording(recorded: Recording, config: EditConfig, trajectory: Trajectory) -> dict[str, Any]:
    """Return the arguments that have inversion or generation keep the K/V of its own passes, if the config wants it."""
    if config.source_kv != "inversion" or config.control != "mutual":
        return {}
    record = recorded.writer(trajectory, controlled_levels(config, config.steps), config.source_kv_memory)
    return {"record": record, "record_blocks": config.control_blocks}


def replayed(
    guided: Guided,
    z_target: Tensor,
    schedule: Schedule,
    levels: range,
    earlier: EarlierPass,
    config: EditConfig,
    progress: ddim.Progress | None = None,
) -> Tensor:
    """Denoise the target's row of `ddim.sample_controlled` alone, on the K/V of an earlier pass: half the work.

    guided: of the target's one row. z_target: (1, C, h, w) at the first of `levels`, of `ddim.levels_between`. Control
    acts at `controlled_levels`. Returns (levels + 1, 1, C, h, w). Raises ValueError where what is needed was not
    recorded.
    """
    if z_target.shape[0] != 1:
        raise ValueError(f"target latent must be (1, C, h, w), came {tuple(z_target.shape)}")
    rows, controlled = 1 if guided.scale == 1.0 else 2, controlled_levels(config, config.steps)

    def hook_at(step: int) -> AttentionHook | None:
        return earlier.hook(levels[step], config.control_blocks, rows) if levels[step] in controlled else None

    return ddim.descend(guided, z_target, schedule, levels, hook_at, blend=earlier.blended, progress=progress)
