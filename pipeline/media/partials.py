"""What a partial download is a part of, so that no file begins in one version and ends in another.

Beside every partial lies a small JSON file with what the server said of the version it came from:
ETag, Last-Modified, length. A download goes on only where the next answer says the same, and only
where that is proof: a strong ETag, or a Last-Modified that lay well in the past when it was said.
Everything else starts anew. The price: a download in fragments, which nothing ties together, is
fetched from its first fragment again when it breaks off.
"""

from __future__ import annotations

import email.utils
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.core import canonical
from pipeline.core.errors import Unavailable
from pipeline.core.files import replace_file

SUFFIX = ".version.json"
MAX_VERSION_BYTES = 100_000
MAX_FRAGMENT_BYTES = 256_000_000  # of one fragment of a stream, which is read into memory
# a file may change twice in a second; RFC 9110 8.8.2.2 has one second, RFC 7232 had sixty
SETTLED_S = 60
DECODED = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
# words in the names under which file systems of fsspec say which version of a file they have
VERSIONED = re.compile(
    "etag|modif|mtime|updated|created|generation|version|ino|"
    "md5|crc|sha|hash|checksum|digest|blobid"
)
Facts = dict[str, str | int]
Span = tuple[int, int | None]
Open = Callable[[Any], Any]


def version_path(partial: Path) -> Path:
    """Where the version of a partial download is kept."""
    return partial.with_name(f"{partial.name}{SUFFIX}")


def recall(partial: Path) -> Facts | None:
    """The version that a partial's bytes are of; None if it is not known, or cannot be read."""
    try:
        with version_path(partial).open("rb") as file:
            content = file.read(MAX_VERSION_BYTES + 1)
        facts = json.loads(content) if len(content) <= MAX_VERSION_BYTES else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or not facts:
        return None
    if not all(type(value) in (str, int) for value in facts.values()):
        return None
    return facts


def begin(partial: Path, facts: Mapping[str, str | int]) -> None:
    """Delete a partial, and keep the version that its next bytes will be of.

    The old bytes are gone before the new version is there: a crash between the two must not leave
    the one with the other.
    """
    discard(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    replace_file(version_path(partial), json.dumps(dict(facts), sort_keys=True).encode())


def discard(partial: Path) -> None:
    """Delete a partial and its version."""
    version_path(partial).unlink(missing_ok=True)
    partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what no download may go on with: all but partials that are shorter than the file whose
    version lies beside them, and can be proven. The folder is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: set[Path] = set()
    for partial in folder.glob("*.part"):
        facts = recall(partial)
        if facts is not None and _may_go_on(partial, facts):
            kept |= {partial, version_path(partial)}
    for path in set(folder.iterdir()) - kept:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _may_go_on(partial: Path, facts: Facts) -> bool:
    if partial.is_symlink() or not partial.is_file() or not isinstance(facts.get("condition"), str):
        return False
    length = facts.get("num_bytes")
    return not isinstance(length, int) or partial.stat().st_size < length


def changed(what: str) -> Unavailable:
    """Two answers were of two versions; the next try starts anew."""
    return Unavailable("network", f"{what} changed while it was fetched; the next try starts anew")


# Over HTTP


def facts_of_answer(response: Any, url: str) -> Facts:
    """What an HTTP answer says of the version it is of, as far as it says it.

    `num_bytes` is of the whole file. `condition` is the value of `If-Range` with which a server
    gives more of this version and of no other. Hosts and queries change with every signature of an
    address; `path` does not.
    """
    headers = response.headers
    facts: dict[str, str | int | None] = {
        "path": _path_of(url),
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "num_bytes": _num_bytes(response),
        "condition": _condition(headers),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _path_of(url: str) -> str:
    return urlsplit(url).path


def _num_bytes(response: Any) -> int | None:
    content_range = _content_range(response)
    if content_range is not None:
        return content_range[2]
    length = (response.headers.get("Content-Length") or "").strip()
    is_number = re.fullmatch(r"[0-9]{1,18}", length)
    return int(length) if response.status == 200 and is_number else None


def _condition(headers: Any) -> str | None:
    """A strong ETag, or a Last-Modified at least `SETTLED_S` older than the answer: RFC 9110,
    13.1.5.
    """
    etag = (headers.get("ETag") or "").strip()
    if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        return str(etag)
    last_modified = (headers.get("Last-Modified") or "").strip()
    changed_s, now_s = _seconds(last_modified), _seconds(headers.get("Date"))
    if etag or changed_s is None or now_s is None or now_s - changed_s < SETTLED_S:
        return None
    return str(last_modified)


def _seconds(date: str | None) -> float | None:
    try:
        parts = email.utils.parsedate_tz(date or "")
        return None if parts is None else email.utils.mktime_tz(parts)
    except (ValueError, OverflowError):
        return None


def _content_range(response: Any) -> tuple[int, int, int] | None:
    """First byte, last byte and length of the whole file, of an answer that is a part."""
    text = (response.headers.get("Content-Range") or "").strip()
    match = CONTENT_RANGE.fullmatch(text) if response.status == 206 else None
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _contradict(facts: Facts, others: Facts) -> bool:
    """Whether two answers say different things of a file."""
    shared = facts.keys() & others.keys() & {"etag", "last_modified", "num_bytes"}
    return any(facts[name] != others[name] for name in shared)


class Transfer:
    """One download of yt-dlp's under way: every request for its bytes goes through `open`.

    `partial` is the file that yt-dlp appends to and goes on with; None for a download in fragments.
    """

    def __init__(self, partial: Path | None) -> None:
        self._partial = partial
        self._answers: dict[str, Facts] = {}

    def open(self, request: Any, urlopen: Open) -> Any:
        """The response to a request. Raises Unavailable("network") if it is of another version than
        the bytes that are there, which are deleted then, or if it is not the range asked for.
        """
        span = _span(request)
        if self._partial is None:
            return self._fragment(request, span, urlopen)
        if span is None or span[0] == 0:
            return _begin(request, span, self._partial, urlopen)
        return _go_on(request, span, self._partial, urlopen)

    def _fragment(self, request: Any, span: Span | None, urlopen: Open) -> Any:
        """All answers of one address must be of one version: fragments may be ranges of a file."""
        response = _checked(urlopen(request), request, span)
        facts = facts_of_answer(response, request.url)
        if _contradict(self._answers.setdefault(request.url, facts), facts):
            response.close()
            raise changed(request.url)
        return response


def _begin(request: Any, span: Span | None, partial: Path, urlopen: Open) -> Any:
    response = urlopen(request)
    facts = facts_of_answer(response, request.url)
    if span is not None and "condition" not in facts:
        # yt-dlp would fetch the file piece by piece, and nothing could tie them together
        response.close()
        del request.headers["Range"]
        span, response = None, urlopen(request)
        facts = facts_of_answer(response, request.url)
    if response.status == 200:  # whole, whatever was asked for
        span = None
    _checked(response, request, span)
    begin(partial, facts)
    return response


def _go_on(request: Any, span: Span, partial: Path, urlopen: Open) -> Any:
    """More of the same version; or the whole file, where the server gives that instead, with which
    yt-dlp starts anew.
    """
    from yt_dlp.networking.exceptions import HTTPError

    facts = recall(partial)
    if facts is None or "condition" not in facts or facts.get("path") != _path_of(request.url):
        discard(partial)
        raise changed(request.url)
    request.headers["If-Range"] = str(facts["condition"])
    try:
        response = urlopen(request)
    except HTTPError as error:
        if error.status != 416:
            raise
        discard(partial)  # yt-dlp would take what is there for the whole
        raise changed(request.url) from error
    # between two pieces yt-dlp would append the whole to what is there
    if response.status == 200 and span[1] is None:
        begin(partial, facts_of_answer(response, request.url))
        return response
    answer = facts_of_answer(response, request.url)
    is_proven = facts["condition"] in (answer.get("etag"), answer.get("last_modified"))
    if not is_proven or _contradict(facts, answer) or not _is_span(response, span):
        response.close()
        discard(partial)
        raise changed(request.url)
    return response


def _span(request: Any) -> Span | None:
    """The first byte that is asked for, and the last one, None for that of the file."""
    match = RANGE.fullmatch(request.headers.get("Range") or "")
    if match is None:
        return None
    return int(match[1]), int(match[2]) if match[2] else None


def _checked(response: Any, request: Any, span: Span | None) -> Any:
    """The response. Raises Unavailable("network") if it has other bytes than asked for."""
    is_right = _is_span(response, span) if span else response.status != 206
    if not is_right:
        response.close()
        raise Unavailable("network", f"{request.url} gives other bytes than it was asked for")
    return response


def _is_span(response: Any, span: Span) -> bool:
    """Whether an answer is the part of a file that was asked for."""
    content_range = _content_range(response)
    if content_range is None:
        return False
    first, last, num_bytes = content_range
    end = num_bytes - 1 if span[1] is None else min(span[1], num_bytes - 1)
    return first == span[0] and first <= last == end


def check_plain(response: Any) -> None:
    """Refuse a video that comes packed: nothing says how large it is, and no range of it can be
    asked for. Raises Unavailable("unsupported").
    """
    encodings = re.split(r"[,\s]+", (response.headers.get("Content-Encoding") or "").lower())
    packed = sorted(DECODED.intersection(encodings))
    if packed:
        raise Unavailable(
            "unsupported",
            f"the server sends the video packed (Content-Encoding: {', '.join(packed)}), "
            "though it was asked not to",
        )


# Over fsspec


def facts_of_object(file_system: Any, path: str) -> Facts:
    """What a file system of fsspec says of the version of a file: size, ETag, time stamps,
    checksums, as far as it knows them. With one of them but the size there is a `condition`.
    """
    file_system.invalidate_cache()  # it may remember an older answer
    details = file_system.info(path)
    facts: Facts = {}
    for name, value in details.items():
        plain_name = re.sub(r"[^a-z0-9]", "", str(name).lower())
        if value is not None and VERSIONED.search(plain_name):
            facts[str(name)] = str(value)
    if facts:
        facts["condition"] = canonical.digest(facts)
    if type(details.get("size")) is int:
        facts["num_bytes"] = details["size"]
    return facts
