"""The widget of `dragsa.widget`, from the page's own canvas. Its packages are the extra `notebook`."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from PIL import Image

from dragsa import checks, files, pictures
from dragsa.config import EditConfig
from dragsa.editing import EditResult
from dragsa.loading import StableDiffusion
from dragsa.loading.safetensors import one_line
from dragsa.page.desk import Asked
from dragsa.page.tabs import Log, Picture, Tab, make, told_of
from dragsa.page.work import Ended, Task
from dragsa.pictures import Given

STATIC = Path(__file__).parent / "static"
MODULES = ("warp.js", "mask.js", "tools.js", "keys.js", "paint.js", "canvas.js", "curve.js", "widget.js")


def joined() -> str:
    """Return the canvas's modules as one, since a widget's code has no files beside it to import."""
    code = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in MODULES)
    return re.sub(r'^import .* from "\./.*";\n', "", code, flags=re.MULTILINE)


@contextlib.contextmanager
def on_interrupt(do: Callable[[], None]) -> Iterator[None]:
    """Do something in place of raising KeyboardInterrupt; not in a thread, which is never interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Sent(Log):
    """Sends what an edit tells to the widget's canvas, pictures with it."""

    def __init__(self, widget: DragWidget) -> None:
        super().__init__()
        self.widget = widget

    def tell(self, kind: str, **told: Any) -> None:
        frame = [self.widget.tab.frames[told["update"]]] if kind == "frame" else []
        self.widget.send(files.finite({"kind": kind, **told}), frame)


class DragWidget(anywidget.AnyWidget):
    """A picture to drag; see `dragsa.widget`."""

    _esm = joined()
    _css = (STATIC / "canvas.css").read_text(encoding="utf-8") + (STATIC / "widget.css").read_text(encoding="utf-8")
    drags: Any = traitlets.List().tag(sync=True)
    _picture_file = traitlets.Bytes().tag(sync=True)
    _mask_file = traitlets.Bytes(b"").tag(sync=True)

    def __init__(
        self,
        sd: StableDiffusion,
        picture: Given,
        prompt: str = "",
        config: EditConfig | None = None,
        *,
        seed: int = 42,
        negative_prompt: str = "",
    ) -> None:
        image = pictures.open_picture(picture)
        checks.words(prompt, negative_prompt)
        self.sd, self.config = sd, checks.configured(config, sd.unet.config.widths)
        self.words: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed}
        self.tab = Tab()
        self.tab.open(Picture("picture", image))
        self.tab.log = Sent(self)
        self.result: EditResult | None = None
        self._task: Task | None = None  # the edit that runs
        self._starting = threading.Lock()
        super().__init__(_picture_file=pictures.picture_bytes(pictures.to_rgb(image), "picture.png"))
        self.on_msg(self._pressed)

    @property
    def mask(self) -> Image.Image | None:
        """The painted mask, white on black in the picture's size; None where nothing was painted."""
        return pictures.open_picture(Image.open(io.BytesIO(self._mask_file))) if self._mask_file else None

    def edit(self, target_prompt: str | None = None) -> EditResult:
        """Edit the picture as the canvas asks, and show it there.

        In a cell an interrupt of the kernel ends the drag with its next update, and its picture is finished; a second
        one ends all. Raises ValueError as `dragsa.edit` does, and where an edit of this widget is under way.
        """
        task = Task(self, lambda task: None)
        with self._starting:
            if self._task is not None:
                raise ValueError("this widget's edit is still under way: stop it, or wait for it")
            self._task = task
        try:
            with on_interrupt(self._interrupted):
                self.result = self._made(task, target_prompt)
        finally:
            self._task = None
        return self.result

    def _made(self, task: Task, target_prompt: str | None) -> EditResult:
        drags = tuple(((float(x0), float(y0)), (float(x1), float(y1))) for (x0, y0), (x1, y1) in self.drags)
        asked = Asked(self.config, drags, target_prompt=target_prompt, **self.words)
        self.tab.log.tell("begin", in_cell=threading.current_thread() is threading.main_thread())
        try:
            result = make(self.tab, task, self.sd, self.tab.opened(), asked, self.mask)
        except BaseException as error:  # an interrupt, too: what the canvas shows is to end
            self.tab.unfinished()
            self.tab.log.tell("error", text=one_line(error))
            raise
        shown = pictures.picture_bytes(pictures.to_rgb(result.image), "picture.png")
        self.send(files.finite({"kind": "done", **told_of(result)}), [shown])
        return result

    def _interrupted(self) -> None:
        if self._task is None or self._task.stopping:
            raise KeyboardInterrupt
        self._task.stopping = True

    def _pressed(self, widget: Any, content: Any, buffers: Any) -> None:
        """Do what a button of the canvas asks.

        An edit gets a thread of its own, so that the kernel hears of Stop meanwhile: in the middle of a cell it would
        not, and so an edit that runs in a cell is ended by an interrupt.
        """
        if content == "run" and self._task is None:
            threading.Thread(target=self._run, name="dragsa-widget", daemon=True).start()
        elif content == "stop" and (task := self._task) is not None:
            task.ended, task.stopping = task.stopping, True
            self.tab.log.tell("stopping")

    def _run(self) -> None:
        with contextlib.suppress(ValueError, Ended):  # the canvas says it
            self.edit()
