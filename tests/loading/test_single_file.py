"""SD 1.5's original layout, with and without the running mean."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from loading_checks import holds, refused, relinked

from dragsa import loading
from dragsa.loading import known_files
from dragsa.loading.parts import Wanted
from dragsa.loading.single_file import open_single_file


def test_single_file(single):
    sd = loading.load(single)
    holds(sd)
    assert sd.config.layout == "single file" and sd.config.copy == "the only one"
    assert sd.config.unet == tiny_models.UNET and sd.config.vae == tiny_models.VAE_


def test_the_plain_copy_is_taken_and_the_running_mean_on_request(tmp_path):
    """Programs that merge models change the plain copy and leave the other as it was."""
    path = tiny_models.write_single_file(tmp_path / "model.safetensors", ema=True)
    for ema, copy, seed in ((None, "plain", 1), (False, "plain", 1), (True, "EMA", 4)):
        sd = loading.load(path, ema=ema)
        assert sd.config.copy == copy and f"{copy} weights" in sd.provenance and not sd.config.unused
        holds(sd, unet_seed=seed)


def test_the_running_mean_of_a_published_file_is_taken_by_itself(tmp_path):
    path = tiny_models.write_single_file(tmp_path / "model.safetensors", ema=True)
    one = known_files.KnownFile("one", path.stat().st_size, loading.sha256(path))
    for published, copy in (((one,), "EMA"), ((one._replace(sha256="0" * 64),), "plain"), ((), "plain")):
        assert open_single_file(path, Wanted(), published=published).copy == copy
    assert open_single_file(path, Wanted(ema=False), published=(one,)).copy == "plain"
    assert [entry.name for entry in known_files.PUBLISHED_WITH_EMA] == ["v1-5-pruned.safetensors"]


def test_a_part_of_a_running_mean_is_named_and_missed_if_it_is_asked_for(tmp_path):
    state = tiny_models.single_file_state(ema=True)
    del state["model_ema.diffusion_modelout2bias"]
    path = tmp_path / "model.safetensors"
    tiny_models.save(state, path)
    tiny_models.write_tokenizer(tmp_path)
    with pytest.warns(UserWarning, match=r"not used: 683 names \(model_ema\.diffusion_model"):
        sd = loading.load(path)
    holds(sd)
    assert sd.config.copy == "plain" and len(sd.config.unused) == 683
    refused(path, "1 missing (model_ema.diffusion_modelout2bias)", ema=True)


def test_a_running_mean_alone_is_the_model(tmp_path, single):
    path = tmp_path / "model.safetensors"
    state = tiny_models.single_file_state(ema=True)
    tiny_models.save({name: value for name, value in state.items() if "model.diffusion_model." not in name}, path)
    tiny_models.write_tokenizer(tmp_path)
    holds(loading.load(path), unet_seed=4)
    refused(single, "holds no EMA copy", ema=True)


def test_same_computation_from_folder_and_single_file(folder, single):
    """The same weights to the bit; results to rounding, which may hang on where in a file a mapped weight begins."""
    a, b = loading.load(folder), loading.load(single)
    for one, other in ((a.unet, b.unet), (a.vae, b.vae), (a.text, b.text)):
        theirs = other.state_dict()
        assert theirs.keys() == one.state_dict().keys()
        assert all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = a.embed(["red dot"])
    torch.testing.assert_close(context, b.embed(["red dot"]))
    torch.testing.assert_close(a.unet(z, 401, context).eps, b.unet(z, 401, context).eps)
    torch.testing.assert_close(a.decode(z), b.decode(z))


@pytest.mark.parametrize(("prefix", "positions"), [("text_model.", False), ("", True)])
def test_text_encoders_with_and_without_prefix_and_positions(folder, tmp_path, prefix, positions):
    state = {prefix + name: value for name, value in tiny_models.text_state().items()}
    if not positions:
        del state[f"{prefix}embeddings.position_ids"]
    relinked(folder, tmp_path / "folder", without="text_encoder/model")
    tiny_models.save(state, tmp_path / "folder/text_encoder/model.safetensors")
    holds(loading.load(tmp_path / "folder"))

    whole = {
        name.replace("transformer.text_model.", f"transformer.{prefix}"): value
        for name, value in tiny_models.single_file_state().items()
        if positions or not name.endswith("position_ids")
    }
    tiny_models.save(whole, tmp_path / "model.safetensors")
    tiny_models.write_tokenizer(tmp_path)
    holds(loading.load(tmp_path / "model.safetensors"))
