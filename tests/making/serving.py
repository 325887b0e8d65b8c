"""A small HTTP server with the manners of the real world: ranges, refusals, dropped connections,
lies, loops, silence, and files that change.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Serves what `answers` says for a path, or for "*"; notes every request."""

    answers: dict[str, Answer]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Range")))
        answer = self.answers.get(self.path) or self.answers.get("*", status(404))
        with contextlib.suppress(ConnectionError):
            answer(self)

    do_HEAD = do_GET  # noqa: N815  the base class's name

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""

    def send(
        self,
        content: bytes,
        kind: str,
        first: int = 0,
        total: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A whole answer, or the part of it from `first` on."""
        self.send_response(206 if first else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if first:
            self.send_header(
                "Content-Range",
                f"bytes {first}-{(total or len(content)) - 1}/{total or len(content)}",
            )
        self.send_header("Content-Length", str((total or len(content)) - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first:])


def status(
    code: int, then: Answer | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Refuse; with `then`, refuse once and answer so from the second time on."""
    state = {"left": 1}

    def answer(handler: Handler) -> None:
        if then is not None and state["left"] == 0:
            then(handler)
            return
        if handler.command == "GET":
            state["left"] -= 1
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def first_wanted(handler: Handler) -> int:
    """Where the wanted range begins."""
    return int(
        handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0
    )


def etag(path: Path) -> dict[str, str]:
    """A strong ETag of a file's bytes."""
    return {"ETag": f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"'}


def weak_etag(path: Path) -> dict[str, str]:
    return {"ETag": f"W/{etag(path)['ETag']}"}


def last_modified(path: Path) -> dict[str, str]:
    """A file's time stamp."""
    return {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}


def content(path: Path, kind: str = "video/mp4", drop_after: int | None = None) -> Answer:
    """A file with ranges; with `drop_after`, the first two whole answers (a look at the page, then
    the download) break off there.
    """
    state = {"drops": 0 if drop_after is None else 2}

    def answer(handler: Handler) -> None:
        whole = path.read_bytes()
        first = first_wanted(handler)
        if state["drops"] and handler.command == "GET" and drop_after is not None and first == 0:
            state["drops"] -= 1
            handler.send(whole[:drop_after], kind, total=len(whole), headers=etag(path))
            handler.close_connection = True
            return
        handler.send(whole, kind, first, len(whole), headers=etag(path))

    return answer


def dropping(path: Path, after: int) -> Answer:
    """A file with ranges; every second connection breaks off after so many bytes of it."""
    state = {"connections": 0}

    def answer(handler: Handler) -> None:
        state["connections"] += 1
        whole, first = path.read_bytes(), first_wanted(handler)
        kept = len(whole) if state["connections"] % 2 else first + after
        handler.send(whole[:kept], "video/mp4", first, len(whole), headers=etag(path))

    return answer


def changing(
    old: Path,
    new: Path,
    says: Callable[[Path], dict[str, str]],
    drop_after: int,
    heeds_if_range: bool = True,
) -> Answer:
    """A file whose first download breaks off after so many bytes, and which is another one from
    then on. `says` makes the headers that tell the versions apart.
    """
    state = {"gets": 0}

    def answer(handler: Handler) -> None:
        if handler.command == "GET":
            state["gets"] += 1
        is_old = state["gets"] <= 2  # a look at the page, then the download
        path = old if is_old else new
        whole, headers, first = path.read_bytes(), says(path), first_wanted(handler)
        condition = handler.headers.get("If-Range")
        if condition and heeds_if_range and condition not in headers.values():
            first = 0
        kept = drop_after if is_old else len(whole)
        handler.send(whole[:kept], "video/mp4", first, len(whole), headers)
        handler.close_connection = is_old

    return answer


def lying(path: Path, claims: int) -> Answer:
    """A file that is said to have so many bytes."""

    def answer(handler: Handler) -> None:
        whole = path.read_bytes()
        handler.send(whole, "video/mp4", min(first_wanted(handler), len(whole)), claims)

    return answer


def page(text: str, kind: str = "text/html") -> Answer:
    return lambda handler: handler.send(text.encode(), kind)


def redirect(to: str | Callable[[str], str]) -> Answer:
    """To an address, or to what is made of the path asked for."""

    def answer(handler: Handler) -> None:
        status(302, headers={"Location": to if isinstance(to, str) else to(handler.path)})(handler)

    return answer


def endless(begin: bytes, kind: str) -> Answer:
    """A stream without length that ends when nobody listens any more."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        handler.wfile.write(begin)
        while True:
            handler.wfile.write(b" " * 65536)

    return answer


def silent(handler: Handler) -> None:
    """Accepts, and says nothing for as long as anybody waits."""
    handler.connection.recv(1)


@contextlib.contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """The server's address and the list of (path, range) it was asked for."""
    asked: list[tuple[str, str | None]] = []
    kind = type("Here", (Handler,), {"answers": answers, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
