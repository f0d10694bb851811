"""How the drag loop runs a pass of the UNet: what is computed once, at which cells, and compiled or not."""

from dragsa.passes.compiling import CompileError, whole
from dragsa.passes.prepare import FeatureExtractor, PreparedPass, prepare, taps_of

__all__ = ["CompileError", "FeatureExtractor", "PreparedPass", "prepare", "taps_of", "whole"]
