import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dragsa.pictures import images


def ramp(width: int = 40, height: int = 24) -> Image.Image:
    """Red grows to the right, green downwards; blue is constant."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // (width - 1), y * 255 // (height - 1), x * 0 + 60], 2).astype(np.uint8))


def mean_error(one: Image.Image, two: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(two, dtype=float)).mean())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_is_read_and_comes_back_in_its_own_size(tmp_path: Path, mode: str) -> None:
    rgb = ramp()
    grey = mode in ("1", "L", "LA", "I;16", "I", "F")
    if mode in ("I;16", "I"):
        given = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
        given = given if mode == "I;16" else given.convert("I")
    elif mode == "F":
        given = Image.fromarray(np.asarray(rgb.convert("L"), dtype=np.float32) / 255)
    else:
        given = rgb.quantize(256) if mode == "P" else rgb.convert(mode)
    path = tmp_path / ("picture" + (".tif" if mode in ("CMYK", "F", "I") else ".png"))
    given.save(path)

    picture = images.open_picture(path)
    expected = rgb.convert("L").convert("RGB") if grey else rgb
    allowed = {"1": 256.0, "P": 8.0}.get(mode, 0.0)  # dithered; 256 colours
    assert mean_error(images.to_rgb(picture), expected) <= allowed
    tensor = images.to_tensor(picture, (64, 40))
    assert tensor.shape == (1, 3, 40, 64) and tensor.dtype == torch.float32
    back = images.restore(images.to_picture(tensor), picture)
    assert back.size == (40, 24)
    assert back.mode == ("L" if grey else "RGB")


def of_mode(mode: str) -> Image.Image:
    """A ramp in a mode; it is grey where that has no colours."""
    grey = np.asarray(ramp().convert("L"))
    if mode.startswith("I"):
        deep = Image.fromarray(grey.astype(np.uint16) * 257)
        return deep if mode == "I;16" else deep.convert("I")
    return Image.fromarray(grey / np.float32(255)) if mode == "F" else ramp().convert(mode)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_can_be_written(tmp_path: Path, mode: str, suffix: str) -> None:
    given = of_mode(mode)
    images.save_picture(given, path := tmp_path / f"a.{suffix}")
    lost = mean_error(images.to_rgb(images.open_picture(path)), images.to_rgb(given))
    assert lost < (16 if suffix in ("jpg", "webp", "gif") else 0.1)  # levels that are cut off lose some 100
    if mode in {"png": ("LA", "RGBA", "I;16"), "jpg": ("CMYK",), "tif": ("CMYK", "F", "I", "I;16")}.get(suffix, ()):
        assert Image.open(path).mode == mode  # which the format has


def test_a_colour_profile_is_dropped_with_the_colours_that_it_is_of(tmp_path: Path) -> None:
    for mode, kept in (("RGB", True), ("P", True), ("CMYK", False), ("L", False), ("YCbCr", False)):
        given = of_mode(mode)
        given.info["icc_profile"] = b"profile"
        assert ("icc_profile" in images.to_rgb(given).info) == kept and "icc_profile" in given.info
        images.save_picture(images.to_rgb(given), path := tmp_path / f"{mode}.png")
        assert ("icc_profile" in Image.open(path).info) == kept
    given = of_mode("CMYK")
    given.info["icc_profile"] = b"profile"
    images.save_picture(given, tmp_path / "cmyk.png")
    assert "icc_profile" not in Image.open(tmp_path / "cmyk.png").info
    images.save_picture(given, tmp_path / "cmyk.tif")
    assert "icc_profile" in Image.open(tmp_path / "cmyk.tif").info


def test_levels_out_of_range_are_told_with_the_files_name(tmp_path: Path) -> None:
    for levels, said in (
        (np.full((4, 4), 250, np.float32), r"a\.tif: float levels from 250 to 250: expected 0 to 1$"),
        (np.full((4, 4), 70000, np.int32), r"a\.tif: grey levels from 70000 to 70000: expected 0 to 65535$"),
    ):
        Image.fromarray(levels).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=said):
            images.open_picture(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"a\.tif: "):
            images.open_mask(tmp_path / "a.tif", (4, 4), (2, 2))
        with pytest.raises(ValueError, match=r"^picture: "):
            images.open_picture(Image.open(tmp_path / "a.tif"))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (200, 0, 0, 255)  # the rest: black, and transparent
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rgb = np.asarray(images.to_rgb(images.open_picture(tmp_path / "a.png")))
    assert (rgb[:, :2] == (200, 0, 0)).all() and (rgb[:, 2:] == 255).all()

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=1)
    assert (np.asarray(images.to_rgb(images.open_picture(tmp_path / "p.png"))) == 255).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    ramp().save(tmp_path / "a.png", exif=exif)
    picture = images.open_picture(tmp_path / "a.png")
    assert picture.size == (24, 40)
    assert mean_error(picture, ramp().rotate(-90, expand=True)) == 0


def test_pictures_in_memory_are_read_as_files_are(tmp_path: Path) -> None:
    picture, grey = ramp(), ramp().convert("L")
    assert images.open_picture(picture) is picture
    pixels = np.asarray(picture)
    for given in (pixels, pixels / 255, torch.from_numpy(pixels.copy()), (pixels / 255).astype(np.float32)):
        assert mean_error(images.open_picture(given), picture) == 0
    for given in (np.asarray(grey), np.asarray(grey)[..., None]):
        read = images.open_picture(given)
        assert read.mode == "L" and mean_error(read, grey) == 0
    alpha = images.open_picture(np.asarray(picture.convert("RGBA")))
    assert alpha.mode == "RGBA" and alpha.size == (40, 24)
    picture.getexif()[0x0112] = 6
    turned = images.open_picture(picture)
    assert turned.size == (24, 40) and mean_error(turned, ramp().rotate(-90, expand=True)) == 0
    picture.save(tmp_path / "a.png", exif=picture.getexif())
    with Image.open(tmp_path / "a.png") as lazy:
        assert mean_error(images.open_picture(lazy), turned) == 0


def test_what_is_no_picture_in_memory_is_refused() -> None:
    for given in (None, 3, [[1, 2]], b"PNG"):
        with pytest.raises(ValueError, match="a picture is a PIL picture, a path or an array"):
            images.open_picture(given)  # type: ignore[arg-type]
    for shape in ((4,), (4, 4, 2), (3, 4, 4, 3), (0, 4, 3)):
        with pytest.raises(ValueError, match=r"must be \(height, width\)"):
            images.open_picture(np.zeros(shape))
    for level in (2.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="floats 0 … 1"):
            images.open_picture(np.full((4, 4), level))


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png: not a picture"):
        images.open_picture(text)
    ramp(400, 400).save(tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    data = (tmp_path / "whole.png").read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.png: damaged"):
        images.open_picture(cut)
    with pytest.raises(FileNotFoundError):
        images.open_picture(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match=r"^picture: no such file 'a red\.png'$"):
        images.open_picture("a red.png")
    with pytest.raises(FileNotFoundError, match=r"^mask: no such file 'a red disc'; a text for the model is prompt="):
        images.open_mask("a red disc", (80, 40), (20, 10))
    with pytest.raises(IsADirectoryError):
        images.open_picture(tmp_path)


@pytest.mark.parametrize("suffix", ["avif", "png", "jpg", "gif", "webp", "tif", "bmp", "jp2", "ico", "dds"])
def test_damaged_pictures_are_refused_in_one_way(tmp_path: Path, suffix: str) -> None:
    """Bytes changed and cut by a seed: each is a picture still, or a ValueError that names the file."""
    rng, path = np.random.default_rng(0), tmp_path / f"a.{suffix}"
    if Image.registered_extensions()[f".{suffix}"] not in Image.SAVE:
        pytest.skip("this Pillow does not write the format")
    ramp().save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for n in range(60):
        data = whole[: rng.integers(len(whole))] if n % 3 == 0 else whole.copy()
        if n % 3:
            data[rng.integers(min(len(data), (120, len(data))[n % 2]), size=6)] = rng.integers(256, size=6)
        path.write_bytes(data.tobytes())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images.open_picture(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
    assert refused > 0


@pytest.mark.parametrize(
    ("given", "size", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((1024, 768), 512, (512, 384)),
        ((768, 1024), 512, (384, 512)),
        ((128, 128), 512, (128, 128)),  # not enlarged
        ((100, 75), 512, (104, 72)),  # beyond rounding
        ((513, 511), 512, (512, 512)),
        ((1000, 1000), 500, (496, 496)),  # at most `size`
        ((20, 16), 512, (80, 64)),  # enlarged to the smallest
        ((1000, 10), 512, (512, 8)),  # as far as `size` allows
        ((1, 1), 128, (64, 64)),
    ],
)
def test_working_size(given: tuple[int, int], size: int, expected: tuple[int, int]) -> None:
    assert images.working_size(*given, size) == expected


def test_working_size_keeps_the_aspect() -> None:
    for width, height in itertools.product(range(64, 3000, 137), repeat=2):
        if not 0.25 < width / height < 4:
            continue
        w, h = images.working_size(width, height, 512)
        assert w % 8 == 0 and h % 8 == 0 and max(w, h) <= 512
        scale = min(1, 512 / max(width, height))
        assert abs(w - width * scale) <= 4 and abs(h - height * scale) <= 4


def test_working_size_refuses() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        images.working_size(0, 10)
    with pytest.raises(ValueError, match="at least 64"):
        images.working_size(100, 100, 32)


def test_tensor_and_picture_are_inverse() -> None:
    picture = ramp()
    tensor = images.to_tensor(picture)
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor[0, 0, 0, -1] == 1 and tensor[0, 0, 0, 0] == -1  # red grows along the width
    assert mean_error(images.to_picture(tensor), picture) == 0
    assert np.asarray(images.to_picture(torch.full((3, 2, 2), 1.7))).max() == 255  # clamped, not wrapped
    with pytest.raises(ValueError, match="not finite"):
        images.to_picture(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\)"):
        images.to_picture(torch.zeros(2, 3, 4, 4))


def test_colour_profile_is_kept(tmp_path: Path) -> None:
    original = ramp()
    original.info["icc_profile"] = b"profile"
    images.save_picture(images.restore(ramp(), original), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == b"profile"


def test_points_go_to_the_grid_edge_on_edge() -> None:
    # Four pixels a cell: the first cell's centre lies between pixels 1 and 2.
    grid = images.to_grid([(1.5, 1.5), (399.5, 199.5), (398, 198)], (400, 200), (100, 50))
    assert grid.dtype == torch.float32
    assert torch.allclose(grid, torch.tensor([[0, 0], [99.5, 49.5], [99.125, 49.125]]))
    points = torch.tensor([[0.0, 0.0], [17.25, 3.5], [399.0, 199.0]])
    back = images.from_grid(images.to_grid(points, (400, 200), (97, 53)), (400, 200), (97, 53))
    assert torch.allclose(back, points.double(), atol=1e-4)
    path = images.from_grid(torch.zeros(5, 2, 2), (400, 200), (100, 50))
    assert path.shape == (5, 2, 2) and (path == 1.5).all()
    assert images.to_grid([], (400, 200), (100, 50)).shape == (0, 2)


def test_a_dot_is_found_where_its_point_falls() -> None:
    """The affine is that of the resampling: a bright pixel's centre of mass after reduction is its point's image."""
    pixels = np.zeros((96, 128), np.uint8)
    pixels[30, 77] = 255
    small = images.to_tensor(Image.fromarray(pixels), (64, 32))[0, 0] + 1
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij")
    centre = torch.stack([(small * x).sum(), (small * y).sum()]) / small.sum()
    assert torch.allclose(centre, images.to_grid([(77, 30)], (128, 96), (64, 32))[0], atol=0.2)


@pytest.mark.parametrize("point", [(400, 10), (-1, 10), (10, 200), (10, float("nan")), (float("inf"), 0)])
def test_points_outside_are_named(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"point {point[0]:g},{point[1]:g} .*400×200"):
        images.to_grid([(1, 1), point], (400, 200), (100, 50))


def test_mask_is_white_where_it_may_move(tmp_path: Path) -> None:
    levels = np.zeros((40, 80), np.uint8)
    levels[:20, 60:] = 255
    expected = torch.zeros(10, 20)
    expected[:5, 15:] = 1
    Image.fromarray(levels).save(tmp_path / "mask.png")
    Image.fromarray(levels).convert("1").save(tmp_path / "bits.png")
    given = (
        tmp_path / "mask.png",
        str(tmp_path / "bits.png"),
        Image.fromarray(levels).convert("RGB"),
        levels,
        levels > 0,
        levels / 255.0,
        torch.from_numpy(levels > 0),
    )
    for mask in given:
        grid = images.open_mask(mask, (80, 40), (20, 10))
        assert grid.dtype == torch.float32
        assert torch.equal(grid, expected), type(mask)


def test_mask_cells_hold_their_share_of_white() -> None:
    levels = np.zeros((40, 80))
    levels[:, :6] = 1  # one and a half cells
    assert torch.allclose(images.open_mask(levels, (80, 40), (20, 10))[:, :3], torch.tensor([1, 0.5, 0]))


def test_mask_drawn_on_transparency_counts_where_it_is_drawn() -> None:
    layer = Image.new("RGBA", (80, 40), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 40, 40))
    grid = images.open_mask(layer, (80, 40), (20, 10))
    assert (grid[:, :10] == 1).all() and (grid[:, 10:] == 0).all()


def test_wrong_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="40×80 pixels; it must be the picture's 80×40"):
        images.open_mask(np.zeros((80, 40)), (80, 40), (20, 10))
    with pytest.raises(ValueError, match="height, width"):
        images.open_mask(np.zeros((40, 80, 3)), (80, 40), (20, 10))
    for level in (2.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="0 … 1"):
            images.open_mask(np.full((40, 80), level), (80, 40), (20, 10))


@pytest.mark.parametrize("kind", ["picture", "file", "bytes", "booleans", "integers", "floats", "tensor"])
def test_zeros_and_ones_are_black_and_white_in_whatever_they_come(tmp_path: Path, kind: str) -> None:
    levels = np.zeros((40, 80), np.uint8)
    levels[:20, 60:] = 1
    Image.fromarray(levels).save(tmp_path / "mask.png")
    given: dict[str, Any] = {
        "picture": Image.fromarray(levels),
        "file": tmp_path / "mask.png",
        "bytes": levels,
        "booleans": levels > 0,
        "integers": levels.astype(np.int64),
        "floats": levels.astype(np.float64),
        "tensor": torch.from_numpy(levels),
    }
    grid = images.open_mask(given[kind], (80, 40), (20, 10))
    assert (grid[:5, 15:] == 1).all() and grid.sum() == 25


def test_a_mask_without_white_is_refused(tmp_path: Path) -> None:
    black = Image.new("L", (80, 40))
    black.save(tmp_path / "black.png")
    layer = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (10, 10, 40, 30))  # drawn in black, on transparent
    for mask in (black, np.zeros((40, 80)), np.zeros((40, 80), bool), layer, Image.new("RGBA", (80, 40))):
        with pytest.raises(ValueError, match="mask: all black"):
            images.open_mask(mask, (80, 40), (20, 10))
    with pytest.raises(ValueError, match=r"black\.png: all black .*paint that white"):
        images.open_mask(tmp_path / "black.png", (80, 40), (20, 10))


def test_handles_and_targets_outside_the_white_are_warned_of() -> None:
    mask = torch.zeros(10, 20)
    mask[:, :5] = 1
    inside, outside = torch.tensor([[3.0, 3.0], [-0.4, 9.4]]), torch.tensor([[3.0, 3.0], [8.0, 3.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.warn_unmasked(mask, inside, inside)
    with pytest.warns(UserWarning, match="^handle 2 stands outside of the mask's white") as told:
        images.warn_unmasked(mask, outside, inside)
    assert len(told) == 1
    with pytest.warns(
        UserWarning, match=r"^handle 1 and its target .*: is the mask inverted\? White may move$"
    ) as told:
        images.warn_unmasked(1 - mask, inside, inside)
    assert len(told) == 2
    with pytest.warns(UserWarning, match="^target 2 stands outside of the mask's white") as told:
        images.warn_unmasked(mask, inside, outside)
    assert len(told) == 1


def test_saving_replaces_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    images.save_picture(ramp(), path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.png: is there already"):
        images.save_picture(ramp(8, 8), path)
    assert path.read_bytes() == before
    images.save_picture(ramp(8, 8), path, overwrite=True)
    assert Image.open(path).size == (8, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_jpeg_is_written_in_full_colour_and_hardly_compressed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    images.save_picture(picture, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        read: Any = opened
        assert {tuple(layer[1:3]) for layer in read.layer} == {(1, 1)}  # no channel has fewer samples: 4:4:4
        assert max(read.quantization[0]) <= 12  # quality 95; Pillow's own 75 has 61
        assert mean_error(picture, read) < 4


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("a.ico", (300, 200), "changes a picture's size; use .png"),
        ("a.icns", (64, 64), "changes a picture's size"),
        ("a.hdf", (64, 64), "cannot hold this .*handler not installed"),
        ("a.xbm", (64, 64), "cannot hold this"),  # black and white alone
        ("a.jpg", (70_000, 10), r"cannot hold this \(70000×1 pixels"),
        ("a.gif", (10, 70_000), r"cannot hold this \(1×70000 pixels"),
        ("a.webp", (20_000, 10), "cannot hold this"),
    ],
)
def test_formats_that_cannot_hold_a_picture_are_found_before_the_work(
    tmp_path: Path, name: str, size: tuple[int, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        images.check_format(tmp_path / name, size)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz.*use \.png"):
        images.save_picture(ramp(), tmp_path / "a.xyz")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        images.save_picture(ramp(), tmp_path / "no" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(FileExistsError, match="not a plain file"):
        images.save_picture(ramp(), tmp_path / "b.png", overwrite=True)
    (tmp_path / "b.png").rmdir()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        images.save_picture(ramp(), tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_a_drags_handle_is_brought_to_the_nearest_cell_and_its_target_with_it() -> None:
    """42 of 128 pixels is 20.75 of 64 cells: cut off it would be 20."""
    drags = [((42.0, 79.0), (70.0, 59.0)), ((0.0, 127.0), (127.0, 0.0))]
    handles, targets, asked = images.drags_to_grid(drags, (128, 128), (64, 64))
    assert asked.tolist() == [[20.75, 39.25], [-0.25, 63.25]]
    assert handles.tolist() == [[21, 39], [0, 63]]
    assert torch.allclose((targets - handles)[0], torch.tensor([14.0, -10.0]))
    assert targets[1].tolist() == [63.5, -0.5]  # the picture's edge
    whole = images.drags_to_grid([((42.5, 78.5), (70.5, 58.5))], (128, 128), (64, 64))
    assert torch.equal(whole[0], whole[2])
