"""Mutate weights files in a thousand ways: each must load as what it is, or be refused in one line.

Tiny files of every kind (a single file, a folder, a LoRA, a VAE, a textual inversion) are damaged by a seeded hand in
their headers, their bodies or their settings. What loads must have finite weights, every one of which stands in its
files; what does not must say so in one line. Every other outcome is counted, shown, and fails. Ten minutes, no network.
Not a part of the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections import Counter

import torch

from dragsa.evaluation import damage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    ends = damage.damaged_files(options.cases, options.seed)
    print("| kind | cases | loaded | refused in one line | other |\n| --- | --- | --- | --- | --- |")
    for kind in (*dict.fromkeys(one.kind for one in ends), "all"):
        counts = Counter(one.end for one in ends if kind in (one.kind, "all"))
        right = counts["loaded"], counts["refused"]
        print(f"| {kind} | {counts.total()} | {right[0]} | {right[1]} | {counts.total() - sum(right)} |")
    wrong = [f"case {n}, {one.kind}, {one.way}: {one.end}" for n, one in enumerate(ends) if not one.is_right]
    print(*wrong[:20], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
