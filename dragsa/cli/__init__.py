"""The command line: `dragsa edit`, `generate`, `ui`, `fetch`, `info`, `bench`.

Networks and tensors are imported only once the arguments are understood, so that help and mistakes cost no time.
"""

from dragsa.cli.edit import config_of, weights_of
from dragsa.cli.jobs import read_jobs
from dragsa.cli.main import main
from dragsa.cli.options import EDIT, WEIGHTS_HELP, Options, Parser, add_groups, build_parser
from dragsa.cli.progress import one_line
from dragsa.cli.readers import whole
from dragsa.cli.weights import SMALL, shipped

__all__ = ["EDIT", "SMALL", "WEIGHTS_HELP", "Options", "Parser", "add_groups", "build_parser", "config_of", "main"]
__all__ += ["one_line", "read_jobs", "shipped", "weights_of", "whole"]
