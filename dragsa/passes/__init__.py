"""How the drag loop does an update: its passes, prepared, at the cells it looks at, compiled or not; its end."""

from dragsa.passes.compiling import CompileError, whole
from dragsa.passes.course import STOP, Course, DragResult, Observe, Update
from dragsa.passes.optimizers import OPTIMIZERS, Descend, adam
from dragsa.passes.prepare import FeatureExtractor, PreparedPass, prepare

__all__ = ["OPTIMIZERS", "STOP", "CompileError", "Course", "Descend", "DragResult", "FeatureExtractor", "Observe"]
__all__ += ["PreparedPass", "Update", "adam", "prepare", "whole"]
