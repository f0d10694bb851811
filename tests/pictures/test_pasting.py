import numpy as np
import pytest
from example_trace import example
from PIL import Image

from dragsa.pictures import pasting
from dragsa.pictures.pasting import Part


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8)).convert(mode)


def box_mask(width: int, height: int, box: tuple[int, int, int, int], level: int = 255) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(level, box)
    return mask


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("level", [255, 230, 102])  # a mask of one grey is white where it is not black
def test_outside_of_the_white_the_given_pixels_come_back_to_the_bit(mode: str, level: int) -> None:
    given, result = noise(120, 90, mode), Image.new(mode, (120, 90), "#808080")
    made = np.asarray(pasting.paste(result, given, box_mask(120, 90, (40, 30, 90, 70), level), (120, 88)))
    outside = np.ones((90, 120), bool)
    outside[30:70, 40:90] = False
    assert (made[outside] == np.asarray(given)[outside]).all()
    assert (made[32:68, 42:88] == 128).all()  # behind the rim of two pixels all is the result's
    assert made.shape == np.asarray(given).shape


def test_the_rim_is_soft_and_as_wide_as_the_working_picture_is_coarse() -> None:
    levels = np.asarray(box_mask(400, 300, (0, 100, 400, 300)), dtype=np.float32) / 255
    for rim, behind in ((2, 4), (8, 16)):
        column = np.asarray(pasting.inner_shares(levels, rim))[:, 200].astype(int)
        assert (column[:100] == 0).all() and (column[100 + behind :] == 255).all()  # no rim at the picture's own edge
        steps = np.diff(column[99 : 101 + behind])
        assert (steps >= 0).all() and steps.max() <= 255 / (2 * rim) + 1


def test_thin_masks_have_a_narrow_rim_and_a_soft_mask_its_white_half() -> None:
    thin = np.zeros((60, 60), np.float32)
    thin[30:33] = 1
    shares = np.asarray(pasting.inner_shares(thin, 8))
    assert (shares[31] == 255).all() and (shares[:30] == 0).all() and (shares[33:] == 0).all()
    ramp = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (60, 1))
    shares = np.asarray(pasting.inner_shares(ramp, 2))
    assert (shares[:, :50] == 0).all() and (shares[:, 55:] == 255).all()
    assert (np.asarray(pasting.inner_shares(np.ones((40, 40), np.float32), 8)) == 255).all()


def test_a_part_holds_mask_handles_and_targets_with_a_margin() -> None:
    size, drags = (4000, 3000), [((1000.0, 900.0), (1100.0, 900.0))]
    mask = box_mask(*size, (900, 800, 1300, 1200))
    part = pasting.part_of(size, drags, mask, 512)
    assert part == Part(700, 600, 1500, 1400)  # a margin of half the longer side
    assert pasting.part_of(size, drags, None, 512) == Part(794, 644, 1306, 1156)  # not smaller than the working size
    wide = pasting.part_of(size, [((100.0, 900.0), (2100.0, 900.0))], None, 512)
    assert wide is not None and wide.left == 0 and 2 * (wide.bottom - wide.top) >= wide.right - wide.left
    corner = pasting.part_of(size, [((0.0, 0.0), (3.0, 5.0))], None, 512)
    assert corner == Part(0, 0, 512, 512)
    for whole in (
        (size, [], None, 512),
        (size, drags, None, 4000),
        ((300, 200), [((1.0, 1.0), (9.0, 9.0))], None, 512),
    ):
        assert pasting.part_of(*whole) is None


def test_a_parts_points_and_mask_are_its_own() -> None:
    part = Part(100, 50, 300, 150)
    assert part.drags([((110.0, 60.0), (150.5, 70.0))]) == (((10.0, 10.0), (50.5, 20.0)),)
    levels = part.mask(box_mask(400, 200, (120, 60, 400, 200)), (400, 200))
    assert levels is not None and levels.shape == (100, 200)
    assert not levels[:10].any() and not levels[:, :20].any() and (levels[10:, 20:] == 1).all()
    assert part.mask(None, (400, 200)) is None


def test_a_part_comes_back_in_its_place() -> None:
    given, part = noise(400, 200), Part(0, 50, 200, 150)
    made = np.asarray(part.put_back(Image.new("RGB", (200, 100), (1, 2, 3)), given, (64, 32)))
    outside = np.ones((200, 400), bool)
    outside[50:150, :200] = False
    assert (made[outside] == np.asarray(given)[outside]).all()
    rim = 2 * 200 // 64 + 1
    assert (made[50 + rim : 150 - rim, : 200 - rim] == (1, 2, 3)).all()  # no rim at the picture's left edge


def test_a_parts_trace_is_told_in_the_pictures_pixels() -> None:
    before = example()
    after = Part(1000, 500, 1400, 700).trace(before, (4000, 3000))
    assert after.drags == (((1100.0, 600.0), (1130.0, 600.0)),) and after.tracked == ((1127.0, 604.0),)
    assert Part(7, 9, 400, 200).trace(example(found=((120.0, 101.0),)), (4000, 3000)).found == ((127.0, 110.0),)
    assert Part(7, 9, 400, 200).trace(example(found=(None,)), (4000, 3000)).found == (None,)
    assert after.picture_size == (4000, 3000) and after.part == (1000, 500, 1400, 700) and after.config.crop == "auto"
    assert after.distances == before.distances and after.distances_px == before.distances_px
