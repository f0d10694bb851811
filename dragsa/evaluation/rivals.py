"""Figure 4: the same drags by DragDiffusion, without and with its LoRA, and by ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dragsa import editing
from dragsa.editing import Source
from dragsa.evaluation import experiments, sheets, subjects
from dragsa.evaluation.experiments import Choice, Configs, Done, Experiment, Finished, Item, Report, Values
from dragsa.evaluation.runs import Setting, drag_rivals
from dragsa.evaluation.sheets import Panel, Row
from dragsa.loading import StableDiffusion

COUNT = 10  # drawn pictures
FIGURE_STEP = 10  # the paper's A = S in figure 4


def settings(choice: Choice) -> list[Setting]:
    """Return settings with the paper's A = S, in its figure's order: DragDiffusion first, ours last."""
    base = replace(choice.base, control_step=FIGURE_STEP, drag_step=FIGURE_STEP, source_kv="none")
    ours, *others = drag_rivals(base)
    return [*others, ours]


def items(choice: Choice) -> list[Item]:
    if choice.own is None:
        mine = subjects.benchmark(choice.of_list, choice.count or COUNT, choice.base.size, choice.seed)
    else:
        mine = [s for s in choice.own if s.picture is not None and s.drags]
    return [Item("fig4", (subject,)) for subject in mine]


def do(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """Make the same drags by every method. What two methods share is done once, and counted for each."""
    (subject,) = item.subjects
    assert subject.picture is not None
    sources: dict[Any, Source] = {}
    pictures, figures = {"source": subject.picture}, {}
    if subject.case is not None:
        pictures["truth"] = subject.case.truth
    for name, config in configs.items():
        inversion = config.variant, config.lora_steps
        if inversion not in sources:
            sources[inversion] = editing.prepare(sd, subject.picture, subject.prompt, subject.seed, config)
        source = sources[inversion]
        result = editing.edit(sd, source, subject.drags, subject.mask, config=config)
        stages = {**source.seconds, **result.trace.seconds}
        seconds = {"lora": stages.get("lora", 0.0), "all": sum(stages.values())}
        pictures[name] = result.image
        measured = subjects.measure(sd, subject, subject.picture, result.image, config.size)
        course = {"stop": result.trace.stop, "updates": len(result.trace.losses)}
        figures[name] = {**measured, **course, "seconds": seconds, "stages": stages}
    return Done(pictures, {"prompt": subject.prompt, "drags": subject.drags, "results": figures})


HEADS = {
    "source": "source",
    "truth": "truth",
    "dragdiffusion-first": "DragDiffusion (first version), without LoRA",
    "dragdiffusion-first-lora": "DragDiffusion (first version), with LoRA",
    "dragdiffusion": "DragDiffusion with K/V control, without LoRA",
    "dragdiffusion-lora": "DragDiffusion with K/V control, with LoRA",
    "ours": "ours",
}
OURS = "ours"
COMPARED = {  # figure -> what ours does if its difference has the sign
    "share": ("leaves less of the distance", -1),
    "background": ("changes less of the background", -1),
    "style_margin": ("keeps more of the style", 1),
}


def report(choice: Choice, finished: Sequence[Finished]) -> Report:
    heads = {name: head for name, head in HEADS.items() if any(one.picture(name) for one in finished)}
    rows = []
    for one in finished:
        lines = {name: experiments.lines_of(result) for name, result in one.results.items()}
        panels = [Panel(one.picture(name), lines.get(name, ())) for name in list(heads)[1:]]
        rows.append(Row(f"{one.item.name}\n{one.figures['prompt']}", [one.source_panel(), *panels]))
    names = [name for name in heads if name not in ("source", "truth")]
    means = {}
    for name in names:
        spent = {one.item.name: one.results[name]["seconds"]["all"] for one in finished}
        means[name] = {**experiments.means_of(finished, name), "seconds": asdict(experiments.mean_over(spent))}
    measured = {key: sides for key, sides in COMPARED.items() if any(key in one.results[OURS] for one in finished)}
    against = {
        name: {key: asdict(experiments.mean_over(paired(finished, name, key))) for key in measured} for name in names
    }
    says = [
        experiments.statement(f"ours {does} than {HEADS[name]}", paired(finished, name, key), sign)
        for name in names
        if name != OURS
        for key, (does, sign) in measured.items()
    ]
    ours = choice.base
    notes = [
        f"The same drags, masks and numbers for all: T = {ours.steps}, drag step {FIGURE_STEP}, "
        f"{experiments.drag_words(ours)}, seed {choice.seed}; control from step {FIGURE_STEP} (ours), from the first "
        "(DragDiffusion with K/V control), never (its first version, of June 2023). Where the prompt stays, control "
        "before the drag changes nothing, so that ours and DragDiffusion with K/V control and without LoRA differ in "
        "the schedule's clean end alone.",
        "Mean over the pictures: " + "; ".join(f"{HEADS[n]}: {mean_words(means[n])}" for n in names) + ".",
        f"{experiments.LEFT_NOTE[choice.own is None]} Seconds are of the whole edit, inversion and LoRA included, on "
        "one thread.",
        *(f"{one['says']}: {one['verdict']}, {one['found']}." for one in says),
    ]
    title = "Figure 4: the same drags by DragDiffusion and by ours"
    summary = {"means": means, "ours minus": against, "statements": says, "notes": notes}
    return Report(sheets.sheet(title, list(heads.values()), rows, notes), summary)


def mean_words(means: Mapping[str, Any]) -> str:
    words = []
    for key, unit in (("share", " of the distance left"), ("background", " background"), ("seconds", " s")):
        if key in means and means[key]["mean"] is not None:
            words.append(f"{means[key]['mean']:.{0 if key == 'seconds' else 2}f}{unit}")
    return ", ".join(words)


def paired(finished: Sequence[Finished], name: str, key: str) -> Values:
    """Return ours minus another, picture by picture."""
    mine, theirs = ({one.item.name: one.results[which] for one in finished} for which in (OURS, name))
    return experiments.differences(mine, theirs, key)


FIG4 = Experiment("no job has an image and a drag", settings, items, do, report)
