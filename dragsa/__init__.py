"""Training-free drag editing of pictures with Stable Diffusion 1.5 and self-attention control.

What is listed here is the public interface. Each name is fetched from its module when it is first asked for, so that
`dragsa --help` need not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dragsa.config import DragConfig, EditConfig, UNetConfig, VAEConfig
    from dragsa.ddim import Schedule, invert, invert_fixed_point, sample, sample_controlled
    from dragsa.drag import DragResult, drag_latent
    from dragsa.editing import EditResult, Source, edit, prepare
    from dragsa.hooks import KV, AttentionHook, MutualSelfAttention, ReplayKV, Site, compose
    from dragsa.layouts import WeightsError
    from dragsa.loading import StableDiffusion, from_pipeline, load
    from dragsa.model.unet import UNet, UNetOutput
    from dragsa.model.vae import VAE
    from dragsa.motion import motion_supervision_loss
    from dragsa.page.widget import widget
    from dragsa.tracking import track_points

__all__ = [
    "KV",
    "VAE",
    "AttentionHook",
    "DragConfig",
    "DragResult",
    "EditConfig",
    "EditResult",
    "MutualSelfAttention",
    "ReplayKV",
    "Schedule",
    "Site",
    "Source",
    "StableDiffusion",
    "UNet",
    "UNetConfig",
    "UNetOutput",
    "VAEConfig",
    "WeightsError",
    "compose",
    "drag_latent",
    "edit",
    "from_pipeline",
    "invert",
    "invert_fixed_point",
    "load",
    "motion_supervision_loss",
    "prepare",
    "sample",
    "sample_controlled",
    "track_points",
    "widget",
]

_HOMES = {
    "config": ("DragConfig", "EditConfig", "UNetConfig", "VAEConfig"),
    "ddim": ("Schedule", "invert", "invert_fixed_point", "sample", "sample_controlled"),
    "drag": ("DragResult", "drag_latent"),
    "editing": ("EditResult", "Source", "edit", "prepare"),
    "hooks": ("KV", "AttentionHook", "MutualSelfAttention", "ReplayKV", "Site", "compose"),
    "motion": ("motion_supervision_loss",),
    "loading": ("StableDiffusion", "from_pipeline", "load"),
    "layouts": ("WeightsError",),
    "model.unet": ("UNet", "UNetOutput"),
    "model.vae": ("VAE",),
    "page.widget": ("widget",),
    "tracking": ("track_points",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dragsa.{module}"), name)
    raise AttributeError(f"module 'dragsa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
