"""The walkthrough runs to its end, which it does only where every plain number is the package's, and draws."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
# What it is run with here, so that it takes seconds: fewer updates.
SHORTER = {"updates=16,": "updates=3,", "updates=5)": "updates=2)", "updates=30,": "updates=4,"}


def test_it_runs_and_every_station_has_its_picture(tmp_path: Path) -> None:
    code = (ROOT / "scripts" / "walkthrough.py").read_text(encoding="utf-8")
    for written, shorter in SHORTER.items():
        assert code.count(written) == 1
        code = code.replace(written, shorter)
    script, out = tmp_path / "walkthrough.py", tmp_path / "out"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, str(script), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    stations = [line.partition(".")[0] for line in said if line[:1].isdigit()]
    assert stations == [str(n) for n in range(1, 11)]
    assert sum("plainly" in line for line in said) >= len(stations)
    assert [path.name for path in sorted(out.iterdir())] == [f"{n:02d}.png" for n in range(11)]
    for path in out.iterdir():
        assert len(set(Image.open(path).convert("L").tobytes())) > 20, path.name


def test_its_cells_are_text_and_code_by_turns() -> None:
    """So that it opens as a notebook: a title, and for each station a text and a cell."""
    lines = (ROOT / "scripts" / "walkthrough.py").read_text(encoding="utf-8").splitlines()
    marks = [line for line in lines if line.startswith("# %%")]
    assert marks == ["# %% [markdown]", "# %%"] * 11
