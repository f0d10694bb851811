"""The program: its commands, exit codes, and what it says when something is wrong."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence

from dragsa.cli.bench import run_bench
from dragsa.cli.edit import run_edit, run_generate
from dragsa.cli.fetch import run_fetch
from dragsa.cli.info import run_info
from dragsa.cli.options import build_parser
from dragsa.cli.progress import Failed, Progress, is_told, one_line
from dragsa.cli.ui import run_ui

RUN = {
    "edit": run_edit,
    "generate": run_generate,
    "ui": run_ui,
    "fetch": run_fetch,
    "info": run_info,
    "bench": run_bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 is success, 1 work that failed (a full disk, memory, a job of a list) or a file that `info --verify` does not
    know, 2 something asked wrongly, 130 an interrupt.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no × or … gets a question mark
    terminal = io.StringIO() if sys.stderr is None else sys.stderr  # closed by who calls: nothing is shown
    progress = Progress(terminal, quiet=True)
    try:
        options = vars(build_parser().parse_args(arguments))
        if options.pop("version"):
            from dragsa import pictures

            print("\n".join(f"{name} {version}" for name, version in pictures.versions().items()))
            return 0
        if options["command"] is None:
            raise ValueError(f"no command: {', '.join(RUN)} (dragsa --help)")
        progress = Progress(terminal, quiet=options.get("quiet", False))
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # of every job, also where another one had the same
            warnings.showwarning = progress.warn  # type: ignore[assignment]
            code = RUN[options["command"]](options, progress)
    except KeyboardInterrupt:
        progress.erase()
        print("dragsa: interrupted", file=terminal)
        return 130
    except (OSError, ValueError, MemoryError, RuntimeError, Failed) as error:
        if not is_told(error):
            raise
        progress.fail(one_line(error))
        return 1 if isinstance(error, Failed | MemoryError | RuntimeError) else 2
    progress.erase()
    return code
