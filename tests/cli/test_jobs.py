import json
import shutil
from pathlib import Path

import pytest
from command_line import QUICK, options, refused, run
from PIL import Image

from dragsa import cli, editing
from dragsa.cli import edit
from dragsa.config import DragConfig, EditConfig

OUT = ("--out", "o.png")


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


def test_a_source_is_shared_by_jobs_that_ask_for_the_same_of_it(picture: Path) -> None:
    """A job on the K/V of the inversion needs a source that has them, in its blocks and at its levels."""
    job = {"image": "picture.png", "drag": "24,28:40,28", "steps": 4, "drag_step": 1, "updates": 1, "control_step": 1}
    kept = {**job, "source_kv": "inversion"}
    jobs = [job, job, kept, {**kept, "drag": "20,22:20,34"}, {**kept, "control_step": 0}, {**kept, "seed": 1}]
    Path("jobs.json").write_text(
        json.dumps([{**one, "out": f"{n}.png", "json": f"{n}.json"} for n, one in enumerate(jobs)])
    )
    assert run("edit", "--job", "jobs.json", "--quiet") == 0
    told = [json.loads(Path(f"{n}.json").read_text(encoding="utf-8")) for n in range(len(jobs))]
    assert [one["source_reused"] for one in told] == [False, True, False, True, False, False]
    assert [one["source_kv"] for one in told] == ["computed", "recorded", *["inversion"] * 4]


def test_a_preset_over_a_report_is_refused(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = edit.every_option(options("--preset", "sd15", "--drag", "24,28:40,28", "--", str(picture)))
    told = {key: str(value) if isinstance(value, Path) else value for key, value in every.items() if key != "command"}
    report = {"command": "edit", "options": {key: value for key, value in told.items() if key != "version"}}
    Path("a.json").write_text(json.dumps([{"image": "picture.png", "drag": "1,2:3,4"}, report]))
    said = refused(capsys, "edit", "--job", "a.json", "--out", "o.png", "--preset", "paper")
    assert "a.json, job 2: --preset paper would change nothing: the job gives the numbers itself, as reports do" in said
    same = options("--job", "a.json", "--preset", "sd15")
    assert [job["preset"] for job in edit.jobs_of(same)] == ["sd15", "sd15"]
    Path("a.json").write_text(json.dumps({"image": "picture.png", "preset": "small", "lr": 0.5}))
    (job,) = edit.jobs_of(options("--job", "a.json", "--preset", "paper"))  # which gives one number of many
    assert cli.config_of(job) == EditConfig.paper(drag=DragConfig(lr=0.5))


COMMON = {
    "steps": 4,
    "drag_step": 1,
    "updates": 1,
    "lr": 0.02,
    "seed": 7,
    "control_step": None,
    "drag": [[24, 28], [40, 28]],
}


def write_jobs(*jobs: dict[str, object]) -> None:
    Path("jobs.json").write_text(json.dumps([{**COMMON, **job} for job in jobs]))


def test_a_job_may_take_what_an_earlier_one_makes(picture: Path) -> None:
    write_jobs({"image": "picture.png", "out": "a.png"}, {"image": "a.png", "out": "b.png"})
    assert run("edit", "--job", "jobs.json") == 0
    assert run("edit", "a.png", *QUICK, "--updates", "1", "--control-step", "never", "--drag", "24,28:40,28", *OUT) == 0
    assert Path("b.png").read_bytes() == Path("o.png").read_bytes()


def test_a_picture_that_is_edited_in_place_is_read_anew(picture: Path) -> None:
    write_jobs({"image": "picture.png", "out": "picture.png"}, {"image": "picture.png", "out": "b.png"})
    assert run("edit", "--job", "jobs.json", "--force") == 0
    assert run("edit", picture, *QUICK, "--updates", "1", "--control-step", "never", "--drag", "24,28:40,28", *OUT) == 0
    assert Path("b.png").read_bytes() == Path("o.png").read_bytes()


def test_a_failed_job_is_named_the_others_are_done_and_a_rerun_does_the_rest(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save("other.png")
    write_jobs(
        {"image": "other.png", "out": "a.png", "drag": [[1, 2], [5, 6]]},
        {"image": "a.png", "out": "b.png", "json": "b.json"},  # the drag lies outside of what the first job makes
        {"image": "picture.png", "out": "c.png"},
    )
    assert run("edit", "--job", "jobs.json") == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert second == "dragsa: error: jobs.json, job 2: point 24,28 lies outside of the picture (30×20 pixels)"
    assert first.startswith("dragsa: warning: 1/3 the drag did not") and third.startswith("dragsa: warning: 3/3 the")
    assert Path("a.png").exists() and not Path("b.png").exists() and Path("c.png").exists()

    times = {name: Path(name).stat().st_mtime_ns for name in ("a.png", "c.png")}
    assert "a.png: is there already" in refused(capsys, "edit", "--job", "jobs.json")
    jobs = json.loads(Path("jobs.json").read_text())
    Path("jobs.json").write_text(json.dumps([jobs[0], {**jobs[1], "drag": "1,2:5,6"}, jobs[2]]))
    assert run("edit", "--job", "jobs.json", "--skip-existing") == 0
    assert Path("b.png").exists() and Path("b.json").exists()
    assert times == {name: Path(name).stat().st_mtime_ns for name in times}
    Path("b.png").unlink()  # an output that is gone is made again, those that are there stay
    before = Path("b.json").read_bytes()
    assert run("edit", "--job", "jobs.json", "--skip-existing") == 0
    assert Path("b.png").exists() and Path("b.json").read_bytes() == before


def test_folders_are_outputs_that_a_rerun_makes(picture: Path) -> None:
    asked = {"image": "picture.png", "out": "a.png", "trace": "trace", "frames": "frames", "every": 1}
    write_jobs(asked)
    assert run("edit", "--job", "jobs.json") == 0
    written = {path: path.read_bytes() for path in (Path("a.png"), *Path("frames").iterdir(), *Path("trace").iterdir())}
    times = {path: path.stat().st_mtime_ns for path in written}
    for name in ("trace", "frames"):
        shutil.rmtree(name)
        assert run("edit", "--job", "jobs.json", "--skip-existing") == 0
        assert {path: path.read_bytes() for path in written} == written
    assert Path("a.png").stat().st_mtime_ns == times[Path("a.png")]
    times = {path: path.stat().st_mtime_ns for path in written}
    assert run("edit", "--job", "jobs.json", "--skip-existing") == 0
    assert {path: path.stat().st_mtime_ns for path in written} == times


def test_a_list_may_end_where_a_job_fails(picture: Path) -> None:
    Image.new("RGB", (30, 20)).save("other.png")
    write_jobs(
        {"image": "other.png", "out": "a.png", "drag": [[1, 2], [5, 6]]},
        {"image": "a.png", "out": "b.png"},
        {"image": "picture.png", "out": "c.png"},
    )
    assert run("edit", "--job", "jobs.json", "--no-keep-going") == 1
    assert Path("a.png").exists() and not Path("c.png").exists()


def test_a_report_is_a_job_that_makes_the_same_picture(
    picture: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drag = ("--drag", "24,28:40,28", "--control-blocks", "11,12", "--anchor", "0.2", "--preset", "paper")
    assert run("edit", picture, *QUICK, *drag, "--out", "a.png", "--json", "a.json") == 0
    report = json.loads(Path("a.json").read_text(encoding="utf-8"))
    options, names = report["options"], {"preset", "weights", "steps", "lam", "mask_blocks", "compile", "paste", "crop"}
    assert names <= set(options) and options["preset"] == "paper" and options["weights"] == str(tiny_folder)
    assert len(report["weights_sha256"]) == 3 and {len(digest) for digest in report["weights_sha256"].values()} == {64}
    monkeypatch.delenv("DRAGSA_WEIGHTS")
    assert run("edit", "--job", "a.json", "--out", "c.png", "--json", "c.json") == 0
    assert "other weights" not in capsys.readouterr().err and Path("c.png").read_bytes() == Path("a.png").read_bytes()
    again = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert again["config"] == report["config"]
    Path("a.json").write_text(json.dumps({**report, "weights_sha256": {"unet": "0"}}))
    assert run("edit", "--job", "a.json", "--out", "d.png", "--json", "d.json") == 0
    assert "holds other weights than those of the report" in capsys.readouterr().err
    Path("a.json").write_text(json.dumps({**report, "command": "generate"}))
    assert "a report of 'generate', not of an edit" in refused(capsys, "edit", "--job", "a.json", "--out", "e.png")


def test_a_report_does_not_hand_force_on(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--drag", "24,28:40,28", "--out", "a.png", "--source", "s.png", "--json", "a.json", "--force")
    assert run("edit", picture, *QUICK, *asked) == 0
    report = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert "force" not in report["options"]
    capsys.readouterr()
    for held in (report["options"], {**report["options"], "force": True}):  # as reports have had it, too
        Path("again.json").write_text(json.dumps({**report, "options": held}))
        said = refused(capsys, "edit", "--job", "again.json", "--out", "b.png", "--json", "b.json")
        assert "s.png: is there already" in said
    Path("again.json").write_text(json.dumps({**report["options"], "force": True}))  # a job of one's own
    assert cli.read_jobs(Path("again.json"))[0]["force"] is True


def test_a_list_of_two_points_is_one_drag_and_a_mark_at_the_beginning_is_none(picture: Path) -> None:
    job = {"image": "p.png", "drag": [[1, 2], [3, 4]], "out": "o.png"}
    Path("job.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(job).encode())
    assert cli.read_jobs(Path("job.json")) == [options("--drag", "1,2:3,4", "--out", "o.png", "--", "p.png")]
    Path("job.json").write_text(json.dumps({**job, "drag": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}))
    assert cli.read_jobs(Path("job.json"))[0]["drag"] == [((1, 2), (3, 4)), ((5, 6), (7, 8))]


def test_the_job_file_that_the_help_names_is_there() -> None:
    root = Path(cli.__file__).parents[2]
    jobs = cli.read_jobs(root / "scripts/demo/jobs.json")
    assert len(jobs) == 2 and jobs[0]["image"].is_file() and jobs[0]["mask"].is_file()
    assert jobs[1]["image"].resolve() == jobs[0]["out"].resolve()
    # README makes the folder before, and no other command there writes a file of these names.
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "mkdir -p out\n" in readme
    for path in (job["out"].resolve() for job in jobs):
        assert path.parent == root / "out" and f"out/{path.name}" not in readme


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
        ("[" * 100_000, "nested too deep"),
        ({"prompt": "half \ud800"}, "job 1: the prompt 'half \\ud800' is not text in UTF-8"),
        (
            {"control": "masked", "object_words": ["disc"], "prompt": "a dot"},
            "job 1: masked control: the prompt 'a dot'",
        ),
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
    kept, make = [], editing.edit

    def watched(sd: object, source: editing.Source, *arguments: object, **more: object) -> editing.EditResult:
        result = make(sd, source, *arguments, **more)  # type: ignore[arg-type]
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
