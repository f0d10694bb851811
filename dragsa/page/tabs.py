"""One tab of the browser, as the server has it: its picture, its source, its last result, and what it is told."""

from __future__ import annotations

import io
import secrets
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from PIL import Image

from dragsa import checks, editing, files, looking, pictures
from dragsa.ddim import Guided
from dragsa.editing import Drag, EditResult, Source
from dragsa.loading import StableDiffusion
from dragsa.loading.safetensors import one_line
from dragsa.page.desk import Asked, Desk
from dragsa.page.handles import handles_in_pixels
from dragsa.page.work import Ended, Task, Worker
from dragsa.pictures import DragProgress, StageProgress
from dragsa.pictures.images import DAMAGED

FRAME_SHARE = 0.1  # of a drag's time that looking at the picture which forms may take
KEPT = 2000  # events that a tab which is away can still be told of


class Refused(ValueError):
    """Something that the page may not do, with the answer's status; the message is for whoever sees the page."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Log:
    """The events that a tab is told, numbered from 1, so that a stream which broke off goes on where it was."""

    def __init__(self) -> None:
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._lock, self._next = threading.Lock(), 1

    def tell(self, kind: str, **told: Any) -> None:
        with self._lock:
            self._events.append((self._next, files.finite({"kind": kind, **told})))
            self._next += 1
            del self._events[:-KEPT]

    def since(self, number: int) -> list[tuple[int, dict[str, Any]]]:
        with self._lock:
            return [one for one in self._events if one[0] > number]


@dataclass(frozen=True)
class Picture:
    """A picture that was opened. `data`: the file as it came; None for one that was made here."""

    name: str
    image: Image.Image
    data: bytes | None = None

    @property
    def file(self) -> tuple[str, bytes]:
        """Return a file's name and bytes that hold the picture."""
        return (self.name, self.data) if self.data is not None else (f"{stem(self.name)}.png", png(self.image))


@dataclass(frozen=True)
class Made:
    """An edit that is done, and what it was asked by. `frames`: JPEG files of the forming picture, by update."""

    result: EditResult
    model: str
    job: dict[str, Any]
    mask: bytes | None
    picture: Picture
    frames: dict[int, bytes]


class Tab:
    """One tab's state. Its edits run in the worker; all else in whichever thread asks."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        self.log = Log()
        self.streams, self.seen = 0, time.monotonic()
        self.picture: Picture | None = None
        self.made: Made | None = None
        self.frames: dict[int, bytes] = {}  # of the edit that runs, or ran last
        self._source: tuple[Any, Source] | None = None  # and what it was made from

    def open(self, picture: Picture) -> dict[str, Any]:
        """Take another picture, and forget what belonged to the one before."""
        self.picture, self.made, self._source, self.frames = picture, None, None, {}
        return {"name": picture.name, "size": picture.image.size}

    def opened(self) -> Picture:
        if self.picture is None:
            raise Refused("no picture is open: open one first")
        return self.picture

    def source(self, sd: StableDiffusion, image: Image.Image, asked: Asked, observe: pictures.Observer) -> Source:
        """Return the picture's source: the one that is there, if it is of the same picture, model and numbers."""
        content = image.mode, image.size, sha256(image.tobytes()).digest()  # a part is cut out anew for every edit
        key = content, weakref.ref(sd.unet), asked.of_source
        if self._source is None or self._source[0] != key:
            self._source = None
            told: dict[str, Any] = {"observe": observe, "negative_prompt": asked.negative_prompt}
            self._source = key, editing.prepare(sd, image, asked.prompt, asked.seed, asked.config, **told)
        return self._source[1]

    def unfinished(self) -> None:
        """Keep the source's latents and drop what a pass that was ended has left with it of keys and values."""
        if self._source is not None:
            self._source = self._source[0], replace(self._source[1])


class Teller:
    """The observer of a tab's edit: tells its log, and takes a look at the picture now and then."""

    def __init__(self, tab: Tab, task: Task, sd: StableDiffusion, asked: Asked) -> None:
        self.tab, self.task, self.sd, self.asked = tab, task, sd, asked
        self.source: Source | None = None
        self.drags: tuple[Drag, ...] = asked.drags
        self.corner = (0, 0)  # of the part that is edited, in the picture
        self.dragged = False
        self._free = 0.0  # when the next look may be taken

    def __call__(self, event: StageProgress | DragProgress) -> str | None:
        if isinstance(event, DragProgress):
            self.dragged = True
        if self.task.ended or (self.task.stopping and not self.dragged):  # nothing is there yet that could be kept
            raise Ended("stopped before there was anything to keep")
        if isinstance(event, StageProgress):
            self.tab.log.tell("stage", stage=event.stage, done=event.done, total=event.total)
        elif self.source is not None:
            self._update(event, self.source)
        return "stop" if self.task.stopping else None

    def _update(self, event: DragProgress, source: Source) -> None:
        points = handles_in_pixels(event, source, self.drags)
        left = [
            ((x - tx) ** 2 + (y - ty) ** 2) ** 0.5 for (x, y), (_, (tx, ty)) in zip(points, self.drags, strict=True)
        ]
        placed = [(x + self.corner[0], y + self.corner[1]) for x, y in points]
        told = {"update": event.update, "total": event.total, "loss": event.loss, "handles": placed, "left": left}
        self.tab.log.tell("update", **told)
        now = time.monotonic()
        if event.latent is None or now < self._free or self.task.stopping:
            return
        level = self.asked.config.steps - self.asked.config.drag_step
        target = source.prompt if self.asked.target_prompt is None else self.asked.target_prompt
        uncond, context = self.sd.embed([source.negative_prompt, target]).chunk(2)
        guided = Guided(source.unet_of(self.sd), context, uncond, self.asked.config.guidance)
        (shown,) = looking.frames(self.sd, guided, [event.latent], source.schedule, level)
        if self.task.ended:  # meanwhile: the tab's frames may be another picture's
            return
        self.tab.frames[event.update] = encoded(shown, "JPEG", quality=88)
        end = time.monotonic()
        self._free = end + (end - now) * (1 / FRAME_SHARE - 1)
        box = (*self.corner, *source.picture.size)
        self.tab.log.tell("frame", update=event.update, box=box)


def make(
    tab: Tab, task: Task, sd: StableDiffusion, picture: Picture, asked: Asked, mask: Image.Image | None
) -> EditResult:
    """Make an edit of a tab's picture, or of the part that it is about, and tell the tab of it."""
    teller, whole = Teller(tab, task, sd, asked), replace(asked.config, crop="none")

    def edited(image: Image.Image | None, drags: Any, mask: Any) -> EditResult:
        assert image is not None
        if drags and image is not picture.image:
            (x, y), (x0, y0) = asked.drags[0][0], drags[0][0]
            teller.corner = round(x - x0), round(y - y0)
        teller.drags = tuple(drags)
        teller.source = tab.source(sd, image, asked, teller)
        told: dict[str, Any] = {"target_prompt": asked.target_prompt, "observe": teller}
        return editing.edit(sd, teller.source, drags, mask, config=whole, **told)

    if asked.config.crop == "auto":
        return pictures.edit_part(edited, picture.image, asked.drags, mask, asked.config.size)
    return edited(picture.image, asked.drags, mask)


class Editor:
    """Edits for tabs: the models, the worker, and what a task does."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.worker = desk, Worker()
        self.tabs: dict[str, Tab] = {}
        self._model: tuple[str, StableDiffusion] | None = None

    def new_tab(self) -> Tab:
        if len(self.tabs) >= self.desk.tabs:
            raise Refused(f"{len(self.tabs)} tabs are open already: close one", 503)
        tab = Tab()
        self.tabs[tab.id] = tab
        return tab

    def close_tab(self, tab: Tab) -> None:
        """Forget a tab; an edit of it that runs ends at its next event."""
        self.tabs.pop(tab.id, None)
        for task in self.worker.of(tab):
            self.worker.end(task)

    def sweep(self, seconds: float) -> None:
        """Close the tabs that nobody has listened for in so many seconds."""
        now = time.monotonic()
        for tab in [tab for tab in self.tabs.values() if not tab.streams and now - tab.seen > seconds]:
            self.close_tab(tab)

    def model(self, name: str, tab: Tab) -> StableDiffusion:
        """Return the model of that name; one is loaded at a time. Called by the worker alone."""
        if self._model is None or self._model[0] != name:
            tab.log.tell("stage", stage=f"loading {name}", done=0, total=1)
            self._model = None
            self._model = name, self.desk.models[name]()
        return self._model[1]

    def prepare(self, tab: Tab, model: str, job: dict[str, Any]) -> None:
        """Invert the tab's picture in the background, unless an edit is under way, which does it itself."""
        picture, asked = tab.opened(), self._asked(model, job)
        about, tasks = (model, asked.of_source), self.worker.of(tab)
        if any(not task.background or task.about == about for task in tasks) or asked.config.crop == "auto":
            return
        self._end_background(tab)

        def do(task: Task) -> None:
            sd = self.model(model, tab)
            teller = Teller(tab, task, sd, asked)
            teller(StageProgress("encode", 0, 1))  # ended before it began
            tab.source(sd, picture.image, asked, teller)
            tab.log.tell("ready")

        self.worker.add(Task(tab, self._told(tab, do), background=True, about=about))

    def edit(self, tab: Tab, model: str, job: dict[str, Any], mask: bytes | None) -> None:
        """Put an edit of the tab's picture into the queue. Raises for what can be seen to be wrong beforehand."""
        picture, asked = tab.opened(), self._asked(model, job)
        levels = None if mask is None else opened(mask, "mask", self.desk.megapixels)
        if not asked.drags and asked.target_prompt is None:
            raise Refused("nothing to change: pull a point of the picture, or give a target prompt")
        if any(not task.background for task in self.worker.of(tab)):
            raise Refused("this tab's edit is still under way: stop it first", 409)
        checks.words(asked.prompt, asked.target_prompt, asked.negative_prompt)
        checks.settings(asked.config, asked.drags, levels, picture.image.size)
        self._end_background(tab, but=(model, asked.of_source))

        def do(task: Task) -> None:
            tab.frames = {}
            tab.log.tell("begin")
            result = make(tab, task, self.model(model, tab), picture, asked, levels)
            if tab.picture is not picture:  # it was left behind the last event
                raise Ended
            tab.made = Made(result, model, job, mask, picture, tab.frames)
            tab.log.tell("done", **told_of(result))

        ahead = self.worker.add(Task(tab, self._told(tab, do)))
        tab.log.tell("queued", ahead=ahead)

    def stop(self, tab: Tab) -> None:
        """End the tab's drag with its next update; a second time, or where none is on, end the edit."""
        for task in self.worker.of(tab):
            if task.background:
                continue
            if task is self.worker.running and not task.stopping:
                task.stopping = True
                tab.log.tell("stopping")  # told when it is so: of what is told later, one update at most is the drag's
            else:
                self.worker.end(task)
                if task is not self.worker.running:
                    tab.log.tell("ended")

    def close(self) -> None:
        self.worker.close()

    def _asked(self, model: str, job: dict[str, Any]) -> Asked:
        if model not in self.desk.models:
            raise Refused(f"no model of the name {model!r}: there are {', '.join(self.desk.models)}")
        return self.desk.read(model, job)

    def _end_background(self, tab: Tab, but: Any = None) -> None:
        for task in self.worker.of(tab):
            if task.background and task.about != but:
                self.worker.end(task)

    def _told(self, tab: Tab, do: Callable[[Task], None]) -> Callable[[Task], None]:
        """Return the work with its warnings and its end told to the tab, whatever the end is.

        Of a picture that was left nothing is told: the tab would take it for an end of what it asked for since.
        """
        picture = tab.picture

        def tell(kind: str, **said: Any) -> None:
            if tab.picture is picture:
                tab.log.tell(kind, **said)

        def told(task: Task) -> None:
            def warn(message: Warning | str, *rest: Any) -> None:
                tell("warning", text=one_line(message))

            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = warn  # type: ignore[assignment]
                try:
                    do(task)
                except Ended:
                    tab.unfinished()
                    if not task.background:
                        tell("ended")
                except Exception as error:  # whatever it is, the page says it and the next edit can run
                    tab.unfinished()
                    tell("warning" if task.background else "error", text=one_line(error))

        return told


def told_of(result: EditResult) -> dict[str, Any]:
    """Return what the page shows of a result beside its picture."""
    trace = result.trace
    left = [list(row) for row in trace.distances_px]
    return {
        "losses": list(trace.losses),
        "handles": [list(row) for row in trace.handles],
        "tracked": list(trace.tracked),
        "left": left,
        "stop": trace.stop,
        "seconds": trace.seconds,
        "size": result.image.size,
        "drags": list(trace.drags),
    }


def opened(data: bytes, name: str, megapixels: float) -> Image.Image:
    """Return the picture in a file's bytes, whole and upright. Raises Refused for none, and one too large."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise Refused(f"{name}: more pixels than {megapixels:g} million") from None
    except DAMAGED:
        raise Refused(f"{name}: not a picture in a format that can be read") from None
    if image.width * image.height > megapixels * 1e6:
        raise Refused(f"{name}: {image.width}×{image.height} pixels, more than {megapixels:g} million; make it smaller")
    try:
        return pictures.open_picture(image)
    except ValueError as error:
        raise Refused(f"{name}: {error}") from None


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **how)
    return data.getvalue()


def png(image: Image.Image) -> bytes:
    return pictures.picture_bytes(image, "picture.png")


def stem(name: str) -> str:
    return name.rpartition(".")[0] or name
