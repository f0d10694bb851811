"""Kernels that make the method fast, in torch and in Triton alone: nothing here knows a network or an edit.

`attend`, `Convolution` and `gated` are layers' arithmetic; `pull` and `search` are motion supervision's loss and point
tracking, fused; `patches`, `sample_points` and `between` sample a feature map where it is wanted; `kept` holds on to
memory. `windows` is the geometry that they share.
"""

from dragsa.kernels import windows
from dragsa.kernels.convolution import Convolution
from dragsa.kernels.cpu_attention import attend
from dragsa.kernels.gated import gated
from dragsa.kernels.memory import kept
from dragsa.kernels.operators import pull, search
from dragsa.kernels.windows import between, patches, sample_points

__all__ = ["Convolution", "attend", "between", "gated", "kept", "patches", "pull", "sample_points", "search", "windows"]
