"""The story of an edit, in the paper's order: encode, invert, drag, denoise under control, decode."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor

from dragsa import checks, ddim, drag, methods, pictures, source_kv
from dragsa.checks import outcomes
from dragsa.config import EditConfig, LoRAConfig
from dragsa.ddim import Guided, HookAt, Schedule
from dragsa.drag import DragResult, Supervise
from dragsa.loading import StableDiffusion
from dragsa.model.unet import UNet
from dragsa.passes import Descend, Observe
from dragsa.pictures import Given, Observer, Point, Report, Size, Trace
from dragsa.source_kv import INVERSION, Plan, Recording, SourcePasses

Drag = tuple[Point, Point]  # handle and target, pixels of the picture as given
Mask = Given


def edit(
    sd: StableDiffusion,
    image: Given | Source | None,
    drags: Sequence[Drag] = (),
    mask: Mask | None = None,
    prompt: str = "",
    target_prompt: str | None = None,
    seed: int = 42,
    config: EditConfig | None = None,
    *,
    observe: Observer | None = None,
    control: str | HookAt | None = None,
    supervision: Supervise | None = None,
    optimizer: Descend | None = None,
    negative_prompt: str = "",
) -> EditResult:
    """Edit a picture by dragging points, by changing its prompt, or by both, without training anything.

    image: a picture of any mode, size and aspect, its path or an array (`pictures.open_picture`); None to edit the one
    that `prompt` and `seed` generate; or a `Source` from `prepare`, which brings its own prompt and seed, so that one
    inversion serves many edits. drags: ((x, y), (x, y)), handle and target, in pixels of the picture as a viewer shows
    it. mask: of the picture's size, white may move. target_prompt: the edited picture's; None leaves the prompt. With
    both, a handle is a place of the source, and is looked for in the re-prompted picture before the drag begins.
    config: None is the preset that suits the model, `small` and `artwork` for those of weights/, else `sd15`.
    negative_prompt: what guidance leads away from.

    The first edit of a `Source` denoises it beside its target and keeps its K and V; later ones denoise the target
    alone with these (`config.source_kv`), equal but for rounding.

    control: in place of the config's, a name, or a function that is asked for the hook of source and target before each
    denoising step, counted from z_T; the source is then denoised beside its target. supervision, optimizer: the drag
    loop's, as `drag.drag_latent` takes them.

    Raises ValueError for points outside of the picture, a mask of another size, and settings that do not fit: before
    any work is done.
    """
    config, given = checks.configured(config, sd.unet.config.widths), isinstance(image, Source)
    if isinstance(control, str):
        config, control = replace(config, control=control), None  # type: ignore[arg-type]
    checks.functions(control=control, supervision=supervision, optimizer=optimizer, observe=observe)
    image = image if image is None or isinstance(image, Source) else pictures.open_picture(image)
    told: dict[str, Any] = {"observe": observe, "negative_prompt": negative_prompt}
    if config.crop == "auto" and not isinstance(image, Source):
        checks.settings(config, drags, mask, None if image is None else image.size)
        told |= {"prompt": prompt, "target_prompt": target_prompt, "seed": seed, "control": control}
        told |= {"supervision": supervision, "optimizer": optimizer, "config": replace(config, crop="none")}
        return pictures.edit_part(partial(edit, sd, **told), image, drags, mask, config.size)
    checks.request(config, image, drags, mask, (prompt, negative_prompt), target_prompt, control)
    of_source = image.prompt if isinstance(image, Source) else prompt
    methods.control_at(config, sd.text, of_source, of_source if target_prompt is None else target_prompt)  # may raise
    drags = tuple(((float(x0), float(y0)), (float(x1), float(y1))) for (x0, y0), (x1, y1) in drags)
    # A picture that is given to edit makes a source that nobody edits again: none of its K/V are kept.
    source = prepare(sd, image, prompt, seed, config, **told) if not isinstance(image, Source) else image
    report, dragged, here = Report(observe, sd.device), None, list[Drag](drags)
    drag_level = config.steps - config.drag_step
    branch = leave(sd, source, target_prompt, drags, mask, config, keep=given, control=control)
    if drags:
        if branch.level > drag_level:
            with report.stage("denoising", branch.level - drag_level) as step:
                branch = denoise(branch, drag_level, step)
            here = find_again(branch, here)
        with report.stage("drag", config.drag.updates):
            dragged = drag_source(branch, here, report.update, supervision, optimizer)
        branch = replace(branch, z_target=dragged.latent)
    with report.stage("denoising", branch.level) as step:
        z_0 = denoise(branch, 0, step).z_target
    with report.stage("decode", 1):
        picture = pictures.restore(pictures.to_picture(sd.decode(z_0)), source.picture)
        if mask is not None and config.paste:
            picture = pictures.paste(picture, source.picture, mask, source.working_size)
    seconds = {**({} if given else source.seconds), **report.seconds}
    found = outcomes.found_in(source.picture, picture, drags)
    trace = replace(trace_of(sd, branch, drags, dragged, seconds), found=found)
    if short := outcomes.shortfall(trace, branch.mask):
        warnings.warn(short, stacklevel=2)
    return EditResult(picture, source.picture, trace)


class EditResult(NamedTuple):
    """`image`: the result, in the picture's own size. `source`: the picture as given, or as generated."""

    image: Image.Image
    source: Image.Image
    trace: Trace
    _repr_html_, _repr_png_ = pictures.result_html, pictures.picture_png  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"EditResult({self.image.width}×{self.image.height} px, {outcomes.in_short(self.trace)})"


@dataclass(frozen=True, eq=False)
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
    recorded: Recording = field(init=False)
    _repr_html_, _repr_png_ = pictures.source_html, pictures.picture_png

    def __post_init__(self, begun: Recording | None) -> None:
        object.__setattr__(self, "recorded", Recording() if begun is None else begun)

    @property
    def working_size(self) -> Size:
        return 8 * self.latents.shape[-1], 8 * self.latents.shape[-2]

    def __repr__(self) -> str:
        (width, height), (_, _, _, h, w) = self.picture.size, self.latents.shape
        levels = f"z_0 … z_{self.schedule.steps} of {w}×{h} cells"
        return (
            f"Source({width}×{height} px, {'generated' if self.generated else 'inverted'}, {self.prompt!r}, {levels})"
        )

    def unet_of(self, sd: StableDiffusion) -> UNet:
        """Return the network of the source's passes: the model's own, or that under the picture's LoRA."""
        return sd.unet if self.adapted is None else self.adapted.unet


def prepare(
    sd: StableDiffusion,
    image: Given | None,
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
    config = checks.configured(config, sd.unet.config.widths)
    checks.settings(config)
    checks.words(prompt, negative_prompt)
    sd.check_finite()
    schedule, report = Schedule(config.steps, config.variant), Report(observe, sd.device)
    if image is None:
        return generate(sd, prompt, seed, config, size or (config.size, config.size), report, negative_prompt)
    image = pictures.open_picture(image)
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
    checks.generation(config, size)
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
    hook_at: HookAt  # the control, by steps counted from z_T
    own_control: bool  # it is none of those that the config names
    kv: Plan  # where the source's K/V come from
    mask: Tensor | None  # (H, W) on the supervision grid, 1 may move
    blend: Tensor | None  # (h, w): the share of the target that each step keeps, so that all of them keep the mask's
    level: int
    z_source: Tensor  # (1, 4, h, w)
    z_target: Tensor
    target_prompt: str

    @property
    def grid_size(self) -> Size:
        return pictures.grid_size(self.source.working_size)

    @property
    def target_guided(self) -> Guided:
        """The network under the target's prompt alone."""
        one = ddim.PAIR[1:]
        return self.guided._replace(context=self.guided.context[1:], scale=self.config.guidance, rows=one)

    @property
    def drag_context(self) -> Tensor:
        """The context of the drag's passes, (1, n, C'); with guidance there (2, n, C'), the unconditional one first."""
        of_target, uncond = self.guided.context[1:], self.guided.uncond
        return of_target if self.config.drag.drag_guidance == 1 or uncond is None else torch.cat([uncond, of_target])


def leave(
    sd: StableDiffusion,
    source: Source,
    target_prompt: str | None = None,
    drags: Sequence[Drag] = (),
    mask: Mask | None = None,
    config: EditConfig | None = None,
    *,
    keep: bool = True,
    control: HookAt | None = None,
) -> Branch:
    """Begin an edit where it leaves its source, z'_k = z_k: at z_T if the prompt changes, else where the drag begins.

    keep: the source's K/V for later edits, if the config wants that. control: in place of the config's, as `edit` takes
    it; then no K/V are kept or taken from an earlier pass.
    """
    config = checks.configured(config, sd.unet.config.widths)
    target_prompt = source.prompt if target_prompt is None else target_prompt
    changed, unet = target_prompt != source.prompt, source.unet_of(sd)
    level = config.steps - config.drag_step if drags and not changed else config.steps
    prompts = source.negative_prompt, source.prompt, target_prompt
    uncond, context = sd.embed(prompts).split([1, 2])  # (1, n, C); (2, n, C)
    may_move, blend, grid = None, None, pictures.grid_size(source.working_size)
    if mask is not None:
        may_move = pictures.open_mask(mask, source.picture.size, grid).to(sd.device)  # (H, W)
        if drags:
            ends = (pictures.to_grid([pair[end] for pair in drags], source.picture.size, grid) for end in (0, 1))
            pictures.warn_unmasked(may_move, *ends)
        if config.blend:
            blend = drag.to_latent_grid(may_move, source.latents) ** (1 / level)
    shared = config if control is None else replace(config, source_kv="none")
    of_source = SourcePasses(source.recorded.of(unet), source.latents, source.generated)
    return Branch(
        source=source,
        config=config,
        guided=Guided(unet, context, uncond, (source.guidance, config.guidance)),
        hook_at=control or methods.control_at(config, sd.text, source.prompt, target_prompt),
        own_control=control is not None,
        kv=of_source.plan(shared, level, blend is not None, keep),
        mask=may_move,
        blend=blend,
        level=level,
        z_source=source.latents[level],
        z_target=source.latents[level],
        target_prompt=target_prompt,
    )


def drag_source(
    branch: Branch,
    drags: Sequence[Drag],
    observe: Observe | None = None,
    supervision: Supervise | None = None,
    optimizer: Descend | None = None,
) -> DragResult:
    """Drag the branch's target: optimise its latent until the features under the handles have come to the targets."""
    size, context = branch.source.picture.size, branch.drag_context
    handles, targets, asked = pictures.drags_to_grid(drags, size, branch.grid_size)
    unet: Any = branch.guided.unet
    asks: dict[str, Any] = {"observe": observe, "supervision": supervision, "optimizer": optimizer}
    given = unet, branch.z_target, branch.level, context, branch.source.schedule
    dragged = drag.drag_latent(*given, handles, targets, branch.mask, branch.config.drag, **asks)
    back = asked - handles  # what the loop found of whole cells, said of the places that were asked
    return dragged._replace(handles=dragged.handles + back, final_handles=dragged.final_handles + back)


def find_again(branch: Branch, drags: Sequence[Drag]) -> list[Drag]:
    """Return the drags with their handles where the re-prompted picture has what they stand on; targets stay."""
    pair = torch.cat([branch.source.latents[branch.level], branch.z_target])
    t, unet = branch.source.schedule.timesteps[branch.level - 1], cast(UNet, branch.guided.unet)
    size, tap = branch.source.picture.size, branch.config.drag.tap
    handles = pictures.drags_to_grid(drags, size, branch.grid_size)[0]
    places = outcomes.find_again(unet, pair, t, branch.guided.context, handles, tap, branch.grid_size)
    now, before = (pictures.from_grid(points, size, branch.grid_size) for points in (places, handles))
    moved = zip(drags, (now - before).tolist(), strict=True)  # in pixels, by whole cells
    return [((x + dx, y + dy), target) for ((x, y), target), (dx, dy) in moved]


@torch.no_grad()
def denoise(branch: Branch, stop: int = 0, progress: ddim.Progress | None = None) -> Branch:
    """Denoise source and target to z_stop under the branch's control.

    Where an earlier pass stands in for the source's, the target goes alone and z_source stays.
    """
    config, source, guided, plan = branch.config, branch.source, branch.guided, branch.kv
    schedule, start, blend = source.schedule, branch.level, branch.blend
    if plan.earlier is not None:
        levels, earlier = ddim.levels_between(schedule, start, stop), plan.earlier._replace(blend=blend)
        zs = source_kv.replayed(branch.target_guided, branch.z_target, schedule, levels, earlier, config, progress)
        return replace(branch, level=stop, z_target=zs[-1])
    done = config.steps - start  # steps from z_T that lie behind
    zs = ddim.sample_controlled(
        guided.unet, branch.z_source, branch.z_target, guided.context, schedule, start, stop, guided.scale,
        guided.uncond, control_blocks=config.control_blocks, may_move=blend, progress=progress, record=plan.record,
        hook_at=lambda step: checks.hook(branch.hook_at(done + step)),
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
        rows = pictures.from_grid(points, source.picture.size, branch.grid_size).tolist()
        return tuple(tuple((x, y) for x, y in row) for row in rows)

    return Trace(
        config=branch.config,
        seed=source.seed,
        prompt=source.prompt,
        target_prompt=target_prompt if target_prompt != source.prompt else None,
        generated=source.generated,
        picture_size=source.picture.size,
        working_size=source.working_size,
        grid_size=branch.grid_size,
        weights=sd.provenance,
        drags=tuple(drags),
        masked=branch.mask is not None,
        losses=() if dragged is None else tuple(dragged.losses.tolist()),
        handles=() if dragged is None else in_pixels(dragged.handles),
        tracked=() if dragged is None else in_pixels(dragged.final_handles[None])[0],
        stop=None if dragged is None else dragged.reason,
        inversion_residual=source.residual,
        lora_losses=() if source.adapted is None else tuple(source.adapted.losses.tolist()),
        control=repr(branch.hook_at) if branch.own_control else None,
        source_kv=branch.kv.name,
        negative_prompt=source.negative_prompt,
        seconds=seconds,
    )
