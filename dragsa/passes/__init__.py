"""How the drag loop does an update: its passes, prepared, at the cells it looks at, compiled or not; its optimisers."""

from dragsa.passes.compiling import CompileError, whole
from dragsa.passes.optimizers import OPTIMIZERS, adam
from dragsa.passes.prepare import FeatureExtractor, PreparedPass, prepare, weights_frozen

__all__ = ["OPTIMIZERS", "CompileError", "FeatureExtractor", "PreparedPass", "adam", "prepare", "weights_frozen"]
__all__ += ["whole"]
