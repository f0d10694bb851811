"""FreeDrag (Ling et al. 2023, arXiv 2307.04684) as a drag's supervision: templates that adapt, and no point tracking.

A submotion pulls each handle's template to a point on the line from the handle to its target, for five updates or until
every loss L = mean |F - template| is under half of the loss expected. Then the template takes a share of what is there,
0.5 where L is 0.2 of the loss expected and 0.1 where it is 0.8, and the next point is looked for. The numbers are those
of the authors' program; the mask's term is the drag loop's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragsa import motion
from dragsa.drag import FirstPass, Lap, Supervision, Task, mask_term, no_lap
from dragsa.passes import PreparedPass
from dragsa.tracking import sample_points

UPDATES = 5  # of a submotion, at most


class FreeDrag:
    """A supervision for `drag_latent` and `edit`, to be made anew for each drag: it remembers its submotion.

    expected: the loss that a submotion is to begin with, in units of the features. far: its length at most, in cells
    of the supervision grid. A handle has arrived when it is nearer than `config.reach` and like its template; until
    then it counts as `config.reach` away. None is ever lost. It runs eagerly: `compile` may be "off" or "regions".
    """

    def __init__(self, expected: float, far: float = 4.0) -> None:
        if not expected > 0 or not far > 0:
            raise ValueError(f"FreeDrag: expected loss and length must be over 0, came {expected!r} and {far!r}")
        self.expected, self.small, self.far = expected, expected / 2, far

    def __call__(
        self, run: PreparedPass, task: Task, first_pass: FirstPass | None = None, lap: Lap = no_lap
    ) -> Supervision:
        features, eps = run(task.latent, task.handles, task.frozen is not None)
        seen, at, reach = features.detach(), task.handles, task.config.reach
        now = patches(seen, at, task)  # (n, P, C)
        lap("forward")
        if first_pass is None:
            self.updates, self.template = UPDATES, now
            self.begun = self.loss = torch.zeros_like(at[:, 0])  # (n,), of the submotion's first update and of the last
        if self.updates == UPDATES or bool(self.loss.max() < self.small):
            end = (now - self.template).abs().mean(dim=(1, 2))  # (n,)
            arrived = (end <= self.small) & ((task.targets - at).norm(dim=1) < reach)
            share = torch.where(arrived, 1, 1 / (1 + 9 ** ((end / self.expected - 0.2) / 0.6)))
            self.template = torch.lerp(self.template, now, share[:, None, None])
            at = torch.where(arrived[:, None], at, self.next_point(seen, at, end, task))
            self.updates = 0
        loss = (patches(features, at, task) - self.template).abs().mean(dim=(1, 2))  # (n,)
        self.updates, self.loss = self.updates + 1, loss.detach()
        self.begun = self.loss if self.updates == 1 else self.begun
        kept, z_prev = mask_term(task, eps, first_pass)
        distances = (task.targets - at).norm(dim=1)
        distances = torch.where(self.loss <= self.small, distances, distances.clamp(min=reach))
        lap("loss")
        lost = torch.zeros_like(at[:, 0], dtype=torch.bool)
        return Supervision(loss.sum() + kept, at, distances, lost, FirstPass(seen, z_prev, at.clone()))

    def next_point(self, seen: Tensor, at: Tensor, end: Tensor, task: Task) -> Tensor:
        """Return where the handles (n, 2) are pulled to next: ten points ahead of each are tried.

        Where the last submotion's loss came to be small, the point whose loss is nearest to what is expected. Where it
        only fell, the handle stays. Where it rose, the search begins one length behind and wants the least loss.
        """
        on = end < self.small
        back = ~on & (end >= self.begun)
        start = torch.where(back[:, None], at - ahead(at, task.targets, self.far), at)
        way = torch.where(back[:, None], ahead(start, task.targets, 2 * self.far), ahead(at, task.targets, self.far))
        line = torch.stack([start + n / 10 * way for n in range(1, 11)])  # (10, n, 2)
        off = torch.stack([(patches(seen, there, task) - self.template).abs().mean(dim=(1, 2)) for there in line])
        best = (off - torch.where(on, self.expected, 0)).abs().argmin(dim=0)  # (n,)
        return torch.where((on | back)[:, None], line[best, torch.arange(len(at), device=at.device)], at)


def ahead(at: Tensor, targets: Tensor, far: float) -> Tensor:
    """Return the way to the targets (n, 2), or the first `far` cells of it."""
    return motion.direction(at, targets) * (targets - at).norm(dim=1, keepdim=True).clamp(max=far)


def patches(features: Tensor, points: Tensor, task: Task) -> Tensor:
    """Return the features about points (n, 2) of the grid, or between its cells: (n, P, C), P = (2 r₁ + 1)²."""
    side = torch.arange(-task.config.radius, task.config.radius + 1).to(points)
    cells = points[:, None] + torch.cartesian_prod(side, side)  # (n, P, 2)
    return sample_points(features, cells.flatten(0, 1), task.grid).unflatten(0, cells.shape[:2])
