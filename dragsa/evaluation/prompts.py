"""Figures 2 and 3: a picture changed by its prompt under each control, and then dragged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from dragsa import editing
from dragsa.config import EditConfig
from dragsa.editing import Drag, Source
from dragsa.evaluation import experiments, quality, sheets, subjects, truth
from dragsa.evaluation.experiments import Choice, Configs, Done, Experiment, Finished, Item, Report
from dragsa.evaluation.runs import Setting
from dragsa.evaluation.sheets import Panel, Row
from dragsa.evaluation.subjects import Subject
from dragsa.loading import StableDiffusion
from dragsa.methods import prompt_to_prompt
from dragsa.pictures import to_tensor

COUNT = 4  # drawn pictures


def settings(choice: Choice) -> list[Setting]:
    """Return the settings of the prompt's edit under each control; the first are the drag's that follows, too."""
    ours = replace(choice.base, guidance=choice.guidance, source_kv="none")
    masked = replace(ours, control="masked", object_words=("face",) if choice.own is None else ())
    return [Setting("mutual", ours), Setting("union", replace(ours, control="union")), Setting("masked", masked)]


def items(experiment: str, choice: Choice) -> list[Item]:
    size, seed = choice.base.size, choice.seed
    if choice.own is not None:
        mine = [s for s in choice.own if (s.picture is None) == (experiment == "fig3") and s.target_prompt and s.drags]
    elif experiment == "fig2":
        mine = subjects.turning_faces(choice.count or COUNT, size, seed)
    else:
        mine = subjects.generated_faces(choice.count or COUNT, seed)
    return [Item(experiment, (subject,)) for subject in mine]


def do(sd: StableDiffusion, item: Item, configs: Configs) -> Done:
    """Make the source, its round trip, the prompt's edit by each control and by Prompt-to-Prompt, then the drag."""
    (subject,), ours = item.subjects, configs["mutual"]
    # A generated source's own guidance is the edit's: both halves then have their own row to attend to.
    source = editing.prepare(sd, subject.picture, subject.prompt, subject.seed, ours)
    pictures = {"source": source.picture}
    given: dict[str, Any] = {"prompt": subject.prompt, "target_prompt": subject.target_prompt, "seed": subject.seed}
    if not source.generated:
        pictures["inverted"] = truth.reconstruct(sd, source)
        tensors = [to_tensor(pictures[name]) for name in ("source", "inverted")]
        given["inverted"] = {"db": quality.decibels(*tensors)}
    asked = subjects.found_face(subject, source.picture) if subject.shown is not None else subject
    if asked is None:
        return Done(pictures, {**given, "face": False})
    makes: dict[str, Callable[[], Image.Image]] = {}
    for name, config in configs.items():
        if config.control == "masked":
            config = replace(config, object_words=asked.object_words)
        if config.control != "masked" or asked.object_words:
            makes[name] = partial(edited, sd, source, config, asked)
    makes["prompt-to-prompt"] = partial(by_prompt_to_prompt, sd, source, asked.target_prompt or "", ours)
    makes["then dragged"] = partial(edited, sd, source, ours, asked, asked.drags)
    figures = {}
    for name, make in makes.items():
        begin = time.perf_counter()
        pictures[name] = make()
        seconds = time.perf_counter() - begin
        measured = subjects.measure(sd, asked, source.picture, pictures[name], ours.size)
        figures[name] = {**measured, "seconds": seconds}
    if asked.case is not None and not source.generated:
        pictures["truth"] = asked.case.truth
    return Done(pictures, {**given, "target_prompt": asked.target_prompt, "drags": asked.drags, "results": figures})


def edited(
    sd: StableDiffusion, source: Source, config: EditConfig, subject: Subject, drags: Sequence[Drag] = ()
) -> Image.Image:
    """Return the subject's edit by its prompt, and by a drag where `drags` are given."""
    mask = subject.mask if drags else None
    return editing.edit(sd, source, drags, mask, target_prompt=subject.target_prompt, config=config).image


def by_prompt_to_prompt(sd: StableDiffusion, source: Source, target_prompt: str, config: EditConfig) -> Image.Image:
    """Return Prompt-to-Prompt's edit: words replaced where the prompts have as many, else refined by further ones."""
    kind = "replacement" if len(source.prompt.split()) == len(target_prompt.split()) else "refinement"
    change = prompt_to_prompt.prompt_edit(sd.text, source.prompt, target_prompt, kind)
    control = partial(change.hook_at, steps=config.steps)
    return editing.edit(sd, source, target_prompt=target_prompt, config=config, control=control).image


HEADS = {
    "source": "source",
    "inverted": "inverted and denoised",
    "mutual": "prompt, mutual self-attention",
    "union": "prompt, union",
    "masked": "prompt, masked by words",
    "prompt-to-prompt": "Prompt-to-Prompt",
    "then dragged": "prompt (mutual), then drag",
    "truth": "truth",
}


def report(experiment: str, choice: Choice, finished: Sequence[Finished]) -> Report:
    heads = {name: head for name, head in HEADS.items() if any(one.picture(name) for one in finished)}
    rows = []
    for one in finished:
        figures, results = one.figures, one.results
        lines = {name: experiments.lines_of(result) for name, result in results.items()}
        lines["source"] = (f"seed {figures['seed']}",) if experiment == "fig3" else ()
        lines["source"] += () if results else ("no face to turn was found",)
        if "inverted" in figures:
            lines["inverted"] = (f"{figures['inverted']['db']:.1f} dB",)
        panels = [Panel(one.picture(name), lines.get(name, ())) for name in heads]
        rows.append(Row(f"{figures['prompt']}\nbecomes\n{figures['target_prompt']}", panels))
    ours = choice.base
    what = "a real picture" if experiment == "fig2" else "a generated picture"
    notes = [
        f"T = {ours.steps}, control step {ours.control_step}, drag step {ours.drag_step}, guidance {choice.guidance:g} "
        f"of the prompt's edit, {experiments.drag_words(ours)}, seed {choice.seed}.",
        experiments.LEFT_NOTE[choice.own is None],
    ]
    if experiment == "fig3" and choice.own is None:
        notes.append("Here the background is compared with the source, outside of what the face sweeps.")
    names = {name for one in finished for name in one.results}
    summary = {name: experiments.means_of(finished, name) for name in sorted(names)}
    title = f"Figure {experiment[-1]}: {what}, changed by the prompt under control, then dragged"
    return Report(sheets.sheet(title, list(heads.values()), rows, notes), {"means": summary, "notes": notes})


FIG2 = Experiment(
    "no job has an image, a target prompt and a drag", settings, partial(items, "fig2"), do, partial(report, "fig2")
)
FIG3 = Experiment(
    "no job has from_noise, a target prompt and a drag", settings, partial(items, "fig3"), do, partial(report, "fig3")
)
