"""A diffusers pipeline in memory: equal to its folder, its tensors shared, its adapters refused."""

from __future__ import annotations

import pytest
import tiny_models
import torch

import dragsa
from dragsa.loading import WeightsError

pytest.importorskip("diffusers")


@pytest.fixture
def pipe(folder):
    """The tiny model, loaded by diffusers and transformers."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_it_is_what_load_makes_of_the_saved_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    came, loaded = dragsa.from_pipeline(pipe), dragsa.load(tmp_path / "saved")
    assert (came.config.unet, came.config.vae) == (loaded.config.unet, loaded.config.vae)
    assert (came.config.tokens, came.config.stored, came.config.copy) == (tiny_models.TOKENS, ("F32",), "the only one")
    assert came.provenance.endswith("(diffusers pipeline)")
    context = came.embed(["a red dot", "cat"])
    assert torch.equal(context, loaded.embed(["a red dot", "cat"]))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(came.unet(z, 401, context).eps, loaded.unet(z, 401, context).eps)
    assert torch.equal(came.decode(z), loaded.decode(z))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(came.encode(picture), loaded.encode(picture))


def test_tensors_are_shared_and_the_pipeline_stays_as_it_is(pipe):
    trained = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    sd = dragsa.from_pipeline(pipe)
    for ours, theirs in ((sd.unet, pipe.unet), (sd.vae, pipe.vae), (sd.text.model, pipe.text_encoder)):
        there = {tensor.data_ptr() for tensor in theirs.parameters()}
        assert {tensor.data_ptr() for tensor in ours.parameters()} == there
        assert not ours.training and not any(parameter.requires_grad for parameter in ours.parameters())
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == trained and any(trained)


def test_a_lora_must_be_fused(pipe):
    from peft import LoraConfig

    z, context = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(1, 16, 48)
    plain = dragsa.from_pipeline(pipe).unet(z, 401, context).eps
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    for name, value in pipe.unet.named_parameters():
        if "lora_B" in name:
            value.data = 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    with pytest.raises(
        WeightsError, match=r"unet: it holds an adapter \(.*\): fuse a LoRA by `pipe.fuse_lora\(\)`"
    ) as caught:
        dragsa.from_pipeline(pipe)
    assert "pipe.unload_lora_weights()" in str(caught.value) and "\n" not in str(caught.value)
    with torch.no_grad():
        expected = pipe.unet(z, 401, context).sample
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    came = dragsa.from_pipeline(pipe).unet(z, 401, context).eps
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)
    assert (came - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prediction_type": "sample"}, "this model predicts sample"),
        ({"beta_end": 0.02}, "the scheduler's beta_end must be 0.012, came 0.02"),
    ],
)
def test_another_scheduler_is_refused(pipe, changed, says):
    pipe.scheduler.register_to_config(**changed)
    with pytest.raises(WeightsError, match=says):
        dragsa.from_pipeline(pipe)


def test_a_pipeline_that_predicts_v_is_one_here(pipe):
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    assert dragsa.from_pipeline(pipe).unet.config.prediction == "v_prediction"


def test_what_is_no_pipeline_is_refused(pipe):
    with pytest.raises(WeightsError, match="UNet2DConditionModel: there is no unet, no vae, no text_encoder"):
        dragsa.from_pipeline(pipe.unet)
    pipe.unet.register_to_config(use_linear_projection=True)
    with pytest.raises(WeightsError, match="unet: this is SD 2's UNet"):
        dragsa.from_pipeline(pipe)
