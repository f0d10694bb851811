"""The story of an edit, in the paper's order: encode, invert, drag, denoise under control, decode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dragsa import ddim, drag, hooks
from dragsa.config import Control, EditConfig, SourceKV
from dragsa.ddim import Schedule
from dragsa.hooks import AttentionHook
from dragsa.loading.weights import StableDiffusion
from dragsa.methods import lora, masactrl, prompt_to_prompt
from dragsa.model.text import TextEncoder
from dragsa.model.unet import UNet
from dragsa.pictures import images, trace
from dragsa.pictures.images import Point, Size
from dragsa.pictures.trace import Observer, Trace
from dragsa.source_kv import INVERSION, Recording, Trajectory

Drag = tuple[Point, Point]  # handle and target, pixels of the picture as given
SOURCE_KV, CONTROLS = get_args(SourceKV), get_args(Control)
Mask = str | Path | Image.Image | np.ndarray | Tensor


class Adapted(NamedTuple):
    """What a picture's LoRA is: its factors, the loss of each step that trained it (steps,), and the UNet under it."""

    lora: lora.LoRA
    losses: Tensor
    unet: UNet


@dataclass(frozen=True)
class Source:
    """What a picture and its prompt give once, for any number of edits.

    `latents`: its trajectory z_0 … z_T, (T + 1, 1, 4, h, w). `picture`: as given, or as generated. `adapted`: the LoRA
    that all its passes run under, if there is one. `recorded`, the one part that changes, is what its passes leave for
    later edits; it begins as `begun`, and a copy by `dataclasses.replace`, which may have other latents, has an empty
    one.
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
    adapted: Adapted | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    begun: InitVar[Recording | None] = None
    recorded: Recording = field(init=False, compare=False)

    def __post_init__(self, begun: Recording | None) -> None:
        object.__setattr__(self, "recorded", Recording() if begun is None else begun)

    @property
    def working_size(self) -> Size:
        return 8 * self.latents.shape[-1], 8 * self.latents.shape[-2]

    def unet_of(self, sd: StableDiffusion) -> UNet:
        """The network of the source's passes: the model's own, or that under the picture's LoRA."""
        return sd.unet if self.adapted is None else self.adapted.unet


class EditResult(NamedTuple):
    """`image`: the result, in the picture's own size. `source`: the picture as given, or as generated."""

    image: Image.Image
    source: Image.Image
    trace: Trace


class Report:
    """Tells an observer how far the stages are, and keeps how long they took."""

    def __init__(self, observe: Observer | None, device: torch.device) -> None:
        self.observe = observe
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[ddim.Progress]:
        """A stage of `total` steps; gives the function that is told how many are done."""

        def step(done: int, total: int = total) -> None:
            if self.observe is not None:
                self.observe(trace.StageProgress(name, done, total))

        step(0)
        begin = self._now()
        yield step
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin
        step(total)

    def _now(self) -> float:
        """Seconds, once the device has done what it was given: a stage is not billed for the one before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def update(self, update: drag.Update) -> None:
        """Passes an update of the drag loop on."""
        if self.observe is not None:
            points, distances = update.handles.tolist(), update.distances.tolist()
            self.observe(trace.DragProgress(update.update, update.total, update.loss, points, distances))


def prepare(
    sd: StableDiffusion,
    image: Image.Image | None,
    prompt: str = "",
    seed: int = 42,
    config: EditConfig | None = None,
    *,
    size: Size | None = None,
    observe: Observer | None = None,
) -> Source:
    """The source's trajectory: a picture encoded and inverted to z_T, or for None one denoised from the seed's noise.

    `size` (width, height), multiples of 8, is a generated picture's; by default a square of `config.size`. With
    `config.source_kv` "inversion" the K/V of these passes are kept for the edits, at the levels and in the blocks that
    the config controls; those of a generated picture are exact. With `config.lora_steps` a LoRA is trained on the
    picture first. Raises ValueError for a size that does not fit, and for a LoRA of a picture that is yet to be
    generated.
    """
    config = EditConfig.paper() if config is None else config
    check(config)
    schedule = Schedule(config.steps, config.variant)
    report = Report(observe, sd.device)
    uncond, context = sd.embed(["", prompt]).chunk(2)  # (1, n, C) each
    unet, adapted = sd.unet, None
    if image is None:
        check_generated(config)
    else:
        with report.stage("encode", 1):
            working = images.working_size(*image.size, config.size)
            z_0 = sd.encode(images.to_tensor(image, working).to(sd.device))  # (1, 4, h, w)
        if config.lora_steps:
            with report.stage("lora", config.lora_steps) as step:
                trained = lora.train(sd.unet, z_0, context, config.lora_steps, seed=seed, progress=step)
                unet = lora.apply(sd.unet, trained.lora)
                adapted = Adapted(trained.lora, trained.losses, unet)
    recorded, record = Recording().of(unet), None
    if config.source_kv == "inversion" and config.control == "mutual":
        trajectory = config.steps if image is None else INVERSION
        record = recorded.recorder(trajectory, controlled_levels(config, config.steps), config.source_kv_memory)
    if image is not None:
        with report.stage("inversion", config.steps) as step:
            residual = None
            if config.fixed_point:
                found = ddim.invert_fixed_point(
                    unet, z_0, context, schedule, progress=step, record=record,
                    record_blocks=config.control_blocks, iterations=config.fixed_point
                )  # fmt: skip
                latents, residual = found.latents, found.residuals.max().item()
            else:
                latents = ddim.invert(
                    unet, z_0, context, schedule, progress=step, record=record, record_blocks=config.control_blocks
                )  # (T + 1, 1, 4, h, w)
        return Source(
            image, latents, prompt, seed, schedule, 1.0, False, config.fixed_point, residual, adapted, report.seconds,
            recorded
        )  # fmt: skip

    width, height = (config.size, config.size) if size is None else size
    if min(width, height) < images.SMALLEST or width % 8 or height % 8:
        raise ValueError(
            f"a generated picture's sides are multiples of 8 from {images.SMALLEST}, came {width}×{height}"
        )
    generator = torch.Generator().manual_seed(seed)  # the CPU's, so that a seed is one picture on every device
    z_T = torch.randn(1, sd.unet.config.latent_channels, height // 8, width // 8, generator=generator).to(sd.device)
    with report.stage("generation", config.steps) as step:
        down = ddim.sample(
            sd.unet, z_T, context, schedule, guidance=config.guidance, uncond=uncond, progress=step,
            record=record, record_blocks=config.control_blocks
        )  # (T + 1, 1, 4, h, w), z_T first  # fmt: skip
    with report.stage("decode", 1):
        picture = images.to_picture(sd.decode(down[-1]))
    return Source(
        picture, down.flip(0), prompt, seed, schedule, config.guidance, True, seconds=report.seconds, begun=recorded
    )


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
) -> EditResult:
    """Edit a picture by dragging points, by changing its prompt, or by both, without training anything.

    image: a picture of any mode, size and aspect; None to edit the one that `prompt` and `seed` generate; or a `Source`
    from `prepare`, which brings its own prompt and seed, so that one inversion serves many edits. drags: ((x, y), (x,
    y)), handle and target, in pixels of the picture as given. mask: of the picture's size, white may move.
    target_prompt: the edited picture's; None leaves the prompt.

    The first edit of a `Source` denoises it beside its target and keeps its K and V; later ones denoise the target
    alone with these (`config.source_kv`), equal but for rounding.

    Raises ValueError for points outside of the picture, a mask of another size, and settings that do not fit: before
    any work is done.
    """
    config = EditConfig.paper() if config is None else config
    if isinstance(image, Source):
        check_source(config, image, prompt)
    size = (config.size, config.size) if image is None else (image.picture if isinstance(image, Source) else image).size
    check(config, drags, mask, size)
    prompt = image.prompt if isinstance(image, Source) else prompt
    target_prompt = prompt if target_prompt is None else target_prompt
    new_hook = other_control(config, sd.text, prompt, target_prompt)
    drags = tuple(((float(x0), float(y0)), (float(x1), float(y1))) for (x0, y0), (x1, y1) in drags)
    source = image if isinstance(image, Source) else prepare(sd, image, prompt, seed, config, observe=observe)
    schedule, T, unet = source.schedule, config.steps, source.unet_of(sd)
    changed = target_prompt != source.prompt
    uncond, context = sd.embed(["", source.prompt, target_prompt]).split([1, 2])  # (1, n, C); (2, n, C): source, target
    grid = images.grid_size(source.working_size)
    handles, targets = (images.to_grid([pair[end] for pair in drags], source.picture.size, grid) for end in (0, 1))
    may_move = None if mask is None else images.open_mask(mask, source.picture.size, grid).to(sd.device)  # (H, W)
    if may_move is not None and len(handles):
        images.warn_unmasked(may_move, handles)
    if may_move is not None and not may_move.any():
        may_move = None  # an all-black mask is none
    blend = None
    if config.blend and may_move is not None:
        blend = drag.to_latent_grid(may_move, source.latents)  # (h, w)
    report = Report(observe, sd.device)

    # Where the edit leaves the source: at z_T if the prompt changes, else at z_{T-S}, since until there z'_k is z_k.
    level = T - config.drag_step if drags else T
    leave = T if changed else level
    z_source = z_target = source.latents[leave]  # (1, 4, h, w)
    # A picture that is given to edit makes a source that nobody edits again.
    ways = source_pass(unet, source, config, leave, blend is not None, keep=isinstance(image, Source))

    def denoise_to(stop: int, start: int, z_source: Tensor, z_target: Tensor) -> tuple[Tensor, Tensor]:
        with report.stage("denoising", start - stop) as step:
            return denoise(
                unet, source, config, ways, z_source, z_target, context, uncond, start, stop, blend, new_hook, step
            )

    if drags:
        if changed:
            z_source, z_target = denoise_to(level, T, z_source, z_target)
        with report.stage("drag", config.drag.updates):
            dragged = drag.drag_latent(
                unet, z_target, level, context[1:], schedule, handles, targets, may_move, config.drag, report.update
            )
        z_target = dragged.latent
    _, z_target = denoise_to(0, level, z_source, z_target)
    with report.stage("decode", 1):
        picture = images.restore(images.to_picture(sd.decode(z_target)), source.picture)

    def in_pixels(points: Tensor) -> tuple[tuple[Point, ...], ...]:
        return tuple(
            tuple((x, y) for x, y in row) for row in images.from_grid(points, source.picture.size, grid).tolist()
        )

    made = Trace(
        config=config,
        seed=source.seed,
        prompt=source.prompt,
        target_prompt=target_prompt if changed else None,
        generated=source.generated,
        picture_size=source.picture.size,
        working_size=source.working_size,
        grid_size=grid,
        weights=sd.provenance,
        drags=drags,
        masked=may_move is not None,
        losses=tuple(dragged.losses.tolist()) if drags else (),
        handles=in_pixels(dragged.handles) if drags else (),
        tracked=in_pixels(dragged.final_handles[None])[0] if drags else (),
        stop=dragged.reason if drags else None,
        inversion_residual=source.residual,
        lora_losses=() if source.adapted is None else tuple(source.adapted.losses.tolist()),
        source_kv=ways.name,
        seconds={**({} if isinstance(image, Source) else source.seconds), **report.seconds},
    )
    return EditResult(picture, source.picture, made)


class SourcePass(NamedTuple):
    """Where a denoising has the source's K/V from, and what is told those that it computes itself."""

    earlier: EarlierPass | None
    record: ddim.Record | None
    trajectory: Trajectory
    name: str | None  # that of the earlier pass, or "computed"; None where no K/V are wanted


def source_pass(
    unet: UNet, source: Source, config: EditConfig, leave: int, blend: bool, keep: bool = True
) -> SourcePass:
    """Decides it, once for an edit whose target leaves the source at z_k, k = `leave`.

    keep: for later edits, if the config wants that.
    """
    trajectory, levels = own_trajectory(source, leave), controlled_levels(config, leave)
    earlier, record = earlier_pass(source, config, leave, blend, unet), None
    if earlier is None and keep and config.source_kv != "none" and config.control == "mutual":
        record = source.recorded.recorder(trajectory, levels, config.source_kv_memory)
    name = "computed" if earlier is None else earlier.name
    return SourcePass(earlier, record, trajectory, name if levels else None)


def denoise(
    unet: UNet,
    source: Source,
    config: EditConfig,
    ways: SourcePass,
    z_source: Tensor,
    z_target: Tensor,
    context: Tensor,
    uncond: Tensor,
    start: int,
    stop: int = 0,
    blend: Tensor | None = None,
    new_hook: Callable[[], AttentionHook] | None = None,
    progress: ddim.Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """z_start -> z_stop of source and target, under control from denoising step A on, counted from z_T.

    z_source, z_target: (1, 4, h, w). context: (2, n, C), source and target; uncond: (1, n, C). blend: (h, w). new_hook:
    from `other_control`. Where an earlier pass stands in for the source's, the target goes alone and z_source stays.
    """
    first = None if config.control_step is None else max(0, config.control_step - (config.steps - start))
    if ways.earlier is not None:
        zs = ddim.sample_replayed(
            unet, z_target, context[1:], source.schedule, ways.earlier.kv, start, stop, config.guidance, uncond, first,
            config.control_blocks, blend, ways.earlier.latents, progress
        )  # fmt: skip
        return z_source, zs[-1]
    zs = ddim.sample_controlled(
        unet, z_source, z_target, context, source.schedule, start, stop, (source.guidance, config.guidance), uncond,
        first, config.control_blocks, blend, progress, ways.record, hook_at(first, new_hook)
    )  # (start - stop + 1, 2, 4, h, w)  # fmt: skip
    if ways.record is not None:
        source.recorded.keep_latents(ways.trajectory, start, zs[:, :1])
    return zs[-1, :1], zs[-1, 1:]


def other_control(
    config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str
) -> Callable[[], AttentionHook] | None:
    """What gives each step its hook under another control than "mutual", which the samplers have themselves.

    Raises ValueError for a "masked" control of which a prompt names no object.
    """
    if config.control == "mutual":
        return None
    if config.control == "union":
        return partial(masactrl.UnionSelfAttention, config.control_blocks)
    of_source, of_target = (object_tokens(text, one, config.object_words) for one in (prompt, target_prompt))
    return partial(
        masactrl.masked_by_prompt,
        *(of_source, of_target, config.control_blocks),
        mask_blocks=config.mask_blocks,
        threshold=config.mask_threshold,
    )


def object_tokens(text: TextEncoder, prompt: str, wanted: Sequence[str]) -> tuple[int, ...]:
    """Positions in the context of those of the object's words that a prompt has. Raises ValueError if it has none."""
    found = [at for word, positions in prompt_to_prompt.words(text, prompt) if word in wanted for at in positions]
    if not found:
        raise ValueError(f"masked control: the prompt {prompt!r} has none of the object's words {', '.join(wanted)}")
    return tuple(found)


def hook_at(first: int | None, new_hook: Callable[[], AttentionHook] | None) -> ddim.HookAt | None:
    """A new hook for each step from the `first` on, None being none of them; None where the samplers' own serves."""
    if new_hook is None:
        return None
    return lambda step: new_hook() if first is not None and step >= first else None


class EarlierPass(NamedTuple):
    """A pass of the source that stands in for denoising it again: its K/V, and its latents z_k, by level."""

    name: str  # "recorded", or "inversion", which approximates
    kv: Callable[[int], ddim.KVByBlock]
    latents: Mapping[int, Tensor] | Tensor


def earlier_pass(source: Source, config: EditConfig, start: int, blend: bool, network: object) -> EarlierPass | None:
    """What has been recorded in place of the source's denoising from level `start`, or None where it does not suffice.

    The same network's K/V must be there at every level under control, of every controlled block, and of the
    unconditional row too where the edit has guidance; to blend, the latent of every level.
    """
    if config.source_kv == "none" or config.control != "mutual":  # what is replayed is the source's K/V alone
        return None
    recorded, own = source.recorded.of(network), own_trajectory(source, start)
    latents = source.latents if source.generated else recorded.latents.get(own, {})
    passes = [(own, EarlierPass("recorded", partial(recorded.kv, own, config.control_blocks), latents))]
    if config.source_kv == "inversion":
        kv = partial(recorded.kv, INVERSION, config.control_blocks)
        passes.append((INVERSION, EarlierPass("inversion", kv, source.latents)))
    levels, rows = controlled_levels(config, start), 1 if config.guidance == 1 else 2
    for trajectory, earlier in passes:
        attended = recorded.covers(trajectory, levels, config.control_blocks, rows)
        blended = not blend or len(earlier.latents) > start  # z_start … z_0
        if attended and blended:
            return earlier
    return None


def own_trajectory(source: Source, start: int) -> Trajectory:
    """What the source's latents are named by when it is denoised from `start`: a generated one's are always z_T's."""
    return source.schedule.steps if source.generated else start


def controlled_levels(config: EditConfig, start: int) -> range:
    """The levels k, from `start` down, whose step z_k -> z_{k-1} is under control: from the A-th step of all on."""
    return range(0) if config.control_step is None else range(min(start, config.steps - config.control_step), 0, -1)


def check(config: EditConfig, drags: Sequence[Drag] = (), mask: Mask | None = None, size: Size | None = None) -> None:
    """Raise a ValueError for settings that no edit can be made with, and drags and a mask that do not fit a picture.

    `size` is the picture's; without it only what holds for any picture is looked at.
    """
    Schedule(config.steps, config.variant)
    drag.check_config(config.drag)
    hooks.check_blocks(config.control_blocks)
    hooks.check_blocks(config.mask_blocks)
    if config.control not in CONTROLS:
        raise ValueError(f"control must be one of {', '.join(CONTROLS)}, came {config.control!r}")
    if config.control == "masked" and not config.object_words:
        raise ValueError("masked control tells the object by words of the prompts: name them (object_words)")
    if not 0 <= config.mask_threshold <= 1:
        raise ValueError(f"mask_threshold must be a number from 0 to 1, came {config.mask_threshold!r}")
    if not ddim.is_whole(config.lora_steps) or config.lora_steps < 0:
        raise ValueError(f"LoRA training steps must be a whole number from 0, came {config.lora_steps!r}")
    images.working_size(1, 1, config.size)
    last = config.steps - 1
    if not ddim.is_whole(config.drag_step) or (len(drags) and not 0 <= config.drag_step <= last):
        raise ValueError(f"drag step S must be a whole number from 0 to T - 1 = {last}, came {config.drag_step!r}")
    if config.control_step is not None and not (ddim.is_whole(config.control_step) and config.control_step >= 0):
        raise ValueError(f"control step A must be a whole number from 0, or None, came {config.control_step!r}")
    if not ddim.is_whole(config.fixed_point) or config.fixed_point < 0:
        raise ValueError(f"fixed-point iterations must be a whole number from 0, came {config.fixed_point!r}")
    if config.source_kv not in SOURCE_KV:
        raise ValueError(f"source_kv must be one of {', '.join(SOURCE_KV)}, came {config.source_kv!r}")
    if not ddim.is_whole(config.source_kv_memory) or config.source_kv_memory < 0:
        raise ValueError(f"source_kv_memory must be a whole number of bytes, came {config.source_kv_memory!r}")
    if not 0 <= config.guidance < math.inf:
        raise ValueError(f"guidance must be a number from 0, came {config.guidance!r}")
    for pair in drags:
        if np.shape(pair) != (2, 2):
            raise ValueError(f"a drag is ((x, y), (x, y)), handle and target, came {pair!r}")
    if size is not None:
        if config.blend and mask is None:
            raise ValueError("blending keeps what lies outside of the mask, and there is no mask")
        images.to_grid([point for pair in drags for point in pair], size, size)
        if mask is not None:
            images.open_mask(mask, size, (1, 1))


def check_generated(config: EditConfig) -> None:
    """Raise a ValueError where a picture is to be generated and learnt by a LoRA, which is there to learn one given."""
    if config.lora_steps:
        raise ValueError("a LoRA is trained on a picture that is there: save the generated one and edit that")


def check_source(config: EditConfig, source: Source, prompt: str = "") -> None:
    """Raise a ValueError where a prepared source was made under other settings than the edit's."""
    expected: dict[str, Any] = {"steps": config.steps, "variant": config.variant, "fixed_point": config.fixed_point}
    made: dict[str, Any] = {
        "steps": source.schedule.steps,
        "variant": source.schedule.variant,
        "fixed_point": source.fixed_point,
    }
    expected["lora_steps"], made["lora_steps"] = config.lora_steps, 0
    if source.adapted is not None:
        made["lora_steps"] = len(source.adapted.losses)
    if source.generated:
        expected["fixed_point"] = 0  # nothing was inverted
    else:
        expected["working size"] = images.working_size(*source.picture.size, config.size)
        made["working size"] = source.working_size
    for name, value in expected.items():
        if made[name] != value:
            raise ValueError(f"the source was prepared with {name} {made[name]!r}, and the edit has {value!r}")
    if prompt not in ("", source.prompt):
        raise ValueError(f"the source was prepared with the prompt {source.prompt!r}; prepare one for {prompt!r}")
