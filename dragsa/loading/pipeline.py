"""A diffusers pipeline in memory, taken as it is: its tensors are shared, not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dragsa.layouts import fitting
from dragsa.layouts.fitting import WeightsError
from dragsa.loading import names, noise
from dragsa.loading.names import TEXT, UNET, VAE
from dragsa.loading.parts import build
from dragsa.loading.safetensors import DTYPES, one_line
from dragsa.loading.stable_diffusion import ModelConfig, StableDiffusion
from dragsa.model import text

# What adapters call their tensors within a network: peft's LoRA and its kin, and diffusers' IP-Adapter.
ADAPTERS = (".base_layer.", ".lora_", "_ip.", "encoder_hid_proj.", "_lora.")


def from_pipeline(pipe: Any) -> StableDiffusion:
    """Make a model of a diffusers StableDiffusionPipeline; it holds the pipeline's own tensors, frozen.

    The pipeline stays as it is. What is changed in its tensors afterwards, in place, is changed in the model, too.
    Raises WeightsError for another architecture, scheduler or prediction, as `load` does, and for a network that holds
    an adapter, such as a LoRA that is not fused.
    """
    origin = Path(getattr(pipe, "name_or_path", "") or "pipeline")
    if absent := [name for name in (UNET, VAE, TEXT, "tokenizer") if getattr(pipe, name, None) is None]:
        raise WeightsError(f"{type(pipe).__name__}: there is no {', no '.join(absent)}; dragsa takes SD 1.5's pipeline")
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise WeightsError(f"{type(pipe).__name__}: this is Stable Diffusion XL (SDXL); dragsa takes SD 1.5")
    scheduler = getattr(getattr(pipe, "scheduler", None), "config", {})
    prediction = noise.of_scheduler(scheduler, origin, Path("scheduler"))
    unet, vae, text_model = (_shared(name, getattr(pipe, name), prediction) for name in (UNET, VAE, TEXT))
    if text_model.config.hidden_size != unet.config.context_dim:
        width, context = text_model.config.hidden_size, unet.config.context_dim
        raise WeightsError(f"the text encoder is {width} wide, but the UNet takes a context of {context}")
    try:
        encoder = text.TextEncoder(text_model, pipe.tokenizer)
    except ValueError as error:
        raise WeightsError(f"the pipeline's tokenizer: {one_line(error)}") from None
    held = {tensor.dtype for module in (unet, vae, text_model) for tensor in module.state_dict().values()}
    config = ModelConfig(
        unet=unet.config,
        vae=vae.config,
        tokens=encoder.tokens,
        path=origin,
        layout="diffusers pipeline",
        files=(),
        copy="the only one",
        stored=tuple(sorted(name for name, dtype in DTYPES.items() if dtype in held)),
        tokenizer=Path(getattr(pipe.tokenizer, "name_or_path", "")),
    )
    return StableDiffusion(unet, vae, encoder.eval(), config)


def _shared(component: str, theirs: nn.Module, prediction: str) -> Any:
    """Return our network with the tensors of theirs; prediction: what the UNet predicts."""
    state = theirs.state_dict()
    if live := next((name for name in state if any(part in f".{name}" for part in ADAPTERS)), None):
        raise WeightsError(
            f"{component}: it holds an adapter ({live}): fuse a LoRA by `pipe.fuse_lora()` and then "
            "`pipe.unload_lora_weights()`, unload any other"
        )
    own: Any = theirs.config
    settings = own.to_dict() if component == TEXT else {**own, "prediction_type": prediction}
    module = build(component, settings, Path(component))
    keys = {names.newest(component, key): key for key in module.state_dict()}
    given: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = names.newest(component, name)
        if not (component == TEXT and ours == names.POSITIONS):
            given[keys.get(ours, name)] = tensor
    return fitting.fit(module, given)
