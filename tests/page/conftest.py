import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import dragsa

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright square on a ramp, 72×64."""
    y, x = np.mgrid[:64, :72]
    levels = np.stack([x * 3, y * 3, x * 0 + 90], axis=2)
    levels[20:36, 16:32] = (250, 240, 20)
    path = tmp_path_factory.mktemp("pictures") / "square.png"
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def sd(tiny_folder: Path) -> dragsa.StableDiffusion:
    return dragsa.load(tiny_folder)


@pytest.fixture(scope="session")
def served(tiny_folder: Path) -> Iterator[Any]:
    pytest.importorskip("starlette", reason="the page needs the extra ui: pip install 'dragsa[ui]'")
    import page_hand

    with page_hand.Served({"weights": [tiny_folder]}) as served:
        yield served


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip("the page's tests need a browser: apt-get install chromium")
    pytest.importorskip("playwright", reason="the page's tests need Playwright: pip install 'dragsa[test]'")
    import page_hand

    with page_hand.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def window(browser: Any) -> Any:
    """A page of the browser, with the hosts that it has asked and the errors that its log has."""
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    page, hosts, wrong = context.new_page(), set(), []
    page.set_default_timeout(60_000)  # a busy machine is no fault
    context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    return page, hosts, wrong


@pytest.fixture
def hand(served: Any, window: Any) -> Iterator[Any]:
    """A hand on the page, just loaded, with quick settings. The browser's log is looked at in the end."""
    import page_hand

    page, hosts, wrong = window
    page.goto(served.url)
    page.wait_for_selector("body[data-ready]")
    hand = page_hand.Hand(page)
    hand.set(**page_hand.QUICK)
    yield hand
    page.goto("about:blank")  # the page says that it is left, and its tab is closed
    asked, said = set(hosts), list(wrong)
    hosts.clear()
    wrong.clear()
    assert asked - {""} == {urlsplit(served.url).netloc}, "the page asked another host"
    assert not said
