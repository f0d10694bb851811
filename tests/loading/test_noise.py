"""The noise that a model was trained on, and what it predicts, as its files tell."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from loading_checks import holds, refused
from safetensors.torch import save_file
from torch import Tensor

from dragsa import loading
from dragsa.model.unet import training_alpha_bars


def written(path, extra: dict[str, Tensor] | None = None, words: dict[str, str] | None = None, yaml: str | bytes = ""):
    """A single file with tensors and words of its own, and settings beside it."""
    save_file(tiny_models.single_file_state() | (extra or {}), path, words)
    tiny_models.write_tokenizer(path.parent)
    path.with_suffix(".yaml").unlink(missing_ok=True)
    if yaml:
        path.with_suffix(".yaml").write_bytes(yaml if isinstance(yaml, bytes) else yaml.encode())
    return path


def mark(name: str) -> dict[str, Tensor]:
    return {name: torch.tensor([])}


YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"  # as the original program says it
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
"""


def test_v_prediction_is_told_in_many_ways(tmp_path):
    path = tmp_path / "model.v1.safetensors"
    for given in (
        {"yaml": YAML},
        {"yaml": "  parameterization: v\n"},
        {"yaml": 'model: {params: {timesteps: 1000, "parameterization": "v"}}\n'},
        {"yaml": "{parameterization: v}\n"},
        {"yaml": "\ufeffparameterization: v\r\n"},
        {"yaml": YAML.encode("utf-16")},
        {"yaml": 'parameterization:\n  "v"\n'},
        {"words": {"modelspec.prediction_type": "v"}},
        {"words": {"MODELSPEC.PREDICTION_TYPE": "V-Prediction"}},
        {"words": {"modelspec.predict_key": "v", "modelspec.architecture": "stable-diffusion-v1"}},
        {"extra": mark("v_pred")},
        {"extra": mark("v_pred"), "yaml": YAML, "words": {"modelspec.prediction_type": "v"}},
    ):
        sd = loading.load(written(path, **given))
        assert sd.config.unet.prediction == sd.unet.config.prediction == "v_prediction"
        assert "v-prediction" in sd.provenance
    holds(sd)
    for words in (None, {"modelspec.prediction_type": "epsilon"}, {"modelspec.predict_key": "epsilon"}):
        assert loading.load(written(path, words=words)).config.unet.prediction == "epsilon"
    for yaml in ("parameterization: eps\n", "# {parameterization: v}\n", "x: 1  # parameterization: v\n"):
        assert loading.load(written(path, yaml=yaml)).config.unet.prediction == "epsilon"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"extra": mark("ztsnr")}, "zero terminal SNR"),
        ({"extra": mark("v_pred") | mark("ztsnr")}, "zero terminal SNR"),
        ({"yaml": "parameterization: x0\n"}, "predicts 'x0'"),
        ({"words": {"modelspec.prediction_type": "sample"}}, "predicts 'sample'"),
        ({"extra": mark("v_pred"), "yaml": "parameterization: eps\n"}, "said in two ways"),
        ({"yaml": "    linear_end: 0.02\n"}, "linear_end 0.02 in model.yaml"),
        ({"yaml": "{timesteps: 1000, linear_end: 0.02}\n"}, "linear_end 0.02 in model.yaml"),
        ({"yaml": "    scale_factor: wide\n"}, "scale_factor must be a number"),
    ],
)
def test_what_is_not_run(tmp_path, given, says):
    refused(written(tmp_path / "model.safetensors", **given), says)


def test_the_vae_scales_as_the_settings_beside_it_say(tmp_path):
    path = written(tmp_path / "model.safetensors", yaml="    scale_factor: 0.25\n")
    assert loading.load(path).vae.config.scaling_factor == 0.25


def rescaled() -> Tensor:
    """ᾱ with no signal at the end, as diffusers' `rescale_zero_terminal_snr` makes it."""
    root = training_alpha_bars().sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_schedule_of_its_own(tmp_path, dtype):
    path, beta = tmp_path / "model.safetensors", torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    own = {name: value.to(dtype) for name, value in tiny_models.schedule().items()}
    sigmas = ((1 - training_alpha_bars()) / training_alpha_bars()).sqrt()
    holds(loading.load(written(path, own)))
    for one in (sigmas, sigmas.flip(0)):  # some write theirs from the noisy end
        with pytest.warns(UserWarning, match="not used: 1 names .denoiser.sigmas"):
            loading.load(written(path, own | {"denoiser.sigmas": one.to(dtype)}))
    for name, value in (
        ("alphas_cumprod", rescaled()),
        ("alphas_cumprod", torch.cumprod(1 - beta, dim=0)),
        ("alphas_cumprod", torch.full((1000,), torch.nan)),
        ("betas", beta),
        ("betas", torch.ones(500)),
        ("denoiser.sigmas", sigmas * 1.1),
    ):
        refused(written(path, {name: value.to(dtype)}), "another noise schedule", name)


def test_v_prediction_is_diffusers(tmp_path):
    """One step of diffusers' DDIM with the network's own output, and with the noise that ours makes of it."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    folder = tiny_models.write_folder(tmp_path / "model")
    tiny_models.write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": "v_prediction"})
    sd = loading.load(folder)
    theirs: Any = UNet2DConditionModel(**{k: v for k, v in tiny_models.UNET_SETTINGS.items() if k[0] != "_"})
    theirs.eval().load_state_dict(tiny_models.unet_state())
    generator = torch.Generator().manual_seed(0)
    z, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 9, 48, generator=generator)
    for t in (1, 401, 999):
        scheduler: Any = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
            clip_sample=False,
        )  # fmt: skip
        scheduler.set_timesteps(50)
        with torch.no_grad():
            v, eps = theirs(z, t, context).sample, sd.unet(z, t, context).eps
            expected = scheduler.step(v, t, z).prev_sample
        scheduler.register_to_config(prediction_type="epsilon")
        came = scheduler.step(eps, t, z).prev_sample
        assert (came - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (eps - v).abs().max() > 0.1
    mixed = sd.unet(z, torch.tensor([401, 1]), context).eps  # each row at its own timestep
    torch.testing.assert_close(mixed[:1], sd.unet(z[:1], 401, context[:1]).eps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1:], sd.unet(z[1:], 1, context[1:]).eps, rtol=1e-4, atol=1e-4)


def test_a_model_of_v_is_edited(tmp_path):
    """Inversion and sampling take the noise from it, and bring a latent back."""
    import dragsa

    folder = tiny_models.write_folder(tmp_path / "model")
    tiny_models.write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": "v_prediction"})
    sd, schedule = loading.load(folder), dragsa.Schedule(50)
    z, context = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), sd.embed([""])
    up = dragsa.invert(sd.unet, z, context, schedule, steps=3)
    down = dragsa.sample(sd.unet, up[-1], context, schedule, start=3)
    assert (down[-1] - z).abs().max() < 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"use_flow_sigmas": True},
        {"prediction_type": "flow_prediction"},
    ],
)
def test_models_of_flows_are_refused(tmp_path, settings):
    folder = tiny_models.write_folder(tmp_path / "model")
    tiny_models.write_json(folder / "scheduler/scheduler_config.json", settings)
    refused(folder, "flow")
