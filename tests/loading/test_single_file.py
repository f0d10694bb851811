"""SD 1.5's original layout, with and without the running mean."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from loading_checks import holds, refused, relinked

from dragsa import loading


def test_single_file(single):
    sd = loading.load(single)
    holds(sd)
    assert sd.config.layout == "single file" and sd.config.copy == "the only one"
    assert sd.config.unet == tiny_models.UNET and sd.config.vae == tiny_models.VAE_


def test_ema_copies_are_preferred(tmp_path):
    sd = loading.load(tiny_models.write_single_file(tmp_path / "model.safetensors", ema=True))
    assert sd.config.copy == "EMA" and "EMA" in sd.provenance
    holds(sd, unet_seed=4)


def test_a_missing_ema_copy_is_missed(tmp_path, single):
    state = tiny_models.single_file_state(ema=True)
    del state["model_ema.diffusion_modelout2bias"]
    tiny_models.save(state, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "1 missing (model_ema.diffusion_modelout2bias)")


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
