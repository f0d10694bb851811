"""The interface for other programs: the public names, their parameters and defaults, the commands and their options."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import dragsa
from dragsa import cli

# New keyword arguments may be added; what stands here keeps its name, place and default.
SIGNATURES = {
    "DragConfig": (
        "tap='block14', updates=80, lr=0.01, radius=1, track_radius=3, lam=0.1, reach=2.0, optimizer='adam', "
        "reference='first', patience=30, lost_patience=5, stall=None, anchor=0.0, checkpoint=False, "
        "compile='auto', loss='mean', drag_guidance=1.0"
    ),
    "DragResult": "latent, losses, handles, distances, final_handles, reason",
    "EditConfig": (
        "drag=..., steps=50, variant='restored', drag_step=10, control_step=10, control_blocks=(11, 12, 13, "
        "14, 15, 16), control='mutual', object_words=(), mask_blocks=(5, 6, 8, 9, 10), mask_threshold=0.1, "
        "guidance=1.0, blend=False, fixed_point=0, lora_steps=0, size=512, source_kv='exact', "
        "source_kv_memory=1073741824, paste=True, crop='none'"
    ),
    "EditConfig.paper": "**changes",
    "EditConfig.paper_printed": "**changes",
    "EditConfig.sd15": "**changes",
    "EditConfig.dragdiffusion": "**changes",
    "EditConfig.masactrl": "**changes",
    "EditConfig.small": "**changes",
    "EditResult": "image, source, trace",
    "KV": "key, value",
    "MutualSelfAttention": "blocks=(11, 12, 13, 14, 15, 16)",
    "ReplayKV": "recorded",
    "Schedule": "steps=50, variant='restored'",
    "Site": "block, kind, grid, rows=()",
    "StableDiffusion.encode": "self, image",
    "StableDiffusion.decode": "self, z0",
    "StableDiffusion.embed": "self, prompts",
    "UNet.forward": "self, z, t, context, attention=None, taps=(), until=None",
    "UNet.from_diffusers": "config, state",
    "UNetConfig": (
        "widths=(320, 640, 1280, 1280), heads=(8, 8, 8, 8), context_dim=768, groups=32, latent_channels=4, "
        "prediction='epsilon'"
    ),
    "UNetOutput": "eps, taps",
    "VAE.encode": "self, picture",
    "VAE.decode": "self, z",
    "VAEConfig": "widths=(128, 256, 512, 512), groups=32, latent_channels=4, scaling_factor=0.18215",
    "compose": "*hooks",
    "drag_latent": (
        "unet, z, level, context, schedule, handles, targets, mask=None, config=DragConfig(), observe=None, "
        "*, attention=None, supervision=None, optimizer=None"
    ),
    "edit": (
        "sd, image, drags=(), mask=None, prompt='', target_prompt=None, seed=42, config=None, *, observe=None, "
        "control=None, supervision=None, optimizer=None, negative_prompt=''"
    ),
    "from_pipeline": "pipe",
    "invert": (
        "unet, z0, context, schedule, steps=None, guidance=1.0, uncond=None, progress=None, record=None, "
        "record_blocks=(11, 12, 13, 14, 15, 16), *, attention=None"
    ),
    "invert_fixed_point": (
        "unet, z0, context, schedule, steps=None, guidance=1.0, uncond=None, progress=None, record=None, "
        "record_blocks=(11, 12, 13, 14, 15, 16), *, iterations=5, tolerance=0.001, attention=None"
    ),
    "load": "path, device='cpu', dtype=torch.float32, *, ema=None, vae=None, text_encoder=None, clip_skip=1",
    "motion_supervision_loss": "features, handles, targets, radius=1, grid=None, active=None, target_patch=None",
    "prepare": "sd, image, prompt='', seed=42, config=None, *, size=None, observe=None, negative_prompt=''",
    "sample": (
        "unet, z, context, schedule, start=None, stop=0, guidance=1.0, uncond=None, attention=None, "
        "progress=None, record=None, record_blocks=(11, 12, 13, 14, 15, 16), *, hook_at=None, rows=()"
    ),
    "sample_controlled": (
        "unet, z_source, z_target, context, schedule, start=None, stop=0, guidance=1.0, uncond=None, "
        "control_step=0, control_blocks=(11, 12, 13, 14, 15, 16), may_move=None, progress=None, record=None, "
        "hook_at=None"
    ),
    "track_points": "features, reference, handles, radius=3, grid=None",
    "widget": "sd, picture, prompt='', config=None, *, seed=42, negative_prompt=''",
}
OPTIONS = {
    "edit": (
        "--anchor --blend --checkpoint --compile --control --control-blocks --control-step --crop --device --drag "
        "--drag-step --dtype --fixed-point --force --from-noise --guidance --help --job --json --keep-going "
        "--lam --loss --lora-steps --lost-patience --lr --mask --mask-blocks --mask-threshold --no-blend "
        "--no-keep-going --no-paste --object-words --optimizer --out --paste --path --patience "
        "--drag-guidance --preset --prompt --quiet --radius --reach --reference --seed "
        "--sheet --size --skip-existing --source --source-kv --source-kv-memory --stall --steps --tap --target-prompt "
        "--threads --track-radius --updates --variant --weights --clip-skip --embedding --ema --lora "
        "--negative-prompt --no-ema --text-encoder --vae --every --explain --frames --trace"
    ),
    "generate": (
        "--device --dtype --fixed-point --force --guidance --help --json --out --preset --prompt --quiet "
        "--seed --size --steps --threads --variant --weights --clip-skip --embedding --ema --lora --negative-prompt "
        "--no-ema --text-encoder --vae"
    ),
    "ui": (
        "--clip-skip --device --dtype --embedding --ema --help --host --lora --megabytes --megapixels --no-ema --open "
        "--port --text-encoder --threads --vae --weights"
    ),
    "info": (
        "--help --json --size --verify --weights --clip-skip --embedding --ema --lora --no-ema --text-encoder --vae"
    ),
    "fetch": "--help --to",
    "bench": (
        "--baseline --chart --device --force --handles --help --json --markdown --modes --only --quick "
        "--quiet --repeats --sizes --steps --threads --updates --weights --width"
    ),
}


def written(value: Any) -> str:
    """A default as it stands in the table: a configuration that is all defaults by its name."""
    if type(value).__name__.endswith("Config"):
        return f"{type(value).__name__}()" if value == type(value)() else repr(value)
    return repr(tuple(value)) if isinstance(value, range) else repr(value).replace("<factory>", "...")


def signature(function: Any) -> str:
    stars_of: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts and not any(p[0] == "*" for p in parts):
            parts.append("*")
        stars = stars_of.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={written(parameter.default)}"
        parts.append(f"{stars}{parameter.name}{default}")
    return ", ".join(parts)


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_names_keep_their_parameters(name: str) -> None:
    found: Any = dragsa
    for part in name.split("."):
        found = getattr(found, part)
    assert signature(found) == SIGNATURES[name]


def test_every_public_name_is_there() -> None:
    assert all(hasattr(dragsa, name) for name in dragsa.__all__)
    assert {name.partition(".")[0] for name in SIGNATURES} <= set(dragsa.__all__)
    assert set(dragsa.__all__) <= set(dir(dragsa))
    with pytest.raises(AttributeError, match="no attribute 'edits'"):
        _ = dragsa.edits


@pytest.mark.parametrize("command", OPTIONS)
def test_commands_keep_their_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) >= set(OPTIONS[command].split())
