"""The command line."""

from dragsa.cli.cli import main

__all__ = ["main"]
