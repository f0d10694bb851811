"""The terminal: a line of progress, and an error's message."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from dragsa import pictures


class Progress:
    """An observer that keeps one line on a terminal up to date and takes it away at the end; elsewhere it is silent."""

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self.stream = stream
        self.quiet, self.shown = quiet, not quiet and stream.isatty()
        self.pixels_per_cell = 2.0  # of the picture, so that distances are told in its pixels
        self.label = ""  # which of several jobs
        self.dragging = self.stopping = False  # a drag is on; it is to end with its next update
        self._stage, self._begun, self._drawn = "", 0.0, 0.0

    def __call__(self, event: pictures.StageProgress | pictures.DragProgress) -> str | None:
        """Show an event. Return "stop" to a drag that an interrupt is to end."""
        from dragsa import pictures

        if isinstance(event, pictures.DragProgress):
            self.dragging = True
        else:
            self.dragging = event.stage == "drag" and event.done < event.total
        self.stopping = self.stopping and self.dragging
        if self.shown:
            self._show(event)
        return "stop" if self.stopping else None

    def _show(self, event: pictures.StageProgress | pictures.DragProgress) -> None:
        from dragsa import pictures

        if isinstance(event, pictures.DragProgress):
            left = max(event.distances, default=0.0) * self.pixels_per_cell
            self._draw("drag", event.update, event.total, f"loss {event.loss:.4g}, {left:.1f} px left")
        else:
            self._draw(event.stage, event.done, event.total)

    def say(self, text: str) -> None:
        """Show a text in place of a bar, for work that has no steps to count."""
        if self.shown:
            self._write(f"{self.label}{text}")

    def tell(self, text: str, stream: TextIO | None = None) -> None:
        """Print a line that stays, on a terminal and elsewhere, unless all is quiet."""
        self.erase()
        if not self.quiet:
            print(printable(f"{self.label}{text}"), file=stream or self.stream, flush=True)

    def warn(self, message: Warning | str, *rest: Any) -> None:
        """Show a warning on one line, as `warnings.showwarning`."""
        self.erase()
        print(printable(f"dragsa: warning: {self.label}{' '.join(str(message).split())}"), file=self.stream)

    def explain(self, text: str) -> None:
        """Show a line that stays, also where all else is quiet: it was asked for."""
        self.erase()
        print(f"dragsa: {self.label}{text}", file=self.stream, flush=True)

    def fail(self, message: str) -> None:
        """Show an error that ends a job and not the program."""
        self.erase()
        print(printable(f"dragsa: error: {message}"), file=self.stream)

    def erase(self) -> None:
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _draw(self, stage: str, done: int, total: int, words: str = "") -> None:
        now = time.monotonic()
        if stage != self._stage or done == 0:
            self._stage, self._begun, self._drawn = stage, now, 0.0
        if now - self._drawn < 0.05 and done < total:
            return
        self._drawn = now
        filled = round(20 * done / total) if total else 20
        if not words and 0 < done < total:
            seconds = round((now - self._begun) / done * (total - done))
            words = f"{seconds // 60}:{seconds % 60:02d} left"
        self._write(f"{self.label}{stage:<10} [{'#' * filled}{'.' * (20 - filled)}] {done}/{total}  {words}")

    def _write(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0: the terminal does not know
        except (OSError, ValueError):
            columns = 80
        self.stream.write(f"\r\x1b[K{line[: max(1, columns - 1)]}")
        self.stream.flush()


@contextmanager
def first_interrupt_ends_the_drag(progress: Progress) -> Iterator[None]:
    """Within it an interrupt during a drag ends the drag alone, and its picture is finished; the next ends all."""

    def interrupted(number: int, frame: Any) -> None:
        if not progress.dragging or progress.stopping:
            raise KeyboardInterrupt
        progress.stopping = True
        progress.warn("interrupted: the drag ends with this update, and its picture is finished; again ends all")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Failed(Exception):
    """Raised where what was rightly asked could not be done: a full disk, memory, numbers that are not finite."""


@contextmanager
def at_work() -> Iterator[None]:
    """Raise what goes wrong as a failure of the work: what was asked has been looked at before."""
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        raise Failed(one_line(error)) from error


def is_told(error: Exception) -> bool:
    """Tell whether an error is one whose message is all that is to be shown; others are mistakes of the program."""
    return not isinstance(error, RuntimeError) or "memory" in str(error)  # PyTorch's own, of any device


def one_line(error: Exception) -> str:
    """Return an error's message on one line, as `printable` has it; the system's own as `file: reason`."""
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return printable(" ".join(str(error).split()) or type(error).__name__)


def printable(text: str) -> str:
    """Return a text with all escaped that no line can show: a file's name may hold what a terminal obeys."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
