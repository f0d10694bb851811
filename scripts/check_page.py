"""Checks the page and the widget at length, in the system's browser, and prints a table.

python scripts/check_page.py OUT
python scripts/check_page.py OUT --only story,stop,large,notebook

It needs the extras `ui` and `notebook`, Playwright, Debian's `chromium`, and for the last check the package `notebook`.
Screenshots go to the folder OUT.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).parents[1]
PARTS = ("story", "stop", "large", "edits", "tabs", "notebook")
DISC = ROOT / "scripts" / "demo" / "disc.png"
QUICK = {"size": "64", "steps": "10", "drag_step": "6", "control_step": "1", "updates": "10", "patience": "never"}
ENDLESS = {**QUICK, "updates": "100000", "lost_patience": "never", "stall": "never", "reach": "0"}
NOTEBOOK = (
    "from dataclasses import replace\n"
    'import dragsa\nfrom dragsa import pictures\nsd = dragsa.load("{weights}")\n'
    "config = dragsa.EditConfig.small(size=64, steps=10, drag_step=6, control_step=1)\n"
    "config = replace(config, drag=replace(config.drag, updates=12))\n"
    "without = dict(patience=None, lost_patience=None, stall=None, reach=0)\n"
    "endless = replace(config, drag=replace(config.drag, updates=100_000, **without))\n"
    'w = dragsa.widget(sd, "{disc}", "a red disc on a cyan ground", config)\nw',
    'r = w.edit()\npictures.save_picture(r.image, "{out}", overwrite=True)\nprint(w.drags)\nr',
    'w.config = endless\nprint("by interrupt:", w.edit().trace.stop)',
    'print("by Stop:", w.result.trace.stop)',
)
# Each frame that the browser shows, by its time.
FRAMES = """() => {
    window.frames_shown = [];
    const shown = (time) => { window.frames_shown.push(time); requestAnimationFrame(shown); };
    requestAnimationFrame(shown);
}"""
LARGE = 4472  # pixels of each side: 20 million
Row = tuple[str, str]


@contextmanager
def served(*options: str) -> Iterator[tuple[str, int]]:
    """Run `dragsa ui` in a process of its own; give its address and its process."""
    command = [sys.executable, "-m", "dragsa", "ui", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "the page did not start"
        yield found[0], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def opened(browser: Browser, url: str, **how: Any) -> Page:
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 800}, **how)
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


def at(page: Page, x: float, y: float, size: int = 128, board: str = "#board canvas") -> tuple[float, float]:
    """Return where a pixel of a square picture is on the screen, as long as all of it is shown."""
    box = page.locator(board).bounding_box()
    assert box is not None
    room = min(28, box["width"] * 0.04)
    scale = min(box["width"] - 2 * room, box["height"] - 2 * room) / size
    left, top = box["x"] + (box["width"] - size * scale) / 2, box["y"] + (box["height"] - size * scale) / 2
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def pull(page: Page, *points: tuple[float, float], size: int = 128, board: str = "#board canvas") -> None:
    page.mouse.move(*at(page, *points[0], size, board))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*at(page, *point, size, board), steps=8)
    page.mouse.up()


def given(page: Page, **settings: str) -> None:
    page.click("#rest summary")
    for name, value in settings.items():
        page.fill(f"#{name}", value)
    page.click("#rest summary")


def begun(page: Page, **settings: str) -> None:
    """Open the example, pull its disc and give the settings."""
    page.click("#example")
    page.wait_for_selector("#board.has-picture")
    given(page, **settings)
    pull(page, (42, 79), (70, 59))


def finished(page: Page) -> str:
    page.wait_for_selector("#result:not([hidden])")
    return page.text_content("#outcome") or ""


def story(browser: Browser, out: Path) -> list[Row]:
    """From the command to the first finished drag, by somebody who looks before each press."""
    begin = time.monotonic()
    with served() as (url, _):
        page = opened(browser, url)
        page.screenshot(path=out / "1-empty.png")
        page.wait_for_timeout(3000)  # to read
        page.click("#example")
        page.wait_for_selector("#board.has-picture")
        page.wait_for_timeout(3000)
        page.mouse.move(*at(page, 42, 79))
        page.mouse.down()
        page.mouse.move(*at(page, 70, 59), steps=20)
        page.wait_for_timeout(300)
        page.screenshot(path=out / "2-pull.png")
        page.mouse.up()
        page.wait_for_timeout(2000)
        page.click("#run")
        page.wait_for_selector("#curve:not([hidden])")
        page.wait_for_timeout(5000)
        page.screenshot(path=out / "4-live.png")
        said = finished(page)
        seconds = time.monotonic() - begin
        page.wait_for_timeout(300)
        page.screenshot(path=out / "5-compare.png")
        page.click('[data-view="draw"]')
        page.click('[data-name="brush"]')
        for row in range(48, 114, 6):
            pull(page, (12, row), (72, row), (100, row - 20))
        page.screenshot(path=out / "3-mask.png")
        for n, view in enumerate(("heat", "steps"), start=6):
            page.click(f'[data-view="{view}"]')
            page.wait_for_timeout(500)
            page.screenshot(path=out / f"{n}-{view}.png")
        page.set_viewport_size({"width": 420, "height": 860})
        page.click('[data-view="draw"]')
        page.wait_for_timeout(500)
        page.screenshot(path=out / "8-narrow.png")
    return [("from `dragsa ui` to the first finished drag", f"{seconds:.0f} s ({said})")]


def stop(browser: Browser, out: Path) -> list[Row]:
    """Answers while an edit runs, and the updates after a stop."""
    with served() as (url, _):
        page = opened(browser, url)
        begun(page, **ENDLESS)
        page.click("#run")
        page.wait_for_selector("#curve:not([hidden])")
        times = []
        for _ in range(100):
            begin = time.perf_counter()
            urllib.request.urlopen(f"{url}about").read()
            times.append(1000 * (time.perf_counter() - begin))
            time.sleep(0.05)
        after = []
        for n in range(5):
            page.wait_for_timeout(73 * n)
            page.click("#stop")
            finished(page)
            kinds = [event["kind"] for event in told(page, url)]
            after.append(kinds[len(kinds) - kinds[::-1].index("stopping") :].count("update"))
            page.click("#run")
            page.wait_for_selector("#curve:not([hidden])")
    worst = statistics.quantiles(times, n=20)[-1]
    answers = f"median {statistics.median(times):.0f} ms, 95 % within {worst:.0f} ms"
    return [
        ("a request answered while an edit runs", answers),
        ("updates made after a stop has come to the server, in five stops", f"at most {max(after)}"),
    ]


def told(page: Page, url: str) -> list[dict[str, Any]]:
    """Return what the server has told a page."""
    asked = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    tab = next(address.partition("tab=")[2] for address in asked if "tab=" in address)
    events: list[dict[str, Any]] = []
    with suppress(TimeoutError), urllib.request.urlopen(f"{url}events?tab={tab}", timeout=1) as stream:
        events.extend(json.loads(line[6:]) for line in stream if line.startswith(b"data: "))
    return events


def large(browser: Browser, out: Path) -> Iterator[Row]:
    """A picture of 20 megapixels: opened, zoomed, moved, pulled, masked and edited."""
    from PIL import Image

    with served() as (url, _), tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "large.jpg"
        Image.open(DISC).convert("RGB").resize((LARGE, LARGE)).save(picture, quality=92)
        page = opened(browser, url)
        given(page, **QUICK)
        page.fill("#prompt", "a red disc on a cyan ground")
        begin = time.monotonic()
        page.set_input_files("#files", str(picture))
        page.wait_for_selector(f'#name:has-text("{LARGE}×{LARGE}")')
        yield ("a picture of 20 megapixels is shown after", f"{time.monotonic() - begin:.1f} s")
        page.evaluate(FRAMES)
        handle, target = (1500, 2800), (2500, 2100)
        pull(page, handle, target, size=LARGE)
        page.mouse.move(*at(page, *target, LARGE))
        for _ in range(16):
            page.mouse.wheel(0, -100)
            page.wait_for_timeout(30)
        scale = page.evaluate("document.querySelector('#board canvas').clientHeight")  # see `at`
        zoomed = (scale - 56) / LARGE * math.exp(0.0015 * 1600)
        page.mouse.down()
        page.mouse.move(at(page, *target, LARGE)[0] + 100, at(page, *target, LARGE)[1] - 50, steps=8)
        page.mouse.up()
        page.screenshot(path=out / "10-large-zoomed.png")
        expected = (target[0] + 100 / zoomed, target[1] - 50 / zoomed)
        page.click('[data-name="pan"]')
        pull(page, handle, target, size=LARGE)
        page.click('[data-name="fit"]')
        page.click('[data-name="brush"]')
        pull(page, (900, 2800), (2400, 2800), (2400, 2000), size=LARGE)
        page.wait_for_timeout(200)
        yield ("the longest wait for a frame meanwhile", frames(page))
        (drag,) = saved_job(page)["drag"]
        off = [
            max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(drag, (handle, expected), strict=True)
        ]
        yield ("its handle and, moved when zoomed, its target are off by", f"{off[0]:.0f} and {off[1]:.1f} px")
        page.screenshot(path=out / "11-large.png")
        page.evaluate(FRAMES)
        begin = time.monotonic()
        page.click("#run")
        said = finished(page)
        yield ("its edit is done after", f"{time.monotonic() - begin:.1f} s ({said})")
        yield ("the longest wait for a frame meanwhile", frames(page))
        page.evaluate(FRAMES)
        page.mouse.move(*at(page, 2236, 2236, LARGE))
        page.mouse.down()
        page.mouse.move(*at(page, 3000, 2236, LARGE), steps=20)
        page.mouse.up()
        page.click('[data-view="heat"]')
        page.wait_for_timeout(500)
        yield ("the longest wait for a frame while its result is looked at", frames(page))
        page.screenshot(path=out / "12-large-heat.png")


def frames(page: Page) -> str:
    """Return what the times of the frames since the last call of `FRAMES` say."""
    shown = page.evaluate("window.frames_shown")
    waits = [after - before for before, after in itertools.pairwise(shown)]
    return f"{max(waits):.0f} ms, median {statistics.median(waits):.0f} ms"


def saved_job(page: Page) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click("#save-job")
    with zipfile.ZipFile(download.value.path()) as folder:
        job: dict[str, Any] = json.loads(folder.read("job.json"))
    return job


def edits(browser: Browser, out: Path) -> list[Row]:
    """The server's memory over fifty edits, each from the picture anew."""
    with served() as (url, process):
        page = opened(browser, url)
        begun(page, **QUICK)
        held = []
        for _ in range(50):
            page.click("#run")
            page.wait_for_selector("#stop")
            page.wait_for_selector("#run:visible")
            finished(page)
            held.append(resident(process))
    early, late = statistics.median(held[5:10]), statistics.median(held[-5:])
    said = f"{early:.0f} MB after 10, {late:.0f} MB after 50: {100 * (late / early - 1):+.1f} %"
    return [("memory over 50 edits in a row", said)]


def tabs(browser: Browser, out: Path) -> list[Row]:
    """Two tabs at once, of which one is closed in the middle of its edit."""
    with served() as (url, process):
        first, second = opened(browser, url), opened(browser, url)
        begun(first, **ENDLESS)
        begun(second, **QUICK)
        pull(second, (42, 79), (60, 90))  # moves nothing of the first tab's
        first.click("#run")
        first.wait_for_selector("#curve:not([hidden])")
        second.click("#run")
        second.wait_for_selector('#stage-name:has-text("Waiting: 1")')
        first.close()
        begin = time.monotonic()
        said = finished(second)
        waited = time.monotonic() - begin
        used = seconds_used(process)
        time.sleep(5)
        idle = (seconds_used(process) - used) / 5
    return [
        ("a tab closed in the middle: the other's edit is done after", f"{waited:.1f} s ({said})"),
        ("and the processor is used then by", f"{100 * idle:.0f} %"),
    ]


def notebook(browser: Browser, out: Path) -> list[Row]:
    """The widget in a real notebook: a drag drawn, an edit run, its picture in the cell."""
    import dragsa
    from dragsa import pictures

    with tempfile.TemporaryDirectory() as folder, jupyter(Path(folder)) as url:
        made, weights = Path(folder) / "made.png", ROOT / "weights" / "small"
        cells = [code.format(weights=weights, disc=DISC, out=made) for code in NOTEBOOK]
        (Path(folder) / "drag.ipynb").write_text(json.dumps(notebook_of(cells)))
        page = browser.new_context(viewport={"width": 1100, "height": 1500}).new_page()
        page.set_default_timeout(180_000)
        page.goto(f"{url}/notebooks/drag.ipynb")
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')  # what is run before is lost
        run_cell(page, 0)
        board = ".dragsa-widget .board canvas"
        page.wait_for_selector(board)
        page.wait_for_timeout(1500)
        pull(page, (42, 79), (70, 59), board=board)
        page.keyboard.press("b")  # a key of the canvas, and of the notebook's: a new cell
        page.wait_for_timeout(500)
        count = page.locator(".jp-CodeCell").count()
        run_cell(page, 1)
        page.wait_for_selector(".jp-OutputArea svg image")
        page.wait_for_timeout(1500)
        page.screenshot(path=out / "9-notebook.png")
        config = dragsa.EditConfig.small(size=64, steps=10, drag_step=6, control_step=1)
        config = replace(config, drag=replace(config.drag, updates=12))
        drawn = page.locator(".jp-OutputArea-output pre").last.text_content() or "[]"
        drags = [((x0, y0), (x1, y1)) for (x0, y0), (x1, y1) in json.loads(drawn)]
        sd = dragsa.load(weights)
        result = dragsa.edit(sd, DISC, drags, prompt="a red disc on a cyan ground", config=config)
        same = pictures.picture_bytes(result.image, "made.png") == made.read_bytes()
        running, printed = ".dragsa-widget .said >> text=/drag, [0-9]+ of/", ".jp-OutputArea-output pre"
        run_cell(page, 2)
        page.wait_for_selector(running)
        page.click('[data-command="notebook:interrupt-kernel"]')
        page.wait_for_selector(f"{printed}:has-text('by interrupt')")
        page.click(".dragsa-widget .run")
        page.wait_for_selector(running)
        page.click(".dragsa-widget .stop")
        page.wait_for_selector(".dragsa-widget .said:has-text('stopped')")
        run_cell(page, 3)
        page.wait_for_selector(f"{printed}:has-text('by Stop')")
        page.screenshot(path=out / "13-notebook-stopped.png")
        stops = [text.strip() for text in page.locator(printed).all_text_contents()[-2:]]
    return [
        ("a drag drawn in a notebook", drawn.strip()),
        ("its picture's bytes are those of Python", str(same)),
        ("cells after a key on the canvas", f"{count} of {len(NOTEBOOK)}"),
        ("a drag without end is stopped", ", ".join(stops)),
    ]


def run_cell(page: Page, number: int) -> None:
    page.locator(".jp-CodeCell .cm-content").nth(number).click()
    page.keyboard.press("Shift+Enter")


@contextmanager
def jupyter(folder: Path) -> Iterator[str]:
    """Run a notebook server on a folder; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    options = [
        f"--port={port}",
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--notebook-dir={folder}",
    ]
    home = {name: str(folder / "home") for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    environment = {**os.environ, **home, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "notebook", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api").read()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def notebook_of(cells: list[str]) -> dict[str, Any]:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    code: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    named = [{**code, "id": f"cell{n}", "source": source} for n, source in enumerate(cells)]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": named}


def resident(process: int) -> float:
    """Return the memory that a process holds, in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def seconds_used(process: int) -> float:
    """Return the processor's seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PARTS")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in PARTS]:
        parser.error(f"--only: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    checks: dict[str, Callable[[Browser, Path], Iterable[Row]]] = {
        "story": story,
        "stop": stop,
        "large": large,
        "edits": edits,
        "tabs": tabs,
        "notebook": notebook,
    }
    print("| check | found |\n| --- | --- |", flush=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name in options.only:
            for what, found in checks[name](browser, options.out):
                print(f"| {what} | {found} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
