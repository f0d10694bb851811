import numpy as np
import pytest
from example_trace import example
from PIL import Image

from dragsa.pictures import drawing


def test_path_is_drawn_where_it_went() -> None:
    ground = Image.new("RGB", (400, 200), (0, 128, 0))
    pixels = np.asarray(drawing.draw_path(ground, example())).astype(int)
    assert pixels.shape == (200, 400, 3)
    red, green, blue = pixels[100, 100]
    assert red > 200 and green < 80 and blue < 80  # the start
    red, green, blue = pixels[112, 106]
    assert red > 200 and green < 120 and blue > 160  # on the way to (110, 120)
    ring = pixels[100, 122:139]
    assert (ring[:, 2] > 200).any() and tuple(pixels[100, 130]) == (0, 128, 0)  # round the target, not over it
    far = pixels.copy()
    far[85:135, 85:145] = (0, 128, 0)
    assert (far == (0, 128, 0)).all()


def test_path_scales_with_the_picture() -> None:
    ground = Image.new("RGB", (400, 200), (0, 128, 0))
    pixels = np.asarray(drawing.draw_path(ground, example(), scale=3)).astype(int)
    assert pixels.shape == (600, 1200, 3)
    assert pixels[301, 301, 0] > 200 and pixels[301, 301, 1] < 80
    with pytest.raises(ValueError, match="the picture is"):
        drawing.draw_path(Image.new("RGB", (10, 10)), example())


def test_a_large_pictures_marks_are_drawn_in_bands_that_do_not_show() -> None:
    """The same drag 300 rows lower, where it crosses from one band into the next."""
    ground, rows = Image.new("RGB", (400, 5000), (0, 128, 0)), []
    edge = drawing.BAND // (drawing.SMOOTH**2 * 400)
    for y in (edge + 100.0, edge + 400.0):
        drags, handles, tracked = (((100.0, y - 250), (130.5, y)),), (((100.0, y - 250),),), ((127.0, y + 1),)
        given = example(picture_size=ground.size, drags=drags, losses=(1.0,), handles=handles, tracked=tracked)
        rows.append(np.asarray(drawing.draw_path(ground, given))[int(y) - 300 : int(y) + 50])
    assert np.array_equal(rows[0], rows[1]) and (rows[0] != (0, 128, 0)).any()


def test_no_drag_draws_nothing() -> None:
    ground = Image.new("RGB", (400, 200), (0, 128, 0))
    drawn = drawing.draw_path(ground, example(drags=(), losses=(), handles=(), tracked=()))
    assert drawn is not ground and np.array_equal(np.asarray(drawn), np.asarray(ground))
