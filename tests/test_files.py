"""Files and folders are there whole or not at all."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dragsa import files


def test_json_file_is_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError):
        files.save_json({"a": float("nan")}, path)
    assert not path.exists()
    files.save_json({"prompt": "ein Fuß"}, path)
    assert "ein Fuß" in path.read_text(encoding="utf-8")
    with pytest.raises(FileExistsError):
        files.save_json({}, path)


def test_a_text_that_is_no_unicode_is_escaped(tmp_path: Path) -> None:
    """As a file's name may be: what is read again is the same name."""
    value = {"out": "a\udcff.png", "prompt": "ein Fuß"}
    files.save_json(value, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_bytes()) == value


@pytest.mark.parametrize("length", [241, 251, 255])
def test_names_as_long_as_the_system_takes_can_be_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("a" * length)
    files.save_bytes(b"whole", path)
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]


def test_a_link_to_nothing_is_there(tmp_path: Path) -> None:
    link = tmp_path / "a.png"
    link.symlink_to("nowhere.png")
    with pytest.raises(FileExistsError, match=r"a\.png: is there already; --force \(overwrite=True\) replaces it"):
        files.check_output(link)
    files.save_bytes(b"new", link, overwrite=True)
    assert link.read_bytes() == b"new" and not link.is_symlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_failure_names_the_file(tmp_path: Path) -> None:
    (tmp_path / files.part_name("a.png")).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'"):
        files.save_bytes(b"x" * 100_000, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    value = {"a": (1.5, float("inf")), "b": [{"c": float("nan")}], "d": "text", "e": True}
    files.save_json(files.finite(value), tmp_path / "a.json")
    expected = {"a": [1.5, None], "b": [{"c": None}], "d": "text", "e": True}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_folder_is_whole_or_not(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), files.whole_folder(tmp_path / "a") as part:
        (part / "x").write_text("half")
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())
    for text in ("first", "second"):  # what another process has written by then stays
        with files.whole_folder(tmp_path / "a") as part:
            (part / "x").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "x").read_text() == "first"


def test_needs_no_heavy_package() -> None:
    code = "import sys; from dragsa import files; assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_replaced_only_where_all_in_it_may_go(tmp_path: Path) -> None:
    folder, names = tmp_path / "a", r"\d\.png"
    assert files.check_folder(folder, names) == folder
    folder.mkdir()
    (folder / "1.png").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"is there already; --force \(overwrite=True\) replaces it"):
        files.check_folder(folder, names)
    assert files.check_folder(folder, names, overwrite=True) == folder
    with files.whole_folder(folder, names) as part:
        (part / "2.png").write_bytes(b"new")
        assert (folder / "1.png").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "2.png"]
    for name in ("notes.txt", "index.html", "2.png.bak", "photo.png"):
        (folder / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"holds {name}, so it is not replaced"):
            files.check_folder(folder, names, overwrite=True)
        with pytest.raises(FileExistsError, match=f"holds {name}"), files.whole_folder(folder, names) as part:
            (part / "3.png").write_bytes(b"newer")
        assert {path.name for path in tmp_path.rglob("*")} == {"a", "2.png", name}
        (folder / name).unlink()
    (folder / "3.png").mkdir()
    with pytest.raises(FileExistsError, match=r"holds 3\.png"):
        files.check_folder(folder, names, overwrite=True)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(FileExistsError, match="is not a plain file"):
        files.check_folder(tmp_path / "link", names, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is there, and is not a folder$"):
        files.check_folder(tmp_path / "file", names)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary folders are made in."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    files.sweep.cache_clear()
    return tmp_path


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that has a folder of its own, and lives on."""
    code = (
        "import sys; from dragsa import files; own = files.OwnFolder(); print(own.path, flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    asked = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen([sys.executable, "-c", code], **asked)  # type: ignore[call-overload]


@pytest.mark.skipif(files.fcntl is None, reason="needs locks")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_left_is_swept_and_a_living_one_s_is_not(temporary: Path, how: signal.Signals) -> None:
    with holder(temporary) as killed, holder(temporary) as living:
        left, kept = (Path(one.stdout.readline().strip()) for one in (killed, living) if one.stdout)
        own = files.OwnFolder()
        (left / "x").write_text("gigabytes")
        (temporary / "another").mkdir()
        (temporary / f"{files.PREFIX}link").symlink_to(temporary / "another")
        killed.send_signal(how)
        killed.wait()
        assert left.exists()
        files.sweep()
        assert not left.exists() and kept.exists() and own.path.exists() and (temporary / "another").exists()
        living.communicate("")
        assert not kept.exists()  # which a process that ends by itself removes


def test_an_own_folder_goes_with_what_refers_to_it(temporary: Path) -> None:
    own = files.OwnFolder()
    path, lasts = own.path, files.OwnFolder()
    del own
    gc.collect()
    assert not path.exists() and list(temporary.iterdir()) == [lasts.path]
