"""Build the wheel and the source distribution, install each into fresh environments, and edit a picture there.

No environment sees this checkout. It is made with the newest and with the oldest dependencies that setup.cfg admits,
for every Python that is given; torch, which is large, is linked from the Python that runs this, and another Python,
which cannot use it, shows the parts of dragsa that need none. Prints a table. Five minutes; needs a package index, and
`build`.

    python scripts/check_packaging.py --pythons python3.11 python3.12 python3.13
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EDIT = "edit disc.png --drag 42,79:60,70 --size 64 --steps 3 --drag-step 1 --updates 1 --threads 1 --out"
TESTS = ("tests/test_files.py", "tests/test_readme.py", "tests/test_small_model.py", "tests/cli/test_fetch.py")
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DRAGSA"))}


def call(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the checkout's reach, its output kept."""
    options = {"env": CLEAN, "capture_output": True, "text": True, **options}
    return subprocess.run([str(one) for one in command], **options)


def succeed(*command: Any, **options: Any) -> None:
    done = call(*command, **options)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def needed(name: str, found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """Return an installed distribution and all that it needs, by name, as far as they are there."""
    if name not in found:
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return found
        for line in found[name].requires or ():
            if "extra ==" not in line:
                needed(re.split(r"[ <>=!~;\[(]", line)[0], found)
    return found


def link_torch(site: Path) -> None:
    """Link torch and what it needs, numpy aside, from the running Python's packages."""
    for name, one in needed("torch", {}).items():
        for top in {file.parts[0] for file in one.files or () if ".." not in file.parts} if name != "numpy" else ():
            place = site / top
            if not place.exists():
                place.symlink_to(Path(str(one.locate_file(top))))


def oldest() -> list[str]:
    """Return the run-time dependencies but torch, each at the oldest version that setup.cfg admits."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    return [line.replace(">=", "==") for line in lines if not line.startswith("torch")]


def environment(python: str, folder: Path) -> tuple[Path, bool]:
    """Make an environment; return its python, and whether torch is there."""
    succeed(python, "-m", "venv", folder)
    own = folder / "bin" / "python"
    site = Path(call(own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    link_torch(site)
    return own, call(own, "-c", "import torch").returncode == 0 or not any(site.glob("torch"))


def tried(own: Path, folder: Path) -> str:
    """Edit with the model that came along, then without any; return what is wrong, or that both are right."""
    succeed("cp", ROOT / "scripts/demo/disc.png", folder)
    program = own.with_name("dragsa")
    done = call(program, *EDIT.split(), "out.png", cwd=folder)
    if done.returncode or Image.open(folder / "out.png").size != (128, 128):
        return f"no edit: {done.stderr.strip()[-300:]}"
    share = own.parents[1] / "share" / "dragsa"
    share.rename(share.with_name("away"))
    done = call(program, *EDIT.split(), "none.png", cwd=folder)
    share.with_name("away").rename(share)
    if done.returncode != 2 or done.stderr.count("\n") != 1 or "dragsa fetch" not in done.stderr:
        return f"without a model: {done.stderr.strip()[-300:]}"
    return "edits; without a model says how to get one"


def versions(own: Path) -> str:
    code = "from importlib.metadata import version as v; print(*[f'{n} {v(n)}' for n in ('torch', 'transformers', "
    code += "'numpy', 'pillow', 'safetensors', 'einops')], sep=', ')"
    return call(own, "-c", code).stdout.strip()


def row(python: str, what: Path, pins: Sequence[str], folder: Path) -> list[str]:
    """Install one distribution into an environment and return the table's row."""
    name = call(python, "-c", "import platform; print(platform.python_version())").stdout.strip()
    kind = f"{'wheel' if what.suffix == '.whl' else 'sdist'}, {'oldest' if pins else 'newest'}"
    own, usable = environment(python, folder / "env")
    install = [own, "-m", "pip", "install", "--quiet", "--upgrade"]
    if name.split(".")[:2] != list(map(str, sys.version_info[:2])) or not usable:
        succeed(*install, "--no-deps", what)
        asked = (["--help"], ["edit", "--help"], ["x"])
        helped, more, refused = (call(own.with_name("dragsa"), *words, cwd=folder) for words in asked)
        right = (helped.returncode, more.returncode, refused.returncode, refused.stderr.count("\n")) == (0, 0, 2, 1)
        return [name, kind, "none: torch is not here for it", "help and errors alone" if right else refused.stderr]
    done = call(*install, what, *pins)
    if done.returncode:
        return [name, kind, "–", f"not installed: {done.stderr.strip().splitlines()[-1]}"]
    return [name, kind, versions(own), tried(own, folder)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    options = parser.parse_args()
    rows = [["Python", "installed", "with", "outcome"], ["---"] * 4]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        succeed(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
        for python in options.pythons:
            for what, pins in ((wheel, []), (wheel, oldest()), (sdist, [])):
                if what is wheel or python == options.pythons[0]:
                    (own := folder / f"row{len(rows)}").mkdir()
                    rows.append(row(python, what, pins, own))
                    print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "sdist", filter="data")
        (top,) = (folder / "sdist").iterdir()
        at = {"cwd": top, "env": {**CLEAN, "PYTHONPATH": str(top)}}
        everything = call(sys.executable, "-m", "pytest", "-q", "--collect-only", **at)
        some = call(sys.executable, "-m", "pytest", "-q", *TESTS, **at)
        said = [done.stdout.strip().splitlines()[-1] for done in (everything, some)]
        rows.append(["", "sdist's own tests", "all are found; some are run", "; ".join(said)])
    print(*(f"| {' | '.join(one)} |" for one in rows), sep="\n")
    wrong = [one for one in rows[2:-1] if not one[3].startswith(("edits", "help"))]
    return 1 if wrong or everything.returncode or some.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
