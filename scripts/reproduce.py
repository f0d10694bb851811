"""The paper's figures and its table again, as far as the given model can draw them.

    python scripts/reproduce.py fig2 [FOLDER]       a real picture: inverted, changed by the prompt, then dragged
    python scripts/reproduce.py fig3 [FOLDER]       the same of a generated picture
    python scripts/reproduce.py fig4 [FOLDER]       source, DragDiffusion without and with its LoRA, ours
    python scripts/reproduce.py table1 [FOLDER]     control step 4 … 8 by drag step 4 … 8
    python scripts/reproduce.py inversion [FOLDER]  the round trip under each schedule variant: the restored first step
    python scripts/reproduce.py all [FOLDER]        all of them

FOLDER is out/reproduce by default. The small model that ships knows drawn scenes (scenes.py), and is shown held-out
ones, whose truth is known. `--weights` takes SD 1.5, and `--images JOBS.json` one's own pictures: a job file of `dragsa
edit`, of which subjects.py says what counts.

Each writes FOLDER/<name>.png and FOLDER/<name>.json, with every number and setting, and whether our numbers bear out
what the paper says of its own. What is done of a picture is a folder, there whole or not at all: a run that was broken
off goes on where it stood. One of other settings, weights, seed or pictures is refused.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import evaluate
import intervals
import measure_small
import numpy as np
import sheets
import subjects
import torch
import truth_bench
from intervals import Mean
from PIL import Image
from sheets import Panel, Row
from subjects import Subject
from truth_bench import Setting

from dragsa import cli, ddim, editing, files
from dragsa.config import EditConfig
from dragsa.editing import Drag, Source
from dragsa.loading import StableDiffusion
from dragsa.methods import prompt_to_prompt
from dragsa.pictures import drawing, images, trace

FOLDER = Path("out") / "reproduce"
COUNT = {"fig2": 4, "fig3": 4, "fig4": 10, "table1": 5, "inversion": 10}  # drawn pictures of each
GUIDANCE = {"small": truth_bench.GUIDANCE, "sd15": 7.5}  # of edits by the prompt
TABLE_STEPS = tuple(range(4, 9))  # of control and of drag in the paper's table 1
BEYOND = (10, 12)  # drag steps, at the last of the control steps: whether the change has settled
TABLE_LR, TABLE_UPDATES = 0.01, 80  # the paper's
FIGURE_STEP = 10  # the paper's A = S in figure 4
DECIDING = 5  # pictures at least, for a sentence to stand or fall
TRIP_STEPS = (10, 20, 50, 100)
TRIP_BATCH = 5  # pictures of one size that are inverted together


@dataclass(frozen=True)
class Item:
    """What is done in one go: an experiment's `part`, if it has parts, of one subject, or of several."""

    experiment: str
    subjects: tuple[Subject, ...]
    part: int | None = None

    @property
    def name(self) -> str:
        whose = "_".join((self.subjects[0].name, *(s.name for s in self.subjects[1:][-1:])))
        return whose if self.part is None else f"{whose}_{self.part}"


class Done(NamedTuple):
    """Pictures by name, and figures as values for JSON."""

    pictures: dict[str, Image.Image]
    figures: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """An item as its folder has it."""

    item: Item
    folder: Path

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads((self.folder / "figures.json").read_text())

    def picture(self, name: str) -> Image.Image | None:
        file = self.folder / f"{name}.png"
        return images.open_picture(file) if file.is_file() else None


class Report(NamedTuple):
    """An experiment's picture, and the numbers over all items."""

    picture: Image.Image
    summary: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What the command line asks for. `own`: one's own pictures; None for drawn ones."""

    base: EditConfig
    guidance: float
    seed: int
    count: int | None
    own: tuple[Subject, ...] | None

    def number_of(self, experiment: str) -> int:
        return COUNT[experiment] if self.count is None else self.count


Configs = Mapping[str, EditConfig]


# -------------------------------------------------------------------------------------------- figures 2 and 3


def prompt_settings(choice: Choice) -> list[Setting]:
    """Of the prompt's edit under each control, and of the drag that follows it under ours."""
    ours = replace(choice.base, guidance=choice.guidance, source_kv="none")
    masked = replace(ours, control="masked", object_words=("face",) if choice.own is None else ())
    return [Setting("mutual", ours), Setting("union", replace(ours, control="union")), Setting("masked", masked)]


def prompt_items(experiment: str, choice: Choice) -> list[Item]:
    size, seed = choice.base.size, choice.seed
    if choice.own is not None:
        mine = [s for s in choice.own if (s.picture is None) == (experiment == "fig3") and s.target_prompt and s.drags]
    elif experiment == "fig2":
        mine = subjects.turning_faces(choice.number_of(experiment), size, seed)
    else:
        mine = subjects.generated_faces(choice.number_of(experiment), seed)
    return [Item(experiment, (subject,)) for subject in mine]


def prompt_then_drag(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """The source, its round trip, the prompt's edit under each control and by Prompt-to-Prompt, then the drag."""
    (subject,), ours = item.subjects, configs["mutual"]
    # A generated source's own guidance is the edit's: both halves then have their own row to attend to.
    source = editing.prepare(sd, subject.picture, subject.prompt, subject.seed, ours)
    pictures = {"source": source.picture}
    given: dict[str, Any] = {"prompt": subject.prompt, "target_prompt": subject.target_prompt, "seed": subject.seed}
    if not source.generated:
        pictures["inverted"] = truth_bench.reconstruct(sd, source)
        given["inverted"] = {"db": decibels(source.picture, pictures["inverted"])}
    asked = subjects.found_face(subject, source.picture) if subject.shown is not None else subject
    if asked is None:
        return Done(pictures, {**given, "face": False})
    results: dict[str, tuple[Image.Image, float]] = {}
    for name, config in configs.items():
        if config.control == "masked" and not asked.object_words:
            continue
        config = replace(config, object_words=asked.object_words if config.control == "masked" else ())
        results[name] = timed(partial(edited, sd, source, config, asked))
    results["prompt-to-prompt"] = timed(partial(by_prompt_to_prompt, sd, source, asked.target_prompt or "", ours))
    results["then dragged"] = timed(partial(edited, sd, source, ours, asked, asked.drags))
    figures = {}
    for name, (picture, seconds) in results.items():
        measured = subjects.figures(sd, asked, source.picture, picture, ours.size)
        pictures[name], figures[name] = picture, {**measured, "seconds": seconds}
    if asked.case is not None and not source.generated:
        pictures["truth"] = asked.case.truth
    return Done(pictures, {**given, "target_prompt": asked.target_prompt, "drags": asked.drags, "results": figures})


def edited(
    sd: StableDiffusion, source: Source, config: EditConfig, subject: Subject, drags: Sequence[Drag] = ()
) -> Image.Image:
    """The subject's prompt edit, with a drag behind it where `drags` are given."""
    mask = subject.mask if drags else None
    return editing.edit(sd, source, drags, mask, target_prompt=subject.target_prompt, config=config).image


def timed(make: Callable[[], Image.Image]) -> tuple[Image.Image, float]:
    begin = time.perf_counter()
    picture = make()
    return picture, time.perf_counter() - begin


@torch.no_grad()
def by_prompt_to_prompt(sd: StableDiffusion, source: Source, target_prompt: str, config: EditConfig) -> Image.Image:
    """Prompt-to-Prompt's edit: words replaced where the prompts have as many, else refined by further ones."""
    kind = "replacement" if len(source.prompt.split()) == len(target_prompt.split()) else "refinement"
    change = prompt_to_prompt.prompt_edit(sd.text, source.prompt, target_prompt, kind)
    uncond, context = sd.embed(["", source.prompt, target_prompt]).split([1, 2])
    z_T, steps = source.latents[-1], source.schedule.steps
    zs = ddim.sample_controlled(
        sd.unet, z_T, z_T, context, source.schedule, guidance=(source.guidance, config.guidance), uncond=uncond,
        hook_at=lambda step: change.hook_at(step, steps),
    )  # fmt: skip
    return images.restore(images.to_picture(sd.decode(zs[-1, 1:])), source.picture)


def decibels(one: Image.Image, other: Image.Image) -> float:
    x, y = (images.to_tensor(picture) for picture in (one, other))
    return min(evaluate.BEST_DB, 10 * math.log10(4 / max(1e-12, (x - y).square().mean().item())))


HEADS = {  # of figures 2 and 3
    "source": "source",
    "inverted": "inverted and denoised",
    "mutual": "prompt, mutual self-attention",
    "union": "prompt, union",
    "masked": "prompt, masked by words",
    "prompt-to-prompt": "Prompt-to-Prompt",
    "then dragged": "prompt (mutual), then drag",
    "truth": "truth",
}


def prompt_report(experiment: str, choice: Choice, finished: Sequence[Finished]) -> Report:
    heads = {name: head for name, head in HEADS.items() if any(one.picture(name) for one in finished)}
    rows = []
    for one in finished:
        figures = one.figures
        results = figures.get("results", {})
        panels = []
        for name in heads:
            lines: tuple[str, ...] = ()
            if name == "source":
                lines = (f"seed {figures['seed']}",) if experiment == "fig3" else ()
                lines += () if results else ("no face to turn was found",)
            elif name == "inverted":
                lines = (f"{figures['inverted']['db']:.1f} dB",)
            elif name in results:
                lines = lines_of(results[name])
            panels.append(Panel(one.picture(name), lines))
        rows.append(Row(f"{figures['prompt']}\nbecomes\n{figures['target_prompt']}", panels))
    ours = choice.base
    what = "a real picture" if experiment == "fig2" else "a generated picture"
    notes = [
        f"T = {ours.steps}, control step {ours.control_step}, drag step {ours.drag_step}, guidance {choice.guidance:g} "
        f"of the prompt's edit, {drag_words(ours)}, seed {choice.seed}.",
        LEFT_NOTE[choice.own is None],
    ]
    if experiment == "fig3" and choice.own is None:
        notes.append("Here the background is compared with the source, outside of what the face sweeps.")
    names = {name for one in finished for name in one.figures.get("results", {})}
    summary = {name: means_of(finished, ("results", name)) for name in sorted(names)}
    title = f"Figure {experiment[-1]}: {what}, changed by the prompt under control, then dragged"
    return Report(sheets.sheet(title, list(heads.values()), rows, notes), {"means": summary, "notes": notes})


LEFT_NOTE = {  # drawn or one's own
    True: "Distance left: of where the scene's object is found in the picture, from the exact truth. Background: mean "
    "difference from the truth where no object is, of 255.",
    False: "Distance left: of where DIFT finds the handles in the result. Background: mean difference from the source "
    "outside of the mask, of 255; without a mask it is not measured.",
}


def drag_words(config: EditConfig) -> str:
    drag = config.drag
    return (
        f"tap {drag.tap}, {drag.optimizer}, learning rate {drag.lr:g}, at most {drag.updates} updates, r_1 = "
        f"{drag.radius}, {drag.anchor:g} anchored"
    )


def lines_of(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands under a result."""
    lines = []
    if figures["left"] is not None:
        lines.append(f"left {figures['left']:.1f} px ({figures['share']:.0%})")
    if figures["background"] is not None:
        lines.append(f"background {figures['background']:.1f}")
    seconds = figures["seconds"]
    if isinstance(seconds, Mapping):
        lora = f", LoRA {seconds['lora']:.0f}" if seconds["lora"] else ""
        lines.append(f"{seconds['all']:.0f} s{lora}")
    else:
        lines.append(f"{seconds:.0f} s")
    return tuple(lines)


MEASURED = ("left", "share", "background", "changed", "yaw_left", "object_colour", "overlap", "truth_db")


def means_of(finished: Sequence[Finished], path: Sequence[str]) -> dict[str, Any]:
    """Mean and interval of every figure of one result, over the subjects that have it."""
    of_subject = {one.item.name: at(one.figures, path) for one in finished}
    rows = {name: row for name, row in of_subject.items() if row is not None}
    found = {
        key: asdict(mean_over({name: row.get(key) for name, row in rows.items()}))
        for key in MEASURED
        if any(row.get(key) is not None for row in rows.values())
    }
    return {"pictures": len(rows), **found}


def at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = None if value is None else value.get(key)
    return value


Values = Mapping[str, float | None]  # of one figure, by the subject's name


def mean_over(values: Values) -> Mean:
    """The mean over pictures with its bootstrap interval."""
    return intervals.summarise({name: [value] for name, value in values.items()}).per_picture


# ------------------------------------------------------------------------------------------------------- figure 4


def rival_settings(choice: Choice) -> list[Setting]:
    """The paper's A = S for all, and its figure's order: DragDiffusion first, ours last."""
    base = replace(choice.base, control_step=FIGURE_STEP, drag_step=FIGURE_STEP, source_kv="none")
    ours, *others = truth_bench.drag_rivals(base)
    return [*others, ours]


def rival_items(choice: Choice) -> list[Item]:
    if choice.own is None:
        mine = subjects.benchmark(choice.number_of("fig4"), choice.base.size, choice.seed)
    else:
        mine = [s for s in choice.own if s.picture is not None and s.drags]
    return [Item("fig4", (subject,)) for subject in mine]


def rivals(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """The same drags by every method. What two methods share is done once, and counted for each."""
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
        measured = subjects.figures(sd, subject, subject.picture, result.image, config.size)
        course = {"stop": result.trace.stop, "updates": len(result.trace.losses)}
        figures[name] = {**measured, **course, "seconds": seconds, "stages": stages}
    return Done(pictures, {"prompt": subject.prompt, "drags": subject.drags, "results": figures})


RIVAL_HEADS = {
    "source": "source",
    "truth": "truth",
    "dragdiffusion-first": "DragDiffusion (first version), without LoRA",
    "dragdiffusion-first-lora": "DragDiffusion (first version), with LoRA",
    "dragdiffusion": "DragDiffusion with K/V control, without LoRA",
    "dragdiffusion-lora": "DragDiffusion with K/V control, with LoRA",
    "ours": "ours",
}
OURS, FIRST = "ours", "dragdiffusion-first"


def rival_report(choice: Choice, finished: Sequence[Finished]) -> Report:
    heads = {name: head for name, head in RIVAL_HEADS.items() if any(one.picture(name) for one in finished)}
    rows = []
    for one in finished:
        results = one.figures["results"]
        picture = one.picture("source")
        panels = [Panel(picture and with_drags(picture, one.item.subjects[0]))]
        panels += [Panel(one.picture(n), lines_of(results[n]) if n in results else ()) for n in list(heads)[1:]]
        rows.append(Row(f"{one.item.name}\n{one.figures['prompt']}", panels))
    names = [name for name in heads if name not in ("source", "truth")]
    means = {}
    for name in names:
        spent = {one.item.name: one.figures["results"][name]["seconds"]["all"] for one in finished}
        means[name] = {**means_of(finished, ("results", name)), "seconds": asdict(mean_over(spent))}
    against = {
        name: {key: asdict(mean_over(paired(finished, name, key))) for key in ("share", "background")} for name in names
    }
    says = [
        statement(f"ours {less} than {RIVAL_HEADS[name]}", paired(finished, name, key), -1)
        for name in names
        if name != OURS
        for less, key in (("leaves less of the distance", "share"), ("changes less of the background", "background"))
    ]
    ours = choice.base
    notes = [
        f"The same drags, masks and numbers for all: T = {ours.steps}, drag step {FIGURE_STEP}, {drag_words(ours)}, "
        f"seed {choice.seed}; control from step {FIGURE_STEP} (ours), from the first (DragDiffusion with K/V control), "
        "never (its first version, of June 2023). Where the prompt stays, control before the drag changes nothing, so "
        "that ours and DragDiffusion with K/V control and without LoRA differ in the schedule's clean end alone.",
        "Mean over the pictures: " + "; ".join(f"{RIVAL_HEADS[n]}: {mean_words(means[n])}" for n in names) + ".",
        LEFT_NOTE[choice.own is None] + " Seconds are of the whole edit, inversion and LoRA included, on one thread.",
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
    """Ours minus another, picture by picture."""
    values: dict[str, float | None] = {}
    for one in finished:
        mine, theirs = (one.figures["results"][which][key] for which in (OURS, name))
        values[one.item.name] = None if mine is None or theirs is None else mine - theirs
    return values


def statement(says: str, values: Values, sign: int) -> dict[str, Any]:
    """A sentence, the mean that it stands or falls with, and whether that has the sign, with its whole interval.

    Few pictures may agree by chance, and a bootstrap of few does not see it: under `DECIDING` nothing is decided.
    """
    mean, pictures = mean_over(values), sum(value is not None for value in values.values())
    verdict = "not decided, the interval holds zero"
    if mean.low is None or mean.high is None or pictures < DECIDING:
        verdict = f"not decided, too few pictures ({pictures})"
    elif min(sign * mean.low, sign * mean.high) > 0:
        verdict = "borne out"
    elif max(sign * mean.low, sign * mean.high) < 0:
        verdict = "contradicted"
    return {
        "says": says,
        "sign": sign,
        "pictures": pictures,
        "verdict": verdict,
        "found": intervals.text(mean),
        **asdict(mean),
    }


def with_drags(picture: Image.Image, subject: Subject) -> Image.Image:
    """The picture, enlarged, with the drags on it."""
    shown = trace.Trace(
        config=EditConfig(), seed=subject.seed, prompt="", target_prompt=None, generated=False,
        picture_size=picture.size, working_size=picture.size, grid_size=picture.size, weights="", drags=subject.drags,
    )  # fmt: skip
    return drawing.draw_path(picture, shown, max(1, round(2 * sheets.SIDE / max(picture.size))))


# -------------------------------------------------------------------------------------------------------- table 1


def table_config(choice: Choice) -> EditConfig:
    """The base with the paper's learning rate, updates and optimiser."""
    optimizer = EditConfig.paper().drag.optimizer
    drag = replace(choice.base.drag, lr=TABLE_LR, updates=TABLE_UPDATES, optimizer=optimizer)
    return replace(choice.base, drag=drag, guidance=choice.guidance)


def table_settings(choice: Choice) -> list[Setting]:
    """One; control and drag step are the table's, and the item's part says which drag step."""
    return [Setting("table", table_config(choice))]


def table_items(choice: Choice) -> list[Item]:
    if choice.own is None:
        mine = subjects.restyled(choice.number_of("table1"), choice.base.size, choice.seed)
    else:
        mine = [s for s in choice.own if s.picture is not None and s.drags and s.target_prompt]
    return [Item("table1", (subject,), step) for subject in mine for step in (*TABLE_STEPS, *BEYOND)]


FREE = "without control"
OWN = "like the prompt's own"  # what the prompt gives without control


def table_column(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """One drag step's edits under every control step, and without control, which is what the prompt makes of it."""
    (subject,), step, config = item.subjects, item.part, configs["table"]
    assert subject.picture is not None and step is not None
    source = editing.prepare(sd, subject.picture, subject.prompt, subject.seed, config)
    steps: tuple[int | None, ...] = (None, *TABLE_STEPS) if step in TABLE_STEPS else (TABLE_STEPS[-1],)
    pictures, figures = {}, {}
    for control_step in steps:
        name = FREE if control_step is None else f"control-{control_step}"
        now = replace(config, drag_step=step, control_step=control_step)
        pictures[name] = edited(sd, source, now, subject, subject.drags)
        figures[name] = {
            "changed": subjects.difference(subject.picture, pictures[name]),
            OWN: likeness(pictures[name], pictures[FREE]) if FREE in pictures else None,
        }
    given = {"prompt": subject.prompt, "target_prompt": subject.target_prompt, "drags": subject.drags}
    return Done({"source": subject.picture, **pictures}, {**given, "drag step": step, "results": figures})


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity of two pictures' light and shade."""
    x, y = (images.to_tensor(p.convert("L"))[0] for p in (one, other))
    return evaluate.ssim(x, y)


def table_report(choice: Choice, finished: Sequence[Finished]) -> Report:
    by_subject: dict[str, dict[int, Finished]] = {}
    for one in finished:
        by_subject.setdefault(one.item.subjects[0].name, {})[one.item.part or 0] = one
    values = {
        name: {step: one.figures["results"] for step, one in columns.items()} for name, columns in by_subject.items()
    }

    def cell(key: str, control_step: int, step: int) -> Mean:
        return mean_over({name: rows[step][f"control-{control_step}"][key] for name, rows in values.items()})

    changed = {f"A {a}, S {s}": asdict(cell("changed", a, s)) for a in TABLE_STEPS for s in TABLE_STEPS}
    last = TABLE_STEPS[-1]
    for step in BEYOND:
        changed[f"A {last}, S {step}"] = asdict(cell("changed", last, step))
    like = {f"A {a}, S {s}": asdict(cell(OWN, a, s)) for a in TABLE_STEPS for s in TABLE_STEPS}
    lower, later = (correlations(values, *of) for of in (("changed", "drag"), (OWN, "control")))
    settled = {
        name: settling({s: rows[s][f"control-{last}"]["changed"] for s in rows}) for name, rows in values.items()
    }
    says = [
        statement(
            "the lower the drag step, the larger the change (rank correlation of drag step and change)",
            lower, -1,
        ),
        statement(
            f"the change has settled from drag step {last} on (by how much steeper it falls, a step, from "
            f"{TABLE_STEPS[0]} to {last} than from {last} to {BEYOND[-1]})",
            settled, 1,
        ),
        statement(
            "a later control step follows the target prompt's structure more (rank correlation of control step and "
            "likeness to what the prompt gives without control)",
            later, 1,
        ),
    ]  # fmt: skip
    first = next(iter(by_subject.values()))
    figures = {step: first[step].figures["results"] for step in TABLE_STEPS}
    rows = []
    for control_step in (*TABLE_STEPS, None):
        name = FREE if control_step is None else f"control-{control_step}"
        panels = []
        for step in TABLE_STEPS:
            lines = [f"changed {figures[step][name]['changed']:.1f}"]
            if control_step is not None:
                lines[0] += f", mean {cell('changed', control_step, step).mean:.1f}"
                lines.append(f"like the prompt's {figures[step][name][OWN]:.2f}")
            panels.append(Panel(first[step].picture(name), tuple(lines)))
        rows.append(Row(FREE if control_step is None else f"control step {control_step}", panels))
    shown = first[TABLE_STEPS[0]]
    subject, source = shown.item.subjects[0], shown.picture("source")
    rows.append(Row("source", [Panel(source and with_drags(source, subject))]))
    notes = [
        f"{subject.prompt}, to become {subject.target_prompt}. T = {choice.base.steps}, "
        f"{drag_words(table_config(choice))}, guidance {choice.guidance:g}, seed {choice.seed}. "
        f"Changed: mean difference from the source, of 255; the mean is over {len(by_subject)} pictures. Like the "
        "prompt's: structural similarity to the same prompt and drag without control.",
        *(f"The paper: {one['says']}. Ours: {one['verdict']}, {one['found']}." for one in says),
    ]
    title = "Table 1: control step (rows) by drag step (columns)"
    heads = [f"drag step {step}" for step in TABLE_STEPS]
    summary = {"changed": changed, OWN: like, "statements": says, "notes": notes}
    return Report(sheets.sheet(title, heads, rows, notes), summary)


Columns = Mapping[int, Mapping[str, Mapping[str, Any]]]  # drag step -> control step's name -> figures


def correlations(values: Mapping[str, Columns], key: str, step: str) -> dict[str, float | None]:
    """For each picture, Spearman's rank correlation of a figure with the drag step or the control step.

    Over the other step's values one by one, and the mean of those: they are steps of one picture, not further draws.
    """
    found = {}
    for name, columns in values.items():
        table = np.array([[columns[s][f"control-{a}"][key] for s in TABLE_STEPS] for a in TABLE_STEPS])  # (A, S)
        lines = table if step == "drag" else table.T
        rows = [rank_correlation(np.array(TABLE_STEPS), line) for line in lines]
        found[name] = None if any(math.isnan(row) for row in rows) else subjects.mean(rows)
    return found


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's: Pearson's of the ranks, equal values sharing theirs. NaN where all are equal."""
    ranks = [[(v < one).sum() + (v == one).sum() / 2 for one in v] for v in (x, y)]
    if any(len(set(row)) == 1 for row in ranks):
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


def settling(changed: Mapping[int, float]) -> float:
    """By how much less the change alters, a step, behind the table's last drag step than within the table."""
    first, last, end = TABLE_STEPS[0], TABLE_STEPS[-1], BEYOND[-1]
    within = abs(changed[first] - changed[last]) / (last - first)
    return within - abs(changed[last] - changed[end]) / (end - last)


# ------------------------------------------------------------------------------------------------------ inversion


def trip_settings(choice: Choice) -> list[Setting]:
    return [Setting("round trip", EditConfig(size=choice.base.size))]


def trip_items(choice: Choice) -> list[Item]:
    """Of one's own pictures one by one, since they may be of any size; of drawn ones several together."""
    if choice.own is None:
        mine, batch = subjects.any_scenes(choice.number_of("inversion"), choice.base.size, choice.seed), TRIP_BATCH
    else:
        mine, batch = [s for s in choice.own if s.picture is not None], 1
    several = [tuple(mine[n : n + batch]) for n in range(0, len(mine), batch)]
    return [Item("inversion", few, steps) for steps in sorted(TRIP_STEPS, reverse=True) for few in several]


def trips(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """dB of each subject's round trip under every schedule variant, at one number of steps."""
    size, steps = configs["round trip"].size, item.part
    assert steps is not None
    pictures = [s.picture for s in item.subjects if s.picture is not None]
    tensors = torch.cat([images.to_tensor(p, images.working_size(*p.size, size)) for p in pictures])
    found = measure_small.round_trips(sd, tensors, [s.prompt for s in item.subjects], steps)
    against = {variant: trip.against_vae.tolist() for variant, trip in found.items()}
    figures = {s.name: {v: row[n] for v, row in against.items()} for n, s in enumerate(item.subjects)}
    return Done({}, {"steps": steps, "dB against the VAE's": figures})


def trip_report(choice: Choice, finished: Sequence[Finished]) -> Report:
    steps = sorted({one.item.part or 0 for one in finished})
    by_steps: dict[int, dict[str, dict[str, float]]] = {n: {} for n in steps}
    for one in finished:
        by_steps[one.item.part or 0] |= one.figures["dB against the VAE's"]

    def of(steps: int, variant: str) -> Mean:
        return mean_over({name: row[variant] for name, row in by_steps[steps].items()})

    def gain(steps: int, variant: str) -> Values:
        return {name: row["restored"] - row[variant] for name, row in by_steps[steps].items()}

    lines = {variant: [of(n, variant) for n in steps] for variant in ddim.VARIANTS}
    better = "the restored first step brings the picture back better than its omission"
    says = [statement(f"at T = {n} {better}", gain(n, "omitted"), 1) for n in steps]
    count = len(by_steps[steps[0]])
    notes = [
        f"Inverted and denoised with the same prompt, {count} pictures, seed {choice.seed}; against the VAE's own "
        "reconstruction. Bars: 95 % bootstrap intervals over the pictures.",
        *(f"{one['says']}: {one['verdict']}, by {one['found']} dB." for one in says),
    ]
    summary = {
        "dB": {v: {n: asdict(m) for n, m in zip(steps, row, strict=True)} for v, row in lines.items()},
        "restored minus": {
            v: {n: asdict(mean_over(gain(n, v))) for n in steps} for v in ddim.VARIANTS if v != "restored"
        },
        "statements": says,
        "notes": notes,
    }
    title = "The round trip from z_0 to z_T and back, by schedule variant and number of steps"
    return Report(sheets.chart(title, [f"T = {n}" for n in steps], lines, "dB", notes), summary)


# ---------------------------------------------------------------------------------------------- runs and folders


class Experiment(NamedTuple):
    settings: Callable[[Choice], list[Setting]]
    items: Callable[[Choice], list[Item]]
    do: Callable[[StableDiffusion, Item, Configs], Done]
    report: Callable[[Choice, Sequence[Finished]], Report]


EXPERIMENTS = {
    "inversion": Experiment(trip_settings, trip_items, trips, trip_report),
    "fig2": Experiment(
        prompt_settings, partial(prompt_items, "fig2"), prompt_then_drag, partial(prompt_report, "fig2")
    ),
    "fig3": Experiment(
        prompt_settings, partial(prompt_items, "fig3"), prompt_then_drag, partial(prompt_report, "fig3")
    ),
    "fig4": Experiment(rival_settings, rival_items, rivals, rival_report),
    "table1": Experiment(table_settings, table_items, table_column, table_report),
}


def run(folder: Path, names: Sequence[str], choice: Choice, model: Path, workers: int) -> None:
    """What is missing of the experiments, and then their pictures and numbers. Raises ValueError as `claim` does."""
    items = {name: EXPERIMENTS[name].items(choice) for name in names}
    own = None if choice.own is None else {s.name: s.identity for s in choice.own}
    settings = {name: EXPERIMENTS[name].settings(choice) for name in names}
    for name in names:
        truth_bench.claim(folder / name, settings[name], model, seed=choice.seed, own=own)
    missing = [
        (item, settings[name]) for name in names for item in items[name] if not (folder / name / item.name).exists()
    ]
    truth_bench.each(partial(_do, folder), missing, model, workers)
    for name in names:
        finished = [Finished(item, folder / name / item.name) for item in items[name]]
        report = EXPERIMENTS[name].report(choice, finished)
        told = {
            **json.loads((folder / name / "run.json").read_text()),
            "model": str(model),
            "summary": report.summary,
            "items": {one.item.name: one.figures for one in finished},
        }
        images.save_picture(report.picture, folder / f"{name}.png", overwrite=True)
        files.save_json(files.finite(told), folder / f"{name}.json", overwrite=True)
        for line in report.summary["notes"]:
            print(f"{name}: {line}")


def _do(folder: Path, sd: StableDiffusion, work: tuple[Item, list[Setting]]) -> str:
    """One item, written whole or not at all; gives the line that says so."""
    item, settings = work
    begin = time.perf_counter()
    configs = {setting.name: setting.config for setting in settings if setting.config is not None}
    done = EXPERIMENTS[item.experiment].do(sd, item, configs)
    with truth_bench.whole(folder / item.experiment / item.name) as part:
        for name, picture in done.pictures.items():
            images.save_picture(picture, part / f"{name}.png")
        files.save_json(files.finite(done.figures), part / "figures.json")
    return f"{item.experiment} {item.name}  {time.perf_counter() - begin:.1f} s"


# ------------------------------------------------------------------------------------------------ the command line


def chosen(options: Any) -> Choice:
    small = options.weights.resolve() == cli.SMALL
    own = None if options.images is None else tuple(subjects.own(options.images, options.seed))
    if own is None and not small:
        raise ValueError("the drawn scenes are for weights/small: give your own pictures with --images JOBS.json")
    base = cli.config_of({"weights": str(options.weights)})
    return Choice(base, GUIDANCE["small" if small else "sd15"], options.seed, options.count, own)


def with_work(names: Sequence[str], choice: Choice) -> list[str]:
    """The experiments that there are pictures for. Raises ValueError where there is nothing to do."""
    there = [name for name in names if EXPERIMENTS[name].items(choice)]
    for name in names:
        if name not in there:
            print(f"{name}: left out, {NEEDS[name]}", file=sys.stderr)
    if not there:
        raise ValueError(f"nothing to do: {'; '.join(f'{name}: {NEEDS[name]}' for name in names)}")
    return there


NEEDS = {
    "fig2": "no job has an image, a target prompt and a drag",
    "fig3": "no job has from_noise, a target prompt and a drag",
    "fig4": "no job has an image and a drag",
    "table1": "no job has an image, a target prompt and a drag",
    "inversion": "no job has an image",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=(*EXPERIMENTS, "all"))
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"default {FOLDER}")
    parser.add_argument("--weights", type=Path, default=cli.SMALL, help="a safetensors file, or a diffusers folder")
    parser.add_argument(
        "--images", type=Path, metavar="JOBS.json", help="your own pictures, as `dragsa edit --job` has them"
    )
    parser.add_argument("--seed", type=cli.whole(0), default=42)
    parser.add_argument(
        "--count", type=cli.whole(1), help="drawn pictures for each; by default as many as take minutes"
    )
    parser.add_argument("--workers", type=cli.whole(1), help="processes; by default one for each core")
    try:
        options = parser.parse_args(arguments)
        choice = chosen(options)
        names = with_work(list(EXPERIMENTS) if options.what == "all" else [options.what], choice)
        options.folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        run(options.folder, names, choice, options.weights, truth_bench.workers_of(options))
        print(f"{time.perf_counter() - begin:.0f} s in this run", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"reproduce: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
