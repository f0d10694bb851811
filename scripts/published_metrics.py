"""The published mean distance's own error, on drawn scenes whose true result is known.

python scripts/published_metrics.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dragsa import cli, loading
from dragsa.evaluation import distances, scenes, tables

TAPS = "decoder2", "decoder3", "decoder4"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", type=Path, default=cli.SMALL)
    parser.add_argument("--count", type=cli.whole(1), default=20, help="of held-out scenes")
    parser.add_argument("--first", type=cli.whole(0), default=3000, help="the first of the held-out seeds to take")
    parser.add_argument("--size", type=cli.whole(64), default=128, help="of the pictures, in pixels")
    try:
        options = parser.parse_args(arguments)
        sd = loading.load(options.weights)
        seeds = scenes.HELD_OUT_SEEDS[options.first : options.first + options.count]
        print(tables.markdown(distances.on_truth(sd, seeds, TAPS, options.size)))
    except (OSError, ValueError) as error:
        print(f"published_metrics: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
