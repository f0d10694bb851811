"""`dragsa ui`: the form, and jobs between the page and a job file."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from command_line import refused

from dragsa.cli import SMALL, config_of
from dragsa.cli.readers import FileWith
from dragsa.cli.ui import SETTINGS, Shop, desk_of
from dragsa.config import EditConfig


@pytest.fixture
def shop(tiny_folder: Path) -> Shop:
    return Shop({"weights": [tiny_folder]})


def test_the_form_has_every_setting_with_its_help_and_the_presets_values(shop: Shop) -> None:
    form = shop.form()
    rows = {row["name"]: row for group in form["groups"] for row in group["rows"]}
    assert set(rows) == set(SETTINGS) and all(row["help"] for row in rows.values())
    assert len(form["first"]) == 6 and set(form["first"]) <= set(rows)
    assert rows["optimizer"]["words"] == ["adam", "adam-mini", "sgd"] and rows["blend"]["words"] == ["yes", "no"]
    assert rows["lr"]["words"] == [] and form["suited"] == {"tiny": "sd15"}
    for preset, values in form["presets"].items():
        job = {"preset": "paper", **{name: text for name, text in values.items() if text}}
        assert shop.read("tiny", job).config == getattr(EditConfig, preset)()


def test_a_job_of_the_page_is_read_and_written_as_a_job_file(shop: Shop, tiny_folder: Path) -> None:
    job = {"preset": "small", "lr": "0.5", "patience": "never", "control_blocks": "11-12", "prompt": "a dot"}
    job |= {"drag": [[[1, 2], [3, 4]], [[5, 6.5], [7, 8]]], "seed": "7", "paste": "no"}  # type: ignore[dict-item]
    asked = shop.read("tiny", job)
    assert (asked.config.drag.lr, asked.config.drag.patience, asked.config.control_blocks) == (0.5, None, (11, 12))
    assert asked.drags == (((1, 2), (3, 4)), ((5, 6.5), (7, 8))) and asked.seed == 7 and not asked.config.paste
    written = shop.to_file("tiny", job)
    assert config_of({**shop.parsed(written), "weights": tiny_folder}) == asked.config
    (again,) = json.loads(json.dumps(shop.jobs_in(written)))
    assert again.pop("model", "tiny") == "tiny" and shop.read("tiny", again) == asked


def test_a_job_of_other_weights_or_of_another_model_is_refused(shop: Shop, tmp_path: Path) -> None:
    job = {"image": "some/where.png", "drag": "1,2:3,4", "out": "o.png"}
    assert shop.jobs_in([job])[0]["image"] == "where.png"
    for more, said in (
        ({"weights": "elsewhere"}, "job 1: its weights are not among those"),
        ({"lora": "some.safetensors"}, "job 1: it asks for --lora"),
        ({"dtype": "bfloat16"}, "job 1: it asks for --dtype"),
        ({"from_noise": True}, "job 1: it draws its picture from noise"),
        ({"nonsense": 1}, "job 1: unknown key 'nonsense'"),
    ):
        with pytest.raises(ValueError, match=said):
            shop.jobs_in([{**job, **more}])
    for wrong in ([], 3, [3], {"command": "generate", "options": {}}):
        with pytest.raises(ValueError, match="job"):
            shop.jobs_in(wrong)


def test_files_that_change_the_model_are_known_however_their_paths_are_written(
    tiny_folder: Path, tmp_path: Path
) -> None:
    near = Path(os.path.relpath(tmp_path))
    files = {"vae": near / "v.safetensors", "lora": [FileWith(near / "l.safetensors", 0.5)]}
    shop = Shop({"weights": [tiny_folder], **files, "embedding": [FileWith(near / "e.safetensors", "dot")]})
    by_page = shop.to_file("tiny", {"lr": "1"})
    assert by_page["vae"] == str(tmp_path.resolve() / "v.safetensors")
    by_command = {
        "vae": str(tmp_path / "v.safetensors"),
        "lora": [f"{Path.cwd() / near / 'l.safetensors'}:0.5"],
        "embedding": [f"{tmp_path / 'e.safetensors'}:dot"],
    }
    for job in (by_page, by_command, {"command": "edit", "options": by_command}):
        assert shop.jobs_in({"image": "a.png", **job})[0]["drag"] == []
    for more in (
        {"vae": "other.safetensors"},
        {"lora": f"{tmp_path}/l.safetensors:0.6"},
        {"embedding": f"{tmp_path}/e.pt"},
    ):
        with pytest.raises(ValueError, match=f"asks for --{next(iter(more))}"):
            shop.jobs_in({**by_page, **more})


def test_models_are_named_and_known_by_their_paths(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").symlink_to(tiny_folder)
    shop = Shop({"weights": [tiny_folder, tmp_path / "tiny"], "dtype": "bfloat16"})
    assert list(shop.paths) == ["tiny", str(tmp_path / "tiny")]
    (told,) = shop.jobs_in({"image": "a.png", "weights": str(tiny_folder), "dtype": "bfloat16"})
    assert told["model"] == "tiny"
    assert shop.to_file("tiny", {"lr": "1"}) == {"lr": 1.0, "dtype": "bfloat16"}, "the weights are those without any"
    desk = desk_of({"weights": [tiny_folder], "megabytes": 3})
    assert list(desk.models) == ["tiny"] and (desk.megabytes, desk.example) == (3, None)


def test_the_example_begins_with_settings_that_its_size_asks_for() -> None:
    desk = desk_of({"weights": [SMALL]})
    assert desk.example is not None and desk.example.picture.is_file()
    assert desk.example.settings.keys() <= desk.form["presets"]["small"].keys()
    config = desk.read("small", {"preset": "small", **desk.example.settings}).config
    assert (config.drag_step, config.drag.radius) == (10, 9)


def test_what_cannot_be_opened_is_said_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    assert "there is no such file or folder" in refused(capsys, "ui", "--weights", tmp_path / "none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "give another --port" in refused(capsys, "ui", "--port", port)
