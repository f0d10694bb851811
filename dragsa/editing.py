"""The story of an edit, in the paper's order: encode, invert, drag, denoise under control, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dragsa import config as configuration
from dragsa import ddim, drag, hooks, methods, pictures, source_kv
from dragsa.config import EditConfig, LoRAConfig
from dragsa.ddim import Guided, Schedule
from dragsa.drag import DragResult
from dragsa.hooks import AttentionHook
from dragsa.loading import StableDiffusion
from dragsa.model.unet import UNet
from dragsa.pictures import Observer, Point, Report, Size, Trace
from dragsa.source_kv import INVERSION, Plan, Recording, SourcePasses

Drag = tuple[Point, Point]  # handle and target, pixels of the picture as given
Mask = str | Path | Image.Image | np.ndarray | Tensor


def edit(
    sd: StableDiffusion,
    image: Image.Image | Source | None,
    drags: Sequence[Drag] = (),
    mask: Mask | None = None,
    prompt: str = "",
    target_prompt: str | None = None,
    seed: int = 42,
    config: EditConfig | None = None,
    *,
    observe: Observer | None = None,
    negative_prompt: str = "",
) -> EditResult:
    """Edit a picture by dragging points, by changing its prompt, or by both, without training anything.

    image: a picture of any mode, size and aspect; None to edit the one that `prompt` and `seed` generate; or a `Source`
    from `prepare`, which brings its own prompt and seed, so that one inversion serves many edits. drags: ((x, y), (x,
    y)), handle and target, in pixels of the picture as given. mask: of the picture's size, white may move.
    target_prompt: the edited picture's; None leaves the prompt. negative_prompt: what guidance leads away from.

    The first edit of a `Source` denoises it beside its target and keeps its K and V; later ones denoise the target
    alone with these (`config.source_kv`), equal but for rounding.

    Raises ValueError for points outside of the picture, a mask of another size, settings that do not fit: at once.
    """
    config, given = EditConfig.paper() if config is None else config, isinstance(image, Source)
    check_request(sd, image, drags, mask, prompt, target_prompt, config, negative_prompt)
    drags = tuple(((float(x0), float(y0)), (float(x1), float(y1))) for (x0, y0), (x1, y1) in drags)
    # A picture that is given to edit makes a source that nobody edits again: none of its K/V are kept.
    told: dict[str, Any] = {"observe": observe, "negative_prompt": negative_prompt}
    source = prepare(sd, image, prompt, seed, config, **told) if not isinstance(image, Source) else image
    report, dragged, drag_level = Report(observe, sd.device), None, config.steps - config.drag_step
    branch = leave(sd, source, target_prompt, drags, mask, config, keep=given)
    if drags:
        if branch.level > drag_level:
            with report.stage("denoising", branch.level - drag_level) as step:
                branch = denoise(branch, drag_level, step)
        with report.stage("drag", config.drag.updates):
            dragged = drag_source(branch, drags, report.update)
        branch = replace(branch, z_target=dragged.latent)
    with report.stage("denoising", branch.level) as step:
        z_0 = denoise(branch, 0, step).z_target
    with report.stage("decode", 1):
        picture = pictures.restore(pictures.to_picture(sd.decode(z_0)), source.picture)

    seconds = {**({} if given else source.seconds), **report.seconds}
    return EditResult(picture, source.picture, trace_of(sd, branch, drags, dragged, seconds))


class EditResult(NamedTuple):
    """`image`: the result, in the picture's own size. `source`: the picture as given, or as generated."""

    image: Image.Image
    source: Image.Image
    trace: Trace


@dataclass(frozen=True)
class Source:
    """A picture and its prompt, inverted once for any number of edits.

    `latents`: its trajectory z_0 … z_T, (T + 1, 1, 4, h, w). `picture`: as given, or as generated. `adapted`: the LoRA
    that all its passes run under, if there is one. `recorded`, the one part that changes, is what its passes leave for
    later edits; it begins as `begun`, and a copy by `dataclasses.replace`, which may have other latents, is empty.
    """

    picture: Image.Image
    latents: Tensor
    prompt: str
    seed: int
    schedule: Schedule
    guidance: float  # at which the trajectory was made: 1 for a real picture
    generated: bool
    fixed_point: int = 0
    residual: float | None = None  # fixed-point inversion: the largest of its steps' last changes
    adapted: methods.Adapted | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    negative_prompt: str = ""  # of its passes and of its edits', where there is guidance
    begun: InitVar[Recording | None] = None
    recorded: Recording = field(init=False, compare=False)

    def __post_init__(self, begun: Recording | None) -> None:
        object.__setattr__(self, "recorded", Recording() if begun is None else begun)

    @property
    def working_size(self) -> Size:
        return 8 * self.latents.shape[-1], 8 * self.latents.shape[-2]

    def unet_of(self, sd: StableDiffusion) -> UNet:
        """Return the network of the source's passes: the model's own, or that under the picture's LoRA."""
        return sd.unet if self.adapted is None else self.adapted.unet


def prepare(
    sd: StableDiffusion,
    image: Image.Image | None,
    prompt: str = "",
    seed: int = 42,
    config: EditConfig | None = None,
    *,
    size: Size | None = None,
    observe: Observer | None = None,
    negative_prompt: str = "",
) -> Source:
    """Encode a picture and invert it to z_T, or for None denoise a picture from the seed's noise: the trajectory.

    `size` (width, height), multiples of 8, is a generated picture's; by default a square of `config.size`. With
    `config.source_kv` "inversion" the K/V of these passes are kept for the edits, at the levels and in the blocks that
    the config controls; those of a generated picture are exact. With `config.lora_steps` a LoRA is trained on the
    picture first. Raises ValueError for a size that does not fit, and for a LoRA of a picture yet to be generated.
    """
    config = EditConfig.paper() if config is None else config
    check(config)
    sd.check_finite()
    schedule, report = Schedule(config.steps, config.variant), Report(observe, sd.device)
    if image is None:
        return generate(sd, prompt, seed, config, size or (config.size, config.size), report, negative_prompt)
    context, unet, adapted, residual = sd.embed(["", prompt])[1:], sd.unet, None, None  # (1, n, C)
    with report.stage("encode", 1):
        working = pictures.working_size(*image.size, config.size)
        z_0 = sd.encode(pictures.to_tensor(image, working).to(sd.device))  # (1, 4, h, w)
    if config.lora_steps:
        with report.stage("lora", config.lora_steps) as step:
            adapted = methods.adapt(sd.unet, z_0, context, LoRAConfig(steps=config.lora_steps), seed, step)
            unet = adapted.unet
    recorded = Recording().of(unet)
    told = source_kv.own_recording(recorded, config, INVERSION)
    with report.stage("inversion", config.steps) as step:
        if config.fixed_point:
            found = ddim.invert_fixed_point(
                unet, z_0, context, schedule, progress=step, iterations=config.fixed_point, **told
            )
            latents, residual = found.latents, found.residuals.max().item()
        else:
            latents = ddim.invert(unet, z_0, context, schedule, progress=step, **told)  # (T + 1, 1, 4, h, w)
    course = config.fixed_point, residual, adapted, report.seconds, negative_prompt, recorded
    return Source(image, latents, prompt, seed, schedule, 1.0, False, *course)


def generate(
    sd: StableDiffusion, prompt: str, seed: int, config: EditConfig, size: Size, report: Report, negative: str = ""
) -> Source:
    """Denoise a picture of `size` (width, height) from the seed's noise."""
    check_generated(config)
    if min(size) < (least := pictures.SMALLEST) or size[0] % 8 or size[1] % 8:
        raise ValueError(f"a generated picture's sides are multiples of 8 from {least}, came {size[0]}×{size[1]}")
    schedule, recorded = Schedule(config.steps, config.variant), Recording().of(sd.unet)
    uncond, context = sd.embed([negative, prompt]).chunk(2)  # (1, n, C) each
    generator = torch.Generator().manual_seed(seed)  # the CPU's, so that a seed is one picture on every device
    shape = 1, sd.unet.config.latent_channels, size[1] // 8, size[0] // 8
    z_T = torch.randn(shape, generator=generator).to(sd.device)
    told = source_kv.own_recording(recorded, config, config.steps)
    with report.stage("generation", config.steps) as step:
        down = ddim.sample(
            sd.unet, z_T, context, schedule, guidance=config.guidance, uncond=uncond, progress=step, **told
        )  # (T + 1, 1, 4, h, w), z_T first
    with report.stage("decode", 1):
        picture = pictures.to_picture(sd.decode(down[-1]))
    course = 0, None, None, report.seconds, negative, recorded
    return Source(picture, down.flip(0), prompt, seed, schedule, config.guidance, True, *course)


@dataclass(frozen=True, eq=False)
class Branch:
    """Source and target at one level of an edit, and how both are denoised from there."""

    source: Source
    config: EditConfig
    guided: Guided  # the network under both prompts: context (2, n, C), source and target; their two scales
    new_hook: Callable[[], AttentionHook] | None  # of each controlled step; None for mutual self-attention
    kv: Plan  # where the source's K/V come from
    mask: Tensor | None  # (H, W) on the supervision grid, 1 may move
    level: int
    z_source: Tensor  # (1, 4, h, w)
    z_target: Tensor
    target_prompt: str

    @property
    def grid(self) -> Size:
        return pictures.grid_size(self.source.working_size)

    @property
    def target_guided(self) -> Guided:
        """The network under the target's prompt alone."""
        return self.guided._replace(context=self.guided.context[1:], scale=self.config.guidance)


def leave(
    sd: StableDiffusion,
    source: Source,
    target_prompt: str | None = None,
    drags: Sequence[Drag] = (),
    mask: Mask | None = None,
    config: EditConfig | None = None,
    *,
    keep: bool = True,
) -> Branch:
    """Begin an edit where it leaves its source, z'_k = z_k: at z_T if the prompt changes, else where the drag begins.

    keep: the source's K/V for later edits, if the config wants that.
    """
    config = EditConfig.paper() if config is None else config
    target_prompt = source.prompt if target_prompt is None else target_prompt
    changed, unet = target_prompt != source.prompt, source.unet_of(sd)
    level = config.steps - config.drag_step if drags and not changed else config.steps
    prompts = source.negative_prompt, source.prompt, target_prompt
    uncond, context = sd.embed(prompts).split([1, 2])  # (1, n, C); (2, n, C)
    may_move, grid = None, pictures.grid_size(source.working_size)
    if mask is not None:
        may_move = pictures.open_mask(mask, source.picture.size, grid).to(sd.device)  # (H, W)
        if drags:
            pictures.warn_unmasked(may_move, pictures.to_grid([pair[0] for pair in drags], source.picture.size, grid))
        may_move = may_move if may_move.any() else None  # an all-black mask is none
    of_source = SourcePasses(source.recorded.of(unet), source.latents, source.generated)
    return Branch(
        source=source,
        config=config,
        guided=Guided(unet, context, uncond, (source.guidance, config.guidance)),
        new_hook=methods.control_hook(config, sd.text, source.prompt, target_prompt),
        kv=of_source.plan(config, level, config.blend and may_move is not None, keep),
        mask=may_move,
        level=level,
        z_source=source.latents[level],
        z_target=source.latents[level],
        target_prompt=target_prompt,
    )


def drag_source(
    branch: Branch, drags: Sequence[Drag], observe: Callable[[drag.Update], None] | None = None
) -> DragResult:
    """Drag the branch's target: optimise its latent until the features under the handles have come to the targets."""
    size, context = branch.source.picture.size, branch.target_guided.context
    handles, targets = (pictures.to_grid([pair[end] for pair in drags], size, branch.grid) for end in (0, 1))
    unet: Any = branch.guided.unet
    return drag.drag_latent(
        unet, branch.z_target, branch.level, context, branch.source.schedule, handles, targets, branch.mask,
        branch.config.drag, observe,
    )  # fmt: skip


@torch.no_grad()
def denoise(branch: Branch, stop: int = 0, progress: ddim.Progress | None = None) -> Branch:
    """Denoise source and target to z_stop, under control from denoising step A on, counted from z_T.

    Where an earlier pass stands in for the source's, the target goes alone and z_source stays.
    """
    config, source, guided, plan = branch.config, branch.source, branch.guided, branch.kv
    schedule, start, blend, new_hook = source.schedule, branch.level, None, branch.new_hook
    if config.blend and branch.mask is not None:
        blend = drag.to_latent_grid(branch.mask, source.latents)  # (h, w)
    if plan.earlier is not None:
        one, levels = branch.target_guided, ddim.levels_between(schedule, start, stop)
        zs = source_kv.replayed(one, branch.z_target, schedule, levels, plan.earlier, config, blend, progress)
        return replace(branch, level=stop, z_target=zs[-1])
    first = None if config.control_step is None else max(0, config.control_step - (config.steps - start))
    acts = partial(lambda new, step: new() if first is not None and step >= first else None, new_hook)
    hook_at = None if new_hook is None else acts  # a new hook for each step from the first on; None is none of them
    zs = ddim.sample_controlled(
        guided.unet, branch.z_source, branch.z_target, guided.context, schedule, start, stop, guided.scale,
        guided.uncond, first, config.control_blocks, blend, progress, plan.record, hook_at,
    )  # (start - stop + 1, 2, 4, h, w)  # fmt: skip
    if plan.record is not None:
        source.recorded.keep_latents(plan.trajectory, start, zs[:, :1])
    return replace(branch, level=stop, z_source=zs[-1, :1], z_target=zs[-1, 1:])


def trace_of(
    sd: StableDiffusion, branch: Branch, drags: Sequence[Drag], dragged: DragResult | None, seconds: dict[str, float]
) -> Trace:
    """Return what an edit did and measured, points in pixels of the picture as given."""
    source, target_prompt = branch.source, branch.target_prompt

    def in_pixels(points: Tensor) -> tuple[tuple[Point, ...], ...]:
        rows = pictures.from_grid(points, source.picture.size, branch.grid).tolist()
        return tuple(tuple((x, y) for x, y in row) for row in rows)

    return Trace(
        config=branch.config,
        seed=source.seed,
        prompt=source.prompt,
        target_prompt=target_prompt if target_prompt != source.prompt else None,
        generated=source.generated,
        picture_size=source.picture.size,
        working_size=source.working_size,
        grid_size=branch.grid,
        weights=sd.provenance,
        drags=tuple(drags),
        masked=branch.mask is not None,
        losses=() if dragged is None else tuple(dragged.losses.tolist()),
        handles=() if dragged is None else in_pixels(dragged.handles),
        tracked=() if dragged is None else in_pixels(dragged.final_handles[None])[0],
        stop=None if dragged is None else dragged.reason,
        inversion_residual=source.residual,
        lora_losses=() if source.adapted is None else tuple(source.adapted.losses.tolist()),
        source_kv=branch.kv.name,
        negative_prompt=source.negative_prompt,
        seconds=seconds,
    )


def check_request(
    sd: StableDiffusion,
    image: Image.Image | Source | None,
    drags: Sequence[Drag],
    mask: Mask | None,
    prompt: str,
    target_prompt: str | None,
    config: EditConfig,
    negative_prompt: str = "",
) -> None:
    """Raise a ValueError for an edit that cannot be made, before any work is done."""
    if isinstance(image, Source):
        check_source(config, image, prompt, negative_prompt)
        size, prompt = image.picture.size, image.prompt
    else:
        size = (config.size, config.size) if image is None else image.size
    check(config, drags, mask, size)
    methods.control_hook(config, sd.text, prompt, prompt if target_prompt is None else target_prompt)


def check(config: EditConfig, drags: Sequence[Drag] = (), mask: Mask | None = None, size: Size | None = None) -> None:
    """Raise a ValueError for settings that no edit can be made with, and drags and a mask that do not fit a picture.

    `size` is the picture's; without it only what holds for any picture is looked at.
    """
    Schedule(config.steps, config.variant)
    configuration.check(config)
    drag.check_config(config.drag)
    hooks.check_blocks(config.control_blocks)
    hooks.check_blocks(config.mask_blocks)
    if config.control == "masked" and not config.object_words:
        raise ValueError("masked control tells the object by words of the prompts: name them (object_words)")
    pictures.working_size(1, 1, config.size)
    if len(drags) and config.drag_step > (last := config.steps - 1):
        raise ValueError(f"drag step S must be a whole number from 0 to T - 1 = {last}, came {config.drag_step!r}")
    for pair in drags:
        if np.shape(pair) != (2, 2):
            raise ValueError(f"a drag is ((x, y), (x, y)), handle and target, came {pair!r}")
    if size is not None:
        if config.blend and mask is None:
            raise ValueError("blending keeps what lies outside of the mask, and there is no mask")
        pictures.to_grid([point for pair in drags for point in pair], size, size)
        if mask is not None:
            pictures.open_mask(mask, size, (1, 1))


def check_generated(config: EditConfig) -> None:
    """Raise a ValueError where a picture is to be generated and learnt by a LoRA, which is there to learn one given."""
    if config.lora_steps:
        raise ValueError("a LoRA is trained on a picture that is there: save the generated one and edit that")


def check_source(config: EditConfig, source: Source, prompt: str = "", negative: str = "") -> None:
    """Raise a ValueError where a prepared source was made under other settings than the edit's."""
    schedule, inverted = source.schedule, not source.generated  # a generated picture has its own size
    size = pictures.working_size(*source.picture.size, config.size) if inverted else source.working_size
    trained = 0 if source.adapted is None else len(source.adapted.losses)
    for name, made, value in (
        ("steps", schedule.steps, config.steps),
        ("variant", schedule.variant, config.variant),
        ("fixed_point", source.fixed_point, config.fixed_point if inverted else 0),
        ("lora_steps", trained, config.lora_steps),
        ("working size", source.working_size, size),
    ):
        if made != value:
            raise ValueError(f"the source was prepared with {name} {made!r}, and the edit has {value!r}")
    for what, asked, own in (("", prompt, source.prompt), ("negative ", negative, source.negative_prompt)):
        if asked not in ("", own):
            raise ValueError(f"the source was prepared with the {what}prompt {own!r}; prepare one for {asked!r}")
