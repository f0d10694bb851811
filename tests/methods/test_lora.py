"""LoRA: another UNet and the first untouched, training on one picture, diffusers live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors import safe_open
from tiny_loras import CROSS, LAYER, drawn, filled, tiny_unet
from torch import Tensor

from dragsa import loading
from dragsa.config import LoRAConfig
from dragsa.loading import LoRA, WeightsError
from dragsa.methods import lora
from dragsa.model.unet import UNet, UNetOutput


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return drawn(1, 2, 4, 8, 8), torch.tensor([41, 801]), drawn(2, 2, 9, 48)


def test_layers_are_q_k_v_and_out_of_every_attention():
    layers = lora.attention_layers(tiny_unet())
    assert len(layers) == 16 * 2 * 4
    assert layers[LAYER] == (32, 32) and layers[CROSS] == (32, 48)
    assert f"{LAYER[:-1]}out.0" in layers and not any("ff" in name or "proj" in name for name in layers)


def test_a_new_lora_changes_no_bit():
    unet = tiny_unet()
    eps, plain = lora.apply(unet, lora.start(unet)).forward(*inputs()).eps, unet(*inputs()).eps
    assert eps is not None and torch.equal(eps, plain)


def test_another_unet_that_shares_the_rest():
    unet = tiny_unet()
    before, plain = {name: x.clone() for name, x in unet.state_dict().items()}, unet(*inputs()).eps
    one = LoRA({LAYER: drawn(3, 2, 32)}, {LAYER: drawn(4, 32, 2)})
    changed = lora.apply(unet, one, strength=0.5)
    weights, given = changed.state_dict(), unet.state_dict()
    expected = before[f"{LAYER}.weight"] + 0.5 * one.up[LAYER] @ one.down[LAYER]
    assert torch.equal(weights[f"{LAYER}.weight"], expected)
    assert [name for name, x in weights.items() if x.data_ptr() != given[name].data_ptr()] == [f"{LAYER}.weight"]
    assert not any(parameter.requires_grad for parameter in changed.parameters()) and not changed.training
    assert not torch.allclose(changed(*inputs()).eps, plain, atol=1e-3)
    assert all(torch.equal(x, before[name]) for name, x in unet.state_dict().items())
    assert torch.equal(unet(*inputs()).eps, plain)


def test_the_noise_loss_is_of_the_forward_process():
    seen: dict[str, Any] = {}

    def denoiser(z, t, context, *, attention=None):
        seen.update(z=z, t=t, context=context)
        return UNetOutput(torch.zeros_like(z), {})

    z_0, noise, context = drawn(1, 1, 4, 2, 2), drawn(2, 3, 4, 2, 2), drawn(3, 1, 5, 8)
    loss = lora.noise_loss(denoiser, z_0, context, torch.tensor([0, 500, 999]), noise)
    assert loss.item() == pytest.approx(noise.square().mean().item())
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    for row, t in enumerate((0, 500, 999)):
        signal = (1 - beta[: t + 1]).prod()
        expected = signal.sqrt() * z_0[0] + (1 - signal).sqrt() * noise[row]
        assert torch.allclose(seen["z"][row], expected.float(), atol=1e-5)
    assert seen["context"].shape == (3, 5, 8)


def test_training_lowers_the_loss_of_this_picture_and_leaves_the_unet():
    unet, z_0, context = tiny_unet(), drawn(5, 1, 4, 8, 8), drawn(6, 1, 9, 48)
    before = {name: x.clone() for name, x in unet.state_dict().items()}
    calls = []
    trained = lora.adapt(
        unet, z_0, context, LoRAConfig(steps=20, learning_rate=5e-3, batch=3), progress=lambda *at: calls.append(at)
    )
    t, noise = torch.arange(30, 1000, 120), drawn(7, 9, 4, 8, 8)
    plain, learnt = (
        lora.noise_loss(net, z_0, context, t, noise).item() for net in (unet, lora.apply(unet, trained.lora))
    )
    assert learnt < 0.9 * plain
    assert trained.losses.shape == (20,) and calls[0] == (1, 20) and calls[-1] == (20, 20)
    assert trained.lora.rank == 16 and len(trained.lora.down) == 128
    assert all(torch.equal(x, before[name]) for name, x in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_training_runs_no_pass_of_the_network_that_others_may_be_using():
    """Its weights would be others for the time of a pass; what shares its tensors is trained in its place."""
    unet, passes = tiny_unet(), []
    handle = unet.conv_in.register_forward_pre_hook(lambda *given: passes.append(given))
    trained = lora.adapt(unet, drawn(5, 1, 4, 8, 8), drawn(6, 1, 9, 48), LoRAConfig(steps=2, batch=1))
    handle.remove()
    assert not passes and len(trained.losses) == 2
    shared = {value.data_ptr() for value in unet.state_dict().values()}
    assert sum(value.data_ptr() in shared for value in trained.unet.state_dict().values()) == len(shared) - 128


def test_the_first_step_is_adamws():
    unet, z_0, context = tiny_unet(), drawn(5, 1, 4, 8, 8), drawn(6, 1, 9, 48)
    begun, trained = (
        lora.start(unet, 3, seed=8),
        lora.adapt(unet, z_0, context, LoRAConfig(steps=1, rank=3), seed=8).lora,
    )
    for name, down in trained.down.items():  # up is zero, and with it down's gradient: there is the decay alone
        assert torch.allclose(down, begun.down[name] * (1 - 5e-4 * 1e-2), rtol=1e-6, atol=0)
        if name.endswith(("to_v", "to_out.0")):  # the gradient of q and k may vanish, where there is one token
            assert trained.up[name].abs().median().item() == pytest.approx(
                5e-4, rel=0.01
            )  # whole steps, of either sign
            assert trained.up[name].min() < 0 < trained.up[name].max()


def test_the_seed_decides():
    unet, z_0, context = tiny_unet(), drawn(5, 1, 4, 8, 8), drawn(6, 1, 9, 48)
    one, again, other = (lora.adapt(unet, z_0, context, LoRAConfig(steps=2, batch=1), seed) for seed in (1, 1, 2))
    assert torch.equal(one.losses, again.losses) and torch.equal(one.lora.up[LAYER], again.lora.up[LAYER])
    assert not torch.equal(one.losses, other.losses)


def test_a_picture_gets_its_lora_and_the_unet_under_it():
    unet, z_0, context = tiny_unet(), drawn(5, 1, 4, 8, 8), drawn(6, 1, 9, 48)
    config = LoRAConfig(steps=2, batch=1, rank=2)
    trained, adapted = lora.adapt(unet, z_0, context, config, 7), lora.adapt(unet, z_0, context, config, 7)
    assert torch.equal(adapted.losses, trained.losses)
    assert torch.equal(adapted.unet(*inputs()).eps, lora.apply(unet, trained.lora)(*inputs()).eps)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": LoRAConfig(steps=0)}, "steps must be a whole number from 1, came 0"),
        ({"config": LoRAConfig(rank=1.5)}, "rank must be a whole number"),  # type: ignore[arg-type]
        ({"config": LoRAConfig(batch=True)}, "batch must be a whole number"),
        ({"z_0": torch.zeros(2, 4, 8, 8)}, r"latent and context must be .* came \(2, 4, 8, 8\)"),
    ],
)
def test_what_cannot_be_trained(change, says):
    given = {"z_0": torch.zeros(1, 4, 8, 8), "context": torch.zeros(1, 9, 48)} | change
    with pytest.raises(ValueError, match=says):
        lora.adapt(tiny_unet(), **given)


def test_a_lora_of_another_unet_is_refused():
    unet = tiny_unet()
    for name, inputs_, says in ((LAYER, 64, r"\[32, 64\] instead of \[32, 32\]"), ("mid_block.x", 32, "mid_block.x")):
        with pytest.raises(WeightsError, match=f"the LoRA does not fit the model: .*{says}"):
            lora.apply(unet, LoRA({name: torch.zeros(2, inputs_)}, {name: torch.zeros(32, 2)}))
    with pytest.raises(ValueError, match="one alone for 1 layers"):
        LoRA({LAYER: torch.zeros(2, 32)}, {})


# --- diffusers, live --------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe():
    """diffusers' pipeline with the tiny UNet, and nothing else that these files concern."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    unet = diffusers.UNet2DConditionModel(**{k: v for k, v in tiny_models.UNET_SETTINGS.items() if k[0] != "_"})
    unet.load_state_dict(tiny_models.unet_state())
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return diffusers.StableDiffusionPipeline(
        unet=unet.eval(), scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False, **parts
    )


@torch.no_grad()
def agree(unet: UNet, pipe) -> None:
    came, expected = unet(*inputs()).eps, pipe.unet(*inputs()).sample
    assert (came - expected).abs().max() < 1e-4 * expected.abs().max()


def test_diffusers_loads_a_file_of_ours(pipe, tmp_path):
    unet = tiny_unet()
    made = filled(unet)
    loading.save_lora(made, tmp_path / "ours.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    changed = lora.apply(unet, made)
    assert (changed(*inputs()).eps - unet(*inputs()).eps).abs().max() > 0.05
    agree(changed, pipe)


@pytest.mark.parametrize("how", ["pipeline", "pipeline, older names", "unet"])
def test_a_file_of_diffusers_loads_in_ours(pipe, tmp_path: Path, how):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    settings = LoraConfig(r=4, lora_alpha=4 if "older" in how else 10, target_modules=list(lora.LINEAR))
    pipe.unet.add_adapter(settings)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:  # which begin at zero
            parameter.data = 0.1 * drawn(len(name), *parameter.shape)
    state = get_peft_model_state_dict(pipe.unet)
    if how == "unet":
        pipe.unet.save_lora_adapter(tmp_path, weight_name="theirs.safetensors")
    elif how == "pipeline":
        metadata = {**settings.to_dict(), "target_modules": list(lora.LINEAR)}
        pipe.save_lora_weights(tmp_path, state, weight_name="theirs.safetensors", unet_lora_adapter_metadata=metadata)
    else:
        pipe.save_lora_weights(tmp_path, convert_state_dict_to_diffusers(state), weight_name="theirs.safetensors")
    with safe_open(tmp_path / "theirs.safetensors", framework="pt") as file:
        assert any(("lora.down" if "older" in how else "lora_A") in name for name in file.keys())  # noqa: SIM118
    found = loading.read_lora(tmp_path / "theirs.safetensors")
    assert len(found.down) == 128 and found.rank == 4
    agree(lora.apply(tiny_unet(), found), pipe)
