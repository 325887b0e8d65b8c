"""Sorts what servers, yt-dlp and pip say when they refuse into the causes of `core.errors`.

Patterns are tried in order, because sites say many things at once ("Video unavailable. ... blocked
it in your country on copyright grounds"). A message that fits none is "network" where the network
was at work, and is tried again; from one of yt-dlp's extractors it is "unsupported", and left to
the next run.
"""

from __future__ import annotations

import email.utils
import errno
import os
import re
from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import Cause, Unavailable

FULL = os.strerror(errno.ENOSPC)
STATUS: dict[int, Cause] = {
    401: "forbidden",
    403: "forbidden",
    404: "gone",
    408: "timeout",
    410: "gone",
    429: "rate-limited",
    451: "geo-blocked",
}
SURE = ("geo-blocked", "private", "bot-check")  # where words say so, whatever the status
IN = r"(in|from|at|to)"
PLACE = r"(your|this|the current) (country|region|location|area|territory)"
# what yt-dlp and pip say, in lower case; the first that fits counts
MESSAGES: list[tuple[str, Cause]] = [
    (r"no matching distribution", "gone"),
    (rf"geo.?(restrict|block)|(available|blocked|accessible)( it)? {IN} {PLACE}", "geo-blocked"),
    (r"private video|(video|vod|playlist|channel) is private", "private"),
    (r"members.only|channel('s)? members|join this channel", "private"),
    (r"not a bot|captcha|anti.bot", "bot-check"),
    (r"rate.?limit|too many requests", "rate-limited"),
    (r"video unavailable|removed|deleted|terminated|copyright", "gone"),
    (r"no longer (available|exists)|does not exist", "gone"),
    (r"\b(sign|log) ?in\b|registered users|password", "forbidden"),
    (r"premium|payment|purchase|subscri(be|ption)", "forbidden"),
    (r"timed out|timeout", "timeout"),
    (r"invalid requirement|unsupported url|no video formats", "unsupported"),
    (r"requested format is not available|drm", "unsupported"),
]


class Later(Unavailable):
    """A server that says when to come again: in `pause_s` seconds."""

    pause_s: float


def cause_of(message: str, status: int | None = None, otherwise: Cause = "network") -> Cause:
    """The cause of a failure, from its message and its HTTP status. Addresses in the message are
    left out of account.
    """
    text = re.sub(r"[a-z]+://\S+", "", message.lower().replace("\u2019", "'"))
    if status is None and (match := re.search(r"http error (\d{3})", text)):
        status = int(match[1])
    cause = next((cause for pattern, cause in MESSAGES if re.search(pattern, text)), otherwise)
    if status is None or cause in SURE:
        return cause
    return STATUS.get(status, "network" if status >= 500 else "http-status")


def translate(error: Exception, failed: Any) -> Exception:
    """yt-dlp's error as one of ours: an Unavailable, or an OSError for a full disk.

    `failed` is the last failure on the network, which yt-dlp does not always hand on. It counts if
    the error speaks of it.
    """
    from yt_dlp.networking.exceptions import TransportError
    from yt_dlp.utils import ExtractorError, GeoRestrictedError

    origins = list(_origins(error))
    if FULL in str(error) or any(map(_is_full_disk, origins)):
        return OSError(errno.ENOSPC, FULL)
    message = re.sub(r"\x1b\[[0-9;]*m|^\s*ERROR: ", "", str(error))
    message = message.partition(" (caused by")[0].strip()
    detail = message.splitlines()[0] if message else type(error).__name__
    if failed is not None and str(failed) not in str(error):
        failed = None
    extractor = next((each for each in origins if isinstance(each, ExtractorError)), None)
    if isinstance(extractor, GeoRestrictedError):
        return Unavailable("geo-blocked", detail)
    if any(map(_is_no_request, origins)):
        return Unavailable("unsupported", detail)
    if isinstance(failed, TransportError):
        # its words hold the address, so only its type says what happened
        is_timeout = any(isinstance(each, TimeoutError) for each in _origins(failed))
        return Unavailable("timeout" if is_timeout else "network", detail)
    status = getattr(failed, "status", None)
    if extractor:  # its own message, which does not hold the video's title
        cause = cause_of(extractor.orig_msg, status, "unsupported")
    else:
        cause = cause_of(message, status)
    return _later(failed, cause, detail) or Unavailable(cause, detail)


def _is_full_disk(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _is_no_request(error: BaseException) -> bool:
    """Whether yt-dlp cannot even make a request of an address, such as a file: one."""
    from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError

    return isinstance(error, RequestError) and not isinstance(error, HTTPError | TransportError)


def _later(failed: Any, cause: Cause, detail: str) -> Later | None:
    """The refusal of a server that says when to come again; None if it does not."""
    from yt_dlp.networking.exceptions import HTTPError

    if not isinstance(failed, HTTPError) or failed.status not in (429, 503):
        return None
    pause = pause_s(failed.response.headers)
    if pause is None:
        return None
    later = Later(cause, f"{detail} (the server asks for a pause of {pause:.0f} s)")
    later.pause_s = pause
    return later


def _origins(error: Any) -> Iterator[BaseException]:
    """An error and all that it came from: yt-dlp keeps what it translates in several places."""
    seen: list[Any] = []
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or each in seen:
            continue
        seen.append(each)
        yield each
        exc_info = getattr(each, "exc_info", None) or (None, None)
        waiting += [exc_info[1], getattr(each, "cause", None), each.__cause__, each.__context__]


def pause_s(headers: Any) -> float | None:
    """The seconds in `Retry-After`, which is a number or a date by the server's own clock; None if
    nothing sensible is asked.
    """
    text = str(headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        then = email.utils.parsedate_tz(text)
        now = email.utils.parsedate_tz(headers.get("Date") or email.utils.formatdate())
        if then is None or now is None:
            return None
        return max(0.0, email.utils.mktime_tz(then) - email.utils.mktime_tz(now))
    except (ValueError, OverflowError):
        return None
