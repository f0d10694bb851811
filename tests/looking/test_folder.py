"""The folder of an edit's inside: each of its figures is of what its caption says."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dragsa
from dragsa import editing, looking, pictures, tracking
from dragsa.ddim import Guided
from dragsa.drag import motion_supervision, no_lap
from dragsa.hooks import MutualSelfAttention
from dragsa.looking import Edited, folder
from dragsa.pictures import DragProgress, StageProgress
from dragsa.pictures import looking as drawn

pytestmark = pytest.mark.filterwarnings("ignore:the drag did not arrive")
LOOP = dragsa.DragConfig(updates=2, tap="block14+block15")
CONFIG = dragsa.EditConfig.paper(steps=5, drag_step=2, control_step=2, source_kv="none", drag=LOOP)
PICTURE = Image.fromarray(np.arange(64 * 72 * 3, dtype=np.uint8).reshape(64, 72, 3))
DRAGS = tuple(((20.0 + 8 * n, 20.0 + 6 * n), (40.0, 20.0 + 10 * n)) for n in range(4))
K = 3  # the level of the drag
INKS = [(192, 24, 24), (24, 80, 192), (16, 128, 64)]  # of points: best, second, target


@pytest.fixture(scope="module")
def sd(tiny_folder: Path) -> dragsa.StableDiffusion:
    return dragsa.load(tiny_folder)


@pytest.fixture(scope="module")
def edited(sd: dragsa.StableDiffusion) -> Edited:
    """An edit by four drags."""
    latents: dict[int, torch.Tensor] = {}

    def keep(event: StageProgress | DragProgress) -> None:
        if isinstance(event, DragProgress) and event.latent is not None:
            latents[event.update] = event.latent

    source = dragsa.prepare(sd, PICTURE, "a red <dot>", config=CONFIG)
    result = dragsa.edit(sd, source, DRAGS, config=CONFIG, observe=keep)
    return Edited(source, result, DRAGS, latents=latents, passes=["one", "two"])


def shown(where: Path) -> list[str]:
    """The titles of the page's sections, whose pictures are all there and are all that is there."""
    text = (where / "index.html").read_text("utf-8")
    named = re.findall(r'<img src="(.*?)"', text)
    assert sorted([*named, "index.html"]) == sorted(path.name for path in where.iterdir())
    assert all(Image.open(where / name).size > (16, 16) for name in named)
    return re.findall("<h2>(.*?)</h2>", text)


def test_the_page_shows_what_there_is(sd: dragsa.StableDiffusion, edited: Edited, tmp_path: Path) -> None:
    (tmp_path / "drag").mkdir()
    looking.write(tmp_path / "drag", sd, edited)
    titles = ["The edit", "Passes of the UNet", "The trajectory", "Features", "Frames", "Tracking", "Attention"]
    assert shown(tmp_path / "drag") == [*titles, "Curves"]
    text = (tmp_path / "drag/index.html").read_text("utf-8")
    assert "<title>“a red &lt;dot&gt;”, 4 drags, budget after 2 updates</title>" in text
    assert "<ol>\n<li>one</li>\n<li>two</li>\n</ol>" in text
    whole = pictures.sheet(pictures.panels_of(edited.result.source, edited.result.image, edited.result.trace))
    assert pictures.open_picture(tmp_path / "drag/01.png").tobytes() == whole.tobytes()

    result = dragsa.edit(sd, edited.source, target_prompt="a cat", config=replace(CONFIG, control_step=2))
    alone = Edited(edited.source, result)
    (tmp_path / "prompt").mkdir()
    looking.write(tmp_path / "prompt", sd, alone)
    assert shown(tmp_path / "prompt") == ["The edit", "The trajectory", "Features", "Attention"]
    assert folder.said(alone) == "“a red <dot>”, to “a cat”"
    one = replace(result.trace, prompt="", target_prompt=None, drags=DRAGS[:1], losses=(1.0,), stop="reached")
    assert folder.said(replace(alone, result=result._replace(trace=one))) == "1 drag, reached after 1 update"
    none = replace(one, drags=())
    assert folder.said(replace(alone, result=result._replace(trace=none))) == "An edit"


def test_what_is_looked_at_is_at_the_drag_or_where_control_begins(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    branch, z = folder.at_the_drag(sd, edited)
    assert branch.level == K and torch.equal(branch.z_target, edited.source.latents[K]) and z is edited.latents[2]
    first: list[torch.Tensor] = []

    def supervise(run: Any, task: Any, first_pass: Any = None, lap: Any = no_lap) -> Any:
        first.append(task.latent.detach())
        return motion_supervision(run, task, first_pass, lap)

    config = replace(CONFIG, control_step=1)
    told: dict[str, Any] = {"target_prompt": "a cat", "config": config}
    both = dragsa.edit(sd, edited.source, DRAGS, supervision=supervise, **told)
    branch, z = folder.at_the_drag(sd, Edited(edited.source, both, DRAGS))
    assert branch.level == K and z is branch.z_target
    torch.testing.assert_close(z, first[0])
    alone = Edited(edited.source, dragsa.edit(sd, edited.source, **told))
    branch, z = folder.at_the_drag(sd, alone)
    assert branch.level == 4 and z is branch.z_target and not torch.equal(z, branch.z_source)


def test_the_trajectory_is_the_sources_under_its_guidance(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    config = replace(CONFIG, guidance=3.0, size=64)
    source = dragsa.prepare(sd, None, "a red dot", config=config, negative_prompt="a cat")
    figures = folder.course(sd, replace(edited, source=source))
    levels = range(5, -1, -1)
    assert [caption for caption, _ in figures] == [f"z_{k}" for k in levels] + [f"x̂_0 of z_{k}" for k in levels]
    uncond, context = sd.embed(["a cat", "a red dot"]).chunk(2)
    guided = Guided(sd.unet, context, uncond, 3.0)
    moments = looking.trajectory(sd, guided, source.latents, source.schedule, [*levels])
    expected = [*(one.latent for one in moments), *(one.predicted for one in moments)]
    assert [picture.tobytes() for _, picture in figures] == [folder.small(one).tobytes() for one in expected]


def test_small_pictures_are_of_one_side() -> None:
    for size, enlarged in (((72, 64), (256, 228)), ((64, 512), (32, 256))):
        assert folder.small(Image.new("RGB", size)).size == enlarged


def test_features_are_each_latents_under_its_own_prompt(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    branch = editing.denoise(editing.leave(sd, edited.source, "a cat", config=CONFIG), K)
    z = edited.latents[2]
    taps, t, context = (
        ("block14", "block15"),
        branch.source.schedule.timesteps[K - 1],
        sd.embed(["a red <dot>", "a cat"]),
    )
    found = folder.features_at(branch, torch.cat([branch.z_source, z]), taps)
    for row, latent in enumerate((branch.z_source, z)):
        alone = sd.unet(latent, t, context[row : row + 1], taps=taps).taps
        for tap in taps:
            torch.testing.assert_close(found[tap][row : row + 1], alone[tap], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        folder.features_at(branch, z, taps)["block15"], found["block15"][1:], rtol=1e-4, atol=1e-4
    )

    figures = dict(folder.features(sd, branch, z))
    names = ["block08", "block11", "block14", "block16", "block15"]
    heads = [(f"{name}, {what}", name in taps) for name in names for what in ("source", "edit")]
    assert [
        (caption.rpartition("×")[0].rpartition(",")[0], "the drag reads" in caption) for caption in figures
    ] == heads
    source, target = found["block15"].chunk(2)
    colours = drawn.principal_components(source)
    for caption, one in (("block15, source", source), ("block15, edit", target)):
        picture = figures[f"{caption}, 9×8, which the drag reads"]
        assert picture.tobytes() == drawn.feature_picture(one, (256, 228), colours).tobytes()


def test_frames_are_under_the_edits_prompt_and_guidance(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    frames = looking.frames_of(sd, edited)
    assert [*frames] == [1, 2] and frames[1].size == (72, 64) and frames[1].tobytes() != frames[2].tobytes()
    shown = folder.frames(sd, edited)
    assert [caption for caption, _ in shown] == ["after 1 update", "after 2 updates"]
    assert [picture.tobytes() for _, picture in shown] == [folder.small(one).tobytes() for one in frames.values()]

    trace = edited.result.trace
    guided = replace(trace, target_prompt="a cat", config=replace(CONFIG, guidance=3.0))
    other = replace(edited, result=edited.result._replace(trace=guided))
    uncond, context = sd.embed(["", "a cat"]).chunk(2)
    of_cat = Guided(sd.unet, context, uncond, 3.0)
    expected = looking.frames(sd, of_cat, [*edited.latents.values()], edited.source.schedule, K)
    assert [one.tobytes() for one in looking.frames_of(sd, other).values()] == [one.tobytes() for one in expected]


def test_the_maps_of_tracking_are_of_what_was_looked_for(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    branch, z = folder.at_the_drag(sd, edited)
    figures = folder.tracked(branch, z, edited)
    assert len(figures) == 3 and not folder.tracked(branch, z, replace(edited, latents={}))
    t, context, size, grid = branch.source.schedule.timesteps[K - 1], sd.embed(["a red <dot>"]), (32, 36), (36, 32)
    first, last = (
        sum(sd.unet(one, t, context, taps=("block14", "block15")).taps.values()) for one in (branch.z_target, z)
    )
    handles, _, asked = pictures.drags_to_grid(DRAGS, (72, 64), grid)
    found = pictures.to_grid(edited.result.trace.tracked, (72, 64), grid) + (handles - asked)
    best = tracking.track(last, tracking.sample_points(first, handles, size), found, LOOP.track_radius, size)
    for n, (caption, picture) in enumerate(figures):
        assert caption.startswith(f"handle {n + 1}: best {best.distance[n]:.3g}, second ")
        levels = np.asarray(picture).astype(int)
        marks = {INKS[0]: best.points[n], INKS[2]: pictures.to_grid([DRAGS[n][1]], (72, 64), grid)[0]}
        for ink, place in marks.items():
            x, y = pictures.from_grid(place[None], picture.size, grid)[0].tolist()
            rows, columns = np.nonzero((levels == ink).all(axis=2) & (np.mgrid[:228, :256].sum(axis=0) > 60))
            off = np.hypot(columns - x, rows - y)
            assert len(off) > 5 and off.min() > 2 and np.sort(off)[:5].max() < 9, (n, ink)


def test_the_maps_of_attention_are_of_the_handles_place(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    branch, z = folder.at_the_drag(sd, edited)
    branch = replace(branch, config=replace(CONFIG, control_blocks=(11, 14)))
    figures = folder.attention(branch, z, edited)
    where = ("without control, in the edit", "with control, in the source")
    captions = [f"{b}, from handle {n}, {what}" for n in (1, 2, 3) for b in ("block11", "block14") for what in where]
    assert [caption for caption, _ in figures] == captions
    t, pair, trace = branch.source.schedule.timesteps[K - 1], torch.cat([branch.z_source, z]), edited.result.trace
    guided, control = Guided(sd.unet, sd.embed(["a red <dot>"] * 2)), MutualSelfAttention((11, 14))
    at = pictures.to_grid([trace.tracked[1]], (72, 64), (36, 32))[0].tolist()
    maps = looking.attention_from(guided, pair, t, 14, at, control)
    grounds = (edited.result.image, maps.own), (edited.result.source, maps.controlled)
    x, y = pictures.from_grid(torch.tensor([at]), (256, 228), (36, 32))[0].tolist()
    for (_, picture), (ground, map_) in zip(figures[6:8], grounds, strict=True):
        plain = drawn.with_points(drawn.over_picture(folder.small(ground), map_), {"": [(x, y)]})
        apart = np.abs(np.asarray(picture).astype(int) - np.asarray(plain)).max(axis=2)
        assert (apart > 2).mean() < 0.002  # of rounding at a ring's rim

    middle = folder.attention(
        branch, z, replace(edited, result=edited.result._replace(trace=replace(trace, tracked=())))
    )
    maps = looking.attention_from(guided, pair, t, 11, (17.5, 15.5), control)
    plain = drawn.over_picture(folder.small(edited.result.image), maps.own)
    apart = np.abs(np.asarray(middle[0][1]).astype(int) - np.asarray(plain)).max(axis=2)
    assert len(middle) == 4 and (apart > 2).mean() < 0.02  # the ring alone


def test_only_control_that_the_edit_had_there_is_shown(sd: dragsa.StableDiffusion, edited: Edited) -> None:
    branch, z = folder.at_the_drag(sd, edited)
    own = replace(edited, result=edited.result._replace(trace=replace(edited.result.trace, control="mine")))
    uncontrolled: list[dict[str, Any]] = [{"control": "union"}, {"control_step": 3}, {"control_step": None}]
    for changes, told in (*((one, edited) for one in uncontrolled), ({}, own)):
        figures = folder.attention(replace(branch, config=replace(CONFIG, control_blocks=(14,), **changes)), z, told)
        assert [caption.partition(", ")[2] for caption, _ in figures] == [
            f"from handle {n}, without control, in the edit" for n in (1, 2, 3)
        ]


def test_the_curves_are_the_traces(edited: Edited) -> None:
    trace = edited.result.trace
    (loss, of_loss), (distance, of_distance) = folder.curves(edited)
    assert (loss, distance) == ("loss", "distance [px]")
    assert of_loss.tobytes() == drawn.curve_picture({"loss": trace.losses}, below="updates").tobytes()
    rows = {f"handle {n + 1}": [row[n] for row in trace.distances_px] for n in range(4)}
    assert of_distance.tobytes() == drawn.curve_picture(rows, below="updates").tobytes()
