import numpy as np
import pytest
from example_trace import example
from PIL import Image

from dragsa.pictures import drawing


def test_sheet_is_readable_and_complete() -> None:
    given = [("one", Image.new("RGB", (128, 96), "red")), ("two " * 30, Image.new("L", (64, 96), 80))]
    whole = np.asarray(drawing.sheet(given)).astype(int)
    red = (whole == (255, 0, 0)).all(2)
    grey = (whole == 80).all(2)
    assert red.sum() == 384 * 512 and grey.sum() == 384 * 256
    top = red.any(1).argmax()
    assert (whole[:top, : 512 + 20].min(2) < 100).any()  # a caption over the first picture
    right = whole[:top, red.any(0).nonzero()[0].max() + 20 :]
    assert (right.min(2) < 100).any() and (right[:, -5:] == 255).all()  # the second is wrapped, not cut by the edge
    with pytest.raises(ValueError, match="no pictures"):
        drawing.sheet([])


def test_sheet_of_large_pictures_keeps_their_pixels() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (500, 300, 3), dtype=np.uint8))
    whole = np.asarray(drawing.sheet([("", picture)]))
    assert any(
        np.array_equal(whole[y : y + 500, x : x + 300], np.asarray(picture))
        for y in range(whole.shape[0] - 499)
        for x in range(whole.shape[1] - 299)
    )


@pytest.mark.parametrize("size", [(6000, 4000), (60000, 10), (10, 60000)])
def test_a_sheets_size_is_bounded(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    drags = {
        "drags": (((1.0, 1.0), (5.0, 5.0)),),
        "handles": (((1.0, 1.0),),),
        "losses": (1.0,),
        "tracked": ((5.0, 5.0),),
    }
    panels = drawing.panels_of(picture, picture, example(picture_size=size, **drags))
    assert max(panels[1][1].size) <= drawing.LARGEST
    whole = drawing.sheet(panels)
    assert whole.width < 3.5 * drawing.LARGEST and whole.height < 1.6 * drawing.LARGEST


def test_endless_captions_are_cut() -> None:
    picture = Image.new("RGB", (50, 50))
    for caption in ("x" * 10**6, "a " * 10**5, "one " + "y" * 10**5):
        assert drawing.sheet([(caption, picture)]).height < 1000


def test_panels_of_an_edit() -> None:
    picture = Image.new("RGB", (400, 200))
    source, path, result = drawing.panels_of(picture, picture, example())
    assert (source[0], path[0], result[0]) == ("source: a disc", "path after 2 updates (budget)", "result")
    assert source[1] is picture and result[1] is picture and path[1].size == (800, 400)  # twice, for 384 px
    prompts = example(prompt="", target_prompt="a ring", drags=(), losses=(), handles=(), tracked=(), stop=None)
    assert [caption for caption, _ in drawing.panels_of(picture, picture, prompts)] == ["source", "result: a ring"]
