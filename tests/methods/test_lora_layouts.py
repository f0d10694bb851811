"""LoRA files of every program's layout, of the UNet and the text encoder, against diffusers and PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from tiny_loras import drawn
from torch import Tensor

from dragsa import loading
from dragsa.loading import LoRA, WeightsError, names
from dragsa.methods import lora

Layers = dict[str, tuple[int, ...]]
UNET_LAYERS: Layers = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_v": (64, 48),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": (64, 64),
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj": (512, 64),
    "up_blocks.3.attentions.0.transformer_blocks.0.ff.net.2": (32, 128),
    "down_blocks.1.attentions.0.proj_in": (32, 32, 1, 1),
    "up_blocks.2.attentions.0.proj_out": (32, 32, 1, 1),
}
CONVOLUTIONS: Layers = {
    "down_blocks.0.resnets.1.conv1": (32, 32, 3, 3),
    "mid_block.resnets.0.conv2": (64, 64, 3, 3),
    "up_blocks.2.resnets.0.conv_shortcut": (32, 96, 1, 1),
    "down_blocks.1.resnets.0.time_emb_proj": (32, 128),
    "down_blocks.0.downsamplers.0.conv": (32, 32, 3, 3),
    "up_blocks.0.upsamplers.0.conv": (64, 64, 3, 3),
}
ENDS: Layers = {"conv_in": (32, 4, 3, 3), "conv_out": (4, 32, 3, 3), "time_embedding.linear_1": (128, 32)}
TEXT_LAYERS: Layers = {
    "encoder.layers.0.self_attn.q_proj": (48, 48),
    "encoder.layers.1.self_attn.out_proj": (48, 48),
    "encoder.layers.1.mlp.fc1": (64, 48),
    "encoder.layers.0.mlp.fc2": (48, 64),
}


def factors(shape: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    """A layer's down and up: both convolutions for a convolution."""
    ones = (1,) * (len(shape) - 2)
    n = sum(shape) + rank
    return 0.2 * drawn(n, rank, *shape[1:]), 0.2 * drawn(n + 1, shape[0], rank, *ones)


def change(shape: tuple[int, ...], rank: int, scale: float) -> Tensor:
    down, up = factors(shape, rank)
    return scale * (up.flatten(1) @ down.flatten(1)).view(shape)


Spell = Callable[[str, str, str], str]  # network, layer and part (down or up) -> a tensor's name


def kohya(network: str, layer: str, part: str) -> str:
    start = "lora_unet_" if network == "unet" else "lora_te_text_model_"
    return f"{start}{layer.replace('.', '_')}.{'alpha' if part == 'alpha' else f'lora_{part}.weight'}"


def newest(network: str, layer: str, part: str) -> str:
    start = "unet." if network == "unet" else "text_encoder.text_model."
    return f"{start}{layer}.lora_{'A' if part == 'down' else 'B'}.weight"


def older(network: str, layer: str, part: str) -> str:
    start = "unet." if network == "unet" else "text_encoder.text_model."
    return f"{start}{layer}.lora{'_linear_layer' if network != 'unet' else ''}.{part}.weight"


def oldest(network: str, layer: str, part: str) -> str:
    """Where diffusers kept attention's changes in processors of their own; all else as a little later."""
    before, at, linear = layer.rpartition(".to_")
    if network == "unet":
        name = linear.removesuffix(".0")
        return f"unet.{before}.processor.to_{name}_lora.{part}.weight" if at else older(network, layer, part)
    before, at, linear = layer.rpartition(".self_attn.")
    name = linear.removesuffix("_proj")
    start = f"text_encoder.text_model.{before}.self_attn"
    return f"{start}.to_{name}_lora.{part}.weight" if at else older(network, layer, part)


def adapters(network: str, layer: str, part: str) -> str:
    return f"base_model.model.{layer}.lora_{'A' if part == 'down' else 'B'}.default_0.weight"


def comfy(network: str, layer: str, part: str) -> str:
    theirs = names.to_single_file("unet", f"{layer}.weight").removeprefix("model.").removesuffix(".weight")
    return f"{theirs}.lora_{'A' if part == 'down' else 'B'}.weight"


def original(network: str, layer: str, part: str) -> str:
    theirs = names.to_single_file("unet", f"{layer}.weight").removesuffix(".weight")
    flat = theirs.removeprefix("model.diffusion_model.").replace(".", "_")
    return f"lora_unet_{flat}.lora_{part}.weight"


def state(spell: Spell, network: str, layers: Layers, ranks: dict[str, int] | None = None) -> Any:
    made: dict[str, Tensor] = {}
    for layer, shape in layers.items():
        down, up = factors(shape, (ranks or {}).get(layer, 4))
        made |= {spell(network, layer, "down"): down, spell(network, layer, "up"): up}
    return made


def model(tmp_path: Path) -> loading.StableDiffusion:
    return loading.load(tiny_models.write_folder(tmp_path / "model"))


def weights(sd: loading.StableDiffusion) -> dict[str, Tensor]:
    text = {name.removeprefix("text_model."): value for name, value in sd.text.model.state_dict().items()}
    return {**sd.unet.state_dict(), **text}


ALL = UNET_LAYERS | CONVOLUTIONS | ENDS


@pytest.mark.parametrize(
    "spell", [kohya, newest, older, oldest, adapters, comfy, original], ids=lambda spell: spell.__name__
)
def test_every_layout_is_one_lora(tmp_path, spell):
    sd, layers = model(tmp_path), dict(ALL)
    tensors = state(spell, "unet", layers)
    if spell not in (comfy, original):
        layers, tensors = layers | TEXT_LAYERS, tensors | state(spell, "text_encoder", TEXT_LAYERS)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = loading.read_lora(tmp_path / "lora.safetensors")
    changed, plain = weights(lora.apply_to(sd, found, 0.5)), weights(sd)
    for layer, shape in layers.items():
        expected = plain[f"{layer}.weight"] + change(shape, 4, 0.5)
        torch.testing.assert_close(changed[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-6)
    assert sum(not torch.equal(changed[name], value) for name, value in plain.items()) == len(layers)
    assert all(torch.equal(value, plain[name]) for name, value in weights(sd).items())


def test_alpha_and_rank_are_a_layers_own(tmp_path):
    sd, layers = model(tmp_path), {**UNET_LAYERS, **TEXT_LAYERS}
    ranks = {layer: 1 + n % 5 for n, layer in enumerate(layers)}
    tensors: dict[str, Tensor] = {}
    scales = {}
    for n, (layer, shape) in enumerate(layers.items()):
        network = "text_encoder" if layer in TEXT_LAYERS else "unet"
        tensors |= state(kohya, network, {layer: shape}, ranks)
        scales[layer] = 1.0
        if n % 3:
            tensors[kohya(network, layer, "alpha")] = torch.tensor(float(n))
            scales[layer] = n / ranks[layer]
    save_file(tensors, tmp_path / "lora.safetensors")
    found = loading.read_lora(tmp_path / "lora.safetensors")
    assert found.rank == 5 and found.text is not None and len(found.text.down) == 4
    changed, plain = weights(lora.apply_to(sd, found)), weights(sd)
    for layer, shape in layers.items():
        expected = plain[f"{layer}.weight"] + change(shape, ranks[layer], scales[layer])
        torch.testing.assert_close(changed[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.float64])
def test_alpha_may_be_a_whole_number(tmp_path, dtype):
    tensors = state(kohya, "unet", UNET_LAYERS)
    alphas = {name.replace("lora_down.weight", "alpha"): torch.tensor(8, dtype=dtype) for name in tensors}
    save_file(tensors | {name: alpha for name, alpha in alphas.items() if name.endswith("alpha")}, tmp_path / "lora")
    found = loading.read_lora(tmp_path / "lora")
    for layer, shape in UNET_LAYERS.items():
        torch.testing.assert_close(found.up[layer], 2 * factors(shape, 4)[1].flatten(1))


def test_a_convolution_in_three_factors(tmp_path):
    """LoCon's: 1×1 to the rank, 3×3 among the rank, 1×1 to the outputs, as three convolutions one behind the other."""
    layer = "down_blocks.0.resnets.1.conv1"
    down, mid, up = drawn(1, 3, 32, 1, 1), drawn(2, 3, 3, 3, 3), drawn(3, 32, 3, 1, 1)
    start = f"lora_unet_{layer.replace('.', '_')}"
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    save_file({f"{start}.{part}": value for part, value in parts.items()}, tmp_path / "lora.safetensors")
    found = loading.read_lora(tmp_path / "lora.safetensors")
    x = drawn(4, 1, 32, 5, 7)
    expected = torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up) * 2
    kernel = (found.up[layer] @ found.down[layer].flatten(1)).view(32, 32, 3, 3)
    torch.testing.assert_close(torch.conv2d(x, kernel, padding=1), expected, rtol=1e-4, atol=1e-3)


def test_a_lora_of_both_comes_back_from_a_file_of_ours(tmp_path):
    save_file(state(kohya, "unet", ALL) | state(kohya, "text_encoder", TEXT_LAYERS), tmp_path / "lora.safetensors")
    found = loading.read_lora(tmp_path / "lora.safetensors")
    loading.save_lora(found, tmp_path / "ours.safetensors")
    again = loading.read_lora(tmp_path / "ours.safetensors")
    assert found.text is not None and again.text is not None
    for one, other in ((found, again), (found.text, again.text)):
        assert one.down.keys() == other.down.keys()
        assert all(torch.equal(one.down[layer], other.down[layer]) for layer in one.down)
        assert all(torch.equal(one.up[layer], other.up[layer]) for layer in one.down)


def test_several_add_up_and_are_told(tmp_path):
    sd, layer = model(tmp_path), next(iter(UNET_LAYERS))
    one = LoRA({layer: drawn(1, 2, 32)}, {layer: drawn(2, 32, 2)}, notes=("clip skip 2 is said by ss_clip_skip",))
    both = lora.apply_to(lora.apply_to(sd, one, 0.5, "one"), one, -0.25)
    expected = sd.unet.get_parameter(f"{layer}.weight") + 0.25 * one.up[layer] @ one.down[layer]
    torch.testing.assert_close(both.unet.get_parameter(f"{layer}.weight"), expected)
    assert both.config.changes == ("LoRA one at 0.5", "LoRA of rank 2 at -0.25") and sd.config.changes == ()
    assert both.config.notes == one.notes * 2 and "LoRA one at 0.5" in both.provenance


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", (4, 4), "a LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", (4, 4), "a LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", (4,), "a DoRA"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 4), "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", (4, 4), "SDXL"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", (4, 4), "Flux"),
        ("lora_unet_down_blocks_9_resnets_0_conv1.lora_down.weight", (4, 4), "1 unknown tensors (lora_unet_down_bl"),
        ("lora_unet_conv_in.diff_b", (4,), "1 unknown tensors (lora_unet_conv_in.diff_b"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, name, shape, says):
    save_file(state(kohya, "unet", UNET_LAYERS) | {name: torch.zeros(shape)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError) as caught:
        loading.read_lora(tmp_path / "other.safetensors")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "says"), [(2048, "SDXL"), (1024, "Stable Diffusion 2")])
def test_other_models_loras_are_told_by_their_context(tmp_path, width, says):
    start = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{start}.lora_down.weight": torch.zeros(4, width), f"{start}.lora_up.weight": torch.zeros(640, 4)}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=says):
        loading.read_lora(tmp_path / "other.safetensors")
    save_file(
        state(kohya, "unet", UNET_LAYERS), tmp_path / "xl.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"}
    )
    with pytest.raises(WeightsError, match="SDXL"):
        loading.read_lora(tmp_path / "xl.safetensors")


def test_broken_factors(tmp_path):
    layer, shape = next(iter(UNET_LAYERS.items()))
    down, up = factors(shape, 4)
    start = f"lora_unet_{layer.replace('.', '_')}"
    for parts, says in (
        ({"lora_down.weight": down * torch.nan, "lora_up.weight": up}, "is NaN or infinite"),
        ({"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.ones(2)}, "α of .* must be one number"),
        ({"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(torch.inf)}, "is NaN or infinite"),
        ({"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": torch.ones(3, 4, 3, 3)}, "must be"),
        ({"lora_down.weight": down.int(), "lora_up.weight": up}, "not floats"),
        ({"lora_down.weight": torch.zeros(0, 32), "lora_up.weight": torch.zeros(32, 0)}, "must be"),
        ({"lora_A.default.weight": down, "lora_A.more.weight": down + 1, "lora_up.weight": up}, "two changes of"),
        ({"alpha": torch.tensor(1.0)}, "without their down factor"),
    ):
        save_file({f"{start}.{part}": value for part, value in parts.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(WeightsError, match=says):
            loading.read_lora(tmp_path / "bad.safetensors")


def test_pefts_own_folder_brings_its_settings(tmp_path):
    layer, shape = next(iter(UNET_LAYERS.items()))
    save_file(state(adapters, "unet", {layer: shape}), tmp_path / "adapter_model.safetensors")
    for settings, scale in (
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4}, 2.0),
        ({"r": 8, "rank_pattern": {"to_q": 4}, "lora_alpha": 8, "alpha_pattern": {".*to_[qk]": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
    ):
        tiny_models.write_json(tmp_path / "adapter_config.json", settings)
        up = loading.read_lora(tmp_path / "adapter_model.safetensors").up[layer]
        torch.testing.assert_close(up, scale * factors(shape, 4)[1])
    for settings, says in (
        ({"r": 8}, "has rank 4, and the settings say 8"),
        ({"r": 4, "lora_alpha": "many"}, "must be a number, came 'many'"),
        ({"r": 4, "alpha_pattern": {"(": 2}}, "no regular expression"),
        ({"r": 4, "alpha_pattern": [1]}, "must be a JSON object"),
        ({"r": 4, "use_dora": True}, "a DoRA"),
        ({"r": 4, "init_lora_weights": "pissa_niter_4"}, "begun by pissa_niter_4"),
    ):
        tiny_models.write_json(tmp_path / "adapter_config.json", settings)
        with pytest.raises(WeightsError, match=says):
            loading.read_lora(tmp_path / "adapter_model.safetensors")


def test_clip_skip_leaves_out_a_loras_last_layers(tmp_path):
    folder = tiny_models.write_folder(tmp_path / "model")
    save_file(state(kohya, "text_encoder", TEXT_LAYERS), tmp_path / "lora.safetensors")
    sd = lora.apply_to(loading.load(folder, clip_skip=2), loading.read_lora(tmp_path / "lora.safetensors"))
    changed = weights(sd)
    assert not any("layers.1" in name for name in changed)
    plain = tiny_models.text_state()["encoder.layers.0.mlp.fc2.weight"]
    torch.testing.assert_close(changed["encoder.layers.0.mlp.fc2.weight"], plain + change((48, 64), 4, 1.0))


# --- diffusers and PEFT, live -----------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path):
    """diffusers' pipeline with the tiny UNet, text encoder and tokenizer."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from transformers import CLIPTextConfig, CLIPTextModel

    from dragsa.loading.tokenizer import load_tokenizer

    unet = diffusers.UNet2DConditionModel(**{k: v for k, v in tiny_models.UNET_SETTINGS.items() if k[0] != "_"})
    unet.load_state_dict(tiny_models.unet_state())
    encoder = CLIPTextModel(CLIPTextConfig(**tiny_models.TEXT_SETTINGS)).eval()
    names = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
    encoder.load_state_dict({names[name]: value for name, value in tiny_models.text_state().items() if name in names})
    tiny_models.write_tokenizer(tmp_path / "tokenizer")
    parts = dict.fromkeys(("vae", "safety_checker", "feature_extractor"))
    return diffusers.StableDiffusionPipeline(
        unet=unet.eval(), text_encoder=encoder, tokenizer=load_tokenizer(tmp_path / "tokenizer"),
        scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False, **parts,
    )  # fmt: skip


@torch.no_grad()
def agree(sd: loading.StableDiffusion, pipe: Any) -> None:
    """Noise prediction and text embedding, to 1e-4 of the largest value."""
    z, t, context = drawn(1, 2, 4, 8, 8), torch.tensor([41, 801]), drawn(2, 2, 9, 48)
    ids = pipe.tokenizer(["a red cat"], padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    for came, expected in (
        (sd.unet(z, t, context).eps, pipe.unet(z, t, context).sample),
        (sd.embed(["a red cat"]), pipe.text_encoder(ids)[0]),
    ):
        assert (came - expected).abs().max() < 1e-4 * expected.abs().max()


def kohya_with_alpha(alpha: float) -> dict[str, Tensor]:
    made = state(kohya, "unet", UNET_LAYERS) | state(kohya, "text_encoder", TEXT_LAYERS)
    for name in [name for name in made if name.endswith("lora_down.weight")]:
        made[name.replace("lora_down.weight", "alpha")] = torch.tensor(alpha)
    return made


@pytest.mark.parametrize(
    "tensors",
    [
        lambda: kohya_with_alpha(4.0),
        lambda: kohya_with_alpha(1.0),
        lambda: state(kohya, "unet", UNET_LAYERS | CONVOLUTIONS),
        lambda: state(newest, "unet", UNET_LAYERS) | state(newest, "text_encoder", TEXT_LAYERS),
        lambda: state(older, "unet", UNET_LAYERS),
    ],
    ids=["kohya", "kohya, a quarter", "kohya's convolutions", "newest", "older"],
)
def test_diffusers_gives_the_same_for_the_same_file(pipe, tmp_path, tensors):
    save_file(tensors(), tmp_path / "lora.safetensors")
    sd, found = model(tmp_path), loading.read_lora(tmp_path / "lora.safetensors")
    agree(sd, pipe)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    z, t, context = drawn(1, 2, 4, 8, 8), torch.tensor([41, 801]), drawn(2, 2, 9, 48)
    changed = lora.apply_to(sd, found)
    assert (changed.unet(z, t, context).eps - sd.unet(z, t, context).eps).abs().max() > 0.01
    agree(changed, pipe)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 1, r"mid_block\..*conv\d": 2, "net.0.proj": 16}},
        {"r": 8, "lora_alpha": 4, "rank_pattern": {r".*to_(q|v)": 2, "proj_in": 3}},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {r"attn\d\.to_[qv]": 3}},
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"^to_q": 1, "o_v": 100}},
    ],
    ids=["alpha", "rank", "both", "rslora"],
)
def test_peft_gives_the_same_for_its_patterns(pipe, tmp_path, settings):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    targets = ["to_q", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "proj_out", "conv1"]
    config = LoraConfig(**settings, target_modules=targets)
    pipe.unet.add_adapter(config)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:  # which begin at zero
            parameter.data = 0.1 * drawn(len(name), *parameter.shape)
    told = {**config.to_dict(), "target_modules": targets}
    pipe.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(pipe.unet),
        weight_name="theirs.safetensors",
        unet_lora_adapter_metadata=told,
    )
    sd = model(tmp_path)
    agree(lora.apply_to(sd, loading.read_lora(tmp_path / "theirs.safetensors")), pipe)
    # And PEFT's own two files.
    tensors = {f"base_model.model.{name}": value for name, value in get_peft_model_state_dict(pipe.unet).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config.to_dict(), default=list))
    agree(lora.apply_to(sd, loading.read_lora(tmp_path / "adapter_model.safetensors")), pipe)
