"""Processes that share a list of samples, as `torchrun` starts them."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torch.distributed.rendezvous import rendezvous

PATIENCE = datetime.timedelta(days=7)  # of a process whose share is done, for the others


@dataclass(frozen=True)
class Processes:
    """This process among those that `torchrun` started; the only one without it."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> Processes:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls(0, 1)
        store, rank, count = next(rendezvous("env://"))
        # Started again after a process died, the store still holds the addresses of the time before.
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # What is gathered is small and on the CPU, whatever the networks run on.
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
        return cls(rank, count)

    def share(self, names: Sequence[str]) -> Sequence[str]:
        return names[self.rank :: self.count]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Return in every process what `make` gives the first one, or raise its error in every one."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except (OSError, ValueError) as error:
                box[1] = error
        distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def gather(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Return in every process the rows of all, by name in order."""
        parts: list[Any] = [rows]
        if self.count > 1:
            parts = [None] * self.count
            distributed.all_gather_object(parts, rows)
        merged = {name: row for part in parts for name, row in part.items()}
        return {name: merged[name] for name in sorted(merged)}

    def leave(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a list of samples: a row for each that went well, and the reason for each that did not."""

    rows: dict[str, Any]
    failed: dict[str, str]


def each(
    names: Sequence[str],
    processes: Processes,
    do: Callable[[str], Any],
    doing: str,
    reason: Callable[[Exception], str] = str,
) -> Outcome:
    """Do this process's share, one sample after the other, and gather: a sample that fails does not lose the others.

    `reason` says in words why a sample failed.
    """
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    share = processes.share(names)
    for n, name in enumerate(share, start=1):
        print(f"dragbench: {doing} {n}/{len(share)} {name}", file=sys.stderr, flush=True)
        try:
            rows[name] = do(name)
        except Exception as error:  # whatever it is: hundreds of samples do not wait for one
            failed[name] = reason(error)
    return Outcome(processes.gather(rows), processes.gather(failed))
