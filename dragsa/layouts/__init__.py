"""The layout of published weights: diffusers' settings, and whether tensors fit a module by name and shape."""

from dragsa.layouts.diffusers import unet_config, vae_config
from dragsa.layouts.fitting import WeightsError, fit
from dragsa.layouts.processors import processors

__all__ = ["WeightsError", "fit", "processors", "unet_config", "vae_config"]
