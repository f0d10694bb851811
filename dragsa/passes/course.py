"""The course of a drag: what each update was, when the loop ends and why, and what it gives back.

The paper's loop ends on arrival or when its updates are used up; the other reasons tell a loop that will not arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dragsa.config import DragConfig


@dataclass(frozen=True)
class Update:
    """One update, when it is done."""

    update: int  # from 1
    total: int  # at most so many
    loss: float
    handles: Tensor  # (n, 2) float32 on the CPU, those that the update used
    distances: Tensor  # (n,) from them to the targets, in cells
    latent: Tensor  # (1, 4, h, w) after it
    before: Tensor  # (1, 4, h, w) that it began from
    lost: Tensor  # (n,) bool on the CPU, see `Supervision`
    finite: bool  # loss and gradient are


Observe = Callable[[Update], object]  # told of every update; where it returns STOP the loop ends with that
STOP = "stop"


class DragResult(NamedTuple):
    """The dragged latent, and the course of the loop on the CPU, float32.

    `reason` tells why the loop ended:

    - "reached": every handle is nearer than `config.reach` to its target (before the first pass: no update);
    - "budget": `config.updates` updates are done;
    - "not moving": through `config.patience` updates tracking has found every handle, but for those that have arrived,
      where it was;
    - "tracking lost": through `config.lost_patience` updates nothing in the window of a handle that has not arrived is
      nearer to what is looked for than the average cell of the whole map, so that the match means nothing;
    - "no nearer": through `config.stall` updates the handles' mean distance has not come below its least;
    - "stopped": the observer returned "stop";
    - "not finite": loss, gradient or latent is not. The update that led there is undone and not counted.

    `final_handles` is where tracking found the handles last, or with `DragConfig.stall` nearest. Where the loop ended
    on what it had found ("reached", "not moving", "tracking lost") that is in the returned latent; where the budget
    ended it, in the latent before the last update, since to look once more would cost a pass.
    """

    latent: Tensor  # (1, 4, h, w)
    losses: Tensor  # (updates,)
    handles: Tensor  # (updates, n, 2), those that each update used
    distances: Tensor  # (updates, n), from them to the targets in cells
    final_handles: Tensor  # (n, 2)
    reason: str


class Nearest(NamedTuple):
    """The latent in which the handles have been nearest to their targets so far."""

    distance: float  # mean over the handles, in cells
    latent: Tensor  # (1, 4, h, w)
    handles: Tensor  # (n, 2)
    updates: int  # that led there


class Course:
    """The state that a loop's updates have come to so far, and the reason to end it, if there is one yet."""

    def __init__(self, latent: Tensor, handles: Tensor, targets: Tensor, config: DragConfig) -> None:
        self.config, self.targets = config, targets
        self.latent, self.handles, self.distances = latent, handles, (targets - handles).norm(dim=1)
        self.done: list[Update] = []
        self.nearest = Nearest(math.inf, latent, handles, 0)
        self.unmoved, self.lost = 0, torch.zeros(len(handles), dtype=torch.long)  # for so many updates in succession
        self.reason = "reached" if bool((self.distances < config.reach).all()) else None
        if self.reason is None and config.updates == 0:
            self.reason = "budget"

    def go_on(self, update: Update) -> bool:
        """Take an update, or the reason to end the loop before it; tell which."""
        if not update.finite:  # and the one that led there is undone
            self.reason = "not finite"
            if self.done:
                undone = self.done.pop()
                self.latent, self.handles = undone.before, undone.handles
            return False
        pulled = self.distances >= self.config.reach
        stayed = (update.handles == self.handles) | (update.handles == self.handles.trunc())  # as tracking begins
        moved = not self.done or not bool(stayed[pulled].all())
        self.unmoved = 0 if moved else self.unmoved + 1
        self.handles, self.distances = update.handles, update.distances
        active = update.distances >= self.config.reach
        self.lost = torch.where(update.lost & active, self.lost + 1, 0)
        if update.distances.mean() < self.nearest.distance:
            self.nearest = Nearest(update.distances.mean().item(), update.before, update.handles, len(self.done))
        stalled = len(self.done) - self.nearest.updates
        self.reason = why_stop(active, self.unmoved, self.lost, stalled, self.config)
        if self.reason is None and not update.latent.isfinite().all():
            self.reason = "not finite"
        if self.reason is not None:
            return False
        self.done.append(update)
        self.latent = update.latent
        if len(self.done) == self.config.updates:
            self.reason = "budget"
        return True

    def result(self) -> DragResult:
        """Return what the loop gives back: with `stall`, where it did not reach the targets, the nearest latent."""
        latent, handles = self.latent, self.handles
        if self.done and self.config.stall is not None and self.reason != "reached":
            latent, handles = self.nearest.latent, self.nearest.handles
        used = [update.handles for update in self.done]  # (n, 2) each
        course = torch.stack(used) if used else handles.new_zeros(0, *handles.shape)
        return DragResult(
            latent=latent,
            losses=torch.tensor([update.loss for update in self.done], dtype=torch.float32),
            handles=course,
            distances=(self.targets - course).norm(dim=2),
            final_handles=handles,
            reason=self.reason or "budget",
        )


def why_stop(active: Tensor, unmoved: int, lost: Tensor, stalled: int, config: DragConfig) -> str | None:
    """Return the reason to end the loop before another update, or None.

    active: (n,) bool, the handles that have not arrived. unmoved, lost (n,), stalled: updates in succession without a
    move of any handle, without a match for each, and without coming nearer.
    """
    if not active.any():
        return "reached"
    if config.lost_patience is not None and bool((lost >= config.lost_patience).any()):
        return "tracking lost"
    if config.patience is not None and unmoved >= config.patience:
        return "not moving"
    if config.stall is not None and stalled >= config.stall:
        return "no nearer"
    return None
