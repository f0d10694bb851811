"""Weights in every layout that is met, what is refused, and how strictly."""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dragsa.config import VAEConfig
from dragsa.loading import published, weights
from dragsa.loading.weights import WeightsError
from dragsa.model.unet import UNet
from dragsa.model.vae import VAE

INVENTORY = json.loads((Path(__file__).parents[1] / "golden" / "sd15_single_file_tensors.json").read_text())

# Pairs written by hand, component by component, from the two programs' own listings.
SPOTS = {
    "time_embed.0.weight": "time_embedding.linear_1.weight",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.2.0.in_layers.2.weight": "down_blocks.0.resnets.1.conv1.weight",
    "input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight": (
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"
    ),
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.8.1.proj_in.weight": "down_blocks.2.attentions.1.proj_in.weight",
    "input_blocks.9.0.op.bias": "down_blocks.2.downsamplers.0.conv.bias",
    "input_blocks.11.0.emb_layers.1.weight": "down_blocks.3.resnets.1.time_emb_proj.weight",
    "middle_block.0.out_layers.0.weight": "mid_block.resnets.0.norm2.weight",
    "middle_block.1.norm.weight": "mid_block.attentions.0.norm.weight",
    "middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
    "output_blocks.0.0.in_layers.0.weight": "up_blocks.0.resnets.0.norm1.weight",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.3.1.proj_out.weight": "up_blocks.1.attentions.0.proj_out.weight",
    "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
    "output_blocks.8.2.conv.bias": "up_blocks.2.upsamplers.0.conv.bias",
    "output_blocks.9.1.transformer_blocks.0.ff.net.0.proj.weight": (
        "up_blocks.3.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    ),
    "output_blocks.11.0.skip_connection.bias": "up_blocks.3.resnets.2.conv_shortcut.bias",
    "out.0.weight": "conv_norm_out.weight",
    "out.2.bias": "conv_out.bias",
}
VAE_SPOTS = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.0.block.1.norm2.weight": "encoder.down_blocks.0.resnets.1.norm2.weight",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
    "encoder.mid.block_1.conv1.weight": "encoder.mid_block.resnets.0.conv1.weight",
    "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "encoder.norm_out.bias": "encoder.conv_norm_out.bias",
    "decoder.mid.attn_1.norm.weight": "decoder.mid_block.attentions.0.group_norm.weight",
    "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.mid.block_2.norm1.weight": "decoder.mid_block.resnets.1.norm1.weight",
    "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
    "decoder.up.3.block.2.conv2.weight": "decoder.up_blocks.0.resnets.2.conv2.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "quant_conv.weight": "quant_conv.weight",
    "post_quant_conv.bias": "post_quant_conv.bias",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.write_folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return tiny_models.write_single_file(tmp_path_factory.mktemp("single") / "model.safetensors")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Whoever reaches for the network, or for this machine's own cache of tokenizers, fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def relinked(folder: Path, target: Path, without: str = "") -> Path:
    """A folder of links to the model's files, all but `without`, so that a test can change one of them."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and not (without and name.startswith(without)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(file)
    return target


def refused(path: Path, *words: str) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(path)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    return message


def holds(sd: weights.StableDiffusion, dtype: torch.dtype = torch.float32, unet_seed: int = 1) -> None:
    """The model holds the very values that were written, in that type, frozen."""
    expected = [(sd.unet, tiny_models.unet_state(unet_seed)), (sd.vae, tiny_models.vae_state())]
    text = {name: value for name, value in tiny_models.text_state().items() if "position_ids" not in name}
    expected.append((sd.text.model, text))
    for module, state in expected:
        loaded = {name.removeprefix("text_model."): value for name, value in module.state_dict().items()}
        assert loaded.keys() == state.keys()
        for name, value in state.items():
            assert loaded[name].dtype == dtype
            torch.testing.assert_close(loaded[name], value.to(dtype), rtol=0, atol=0)
        assert not module.training and not any(p.requires_grad for p in module.parameters())
        assert not any(value.is_meta for value in (*module.parameters(), *module.buffers()))


# --- names


def test_rename_table_is_a_bijection_between_the_official_inventory_and_the_networks():
    with torch.device("meta"):
        networks = {"unet": UNet(), "vae": VAE()}
    wanted = {
        (component, name): tuple(value.shape)
        for component, network in networks.items()
        for name, value in network.state_dict().items()
    }
    came = {}
    for name, shape in INVENTORY.items():
        place = published.from_single_file(name)
        if name in published.BOOKKEEPING:
            assert place is None
            continue
        assert place is not None and place not in came, name
        assert published.to_single_file(*place) == name
        squeezed = shape[:2] if place[0] == "vae" and ".attentions." in place[1] else shape
        came[place] = tuple(squeezed)
    text = {name: shape for (component, name), shape in came.items() if component == "text_encoder"}
    assert len(text) == 197 and text["embeddings.token_embedding.weight"] == (49408, 768)
    assert {place: shape for place, shape in came.items() if place[0] != "text_encoder"} == wanted


def test_names_written_by_hand():
    for prefix, component, spots in (
        ("model.diffusion_model", "unet", SPOTS),
        ("first_stage_model", "vae", VAE_SPOTS),
    ):
        for theirs, ours in spots.items():
            assert published.from_single_file(f"{prefix}.{theirs}") == (component, ours)
    layer = "encoder.layers.11.self_attn.k_proj.weight"
    assert published.from_single_file(f"cond_stage_model.transformer.text_model.{layer}") == ("text_encoder", layer)
    assert published.from_single_file("model.diffusion_model.input_blocks.12.0.weight") is None
    assert published.from_single_file("model_ema.decay") is None
    assert (
        published.ema_name("model.diffusion_model.input_blocks.1.1.proj_in.weight")
        == "model_ema.diffusion_modelinput_blocks11proj_inweight"
    )


def test_ema_names_are_distinct():
    names = [name for name in INVENTORY if name.startswith("model.diffusion_model.")]
    assert len({published.ema_name(name) for name in names}) == len(names) == 686


# --- layouts


def test_folder(folder):
    sd = weights.load(folder)
    holds(sd)
    assert sd.config.layout == "diffusers folder" and sd.config.tokens == tiny_models.TOKENS
    assert sd.config.stored == ("F32",) and sd.config.tokenizer == folder / "tokenizer"
    assert [file.parent.name for file in sd.config.files] == ["unet", "vae", "text_encoder"]


def test_single_file(single):
    sd = weights.load(single)
    holds(sd)
    assert sd.config.layout == "single file" and sd.config.copy == "the only one"
    assert sd.config.unet == tiny_models.UNET and sd.config.vae == tiny_models.VAE_


def test_ema_copies_are_preferred(tmp_path):
    sd = weights.load(tiny_models.write_single_file(tmp_path / "model.safetensors", ema=True))
    assert sd.config.copy == "EMA" and "EMA" in sd.provenance
    holds(sd, unet_seed=4)


def test_a_missing_ema_copy_is_missed(tmp_path, single):
    state = tiny_models.single_file_state(ema=True)
    del state["model_ema.diffusion_modelout2bias"]
    tiny_models.save(state, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "1 missing (model_ema.diffusion_modelout2bias)")


def test_same_computation_from_folder_and_single_file(folder, single):
    """The same weights to the bit; results to rounding, which may hang on where in a file a mapped weight begins."""
    a, b = weights.load(folder), weights.load(single)
    for one, other in ((a.unet, b.unet), (a.vae, b.vae), (a.text, b.text)):
        theirs = other.state_dict()
        assert theirs.keys() == one.state_dict().keys()
        assert all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = a.embed(["red dot"])
    torch.testing.assert_close(context, b.embed(["red dot"]))
    torch.testing.assert_close(a.unet(z, 401, context).eps, b.unet(z, 401, context).eps)
    torch.testing.assert_close(a.decode(z), b.decode(z))


@pytest.mark.parametrize(
    ("vae_names", "ones"),
    [
        ({"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out.0"}, 0),
        ({"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, 0),
        ({"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}, 2),
        ({"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, 1),
    ],
    ids=["new", "old", "original", "old with a trailing 1"],
)
def test_spellings_of_the_vae_attention(folder, tmp_path, vae_names, ones):
    state = {}
    for name, value in tiny_models.vae_state().items():
        before, at, layer = name.partition("mid_block.attentions.0.")
        old = next((old for old in vae_names if at and layer.startswith(old)), None)
        if old:
            name = before + at + layer.replace(old, vae_names[old])
            if value.ndim == 2:
                value = value[(..., *[None] * ones)]
        state[name] = value
    relinked(folder, tmp_path, without="vae/diffusion")
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    holds(weights.load(tmp_path))


@pytest.mark.parametrize(("prefix", "positions"), [("text_model.", False), ("", True)])
def test_text_encoders_with_and_without_prefix_and_positions(folder, tmp_path, prefix, positions):
    state = {prefix + name: value for name, value in tiny_models.text_state().items()}
    if not positions:
        del state[f"{prefix}embeddings.position_ids"]
    relinked(folder, tmp_path / "folder", without="text_encoder/model")
    tiny_models.save(state, tmp_path / "folder/text_encoder/model.safetensors")
    holds(weights.load(tmp_path / "folder"))

    whole = {
        name.replace("transformer.text_model.", f"transformer.{prefix}"): value
        for name, value in tiny_models.single_file_state().items()
        if positions or not name.endswith("position_ids")
    }
    tiny_models.save(whole, tmp_path / "model.safetensors")
    tiny_models.write_tokenizer(tmp_path)
    holds(weights.load(tmp_path / "model.safetensors"))


def test_fp16_variant_alone_and_beside_the_full_one(tmp_path):
    tiny_models.write_folder(tmp_path, torch.float16, variant=".fp16")
    sd = weights.load(tmp_path, dtype=torch.float16)
    assert sd.config.stored == ("F16",) and sd.config.files[0].name.endswith(".fp16.safetensors")
    holds(sd, torch.float16)
    assert weights.load(tmp_path).unet.dtype == torch.float32
    tiny_models.write_folder(tmp_path)
    assert weights.load(tmp_path, dtype=torch.float16).config.stored == ("F16",)
    full = weights.load(tmp_path)
    assert full.config.stored == ("F32",)
    holds(full)


# --- values


def mappings(file: Path) -> list[range]:
    """Where the file lies in this process's memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(file.resolve()))]
    return [range(int(begin, 16), int(end, 16)) for begin, end in spans]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_own_type_stays_mapped_and_another_is_converted(single):
    mapped = weights.load(single)
    spans = mappings(single)
    values = [*mapped.unet.parameters(), *mapped.vae.parameters(), *mapped.text.model.parameters()]
    assert all(any(value.data_ptr() in span for span in spans) for value in values)
    converted = weights.load(single, dtype=torch.bfloat16)
    spans = mappings(single)
    assert not any(value.data_ptr() in span for value in converted.unet.parameters() for span in spans)
    holds(converted, torch.bfloat16)


def test_changing_a_loaded_value_leaves_the_file_alone(single):
    before = hashlib.sha256(single.read_bytes()).hexdigest()
    with torch.no_grad():
        weights.load(single).unet.conv_in.weight.zero_()
    assert hashlib.sha256(single.read_bytes()).hexdigest() == before
    holds(weights.load(single))


def test_tensors_that_begin_at_an_odd_byte(single, tmp_path):
    """Older writers did not pad the header."""
    data = single.read_bytes()
    length = int.from_bytes(data[:8], "little")
    odd = length + 1 + (length % 2)
    header = data[8 : 8 + length].rstrip().ljust(odd)
    (tmp_path / "model.safetensors").write_bytes(odd.to_bytes(8, "little") + header + data[8 + length :])
    tiny_models.write_tokenizer(tmp_path)
    sd = weights.load(tmp_path / "model.safetensors")
    holds(sd)
    assert all(value.data_ptr() % 4 == 0 for value in sd.unet.parameters())


def test_encode_and_decode(folder):
    sd = weights.load(folder)
    noise = torch.randint(0, 256, (24, 40, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    tensor = noise.permute(2, 0, 1)[None] / 127.5 - 1
    z = sd.encode(picture)
    assert z.shape == (1, 4, 3, 5) and z.dtype == torch.float32
    torch.testing.assert_close(z, sd.encode(tensor), rtol=0, atol=1e-6)
    torch.testing.assert_close(z, 0.18215 * sd.vae.encode_moments(tensor)[0])
    decoded = sd.decode(z)
    assert decoded.shape == (1, 3, 24, 40) and decoded.dtype == torch.float32
    assert torch.equal(decoded, sd.decode(z))
    assert not z.requires_grad and not decoded.requires_grad
    for wrong in (Image.new("RGB", (60, 64)), torch.zeros(1, 3, 64, 60), torch.zeros(3, 64, 64)):
        with pytest.raises(ValueError, match="multiples of 8"):
            sd.encode(wrong)
    with pytest.raises(ValueError, match="float"):
        sd.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_results_are_float32_whatever_the_weights(folder):
    sd = weights.load(folder, dtype=torch.bfloat16)
    z = sd.encode(torch.zeros(1, 3, 16, 16))
    assert z.dtype == sd.decode(z).dtype == sd.embed(["red"]).dtype == torch.float32


def test_from_diffusers_takes_the_tensors_as_they_are():
    state = dict(tiny_models.unet_state())
    unet = UNet.from_diffusers(tiny_models.UNET_SETTINGS, state)
    assert unet.conv_in.weight.data_ptr() == state["conv_in.weight"].data_ptr()
    del state["conv_in.bias"]
    state["surplus"] = torch.zeros(1)
    state["conv_out.bias"] = torch.zeros(5)
    with pytest.raises(WeightsError) as caught:
        UNet.from_diffusers(tiny_models.UNET_SETTINGS, state)
    message = str(caught.value)
    assert "1 missing (conv_in.bias)" in message and "1 left over (surplus)" in message
    assert "1 misshapen (conv_out.bias [5] instead of [4])" in message


# --- strictness


def test_what_does_not_fit_is_listed_by_the_files_own_names(single, tmp_path):
    state = load_file(single)
    for n in range(12):
        del state[f"model.diffusion_model.output_blocks.{n}.0.in_layers.0.weight"]
    state["first_stage_model.surplus"] = torch.zeros(1)
    state["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    state["first_stage_model.encoder.down.0.block.1.norm1.weight"] = torch.ones(96)  # not the level's width for that
    tiny_models.save(state, tmp_path / "model.safetensors")
    message = refused(
        tmp_path / "model.safetensors",
        "12 missing (model.diffusion_model.output_blocks.0.0.in_layers.0.weight, ",
        "and 2 more)",
        "1 left over (first_stage_model.surplus)",
        "2 misshapen",
        "model.diffusion_model.out.2.bias [5] instead of [4]",
        "first_stage_model.encoder.down.0.block.1.norm1.weight [96] instead of [32]",
    )
    assert message.count("in_layers.0.weight") == 10


@pytest.mark.parametrize(
    ("component", "file"), [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")]
)
def test_folders_are_strict_too(folder, tmp_path, component, file):
    relinked(folder, tmp_path, without=f"{component}/{file}")
    state = load_file(folder / component / f"{file}.safetensors")
    state["surplus.weight"] = state.pop("decoder.conv_in.bias" if component == "vae" else "conv_in.bias")
    tiny_models.save(state, tmp_path / component / f"{file}.safetensors")
    message = refused(tmp_path, f"1 missing ({component}/", f"1 left over ({component}/surplus.weight)")
    assert "conv_in.bias" in message


def test_one_layer_under_two_spellings_is_left_over(folder, tmp_path):
    relinked(folder, tmp_path, without="vae/diffusion")
    state = dict(tiny_models.vae_state())
    state["encoder.mid_block.attentions.0.query.weight"] = state["encoder.mid_block.attentions.0.to_q.weight"].clone()
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    refused(tmp_path, "1 left over", "encoder.mid_block.attentions.0.")


def test_text_encoder_of_another_model(folder, tmp_path):
    relinked(folder, tmp_path, without="unet")
    settings = tiny_models.UNET_SETTINGS | {"cross_attention_dim": 56}
    tiny_models.write_json(tmp_path / "unet/config.json", settings)
    state = {
        name: torch.zeros(value.shape[0], 56) if "attn2.to_k" in name or "attn2.to_v" in name else value
        for name, value in tiny_models.unet_state().items()
    }
    tiny_models.save(state, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    refused(tmp_path, "48", "56")


def test_weights_that_are_no_floats(folder, tmp_path):
    relinked(folder, tmp_path, without="vae/diffusion")
    state = dict(tiny_models.vae_state())
    state["quant_conv.weight"] = state["quant_conv.weight"].to(torch.int8)
    tiny_models.save(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    refused(tmp_path, "quant_conv.weight I8")


# --- look-alikes


def meta_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of these names and shapes, without the weight of its values where the shapes are large."""
    save_file({name: torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items()}, path)
    return path


UNET_IN, UNET_K = (
    "model.diffusion_model.input_blocks.0.0.weight",
    ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"),
)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({UNET_IN: (32, 9, 3, 3)}, "inpainting"),
        ({UNET_IN: (32, 8, 3, 3)}, "instructions"),
        ({UNET_IN: (32, 4, 3, 3), UNET_K: (32, 1024)}, "Stable Diffusion 2"),
        ({UNET_IN: (32, 4, 3, 3), "cond_stage_model.model.ln_final.weight": (4,)}, "Stable Diffusion 2"),
        ({UNET_IN: (32, 4, 3, 3), "conditioner.embedders.0.transformer.x": (4,)}, "SDXL"),
        ({"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.conv_in.weight": (4, 4, 3, 3)}, "a VAE alone"),
        ({"first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3)}, "a VAE alone"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 32)}, "a LoRA"),
        ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 32)}, "a LoRA"),
        ({"control_model.input_blocks.0.0.weight": (32, 4, 3, 3)}, "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "a ControlNet"),
        ({"conv_in.weight": (32, 4, 3, 3), "time_embedding.linear_1.bias": (128,)}, "a UNet alone"),
        ({"text_model.final_layer_norm.weight": (48,)}, "a text encoder alone"),
        ({"model.diffusion_model.joint_blocks.0.x": (4,)}, "diffusion transformer"),
        ({"something.else": (4,)}, "holds no UNet and no VAE and no text encoder"),
        ({UNET_IN: (32, 4, 3, 3)}, "holds no VAE and no text encoder"),
    ],
)
def test_look_alikes_in_one_file(tmp_path, shapes, words):
    refused(meta_file(tmp_path / "model.safetensors", shapes), words)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "SD 2"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "v_prediction"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule must be scaled_linear"),
        ("text_encoder/config.json", {"model_type": "t5"}, "t5"),
        ("vae/config.json", {"latent_channels": 16, "shift_factor": 0.1}, "shift_factor"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "heads"),
    ],
)
def test_look_alikes_among_folders(folder, tmp_path, file, changes, words):
    relinked(folder, tmp_path, without=file)
    settings = json.loads((folder / file).read_text())
    (tmp_path / file).parent.mkdir(exist_ok=True)
    tiny_models.write_json(tmp_path / file, settings | changes)
    refused(tmp_path, words)


def test_folders_of_other_things(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder is empty")
    refused(tmp_path / "nowhere", "there is no such file or folder")

    relinked(folder, tmp_path / "xl")
    (tmp_path / "xl/text_encoder_2").mkdir()
    refused(tmp_path / "xl", "SDXL")

    refused(relinked(folder / "vae", tmp_path / "vae"), "a VAE alone")
    refused(relinked(folder / "unet", tmp_path / "unet"), "a UNet alone")
    tiny_models.write_json(tmp_path / "control/config.json", {"_class_name": "ControlNetModel"})
    refused(tmp_path / "control", "a ControlNet")

    (tmp_path / "lora").mkdir()
    meta_file(tmp_path / "lora/pytorch_lora_weights.safetensors", {"unet.x.lora.down.weight": (4, 4)})
    refused(tmp_path / "lora", "a LoRA")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "pickled", "pickles")


def test_a_folder_that_holds_a_single_file_says_to_name_it(single):
    refused(single.parent, "give the path of the file itself", "model.safetensors")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer"])
def test_missing_component(folder, tmp_path, component):
    refused(relinked(folder, tmp_path, without=f"{component}/"), f"there is no {component} in this folder")


@pytest.mark.parametrize("file", ["unet/config.json", "vae/diffusion_pytorch_model", "tokenizer/merges.txt"])
def test_missing_file(folder, tmp_path, file):
    message = refused(relinked(folder, tmp_path, without=file), file.split("/")[0])
    assert file.split("/")[1] in message


def test_pickled_weights_in_a_folder_are_named(folder, tmp_path):
    relinked(folder, tmp_path, without="unet/diffusion")
    (tmp_path / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "diffusion_pytorch_model.bin is a pickle")


def test_pickles_under_any_name_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for name, write in (
        ("zip.safetensors", lambda path: torch.save({"x": Trap()}, path)),
        ("old.safetensors", lambda path: torch.save({"x": Trap()}, path, _use_new_zipfile_serialization=False)),
        ("bare.safetensors", lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=4))),
        ("model.ckpt", lambda path: torch.save({"x": Trap()}, path)),
        ("model.pt", lambda path: path.write_bytes(b"anything")),
        ("model.bin", lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=2))),
    ):
        write(tmp_path / name)
        refused(tmp_path / name, "pickle")
    assert not (tmp_path / "sprung").exists()


def test_damaged_files(single, tmp_path):
    data = single.read_bytes()
    broken = tmp_path / "model.safetensors"
    for content, words in (
        (b"", "empty"),
        (data[:100], "cut short"),
        (data[:-1], "cut short"),
        (data + b"x", "damaged"),
        (data[:8] + b"{" * 20 + data[28:], "damaged"),
        (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ):
        broken.write_bytes(content)
        refused(broken, words)


def test_damaged_settings(folder, tmp_path):
    for n, (file, content) in enumerate(
        (("unet/config.json", "{"), ("vae/config.json", "[]"), ("text_encoder/config.json", '{"hidden_size": "wide"}'))
    ):
        target = relinked(folder, tmp_path / str(n), without=file)
        (target / file).write_text(content)
        refused(target, file)
    target = relinked(folder, tmp_path / "tokenizer", without="tokenizer/vocab.json")
    (target / "tokenizer/vocab.json").write_text("{")
    refused(target, "tokenizer")


def test_what_cannot_be_used(folder):
    with pytest.raises(ValueError, match="int8"):
        weights.load(folder, dtype=torch.int8)
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ValueError, match="cannot be used"):
            weights.load(folder, device=device)


# --- the tokenizer of a single file


def test_tokenizer_beside_the_file_or_in_the_cache(single, tmp_path, monkeypatch):
    file = tmp_path / "weights" / "model.safetensors"
    file.parent.mkdir()
    file.symlink_to(single)
    assert weights.load(file).config.tokenizer == single.parent / "tokenizer"  # behind the link

    file.unlink()
    file.write_bytes(single.read_bytes())
    message = refused(file, "holds no tokenizer", "vocab.json and merges.txt", str(file.parent / "tokenizer"))
    assert "HF_HUB_OFFLINE" in message
    sd15 = tmp_path / "hub/models--stable-diffusion-v1-5--stable-diffusion-v1-5/snapshots/0/tokenizer"
    tiny_models.write_tokenizer(sd15)
    assert weights.load(file).config.tokenizer == sd15
    clip = tmp_path / "hub/models--openai--clip-vit-large-patch14/snapshots/0"
    tiny_models.write_tokenizer(clip)
    assert weights.load(file).config.tokenizer == clip
    tiny_models.write_tokenizer(file.parent)
    assert weights.load(file).config.tokenizer == file.parent
    tiny_models.write_tokenizer(file.parent / "tokenizer")
    assert weights.load(file).config.tokenizer == file.parent / "tokenizer"


def test_no_network_is_an_error_at_once(single, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError("unreachable")))
    (tmp_path / "model.safetensors").write_bytes(single.read_bytes())
    refused(tmp_path / "model.safetensors", "holds no tokenizer", "unreachable")


def test_tokenizer_of_another_model(single, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(single.read_bytes())
    tiny_models.write_tokenizer(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary["surplus</w>"] = len(vocabulary)
    tiny_models.write_json(tmp_path / "vocab.json", vocabulary)
    refused(tmp_path / "model.safetensors", f"{len(vocabulary)} tokens", str(len(vocabulary) - 1))


# --- hashes


def test_verify(folder, tmp_path, monkeypatch):
    found = weights.verify(folder)
    assert [entry.file.parent.name for entry in found] == ["text_encoder", "unet", "vae"]
    assert all(entry.known is None for entry in found)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(published, "KNOWN_FILES", (published.KnownFile("a known name", None, digest),))
    assert weights.verify(file) == [(file, digest, "a known name")]
    with pytest.raises(WeightsError):
        weights.verify(tmp_path)


def test_known_files_follow_from_the_inventory():
    """The single file's length: a header sorted by name, then four bytes a parameter (eight a position)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(INVENTORY):
        kind, width = ("I64", 8) if name.endswith("position_ids") else ("F32", 4)
        kind = "I32" if name == "model_ema.num_updates" else kind
        begin, end = end, end + width * int(torch.Size(INVENTORY[name]).numel())
        header[name] = {"dtype": kind, "shape": INVENTORY[name], "data_offsets": [begin, end]}
    length = 8 + len(json.dumps(header, separators=(",", ":"))) + end
    sizes = {entry.name: entry.size for entry in published.KNOWN_FILES}
    assert sizes["v1-5-pruned-emaonly.safetensors"] == length
    assert all(len(entry.sha256) == 64 for entry in published.KNOWN_FILES)
    assert VAEConfig().scaling_factor == 0.18215
