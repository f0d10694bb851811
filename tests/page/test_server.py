"""The server without a browser: who is let in, what is too much, and one edit at a time."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import page_hand
import pytest
from page_hand import QUICK
from waiting import until

from dragsa.page import server, tabs, work


def ask(served: Any, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Send a request; return the answer's status and its JSON, or its bytes."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, data, {key.replace("_", "-"): v for key, v in headers.items()})
    try:
        with urllib.request.urlopen(request) as response:
            status, said = response.status, response.read()
            kind = response.headers["content-type"]
    except urllib.error.HTTPError as error:
        status, said, kind = error.code, error.read(), error.headers["content-type"]
    return status, json.loads(said) if kind.startswith("application/json") else said


@pytest.fixture
def tab(served: Any, picture: Path) -> Any:
    """A tab with a picture open."""
    name = ask(served, "tab", b"")[1]["tab"]
    assert ask(served, f"picture?tab={name}&name=square.png", picture.read_bytes())[0] == 200
    yield served.editor.tabs[name]
    if name in served.editor.tabs:
        ask(served, f"close?tab={name}", b"")


def edit(served: Any, tab: Any, **settings: str) -> tuple[int, Any]:
    job = {**QUICK, "drag": [[[24, 28], [50, 40]]], "preset": "sd15", **settings}
    return ask(served, f"edit?tab={tab.id}", {"model": "tiny", "job": job, "mask": None})


ENDLESS = {"updates": "100000", "patience": "never", "lost_patience": "never", "reach": "0", "lr": "0"}


def kinds(tab: Any) -> list[str]:
    return [event["kind"] for _, event in tab.log.since(0)]


def test_another_site_or_name_is_refused(served: Any) -> None:
    port = served.url.rpartition(":")[2].strip("/")
    for headers in (
        {"Origin": "https://example.org"},
        {"Origin": f"http://127.0.0.1:{int(port) + 1}"},
        {"Origin": "null"},
        {"Host": "example.org"},
        {"Host": f"127.0.0.1.example.org:{port}"},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        before = len(served.editor.tabs)
        status, said = ask(served, "tab", b"", **headers)
        assert status == 403 and said["error"].count("\n") == 0 and len(served.editor.tabs) == before
    status, said = ask(served, "tab", b"", Origin=f"http://127.0.0.1:{port}", Sec_Fetch_Site="same-origin")
    assert status == 200
    ask(served, f"close?tab={said['tab']}", b"")


def test_elsewhere_the_address_needs_its_token(tiny_folder: Path) -> None:
    with page_hand.Served({"weights": [tiny_folder]}, token="secret") as served:
        assert served.url.endswith("/?token=secret")
        served.url = served.url.partition("?")[0]
        assert ask(served, "about")[0] == 403 and ask(served, "about?token=secre")[0] == 403
        assert ask(served, "about?token=secret", Host="any.name")[0] == 200
        assert ask(served, "static/app.js")[0] == 200
    assert server.token_for("127.0.0.1") is None and len(server.token_for("0.0.0.0") or "") > 16


def test_only_the_pages_own_files_are_served(served: Any) -> None:
    assert ask(served, "static/canvas.js")[0] == 200
    for path in ("static/..%2fserver.py", "static/none.js", "static/../server.py", "static/%2fetc%2fpasswd"):
        assert ask(served, path)[0] == 404


def test_an_upload_is_limited_in_bytes_and_pixels(served: Any, tab: Any) -> None:
    from PIL import Image

    most = served.page.desk.megabytes
    host, port = served.sock.getsockname()
    connection = http.client.HTTPConnection(host, port)
    connection.putrequest("POST", f"/load?tab={tab.id}")
    connection.putheader("Content-Length", str(int(most * 2**20) + 1))
    connection.endheaders()  # it is refused before it is sent
    with connection.getresponse() as answer:
        assert answer.status == 413 and json.load(answer)["error"] == "more than 64 MB: make the file smaller"
    connection.close()
    large = page_hand.saved(Image.new("1", (5000, 4001)))
    status, said = ask(served, f"picture?tab={tab.id}&name=large.png", large)
    assert status == 400 and said["error"].startswith("large.png: 5000×4001 pixels, more than 20 million")
    bomb = server.zipped({"job.json": bytes(int(most * 2**20) + 1)})
    assert len(bomb) < 2**20 and ask(served, f"load?tab={tab.id}", bomb)[0] == 413
    assert tab.picture.name == "square.png"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (b"[]", "the request is not what the page sends"),
        (b'{"model": "tiny"}', "the request is not what the page sends"),
        ({"model": "/etc", "job": {}, "mask": None}, "no model of the name '/etc': there are tiny"),
        ({"model": "tiny", "job": {"weights": "/etc"}, "mask": None}, "weights: nothing that the page may set"),
        ({"model": "tiny", "job": {"out": "x.png"}, "mask": None}, "out: nothing that the page may set"),
        ({"model": "tiny", "job": {}, "mask": None}, "nothing to change: pull a point"),
        ({"model": "tiny", "job": {"drag": [[[1, 1], [99, 9]]]}, "mask": None}, "point 99,9 lies outside"),
        ({"model": "tiny", "job": {"drag": [[[1, 1], [9, 9]]]}, "mask": "AAAA"}, "mask: not a picture"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(served: Any, tab: Any, asked: Any, said: str) -> None:
    status, answer = ask(served, f"edit?tab={tab.id}", asked)
    assert status == 400 and answer["error"].startswith(said) and "\n" not in answer["error"]
    assert served.editor.worker.of(tab) == []


def test_one_edit_runs_and_the_rest_wait(served: Any, tab: Any, picture: Path) -> None:
    name = ask(served, "tab", b"")[1]["tab"]
    ask(served, f"picture?tab={name}&name=other.png", picture.read_bytes())
    other = served.editor.tabs[name]
    assert edit(served, tab, **ENDLESS)[0] == 200
    until(lambda: "update" in kinds(tab))
    assert edit(served, other)[0] == 200 and "begin" not in kinds(other)
    assert [event["ahead"] for _, event in other.log.since(0) if event["kind"] == "queued"] == [1]
    status, said = edit(served, tab)
    assert status == 409 and "still under way" in said["error"]

    ask(served, f"stop?tab={tab.id}", b"")
    until(lambda: "done" in kinds(tab))
    assert tab.made.result.trace.stop == "stopped"
    until(lambda: "done" in kinds(other))
    assert other.made.result.trace.stop == "budget" and other.made.picture.name == "other.png"
    ask(served, f"close?tab={name}", b"")


def test_an_inversion_in_the_background_gives_way_to_an_edit_that_needs_another(served: Any, tab: Any) -> None:
    job = {**QUICK, "preset": "sd15", "steps": "200"}
    assert ask(served, f"prepare?tab={tab.id}", {"model": "tiny", "job": job})[0] == 200
    until(lambda: "stage" in kinds(tab))
    edit(served, tab)
    until(lambda: "done" in kinds(tab))
    stages = [event for _, event in tab.log.since(0) if event.get("stage") == "inversion"]
    assert "ended" not in kinds(tab) and not [one for one in stages if one["done"] == 200]


def test_a_picture_is_inverted_in_the_background_and_once(served: Any, tab: Any) -> None:
    for _ in range(2):
        assert ask(served, f"prepare?tab={tab.id}", {"model": "tiny", "job": {**QUICK, "preset": "sd15"}})[0] == 200
        until(lambda: served.editor.worker.of(tab) == [])
    edit(served, tab)
    until(lambda: "done" in kinds(tab))
    begun = [event for _, event in tab.log.since(0) if event.get("stage") == "inversion" and event["done"] == 0]
    assert "ready" in kinds(tab) and len(begun) == 1


def test_what_is_told_is_strict_json() -> None:
    log = tabs.Log()
    log.tell("update", loss=float("nan"), handles=[(1.0, 2.0)])
    ((number, event),) = log.since(0)
    assert number == 1 and json.loads(json.dumps(event, allow_nan=False)) == event
    assert event == {"kind": "update", "loss": None, "handles": [[1.0, 2.0]]} and log.since(1) == []


def test_a_drag_stops_within_one_update(served: Any, tab: Any) -> None:
    edit(served, tab, **ENDLESS)
    until(lambda: kinds(tab).count("update") > 3)
    ask(served, f"stop?tab={tab.id}", b"")
    until(lambda: "done" in kinds(tab))
    after = kinds(tab)[kinds(tab).index("stopping") :]
    assert after.count("update") <= 1 and tab.made.result.trace.stop == "stopped"
    assert len(tab.made.result.trace.losses) == kinds(tab).count("update")


def test_a_second_stop_ends_all_and_the_next_edit_runs(served: Any, tab: Any) -> None:
    edit(served, tab, steps="30", drag_step="1", updates="1")
    until(lambda: "update" in kinds(tab))
    ask(served, f"stop?tab={tab.id}", b"")
    ask(served, f"stop?tab={tab.id}", b"")
    until(lambda: {"ended", "done"} & set(kinds(tab)))
    assert tab.made is None and "ended" in kinds(tab)
    edit(served, tab)
    until(lambda: "done" in kinds(tab))


class Watched(tabs.Log):
    """A log that calls `do` once, as soon as an event of a kind is told; of stages, the end of the last."""

    def __init__(self, kind: str, do: Callable[[], None]) -> None:
        super().__init__()
        self.kind, self.do = kind, [do]

    def tell(self, kind: str, **told: Any) -> None:
        super().tell(kind, **told)
        last = told.get("stage") == "decode" and told["done"] == told["total"]
        if self.do and kind == self.kind and (kind != "stage" or last):
            self.do.pop()()


@pytest.mark.parametrize("kind", ["begin", "update", "stage"])
def test_a_picture_that_is_left_is_told_of_no_more_and_holds_nothing_up(served: Any, tab: Any, kind: str) -> None:
    job = {**QUICK, "drag": [[[24, 28], [50, 40]]], "preset": "sd15"}
    left: list[int] = []

    def leave() -> None:  # in the middle of an edit, which ends at its next event
        left.append(len(kinds(tab)))
        served.page.leave(tab)
        tab.open(tabs.Picture("other.png", tab.picture.image))
        served.editor.edit(tab, "tiny", job, None)

    tab.log = Watched(kind, leave)
    served.editor.edit(tab, "tiny", job, None)
    until(lambda: left and {"done", "error"} & set(kinds(tab)[left[0] :]))
    until(lambda: served.editor.worker.running is None)
    # That the model is loaded, the first time, is told of both: the next edit waits for it, too.
    after = [kind for kind in kinds(tab)[left[0] :] if kind != "stage"]
    assert after[:2] == ["queued", "begin"] and after.count("done") == 1 and "ended" not in after
    assert tab.made.picture.name == "other.png"


def test_a_closed_tab_leaves_no_edit_behind(served: Any, tab: Any) -> None:
    edit(served, tab, **ENDLESS)
    until(lambda: "update" in kinds(tab))
    tab.streams, tab.seen = 0, time.monotonic() - 1
    served.editor.sweep(10)
    assert tab.id in served.editor.tabs, "it may come back"
    served.editor.sweep(0.5)
    until(lambda: served.editor.worker.running is None)
    assert tab.id not in served.editor.tabs and tab.made is None
    assert ask(served, f"stop?tab={tab.id}", b"")[0] == 410


def test_a_part_of_a_large_picture_is_edited_and_told_in_its_places(served: Any, tab: Any) -> None:
    from PIL import Image

    wide = page_hand.saved(Image.effect_noise((400, 300), 60).convert("RGB"))
    ask(served, f"picture?tab={tab.id}&name=wide.png", wide)
    edit(served, tab, crop="auto", drag=[[[300, 200], [320, 210]]])  # type: ignore[arg-type]
    until(lambda: {"done", "error"} & set(kinds(tab)))
    told = [event for _, event in tab.log.since(0)]
    assert next(event for event in told if event["kind"] == "update")["handles"] == [[300, 200]]
    frame = next(event for event in told if event["kind"] == "frame")
    assert frame["box"][:2] == list(tab.made.result.trace.part[:2])
    assert frame["box"][2] < 400 and tab.made.result.image.size == (400, 300)


def test_tabs_are_numbered(served: Any) -> None:
    editor = tabs.Editor(served.page.desk)
    opened = [editor.new_tab() for _ in range(served.page.desk.tabs)]
    with pytest.raises(tabs.Refused, match="close one"):
        editor.new_tab()
    editor.close_tab(opened[0])
    editor.new_tab()
    editor.close()


def test_tasks_run_in_turn_and_can_be_taken_out() -> None:
    worker, go = work.Worker(), [False]
    done: list[Any] = []

    def slow(task: work.Task) -> None:
        until(lambda: go[0])
        done.append("slow")

    tasks = [work.Task("one", slow), *(work.Task("two", lambda task: done.append(task)) for _ in range(3))]
    assert [worker.add(task) for task in tasks][1:] == [1, 2, 3]
    nobody_waits = work.Task("one", lambda task: done.append("background"), background=True)
    assert worker.add(nobody_waits) == 4
    last = work.Task("three", lambda task: done.append("last"))
    assert worker.add(last) == 4, "who waits comes first"
    worker.end(tasks[2])
    assert worker.of("two") == [tasks[1], tasks[3]]
    go[0] = True
    until(lambda: len(done) == 5)
    assert done == ["slow", tasks[1], tasks[3], "last", "background"]
    worker.close()
