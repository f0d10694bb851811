"""Lay pictures side by side in one small file for a page, or reduce a single one.

    python scripts/thumbnail.py OUT.png PICTURE... [--width 600] [--colours 64]

The file has a palette of so many colours: a sheet of results takes a tenth of its bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dragsa import pictures
from dragsa.cli.readers import whole

GAP = 4  # pixels between pictures


def side_by_side(panels: Sequence[Image.Image], width: int) -> Image.Image:
    """Return pictures at one height, `width` wide together; none is enlarged, and one alone has no rim."""
    height = min(panel.height for panel in panels)
    room = width - GAP * (len(panels) - 1)
    height = min(height, max(1, int(room / sum(panel.width / panel.height for panel in panels))))
    small = [panel.resize(pictures.scaled(panel.size, height / panel.height), Image.Resampling.BOX) for panel in panels]
    whole = Image.new("RGB", (sum(one.width for one in small) + GAP * (len(small) - 1), small[0].height), "white")
    x = 0
    for one in small:
        whole.paste(one, (x, 0))
        x += one.width + GAP
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--width", type=whole(1), default=600, help="of all of them together [600]")
    parser.add_argument("--colours", type=whole(2, 256), default=64, help="of the palette [64]")
    options = parser.parse_args(arguments)
    panels = [pictures.to_rgb(pictures.open_picture(path)) for path in options.pictures]
    small = side_by_side(panels, options.width).quantize(options.colours, dither=Image.Dither.NONE)
    pictures.save_picture(small, options.out, overwrite=True)


if __name__ == "__main__":
    main()
