"""The UNet's blocks: 16 transformer blocks and 9 stages, by the names that a tap takes.

The paper's "14th block" is read as the 14th transformer block in forward order, `block14`: 64×64 cells of 320 channels
at 512 px. It does not say what it counts, but the 14th of the original program's 25 blocks has 8×8 cells and the 14th
ResBlock 16×16, too few to drag a point. MasaCtrl counts the same from 0: its layers 10 to 15 are `block11` … `block16`.
"""

from __future__ import annotations

from typing import NamedTuple

from dragsa.config import BLOCKS


def block_name(block: int) -> str:
    """Return the tap of transformer block 1 … 16: `block01` … `block16`."""
    return f"block{block:02d}"


class Stage(NamedTuple):
    """Some ResBlocks at one level of width and grid, and the change of resolution behind them.

    blocks: the transformer block behind each ResBlock, None where there is none. level: of the widths, and of the grid
    that it begins on, 64, 32, 16, 8 cells at 512 px; `end`: of the grid that it ends on.
    """

    name: str
    blocks: tuple[int | None, ...]
    level: int
    end: int


ENCODER = (
    Stage("encoder1", (1, 2), 0, 1),
    Stage("encoder2", (3, 4), 1, 2),
    Stage("encoder3", (5, 6), 2, 3),
    Stage("encoder4", (None, None), 3, 3),
)
MIDDLE = Stage("mid", (7, None), 3, 3)  # its transformer stands between its two ResBlocks
DECODER = (
    Stage("decoder1", (None, None, None), 3, 2),
    Stage("decoder2", (8, 9, 10), 2, 1),
    Stage("decoder3", (11, 12, 13), 1, 0),
    Stage("decoder4", (14, 15, 16), 0, 0),
)
STAGES = tuple(stage.name for stage in (*ENCODER, MIDDLE, *DECODER))


class Block(NamedTuple):
    """A transformer block's name in diffusers, `down_blocks.0.attentions.0`, and in the original program."""

    diffusers: str
    original: str


def _blocks() -> dict[int, Block]:
    found = {7: Block("mid_block.attentions.0", "middle_block.1")}
    for stages, ours, theirs, first in ((ENCODER, "down", "input", 1), (DECODER, "up", "output", 0)):
        for n, stage in enumerate(stages):
            for layer, block in enumerate(stage.blocks):
                if block is not None:
                    original = f"{theirs}_blocks.{first + 3 * n + layer}.1"
                    found[block] = Block(f"{ours}_blocks.{n}.attentions.{layer}", original)
    return dict(sorted(found.items()))


TRANSFORMERS = _blocks()  # 1 … 16
# The (block, kind) of diffusers' attention layers in the order that it lists them: down, up, and the middle last.
DIFFUSERS_ORDER = tuple((n, kind) for n in (*range(1, 7), *range(8, 17), 7) for kind in ("self", "cross"))


def _regions() -> tuple[str, ...]:
    found = []
    for stage in (*ENCODER, MIDDLE, *DECODER):
        for layer, block in enumerate(stage.blocks, start=1):
            found += [f"{stage.name}.res{layer}"] + ([block_name(block)] if block else [])
    return tuple(found)


REGIONS = _regions()  # 22 ResBlocks and 16 transformers in forward order: encoder1.res1, block01, …


def _activations() -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for stage in (*ENCODER, MIDDLE, *DECODER):
        found |= {block_name(block): (stage.level, stage.level) for block in stage.blocks if block}
        found[stage.name] = stage.level, stage.end
    return found


ACTIVATIONS = _activations()  # every tap of an activation, in forward order -> its levels of width and of grid
TAPS = (*ACTIVATIONS, *(f"{block_name(n)}.kv" for n in TRANSFORMERS))  # and of a block's self-attention's key and value


def check_blocks(blocks: tuple[int, ...]) -> None:
    """Raise a ValueError unless every number names a transformer block."""
    wrong = [block for block in blocks if not 1 <= block <= BLOCKS]
    if wrong:
        raise ValueError(f"no transformer block {wrong[0]}: blocks are numbered 1 … {BLOCKS}")


def check_taps(taps: tuple[str, ...], until: str | None) -> None:
    """Raise a ValueError that names the first unknown tap. `until` ends at an activation, not at a K/V pair."""
    if isinstance(taps, str):
        raise ValueError(f"taps must be a tuple of names, such as ({taps!r},), came the text {taps!r}")
    for name in taps:
        if name not in TAPS:
            raise ValueError(f"unknown tap {name!r}: known are block01 … block16, block01.kv …, {', '.join(STAGES)}")
    if until is not None and until not in ACTIVATIONS:
        raise ValueError(f"unknown end {until!r} of the pass: known are block01 … block16, {', '.join(STAGES)}")
