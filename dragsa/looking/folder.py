"""A folder that shows the inside of one edit: pictures, and an `index.html` that explains them in order."""

from __future__ import annotations

import html
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dragsa import ddim, editing, passes, pictures, tracking
from dragsa.config import EditConfig
from dragsa.editing import Branch, Drag, EditResult, Mask, Source
from dragsa.hooks import MutualSelfAttention
from dragsa.loading import StableDiffusion
from dragsa.looking import inside
from dragsa.model.blocks import block_name
from dragsa.pictures import Trace, looking
from dragsa.source_kv import controlled_levels

SIDE = 256  # pixels, of a small picture's longer side
MOMENTS = 6  # levels of the trajectory that are shown
HANDLES = 3  # of which the maps are shown
BLOCKS = (11, 14, 16)  # whose attention is shown
TAPS = ("block08", "block11", "block14", "block16")  # beside the tap that the drag read

Figure = tuple[str, Image.Image]  # a caption and a picture


@dataclass(frozen=True)
class Edited:
    """An edit that has been made, and what was kept of it on the way."""

    source: Source
    result: EditResult
    drags: Sequence[Drag] = ()
    mask: Mask | None = None
    latents: Mapping[int, Tensor] = field(default_factory=dict)  # the drag's (1, 4, h, w) behind some of its updates
    passes: Sequence[str] = ()  # in words, in order


def write(folder: Path, sd: StableDiffusion, edited: Edited) -> None:
    """Write the pictures and `index.html` into a folder that is there. It takes some passes and decodings more."""
    branch, z = at_the_drag(sd, edited)
    sections: list[tuple[str, str, list[Any]]] = [
        ("The edit", "Source, the way of the handles, and result.", [("", sheet_of(edited))]),
        (
            "Passes of the UNet",
            "How many there were, where, of which rows, and what acted in them.",
            list(edited.passes),
        ),
        ("The trajectory", COURSE, course(sd, edited)),
        ("Features", FEATURES, features(sd, branch, z)),
        ("Frames", FRAMES, frames(sd, edited)),
        ("Tracking", TRACKING, tracked(branch, z, edited)),
        ("Attention", ATTENTION, attention(branch, z, edited)),
        ("Curves", "Loss, and each handle's distance to its target in pixels, by update.", curves(edited)),
    ]
    lines, count = [], 0
    for title, text, shown in sections:
        if not shown:
            continue
        lines.append(f"<h2>{title}</h2>\n<p>{html.escape(text)}</p>")
        if isinstance(shown[0], str):
            lines += ["<ol>", *(f"<li>{html.escape(words)}</li>" for words in shown), "</ol>"]
            continue
        lines.append("<div>")
        for caption, picture in shown:
            count += 1
            name = f"{count:02}.png"
            pictures.save_picture(picture, folder / name)
            words = html.escape(caption)
            lines.append(f'<figure><img src="{name}" alt="{words}"><figcaption>{words}</figcaption></figure>')
        lines.append("</div>")
    (folder / "index.html").write_text(PAGE.format(title=html.escape(said(edited)), body="\n".join(lines)), "utf-8")


COURSE = """First z_k, decoded as it is; then the clean picture that the network takes it for, x̂_0 decoded.
Where that has the result's layout, the layout is decided."""
FEATURES = """Their three principal components as colours, at the level of the drag, of the source and of the edit in
the same colours: what the drag can tell apart has another colour."""
FRAMES = """The clean picture x̂_0 that the dragged latent is taken for, behind some of the updates. The result takes the
denoising under control besides."""
TRACKING = """How far the features of every cell are from what was at the handle in the source, dark is near. The best
match within the window is where the tracking is; a second one that is nearly as dark is where it may be lost to."""
ATTENTION = """Where the handle's place looks in the edit's next pass. Without control it looks into its own picture,
under the paper's control, where the edit has that there, its keys and values are the source's."""


def said(edited: Edited) -> str:
    """Return an edit's title."""
    trace = edited.result.trace
    told = [f"“{trace.prompt}”"] if trace.prompt else []
    told += [f"to “{trace.target_prompt}”"] if trace.target_prompt is not None else []
    if trace.drags:
        told.append(f"{counted(len(trace.drags), 'drag')}, {trace.stop} after {counted(len(trace.losses), 'update')}")
    return ", ".join(told) or "An edit"


def counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def sheet_of(edited: Edited) -> Image.Image:
    result = edited.result
    return pictures.sheet(pictures.panels_of(result.source, result.image, result.trace))


def small(picture: Image.Image) -> Image.Image:
    """Return a picture enlarged or reduced so that its longer side is `SIDE`."""
    return picture.resize(pictures.scaled(picture.size, SIDE / max(picture.size)), Image.Resampling.BICUBIC)


def at_the_drag(sd: StableDiffusion, edited: Edited) -> tuple[Branch, Tensor]:
    """Return source and target at the level of the drag, or where control begins, and the target's latent there."""
    source, trace = edited.source, edited.result.trace
    config, target = trace.config, trace.target_prompt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say, the edit has said
        branch = editing.leave(sd, source, target, edited.drags, edited.mask, config, keep=False)
    level = config.steps - (config.drag_step if edited.drags else config.control_step or 0)
    if branch.level > level > 0:
        branch = editing.denoise(branch, level)
    last = edited.latents[max(edited.latents)] if edited.latents else branch.z_target
    return branch, last


def course(sd: StableDiffusion, edited: Edited) -> list[Figure]:
    source = edited.source
    steps = len(source.latents) - 1
    uncond, context = sd.embed([source.negative_prompt, source.prompt]).chunk(2)
    guided = inside.Guided(source.unet_of(sd), context, uncond, source.guidance)
    levels = [round(steps * n / (MOMENTS - 1)) for n in range(MOMENTS)][::-1]
    moments = inside.trajectory(sd, guided, source.latents, source.schedule, levels)
    upper = [(f"z_{moment.level}", small(moment.latent)) for moment in moments]
    return [*upper, *((f"x̂_0 of z_{moment.level}", small(moment.predicted)) for moment in moments)]


@torch.no_grad()
def features_at(branch: Branch, pair: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
    """Return activations (B, C, h, w) of latents at the branch's level, each under its own prompt."""
    t = branch.source.schedule.timesteps[branch.level - 1]
    unet: Any = branch.guided.unet
    return unet(pair, t, branch.guided.context[-len(pair) :], taps=tuple(taps)).taps


def features(sd: StableDiffusion, branch: Branch, z: Tensor) -> list[Figure]:
    chosen = branch.config.drag.tap
    names = list(dict.fromkeys([*TAPS, *chosen.split("+")]))
    found = features_at(branch, torch.cat([branch.z_source, z]), names)
    figures = []
    for name in names:
        source, target = found[name].chunk(2)
        colours = looking.principal_components(source)
        for what, one in (("source", source), ("edit", target)):
            mark = ", which the drag reads" if name in chosen.split("+") else ""
            height, width = one.shape[2:]
            scale = SIDE / max(height, width)
            size = round(width * scale), round(height * scale)
            caption = f"{name}, {what}, {width}×{height}{mark}"
            figures.append((caption, looking.feature_picture(one, size, colours)))
    return figures


def frames(sd: StableDiffusion, edited: Edited) -> list[Figure]:
    return [(f"after {counted(n, 'update')}", small(picture)) for n, picture in frames_of(sd, edited).items()]


def frames_of(sd: StableDiffusion, edited: Edited) -> dict[int, Image.Image]:
    """Return the picture that each kept latent is taken for, by its update, in the edited picture's size."""
    source, trace = edited.source, edited.result.trace
    prompts = [source.negative_prompt, source.prompt if trace.target_prompt is None else trace.target_prompt]
    uncond, context = sd.embed(prompts).chunk(2)
    guided = inside.Guided(source.unet_of(sd), context, uncond, trace.config.guidance)
    level = trace.config.steps - trace.config.drag_step
    made = inside.frames(sd, guided, [*edited.latents.values()], source.schedule, level)
    restored = (pictures.restore(picture, source.picture) for picture in made)
    return dict(zip(edited.latents, restored, strict=True))


def tracked(branch: Branch, z: Tensor, edited: Edited) -> list[Figure]:
    trace, grid = edited.result.trace, branch.grid_size
    if not edited.latents:
        return []
    loop, size = branch.config.drag, (grid[1], grid[0])
    handles, _, asked = pictures.drags_to_grid(trace.drags, trace.picture_size, grid)
    with torch.no_grad():
        noise = ddim.noise_at(branch.source.schedule, branch.level, z.device)
        unet: Any = branch.guided.unet
        run = passes.prepare(unet, noise, branch.drag_context, loop)
        first, last = (run(one, handles, False).features for one in (branch.z_target, z))  # (1, C, h, w) each
    figures = []
    found = pictures.to_grid(trace.tracked, trace.picture_size, grid) + (handles - asked)
    for n, (handle, at) in enumerate(zip(handles, found, strict=True)):
        reference = tracking.sample_points(first, handle[None].to(first.device), size)[0]
        map_ = inside.distance_map(last, reference, at.tolist(), loop.track_radius, size)
        picture = looking.over_picture(small(edited.result.image), map_.distances)
        places = {"best": [map_.best], "second": [map_.second] if map_.second else []}
        ends = {
            name: pictures.from_grid(torch.tensor(ps), picture.size, grid).tolist() for name, ps in places.items() if ps
        }
        ends["target"] = [_scaled(trace.drags[n][1], trace.picture_size, picture.size)]
        best, second = (map_.distances[p[1], p[0]].item() if p else float("nan") for p in (map_.best, map_.second))
        caption = f"handle {n + 1}: best {best:.3g}, second {second:.3g}, map's mean {map_.distances.mean().item():.3g}"
        figures.append((caption, looking.with_points(picture, ends)))
        if n + 1 == HANDLES:
            break
    return figures


def _scaled(point: tuple[float, float], size: tuple[int, int], new: tuple[int, int]) -> tuple[float, float]:
    x, y = pictures.from_grid([point], new, size)[0].tolist()
    return x, y


def attention(branch: Branch, z: Tensor, edited: Edited) -> list[Figure]:
    trace, grid = edited.result.trace, branch.grid_size
    points = list(trace.tracked[:HANDLES]) or [((trace.picture_size[0] - 1) / 2, (trace.picture_size[1] - 1) / 2)]
    t, figures = branch.source.schedule.timesteps[branch.level - 1], []
    pair, control = torch.cat([branch.z_source, z]), MutualSelfAttention(branch.config.control_blocks)
    guided = branch.guided._replace(scale=1.0)
    blocks = [block for block in BLOCKS if block in branch.config.control_blocks]
    for n, point in enumerate(points):
        at = pictures.to_grid([point], trace.picture_size, grid)[0].tolist()
        for block in blocks:
            found = inside.attention_from(guided, pair, t, block, at, control)
            for what, map_, ground in (
                ("without control, in the edit", found.own, edited.result.image),
                ("with control, in the source", found.controlled, edited.result.source),
            )[: 2 if controlled(branch.config, branch.level, trace) else 1]:
                picture = looking.over_picture(small(ground), map_)
                marked = looking.with_points(picture, {"": [_scaled(point, trace.picture_size, picture.size)]})
                figures.append((f"{block_name(block)}, from handle {n + 1}, {what}", marked))
    return figures


def controlled(config: EditConfig, level: int, trace: Trace) -> bool:
    """Tell whether the edit's step from a level took its keys and values from the source alone."""
    return config.control == "mutual" and trace.control is None and level in controlled_levels(config, level)


def curves(edited: Edited) -> list[Figure]:
    trace = edited.result.trace
    if not trace.losses:
        return []
    by_handle = {f"handle {n + 1}": [row[n] for row in trace.distances_px] for n in range(min(6, len(trace.drags)))}
    distances = looking.curve_picture(by_handle, below="updates")
    return [("loss", looking.curve_picture({"loss": trace.losses}, below="updates")), ("distance [px]", distances)]


PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 sans-serif; max-width: 1600px; margin: 2em auto; background: white; color: #222 }}
div {{ display: flex; flex-wrap: wrap; gap: 12px }}
figure {{ margin: 0; max-width: 100% }}
img {{ max-width: 100%; display: block }}
figcaption {{ font-size: 12px; max-width: 256px }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
