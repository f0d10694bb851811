"""K/V recorded and taken up again: equal to the side-by-side pass, half its rows, and never another pass's."""

import contextlib
import copy
import gc
import os
import pickle
import tempfile
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

import dragsa
from dragsa import ddim, drag, files
from dragsa import source_kv as recording
from dragsa.config import DragConfig, EditConfig
from dragsa.ddim import Guided, KVByBlock
from dragsa.hooks import KV
from dragsa.pictures import images
from dragsa.source_kv import INVERSION, EarlierPass, Recording

CONFIG = EditConfig.paper(size=64, steps=4, drag_step=1, control_step=1, drag=DragConfig(updates=1, lr=0.05))
DRAGS = [((20.0, 30.0), (50.0, 60.0))]
OTHER = [((40.0, 20.0), (20.0, 50.0))]
BLUE = "a blue star"


# In float64, where equal means equal: a random network makes much of a last bit, and the drag's Adam more.


@pytest.fixture(scope="module")
def sd(tiny_folder):
    return dragsa.load(tiny_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def prepared(sd):
    noise = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = images.to_picture(noise).resize((70, 90), Image.Resampling.BICUBIC)
    source = dragsa.prepare(sd, picture, "a red disc", config=CONFIG)
    return replace(source, latents=source.latents.double())


def generate(sd, **changes):
    torch.set_default_dtype(torch.float64)  # of the seed's noise
    try:
        return dragsa.prepare(sd, None, "a red disc", config=replace(CONFIG, **changes))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def drawn(sd):
    """Generated with guidance: its source rows are guided, whatever the edit's are."""
    return generate(sd, guidance=2.0)


@pytest.fixture(scope="module")
def mask():
    mask = Image.new("L", (70, 90), 0)
    mask.paste(255, (0, 0, 45, 90))
    return mask


class Came(NamedTuple):
    z_0: Tensor
    source_kv: str | None  # the trace's word
    rows: int  # denoised by the UNet, the drag's not counted


@pytest.fixture
def run(sd, monkeypatch):
    decoded: list[Tensor] = []
    rows: list[int] = []
    drag_latent = drag.drag_latent

    def decode(self, z):
        decoded.append(z)
        return torch.zeros(1, 3, 8 * z.shape[2], 8 * z.shape[3])

    def uncounted(*arguments, **more):
        before = list(rows)
        result = drag_latent(*arguments, **more)
        rows[:] = before
        return result

    monkeypatch.setattr(type(sd), "decode", decode)
    monkeypatch.setattr(drag, "drag_latent", uncounted)

    def count(_, given, options):
        if options.get("until") is None:  # a pass that ends early looks at features, and denoises nothing
            rows.append(len(given[0]))

    counter = sd.unet.register_forward_pre_hook(count, with_kwargs=True)

    def run(source, drags=(), mask=None, target_prompt=None, **changes):
        rows.clear()
        made = dragsa.edit(sd, source, drags, mask, target_prompt=target_prompt, config=replace(CONFIG, **changes))
        return Came(decoded[-1], made.trace.source_kv, sum(rows))

    yield run
    counter.remove()


def close(came, expected):
    return torch.allclose(came, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def check(run, source, name, first, *arguments, **changes):
    """After an edit `first`, the edit of the arguments must be as it is without any recording, by the K/V named."""
    source = replace(source)
    run(source, *first[0], **first[1])
    came, expected = run(source, *arguments, **changes), run(source, *arguments, source_kv="none", **changes)
    assert expected.source_kv == "computed" and came.source_kv == name
    assert close(came.z_0, expected.z_0)
    assert came.rows == (expected.rows if name == "computed" else expected.rows // 2)


def edit_of(*arguments, **changes):
    return arguments, changes


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("recorded", edit_of(DRAGS), edit_of(OTHER)),
        ("recorded", edit_of((), None, BLUE), edit_of((), None, "a cat")),
        ("recorded", edit_of((), None, BLUE), edit_of(DRAGS, None, BLUE)),  # both leave the source at z_T
        ("recorded", edit_of(DRAGS, None, BLUE), edit_of((), None, BLUE)),
        ("recorded", edit_of(DRAGS, control_step=0), edit_of(OTHER, control_step=3)),
        ("recorded", edit_of(DRAGS), edit_of(OTHER, control_blocks=(12, 14))),
        ("recorded", edit_of(DRAGS, guidance=3.0), edit_of(OTHER, guidance=3.0)),
        ("recorded", edit_of((), None, BLUE, guidance=3.0), edit_of((), None, "a cat", guidance=2.0)),
        # What is not there is computed, beside the target and as ever.
        ("computed", edit_of((), None, BLUE), edit_of(DRAGS)),  # z_{T-S} of the inversion is not that of the sampling
        ("computed", edit_of(DRAGS), edit_of(DRAGS, drag_step=2)),
        ("computed", edit_of(DRAGS, control_step=3), edit_of(DRAGS)),
        ("computed", edit_of(DRAGS, control_blocks=(12, 14)), edit_of(OTHER)),
        ("computed", edit_of(DRAGS), edit_of(DRAGS, guidance=3.0)),
    ],
)
def test_equal_to_the_side_by_side_pass(run, prepared, name, first, then):
    check(run, prepared, name, first, *then[0], **then[1])


def test_blending_takes_the_recorded_latents(run, prepared, mask):
    check(run, prepared, "recorded", edit_of(DRAGS), OTHER, mask, blend=True)
    check(run, prepared, "recorded", edit_of(DRAGS, mask, guidance=3.0), OTHER, mask, blend=True, guidance=3.0)
    check(run, prepared, "recorded", edit_of((), None, BLUE), DRAGS, mask, BLUE, blend=True)


def test_what_guidance_recorded_serves_an_edit_without(run, prepared):
    """An edit without guidance takes only the conditional row of K/V that were recorded with it."""
    check(run, prepared, "recorded", edit_of(DRAGS, guidance=3.0), OTHER)


def test_a_generated_sources_latents_are_one_trajectory(run, drawn, mask):
    """Whatever level the edit leaves it at: it was made by sampling. Its guided rows cost an unguided edit nothing."""
    source = replace(drawn)
    run(source, DRAGS, guidance=2.0)
    for arguments in ((OTHER,), (DRAGS, None, BLUE)):
        came, expected = run(source, *arguments), run(source, *arguments, source_kv="none")
        assert came.source_kv == "recorded" and close(came.z_0, expected.z_0) and 4 * came.rows == expected.rows
    blended = {"blend": True, "drag_step": 2, "control_step": 2, "guidance": 2.0}
    check(run, drawn, "recorded", edit_of(DRAGS, guidance=2.0), OTHER, mask.resize((64, 64)), **blended)


def test_what_is_missing_is_added_and_serves_too(run, prepared):
    source = replace(prepared)
    edits = [
        edit_of(DRAGS),
        edit_of(DRAGS, control_blocks=(5, 12)),
        edit_of(DRAGS, guidance=3.0),
        edit_of((), None, BLUE),
    ]
    for arguments, changes in edits:
        assert run(source, *arguments, **changes).source_kv == "computed"
    for arguments, changes in edits:
        assert run(source, *arguments, **changes).source_kv == "recorded"


def test_an_edit_decides_once_which_pass_serves(run, prepared):
    """Its first half records enough for its second, yet the source is denoised in both: it is decided once."""
    source, changed = replace(prepared), {"target_prompt": BLUE, "drag_step": 2}
    # under which all of an edit's second half is that has control from its first step on
    assert run(source, DRAGS, control_step=2, **changed).source_kv == "computed"
    came = run(source, DRAGS, control_step=1, **changed)
    expected = run(replace(prepared), DRAGS, control_step=1, **changed)
    assert came.source_kv == "computed" and came.rows == expected.rows and close(came.z_0, expected.z_0)


def test_an_edit_of_a_picture_records_nothing_and_none_neither(sd, run, prepared, monkeypatch):
    source = replace(prepared)
    run(source, DRAGS, source_kv="none")
    assert source.recorded.nbytes == 0
    monkeypatch.setattr(Recording, "writer", lambda *_: pytest.fail("recorded for no one"))
    dragsa.edit(sd, prepared.picture, DRAGS, prompt="a red disc", config=CONFIG)


def test_without_control_the_source_is_not_asked_for(run, prepared):
    source = replace(prepared)
    came, beside = (run(source, DRAGS, control_step=None, source_kv=kv) for kv in ("exact", "none"))
    assert came.source_kv is None and close(came.z_0, beside.z_0) and 2 * came.rows == beside.rows


def test_another_network_and_other_weights_are_computed_anew(sd, run, prepared, tiny_folder):
    source = replace(prepared)
    run(source)
    weight = sd.unet.up_blocks[2].attentions[0].transformer_blocks[0].attn1.to_k.weight
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight.mul_(2)
        assert [run(source).source_kv for _ in range(2)] == ["computed", "recorded"]
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    run(source)
    assert dragsa.edit(dragsa.load(tiny_folder), source, config=CONFIG).trace.source_kv == "computed"


# --- the K/V of prepare's own passes -------------------------------------------------------------------------------


def test_inversions_kv_cost_no_pass(sd, run, prepared, mask):
    config, rows = replace(CONFIG, source_kv="inversion"), []

    def count(_, given, options):
        if options.get("until") is None:  # a pass that ends early looks at features, and denoises nothing
            rows.append(len(given[0]))

    counter = sd.unet.register_forward_pre_hook(count, with_kwargs=True)
    source = dragsa.prepare(sd, prepared.picture, "a red disc", config=config)
    counter.remove()
    assert rows == [1] * CONFIG.steps and torch.equal(source.latents.double(), prepared.latents)
    assert source.recorded.covers(INVERSION, (3, 2, 1), CONFIG.control_blocks, 1)
    assert not source.recorded.covers(INVERSION, (4,), (11,), 1)  # above the levels under control
    source = replace(source, latents=prepared.latents, begun=source.recorded)

    kept: dict[int, KVByBlock] = {}
    context = sd.embed(["a red disc"])
    ddim.invert(sd.unet, prepared.latents[0].float(), context, source.schedule, record=kept.__setitem__)
    guided, levels = Guided(sd.unet, sd.embed([BLUE])), ddim.levels_between(source.schedule, 4, 0)
    earlier = EarlierPass("inversion", kept.__getitem__, {})
    by_hand = recording.replayed(guided, source.latents[4], source.schedule, levels, earlier, CONFIG)[-1]
    came = run(source, (), None, BLUE, source_kv="inversion")
    assert came.source_kv == "inversion" and came.rows == 4 and close(came.z_0, by_hand)
    assert run(source, OTHER, mask, blend=True, source_kv="inversion").source_kv == "inversion"
    # No edit takes them that did not ask for them, nor one for which they do not suffice.
    check(run, source, "computed", edit_of((), None, BLUE), DRAGS)
    assert run(source, DRAGS, source_kv="inversion", guidance=3.0).source_kv == "computed"
    assert run(source, (), None, BLUE, source_kv="inversion", control_step=0).source_kv == "computed"
    assert (
        run(source, DRAGS, source_kv="inversion").source_kv == "recorded"
    )  # the exact ones first, once they are there


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_generations_own_kv_are_exact(sd, guidance):
    ours = {"guidance": guidance, "source_kv": "inversion"}
    source = generate(sd, **ours)
    made = dragsa.edit(sd, source, target_prompt=BLUE, config=replace(CONFIG, **ours))
    fresh = dragsa.edit(sd, source, target_prompt=BLUE, config=replace(CONFIG, guidance=guidance, source_kv="none"))
    assert made.trace.source_kv == "recorded" and made.image.tobytes() == fresh.image.tobytes()
    assert made.image.tobytes() != made.source.tobytes()


# --- where they are kept -------------------------------------------------------------------------------------------


def test_mapped_files_serve_as_memory_does_and_go(run, prepared):
    source, mapped = replace(prepared), replace(prepared)
    run(source, DRAGS)
    run(mapped, DRAGS, source_kv_memory=0)
    folder = mapped.recorded.folder
    assert len(list(folder.iterdir())) == 3 * 6  # levels 3 … 1, blocks 11 … 16
    assert mapped.recorded.nbytes == source.recorded.nbytes > 0
    assert mapped.recorded.nbytes_in_memory == 0 and source.recorded.folder is None
    by_memory, by_file = run(source, OTHER), run(mapped, OTHER)
    assert by_file.source_kv == "recorded" and torch.equal(by_memory.z_0, by_file.z_0)
    del mapped
    gc.collect()
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
def test_a_forked_process_leaves_its_parent_s_files_alone():
    """It holds nothing of its parent's, and has a folder of its own."""
    held, network, kv = Recording(), nn.Linear(1, 1), {11: pair()}
    held.of(network).writer(4, [1], limit=0)(1, kv)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            parents = held.folder
            held.of(network).writer(4, [1], limit=0)(1, kv)
            apart = held.folder != parents and held.covers(4, [1], [11], 1)
            held.clear()
            del held
            gc.collect()
            code = 0 if apart else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert held.covers(4, [1], [11], 1) and torch.equal(held.kv(4, [11], 1)[11].key, kv[11].key)


def test_a_store_sweeps_at_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{files.PREFIX}left"
    left.mkdir()
    files.sweep.cache_clear()
    Recording().of(nn.Linear(1, 1))
    assert not left.exists()


def test_files_that_are_gone_are_made_again(run, prepared):
    source = replace(prepared)
    run(source, source_kv_memory=0)
    next(source.recorded.folder.iterdir()).unlink()
    assert [run(source, source_kv_memory=0).source_kv for _ in range(2)] == ["computed", "recorded"]


def test_memory_is_filled_to_its_limit_first(run, prepared):
    source, whole = replace(prepared), replace(prepared)
    run(whole, DRAGS)
    limit = whole.recorded.nbytes // 2
    run(source, DRAGS, source_kv_memory=limit)
    assert 0.8 * limit < source.recorded.nbytes_in_memory <= limit
    assert torch.equal(run(source, OTHER).z_0, run(whole, OTHER).z_0)
    folder = source.recorded.folder
    source.recorded.clear()
    assert not folder.exists() and source.recorded.nbytes == 0
    assert run(source, DRAGS).source_kv == "computed"


def test_other_trajectories_make_room_over_the_limit(run, prepared):
    source = replace(prepared)
    run(source, DRAGS, source_kv_memory=0)
    run(source, DRAGS, source_kv_memory=0, drag_step=2, control_step=2)
    files = {path.name.split("-")[0] for path in source.recorded.folder.iterdir()}
    assert files == {"2"} and source.recorded.covers(2, (2, 1), range(11, 17), 1)
    assert run(source, DRAGS, source_kv_memory=0).source_kv == "computed"


def test_a_folder_of_ones_own_keeps_its_files(run, prepared, tmp_path):
    source = replace(prepared)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        source.recorded.keep_in(tmp_path / "taken")
    source.recorded.keep_in(tmp_path / "kv")
    run(source, DRAGS, source_kv_memory=0)
    with pytest.raises(ValueError, match="already have files"):
        source.recorded.keep_in(tmp_path / "elsewhere")
    assert run(source, OTHER).source_kv == "recorded"
    expected = source.recorded.kv(3, (14,), 2)[14]
    del source
    gc.collect()
    with safe_open(tmp_path / "kv/3-level2-block14.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("key"), expected.key)
        assert torch.equal(file.get_tensor("value"), expected.value)


def test_a_full_disk_costs_the_recording_and_not_the_edit(run, prepared, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(recording.files, "save_bytes", full)
    source = replace(prepared)
    with pytest.warns(UserWarning, match="could not be kept for later edits: no space left"):
        run(source, DRAGS, source_kv_memory=0)
    assert run(source, DRAGS).source_kv == "computed"


def pair(rows=1, value=0.0):
    return KV(torch.full((rows, 2, 4, 3), value), torch.full((rows, 2, 4, 3), value))


def test_what_a_recording_covers():
    held, network = Recording(), nn.Linear(1, 1)
    assert held.of(network) is held
    put = held.writer(4, range(3, 0, -1), limit=2**20)
    for level in (4, 3, 2):
        put(level, {11: pair(), 12: pair(rows=2)})
    assert held.covers(4, (3, 2), (11, 12), 1) and held.covers(4, (3, 2), (12,), 2) and held.covers(4, (), (1,), 2)
    assert not held.covers(4, (3, 2), (11, 12), 2) and not held.covers(4, (3,), (13,), 1)
    assert not held.covers(4, (4,), (11,), 1) and not held.covers(4, (1,), (11,), 1)
    assert not held.covers(5, (3,), (11,), 1) and not held.covers(INVERSION, (3,), (11,), 1)
    put(3, {11: pair(rows=2, value=1.0), 12: pair(value=1.0)})  # more rows replace fewer, and not the other way
    assert held.covers(4, (3,), (11, 12), 2)
    assert held.kv(4, (11,), 3)[11].key.all() and not held.kv(4, (12,), 3)[12].key.any()
    with pytest.raises(KeyError):
        held.kv(4, (13,), 3)
    assert held.of(network).nbytes > 0
    assert held.of(nn.Linear(1, 1)).nbytes == 0


def test_a_copy_is_empty(prepared, run):
    source = replace(prepared)
    run(source, DRAGS)
    assert replace(source).recorded.nbytes == 0
    for twin in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert twin.recorded.nbytes == 0 and torch.equal(twin.latents, source.latents)
    assert source.recorded.nbytes > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kv_keep_the_networks_type(dtype):
    held = Recording()
    put = held.writer(4, [1], limit=0)
    kv = KV(*(x.to(dtype) for x in pair(2, 0.3)))
    put(1, {11: kv})
    came = held.kv(4, (11,), 1)[11]
    assert came.key.dtype == dtype and torch.equal(came.key, kv.key) and torch.equal(came.value, kv.value)


def test_refusals(sd, prepared):
    for changes, says in (
        ({"source_kv": "guessed"}, "source_kv must be one of exact, inversion, none, came 'guessed'"),
        ({"source_kv_memory": -1}, "source_kv_memory must be a whole number from 0, came -1"),
    ):
        with pytest.raises(ValueError, match=says):
            dragsa.edit(sd, prepared, DRAGS, config=replace(CONFIG, **changes))
