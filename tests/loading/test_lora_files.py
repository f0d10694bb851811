"""LoRA files of every layout, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_loras import LAYER, drawn, filled, tiny_unet

from dragsa import loading
from dragsa.loading import LoRA, WeightsError, lora_files
from dragsa.methods import lora


def same(one: LoRA, other: LoRA) -> bool:
    return one.down.keys() == other.down.keys() and all(
        torch.equal(one.down[name], other.down[name]) and torch.equal(one.up[name], other.up[name]) for name in one.down
    )


def test_a_file_comes_back_and_is_not_written_over(tmp_path):
    path, made = tmp_path / "one.safetensors", filled(tiny_unet())
    loading.save_lora(made, path)
    assert same(loading.read_lora(path), made)
    assert f"unet.{LAYER}.lora_A.weight" in load_file(path) and len(load_file(path)) == 256
    with pytest.raises(FileExistsError, match="is there already"):
        loading.save_lora(made, path)
    loading.save_lora(lora.start(tiny_unet(), 2), path, overwrite=True)
    assert loading.read_lora(path).rank == 2
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]


def of_processors(name: str, part: str) -> str:
    attention, linear = name.rsplit(".to_", 1)
    return f"unet.{attention}.processor.to_{linear.removesuffix('.0')}_lora.{part}.weight"


@pytest.mark.parametrize(
    "spell",
    [
        lambda name, part: f"unet.{name}.lora.{part}.weight",
        lambda name, part: f"{name}.lora_{'A' if part == 'down' else 'B'}.weight",
        of_processors,
    ],
    ids=["lora.down", "no prefix", "processor"],
)
def test_older_layouts_are_read(tmp_path, spell):
    made = filled(tiny_unet())
    parts = (("down", made.down), ("up", made.up))
    tensors = {spell(name, part): factor for part, factors in parts for name, factor in factors.items()}
    save_file(tensors, tmp_path / "old.safetensors")
    assert same(loading.read_lora(tmp_path / "old.safetensors"), made)


def test_alpha_scales_what_is_read(tmp_path):
    down, up = drawn(1, 4, 32), drawn(2, 32, 4)

    def read(settings=None, **extra):
        tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up, **extra}
        metadata = {lora_files.METADATA: json.dumps(settings)} if settings else None
        save_file(tensors, tmp_path / "alpha.safetensors", metadata)
        return loading.read_lora(tmp_path / "alpha.safetensors").up[LAYER]

    assert torch.equal(read(), up)
    assert torch.equal(read({"unet.lora_alpha": 8}), 2 * up)
    assert torch.equal(read({"lora_alpha": 8, "use_rslora": True}), 4 * up)
    assert torch.equal(read({"unet.lora_alpha": 8, "unet.alpha_pattern": {LAYER: 2}}), 0.5 * up)
    assert torch.equal(read({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_k": 2}}), 2 * up)
    for pattern in ("to_q", r"attn1\.to_[qk]", r"down_blocks\.\d+\..*to_q", r".*attn1.*", r"(attn1|attn2)\.to_q"):
        assert torch.equal(read({"lora_alpha": 8, "alpha_pattern": {"to_k": 1, pattern: 2, "attn1.to_q": 3}}), up / 2)
    for pattern in ("o_q", "to_", "attn1", "tn1.to_q"):
        assert torch.equal(read({"lora_alpha": 8, "alpha_pattern": {pattern: 2}}), 2 * up), pattern
    assert torch.equal(read({"lora_alpha": 8, "r": 16, "rank_pattern": {"to_[qk]": 4}}), 2 * up)
    assert torch.equal(read({"r": 4}), 2 * up)  # PEFT's own α
    assert torch.equal(read(**{f"unet.{LAYER}.alpha": torch.tensor(2.0)}), 0.5 * up)


@pytest.mark.parametrize("alpha", ["8", [1, 2], True, math.nan, math.inf, {}])
def test_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    tensors = {f"unet.{LAYER}.lora_A.weight": drawn(1, 4, 32), f"unet.{LAYER}.lora_B.weight": drawn(2, 32, 4)}
    for settings in ({"lora_alpha": alpha}, {"alpha_pattern": {LAYER: alpha}}):
        save_file(tensors, tmp_path / "odd.safetensors", {lora_files.METADATA: json.dumps(settings)})
        with pytest.raises(WeightsError, match=r"α of .* must be a number, came"):
            loading.read_lora(tmp_path / "odd.safetensors")
    save_file({**tensors, f"unet.{LAYER}.alpha": torch.tensor([1.0, 2.0])}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match=r"α of .* must be one number, came \[2\]"):
        loading.read_lora(tmp_path / "two.safetensors")


def test_what_is_no_lora_of_the_unet_is_refused(tmp_path):
    a, b = f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"
    down, up = torch.zeros(4, 32), torch.zeros(32, 4)
    path = tmp_path / "bad.safetensors"
    for tensors, says in (
        ({a: down}, rf"1 layers without their up factor \({LAYER}\)"),
        ({b: up}, rf"1 layers without their down factor \({LAYER}\)"),
        ({a: down, b: torch.zeros(32, 3)}, rf"{LAYER} must be \(rank, inputs\).* came \[4, 32\] and \[32, 3\]"),
        ({a: down, b: up, "text_encoder.q_proj.lora_A.weight": down.clone()}, "text_encoder.q_proj"),
        ({a: down, b: up, f"unet.{LAYER}.lora_magnitude_vector": up.clone()}, "this is a DoRA"),
        ({"lora_unet_down_blocks_0.lora_down.weight": down}, "not a LoRA of SD 1.5: 1 unknown tensors"),
    ):
        save_file(tensors, path)
        with pytest.raises(WeightsError, match=says):
            loading.read_lora(path)
    save_file({a: down, b: up}, path, {lora_files.METADATA: '{"unet.use_dora": true}'})
    with pytest.raises(WeightsError, match="this is a DoRA"):
        loading.read_lora(path)
    torch.save({}, tmp_path / "old.bin")
    with pytest.raises(WeightsError, match="pickle"):
        loading.read_lora(tmp_path / "old.bin")
    with pytest.raises(WeightsError, match="there is no such file"):
        loading.read_lora(tmp_path / "none.safetensors")
