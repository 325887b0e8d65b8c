"""A model behind an OpenAI-compatible endpoint, on the loopback: it holds every request to the form
that the API documents, describes what it is shown, and fails as services fail.

The form is that of `POST /v1/chat/completions` as OpenAI documents it; what is not in it is
answered with 400, as OpenAI does.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

MODEL = "tiny-vl"
KEY = "sk-test-8c1f"
DATA_URL = re.compile(r"data:image/(jpeg|png);base64,([A-Za-z0-9+/]+={0,2})")
LIMITS = {"max_tokens", "max_completion_tokens"}
FIELDS = {"model", "messages", "temperature", "seed"} | LIMITS


@dataclass
class Question:
    """What was asked: the body, the pictures in it, and who asked."""

    body: dict[str, Any]
    prompt: str
    pictures: list[Image.Image]
    formats: list[str]
    headers: Mapping[str, str]


Reply = Callable[["Handler", Question], None]


@dataclass
class Chat:
    """A server that answers with `replies` in turn, the last one from then on."""

    base_url: str
    replies: list[Reply]
    asked: list[Question] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0

    def next_reply(self) -> Reply:
        with self.lock:
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


class Handler(BaseHTTPRequestHandler):
    """Checks a question, then replies."""

    protocol_version = "HTTP/1.1"
    chat: Chat

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.chat.lock:
            self.chat.at_once += 1
            self.chat.most_at_once = max(self.chat.most_at_once, self.chat.at_once)
        try:
            with contextlib.suppress(ConnectionError):
                self._answer(content)
        finally:
            with self.chat.lock:
                self.chat.at_once -= 1

    def _answer(self, content: bytes) -> None:
        try:
            question = checked(self, content)
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            self.chat.complaints.append(f"{type(error).__name__}: {error}")
            refuse(400, f"invalid request: {error}", "invalid_request")(self, None)  # type: ignore[arg-type]
            return
        with self.chat.lock:
            self.chat.asked.append(question)
        self.chat.next_reply()(self, question)

    def do_GET(self) -> None:
        refuse(404, "Not Found")(self, None)  # type: ignore[arg-type]

    def send(
        self, status: int, content: bytes, kind: str = "application/json", **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


def checked(handler: Handler, content: bytes) -> Question:
    """A request of the documented form. Raises AssertionError and the like for any other."""
    assert handler.path == "/v1/chat/completions", handler.path
    assert handler.headers["Content-Type"].partition(";")[0] == "application/json"
    body = json.loads(content)
    assert body.keys() <= FIELDS, f"unknown fields {sorted(body.keys() - FIELDS)}"
    assert isinstance(body["model"], str)
    [limit] = LIMITS & body.keys()
    assert isinstance(body[limit], int)
    assert body[limit] > 0
    assert 0 <= body["temperature"] <= 2
    assert isinstance(body.get("seed", 0), int)
    [message] = body["messages"]
    assert message.keys() == {"role", "content"}
    assert message["role"] == "user"
    first, *others = message["content"]
    assert first.keys() == {"type", "text"}
    assert first["type"] == "text"
    assert first["text"].strip()
    pictures, formats = [], []
    for part in others:
        assert part.keys() == {"type", "image_url"}
        assert part["type"] == "image_url"
        assert part["image_url"].keys() <= {"url", "detail"}
        match = DATA_URL.fullmatch(part["image_url"]["url"])
        assert match, part["image_url"]["url"][:40]
        picture = Image.open(io.BytesIO(base64.b64decode(match[2], validate=True)))
        assert picture.format == match[1].upper(), "the pictures are not what their address says"
        pictures.append(picture.convert("RGB"))
        formats.append(match[1])
    assert pictures, "nothing is shown"
    return Question(body, first["text"], pictures, formats, dict(handler.headers))


def completion(
    content: str | None, reason: str = "stop", model: str = MODEL, **message: Any
) -> bytes:
    """The body of an answer, with every field the API documents as required."""
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1764446400,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": reason,
            }
        ],
        "usage": {"prompt_tokens": 1200, "completion_tokens": 40, "total_tokens": 1240},
    }
    return json.dumps(value).encode()


def says(content: str | None, reason: str = "stop", **message: Any) -> Reply:
    return lambda handler, question: handler.send(200, completion(content, reason, **message))


def describes(handler: Handler, question: Question) -> None:
    """What any model says of these pictures: the mean colour of each, so that other clips have
    other captions.
    """
    colours = [
        picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        for picture in question.pictures
    ]
    words = ", then ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours)
    handler.send(200, completion(f"a picture of {words}"))


def refuse(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    error = {"message": message, "type": "error", "param": None, "code": code}
    content = json.dumps({"error": error}).encode()
    return lambda handler, question: handler.send(status, content, **headers)


def sends(
    content: bytes, kind: str = "application/json", status: int = 200, **headers: str
) -> Reply:
    return lambda handler, question: handler.send(status, content, kind, **headers)


def hangs_up(handler: Handler, question: Question) -> None:
    """Is gone in the middle of its answer."""
    content = completion("a street in the rain")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def endless(handler: Handler, question: Question) -> None:
    """Never comes to an end."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b" " * 65536)


def silent(handler: Handler, question: Question) -> None:
    """Says nothing for as long as anybody waits."""
    handler.close_connection = True
    handler.connection.recv(1)


def dripping(handler: Handler, question: Question) -> None:
    """Says something all the time, and never comes to an end."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b" ")
        threading.Event().wait(0.05)


def with_key(reply: Reply) -> Reply:
    """Answers those who know the key."""

    def answer(handler: Handler, question: Question) -> None:
        if question.headers.get("Authorization") == f"Bearer {KEY}":
            reply(handler, question)
        else:
            given = question.headers.get("Authorization", "").removeprefix("Bearer ")
            words = f"Incorrect API key provided: {given}."
            refuse(401, words, "invalid_api_key")(handler, question)

    return answer


def of_model(reply: Reply) -> Reply:
    """Answers those who name the model that is here, as vLLM and OpenAI do."""

    def answer(handler: Handler, question: Question) -> None:
        if (name := question.body["model"]) == MODEL:
            reply(handler, question)
        else:
            refuse(404, f"The model `{name}` does not exist.", "model_not_found")(handler, question)

    return answer


def with_the_new_limit(reply: Reply) -> Reply:
    """Takes the limit of tokens under its newer name alone, as OpenAI's newer models do."""

    def answer(handler: Handler, question: Question) -> None:
        if "max_tokens" in question.body:
            words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            words += "'max_completion_tokens' instead."
            refuse(400, words, "unsupported_parameter")(handler, question)
        else:
            reply(handler, question)

    return answer


@contextlib.contextmanager
def chatting(*replies: Reply) -> Iterator[Chat]:
    """A server, by default one that describes what it is shown."""
    kind = type("Here", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    chat = Chat(f"http://127.0.0.1:{server.server_port}/v1", list(replies or (describes,)))
    kind.chat = chat  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
