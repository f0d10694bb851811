"""The page's server: who may ask, and what is answered. Its packages are the extra `ui`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import json
import secrets
import socket
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dragsa import pictures
from dragsa.loading.safetensors import one_line
from dragsa.page.desk import Desk
from dragsa.page.tabs import Editor, Picture, Refused, Tab, opened, png, stem

STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GONE = 30.0  # seconds without a listener after which a tab is closed
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Answer = Callable[[Request], Awaitable[Response]]


class Guard:
    """Lets those through who use the page itself: another site's page, or another name of this machine, does not.

    `token`: what every address but the code's must hold; None where the server listens to its own machine alone, and
    then a request has to name that.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (why := self.refusal(scope)):
            await JSONResponse({"error": why}, 403, HEADERS)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused, None for one that may pass."""
        headers = Headers(scope=scope)
        host, origin, site = headers.get("host", ""), headers.get("origin"), headers.get("sec-fetch-site")
        if self.token is None and host_name(host) not in LOOPBACK:
            return f"this page is for its own machine, and not for {host or 'a request without a host'}"
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return f"the page at {origin} may not use this one"
        if site not in (None, "none", "same-origin") and scope["path"] != "/":
            return "another page may not use this one"
        given = dict(part.partition("=")[::2] for part in scope["query_string"].decode("latin-1").split("&"))
        if self.token is None or scope["path"].startswith("/static/"):
            return None
        if not secrets.compare_digest(given.get("token", "").encode(), self.token.encode()):
            return "the address lacks its token: use the one that `dragsa ui` has printed"
        return None


def host_name(host: str) -> str:
    """Return a Host header without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


class Page:
    """The routes, and the editor behind them."""

    def __init__(self, desk: Desk, token: str | None = None) -> None:
        self.desk, self.editor = desk, Editor(desk)
        self.ending: Callable[[], bool] = lambda: False  # tells the streams that the server ends
        posts: dict[str, Callable[..., Awaitable[Response]]] = {
            "/close": self.close,
            "/picture": self.open,
            "/example": self.example,
            "/prepare": self.prepare,
            "/edit": self.edit,
            "/stop": self.stop,
            "/load": self.load,
            "/job": self.job,
            "/on": self.go_on,
        }
        gets: dict[str, Callable[..., Awaitable[Response]]] = {
            "/events": self.events,
            "/picture": self.picture,
            "/result": self.result,
            "/frame": self.frame,
            "/trace": self.trace,
        }
        routes = [Route("/", self.index), Route("/static/{name}", self.static), Route("/about", self.about)]
        routes += [Route("/tab", self.tab, methods=["POST"])]
        routes += [Route(path, self.of_tab(answer), methods=["POST"]) for path, answer in posts.items()]
        routes += [Route(path, self.of_tab(answer)) for path, answer in gets.items()]
        self.app = Guard(Starlette(routes=routes, lifespan=self.lifespan), token)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(GONE / 10)
                self.editor.sweep(GONE)

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        self.editor.close()

    def of_tab(self, answer: Callable[..., Awaitable[Response]]) -> Answer:
        """Return a route's function: with its tab, and its errors as a sentence."""

        async def answered(request: Request) -> Response:
            try:
                tab = self.editor.tabs.get(request.query_params.get("tab", ""))
                if tab is None:
                    raise Refused("this tab was closed on the server: load the page again", 410)
                tab.seen = time.monotonic()
                response = await answer(request, tab)
            except Refused as error:
                response = JSONResponse({"error": one_line(error)}, error.status)
            except ValueError as error:
                response = JSONResponse({"error": one_line(error)}, 400)
            response.headers.update(HEADERS)
            return response

        return answered

    async def index(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    async def static(self, request: Request) -> Response:
        path = STATIC / request.path_params["name"]
        if path.parent != STATIC or path.suffix not in TYPES or not path.is_file():
            return JSONResponse({"error": "there is no such file"}, 404, HEADERS)
        return FileResponse(path, headers=HEADERS, media_type=TYPES[path.suffix])

    async def about(self, request: Request) -> Response:
        limits = {"megabytes": self.desk.megabytes, "megapixels": self.desk.megapixels}
        about = {"models": list(self.desk.models), "form": self.desk.form, "limits": limits}
        return JSONResponse({**about, "example": self.desk.example is not None}, headers=HEADERS)

    async def tab(self, request: Request) -> Response:
        try:
            return JSONResponse({"tab": self.editor.new_tab().id}, headers=HEADERS)
        except Refused as error:
            return JSONResponse({"error": one_line(error)}, error.status, HEADERS)

    async def close(self, request: Request, tab: Tab) -> Response:
        self.editor.close_tab(tab)
        return JSONResponse({})

    async def events(self, request: Request, tab: Tab) -> Response:
        """Stream what the tab is told; a stream that begins anew goes on behind the last event that came."""
        last = request.headers.get("last-event-id", "0")

        async def stream() -> AsyncIterator[str]:
            number, quiet = int(last) if last.isdecimal() else 0, 0.0
            tab.streams += 1
            try:
                while tab.id in self.editor.tabs and not self.ending():
                    events = tab.log.since(number)
                    for number, event in events:
                        yield f"id: {number}\ndata: {json.dumps(event, allow_nan=False)}\n\n"
                    quiet = 0.0 if events else quiet + 0.05
                    if quiet > 5:  # so that a connection that is gone is noticed
                        yield ": nothing new\n\n"
                        quiet = 0.0
                    await asyncio.sleep(0.05)
            finally:
                tab.streams -= 1
                tab.seen = time.monotonic()

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def open(self, request: Request, tab: Tab) -> Response:
        data, name = await self.body(request), request.query_params.get("name", "picture")
        name = Path(name.replace("\\", "/")).name or "picture"
        image = await run_in_threadpool(opened, data, name, self.desk.megapixels)
        self.leave(tab)
        return JSONResponse(tab.open(Picture(name, image, data)))

    async def example(self, request: Request, tab: Tab) -> Response:
        if (example := self.desk.example) is None:
            raise Refused("there is no example here", 404)
        data = example.picture.read_bytes()
        self.leave(tab)
        image = opened(data, example.picture.name, self.desk.megapixels)
        told = {"prompt": example.prompt, "settings": dict(example.settings)}
        return JSONResponse({**tab.open(Picture(example.picture.name, image, data)), **told})

    async def go_on(self, request: Request, tab: Tab) -> Response:
        made = self.made(tab)
        name = f"{stem(made.picture.name)}-dragged.png"
        self.leave(tab)
        return JSONResponse(tab.open(Picture(name, made.result.image)))

    def leave(self, tab: Tab) -> None:
        """End what is done for the tab's picture, before another one is opened."""
        for task in self.editor.worker.of(tab):
            self.editor.worker.end(task)

    async def prepare(self, request: Request, tab: Tab) -> Response:
        asked = await self.json(request)
        self.editor.prepare(tab, asked["model"], asked["job"])
        return JSONResponse({})

    async def edit(self, request: Request, tab: Tab) -> Response:
        asked = await self.json(request)
        await run_in_threadpool(self.editor.edit, tab, asked["model"], asked["job"], asked["mask"])
        return JSONResponse({})

    async def stop(self, request: Request, tab: Tab) -> Response:
        self.editor.stop(tab)
        return JSONResponse({})

    async def picture(self, request: Request, tab: Tab) -> Response:
        return await self.png(tab.opened().image)

    async def result(self, request: Request, tab: Tab) -> Response:
        return await self.png(self.made(tab).result.image)

    async def frame(self, request: Request, tab: Tab) -> Response:
        update = request.query_params.get("update", "")
        frame = tab.frames.get(int(update)) if update.isdecimal() else None
        if frame is None:
            raise Refused("there is no such picture", 404)
        return Response(frame, media_type="image/jpeg")

    async def trace(self, request: Request, tab: Tab) -> Response:
        """Answer with the last edit's report, which is a job, too."""
        made = self.made(tab)
        report = {"command": "edit", **pictures.to_json(made.result.trace), "options": self.file_of(made)}
        return Response(json.dumps(report, indent=2, ensure_ascii=False) + "\n", media_type="application/json")

    async def job(self, request: Request, tab: Tab) -> Response:
        """Answer with a folder, zipped, that `dragsa edit --job` repeats what is asked from: job, picture, mask."""
        asked, picture = await self.json(request), tab.opened()
        self.desk.read(asked["model"], asked["job"])  # one that cannot be read is not saved
        name, data = picture.file
        files = {name: data} | ({} if asked["mask"] is None else {f"{stem(name)}-mask.png": asked["mask"]})
        written = self.job_file(asked["model"], asked["job"], name, asked["mask"] is not None)
        files["job.json"] = (json.dumps(written, indent=2, ensure_ascii=False) + "\n").encode()
        return Response(zipped(files), media_type="application/zip")

    async def load(self, request: Request, tab: Tab) -> Response:
        """Answer with the jobs of a file: JSON, or a folder that the page has saved, whose picture is opened."""
        data = await self.body(request)
        files = unzipped(data, self.desk.megabytes) if data[:2] == b"PK" else {"job.json": data}
        try:
            value = json.loads(files["job.json"].decode("utf-8-sig"))
        except KeyError:
            raise Refused("no job: the folder has no job.json") from None
        except (ValueError, RecursionError):
            raise Refused("not a job: a job file is JSON, or a folder that this page has saved") from None
        jobs = self.desk.jobs_in(value)
        answer: dict[str, Any] = {"jobs": jobs, "picture": None, "mask": None}
        if (name := jobs[0].get("image")) in files:
            image = await run_in_threadpool(opened, files[name], name, self.desk.megapixels)
            self.leave(tab)
            answer["picture"] = tab.open(Picture(name, image, files[name]))
        if (name := jobs[0].get("mask")) in files:
            opened(files[name], name, self.desk.megapixels)
            answer["mask"] = base64.b64encode(files[name]).decode()
        return JSONResponse(answer)

    def made(self, tab: Tab) -> Any:
        if tab.made is None:
            raise Refused("there is no result yet", 404)
        return tab.made

    def file_of(self, made: Any) -> dict[str, Any]:
        return self.job_file(made.model, made.job, made.picture.file[0], made.mask is not None)

    def job_file(self, model: str, job: dict[str, Any], name: str, masked: bool) -> dict[str, Any]:
        mask = {"mask": f"{stem(name)}-mask.png"} if masked else {}
        return {"image": name, **mask, **self.desk.to_file(model, job), "out": f"{stem(name)}-dragged.png"}

    async def png(self, image: Any) -> Response:
        return Response(await run_in_threadpool(png, image), media_type="image/png")

    async def json(self, request: Request) -> dict[str, Any]:
        """Return what a request asks: model, job, and the mask's file or None."""
        try:
            asked = json.loads(await self.body(request))
            mask = asked.get("mask")
            found = {
                "model": asked["model"],
                "job": asked["job"],
                "mask": mask and base64.b64decode(mask, validate=True),
            }
        except (KeyError, AttributeError, TypeError, RecursionError, binascii.Error, json.JSONDecodeError) as error:
            raise Refused(f"the request is not what the page sends ({type(error).__name__})") from None
        if not isinstance(found["job"], dict) or not isinstance(found["model"], str):
            raise Refused("the request is not what the page sends")
        return found

    async def body(self, request: Request) -> bytes:
        """Return a request's body. Raises Refused for one that is longer than an upload may be, without reading on."""
        most = int(self.desk.megabytes * 2**20)
        told, read = request.headers.get("content-length", "0"), bytearray()
        too_long = Refused(f"more than {self.desk.megabytes:g} MB: make the file smaller", 413)
        if not told.isdecimal() or int(told) > most:
            raise too_long
        async for part in request.stream():
            read += part
            if len(read) > most:
                raise too_long
        return bytes(read)


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as folder:
        for name, content in files.items():
            folder.writestr(name, content)
    return data.getvalue()


def unzipped(data: bytes, megabytes: float) -> dict[str, bytes]:
    """Return a zipped folder's files by their names. Raises Refused for one that is damaged, or larger than it may be.

    What a file's head says of its size is not relied on: no more is unpacked than may be.
    """
    left, files = int(megabytes * 2**20), {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as folder:
            for name in folder.namelist()[:16]:
                with folder.open(name) as file:
                    files[name] = file.read(left + 1)
                left -= len(files[name])
                if left < 0:
                    raise Refused(f"more than {megabytes:g} MB when unpacked: make the picture smaller", 413)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("the folder is damaged and cannot be unpacked") from None
    return files


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises OSError that says where, for one that is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}; give another --port") from None


def address(sock: socket.socket, token: str | None) -> str:
    """Return where the page is found, with its token."""
    host, port = sock.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def token_for(host: str) -> str | None:
    """Return a new token where others than this machine can listen, else None."""
    return None if host in LOOPBACK else secrets.token_urlsafe(16)


def server_of(page: Page) -> uvicorn.Server:
    """Return the server of a page; `run(sockets=[…])` serves until an interrupt, or until `should_exit` is set."""
    server = uvicorn.Server(uvicorn.Config(page.app, log_level="warning", timeout_graceful_shutdown=5))
    page.ending = lambda: server.should_exit
    return server
