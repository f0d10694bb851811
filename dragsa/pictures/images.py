"""Pictures, points and masks in and out: between a picture as given, the working picture, and the supervision grid.

Three grids cover the same area, edge on edge. The *picture* has any size. The *working picture* is what the networks
see: the picture fitted to multiples of 8. The *supervision grid* is half the working picture in each direction. A size
is (width, height) everywhere in this file; a tensor's shape is (height, width), as always.
"""

from __future__ import annotations

import itertools
import struct
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dragsa import files

Point = tuple[float, float]  # (x, y), pixel centres at integers, x to the right, y down
Size = tuple[int, int]  # (width, height)
Given = str | Path | Image.Image | np.ndarray | Tensor  # a picture, or a mask

CELL = 8  # pixels of the working picture that one latent cell is wide
ORIENTATION = 0x0112  # EXIF's number of how a picture is to be turned
# Pillow's words for damaged files; AVIF's reader has RuntimeError
DAMAGED = (SyntaxError, EOFError, ValueError, OSError, RuntimeError, LookupError, TypeError, struct.error)
SMALLEST = 64  # a working picture's shorter side is brought to this where the longer one allows it


def open_picture(given: Given, what: str = "picture") -> Image.Image:
    """Return a picture of any mode, whole, upright (EXIF's orientation applied), the first frame of several.

    given: a file's path; a picture, which comes back itself where it is upright; or an array or tensor, (height, width)
    of grey or (height, width, channels) of grey, RGB or RGBA: booleans, bytes 0 … 255, or floats 0 … 1. what: it is
    called in an error.

    Raises ValueError for a file that is no picture, is cut short or is absurdly large, and for anything else that is no
    picture; OSError for a file that cannot be read at all.
    """
    if isinstance(given, np.ndarray | Tensor):
        return from_array(given)
    if not isinstance(given, str | Path | Image.Image):
        raise ValueError(f"a {what} is a PIL picture, a path or an array, came {type(given).__name__}")
    try:
        if isinstance(given, Image.Image):
            given.load()
            return ImageOps.exif_transpose(given) if given.getexif().get(ORIENTATION, 1) != 1 else given
        with Image.open(given) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        is_text = isinstance(given, str) and " " in given and not Path(given).suffix
        hint = "; a text for the model is prompt= or target_prompt=" if is_text else ""
        raise FileNotFoundError(f"{what}: no such file {str(given)!r}{hint}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{given}: not a picture in a format that can be read") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{given}: too many pixels for a picture") from None
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's own: missing, a folder, no permission
            raise
        name = given if isinstance(given, str | Path) else "picture"
        raise ValueError(f"{name}: damaged picture ({error})") from None


def from_array(array: np.ndarray | Tensor) -> Image.Image:
    """Return a picture of an array or tensor, as `open_picture` takes it. Raises ValueError for any other."""
    levels = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array)
    if levels.ndim not in (2, 3) or 0 in levels.shape or levels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f"a picture's array must be (height, width) or (height, width, 1, 3 or 4), came {levels.shape}"
        )
    if levels.dtype != np.uint8:
        if not (np.isfinite(levels).all() and (levels >= 0).all() and (levels <= 1).all()):
            raise ValueError("a picture's array must hold bytes 0 … 255, booleans, or floats 0 … 1")
        levels = np.round(levels.astype(np.float64) * 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode as eight-bit RGB: transparency laid on white, sixteen bits scaled to eight."""
    if picture.mode.startswith("I"):  # 16-bit grey, or the 32-bit mode that some writers put it in
        levels = np.asarray(picture).astype(np.float64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"grey levels from {levels.min():g} to {levels.max():g}: expected 0 to 65535")
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        levels = np.asarray(picture)
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            raise ValueError("a picture of floats: expected levels from 0 to 1")
        return Image.fromarray(np.round(levels * 255).astype(np.uint8)).convert("RGB")
    return _laid_on("white", picture).convert("RGB")


def _laid_on(colour: str, picture: Image.Image) -> Image.Image:
    """Return a picture that may have transparency without it: laid on a colour."""
    if not picture.has_transparency_data:
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture.convert("RGBA"))


def working_size(width: int, height: int, size: int = 512) -> Size:
    """Return the working picture's size: its aspect, the longer side at most `size`, both multiples of 8.

    A picture is not enlarged, beyond rounding to the nearest multiple, unless its shorter side is under 64 px; then as
    far as `size` allows. Raises ValueError for a picture without pixels or a `size` under 64.
    """
    if min(width, height) < 1:
        raise ValueError(f"a picture of {width}×{height} has no pixels")
    if size < SMALLEST:
        raise ValueError(f"working size {size}: at least {SMALLEST} pixels")
    most = size // CELL  # cells
    shorter, longer = sorted((width, height))
    scale = min(CELL * most / longer, max(1.0, SMALLEST / shorter))
    columns, rows = (min(most, max(1, int(side * scale / CELL + 0.5))) for side in (width, height))
    return CELL * columns, CELL * rows


def scaled(size: Size, scale: float) -> Size:
    """Return `scale` times a size, in whole pixels, at least one in each direction."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def grid_size(working: Size) -> Size:
    """Return the supervision grid's size for a working picture: half of it in each direction."""
    return working[0] // 2, working[1] // 2


def to_tensor(picture: Image.Image, size: Size | None = None) -> Tensor:
    """Turn a picture of any mode into float32 (1, 3, height, width) in [-1, 1], brought to `size` by Lanczos."""
    rgb = to_rgb(picture).resize(size or picture.size, Image.Resampling.LANCZOS)
    levels = torch.from_numpy(np.array(rgb))  # (h, w, 3)
    return (levels.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()  # (1, 3, h, w)


def to_picture(tensor: Tensor) -> Image.Image:
    """Turn float (1, 3, h, w) or (3, h, w) in [-1, 1] into an RGB picture; what lies outside is clamped.

    Raises ValueError for another shape, and if a value is not finite.
    """
    x = tensor.detach().float().cpu()
    x = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    if x.ndim != 3 or x.shape[0] != 3:
        raise ValueError(f"a picture's tensor must be (3, h, w) or (1, 3, h, w), came {tuple(tensor.shape)}")
    if not x.isfinite().all():
        raise ValueError("the picture has values that are not finite")
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())  # (h, w, 3)


def is_grey(picture: Image.Image) -> bool:
    """Tell whether a picture's mode has no colours."""
    return picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def restore(result: Image.Image, original: Image.Image) -> Image.Image:
    """Return a working picture in the original's size, and in grey if the original was grey.

    Every other mode comes back as RGB. Transparency does not come back: the old outline is wrong for what has moved. An
    RGB original's colour profile is kept, since its numbers were worked on as they are.
    """
    result = result.resize(original.size, Image.Resampling.LANCZOS)  # a copy at least
    if is_grey(original):
        return result.convert("L")
    if original.mode in ("RGB", "RGBA") and "icc_profile" in original.info:
        result.info["icc_profile"] = original.info["icc_profile"]
    return result


def to_grid(points: Tensor | Sequence[Point], picture: Size, grid: Size) -> Tensor:
    """Turn points (n, 2) in pixels of the picture into float32 (n, 2) in cells of the grid.

    Edges fall on edges: x_grid = (x + ½) W_grid / W_picture - ½, so a point in the outer half of a border pixel may lie
    up to half a cell outside of the cells' centres. Raises ValueError that names a point outside of the picture.
    """
    given = torch.as_tensor(np.asarray(points, dtype=np.float64).reshape(-1, 2))  # (n, 2)
    for x, y in given.tolist():
        if not (-0.5 <= x <= picture[0] - 0.5 and -0.5 <= y <= picture[1] - 0.5):  # also where it is NaN
            raise ValueError(f"point {x:g},{y:g} lies outside of the picture ({picture[0]}×{picture[1]} pixels)")
    return _affine(given, picture, grid).float()


def drags_to_grid(drags: Sequence[tuple[Point, Point]], picture: Size, grid: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Turn drags in pixels of the picture into handles on whole cells, their targets, and where the handles were asked.

    Three float32 (n, 2). A pixel lies between cells, and the drag loop looks about whole ones: each handle is brought
    to the nearest cell, and its target moved by as much, so that the drag goes as far and the same way. Raises as
    `to_grid` does.
    """
    asked, targets = (to_grid([pair[end] for pair in drags], picture, grid) for end in (0, 1))
    edge = torch.tensor(grid, dtype=torch.float32)
    handles = asked.round().clamp(min=torch.zeros(2), max=edge - 1)
    moved = targets + (handles - asked)
    return handles, moved.clamp(min=torch.full((2,), -0.5), max=edge - 0.5), asked


def from_grid(points: Tensor | Sequence[Point], picture: Size, grid: Size) -> Tensor:
    """Turn points (..., 2) in cells of the grid into float64 pixels of the picture: the inverse of `to_grid`."""
    return _affine(torch.as_tensor(points).double(), grid, picture)


def _affine(points: Tensor, size: Size, new: Size) -> Tensor:
    scale = torch.tensor([new[0] / size[0], new[1] / size[1]], dtype=points.dtype)
    return (points + 0.5) * scale - 0.5


def open_mask(mask: Given, picture: Size, grid: Size) -> Tensor:
    """Turn a mask of the picture's size (white may move) into float32 (H, W) on the grid: each cell's share of white.

    Raises ValueError as `mask_levels` does.
    """
    cells = Image.fromarray(mask_levels(mask, picture)).resize(grid, Image.Resampling.BOX)  # the mean over each cell
    return torch.from_numpy(np.array(cells)).clamp(0, 1)  # (H, W)


def mask_levels(mask: Given, picture: Size) -> np.ndarray:
    """Return a mask of the picture's size as float32 (height, width), 0 black to 1 white.

    A picture counts by its brightness, its transparency as black. An array or tensor is (height, width): booleans,
    bytes 0 … 255, or numbers 0 … 1. A picture or bytes whose largest level is 1 hold 0 and 1, and 1 is white. Raises
    ValueError for another size, shape or range, and where nothing is white.
    """
    name = f"mask {mask}" if isinstance(mask, str | Path) else "mask"
    if isinstance(mask, np.ndarray | Tensor):
        array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
        if array.ndim != 2:
            raise ValueError(f"a mask's array must be (height, width), came {array.shape}")
    else:
        array = np.asarray(to_rgb(_laid_on("black", open_picture(mask, "mask"))).convert("L"))  # (height, width)
    levels = array.astype(np.float32)
    if array.dtype == np.uint8 and array.max(initial=0) > 1:
        levels /= 255
    if not (levels >= 0).all() or not (levels <= 1).all():
        raise ValueError("a mask's values must lie in 0 … 1 (or be bytes 0 … 255)")
    came = (levels.shape[1], levels.shape[0])
    if came != picture:
        raise ValueError(f"{name}: {came[0]}×{came[1]} pixels; it must be the picture's {picture[0]}×{picture[1]}")
    if not levels.any():
        raise ValueError(f"{name}: all black (transparent is black, too), so that nothing may move: paint that white")
    return levels


def unmasked(mask: Tensor, points: Tensor) -> list[bool]:
    """Tell of each point (n, 2) whether it stands where the mask (H, W) lets nothing move."""
    (height, width), (columns, rows) = mask.shape, points.round().long().T.to(mask.device)
    return (mask[rows.clamp(0, height - 1), columns.clamp(0, width - 1)] < 0.5).tolist()


def warn_unmasked(mask: Tensor, handles: Tensor, targets: Tensor) -> None:
    """Warn of handles and targets (n, 2) each that stand where the mask (H, W) lets nothing move, and of thin white."""
    if mask.any() and not mask[::4, ::4].any():  # by nearest neighbour, as `drag.to_latent_grid`
        warnings.warn("the mask's white is too thin for the latent's cells of 8 pixels: nothing may move", stacklevel=3)
    for n, off in enumerate(zip(unmasked(mask, handles), unmasked(mask, targets), strict=True), start=1):
        if all(off):
            said = f"handle {n} and its target stand outside of the mask's white: is the mask inverted? White may move"
            warnings.warn(said, stacklevel=3)
        elif any(off):
            name = "handle" if off[0] else "target"
            warnings.warn(f"{name} {n} stands outside of the mask's white, where nothing may move", stacklevel=3)


def check_format(path: str | Path, size: Size = (300, 20)) -> str:
    """Return Pillow's name of the format of the path's suffix.

    Raises ValueError if a picture of this size cannot be written in it, in colour and in grey, or comes back in another
    size, as from an icon's format. Tried on its first row and column, before the work.
    """
    suffix = Path(path).suffix.lower()
    name = Image.registered_extensions().get(suffix)
    if name is None or name not in Image.SAVE:
        raise ValueError(f"{path}: {suffix or 'no suffix'} is not a picture format that can be written; use .png")
    for mode, probe in itertools.product(("RGB", "L"), ((300, 20), (size[0], 1), (1, size[1]))):
        data = BytesIO()
        try:
            Image.new(mode, probe).save(data, name)
        except Exception as error:  # Pillow's writers have no class of their own
            reason = " ".join(str(error).split()) or type(error).__name__
            sides = f"{probe[0]}×{probe[1]} pixels, {mode}"
            raise ValueError(f"{path}: {suffix} cannot hold this ({sides}: {reason}); use .png") from None
        try:
            with Image.open(data) as read:
                came = read.size
        except UnidentifiedImageError:  # a format that Pillow writes and does not read
            continue
        if came != probe:
            raise ValueError(f"{path}: {suffix} changes a picture's size; use .png")
    return name


def picture_bytes(picture: Image.Image, path: str | Path) -> bytes:
    """Return the file that holds a picture in the format of the path's suffix. Raises as `check_format` does."""
    data = BytesIO()
    kind, profile = check_format(path, picture.size), picture.info.get("icc_profile")
    how: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if kind == "JPEG":
        how |= {"quality": 95, "subsampling": 0}  # Pillow's own, 75 and 4:2:0, are seen at coloured edges
    picture.save(data, kind, **how)
    return data.getvalue()


def save_picture(picture: Image.Image, path: str | Path, overwrite: bool = False) -> None:
    """Write a picture in the format of the path's suffix, whole or not at all.

    A file that is there is replaced only if `overwrite`. Raises as `files.check_output` and `check_format` do.
    """
    files.save_bytes(picture_bytes(picture, path), path, overwrite)
