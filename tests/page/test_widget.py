"""The notebook's widget on Python's side, and how results show themselves. A notebook is opened by `check_page.py`."""

from __future__ import annotations

import base64
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from waiting import until

import dragsa
from dragsa import pictures

pytest.importorskip("anywidget", reason="the widget needs the extra notebook: pip install 'dragsa[notebook]'")

LOOP = dragsa.DragConfig(updates=2, lr=0.02)
CONFIG = dragsa.EditConfig.sd15(drag=LOOP, size=64, steps=4, drag_step=1, control_step=1)
DRAGS = [((24, 28), (50, 40))]
ENDLESS = replace(CONFIG, drag=dragsa.DragConfig(updates=10**5, lr=0.0, reach=0, patience=None, lost_patience=None))

# The widget's state as a notebook has it beside the cell; `show` adds a view of it to the page, as a cell does.
MODEL = """async ([code, file]) => {
    const bytes = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    const { default: { render } } = await import(`data:text/javascript;charset=utf-8;base64,${code}`);
    window.model = {
        values: { drags: [], _picture_file: bytes(file), _mask_file: bytes("") }, listeners: [], seen: [],
        get(name) { return this.values[name]; },
        set(name, value) {
            this.values[name] = value;
            this.seen.push(name);
            this.call(`change:${name}`);
        },
        on(name, listener) { this.listeners.push([name, listener]); },
        call(name, ...told) { for (const [one, listener] of this.listeners) if (one === name) listener(...told); },
        save_changes() {},
        send(message) { this.seen.push(message); },
    };
    window.show = async () => {
        const el = document.body.appendChild(document.createElement("div"));
        await render({ model, el });
        return el;
    };
    window.press = (el, name) => el.querySelector(`[data-name="${name}"]`).click();
    window.view = await show();
}"""
MASKED = "model.get('_mask_file').byteLength > 0"


def kinds(sent: list[Any]) -> list[str]:
    return [content["kind"] for content, _ in sent]


@pytest.fixture
def told(sd: dragsa.StableDiffusion, picture: Path) -> tuple[Any, list[Any]]:
    """A widget, and what it sends to its canvas."""
    widget: Any = dragsa.widget(sd, picture, "a dot", CONFIG)
    sent: list[Any] = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    return widget, sent


@pytest.fixture
def cell(browser: Any, picture: Path) -> Iterator[Any]:
    """A page with the `MODEL` of a widget, and a view of it."""
    from dragsa.page import notebook

    page = browser.new_page()
    page.set_default_timeout(60_000)  # a busy machine is no fault
    files = (notebook.joined().encode(), picture.read_bytes())
    page.evaluate(MODEL, [base64.b64encode(file).decode() for file in files])
    yield page
    page.close()


def test_a_view_goes_on_after_a_fault_and_after_a_drag_without_updates(cell: Any) -> None:
    tell = "([kind, told]) => model.call('msg:custom', { kind, ...told }, [told.file ?? model.get('_picture_file')])"
    said = cell.locator(".said").first
    for told in (["begin", {"in_cell": False}], ["frame", {"box": None, "file": "no picture"}]):
        cell.evaluate(tell, told)
    cell.wait_for_selector('.said:has-text("decoded")')
    cell.evaluate(tell, ["done", {"losses": [], "left": [], "stop": "reached"}])
    cell.wait_for_selector(".view:visible")
    assert said.text_content() == "0 updates, reached" and cell.is_visible(".run")
    for told in (["begin", {"in_cell": False}], ["done", {"losses": [0.5], "left": [[1, 3]], "stop": "budget"}]):
        cell.evaluate(tell, told)
    cell.wait_for_selector('.said:has-text("1 updates, budget, 3.0 px left")')


def test_a_painted_mask_stays_where_drags_are_set_or_another_view_is_shown(cell: Any) -> None:
    settled = "new Promise((done) => setTimeout(done, 100))"
    cell.evaluate("press(view, 'invert')")  # all of the picture
    cell.wait_for_function(MASKED)
    cell.evaluate("model.set('drags', [[[1, 2], [30, 40]]])")
    cell.evaluate(settled)
    assert cell.evaluate(MASKED), "drags were set"
    cell.evaluate("show().then((el) => (window.other = el))")
    cell.evaluate(settled)
    assert cell.evaluate(MASKED) and cell.evaluate("model.get('drags').length") == 1, "a view was shown"
    add = "(el) => el.firstElementChild.dispatchEvent(new KeyboardEvent('keydown', { key: 'n' }))"
    for n, view in enumerate(("view", "other"), start=2):
        cell.evaluate_handle(view).evaluate(add)
        cell.wait_for_function(f"model.get('drags').length === {n}")
        cell.evaluate(settled)
        assert cell.evaluate(MASKED), "a drag was pulled"
    cell.evaluate("press(other, 'invert')")  # what is left is nothing, in both
    cell.wait_for_function(f"!({MASKED})")
    cell.evaluate(settled)
    cell.evaluate("press(view, 'invert'), view.querySelector('.run').click()")
    cell.wait_for_function("model.seen.at(-1) === 'run'")
    assert cell.evaluate(MASKED), "an edit is asked for with what was painted before"


def test_without_a_config_it_takes_the_models_own_preset(sd: dragsa.StableDiffusion, picture: Path) -> None:
    widths = replace(sd.unet.config, widths=(32, 64, 128, 128))
    small = SimpleNamespace(unet=SimpleNamespace(config=widths))
    for model, preset in ((sd, dragsa.EditConfig.sd15()), (small, dragsa.EditConfig.small())):
        assert dragsa.widget(model, picture).config == preset  # type: ignore[arg-type]


def test_an_edit_of_the_widget_is_the_edit(
    told: Any, sd: dragsa.StableDiffusion, picture: Path, tmp_path: Path
) -> None:
    widget, sent = told
    mask = Image.new("L", (72, 64))
    mask.paste(255, (8, 8, 60, 56))
    widget.drags, widget._mask_file = [[[24, 28], [50, 40]]], pictures.picture_bytes(mask, "mask.png")
    result = widget.edit()
    alone = dragsa.edit(sd, picture, DRAGS, mask, "a dot", config=CONFIG)
    assert pictures.picture_bytes(result.image, "a.png") == pictures.picture_bytes(alone.image, "a.png")
    assert widget.result is result and np.array_equal(np.asarray(widget.mask.convert("L")), np.asarray(mask))
    said = kinds(sent)
    assert said[0] == "begin" and said[-1] == "done" and said.count("update") == 2 and "frame" in said
    assert all(buffers for content, buffers in sent if content["kind"] in ("frame", "done"))

    sent.clear()
    widget._pressed(widget, "run", [])
    until(lambda: kinds(sent)[-1:] == ["done"])
    stages = [content.get("stage") for content, _ in sent]
    assert "drag" in stages and "inversion" not in stages, "the picture is inverted once"


def test_the_button_stop_ends_the_drag_and_keeps_what_there_is(told: Any) -> None:
    widget, sent = told
    widget.config, widget.drags = ENDLESS, [[[24, 28], [50, 40]]]
    widget._pressed(widget, "run", [])
    until(lambda: kinds(sent).count("update") > 2)
    with pytest.raises(ValueError, match="still under way"):
        widget.edit()
    widget._pressed(widget, "stop", [])
    until(lambda: kinds(sent)[-1] == "done")
    after = kinds(sent)[kinds(sent).index("stopping") :]
    assert after.count("update") <= 1 and widget.result.trace.stop == "stopped"
    until(lambda: widget._task is None)
    widget._pressed(widget, "stop", [])  # nothing runs
    assert kinds(sent)[-1] == "done"


def test_a_stop_before_the_drag_leaves_nothing(told: Any) -> None:
    widget, sent = told

    def send(content: Any, buffers: Any = None) -> None:
        sent.append((content, buffers))
        if content["kind"] == "stage" and "stopping" not in kinds(sent):
            widget._pressed(widget, "stop", [])

    widget.send, widget.drags = send, [[[24, 28], [50, 40]]]
    widget._pressed(widget, "run", [])
    until(lambda: "error" in kinds(sent))
    assert sent[-1][0]["text"] == "stopped before there was anything to keep" and widget.result is None


def test_an_interrupt_ends_the_drag_and_a_second_one_all(told: Any) -> None:
    widget, sent = told
    interrupts, own = 1, signal.getsignal(signal.SIGINT)

    def send(content: Any, buffers: Any = None) -> None:
        sent.append((content, buffers))
        for _ in range(interrupts * (content.get("update") == 2)):
            signal.raise_signal(signal.SIGINT)

    widget.send, widget.config, widget.drags = send, ENDLESS, [[[24, 28], [50, 40]]]
    result = widget.edit()
    assert result.trace.stop == "stopped" and len(result.trace.losses) == 2
    interrupts = 2
    with pytest.raises(KeyboardInterrupt):
        widget.edit()
    assert kinds(sent)[-1] == "error" and widget.result is result and signal.getsignal(signal.SIGINT) == own
    interrupts = 0
    widget.config = CONFIG
    assert widget.edit().trace.stop == "budget", "and the next can be run"


def test_what_is_wrong_is_raised_and_said_on_the_canvas(told: Any, sd: dragsa.StableDiffusion, picture: Path) -> None:
    widget, sent = told
    widget.drags = [[[24, 28], [500, 40]]]
    with pytest.raises(ValueError, match="point 500,40 lies outside"):
        widget.edit()
    assert sent[-1][0]["kind"] == "error" and "500,40" in sent[-1][0]["text"]
    with pytest.raises(ValueError, match="size"):
        dragsa.widget(sd, picture, config=dragsa.EditConfig(size=-3)).edit()
    with pytest.raises(FileNotFoundError):
        dragsa.widget(sd, "none.png")


def test_the_widgets_code_is_one_module_that_fetches_nothing() -> None:
    from dragsa.page import notebook

    code = notebook.joined()
    assert not re.search(r"^import ", code, re.MULTILINE) and code.count("export default") == 1
    for file in notebook.STATIC.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/)", file.read_text(encoding="utf-8")), (
            f"{file.name}: another host"
        )


def test_results_show_themselves(sd: dragsa.StableDiffusion, picture: Path, tmp_path: Path) -> None:
    source = dragsa.prepare(sd, picture, "<b>a dot</b>", config=CONFIG)
    result: Any = dragsa.edit(sd, source, DRAGS, config=CONFIG)
    for shown in (result, source, result.trace):
        html = shown._repr_html_()
        assert "<script" not in html and "<b>" not in html
        ElementTree.fromstring(f"<div>{html}</div>")  # every element is closed
    assert result._repr_html_().count("<image") == 2 and "polyline" in result.trace._repr_html_()
    assert "2 updates, budget" in result._repr_html_() and "&lt;b&gt;" in source._repr_html_()
    for shown, image in ((result, result.image), (source, source.picture)):
        (tmp_path / "shown.png").write_bytes(shown._repr_png_())
        assert Image.open(tmp_path / "shown.png").tobytes() == image.convert("RGB").tobytes()
    unmoved: Any = dragsa.edit(sd, source, target_prompt="a cat", config=CONFIG)
    assert "no drag" in unmoved.trace._repr_html_() and unmoved._repr_html_().count("<image") == 2
