"""Training the small model, on the parts that do not take minutes: start, folding, tokenizer, resuming, export."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import train_small
from transformers import CLIPTokenizer

from dragsa import ddim
from dragsa.config import UNetConfig, VAEConfig
from dragsa.evaluation import artwork, scenes, training
from dragsa.evaluation.art_scenes import ArtScene
from dragsa.evaluation.artwork import SIDE, Sprites
from dragsa.evaluation.training import Lessons
from dragsa.model.vae import VAE

PLAN = train_small.Plan(
    VAEConfig(widths=(8, 8, 16, 16), groups=4),
    UNetConfig(widths=(16, 16, 16, 16), heads=(2, 2, 2, 2), context_dim=16, groups=4),
    latents=8,
    unet_batch=2,
    crops=2,
    pictures=1,
    held_out=2,
)
LESSONS = Lessons()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "HELD_OUT_SEEDS", scenes.HELD_OUT_SEEDS[:8])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    training.write_tokenizer(folder, scenes.WORDS, PLAN.tokens)
    return CLIPTokenizer.from_pretrained(folder)


def test_every_word_of_a_caption_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for seed in range(300):
        caption = scenes.caption(scenes.random_scene(seed), place=True, looking=True)
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= PLAN.tokens
        assert str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == caption


def test_words_outside_the_vocabulary_have_tokens_too(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("A wizard's café, №5").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).replace(" ", "") == "awizard'scafé,№5"


def test_prompts_are_padded_to_the_text_encoders_length(tokenizer: CLIPTokenizer) -> None:
    tokens = train_small.tokenize(tokenizer, ["", "a red star", "a " * 40])
    assert tokens.shape == (3, PLAN.tokens) and tokenizer.model_max_length == PLAN.tokens
    assert (tokens[:, -1] == tokenizer.eos_token_id).all()


def test_the_vae_starts_with_colours_in_its_latents() -> None:
    torch.manual_seed(0)
    vae = VAE(PLAN.vae)
    training.start_vae(vae)
    features = vae.encoder.conv_in(scenes.draw_batch([scenes.random_scene(1)]))
    stages: Any = vae.encoder.down_blocks
    for stage in stages:
        for resnet in stage.resnets:
            features = resnet(features)
        if hasattr(stage, "downsamplers"):
            features = stage.downsamplers[0](features)
    small = torch.nn.functional.avg_pool2d(scenes.draw_batch([scenes.random_scene(1)]), 8)
    torch.testing.assert_close(features[:, :3], small, atol=1e-5, rtol=0)
    assert (vae.encode_moments(scenes.draw_batch([scenes.random_scene(1)]))[1] == -6).all()


@torch.no_grad()
def test_folding_the_normalisation_changes_latents_and_not_pictures() -> None:
    torch.manual_seed(0)
    vae = VAE(PLAN.vae)
    pictures = scenes.draw_batch([scenes.random_scene(seed) for seed in range(4)])
    mean, logvar = vae.encode_moments(pictures)
    before = vae.decode(vae.encode(pictures))
    shift, spread = torch.tensor([0.3, -2.0, 0.0, 1.0]), torch.tensor([0.5, 2.0, 1.0, 0.1])
    training.normalise(vae, shift, spread)
    wanted = (mean - shift[:, None, None]) / spread[:, None, None]
    torch.testing.assert_close(vae.encode(pictures), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(vae.encode(pictures)), before, atol=1e-4, rtol=1e-4)
    factor = (spread * vae.config.scaling_factor).log()[:, None, None]
    torch.testing.assert_close(vae.encode_moments(pictures)[1], logvar - 2 * factor, atol=1e-4, rtol=1e-4)


def test_crops_are_inside_and_mostly_of_the_object() -> None:
    batch = LESSONS.batch(0, 0, 40)
    corners = training.crop_corners(batch, 128, 64, random.Random(0))
    assert corners.min() >= 0 and corners.max() <= 64
    seen = [
        scenes.object_mask(scene)[y : y + 64, x : x + 64].sum() > 0.2 * scenes.object_mask(scene).sum()
        for scene, (x, y) in zip(batch, corners.tolist(), strict=True)
        if isinstance(scene, scenes.Scene)
    ]
    assert sum(map(bool, seen)) > 28


def test_lessons_with_artwork_show_both_kinds_and_keep_the_held_out_drawings() -> None:
    names = [f"thing-{n}" for n in range(60)]
    colours = torch.randint(0, 256, (len(names), 3, 4, 1, 1), dtype=torch.uint8)
    lessons = Lessons(Sprites(names, colours.expand(-1, -1, -1, SIDE, SIDE)))
    batch = lessons.batch(0, 0, 100)
    art = [scene for scene in batch if isinstance(scene, ArtScene)]
    assert 60 < len(art) < 90
    assert all(artwork.is_trained(thing.name, thing.style) for scene in art for thing in scene.things)
    held_out = [lessons.scene(seed) for seed in scenes.HELD_OUT_SEEDS]
    assert all(artwork.held_out(scene.thing.name) == "all" for scene in held_out if isinstance(scene, ArtScene))
    assert {word for scene in batch for text in training.captions(scene) for word in text.split()} <= set(lessons.words)

    # A crop is the part of the whole picture that its corner says, in each kind's place of the batch.
    corners = torch.tensor([(x % 65, 3 * x % 65) for x in range(8)])
    whole, crops = lessons.draw(batch[:8], 128), lessons.draw(batch[:8], 128, corners, 64)
    for picture, crop, (x, y) in zip(whole, crops, corners.tolist(), strict=True):
        torch.testing.assert_close(crop, picture[:, y : y + 64, x : x + 64], atol=2e-4, rtol=0)


def test_noised_latents_keep_their_spread() -> None:
    abar = ddim.training_alpha_bars().float()
    assert abar[0].item() == pytest.approx(1 - 0.00085) and abar[-1].item() == pytest.approx(0.00466, abs=2e-5)
    z, noise = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    assert training.noised(z, t, noise, abar).std(dim=(1, 2, 3)) == pytest.approx([1, 1, 1], abs=0.05)


def test_latents_go_on_where_their_vae_left_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_small, "ENCODED", 5)

    class Breaking(Lessons):
        left = 2  # calls of draw

        def draw(self, *args: Any) -> torch.Tensor:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().draw(*args)

    def encode(folder: str, lessons: Lessons, seed: int = 0) -> dict[str, Any]:
        torch.manual_seed(seed)
        (tmp_path / folder).mkdir(exist_ok=True)
        return train_small.encode_latents(tmp_path / folder, VAE(PLAN.vae), PLAN, lessons)

    at_once = encode("at once", LESSONS)
    for folder in ("broken", "another"):
        with pytest.raises(KeyboardInterrupt):
            encode(folder, Breaking())
    rest = Breaking()
    torch.testing.assert_close(encode("broken", rest), at_once, atol=0, rtol=0)
    assert rest.left == 0 and not (tmp_path / "broken" / "latents-part.pt").exists()  # of sixteen, the last six
    with pytest.raises(KeyboardInterrupt):  # another VAE's are no good
        encode("another", Breaking(), seed=1)


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(minutes: float) -> tuple[dict[str, torch.Tensor], int, float]:
        vae = train_small.train_vae(tmp_path, dataclasses.replace(PLAN, vae_minutes=minutes), LESSONS)
        state = torch.load(tmp_path / "vae.pt", weights_only=True)
        return vae.state_dict(), state["step"], state["seconds"] / 60

    first, steps, minutes = run(0.01)
    again, same_steps, same_minutes = run(0.01)
    assert steps > 0 and (same_steps, same_minutes) == (steps, minutes)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert run(minutes + 0.01)[1] > steps
    assert f"from update {steps}" in capsys.readouterr().out


def test_an_exported_folder_is_read_by_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    plan = dataclasses.replace(PLAN, unet_minutes=0.01, size=192)
    cache = train_small.encode_latents(tmp_path, VAE(PLAN.vae), plan, LESSONS)
    assert cache["latents"].std(dim=(0, 2, 3)) == pytest.approx([1] * 4, abs=1e-3)
    assert cache["latents"].shape == (plan.latents, 4, 24, 24)
    denoiser = train_small.train_unet(tmp_path, cache, plan, LESSONS)
    with torch.no_grad():
        for name, weight in denoiser.unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):  # which begin as zero
                weight.normal_(std=0.05)
    train_small.write_model(tmp_path / "out", plan, cache, denoiser, tmp_path / "tokenizer")

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.vae.config.sample_size == 192 and pipeline.unet.config.sample_size == 24
    tokens = train_small.tokenize(pipeline.tokenizer, ["a red star on a blue ground"])
    context = pipeline.text_encoder(tokens).last_hidden_state
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([401])
    with torch.no_grad():
        eps, wanted = pipeline.unet(z, t, context).sample, denoiser(z, t, tokens)
        vae = VAE(PLAN.vae)
        vae.load_state_dict(cache["vae"])
        picture, wanted_picture = pipeline.vae.decode(z / 0.18215).sample, vae.decode(z)
    assert (eps - wanted).abs().max() < 5e-3 * wanted.abs().max()  # float16 in the file
    assert (picture - wanted_picture).abs().max() < 5e-3 * wanted_picture.abs().max()
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"


def test_a_stage_says_what_must_be_run_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_small.main(["unet", "--work", str(tmp_path)])
    assert stopped.value.code == 2
    assert "run the stage `latents` first" in capsys.readouterr().err


def test_latents_of_another_vae_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vaes = [VAE(PLAN.vae) for _ in range(2)]
    states = [{name: value.clone() for name, value in vae.state_dict().items()} for vae in vaes]

    def encode(number: int) -> dict[str, Any]:  # encoding folds the normalisation into the VAE that it is given
        vaes[number].load_state_dict(states[number])
        return train_small.encode_latents(tmp_path, vaes[number], PLAN, LESSONS)

    encode(0)
    at_first = torch.load(tmp_path / "latents.pt", weights_only=True)
    torch.testing.assert_close(encode(0), at_first, atol=0, rtol=0)
    with pytest.raises(SystemExit):
        encode(1)
    assert "encode again with `latents --fresh`" in capsys.readouterr().err
    del at_first["of"]  # as it was written before this was noted
    training.save(at_first, tmp_path / "latents.pt")
    torch.testing.assert_close(encode(1), at_first, atol=0, rtol=0)


def test_a_work_folder_is_of_one_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_small.claim(tmp_path, train_small.DRAWN, None)
    (tmp_path / "latents.pt").touch()
    train_small.claim(tmp_path, dataclasses.replace(train_small.DRAWN, unet_minutes=1, device="cuda"), None)
    sprites = tmp_path / "sprites.safetensors"
    sprites.touch()
    for plan, file, other in ((dataclasses.replace(PLAN, size=64), None, "size"), (train_small.DRAWN, sprites, "artw")):
        with pytest.raises(SystemExit):
            train_small.claim(tmp_path, plan, file)
        assert other in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_small.main(["unet", "--work", str(tmp_path), "--seed", "1"])
    assert "was begun with other seed; give the same" in capsys.readouterr().err
    assert not (tmp_path / "tokenizer").exists()
    (tmp_path / "plan.json").unlink()  # a folder from before there were notes
    train_small.claim(tmp_path, PLAN, sprites)


def test_a_fresh_stage_forgets_what_was_made_of_it(tmp_path: Path) -> None:
    def left_by(stage: str) -> set[str]:
        for name in ("latents.pt", "latents-part.pt", "unet.pt"):
            (tmp_path / name).touch()
        with pytest.raises(SystemExit if stage == "latents" else EOFError):  # without a VAE; the latents are empty
            train_small.main([stage, "--fresh", "--work", str(tmp_path)])
        return {file.name for file in tmp_path.glob("*.pt")}

    assert left_by("unet") == {"latents.pt", "latents-part.pt"}
    assert left_by("latents") == set()
