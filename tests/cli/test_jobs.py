import json
from pathlib import Path

import pytest
from command_line import QUICK, options, refused, run

from dragsa import cli, editing


def test_same_seed_same_bytes_and_options_are_a_job(picture: Path) -> None:
    drag = ("--drag", "24,28:40,28", "--control-step", "never", "--control-blocks", "11,12", "--no-blend", "--quiet")
    assert run("edit", picture, *QUICK, *drag, "--out", "a.png", "--json", "a.json") == 0
    assert run("edit", picture, *QUICK, *drag, "--out", "b.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()

    before = Path("a.png").read_bytes()
    report = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert report["config"]["control_step"] is None
    Path("again.json").write_text(json.dumps(report["options"]))
    assert run("edit", "--job", "again.json", "--out", "c.png", "--json", "c.json") == 0
    assert Path("c.png").read_bytes() == before
    assert json.loads(Path("c.json").read_text(encoding="utf-8"))["config"] == report["config"]


def test_jobs_share_the_model_and_the_source(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("jobs")
    folder.mkdir()
    common = {"image": "../picture.png", "steps": 4, "drag_step": 1, "updates": 1, "control-step": None, "seed": 7}
    jobs = [
        {**common, "drag": [[[24, 28], [40, 28]]], "out": "a.png"},
        {**common, "drag": ["24,28:24,40", [[20, 22], [20, 34]]], "out": "b.png", "json": "b.json"},
        {**common, "target_prompt": "a cat", "prompt": "a dot", "out": "c.png", "json": "c.json"},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    assert run("edit", "--job", "jobs/jobs.json", "--lr", "0.5") == 0
    assert {path.name for path in folder.iterdir()} == {"jobs.json", "a.png", "b.png", "b.json", "c.png", "c.json"}
    second, third = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in "bc")
    assert second["source_reused"] and second["seconds"]["loading"] == 0 and "inversion" not in second["seconds"]
    assert second["config"]["drag"]["lr"] == 0.5 and len(second["drags"]) == 2
    assert not third["source_reused"] and third["seconds"]["inversion"] > 0  # another prompt
    assert third["stop"] is None

    # The source that was kept gives what a source of its own gives.
    alone = ("--drag", "24,28:24,40", "--drag", "20,22:20,34", "--lr", "0.5", "--out", "alone.png")
    assert run("edit", picture, *QUICK, "--updates", "1", "--control-step", "never", *alone) == 0
    assert Path("alone.png").read_bytes() == (folder / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("{", "not JSON"),
        ("3", "must hold a job"),
        ("[]", "must hold a job"),
        ({"speed": 3}, "job 1: unknown key 'speed'"),
        ({"job": "x"}, "unknown key 'job'"),
        ({"steps": "many"}, "--steps: must be a whole"),
        ({"steps": 2.5}, "--steps: must be a whole"),
        ({"steps": True}, "steps: must not be true or false"),
        ({"blend": "yes"}, "blend: must be true or false"),
        ({"variant": "odd"}, "job 1: argument --variant: invalid choice: 'odd' (choose from 'restored'"),
        ({"control_blocks": [11, 17]}, "--control-blocks: blocks are numbered 1 to 16"),
        ({"steps": [4]}, "job 1: steps: came [4], expected a text or a number"),
        ({"image": None}, "job 1: give either IMAGE or --from-noise"),
        ({"drag": [[1, 2, 3, 4]]}, "drag: must be [[X0, Y0], [X1, Y1]]"),
        ({"drag": [[[1, 2], [3, "x"]]]}, "--drag: must be X0,Y0:X1,Y1"),
        ({"prompt": ["a"]}, "prompt: came"),
        ({"image": "gone.png"}, "job 1: "),
        ([{}, {"drag": "1,2:99,4", "out": "p.png"}], "job 2: point 99,4"),
        ([{}, {}], "two outputs"),
    ],
)
def test_wrong_jobs_are_named(picture: Path, capsys: pytest.CaptureFixture[str], job: object, said: str) -> None:
    usual = {"image": "picture.png", "drag": "1,2:3,4", "out": "o.png"}
    if isinstance(job, dict):
        job = {**usual, **job}
    elif isinstance(job, list):
        job = [{**usual, **one} for one in job]
    Path("job.json").write_text(job if isinstance(job, str) else json.dumps(job))
    assert said in refused(capsys, "edit", "--job", "job.json")


def test_a_single_edit_keeps_nothing_of_its_source_and_a_list_does(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, edit = [], editing.edit

    def watched(sd: object, source: editing.Source, *arguments: object, **more: object) -> editing.EditResult:
        result = edit(sd, source, *arguments, **more)  # type: ignore[arg-type]
        kept.append(source.recorded.nbytes)
        return result

    monkeypatch.setattr(editing, "edit", watched)
    job = {"image": str(picture), "drag": "20,20:30,30", "updates": 1, "steps": 4, "drag_step": 1, "control_step": 0}
    jobs = [{**job, "out": f"{n}.png"} for n in range(3)]
    for count in (1, 2):
        (tmp_path / "jobs.json").write_text(json.dumps(jobs[:count] if count == 1 else jobs[1:]))
        assert run("edit", "--job", "jobs.json", "--quiet") == 0
    assert kept[0] == 0 and kept[1] > 0


def test_a_job_means_what_the_same_options_mean() -> None:
    job = {
        **{"image": "-p.png", "drag": [[[1, 2], [3, 4.5]], "5,6:7,8"], "mask": None, "out": "o.png", "prompt": "-a b"},
        **{"control-step": None, "stall": None, "seed": None, "control_blocks": [1, "3-5"], "mask_blocks": 6},
        **{"object_words": ["disc", "star"], "size": [72, 64], "blend": False, "force": True, "checkpoint": False},
    }
    Path("folder").mkdir()
    Path("folder/job.json").write_text(json.dumps(job))
    line = options(
        *("--drag", "1,2:3,4.5", "--drag", "5,6:7,8", "--out", "folder/o.png", "--prompt=-a b"),
        *("--control-step", "never", "--stall", "never", "--control-blocks", "1,3-5", "--mask-blocks", "6"),
        *("--object-words", "disc,star", "--size", "72x64", "--no-blend", "--force", "--", "folder/-p.png"),
    )
    assert cli.read_jobs(Path("folder/job.json")) == [line]
