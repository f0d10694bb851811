"""A folder that diffusers wrote, at odd widths, and what dragsa computes from it: against diffusers, live."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from torch import Tensor

from dragsa import loading

pytest.importorskip("diffusers")

TOLERANCE = 5e-4  # relative to the largest value
CONTEXT = 40
# What feeds the residual stream is turned down, so that variances are small and a norm's epsilon of 1e-5 in place of
# 1e-6 would show.
QUIET = ("conv_in.", ".conv2.", ".proj_in.", ".proj_out.")


class Peers(NamedTuple):
    unet: Any
    vae: Any
    text: Any


def agree(came: Tensor, expected: Tensor) -> None:
    assert came.shape == expected.shape
    error = (came - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"{error:.1e}"


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def peers() -> Peers:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 96, 96),
        cross_attention_dim=CONTEXT,
        attention_head_dim=(2, 4, 8, 8),
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(24, 48, 72, 72),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=12,
    )
    settings = tiny_models.TEXT_SETTINGS | {"hidden_size": CONTEXT, "num_attention_heads": 5}
    text = CLIPTextModel(CLIPTextConfig(**settings))
    networks: tuple[Any, ...] = (unet, vae, text)
    for network in networks:
        for name, value in network.named_parameters():
            if value.ndim == 1:  # norms and biases begin at exactly 1 and 0, where a mistake can hide
                value.data += 0.1 * drawn(len(name), *value.shape)
            if network is not text and any(layer in name for layer in QUIET):
                value.data *= 0.02
        network.eval().requires_grad_(False)
    return Peers(unet, vae, text)


@pytest.fixture(scope="module")
def sd(peers, tmp_path_factory) -> loading.StableDiffusion:
    folder: Path = tmp_path_factory.mktemp("written by diffusers")
    peers.unet.save_pretrained(folder / "unet")
    peers.vae.save_pretrained(folder / "vae")
    peers.text.save_pretrained(folder / "text_encoder")
    tiny_models.write_tokenizer(folder / "tokenizer")
    return loading.load(folder)


@pytest.mark.parametrize("grid", [(16, 16), (20, 28)], ids=["16x16", "20x28"])
@pytest.mark.parametrize("t", [1, 401, 981])
def test_noise_prediction_and_its_gradient(sd, peers, t, grid):
    z, context = drawn(1, 2, 4, *grid), drawn(2, 2, 11, CONTEXT)
    weight = drawn(3, 2, 4, *grid)

    def prediction_and_gradient(predict) -> tuple[Tensor, Tensor]:
        at = z.clone().requires_grad_()
        eps = predict(at)
        (gradient,) = torch.autograd.grad((eps * weight).sum(), at)
        return eps.detach(), gradient

    eps, gradient = prediction_and_gradient(lambda at: sd.unet(at, t, context).eps)
    expected_eps, expected_gradient = prediction_and_gradient(lambda at: peers.unet(at, t, context).sample)
    agree(eps, expected_eps)
    agree(gradient, expected_gradient)


@pytest.mark.parametrize("size", [(128, 128), (160, 224)], ids=["128x128", "160x224"])
def test_vae_both_ways(sd, peers, size):
    picture = drawn(4, 1, 3, *size).clamp(-1, 1)
    z = sd.encode(picture)
    scale = peers.vae.config.scaling_factor
    agree(z, peers.vae.encode(picture).latent_dist.mean * scale)
    latent = drawn(5, 1, 4, size[0] // 8, size[1] // 8)
    agree(sd.decode(latent), peers.vae.decode(latent / scale).sample)


def test_text(sd, peers):
    prompts = ["a red dot", "", "cat"]
    ids = sd.text.tokenizer(prompts, padding="max_length", max_length=tiny_models.TOKENS, return_tensors="pt")
    agree(sd.embed(prompts), peers.text(ids["input_ids"]).last_hidden_state)
