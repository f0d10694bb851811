"""Time the drag loop on this machine: `dragsa bench`, with the same options (`--help` lists them).

python scripts/bench_drag.py --json out/bench.json --markdown out/bench.md --chart out/bench.png
python scripts/bench_drag.py --quick
"""

import sys

from dragsa import cli

if __name__ == "__main__":
    sys.exit(cli.main(["bench", *sys.argv[1:]]))
