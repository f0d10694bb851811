import io
import signal

import pytest

from dragsa.cli.progress import Progress, first_interrupt_ends_the_drag
from dragsa.pictures import trace


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_and_erased() -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    progress.pixels_per_cell = 4
    progress(trace.StageProgress("inversion", 0, 50))
    progress(trace.StageProgress("inversion", 50, 50))
    progress(trace.DragProgress(80, 80, 0.125, [[1.0, 2.0], [3.0, 4.0]], [1.0, 2.5]))
    progress.erase()
    said = terminal.getvalue()
    assert "inversion  [....................] 0/50" in said and "[####################] 50/50" in said
    assert "drag       [####################] 80/80  loss 0.125, 10.0 px left" in said
    assert said.endswith("\r\x1b[K") and "\n" not in said


def test_progress_is_silent_elsewhere() -> None:
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        progress = Progress(stream, quiet)
        progress(trace.StageProgress("inversion", 1, 50))
        progress.say("loading")
        progress.erase()
        assert stream.getvalue() == ""


def test_a_line_that_stays_is_told_everywhere_unless_all_is_quiet() -> None:
    for stream, quiet, told in ((io.StringIO(), False, "done\n"), (io.StringIO(), True, "")):
        Progress(stream, quiet).tell("done")
        assert stream.getvalue() == told


def test_what_a_name_holds_ends_no_line() -> None:
    said = io.StringIO()
    progress = Progress(said)
    progress.label = "\u2028"
    progress.tell("a\x85.png: done")
    progress.warn("\x1b[2Ja.png")
    progress.fail("job\x85.json, job 1: a.png")
    told = [
        r"\u2028a\x85.png: done",
        r"dragsa: warning: \u2028\x1b[2Ja.png",
        r"dragsa: error: job\x85.json, job 1: a.png",
    ]
    assert said.getvalue().splitlines() == told


def test_the_first_interrupt_ends_the_drag_and_the_second_all() -> None:
    said = io.StringIO()
    progress, update = Progress(said), trace.DragProgress(3, 80, 0.125, [[1.0, 2.0]], [1.0])
    with first_interrupt_ends_the_drag(progress):
        assert progress(trace.StageProgress("drag", 0, 80)) is None and progress(update) is None
        signal.raise_signal(signal.SIGINT)
        assert "the drag ends with this update" in said.getvalue()
        assert progress(update) == "stop"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert progress(trace.StageProgress("drag", 80, 80)) is None  # over: an interrupt ends all again
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
