"""The command line: `dragsa edit`, `dragsa generate`, `dragsa info`, `dragsa bench`.

Networks and tensors are imported only once the arguments are understood, so that help and mistakes cost no time.
"""

from dragsa.cli.edit import SMALL, config_of, weights_of
from dragsa.cli.jobs import read_jobs
from dragsa.cli.main import main
from dragsa.cli.options import (
    WEIGHTS_HELP,
    Options,
    Parser,
    add_defaults,
    add_schedule_options,
    build_parser,
    scale,
    whole,
    whole_or_never,
)
from dragsa.cli.progress import one_line

__all__ = [
    "SMALL",
    "WEIGHTS_HELP",
    "Options",
    "Parser",
    "add_defaults",
    "add_schedule_options",
    "build_parser",
    "config_of",
    "main",
    "one_line",
    "read_jobs",
    "scale",
    "weights_of",
    "whole",
    "whole_or_never",
]
