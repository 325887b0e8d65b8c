"""One question with pictures to a model behind an OpenAI-compatible endpoint, and what its answer
means.

`POST BASE_URL/chat/completions`, as vLLM, Ollama, llama.cpp and paid services have it. Three things
may come back beside an answer. What is a property of this clip (a refusal, an answer that is cut or
empty) is BadData. What is a property of the moment (429, 5xx, no connection, half an answer) is
Unavailable and tried again. What every clip would meet (a wrong key, no such model, a request that
the endpoint does not take) is Stopped, with the endpoint's own words.

`requests` is asked to add nothing of its own: no credentials of `.netrc`, no redirects. OpenAI's
own client sends what it finds in variables (organisation, project, further headers) to whatever
address it is given, and reads an answer to its end, however long.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from pipeline.core.caption_table import LONGEST, cleaned
from pipeline.core.errors import BadData, Cause, Stopped, Unavailable
from pipeline.core.reading import shown
from pipeline.media.fetch import retried
from pipeline.media.refusals import Later, pause_s

CONNECT_S = 10.0
MOST_BYTES = 4 << 20  # of an answer: a caption is a thousandth of it
PIECE = 1 << 16
MAX_BARREN = 3  # clips one after the other that got no answer, each after all of its tries
NEW_NAME = "max_completion_tokens"  # what OpenAI's newer models call `max_tokens`
MAX_USELESS = 10  # answers in a build that are no caption, before any that is one
SECRET = 8  # letters that a key has at least; those who need none write "EMPTY"
AGAIN = "the same command goes on from here"
# how services say that they will not look at, or speak of, what is shown
REFUSING = re.compile(
    r"content[ _-]?(management )?(filter|polic)|moderation|flagged|safety (system|polic|filter)",
    re.IGNORECASE,
)
UNPAID = re.compile(r"insufficient[ _](quota|funds|credits|balance)|billing|payment", re.IGNORECASE)


@dataclass
class Endpoint:
    """Where questions go. `key_variable` is the environment variable that holds the key, if one is
    needed; the key itself is read when something is asked, and is in no message.

    Several threads may ask at a time.
    """

    base_url: str
    key_variable: str | None
    attempts: int
    timeout_s: float
    _barren: int = 0
    _useless: int = 0
    _is_useful: bool = False  # whether it has given a caption in this build
    _renames: bool = False  # whether it wants the limit of tokens under its newer name
    _lock: Lock = field(default_factory=Lock)

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc

    def caption(self, question: Mapping[str, Any]) -> str:
        """What the model says, in one line. Raises BadData: caption-refused, caption-cut or
        caption-empty; Unavailable; Stopped.
        """
        try:
            caption = caption_of(retried(self.attempts, lambda: self._ask(question)))
        except Unavailable as error:
            self._count_barren(error)
            raise
        except BadData as error:
            self._barren = 0
            self._count_useless(error)
            raise
        self._barren, self._is_useful = 0, True
        return caption

    def _count_useless(self, error: BadData) -> None:
        """Stop where nothing but refusals and the like has come: it is the model, not the clip."""
        with self._lock:
            self._useless += 1
        if not self._is_useful and self._useless >= MAX_USELESS:
            raise Stopped(
                f"caption: none of the first {self._useless} answers of {self.host} is a caption; "
                f"the last: {error}. Is it a model that sees pictures, and is max_tokens enough "
                "for it? Clips that were rejected are tried again with `longtake retry RECIPE "
                f"--class {error.reason}`"
            ) from error

    def _count_barren(self, error: Unavailable) -> None:
        with self._lock:
            self._barren += 1
            barren = self._barren
        if barren >= MAX_BARREN:
            raise Stopped(
                f"caption: {self.host} gave no answer to {barren} clips one after the other, each "
                f"asked up to {self.attempts} times; the last: {error}. Once it runs, {AGAIN}"
            ) from error

    def key(self) -> str | None:
        """The key, if one is named. Raises Stopped where the variable is not set, or holds what is
        no key.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise Stopped(
                f"caption: the environment variable {self.key_variable}, which the recipe names "
                f"for the key of {self.host}, is not set: export {self.key_variable}=..., then "
                f"{AGAIN}"
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise Stopped(
                f"caption: what {self.key_variable} holds is no key: there is a space or a "
                "character in it that no key has"
            )
        return key

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of a completion. Raises BadData, Unavailable or Stopped."""
        key = self.key()
        if self._renames:
            question = _with_new_name(question)
        status, headers, content = self._post(question, key)
        if key is not None and len(key) >= SECRET:
            content = content.replace(key.encode(), b"***")
        if status == 400 and NEW_NAME in _words(content) and NEW_NAME not in question:
            self._renames = True
            return self._ask(question)
        if status != 200:
            raise self._refusal(status, _words(content), headers, str(question["model"]))
        try:
            completion = json.loads(content)
            choice = completion["choices"][0]
            message = choice["message"]
        except (ValueError, RecursionError, LookupError, TypeError):
            message = None
        if not isinstance(message, dict):
            words = shown(content[:200].decode(errors="replace"))
            raise Unavailable("network", f"{self.host} answers with what is no completion: {words}")
        return dict(choice)

    def _post(
        self, question: Mapping[str, Any], key: str | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and bytes of an answer. Raises Unavailable or Stopped."""
        import requests
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        deadline = time.monotonic() + self.timeout_s
        try:
            with requests.Session() as session:
                answer = session.post(
                    f"{self.base_url.rstrip('/')}/chat/completions",
                    json=dict(question),
                    auth=_signing(key),
                    headers={"Accept-Encoding": "identity"},
                    timeout=(CONNECT_S, self.timeout_s),
                    allow_redirects=False,
                    stream=True,
                )
                with answer:
                    return answer.status_code, answer.headers, _read(answer.raw, deadline)
        except (requests.exceptions.Timeout, ReadTimeoutError, TimeoutError) as error:
            raise Unavailable("timeout", f"{self.host}: no answer in time") from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise Stopped(f"caption: {self.base_url} is no address: {shown(str(error))}") from error
        except (requests.exceptions.RequestException, HTTPError, OSError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Stopped(
                    f"caption: {self.host} is not to be trusted: {_why(error)}"
                ) from error
            raise Unavailable("network", f"{self.host}: {_why(error)}") from error

    def _refusal(
        self, status: int, words: str, headers: Mapping[str, str], model: str
    ) -> Exception:
        """A status that is not 200, as what it means."""
        said = f"{self.host} answers {status}: {words}".rstrip(": .")
        if status in (400, 403, 422) and REFUSING.search(words):
            return BadData("caption-refused", said)
        if status == 402 or (status == 429 and UNPAID.search(words)):
            return Stopped(f"caption: {said}. It wants to be paid; then {AGAIN}")
        if status in (401, 403):
            asked = 'without a key: name the variable of one, key_variable = "..."'
            if self.key_variable:
                asked = f"with the key in {self.key_variable}: is it the right one?"
            return Stopped(f"caption: {said}. It was asked {asked}")
        if status == 404:
            return Stopped(
                f"caption: {said}. Has it a model '{model}', and does base_url end as it should "
                f"(most often in /v1; it is {self.base_url})?"
            )
        if cause := _passing(status):
            return _later(cause, said, pause_s(headers))
        if 300 <= status < 400:
            place = shown(headers.get("Location", "nowhere"))
            return Stopped(f"caption: {said}, and sends us to {place}: is that the base_url?")
        return Stopped(
            f"caption: {said}. It does not take the question as it is: look at model, frames, size "
            "and max_tokens under [caption]"
        )


def _with_new_name(question: Mapping[str, Any]) -> dict[str, Any]:
    names = {"max_tokens": NEW_NAME}
    return {names.get(name, name): value for name, value in question.items()}


def caption_of(choice: Mapping[str, Any]) -> str:
    """The caption that a choice of a completion is, in one line. Raises BadData: caption-refused,
    caption-cut (also for one that is too long for any caption) or caption-empty.
    """
    message = choice["message"]
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):  # some endpoints give parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    text = content if isinstance(content, str) else ""
    if isinstance(refusal, str) and refusal.strip():
        raise BadData("caption-refused", f"the model says: {shown(refusal)}")
    if choice.get("finish_reason") == "content_filter":
        raise BadData("caption-refused", "the endpoint's filter held back the answer")
    if choice.get("finish_reason") == "length":
        detail = f"the answer has more tokens than max_tokens allows: {shown(text)!r}"
        raise BadData("caption-cut", detail)
    caption = cleaned(text)
    if not caption:
        raise BadData("caption-empty", f"the model answers {shown(text)!r}")
    if len(caption) > LONGEST:
        raise BadData("caption-cut", f"the answer has {len(caption)} characters, {LONGEST} at most")
    return caption


def _passing(status: int) -> Cause | None:
    """The cause of a refusal that passes; None for one that will not."""
    if status == 429:
        return "rate-limited"
    if status == 408:
        return "timeout"
    return "network" if status >= 500 or status in (409, 425) else None


def _later(cause: Cause, said: str, pause: float | None) -> Unavailable:
    """A refusal that passes, with the pause that is asked for."""
    if pause is None:
        return Unavailable(cause, said)
    later = Later(cause, f"{said} (it asks for a pause of {pause:.0f} s)")
    later.pause_s = pause
    return later


def _signing(key: str | None) -> Any:
    """What signs a request with the key and nothing else: without it, `requests` would look into
    `.netrc`.
    """

    def sign(request: Any) -> Any:
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign


def _read(stream: Any, deadline: float) -> bytes:
    """An answer's bytes, so many and in such a time. Raises Unavailable for more."""
    content = bytearray()
    while piece := stream.read1(PIECE, decode_content=True):
        content += piece
        if len(content) > MOST_BYTES:
            raise Unavailable("unsupported", f"an answer of more than {MOST_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


def _words(content: bytes) -> str:
    """What an error says, wherever in its JSON it stands; else how it begins."""
    text = content.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return shown(" ".join(text.split()))
    for name in ("error", "message", "detail"):
        while isinstance(value, dict) and name in value:
            code = value.get("code")
            value = value[name]
            if isinstance(value, str) and code:
                value = f"{value} ({code})"
    return shown(" ".join(str(value).split()))


def _why(error: BaseException) -> str:
    """What went wrong in the network, in a line: the words of the error that began it."""
    for _ in range(16):
        before = error.__cause__ or error.__context__
        if before is None:
            break
        error = before
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(str(words).split()))
