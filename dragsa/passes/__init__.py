"""How the drag loop does an update: its passes, prepared, at the cells it looks at, compiled or not; its end."""

from dragsa.passes.compiling import CompileError, whole
from dragsa.passes.course import Course, DragResult, Update
from dragsa.passes.optimizers import OPTIMIZERS, Descend, adam
from dragsa.passes.prepare import FeatureExtractor, PreparedPass, looping, prepare

__all__ = ["OPTIMIZERS", "CompileError", "Course", "Descend", "DragResult", "FeatureExtractor", "PreparedPass"]
__all__ += ["Update", "adam", "looping", "prepare", "whole"]
