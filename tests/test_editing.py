"""The whole edit on a tiny model: what it keeps, what it reports, what one inversion serves, what it refuses."""

import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, get_args

import golden_cases
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dragsa
from dragsa import checks, ddim, drag, editing
from dragsa.config import Control, DragConfig, EditConfig, LoRAConfig
from dragsa.editing import Source
from dragsa.hooks import MutualSelfAttention
from dragsa.methods import lora, prompt_to_prompt
from dragsa.model.unet import UNet
from dragsa.pictures import images, trace

# Each edit denoises its source anew: what is equal is then equal to the bit. (Recorded K/V: test_source_kv.py.)
CONFIG = EditConfig.paper(
    size=64, steps=6, drag_step=2, control_step=2, source_kv="none", drag=DragConfig(updates=2, lr=0.05)
)
DRAGS = [((20.0, 30.0), (50.0, 60.0))]


@pytest.fixture(scope="module")
def sd(tiny_folder):
    return dragsa.load(tiny_folder)


@pytest.fixture(scope="module")
def picture():
    noise = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return images.to_picture(noise).resize((70, 90), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def source(sd, picture):
    return dragsa.prepare(sd, picture, "a red disc", config=CONFIG)


def test_one_inversion_serves_many_edits_and_bytes_repeat(sd, picture, source):
    alone = dragsa.edit(sd, picture, DRAGS, prompt="a red disc", config=CONFIG)
    served = dragsa.edit(sd, source, DRAGS, config=CONFIG)
    again = dragsa.edit(sd, source, DRAGS, config=CONFIG)
    assert alone.image.tobytes() == served.image.tobytes() == again.image.tobytes()
    assert alone.image.size == picture.size and alone.source is picture
    assert "inversion" in alone.trace.seconds and "inversion" not in served.trace.seconds


def test_recorded_kv_change_no_more_than_the_rounding(sd, source):
    config = replace(CONFIG, source_kv="exact")
    fresh = dragsa.edit(sd, source, DRAGS, config=CONFIG)
    first, second, third = (dragsa.edit(sd, source, DRAGS, config=config) for _ in range(3))
    assert [made.trace.source_kv for made in (first, second, third)] == ["computed", "recorded", "recorded"]
    assert first.image.tobytes() == fresh.image.tobytes() and second.image.tobytes() == third.image.tobytes()
    off = np.abs(np.asarray(second.image).astype(int) - np.asarray(first.image))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # of another batch: seldom a value is one off


@contextmanager
def passes_of(unet):
    """Give a list that gets the latents and the attention hook of each pass of the network."""
    seen = []

    def note(_, given, options):
        if options.get("until") is None:  # a pass that ends early looks at features, and denoises nothing
            seen.append((given[0], options.get("attention")))

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def captured(monkeypatch):
    """Return a list that gets (source, target, latents) of every call of sample_controlled."""
    calls = []
    plain = ddim.sample_controlled

    def look(unet, z_source, z_target, *rest):
        zs = plain(unet, z_source, z_target, *rest)
        calls.append((z_source, z_target, zs))
        return zs

    monkeypatch.setattr(ddim, "sample_controlled", look)
    return calls


def test_a_drag_starts_at_the_trajectorys_own_latent(sd, source, monkeypatch):
    calls = captured(monkeypatch)
    idle = replace(CONFIG, drag=replace(CONFIG.drag, updates=0))
    result = dragsa.edit(sd, source, DRAGS, config=idle)
    ((z_source, z_target, zs),) = calls
    level = CONFIG.steps - CONFIG.drag_step
    assert torch.equal(z_source, source.latents[level]) and torch.equal(z_target, source.latents[level])
    assert len(zs) == level + 1 and torch.allclose(zs[-1, 0], zs[-1, 1], atol=1e-5)
    assert result.trace.stop == "budget" and result.trace.losses == ()


def test_a_drag_changes_the_picture_and_is_reported(sd, source):
    idle = dragsa.edit(sd, source, config=CONFIG)
    result = dragsa.edit(sd, source, DRAGS, config=CONFIG)
    made = result.trace
    assert result.image.tobytes() != idle.image.tobytes()
    assert len(made.losses) == len(made.handles) == 2 and made.stop == "budget"
    # The path begins at the handle as asked, and is told in the picture's own pixels.
    assert made.handles[0][0] == pytest.approx(DRAGS[0][0], abs=1e-4)
    assert made.picture_size == (70, 90) and made.working_size == source.working_size == (48, 64)
    assert made.grid_size == (24, 32)
    assert trace.to_json(made)["updates"][0]["loss"] == made.losses[0]


def test_sources_results_and_models_print_on_one_line(sd, source):
    size, at = source.picture.size, source.latents.shape
    cells = f"{at[-1]}×{at[-2]} cells"
    assert repr(source) == f"Source({size[0]}×{size[1]} px, inverted, {source.prompt!r}, z_0 … z_6 of {cells})"
    assert repr(sd) == f"StableDiffusion({sd.provenance}, float32, cpu)"
    result = dragsa.edit(sd, source, DRAGS, config=CONFIG)
    left = max(result.trace.distances_of(result.trace.tracked)[0])
    begins = f"EditResult({size[0]}×{size[1]} px, not reached (budget), 2 updates, {left:.1f} px left, "
    assert repr(result).startswith(begins) and repr(result).endswith(" s)")
    alone = dragsa.edit(sd, source, target_prompt="a star", config=CONFIG)
    assert repr(alone).startswith(f"EditResult({size[0]}×{size[1]} px, no drag, ")


def test_a_source_is_itself_alone(source):
    copy = replace(source)
    assert source in [copy, source] and source not in [copy] and len({source, copy}) == 2


def test_a_mask_too_thin_for_the_latent_is_told(sd, source):
    thin = Image.new("L", (70, 90))
    thin.paste(255, (5, 0, 7, 90))
    with pytest.warns(UserWarning, match="the mask's white is too thin for the latent's cells of 8 pixels"):
        editing.leave(sd, source, None, DRAGS, thin, CONFIG)


def test_the_prompt_acts_alone_and_before_the_drag(sd, source):
    changed = dragsa.edit(sd, source, target_prompt="a blue star", config=CONFIG)
    same = dragsa.edit(sd, source, target_prompt="a red disc", config=CONFIG)
    assert changed.trace.target_prompt == "a blue star" and same.trace.target_prompt is None
    assert changed.image.tobytes() != same.image.tobytes()
    # With no update, "prompt then drag" is the prompt alone: the way from z_T is the same in two stretches.
    idle = replace(CONFIG, drag=replace(CONFIG.drag, updates=0))
    both = dragsa.edit(sd, source, DRAGS, target_prompt="a blue star", config=idle)
    assert both.image.tobytes() == changed.image.tobytes()


def test_control_counts_from_the_first_step_of_the_whole_way(sd, source):
    """A is counted from z_T also in the stretch behind a drag: A = T acts nowhere, A one less acts once."""
    pictures = {}
    for step in (None, CONFIG.steps, CONFIG.steps - 1):
        config = replace(CONFIG, control_step=step)
        pictures[step] = dragsa.edit(sd, source, DRAGS, config=config, target_prompt="a blue star").image.tobytes()
    assert pictures[None] == pictures[CONFIG.steps] != pictures[CONFIG.steps - 1]


def test_generated_source_is_its_seeds_picture(sd):
    edits = [dragsa.edit(sd, None, DRAGS, prompt="a red disc", seed=seed, config=CONFIG) for seed in (1, 1, 2)]
    assert edits[0].image.tobytes() == edits[1].image.tobytes() != edits[2].image.tobytes()
    assert edits[0].source.tobytes() != edits[2].source.tobytes()
    assert edits[0].source.size == (64, 64) and edits[0].trace.generated
    wide = dragsa.prepare(sd, None, "a red disc", config=CONFIG, size=(72, 64))
    assert wide.picture.size == wide.working_size == (72, 64) and wide.latents.shape == (7, 1, 4, 8, 9)


def test_guidance_is_the_targets_alone_on_a_real_picture(sd, source, monkeypatch):
    calls = captured(monkeypatch)
    with passes_of(sd.unet) as passes:
        dragsa.edit(sd, source, target_prompt="a blue star", config=replace(CONFIG, guidance=3.0))
    assert [len(z) for z, _ in passes] == [4] * CONFIG.steps  # source and target, each without its prompt and with it
    monkeypatch.undo()
    ((z_source, z_target, zs),) = calls
    context, uncond = sd.embed(["a red disc", "a blue star"]), sd.embed([""])
    given = (sd.unet, z_source, z_target, context, source.schedule, CONFIG.steps)
    expected = ddim.sample_controlled(*given, guidance=(1.0, 3.0), uncond=uncond, control_step=CONFIG.control_step)
    assert torch.equal(zs, expected)


def test_blending_keeps_what_lies_outside_of_the_mask(sd, source, monkeypatch):
    mask = Image.new("L", (70, 90), 0)
    mask.paste(255, (0, 0, 35, 90))  # the left half: latent columns 0 to 2 of 6
    calls = captured(monkeypatch)
    dragsa.edit(sd, source, DRAGS, mask, config=replace(CONFIG, blend=True))
    dragsa.edit(sd, source, DRAGS, mask, config=CONFIG)
    (_, _, blended), (_, _, free) = calls
    assert torch.equal(blended[1:, 1, ..., 3:], blended[1:, 0, ..., 3:])
    assert not torch.equal(blended[1:, 1, ..., :3], blended[1:, 0, ..., :3])
    assert not torch.equal(free[1:, 1, ..., 3:], free[1:, 0, ..., 3:])


def test_a_soft_mask_means_the_same_with_any_number_of_steps(sd, picture):
    """A white of 90 % keeps nine tenths of the target over all steps together, and not of each."""
    shades = Image.new("L", (70, 90), 0)
    shades.paste(230, (0, 0, 35, 90))
    shades.paste(255, (0, 0, 12, 90))
    for steps in (4, CONFIG.steps):
        config = replace(CONFIG, blend=True, steps=steps, drag_step=1)
        branch = editing.leave(sd, dragsa.prepare(sd, picture, config=config), None, DRAGS, shades, config)
        assert branch.blend is not None and branch.mask is not None
        kept = branch.blend**branch.level  # of what each step keeps, all of them
        assert torch.allclose(kept, drag.to_latent_grid(branch.mask, branch.z_target), atol=1e-5)
        assert kept[0, 0] == 1 and kept[0, -1] == 0 and kept[0, 2] == pytest.approx(230 / 255, abs=1e-3)


def test_an_observer_stops_the_drag_and_the_picture_is_finished(sd, source):
    events: list[object] = []

    def stop(event: object) -> str:
        events.append(event)
        return "stop"

    result = dragsa.edit(sd, source, DRAGS, config=CONFIG, observe=stop)
    updates = [event for event in events if isinstance(event, trace.DragProgress)]
    assert len(updates) == 1 == len(result.trace.losses) and result.trace.stop == "stopped"
    assert updates[0].latent is not None and updates[0].latent.shape == source.latents[0].shape
    assert result.image.size == source.picture.size


def test_a_source_can_be_prepared_for_blending(sd, picture, source):
    prepared = dragsa.prepare(sd, picture, "a red disc", config=replace(CONFIG, blend=True))
    assert torch.equal(prepared.latents, source.latents)


def test_a_picture_comes_as_a_viewer_shows_it(sd, picture, source, tmp_path):
    """From a file, an array or a picture to be turned: the same edit, at points of the upright picture."""
    expected = dragsa.edit(sd, source, DRAGS, config=CONFIG).image
    picture.save(tmp_path / "a.png")
    lying = picture.rotate(90, expand=True)
    lying.getexif()[0x0112] = 6  # to be turned by a quarter clockwise
    mask = Image.new("L", picture.size, 255)
    turned_mask = mask.rotate(90, expand=True)
    turned_mask.getexif()[0x0112] = 6
    for given in (str(tmp_path / "a.png"), np.asarray(picture), lying):
        prepared = dragsa.prepare(sd, given, "a red disc", config=CONFIG)
        assert torch.equal(prepared.latents, source.latents) and prepared.picture.size == (70, 90)
    made = dragsa.edit(sd, lying, DRAGS, prompt="a red disc", config=CONFIG)
    assert made.image.tobytes() == expected.tobytes() and made.image.size == (70, 90)
    masked = [dragsa.edit(sd, lying, DRAGS, m, "a red disc", config=CONFIG).image for m in (mask, turned_mask)]
    assert masked[0].tobytes() == masked[1].tobytes()


@pytest.mark.parametrize(
    ("mode", "size", "target", "says"),
    [
        ("RGBA", (70, 90), None, "transparency is laid on white"),
        ("L", (70, 90), "a Yellow disc", "the picture is grey, and so will be the result, not red, yellow"),
        ("RGB", (200, 128), None, "200×128 pixels is edited at 64×40, and what changes comes back blurred"),
    ],
)
def test_what_a_picture_loses_is_told(picture, mode, size, target, says):
    given = picture.resize(size).convert(mode)
    if mode == "RGBA":
        given.putalpha(128)
    with pytest.warns(UserWarning) as told:
        checks.request(CONFIG, given, [((20, 20), (30, 30))], None, ("a red disc", ""), target)
    assert len(told) == 1 and says in str(told[0].message)


def test_what_loses_nothing_is_silent(picture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.request(CONFIG, picture.convert("RGBA"), DRAGS, None, ("a red disc", ""), "a yellow disc")
        checks.request(CONFIG, picture.convert("L"), DRAGS, None, ("a disc", ""), "a ring")


def test_a_black_mask_is_refused(sd, source):
    with pytest.raises(ValueError, match="all black"):
        dragsa.edit(sd, source, DRAGS, Image.new("L", (70, 90), 0), config=CONFIG)


def test_outside_of_the_mask_the_pictures_own_pixels_come_back(sd, picture, source):
    mask = Image.new("L", (70, 90))
    mask.paste(255, (10, 20, 60, 80))
    pasted, free = (dragsa.edit(sd, source, DRAGS, mask, config=replace(CONFIG, paste=on)) for on in (True, False))
    given, made, other = (np.asarray(one) for one in (picture, pasted.image, free.image))
    outside = np.asarray(mask) == 0
    assert (made[outside] == given[outside]).all() and (other[outside] != given[outside]).any()
    assert (made[30:70, 20:50] == other[30:70, 20:50]).all()
    assert pasted.trace.config.paste and pasted.trace.losses == free.trace.losses


def test_a_part_of_a_large_picture_is_edited_by_itself(sd, picture):
    """The part cut out by hand gives the same pixels; round it the picture is as given."""
    large = picture.resize((280, 360), Image.Resampling.BICUBIC)
    mask = Image.new("L", large.size)
    mask.paste(255, (110, 150, 150, 190))
    drags, part = [((120.0, 160.0), (140.0, 180.0))], (90, 130, 170, 210)
    made = dragsa.edit(sd, large, drags, mask, config=replace(CONFIG, crop="auto"))
    own = [((30.0, 30.0), (50.0, 50.0))]
    alone = dragsa.edit(sd, large.crop(part), own, mask.crop(part), config=CONFIG)
    expected = large.copy()
    expected.paste(alone.image, part)
    assert made.image.tobytes() == expected.tobytes() and made.source.size == large.size
    assert made.trace.part == part and made.trace.picture_size == large.size and made.trace.drags == tuple(drags)
    assert made.trace.working_size == alone.trace.working_size == (64, 64)
    assert made.trace.distances == alone.trace.distances
    assert np.allclose(np.array(made.trace.handles) - (90, 130), alone.trace.handles)
    assert trace.to_json(made.trace)["part"] == list(part)


def test_a_part_is_of_pictures_alone(sd, source):
    with pytest.raises(ValueError, match="give the picture, not its source"):
        dragsa.edit(sd, source, DRAGS, config=replace(CONFIG, crop="auto"))
    whole = dragsa.edit(sd, source.picture, config=replace(CONFIG, crop="auto"))
    assert whole.trace.part is None and whole.trace.config.crop == "none"


def test_fixed_point_inversion_reports_its_residual(sd, picture):
    result = dragsa.edit(sd, picture, config=replace(CONFIG, fixed_point=2))
    assert result.trace.inversion_residual is not None and result.trace.inversion_residual > 0


def test_observer_sees_every_stage_to_its_end(sd, picture):
    events: list[object] = []
    dragsa.edit(sd, picture, DRAGS, prompt="a red disc", config=CONFIG, observe=events.append)
    stages = [event for event in events if isinstance(event, trace.StageProgress)]
    assert [e.stage for e in stages if e.done == 0] == ["encode", "inversion", "drag", "denoising", "decode"]
    assert [e.done for e in stages if e.stage == "inversion"] == [0, 1, 2, 3, 4, 5, 6, 6]
    drags = [event for event in events if isinstance(event, trace.DragProgress)]
    assert [e.update for e in drags] == [1, 2] and drags[0].total == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_mode_comes_back_in_its_own_size(sd, picture, mode):
    result = dragsa.edit(sd, picture.convert(mode), config=replace(CONFIG, steps=2, drag_step=0))
    assert result.image.size == (70, 90)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"drags": [((70.0, 3.0), (5.0, 5.0))]}, r"point 70,3 lies outside of the picture \(70×90 pixels\)"),
        ({"drags": [(1.0, 2.0)]}, "a drag is"),
        (
            {"drags": DRAGS, "config": replace(CONFIG, drag_step=6)},
            "drag step S must be a whole number from 0 to T - 1 = 5, came 6",
        ),
        ({"config": replace(CONFIG, control_step=-1)}, "control_step must be a whole number from 0, came -1"),
        ({"config": replace(CONFIG, control_blocks=(11, 17))}, "no transformer block 17"),
        ({"config": replace(CONFIG, blend=True)}, "there is no mask"),
        ({"config": replace(CONFIG, steps=8)}, "prepared with steps 6, and the edit has 8"),
        ({"config": replace(CONFIG, fixed_point=1)}, "prepared with fixed_point 0"),
        ({"config": replace(CONFIG, size=72)}, r"prepared with working size \(48, 64\)"),
        ({"prompt": "a blue star"}, "prepared with the prompt 'a red disc'"),
        ({"config": replace(CONFIG, drag_step=1.5)}, "drag_step must be a whole number from 0, came 1.5"),  # type: ignore[arg-type]
        ({"config": replace(CONFIG, control="other")}, "control must be one of mutual, union, masked, came 'other'"),  # type: ignore[arg-type]
        ({"config": replace(CONFIG, control="masked")}, "masked control tells the object by words"),
        (
            {"config": replace(CONFIG, control="masked", object_words=("red",)), "target_prompt": "a blue star"},
            "the prompt 'a blue star' has none of the object's words red",
        ),
        (
            {"drags": [((1, 2), (3,))]},
            r"a drag is .*, handle and target, came \(\(1, 2\), \(3,\)\)",
        ),
        ({"config": replace(CONFIG, mask_blocks=(0,))}, "no transformer block 0"),
        ({"config": replace(CONFIG, mask_threshold=1.5)}, "mask_threshold must be a number from 0 to 1, came 1.5"),
        ({"config": replace(CONFIG, lora_steps=2)}, "prepared with lora_steps 0, and the edit has 2"),
        ({"config": replace(CONFIG, guidance=float("nan"))}, "guidance must be a number from 0, came nan"),
        ({"config": replace(CONFIG, drag=DragConfig(tap="nope"))}, "'nope'"),
        ({"drags": DRAGS, "mask": Image.new("L", (64, 64), 255)}, "64×64 pixels; it must be the picture's 70×90"),
    ],
)
def test_refusals(sd, source, arguments, says):
    with pytest.raises(ValueError, match=says):
        dragsa.edit(sd, source, **{"config": CONFIG, **arguments})


def test_arguments_are_checked_before_the_inversion(sd, picture, monkeypatch):
    monkeypatch.setattr(ddim, "invert", lambda *_, **__: pytest.fail("the picture was inverted first"))
    with pytest.raises(ValueError, match="lies outside of the picture"):
        dragsa.edit(sd, picture, [((70.0, 3.0), (5.0, 5.0))], config=CONFIG)
    with pytest.raises(ValueError, match="it must be the picture's"):
        dragsa.edit(sd, picture, DRAGS, Image.new("L", (64, 64)), config=CONFIG)
    masked = replace(CONFIG, control="masked", object_words=("disc",))
    with pytest.raises(ValueError, match="tokens"):
        dragsa.edit(sd, picture, DRAGS, prompt="a disc " * 60, config=masked)
    with pytest.raises(ValueError, match="not text in UTF-8"):
        dragsa.prepare(sd, picture, "\ud800", config=CONFIG)


def test_drags_may_be_an_array(sd, source):
    array_of_drags: Any = np.array(DRAGS)
    listed, array = (dragsa.edit(sd, source, drags, config=CONFIG) for drags in (DRAGS, array_of_drags))
    assert listed.image.tobytes() == array.image.tobytes()
    json.dumps(trace.to_json(array.trace))


def test_generated_size_must_fit(sd):
    with pytest.raises(ValueError, match="multiples of 8 from 64, came 70×64"):
        editing.prepare(sd, None, config=CONFIG, size=(70, 64))


# --- rivals, as settings of the same edit -----------------------------------------------------------------------------


def test_other_controls_are_their_hooks(sd, source):
    """The hook of every step, from A on alone, and what they make of one drag: three results."""
    words: dict[str, Any] = {"object_words": ("disc", "star"), "mask_blocks": (5, 6), "mask_threshold": 0.4}
    made = {}
    for control in get_args(Control):
        config = replace(CONFIG, control_step=4, control=control, **words, source_kv="exact")
        with passes_of(sd.unet) as passes:
            made[control] = dragsa.edit(sd, source, DRAGS, target_prompt="a blue star", config=config)
        seen = [attention for z, attention in passes if len(z) > 1]  # of source and target, not the drag's
        assert [hook is not None for hook in seen] == [False] * 4 + [True] * 2
        assert made[control].trace.source_kv == "computed"
        if control == "masked":
            assert seen[-1].rows == ("source", "target")
            masked = seen[-1].hook
            assert (masked.mask_blocks, masked.blocks, masked.threshold) == ((5, 6), CONFIG.control_blocks, 0.4)
            assert masked.source_tokens == prompt_to_prompt.tokens_of(sd.text, "a red disc", "disc")
            assert masked.target_tokens == prompt_to_prompt.tokens_of(sd.text, "a blue star", "star")
            assert len(masked.maps) == 2
            assert seen[-2].hook.maps is not masked.maps  # each step looks anew
    assert len({result.image.tobytes() for result in made.values()}) == 3
    # The K/V that the plain form left are not the other forms' to replay.
    again = dragsa.edit(sd, source, DRAGS, target_prompt="a blue star", config=replace(config, control="union"))
    assert again.trace.source_kv == "computed" and again.image.tobytes() == made["union"].image.tobytes()


def test_a_lora_is_trained_once_and_everything_runs_under_it(sd, picture, monkeypatch):
    before = {name: x.clone() for name, x in sd.unet.state_dict().items()}
    used, dragged_under = [], []
    guided, drag_latent = ddim.Guided.__call__, drag.drag_latent

    def noting_guided(self, *rest, **more):
        used.append(self.unet)
        return guided(self, *rest, **more)

    def noting_drag(unet, *rest, **more):
        dragged_under.append(unet)
        return drag_latent(unet, *rest, **more)

    monkeypatch.setattr(ddim.Guided, "__call__", noting_guided)
    config = replace(CONFIG, lora_steps=3)
    events: list[object] = []
    source = dragsa.prepare(sd, picture, "a red disc", 7, config, observe=events.append)
    z_0, context = source.latents[0], sd.embed(["a red disc"])
    trained = lora.adapt(sd.unet, z_0, context, LoRAConfig(steps=3), seed=7)
    assert source.adapted is not None
    assert torch.equal(source.adapted.losses, trained.losses)
    assert all(torch.equal(up, trained.lora.up[name]) for name, up in source.adapted.lora.up.items())
    stages = [event for event in events if isinstance(event, trace.StageProgress) and event.stage == "lora"]
    assert [event.done for event in stages] == [0, 1, 2, 3, 3] and source.seconds["lora"] > 0

    monkeypatch.setattr(drag, "drag_latent", noting_drag)
    results = [dragsa.edit(sd, source, DRAGS, config=config) for _ in range(2)]
    assert {id(unet) for unet in used + dragged_under} == {id(source.adapted.unet)} and len(dragged_under) == 2
    assert results[0].image.tobytes() == results[1].image.tobytes()
    told = trace.to_json(results[0].trace)["lora"]
    assert told == {"steps": 3, "learning_rate": 5e-4, "batch": 4, "rank": 16, "weight_decay": 1e-2} | {
        "losses": trained.losses.tolist()
    }
    with pytest.raises(ValueError, match="prepared with lora_steps 3, and the edit has 0"):
        dragsa.edit(sd, source, DRAGS, config=CONFIG)

    # And it leaves no trace: the model is what it was, and an edit without it says nothing of it.
    assert all(torch.equal(x, before[name]) for name, x in sd.unet.state_dict().items())
    used.clear()
    without = dragsa.edit(sd, picture, DRAGS, prompt="a red disc", config=CONFIG)
    assert {id(unet) for unet in used} == {id(sd.unet)} and trace.to_json(without.trace)["lora"] is None
    assert without.image.tobytes() != results[0].image.tobytes()


def test_later_edits_under_a_lora_take_up_its_own_kv(sd, picture):
    config = replace(CONFIG, lora_steps=2, source_kv="exact")
    source = dragsa.prepare(sd, picture, "a red disc", config=config)
    first, second = (dragsa.edit(sd, source, DRAGS, config=config) for _ in range(2))
    assert [made.trace.source_kv for made in (first, second)] == ["computed", "recorded"]
    assert np.abs(np.asarray(second.image).astype(int) - np.asarray(first.image)).max() <= 1


def test_no_lora_of_a_picture_that_is_yet_to_be_drawn(sd, monkeypatch):
    monkeypatch.setattr(ddim, "sample", lambda *_, **__: pytest.fail("the picture was generated first"))
    with pytest.raises(ValueError, match="a LoRA is trained on a picture that is there"):
        dragsa.edit(sd, None, DRAGS, prompt="a red disc", config=replace(CONFIG, lora_steps=2))
    with pytest.raises(ValueError, match=r"lora_steps must be a whole number from 0, came 1\.5"):
        dragsa.edit(sd, None, DRAGS, prompt="a red disc", config=replace(CONFIG, lora_steps=1.5))  # type: ignore[arg-type]


class GoldenModel(NamedTuple):
    """The stored cases' network as `edit` asks for a model; the text is one of theirs, whatever the prompt."""

    unet: UNet
    context: Tensor
    device: torch.device = torch.device("cpu")
    text: None = None
    provenance: str = "recipe"

    def embed(self, prompts):
        return self.context.expand(len(prompts), -1, -1)

    def decode(self, z):
        return torch.zeros(1, 3, 8 * z.shape[2], 8 * z.shape[3])


def test_the_dragdiffusion_presets_edit_is_its_programs(monkeypatch):
    """The drag that an edit makes by the preset's numbers is the stored one of DragDiffusion's program."""
    case = golden_cases.case("drag_one")
    settings, (h, w) = case.settings, case.latent_hw
    config = EditConfig.dragdiffusion(size=128)
    config = replace(config, drag=replace(config.drag, updates=settings["iters"], lr=settings["lr"]))
    schedule, level = ddim.Schedule(50, config.variant), 50 - config.drag_step
    assert schedule.timesteps[level - 1] == settings["timestep"]
    latents = torch.zeros(51, 1, 4, h, w)
    latents[level] = case.input("z", 1, 4, h, w)
    size, grid = (8 * w, 8 * h), (4 * w, 4 * h)
    source = Source(Image.new("RGB", size), latents, "", 42, schedule, 1.0, False)
    top, bottom, left, right = (2 * edge for edge in settings["mask_box_y0y1x0x1"])
    mask = Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    ends = [images.from_grid(case.points(name), size, grid).tolist() for name in ("handles", "targets")]
    drags = [(tuple(handle), tuple(target)) for handle, target in zip(*ends, strict=True)]
    calls = []

    def look(unet, z_source, z_target, *rest):
        calls.append((z_target, *rest))
        return torch.stack([z_source, z_target], dim=1)

    monkeypatch.setattr(ddim, "sample_controlled", look)
    model: Any = GoldenModel(golden_cases.golden_unet(), case.input("text", 1, 77, golden_cases.CONTEXT_DIM))
    every_changes: list[dict[str, Any]] = [{}, {"control_step": None}]
    for changes in every_changes:
        calls.clear()
        made = dragsa.edit(model, source, drags, mask, config=replace(config, **changes, source_kv="none")).trace
        assert made.losses == pytest.approx(case.outputs["loss"].tolist(), rel=1e-4)
        tracked = images.to_grid(torch.tensor(made.handles[1:]).reshape(-1, 2), size, grid)
        assert torch.allclose(tracked.flip(1), case.outputs["track"].flatten(0, 1), atol=1e-3)
        ((z_target, _, _, start, stop, guidance, *_, hook_at),) = calls
        assert torch.allclose(z_target, case.outputs["z_out"], atol=1e-4 * case.outputs["z_out"].abs().max().item())
        plain_control = golden_cases.case("control_plain").settings
        assert (start, stop, guidance) == (35, 0, (1.0, plain_control["guidance_scale"]))
        assert plain_control["start_step"] == 0
        control = MutualSelfAttention(tuple(range(plain_control["start_layer"] + 1, 17)))
        assert [hook_at(step) for step in range(35)] == [None if changes else control] * 35


def test_the_masactrl_presets_control_is_the_stored_runs():
    stored, config = golden_cases.case("control_cfg").settings, EditConfig.masactrl()
    assert config.control_step == stored["start_step"] and config.guidance == stored["guidance_scale"]
    assert config.control_blocks == tuple(range(stored["start_layer"] + 1, 17))
    assert config.variant == "masactrl" and config.control == "mutual" and config.lora_steps == 0


def test_guidance_leads_away_from_the_negative_prompt(sd):
    """Of a generated picture the source's passes, too; `dragsa.sample` with that prompt as `uncond` is the same."""
    config = replace(CONFIG, guidance=3.0)
    plain, away = (dragsa.prepare(sd, None, "a red disc", config=config, negative_prompt=no) for no in ("", "a cat"))
    assert not torch.equal(plain.latents, away.latents) and away.negative_prompt == "a cat"
    z, context, uncond = away.latents[-1], sd.embed(["a red disc"]), sd.embed(["a cat"])
    expected = dragsa.sample(sd.unet, z, context, away.schedule, guidance=3.0, uncond=uncond)
    torch.testing.assert_close(away.latents[0], expected[-1], rtol=0, atol=1e-4)

    edited = dragsa.edit(sd, away, target_prompt="a dot", config=config)
    alone = dragsa.edit(sd, None, prompt="a red disc", target_prompt="a dot", config=config, negative_prompt="a cat")
    other = dragsa.edit(sd, plain, target_prompt="a dot", config=config)
    assert edited.image.tobytes() == alone.image.tobytes() != other.image.tobytes()
    assert edited.trace.negative_prompt == "a cat" and other.trace.negative_prompt == ""
    with pytest.raises(ValueError, match="prepared with the negative prompt 'a cat'; prepare one for 'a dog'"):
        dragsa.edit(sd, away, target_prompt="a dot", config=config, negative_prompt="a dog")


def test_guidance_in_the_drag_is_of_the_negative_prompt_and_the_targets(sd, picture) -> None:
    asked: list[Tensor] = []

    def supervise(run, task, first_pass=None, lap=drag.no_lap):
        asked.append(task.context)
        return drag.motion_supervision(run, task, first_pass, lap)

    told: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "a dog", "supervision": supervise}
    for scale, prompts in ((1.0, ["a cat"]), (3.0, ["a dog", "a cat"])):
        config = replace(CONFIG, drag=replace(CONFIG.drag, updates=1, drag_guidance=scale))
        dragsa.edit(sd, picture, DRAGS, config=config, **told)
        torch.testing.assert_close(asked.pop(), sd.embed(prompts))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"control": 1.5}, "control must be a function, came 1.5"),
        ({"supervision": "mean"}, "supervision must be a function, came 'mean'"),
        ({"drags": 3}, "drags are .* in a list, came 3"),
        ({"drags": None}, "in a list, came None"),
        ({"prompt": None}, "prompt and negative prompt are texts, came None"),
        ({"control": lambda site, q, k, v, attend: q}, r"control is a function of the step .*, came a hook"),
        ({"control": lambda step: lambda site, q, k, v: q}, r"hook is a function of \(site, q, k, v, attend\), came"),
        ({"control": lambda step: lambda *_: None}, r"self-attention: the hook must return \(.*\), came None"),
        ({"supervision": lambda run, task: task}, r"supervision is a function of \(run, task, first_pass, lap\), came"),
        ({"supervision": lambda *_: torch.ones(())}, "supervision must return a drag.Supervision, came Tensor"),
        (
            {"supervision": lambda *given: drag.motion_supervision(*given)._replace(loss=torch.ones(()))},
            "supervision: the loss must be a scalar that depends on task.latent",
        ),
    ],
)
def test_arguments_of_another_kind_are_named(tiny_folder, given, said) -> None:
    sd, picture = dragsa.load(tiny_folder), Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match=said):
        dragsa.edit(sd, picture, **{"drags": [((20, 20), (30, 30))], "config": CONFIG, **given})


def test_what_has_no_signature_is_taken_as_a_function() -> None:
    checks.functions(control=partial(lambda hook, step: hook, None), attention=torch.nn.Identity(), observe=print)
    checks.functions(optimizer=max, supervision=lambda *_: None)


def test_what_asks_for_nothing_is_told(picture) -> None:
    for drags, more, said in (
        ((), (None,), ["no drags and no other prompt: the result is the picture's reconstruction"]),
        ((), ("a blue disc",), []),
        ((), (None, lambda step: None), []),
        ((*DRAGS, ((42, 60), (42, 60))), (None,), [f"handle {len(DRAGS) + 1} and its target are the same"]),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            checks.request(CONFIG, picture, drags, None, ("a red disc", ""), *more)
        assert [str(one.message) for one in told] == said
