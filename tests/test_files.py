"""Files and folders are there whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
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
