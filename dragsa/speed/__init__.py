"""`dragsa bench`: how fast the drag loop is and what it holds in memory, by parts and against DragDiffusion's loop."""

from dragsa.speed.benchmark import Report, run
from dragsa.speed.problems import Settings
from dragsa.speed.report import draw_chart, markdown, to_json

__all__ = ["Report", "Settings", "draw_chart", "markdown", "run", "to_json"]
