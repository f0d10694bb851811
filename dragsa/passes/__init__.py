"""Do the drag loop's updates: passes that are prepared, end near the handles, are compiled or not; and the end."""

from dragsa.passes.compiling import CompileError, whole
from dragsa.passes.course import STOP, Course, DragResult, Observe, Update
from dragsa.passes.optimizers import OPTIMIZERS, Descend, adam
from dragsa.passes.prepare import FeatureExtractor, PreparedPass, prepare

__all__ = ["OPTIMIZERS", "STOP", "CompileError", "Course", "Descend", "DragResult", "FeatureExtractor", "Observe"]
__all__ += ["PreparedPass", "Update", "adam", "prepare", "whole"]
