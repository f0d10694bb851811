"""The layout of published weights: diffusers' settings, and whether tensors fit a module by name and shape."""

from dragsa.layouts.diffusers import unet_config, vae_config
from dragsa.layouts.fitting import WeightsError, fit

__all__ = ["WeightsError", "fit", "unet_config", "vae_config"]
