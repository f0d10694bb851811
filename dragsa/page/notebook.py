"""The widget of `dragsa.widget`, from the page's own canvas. Its packages are the extra `notebook`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from PIL import Image

from dragsa import checks, files, pictures
from dragsa.config import EditConfig
from dragsa.editing import EditResult
from dragsa.loading import StableDiffusion
from dragsa.page.desk import Asked
from dragsa.page.tabs import Log, Picture, Tab, make, one_line, told_of
from dragsa.page.work import Task
from dragsa.pictures import Given

STATIC = Path(__file__).parent / "static"
MODULES = ("warp.js", "mask.js", "canvas.js", "curve.js", "widget.js")


def joined() -> str:
    """Return the canvas's modules as one, since a widget's code has no files beside it to import."""
    code = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in MODULES)
    return re.sub(r'^import .* from "\./.*";\n', "", code, flags=re.MULTILINE)


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
        super().__init__(_picture_file=pictures.picture_bytes(pictures.to_rgb(image), "picture.png"))
        self.on_msg(self._pressed)

    @property
    def mask(self) -> Image.Image | None:
        """The painted mask, white on black in the picture's size; None where nothing was painted."""
        return pictures.open_picture(Image.open(io.BytesIO(self._mask_file))) if self._mask_file else None

    def edit(self, target_prompt: str | None = None) -> EditResult:
        """Edit the picture as the canvas asks, and show it there. Raises ValueError as `dragsa.edit` does."""
        task, picture = Task(self, lambda task: None), self.tab.opened()
        drags = tuple(((float(x0), float(y0)), (float(x1), float(y1))) for (x0, y0), (x1, y1) in self.drags)
        asked = Asked(self.config, drags, target_prompt=target_prompt, **self.words)
        self.tab.log.tell("begin")
        try:
            self.result = make(self.tab, task, self.sd, picture, asked, self.mask)
        except BaseException as error:  # an interrupt, too: what the canvas shows is to end
            self.tab.unfinished()
            self.tab.log.tell("error", text=one_line(error))
            raise
        shown = pictures.picture_bytes(pictures.to_rgb(self.result.image), "picture.png")
        self.send(files.finite({"kind": "done", **told_of(self.result)}), [shown])
        return self.result

    def _pressed(self, widget: Any, content: Any, buffers: Any) -> None:
        """Do what a button of the canvas asks; what goes wrong is said there, by `edit`."""
        if content == "run":
            try:
                self.edit()
            except ValueError:
                return
