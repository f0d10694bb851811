"""A hand on the page: opens files, pulls points and paints, and reads what the page saves."""

from __future__ import annotations

import base64
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dragsa.cli.ui import desk_of
from dragsa.page import server

if TYPE_CHECKING:
    from playwright.sync_api import Page as BrowserPage

QUICK = {"size": "64", "steps": "4", "drag_step": "1", "control_step": "1", "updates": "2", "lr": "0.02"}


class Served:
    """A page that is served by a thread of this process."""

    def __init__(self, options: dict[str, Any], token: str | None = None) -> None:
        self.page = server.Page(desk_of(options), token)
        self.sock = server.listen("127.0.0.1", 0)
        self.url = server.address(self.sock, token)
        self.editor = self.page.editor
        self._server = server.server_of(self.page)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.sock]}, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)


class Hand:
    """Does on the page what a person does. Points are pixels of the picture, `size` its width and height."""

    def __init__(self, page: BrowserPage) -> None:
        self.page, self.size = page, (0, 0)

    def open(self, *files: Path | tuple[str, bytes], shows: str | None = None) -> str:
        """Open files, given as paths or as names and bytes; return what the page says of them, good or bad.

        shows: the name of the picture that is shown then, where that is not the first file.
        """
        given: list[Any] = [
            {"name": one[0], "mimeType": "application/octet-stream", "buffer": one[1]}
            if isinstance(one, tuple)
            else str(one)
            for one in files
        ]
        first = files[0][0] if isinstance(files[0], tuple) else files[0].name
        if self.page.is_visible("#toast"):  # or what it says of the last file would be taken for an answer
            self.page.click("#toast button")
        self.page.set_input_files("#files", given)
        self.page.wait_for_selector(f'#name:has-text("{shows or first}"), #toast:not([hidden])', state="attached")
        return self.page.text_content("#toast span") or self.name()

    def name(self) -> str:
        """Return the picture's name and size as the page shows them, and keep the size."""
        text = self.page.text_content("#name") or ""
        if "×" in text:
            width, height = text.rpartition(", ")[2].split("×")
            self.size = int(width), int(height)
        return text

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a pixel of the picture is on the screen, as long as the whole picture is shown."""
        box = self.page.locator("#board canvas").bounding_box()
        assert box is not None
        room, (width, height) = min(28, box["width"] * 0.04), self.size
        scale = min((box["width"] - 2 * room) / width, (box["height"] - 2 * room) / height)
        left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
        return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale

    def pull(self, *points: tuple[float, float]) -> None:
        """Press on the first point, pull through the others, let go on the last."""
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=4)
        self.page.mouse.up()

    def paste(self, data: bytes) -> str:
        """Copy a PNG picture and paste it, as from another program; return what the page says of it."""
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        copy = """async (data) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const file = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": file })]);
        }"""
        self.page.evaluate(copy, base64.b64encode(data).decode())
        self.page.keyboard.press("Control+v")
        return self.name()

    def drop(self, *files: Path) -> None:
        """Pull files over the picture and let go, as from a file manager."""
        x, y = self.page.viewport_size["width"] / 3, self.page.viewport_size["height"] / 2  # type: ignore[index]
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        devtools = self.page.context.new_cdp_session(self.page)
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    def tool(self, name: str) -> None:
        self.page.click(f'[data-name="{name}"]')

    def set(self, **settings: str) -> None:
        """Give settings at once, those that are folded away, too."""
        given = """(settings) => {
            for (const [name, value] of Object.entries(settings)) {
                const field = document.getElementById(name);
                field.value = value;
                for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
            }
        }"""
        self.page.evaluate(given, settings)

    def run(self) -> str:
        """Run the edit to its end; return what the page says of it."""
        self.page.click("#run")
        return self.outcome()

    def outcome(self) -> str:
        self.page.wait_for_selector("#result:not([hidden]), #toast:not([hidden])", timeout=60_000)
        return self.page.text_content("#toast span") or self.page.text_content("#outcome") or ""

    def saved(self, button: str) -> bytes:
        """Press a button that saves; return the file."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def job(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Save the job; return it, and all files of its folder."""
        with zipfile.ZipFile(io.BytesIO(self.saved("#save-job"))) as folder:
            files = {name: folder.read(name) for name in folder.namelist()}
        return json.loads(files["job.json"]), files

    def drags(self) -> Any:
        """Return the drags of the job that the page would save."""
        return self.job()[0].get("drag", [])

    def seen(self, *points: tuple[float, float]) -> list[tuple[int, ...]]:
        """Return the colours that the screen has at pixels of the picture."""
        shot = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))
        places = [self.at(*point) for point in points]
        return [tuple(int(value) for value in shot[round(top), round(left)]) for left, top in places]


@contextmanager
def chromium() -> Iterator[Any]:
    """Give the system's browser, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    """Return the file of a picture."""
    data = io.BytesIO()
    image.save(data, kind, **how)
    return data.getvalue()
