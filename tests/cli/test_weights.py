"""What changes the weights on the command line, and what `info` tells of them."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from command_line import QUICK, options, refused, run
from safetensors.torch import load_file, save_file
from tiny_loras import drawn

from dragsa import cli
from dragsa.cli.readers import FileWith

LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    start = f"lora_unet_{LAYER}"
    tensors = {f"{start}.lora_down.weight": drawn(1, 2, 32), f"{start}.lora_up.weight": drawn(2, 32, 2)}
    save_file(tensors, tmp_path / "one.safetensors", {"ss_clip_skip": "2"})
    return tmp_path / "one.safetensors"


def test_files_with_a_scale_or_a_token_are_read() -> None:
    read = options("p.png", "--lora", "a.safetensors", "--lora", "b:c.safetensors:-0.5", "--lora", "d.safetensors:1e-1")
    assert read["lora"] == [
        FileWith(Path("a.safetensors")),
        FileWith(Path("b:c.safetensors"), -0.5),
        FileWith(Path("d.safetensors"), 0.1),
    ]
    read = options("p.png", "--embedding", "C:/a.safetensors", "--embedding", "a.safetensors:<toy>")
    assert read["embedding"] == [FileWith(Path("C:/a.safetensors")), FileWith(Path("a.safetensors"), "<toy>")]
    assert options("p.png", "--ema")["ema"] and options("p.png", "--no-ema")["ema"] is False


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], lora: Path, tiny_folder: Path) -> None:
    for arguments, says in (
        (("--lora", "none.safetensors"), "none.safetensors: there is no such file"),
        (("--lora", f"{lora}:nan"), "must be FILE or FILE:SCALE"),
        (("--embedding", lora), "not a textual inversion"),
        (("--vae", lora), "holds no VAE"),
        (("--clip-skip", "0"), "--clip-skip: must be a whole number of at least 1"),
        (("--clip-skip", "3"), "clip skip must be a whole number from 1 to its 2 layers, came 3"),
        (("--ema",), "no EMA copy"),
    ):
        assert says in refused(capsys, "generate", "--out", "o.png", "--size", "64", *arguments)


def test_a_changed_model_draws_and_says_what_changed_it(lora: Path, tiny_folder: Path) -> None:
    save_file({"emb_params": drawn(3, 2, 48)}, "toy.safetensors")
    same = ("--prompt", "a toy cat", "--steps", "2", "--size", "64", "--guidance", "3", "--json", "g.json", "--force")
    drawings = {}
    for changes in (
        (),
        ("--lora", f"{lora}:2"),
        ("--embedding", "toy.safetensors"),
        ("--negative-prompt", "a red dot"),
        ("--clip-skip", "2"),
        ("--vae", tiny_folder),
    ):
        assert run("generate", "--out", "g.png", *same, *changes) == 0
        report = json.loads(Path("g.json").read_text(encoding="utf-8"))
        drawings[changes[:1]] = Path("g.png").read_bytes()
        # The report's options are a job that does the same again; `edit` has `drag` besides.
        if changes[:1] == ("--lora",):
            assert report["options"]["lora"] == [f"{lora}:2.0"] and f"LoRA {lora} at 2" in report["weights"]
            again = json.dumps(
                {"lora": report["options"]["lora"], "embedding": ["toy.safetensors:cat"], "image": "p.png"}
            )
            Path("job.json").write_text(again)
            (job,) = cli.read_jobs(Path("job.json"))
            assert job["lora"] == [FileWith(lora, 2.0)] and job["embedding"] == [
                FileWith(Path("toy.safetensors"), "cat")
            ]
        if changes[:1] == ("--negative-prompt",):
            assert report["negative_prompt"] == "a red dot"
    same_vae = drawings.pop(("--vae",))
    assert same_vae == drawings[()] and len(set(drawings.values())) == len(drawings)


def test_a_report_names_files_from_elsewhere_and_its_repetition_knows_them(
    picture: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other").mkdir()
    for part in ("vae", "text_encoder"):
        shutil.copytree(tiny_folder / part, Path("other") / part)
    parts = ("--vae", "other/vae", "--text-encoder", "other/text_encoder")
    assert run("edit", picture, *QUICK, "--drag", "24,28:40,28", *parts, "--out", "o.png", "--json", "o.json") == 0
    hashes = json.loads(Path("o.json").read_text(encoding="utf-8"))["weights_sha256"]
    folders = [str(Path(name).parent) for name in hashes]
    assert sorted(folders) == [f"{tmp_path}/other/text_encoder", f"{tmp_path}/other/vae", "unet"]
    assert run("edit", "--job", "o.json", "--out", "p.png", "--json", "p.json") == 0
    assert "other weights" not in capsys.readouterr().err and Path("o.png").read_bytes() == Path("p.png").read_bytes()


def test_info_tells_what_is_taken_and_what_is_not(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    path = tiny_models.write_single_file(tmp_path / "model.safetensors", ema=True)
    assert run("info", "--weights", path, "--lora", lora) == 0
    printed = capsys.readouterr().out
    assert "single file, plain weights, LoRA" in printed and "clip skip 2 is said by ss_clip_skip" in printed
    assert run("info", "--weights", path, "--ema", "--json") == 0
    assert "EMA weights" in json.loads(capsys.readouterr().out)["weights"]
    save_file(load_file(path) | {"global_step": torch.ones(1)}, tmp_path / "more.safetensors")
    assert run("info", "--weights", tmp_path / "more.safetensors", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["not_used"] == ["global_step"] and "not used: 1 names (global_step)" in said.err
    assert run("info", "--weights", tmp_path / "more.safetensors") == 0
    assert "\nnot used: global_step\n" in capsys.readouterr().out


def test_info_verifies_the_files_that_loading_takes(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    root = tiny_models.write_folder(tmp_path / "model")
    for name in ("vae/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors"):
        (root / name).parent.mkdir(exist_ok=True)
        save_file({"x": torch.ones(1)}, root / name)
    assert run("info", "--weights", root, "--verify", "--lora", lora) == 1
    lines = capsys.readouterr().out.splitlines()
    verified = [line for line in lines if line.endswith("not a published file")]
    assert len(verified) == 4 and not any("fp16" in line or "safety" in line for line in verified)
    assert run("info", "--weights", tmp_path / "model", "--verify", "--vae", tiny_folder) == 1
    verified = [line for line in capsys.readouterr().out.splitlines() if line.endswith("not a published file")]
    assert len(verified) == 3 and sum(str(tiny_folder) in line for line in verified) == 1
