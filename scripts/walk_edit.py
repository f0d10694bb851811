"""Count the files that one edit of a picture with a mask enters, and the names that the core takes from other rooms.

python scripts/walk_edit.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image

import dragsa

PACKAGE = Path(dragsa.__file__).parent
CORE = ("config.py", "hooks.py", "model/", "ddim.py", "motion.py", "tracking.py", "drag.py", "editing.py")
ROOMS = ("files", "kernels", "layouts", "stock", "pictures", "loading", "checks", "passes", "methods", "source_kv")


def entered() -> list[str]:
    """Edit the demo's disc with a few updates, and return the package's files that run meanwhile."""
    sd = dragsa.load("weights/small")
    config = dragsa.EditConfig.small(drag=dragsa.DragConfig(updates=3), steps=10, drag_step=4)
    picture, mask = (Image.open(f"scripts/demo/{name}.png") for name in ("disc", "mask"))
    found: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if PACKAGE in file.parents:
            found.add(str(file.relative_to(PACKAGE)))

    dragsa.edit(sd, picture, [((42, 79), (70, 59))], mask, config=config)  # whatever is imported late is there
    sys.settrace(note)
    try:
        dragsa.edit(sd, picture, [((42, 79), (70, 59))], mask, config=config)
    finally:
        sys.settrace(None)
    return sorted(found)


def borrowed() -> list[str]:
    """Return the names that the core takes from other rooms, as `room.name`."""
    found: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        if not str(file.relative_to(PACKAGE)).startswith(CORE):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dragsa."):
                room = (node.module or "").split(".")[1]
                found |= {f"{room}.{alias.name}" for alias in node.names if room in ROOMS}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ROOMS:
                found.add(f"{node.value.id}.{node.attr}")
    return sorted(found)


if __name__ == "__main__":
    files = entered()
    core = [name for name in files if name.startswith(CORE)]
    print(f"an edit enters {len(core)} files of the core: {', '.join(core)}")
    print(f"and {len(files) - len(core)} of other rooms: {', '.join(name for name in files if name not in core)}")
    names = borrowed()
    print(f"the core takes {len(names)} names from other rooms: {', '.join(names)}")
