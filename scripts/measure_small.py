"""How near the small model comes back to a picture that is inverted and denoised, under each schedule variant.

python scripts/measure_small.py      z_0 -> z_T -> z_0 of held-out scenes
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import scenes
import torch
from torch import Tensor

from dragsa import cli, ddim, files, loading
from dragsa.ddim import Schedule
from dragsa.loading import StableDiffusion

SIZE = 128  # pixels
FIRST = 1000  # of the held-out seeds


class RoundTrip(NamedTuple):
    """PSNR of pictures that were inverted and denoised, (B,) each: against the VAE's own, and against the pictures."""

    against_vae: Tensor
    against_picture: Tensor


@torch.no_grad()
def round_trips(sd: StableDiffusion, pictures: Tensor, prompts: Sequence[str], steps: int) -> dict[str, RoundTrip]:
    """z_0 -> z_T -> z_0 of pictures (B, 3, H, W) in [-1, 1] under each schedule variant."""
    context, z_0, found = sd.embed(prompts), sd.encode(pictures), {}
    own = sd.decode(z_0).clamp(-1, 1)
    for variant in ddim.VARIANTS:
        schedule = Schedule(steps, variant)
        z_T = ddim.invert(sd.unet, z_0, context, schedule)[-1]
        again = sd.decode(ddim.sample(sd.unet, z_T, context, schedule)[-1]).clamp(-1, 1)
        found[variant] = RoundTrip(scenes.psnr(again, own), scenes.psnr(again, pictures))
    return found


def roundtrip(sd: StableDiffusion, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """PSNR of z_0 -> z_T -> z_0, decoded, against the VAE's own reconstruction and against the picture."""
    rows = []
    drawn = [scenes.random_scene(seed) for seed in seeds]
    pictures = scenes.draw_batch(drawn, SIZE)  # (B, 3, H, W)
    found = round_trips(sd, pictures, [scenes.caption(scene) for scene in drawn], steps)
    for variant, (against_vae, against_picture) in found.items():
        rows.append(
            {
                "variant": variant,
                "dB against the VAE's": against_vae.mean().item(),
                "least": against_vae.min().item(),
                "dB against the picture": against_picture.mean().item(),
            }
        )
    return rows


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
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("roundtrip",), nargs="?", default="roundtrip")
    parser.add_argument("--weights", type=Path, default=cli.SMALL)
    parser.add_argument("--count", type=cli.whole(1), default=20, help="of held-out scenes")
    parser.add_argument("--first", type=cli.whole(0), default=FIRST, help="the first of the held-out seeds to take")
    parser.add_argument("--steps", type=cli.whole(1), default=50, help="T")
    parser.add_argument("--json", type=Path, help="write the table there")
    try:
        options = parser.parse_args(arguments)
        sd = loading.load(options.weights)
        rows = roundtrip(sd, scenes.HELD_OUT_SEEDS[options.first : options.first + options.count], options.steps)
        print(table(rows))
        if options.json:
            files.save_json(rows, options.json, overwrite=True)
    except (OSError, ValueError) as error:
        print(f"measure_small: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
