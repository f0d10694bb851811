"""Settings of the benchmark's edits: an edit's numbers under a name, and the lists of them that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dragsa import pictures
from dragsa.config import EditConfig, LoRAConfig
from dragsa.evaluation import cases
from dragsa.evaluation.cases import Case

NO_EDIT, RECONSTRUCTION, MAIN = "no-edit", "reconstruction", "five-handles"
CAPTION = "caption"
GUIDANCE = 6.0  # at which the small model follows a changed prompt


@dataclass(frozen=True)
class Setting:
    """A row of the table: an edit's numbers, and the handles that ask for it.

    Without a config the source itself is the result. Without a variant of handles ("one", "five") the result is the
    source inverted and denoised again, with no edit. "caption" for handles: nothing is dragged, the result is asked for
    by the prompt alone. `dtype`: of the networks; what is measured of results is measured in float32. `fitted`: where
    one handle stands for a whole object, its patch is the square that fits in there (see `config_for`).
    """

    name: str
    config: EditConfig | None = None
    handles: str | None = None
    dtype: str = "float32"
    fitted: bool = False

    def config_for(self, case: Case) -> EditConfig | None:
        """Return the config; a fitted one with the case's own r_1."""
        if self.config is None or not self.fitted or case.kind not in cases.WHOLE:
            return self.config
        working = pictures.working_size(case.size, case.size, self.config.size)
        cells = pictures.grid_size(working)[0] / case.size  # of the supervision grid, to a pixel of the case
        return replace(self.config, drag=replace(self.config.drag, radius=max(1, round(case.square * cells))))


def headline(size: int = cases.SIZE) -> list[Setting]:
    """Return the reported settings: the small model's own, variations of it, and the paper's.

    A small patch on an object's even middle is content as soon as that has arrived, before the rest.
    """
    small = EditConfig.small(size=size)
    return [
        Setting(NO_EDIT),
        Setting(RECONSTRUCTION, small),
        Setting(MAIN, small, "five"),
        Setting("one-handle", small, "one", fitted=True),
        Setting("no-control", replace(small, control_step=None), "five"),
        Setting("blended", replace(small, blend=True), "five"),
        Setting("paper", EditConfig.paper(size=size), "five"),
    ]


def parts(size: int = cases.SIZE) -> list[Setting]:
    """Return the small model's settings, and the same without some of their parts.

    "adam" has an optimiser that scales each element by itself. "not-anchored" pulls as the paper prints it, to the
    current latent's patch alone; with and without control, since the anchor holds the colours that control is for.
    """
    small = EditConfig.small(size=size)
    loose = replace(small, drag=replace(small.drag, anchor=0.0))
    return [
        Setting(NO_EDIT),
        Setting(MAIN, small, "five"),
        Setting("no-control", replace(small, control_step=None), "five"),
        Setting("adam", replace(small, drag=replace(small.drag, optimizer="adam")), "five"),
        Setting("not-anchored", loose, "five"),
        Setting("not-anchored-no-control", replace(loose, control_step=None), "five"),
    ]


def rivals(size: int = cases.SIZE) -> list[Setting]:
    """Return ours beside others' methods, by the small model's numbers.

    MasaCtrl, which drags nothing, is asked by the caption, at the guidance that the small model wants.
    """
    small = EditConfig.small(size=size)
    masactrl = EditConfig.masactrl(size=size, steps=small.steps, guidance=GUIDANCE, source_kv="none")
    return [Setting(NO_EDIT), *drag_rivals(small), Setting("masactrl", masactrl, CAPTION)]


def drag_rivals(ours: EditConfig) -> list[Setting]:
    """Return ours, and DragDiffusion by the same numbers wherever these are not its method's own.

    Its own are the schedule, when control acts, and the LoRA; its first version has no control. Tap, level, learning
    rate and updates are the same for all.
    """
    theirs = EditConfig.dragdiffusion()
    later = replace(ours, variant=theirs.variant, control_step=theirs.control_step)
    first = replace(later, control_step=None)
    return [
        Setting("ours", ours, "five"),
        Setting("dragdiffusion-first", first, "five"),
        Setting("dragdiffusion-first-lora", replace(first, lora_steps=LoRAConfig().steps), "five"),
        Setting("dragdiffusion", later, "five"),
        Setting("dragdiffusion-lora", replace(later, lora_steps=LoRAConfig().steps), "five"),
    ]


def precision(size: int = cases.SIZE) -> list[Setting]:
    """Return the small model's own settings, with networks of each type."""
    small = EditConfig.small(size=size)
    return [Setting(NO_EDIT), Setting(MAIN, small, "five"), Setting("bfloat16", small, "five", "bfloat16")]


SETTINGS = {"headline": headline, "parts": parts, "rivals": rivals, "precision": precision}
