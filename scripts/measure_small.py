"""What the small model can do, measured on held-out scenes whose edits have an exact truth.

    python scripts/measure_small.py roundtrip     z_0 -> z_T -> z_0 for each schedule variant
    python scripts/measure_small.py drags         objects moved by 10 to 30 % of the width, measured in the result

The distance left is found in the edited picture (`scenes.locate`), never taken from point tracking.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import scenes
import torch
from torch import Tensor

from dragsa import ddim, editing, images, weights
from dragsa.config import EditConfig
from dragsa.ddim import Schedule
from dragsa.weights import StableDiffusion

ROOT = Path(__file__).resolve().parents[1]
SIZE = 128  # pixels
FIRST = 1000  # of the held-out seeds, for figures; settings are chosen on others
FIVE = ("centre", "top", "right", "bottom", "left")


@torch.no_grad()
def roundtrip(sd: StableDiffusion, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """PSNR of z_0 -> z_T -> z_0, decoded, against the VAE's own reconstruction and against the picture."""
    rows = []
    drawn = [scenes.random_scene(seed) for seed in seeds]
    pictures = scenes.draw_batch(drawn, SIZE)  # (B, 3, H, W)
    context = sd.embed([scenes.caption(scene) for scene in drawn])
    z_0 = sd.encode(pictures)
    own = sd.decode(z_0).clamp(-1, 1)
    for variant in ddim.VARIANTS:
        schedule = Schedule(steps, variant)
        z_T = ddim.invert(sd.unet, z_0, context, schedule)[-1]
        again = sd.decode(ddim.sample(sd.unet, z_T, context, schedule)[-1]).clamp(-1, 1)
        against_vae, against_picture = scenes.psnr(again, own), scenes.psnr(again, pictures)
        rows.append(
            {
                "variant": variant,
                "dB against the VAE's": against_vae.mean().item(),
                "least": against_vae.min().item(),
                "dB against the picture": against_picture.mean().item(),
            }
        )
    return rows


@dataclass(frozen=True)
class Setting:
    """A row of the table of drags: an edit's numbers, and the handles that are placed on the object."""

    name: str
    config: EditConfig
    handles: tuple[str, ...]  # keypoints; none: no edit


def settings() -> list[Setting]:
    paper, small = EditConfig.paper(size=SIZE), EditConfig.small()
    plain = replace(small, control_step=None)
    return [
        Setting("no edit", small, ()),
        Setting("paper's preset, one handle", paper, ("centre",)),
        Setting("paper's preset, five handles", paper, FIVE),
        Setting("small preset, one handle", small, ("centre",)),
        Setting("small preset, five handles", small, FIVE),
        Setting("small preset, five, no control", plain, FIVE),
        Setting("small preset, five, blended", replace(small, blend=True), FIVE),
    ]


def corridor(before: scenes.Scene, after: scenes.Scene) -> Tensor:
    """A mask (H, W) of all that the object sweeps on its way, with room round it: 1 may move."""
    ways = [replace(before, x=mix(before.x, after.x, s), y=mix(before.y, after.y, s)) for s in torch.linspace(0, 1, 17)]
    swept = torch.stack([scenes.object_mask(replace(way, size=1.3 * way.size), SIZE) for way in ways])
    return (swept.amax(dim=0) > 0.5).float()


def mix(a: float, b: float, share: Tensor) -> float:
    return a + float(share) * (b - a)


def drag_case(sd: StableDiffusion, seed: int, chosen: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """One held-out translation under each setting; one inversion serves those of the same schedule."""
    before, after = scenes.translation(seed)
    picture = images.to_picture(scenes.draw(before, SIZE))
    truth = scenes.draw(after, SIZE)
    start, goal = scenes.keypoints(before, SIZE), scenes.keypoints(after, SIZE)
    asked = math.dist(start["centre"], goal["centre"])
    mask = corridor(before, after)
    sources: dict[Any, editing.Source] = {}
    rows = {}
    for setting in chosen:
        config, begin = setting.config, time.perf_counter()
        result, updates, stop = picture, 0, None
        if setting.handles:
            key = (config.steps, config.variant)
            if key not in sources:
                sources[key] = editing.prepare(sd, picture, scenes.caption(before), config=config)
            drags = [(start[name], goal[name]) for name in setting.handles]
            edited = editing.edit(sd, sources[key], drags, mask, config=config)
            result, updates, stop = edited.image, len(edited.trace.losses), edited.trace.stop
        pixels = images.to_tensor(result)[0]  # (3, H, W)
        place = scenes.locate(pixels, after)
        # An object that cannot be found any more counts as not moved.
        left = asked if math.isnan(place.x) else math.dist(place[:2], goal["centre"])
        error = scenes.colour_error(pixels, after, before)
        rows[setting.name] = {
            "seed": seed,
            "shape": before.shape,
            "asked px": asked,
            "left px": left,
            "left share": left / asked,
            "found": not math.isnan(place.x),
            "overlap": scenes.overlap(pixels, after),
            "dB to the truth": scenes.psnr(pixels, truth).item(),
            "object colour": error.object,
            "ground colour": error.ground,
            "updates": updates,
            "stop": stop,
            "seconds": time.perf_counter() - begin,
        }
    return rows


def summary(name: str, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the cases. `left` is the mean of each case's share of the distance asked."""

    def mean(key: str) -> float:
        values = [case[key] for case in cases if not math.isnan(case[key])]
        return sum(values) / len(values) if values else math.nan

    return {
        "setting": name,
        "left": mean("left share"),
        "left px": mean("left px"),
        "of px": mean("asked px"),
        "halved": sum(case["left share"] < 0.5 for case in cases) / len(cases),
        "overlap": mean("overlap"),
        "dB": mean("dB to the truth"),
        "object": mean("object colour"),
        "ground": mean("ground colour"),
        "updates": mean("updates"),
        "seconds": mean("seconds"),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same keys as aligned text."""
    lines = [list(rows[0])]
    for row in rows:
        lines.append([f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()])
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if n == 0 else text.rjust(w) for n, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("roundtrip", "drags"))
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "small")
    parser.add_argument("--count", type=int, default=20, help="of held-out scenes")
    parser.add_argument("--first", type=int, default=FIRST, help="the first of the held-out seeds to take")
    parser.add_argument("--steps", type=int, default=50, help="T of the round trip")
    parser.add_argument("--json", type=Path, help="write every single result there")
    options = parser.parse_args(arguments)
    try:
        sd = weights.load(options.weights)
    except weights.WeightsError as error:
        print(f"measure_small: error: {error}", file=sys.stderr)
        return 2
    seeds = scenes.HELD_OUT_SEEDS[options.first : options.first + options.count]
    if options.what == "roundtrip":
        rows = roundtrip(sd, seeds, options.steps)
        results: Any = rows
    else:
        chosen = settings()
        cases = [drag_case(sd, seed, chosen) for seed in seeds]
        results = {setting.name: [case[setting.name] for case in cases] for setting in chosen}
        rows = [summary(name, of_setting) for name, of_setting in results.items()]
    print(table(rows))
    if options.json:
        images.save_bytes((json.dumps(results, indent=1) + "\n").encode(), options.json, overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
