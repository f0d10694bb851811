"""Every number of the method and of the networks, as values: frozen dataclasses and nothing else."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field, replace
from typing import Any, Literal

BLOCKS = 16  # transformer blocks of the UNet in forward order, block01 ... block16
CONTROL_BLOCKS = tuple(range(11, 17))  # MasaCtrl's "layers 10 to 15", counted from 0

# The words that a setting may take; `typing.get_args` gives them to checks and to the command line.
Variant = Literal["restored", "even", "dragdiffusion", "masactrl", "omitted"]  # see ddim.Schedule
Control = Literal["mutual", "union", "masked"]
SourceKV = Literal["exact", "inversion", "none"]
Optimizer = Literal["adam", "adam-mini", "sgd"]
Reference = Literal["first", "current"]
Loss = Literal["mean", "sum"]
Crop = Literal["none", "auto"]
Compile = Literal["auto", "off", "whole", "regions"]
Preset = Literal["paper", "paper_printed", "sd15", "dragdiffusion", "masactrl", "small", "artwork"]
Prediction = Literal["epsilon", "v_prediction"]  # what a UNet was trained to predict, by diffusers' words
DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class UNetConfig:
    """Widths of a UNet of SD 1.5's structure; the defaults are SD 1.5's own."""

    widths: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    heads: tuple[int, int, int, int] = (8, 8, 8, 8)
    context_dim: int = 768
    groups: int = 32
    latent_channels: int = 4
    prediction: Prediction = "epsilon"  # of the weights; whoever calls the UNet gets ε from either


@dataclass(frozen=True)
class VAEConfig:
    """Widths of a VAE of SD 1.5's structure; the defaults are SD 1.5's own."""

    widths: tuple[int, int, int, int] = (128, 256, 512, 512)
    groups: int = 32
    latent_channels: int = 4
    scaling_factor: float = 0.18215


@dataclass(frozen=True)
class LoRAConfig:
    """The numbers that DragDiffusion trains a LoRA by; what it leaves to AdamW is AdamW's own."""

    steps: int = 80
    learning_rate: float = 5e-4
    batch: int = 4
    rank: int = 16
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class DragConfig:
    """The drag loop's numbers, each with its symbol in the paper.

    Radii and distances are in cells of the supervision grid (half the picture in each direction). The two patiences,
    `stall` and `anchor` are not the paper's, whose loop ends on arrival or when the updates are used up: None for the
    first three and 0 for the last give that. Nor is Adam, DragDiffusion's, which stands in for the paper's plain
    descent ("sgd") in every preset but `paper_printed`, or a sum of taps.

    The paper's loss is a sum over channels, DragDiffusion's program takes the mean: by `loss`="mean" plain descent goes
    C times less far than printed, and λ weighs C times more beside the patches (C = 320 at SD 1.5's block14, 32 at the
    small model's): 0.1 nearly forbids a change outside the mask, where printed it only resists one.
    """

    tap: str = "block14"  # where the features F are read: a block or stage, or the sum of some, "block14+block15"
    updates: int = 80  # at most so many updates of the latent
    lr: float = 0.01  # learning rate η
    radius: int = 1  # r_1, half the side of the supervised patch
    track_radius: int = 3  # r_2, half the side of the window searched by point tracking
    lam: float = 0.1  # λ, weight of the mask term
    reach: float = 2.0  # a handle nearer than this to its target has arrived
    optimizer: Optimizer = "adam"  # "adam-mini": one scale for all; "sgd": the paper's plain descent
    reference: Reference = "first"  # tracking looks for F(z)(h^0), "first", or F(z)(h^k), "current"
    patience: int | None = 30  # give up after so many updates without a handle's move; None never does
    lost_patience: int | None = 5  # and after so many in which a handle's features were nowhere to be found
    stall: int | None = None  # and after so many without coming nearer, going back to where it was nearest
    anchor: float = 0.0  # share of F(z⁰)(h⁰) in what F(z)(h + d) is pulled to; the rest is sg F(z)(h), the paper's all
    checkpoint: bool = False  # gradient checkpointing: less memory, a third more time
    compile: Compile = "auto"  # the update: "off" eager, "whole" or "regions" compiled; "auto" is eager today
    loss: Loss = "mean"  # over the C channels of F, as DragDiffusion's program has it; "sum": as the paper prints it
    drag_guidance: float = 1.0  # s of the loop's own passes, from 1: DragDiffusion's for generated pictures; 1 is none


@dataclass(frozen=True)
class EditConfig:
    """One edit's numbers: the schedule, where the drag and the control act, and the drag loop's own."""

    drag: DragConfig = field(default_factory=DragConfig)
    steps: int = 50  # T
    variant: Variant = "restored"  # schedule variant, see ddim.Schedule
    drag_step: int = 10  # S: the latent is optimised so many denoising steps from z_T, at level T - S
    control_step: int | None = 10  # A: control acts from this denoising step on, counted from z_T; None never does
    control_blocks: tuple[int, ...] = CONTROL_BLOCKS  # blocks whose K and V come from the source
    # What the edit attends to there: "mutual", the source; "union", the source and itself; "masked", of the source the
    # object from the object and the ground from the ground, told apart by where the prompts' words look.
    control: Control = "mutual"
    object_words: tuple[str, ...] = ()  # for "masked": the object's words, each in one of the prompts or in both
    mask_blocks: tuple[int, ...] = (5, 6, 8, 9, 10)  # blocks of one grid whose cross-attention tells; 16×16 at 512 px
    mask_threshold: float = 0.1  # between 0 and 1: what is over it is the object
    guidance: float = 1.0  # classifier-free guidance scale of the edit (and of generation from noise)
    blend: bool = False  # outside the mask, take the source's latents at every step
    fixed_point: int = 0  # inversion: so many fixed-point iterations a step, 0 for plain DDIM inversion
    lora_steps: int = 0  # of training a LoRA on the picture, which all else then runs under; 0 trains none
    size: int = 512  # working size: the picture's longer side is fitted to at most this many pixels
    # Which K and V of a `Source` serve its next edit: "exact", those that its first edit computed; "inversion", those
    # of `prepare`'s own passes, an approximation for a picture that is inverted; "none": each edit computes its own.
    source_kv: SourceKV = "exact"
    source_kv_memory: int = 2**30  # bytes of them that are kept in memory; what is over goes to mapped files
    paste: bool = True  # outside the mask the result has the picture's own pixels, and a soft rim inside of it
    crop: Crop = "none"  # "auto": of a large picture edit the part about drags and mask alone, and put it back

    def _but(self, changes: dict[str, Any]) -> EditConfig:
        """Return these settings with changes. Raises TypeError for one of the drag loop's, and says where it goes."""
        for name in changes.keys() & DragConfig.__dataclass_fields__:
            raise TypeError(f"{name} is a setting of DragConfig: drag=replace(config.drag, {name}={changes[name]!r})")
        return replace(self, **changes)

    @classmethod
    def paper(cls, **changes: Any) -> EditConfig:
        """The paper's numbers: S = A = 10 (section 4.3), T = 50 and learning rate 0.01 (4.4), block14 (2.2)."""
        return cls()._but(changes)

    @classmethod
    def paper_printed(cls, **changes: Any) -> EditConfig:
        """The paper's numbers, with descent and loss as they are printed: z - η ∂L/∂z of the sum over channels.

        Beside `paper`, not in its place: less of the distance is left (0.62 for 0.79, over 100 drags), and the ground
        changes a little more (scripts/README.md). At SD 1.5's channels, ten times as many, not measured.
        """
        return cls(drag=DragConfig(optimizer="sgd", loss="sum"))._but(changes)

    @classmethod
    def sd15(cls, **changes: Any) -> EditConfig:
        """The paper's method for drags on SD 1.5, at the tap and the level that were measured best there.

        All is the paper's but the tap, `decoder3` for block14, and S = 15 for 10, from a reproduction of DragDiffusion
        on DragBench: mean distance 54.4, 36.1, 35.1, 46.1 for features of decoder1 … decoder4 (block14 is in decoder4),
        40.9, 34.9, 49.3 for the drag at z_20, z_35, z_50, and 37.0, 34.1, 34.9, 36.6 for λ = 0, 0.1, 0.5, 1.
        """
        return cls(drag=DragConfig(tap="decoder3"), drag_step=15)._but(changes)

    @classmethod
    def dragdiffusion(cls, **changes: Any) -> EditConfig:
        """DragDiffusion's program: inversion strength 0.7 (z_35), `decoder3`, control from the first step.

        It trains a LoRA first: `lora_steps=80`. Its first version, of June 2023, which the paper compares with, has no
        control: `control_step=None`.
        """
        return cls(drag=DragConfig(tap="decoder3"), variant="dragdiffusion", drag_step=15, control_step=0)._but(changes)

    @classmethod
    def masactrl(cls, **changes: Any) -> EditConfig:
        """MasaCtrl's settings: prompts alone, control from step 4 in block11 … block16, guidance 7.5.

        Its mask-guided form is `control="masked"` with `object_words`, its union `control="union"`.
        """
        return cls(variant="masactrl", control_step=4, guidance=7.5)._but(changes)

    @classmethod
    def small(cls, **changes: Any) -> EditConfig:
        """For the small model of weights/small: what moved objects best on held-out scenes other than those measured.

        128 px, the drag at z_20, larger patches and steps than the paper's, an optimiser with one scale for the whole
        latent, a third of what is pulled to from the first latent, an end when the handles come no nearer, and object
        masks from the blocks of 16×16 cells.
        """
        drag = DragConfig(lr=0.05, updates=120, radius=3, reach=0.7, optimizer="adam-mini", stall=25, anchor=0.35)
        return cls(drag, drag_step=30, control_step=4, mask_blocks=(1, 2), mask_threshold=0.5, size=128)._but(changes)

    @classmethod
    def artwork(cls, **changes: Any) -> EditConfig:
        """For weights/artwork, likewise: `small`, but at z_40, with larger patches and three times the paper's λ."""
        return replace(cls.small(drag_step=10), drag=replace(cls.small().drag, radius=5, lam=0.3))._but(changes)


SUITED: dict[tuple[int, ...], Preset] = {(32, 64, 128, 128): "small", (32, 64, 128, 64): "artwork"}


def suiting(widths: tuple[int, ...]) -> Preset:
    """Return the preset that holds by default for a UNet of these widths, in Python and on the command line."""
    return SUITED.get(widths, "sd15")


def is_whole(value: Any) -> bool:
    """Tell whether a value is an integer of Python's or NumPy's, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
