"""Download Stable Diffusion 1.5's published weights: `dragsa fetch`, with the same arguments (`--help` lists them).

python scripts/fetch_weights.py folder-fp16 --to weights/sd15
"""

import sys

from dragsa import cli

if __name__ == "__main__":
    sys.exit(cli.main(["fetch", *sys.argv[1:]]))
