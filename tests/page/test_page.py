"""The page in a browser: what a person does on it, and what comes of that."""

from __future__ import annotations

import io
import json
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from page_hand import QUICK, Hand, saved
from PIL import Image
from waiting import until

import dragsa
from dragsa import cli, pictures
from dragsa.page import server


def halves(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Red above, blue below."""
    image = Image.new(mode, (width, height), "#0000ff")
    image.paste("#ff0000", (0, 0, width, height // 2))
    return image


def turned() -> bytes:
    """A file of 80×60 whose EXIF says that it is to be turned: upright 60×80, red above."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter, clockwise
    return saved(halves(60, 80).transpose(Image.Transpose.ROTATE_90), exif=exif)


def glass() -> bytes:
    """Red above, and clear below, which is laid on white."""
    image = halves(64, 64, "RGBA")
    image.paste((0, 0, 0, 0), (0, 32, 64, 64))
    return saved(image)


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize(
    ("name", "data", "size", "below"),
    [
        ("portrait.png", saved(halves(60, 90)), (60, 90), BLUE),
        ("landscape.png", saved(halves(120, 64)), (120, 64), BLUE),
        ("turned.png", turned(), (60, 80), BLUE),
        ("glass.png", glass(), (64, 64), WHITE),
        ("deep.tif", saved(halves(64, 72), "TIFF"), (64, 72), BLUE),  # no format of a browser's
    ],
)
def test_a_picture_is_opened_upright_and_whole(
    hand: Hand, name: str, data: bytes, size: tuple[int, int], below: tuple[int, int, int]
) -> None:
    assert hand.open((name, data)) == f"{name}, {size[0]}×{size[1]}"
    assert hand.seen((size[0] // 2, 4), (size[0] // 2, size[1] - 4)) == [RED, below]
    hand.pull((10, 12), (40, 50))
    assert hand.drags() == [[[10, 12], [40, 50]]]


@pytest.mark.parametrize("size", [(500, 4), (3, 400)])
def test_a_very_wide_or_tall_picture_is_dragged(hand: Hand, size: tuple[int, int]) -> None:
    (width, height), (x, y) = size, (size[0] // 2, size[1] // 2)
    hand.open(("long.png", saved(halves(width, height))))
    hand.pull((x, y), (x - width // 4, y - height // 4))
    ((handle, target),) = hand.drags()
    near = max(size) / 200  # a pixel of the screen is so many of the picture
    assert max(abs(a - b) for a, b in zip(handle, (x, y), strict=True)) <= near
    assert max(abs(a - b) for a, b in zip(target, (x - width // 4, y - height // 4), strict=True)) <= near
    said = hand.run()
    assert "After 2 updates" in said


def test_a_picture_is_pasted_and_dropped(hand: Hand, picture: Path, tmp_path: Path) -> None:
    hand.paste(saved(halves(60, 90)))
    hand.page.wait_for_selector('#name:has-text("60×90")')
    hand.name()
    assert hand.seen((30, 4), (30, 86)) == [RED, BLUE]
    hand.drop(picture)
    hand.page.wait_for_selector('#name:has-text("square.png, 72×64")')
    hand.name()
    hand.pull((20, 30), (40, 20))
    (tmp_path / "job.json").write_text(json.dumps({"drag": "1,2:30,40", "size": 64, "steps": 4}))
    hand.page.fill("#prompt", "of the last job")
    hand.drop(tmp_path / "job.json", picture)
    until(lambda: hand.page.input_value("#prompt") == "")
    assert hand.drags() == [[[1, 2], [30, 40]]]
    (tmp_path / "notes.txt").write_text("no picture")
    hand.drop(tmp_path / "notes.txt")
    hand.page.wait_for_selector('#toast:has-text("Notes.txt: not a picture in a format that can be read")')
    assert hand.name() == "square.png, 72×64"


def test_a_drag_is_pulled_moved_taken_back_and_deleted(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    assert hand.page.is_disabled("#run")
    hand.pull((20, 30), (25, 30), (40, 20))
    hand.pull((60, 50), (50, 55))
    hand.pull((5, 5), (5, 5))  # a press alone is no drag
    both = [[[20, 30], [40, 20]], [[60, 50], [50, 55]]]
    assert hand.drags() == both and hand.page.is_enabled("#run")
    hand.pull((40, 20), (44, 28))  # the target
    hand.pull((60, 50), (62, 40))  # and the other's handle
    moved = [[[20, 30], [44, 28]], [[62, 40], [50, 55]]]
    assert hand.drags() == moved
    hand.page.locator("#board canvas").focus()
    hand.page.keyboard.press("Control+z")
    hand.tool("undo")
    assert hand.drags() == both
    hand.tool("redo")
    hand.tool("redo")
    assert hand.drags() == moved
    hand.pull((50, 55), (50, 55))  # chooses the second
    hand.page.keyboard.press("Delete")
    assert hand.drags() == moved[:1]
    hand.tool("clear")
    assert hand.drags() == [] and hand.page.is_disabled("#run")


def test_a_drag_is_drawn_by_keys_alone(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    press = hand.page.keyboard.press
    hand.page.evaluate("document.activeElement.blur()")
    press("n")
    (((x, y), (u, v)),) = hand.drags()
    assert abs((x + u) / 2 - 35.5) <= 1 and y == v and u > x
    hand.page.locator('[data-name="undo"]').focus()  # keys are the picture's where a tool has the focus, too
    for key in ("Shift+ArrowUp", "ArrowLeft", "Enter", "ArrowDown"):
        if key == "Enter":
            hand.page.locator("#board canvas").focus()
        press(key)
    assert hand.drags() == [[[x, y + 1], [u - 1, v - 10]]]
    press("n")
    press(",")
    press("Delete")
    assert hand.drags() == [[[x, y], [u, v]]]
    press("b")
    assert hand.page.get_attribute('[data-name="brush"]', "aria-pressed") == "true"
    press("Control+Enter")
    hand.page.wait_for_selector("#stop:visible, #result:visible")


def test_a_press_beside_the_picture_or_of_the_other_button_draws_nothing(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    before = hand.seen((36, 4))
    hand.page.mouse.click(*hand.at(30, 30), button="right")
    hand.pull((20, 30), (40, 20))
    assert hand.drags() == [[[20, 30], [40, 20]]]
    hand.pull((-12, 30), (40, 20))
    assert hand.drags() == [[[20, 30], [40, 20]]] and hand.seen((36, 4)) != before, "the view was moved"


def test_a_drag_is_pulled_by_a_finger(served: Any, browser: Any, picture: Path) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("body[data-ready]")
    hand = Hand(page)
    hand.open(picture)
    wide = page.evaluate_handle("document.documentElement").evaluate("all => all.scrollWidth")
    assert wide <= 400, "the page is wider than the window"
    touch = context.new_cdp_session(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        at = [dict(zip("xy", hand.at(*point), strict=True)) for point in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    for kind, *points in (("touchStart", (20, 30)), ("touchMove", (30, 30)), ("touchMove", (40, 20)), ("touchEnd",)):
        send(kind, *points)
    assert hand.drags() == [[[20, 30], [40, 20]]]
    before = hand.seen((36, 4))
    for kind, *points in (
        ("touchStart", (30, 30), (40, 30)),
        ("touchMove", (20, 30), (50, 30)),
        ("touchMove", (0, 30), (70, 30)),
        ("touchEnd",),
    ):
        send(kind, *points)
    assert hand.drags() == [[[20, 30], [40, 20]]], "two fingers zoom, and draw nothing"
    assert hand.seen((36, 4)) != before
    context.close()


def mask_of(hand: Hand) -> Image.Image | None:
    _, files = hand.job()
    data = files.get(f"{(hand.page.text_content('#name') or '').partition('.')[0]}-mask.png")
    return None if data is None else Image.open(io.BytesIO(data)).convert("L")


def test_a_mask_is_painted_and_erased(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    assert mask_of(hand) is None
    hand.tool("brush")
    hand.page.fill(".board-size input", "12")
    hand.pull((16, 30), (56, 30))
    mask = mask_of(hand)
    assert mask is not None and mask.size == (72, 64)
    assert mask.getpixel((16, 30)) == mask.getpixel((56, 34)) == 255 and mask.getpixel((36, 40)) == 0
    hand.tool("erase")
    hand.pull((36, 10), (36, 50))
    mask = mask_of(hand)
    assert mask is not None and mask.getpixel((36, 30)) == 0 and mask.getpixel((20, 30)) == 255
    hand.tool("undo")
    mask = mask_of(hand)
    assert mask is not None and mask.getpixel((36, 30)) == 255
    hand.tool("invert")
    mask = mask_of(hand)
    assert mask is not None and mask.getpixel((36, 30)) == 0 and mask.getpixel((36, 50)) == 255
    hand.tool("clear")
    hand.tool("rectangle")
    hand.pull((10, 10), (30, 40))
    hand.tool("polygon")
    for corner in ((40, 10), (60, 10), (60, 40)):
        hand.page.mouse.click(*hand.at(*corner))
    hand.page.keyboard.press("Enter")
    mask = mask_of(hand)
    assert mask is not None and mask.getpixel((20, 30)) == mask.getpixel((57, 20)) == 255
    assert mask.getpixel((34, 20)) == mask.getpixel((45, 30)) == 0
    hand.page.locator(".board-soft input").fill("4")
    mask = mask_of(hand)
    assert mask is not None and 0 < mask.getpixel((31, 25)) < 255  # type: ignore[operator]


def test_a_mask_is_seen_on_black_and_on_white(hand: Hand) -> None:
    for colour in ("#000000", "#ffffff"):
        hand.open((f"{colour[1:]}.png", saved(Image.new("RGB", (72, 64), colour))))
        hand.tool("rectangle")
        hand.pull((30, 0), (71, 63))
        masked = [red for red, _, _ in hand.seen(*((x, 20) for x in range(34, 70)))]
        veiled = [red for red, _, _ in hand.seen(*((x, 20) for x in range(2, 26)))]
        assert len(set(masked)) == 1 and max(abs(masked[0] - one) for one in veiled) > 40


def test_what_is_asked_is_seen_under_the_pointer(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    yellow, ground = hand.seen((20, 24), (52, 24))
    hand.tool("rectangle")
    hand.pull((12, 16), (64, 40))
    hand.tool("drag")
    hand.page.mouse.move(*hand.at(24, 28))
    hand.page.mouse.down()
    hand.page.mouse.move(*hand.at(56, 28), steps=3)
    hand.page.wait_for_timeout(100)
    came, left = hand.seen((52, 24), (20, 24))
    assert came == yellow, "the square has gone along"
    assert max(abs(a - b) for a, b in zip(left, ground, strict=True)) < 120 and left != yellow, "and left ground"
    hand.page.mouse.up()


def test_a_drag_runs_live_and_stops(hand: Hand, served: Any, picture: Path) -> None:
    hand.open(picture)
    hand.pull((24, 28), (50, 40))
    hand.set(updates="5000", patience="never", lost_patience="never", reach="0", lr="0")
    hand.page.click("#run")
    hand.page.wait_for_selector('#stage-name:has-text("Dragging")')
    hand.page.wait_for_selector("#curve:not([hidden]) polyline.left", state="attached")
    counted = hand.page.text_content("#stage-count") or ""
    hand.page.wait_for_selector(f'#stage-count:not(:text-is("{counted}"))')  # it goes on
    (tab,) = [tab for tab in served.editor.tabs.values() if tab.frames]
    hand.page.click("#stop")
    outcome = hand.outcome()
    assert "stopped by you" in outcome and hand.page.is_visible('[data-view="steps"]')
    told = [event for _, event in tab.log.since(0)]
    updates = [event for event in told if event["kind"] == "update"]
    assert 1 < len(updates) < 5000 and any(event["kind"] == "frame" for event in told)
    assert updates[0]["handles"][0] == pytest.approx((24, 28), abs=1e-5)
    hand.page.click('[data-view="steps"]')
    hand.page.locator("#step input").fill("1")
    assert (hand.page.text_content("#step output") or "").startswith("update 1: 28.6 px left")


def test_a_double_press_on_run_asks_for_one_edit(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    hand.tool("rectangle")
    hand.pull((8, 8), (60, 56))  # a mask's file takes a while
    hand.tool("drag")
    hand.pull((24, 28), (50, 40))
    asked: list[str] = []
    hand.page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    hand.page.dblclick("#run")
    assert "After 2 updates" in hand.outcome()
    assert asked.count("/edit") == 1 and "/stop" not in asked


def test_a_second_drag_needs_no_inversion(hand: Hand, served: Any, picture: Path) -> None:
    hand.open(picture)
    hand.page.locator("#prompt").fill("a dot")
    hand.page.locator("#prompt").press("Tab")
    hand.pull((24, 28), (50, 40))
    assert "After 2 updates" in hand.run()
    hand.page.click('[data-view="draw"]')
    hand.pull((50, 40), (44, 30))
    assert "After 2 updates" in hand.run()
    (tab,) = [tab for tab in served.editor.tabs.values() if tab.made and tab.made.job.get("prompt") == "a dot"]
    stages = [event.get("stage", event["kind"]) for _, event in tab.log.since(0)]
    second = stages[len(stages) - stages[::-1].index("begin") :]
    assert "inversion" in stages and "drag" in second and "inversion" not in second


def test_the_result_is_looked_at_and_gone_on_from(hand: Hand, picture: Path) -> None:
    hand.open(picture)
    hand.pull((24, 28), (50, 40))
    hand.run()
    after = Image.open(io.BytesIO(hand.saved("#save-picture"))).convert("RGB")
    source = Image.open(picture).convert("RGB")
    near = lambda colour, image, at: all(abs(a - b) < 40 for a, b in zip(colour, image.getpixel(at), strict=True))  # noqa: E731
    before_it, behind_it = hand.seen((12, 50), (66, 50))
    assert near(before_it, source, (12, 50)) and near(behind_it, after, (66, 50))
    hand.page.click('[data-view="heat"]')
    assert hand.page.get_attribute('[data-view="heat"]', "aria-pressed") == "true"
    hand.page.click("#go-on")
    hand.page.wait_for_selector('#name:has-text("square-dragged.png")')
    assert hand.name() == "square-dragged.png, 72×64"
    job, files = hand.job()
    assert job.get("drag", []) == [] and job["image"] == "square-dragged.png"
    assert Image.open(io.BytesIO(files["square-dragged.png"])).tobytes() == after.tobytes()


def test_a_job_gives_the_same_bytes_by_page_command_line_python_and_widget(
    hand: Hand,
    served: Any,
    picture: Path,
    sd: dragsa.StableDiffusion,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRAGSA_WEIGHTS", str(tiny_folder))
    hand.open(picture)
    hand.page.fill("#prompt", "a red dot")
    hand.page.fill("#target_prompt", "a cat")
    hand.set(lam="0.2", tap="block13")
    hand.tool("rectangle")
    hand.pull((8, 8), (60, 56))
    hand.tool("drag")
    hand.pull((24, 28), (50, 40))
    job, files = hand.job()
    assert "After 2 updates" in hand.run()
    by_page, report = hand.saved("#save-picture"), json.loads(hand.saved("#save-trace"))
    assert job.items() >= {"prompt": "a red dot", "target_prompt": "a cat", "lam": 0.2, "tap": "block13"}.items()
    assert set(files) == {"job.json", "square.png", "square-mask.png"} and report["stop"] == "budget"

    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert cli.main(["edit", "--job", str(tmp_path / "job.json")]) == 0
    assert (tmp_path / "square-dragged.png").read_bytes() == by_page
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert cli.main(["edit", "--job", str(tmp_path / "report.json"), "--out", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == by_page

    loop = dragsa.DragConfig(tap="block13", updates=2, lr=0.02, lam=0.2)
    config = dragsa.EditConfig.sd15(drag=loop, size=64, steps=4, drag_step=1, control_step=1)
    drags = [((24, 28), (50, 40))]
    mask = tmp_path / "square-mask.png"
    result = dragsa.edit(sd, picture, drags, mask, "a red dot", "a cat", config=config)
    pictures.save_picture(result.image, tmp_path / "python.png")
    assert (tmp_path / "python.png").read_bytes() == by_page

    widget = dragsa.widget(sd, picture, "a red dot", config)
    widget.drags, widget._mask_file = [[[24, 28], [50, 40]]], mask.read_bytes()
    pictures.save_picture(widget.edit("a cat").image, tmp_path / "widget.png")
    assert (tmp_path / "widget.png").read_bytes() == by_page

    hand.page.goto(served.url)
    hand.page.wait_for_selector("body[data-ready]")
    folder = tmp_path / "square-job.zip"
    folder.write_bytes(server.zipped(files))
    assert hand.open(folder, shows="square.png") == "square.png, 72×64"
    hand.page.wait_for_selector("#run:enabled")
    again, files_again = hand.job()
    assert again == job and files_again == files
    hand.run()
    assert hand.saved("#save-picture") == by_page


def test_two_tabs_each_have_their_own_picture_and_drags(hand: Hand, served: Any, picture: Path) -> None:
    hand.open(picture)
    hand.pull((20, 30), (40, 20))
    other = Hand(hand.page.context.new_page())
    other.page.goto(served.url)
    other.page.wait_for_selector("body[data-ready]")
    assert other.open(("other.png", saved(halves(60, 90)))) == "other.png, 60×90"
    other.pull((10, 12), (40, 50))
    other.set(**QUICK)
    assert "After 2 updates" in other.run() and other.job()[0]["drag"] == [[[10, 12], [40, 50]]]
    job, files = hand.job()
    assert job["drag"] == [[[20, 30], [40, 20]]] and files["square.png"] == picture.read_bytes()
    assert hand.page.is_hidden("#result"), "the other's result is not this one's"
    other.page.close()


def test_a_job_file_is_opened_with_its_picture(hand: Hand, picture: Path, tmp_path: Path) -> None:
    job = {
        "image": "square.png",
        "drag": "20,30:40,20",
        "lr": 0.5,
        "size": 64,
        "steps": 4,
        "preset": "paper",
        "prompt": "a dot",
        "out": "o.png",
    }
    (tmp_path / "jobs.json").write_text(json.dumps([job, {**job, "lr": 0.25, "drag": [[1, 2], [3, 4]]}]))
    assert "choose it together with the job" in hand.open(tmp_path / "jobs.json")
    hand.page.click("#toast button")
    hand.open(tmp_path / "jobs.json", picture, shows="square.png")
    hand.page.wait_for_selector("#run:enabled")
    assert hand.page.input_value("#preset") == "paper" and hand.page.input_value("#lr") == "0.5"
    assert hand.drags() == [[[20, 30], [40, 20]]]
    hand.page.select_option("#jobs", "2 of 2")
    assert hand.drags() == [[[1, 2], [3, 4]]] and hand.job()[0]["lr"] == 0.25


def test_each_job_of_a_list_has_its_own_picture_and_mask(hand: Hand, picture: Path, tmp_path: Path) -> None:
    rest = {"size": 64, "steps": 4}
    jobs = [
        {"image": "square.png", "drag": "20,30:40,20", **rest},
        {"image": "other.png", "mask": "white.png", "drag": "1,2:30,80", **rest},
        {"image": "third.png", "drag": "1,2:3,4", **rest},
        {"image": "square.png", "mask": "lost.png", "drag": "5,6:7,8", **rest},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    other, white = saved(halves(60, 90)), saved(Image.new("L", (60, 90), 255))
    for name, data in (("other.png", other), ("white.png", white)):
        (tmp_path / name).write_bytes(data)
    files = [tmp_path / "jobs.json", picture, tmp_path / "other.png", tmp_path / "white.png"]
    hand.open(*files, shows="square.png")
    until(lambda: hand.drags() == [[[20, 30], [40, 20]]])
    hand.page.select_option("#jobs", "2 of 4")
    until(lambda: hand.drags() == [[[1, 2], [30, 80]]])
    assert hand.name() == "other.png, 60×90" and hand.job()[1]["other.png"] == other
    mask = mask_of(hand)
    assert mask is not None and mask.getextrema() == (255, 255)
    hand.page.select_option("#jobs", "3 of 4")
    hand.page.wait_for_selector('#toast:has-text("The job\'s picture, third.png, is not open")')
    assert hand.page.input_value("#jobs") == "2 of 4" and hand.drags() == [[[1, 2], [30, 80]]]
    hand.page.select_option("#jobs", "4 of 4")
    hand.page.wait_for_selector('#toast:has-text("The job\'s mask, lost.png, was not chosen with it")')
    assert hand.name() == "square.png, 72×64" and hand.drags() == [[[5, 6], [7, 8]]] and mask_of(hand) is None
    hand.page.select_option("#jobs", "1 of 4")
    hand.page.wait_for_selector("#toast", state="hidden")
    assert hand.drags() == [[[20, 30], [40, 20]]]


def test_what_is_wrong_is_a_sentence_on_the_page(hand: Hand, picture: Path) -> None:
    assert hand.open(("notes.png", b"no picture")) == "Notes.png: not a picture in a format that can be read"
    assert "Not a job" in hand.open(("job.json", b"{"))
    whole = picture.read_bytes()
    assert "damaged picture" in hand.open(("half.png", whole[: len(whole) // 2]))
    hand.page.click("#toast button")
    hand.open(picture)
    hand.pull((24, 28), (50, 40))
    hand.page.fill("#lr", "fast")
    assert hand.run() == "Argument --lr: must be a number of at least 0, came 'fast'"
    assert hand.page.locator("#lr").evaluate("field => field.matches('.wrong > :focus')"), "where it is, is seen"
    assert hand.page.is_visible("#run"), "and the next can be run"
    hand.page.fill("#lr", "0.02")
    hand.pull((60, 50), (50, 55))
    assert len(hand.drags()) == 2, "the picture can be dragged on"
    hand.page.evaluate(
        """dispatchEvent(new DragEvent("drop", { dataTransfer: new DataTransfer(), cancelable: true }))"""
    )
    assert (hand.page.text_content("#toast") or "").startswith("No file was dropped")


def test_another_sites_page_is_refused(served: Any, browser: Any) -> None:
    page, before = browser.new_page(), len(served.editor.tabs)
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{other.server_port}/none")
        with page.expect_response(f"{served.url}tab") as answer:
            page.evaluate(f"void fetch('{served.url}tab', {{method: 'POST', mode: 'no-cors'}})")
        other.shutdown()
    assert answer.value.status == 403 and len(served.editor.tabs) == before
    page.close()
