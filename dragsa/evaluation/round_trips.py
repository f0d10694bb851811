"""The round trip from z_0 to z_T and back: which schedule variant brings a picture back best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from dragsa import ddim
from dragsa.config import EditConfig
from dragsa.ddim import Schedule
from dragsa.evaluation import experiments, quality, sheets, subjects
from dragsa.evaluation.experiments import Choice, Configs, Done, Experiment, Finished, Item, Report, Values
from dragsa.evaluation.runs import Setting
from dragsa.evaluation.tables import Mean
from dragsa.loading import StableDiffusion
from dragsa.pictures import to_tensor, working_size

TRIP_STEPS = (10, 20, 50, 100)
COUNT = 10  # drawn pictures
TRIP_BATCH = 5  # pictures of one size that are inverted together


AGAINST_VAE, AGAINST_PICTURE = "dB against the VAE's", "dB against the picture"
Decibels = dict[str, dict[str, Tensor]]  # one of these two -> schedule variant -> PSNR of each picture, (B,)


@torch.no_grad()
def round_trips(sd: StableDiffusion, pictures: Tensor, prompts: Sequence[str], steps: int) -> Decibels:
    """Take pictures (B, 3, H, W) in [-1, 1] from z_0 to z_T and back under each schedule variant."""
    context, z_0, again = sd.embed(prompts), sd.encode(pictures), {}
    for variant in ddim.VARIANTS:
        schedule = Schedule(steps, variant)
        z_T = ddim.invert(sd.unet, z_0, context, schedule)[-1]
        again[variant] = sd.decode(ddim.sample(sd.unet, z_T, context, schedule)[-1]).clamp(-1, 1)
    truths = {AGAINST_VAE: sd.decode(z_0).clamp(-1, 1), AGAINST_PICTURE: pictures}
    return {name: {v: quality.psnr(one, truth) for v, one in again.items()} for name, truth in truths.items()}


def settings(choice: Choice) -> list[Setting]:
    return [Setting("round trip", EditConfig(size=choice.base.size, paste=False))]


def items(choice: Choice) -> list[Item]:
    """Return one's own pictures one by one, since they may be of any size; drawn ones several together."""
    if choice.own is None:
        mine, batch = (
            subjects.any_scenes(choice.of_list, choice.count or COUNT, choice.base.size, choice.seed),
            TRIP_BATCH,
        )
    else:
        mine, batch = [s for s in choice.own if s.picture is not None], 1
    several = [tuple(mine[n : n + batch]) for n in range(0, len(mine), batch)]
    return [Item("inversion", few, steps) for steps in sorted(TRIP_STEPS, reverse=True) for few in several]


def do(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """Measure each subject's round trip under every schedule variant, at one number of steps, in dB."""
    size, pictures = configs["round trip"].size, [s.picture for s in item.subjects if s.picture is not None]
    tensors = torch.cat([to_tensor(p, working_size(*p.size, size)) for p in pictures])
    found = round_trips(sd, tensors, [s.prompt for s in item.subjects], item.part)
    by_name = {
        which: {s.name: {v: db[n].item() for v, db in by_variant.items()} for n, s in enumerate(item.subjects)}
        for which, by_variant in found.items()
    }
    return Done({}, {"steps": item.part, **by_name})


def report(choice: Choice, finished: Sequence[Finished]) -> Report:
    steps = sorted({one.item.part for one in finished})
    by_steps: dict[int, dict[str, dict[str, float]]] = {n: {} for n in steps}
    for one in finished:
        by_steps[one.item.part] |= one.figures[AGAINST_VAE]

    def of(steps: int, variant: str) -> Mean:
        return experiments.mean_over({name: row[variant] for name, row in by_steps[steps].items()})

    def gain(steps: int, variant: str) -> Values:
        return {name: row["restored"] - row[variant] for name, row in by_steps[steps].items()}

    lines = {variant: [of(n, variant) for n in steps] for variant in ddim.VARIANTS}
    better = "the restored first step brings the picture back better than its omission"
    says = [experiments.statement(f"at T = {n} {better}", gain(n, "omitted"), 1) for n in steps]
    count = len(by_steps[steps[0]])
    notes = [
        f"Inverted and denoised with the same prompt, {count} pictures, seed {choice.seed}; against the VAE's own "
        "reconstruction. Bars: 95 % bootstrap intervals over the pictures.",
        *(f"{one['says']}: {one['verdict']}, by {one['found']} dB." for one in says),
    ]
    summary = {
        "dB": {v: {n: asdict(m) for n, m in zip(steps, row, strict=True)} for v, row in lines.items()},
        "restored minus": {
            v: {n: asdict(experiments.mean_over(gain(n, v))) for n in steps} for v in ddim.VARIANTS if v != "restored"
        },
        "statements": says,
        "notes": notes,
    }
    title = "The round trip from z_0 to z_T and back, by schedule variant and number of steps"
    return Report(sheets.chart(title, [f"T = {n}" for n in steps], lines, "dB", notes), summary)


INVERSION = Experiment("no job has an image", settings, items, do, report)
