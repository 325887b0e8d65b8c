"""What the world said, in our words: a message, a status and yt-dlp's errors as one of the causes
in `errors`.

Words are tried in order, because sites say many things at once ("Video unavailable. ... blocked it
in your country on copyright grounds"). What cannot be told stays "network" where the network was at
work, and is tried again; an extractor's unknown complaint is "unsupported", and left to the next
run.
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
YOUR_PLACE = r"(your|this|the current) (country|region|location|area|territory)"
SAID: list[tuple[str, Cause]] = [  # what yt-dlp and pip say, in lower case; the first that fits
    (r"no matching distribution", "gone"),
    (
        rf"geo.?(restrict|block)|(available|blocked|accessible)( it)? (in|from|at|to) {YOUR_PLACE}",
        "geo-blocked",
    ),
    (
        r"private video|(video|vod|playlist|channel) is private|members.only|channel('s)? members|join this channel",
        "private",
    ),
    (r"not a bot|captcha|anti.bot", "bot-check"),
    (r"rate.?limit|too many requests", "rate-limited"),
    (
        r"video unavailable|removed|deleted|terminated|copyright|no longer (available|exists)|does not exist",
        "gone",
    ),
    (
        r"\b(sign|log) ?in\b|registered users|password|premium|payment|purchase|subscri(be|ption)",
        "forbidden",
    ),
    (r"timed out|timeout", "timeout"),
    (
        r"invalid requirement|unsupported url|no video formats|requested format is not available|drm",
        "unsupported",
    ),
]


class Later(Unavailable):
    """A server that says when to come again."""

    pause_s: float


def cause_of(message: str, status: int | None = None, otherwise: Cause = "network") -> Cause:
    """The class of a failure, from what was said and its HTTP status; addresses in the message say
    nothing.
    """
    said = re.sub(r"[a-z]+://\S+", "", message.lower().replace("\u2019", "'"))
    if status is None and (found := re.search(r"http error (\d{3})", said)):
        status = int(found[1])
    cause = next((cause for pattern, cause in SAID if re.search(pattern, said)), otherwise)
    if status is None or cause in SURE:
        return cause
    return STATUS.get(status, "network" if status >= 500 else "http-status")


def of(error: Exception, failed: Any) -> Exception:
    """yt-dlp's error as one of ours: an Unavailable, or an OSError for a full disk.

    `failed`, the last failure on the network, counts if the error speaks of it: yt-dlp does not
    always hand it on.
    """
    from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError
    from yt_dlp.utils import ExtractorError, GeoRestrictedError

    origins = list(_origins(error))
    if FULL in str(error) or any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for one in origins
    ):
        return OSError(errno.ENOSPC, FULL)
    message = (
        re.sub(r"\x1b\[[0-9;]*m|^\s*ERROR: ", "", str(error)).partition(" (caused by")[0].strip()
    )
    detail = message.splitlines()[0] if message else type(error).__name__
    failed = failed if failed is not None and str(failed) in str(error) else None
    extractor = next((one for one in origins if isinstance(one, ExtractorError)), None)
    if isinstance(extractor, GeoRestrictedError):
        return Unavailable("geo-blocked", detail)
    if any(
        isinstance(one, RequestError) and not isinstance(one, HTTPError | TransportError)
        for one in origins
    ):
        return Unavailable("unsupported", detail)  # no request can be made of it: of file:, for one
    if isinstance(
        failed, TransportError
    ):  # its words hold the address: only its kind is to be trusted
        return Unavailable(
            "timeout"
            if any(isinstance(one, TimeoutError) for one in _origins(failed))
            else "network",
            detail,
        )
    said = extractor.orig_msg if extractor else message  # without the video's title
    cause = cause_of(
        said, getattr(failed, "status", None), "unsupported" if extractor else "network"
    )
    if (
        isinstance(failed, HTTPError)
        and failed.status in (429, 503)
        and (pause := pause_s(failed.response.headers)) is not None
    ):
        later = Later(cause, f"{detail} (the server asks for a pause of {pause:.0f} s)")
        later.pause_s = pause
        return later
    return Unavailable(cause, detail)


def _origins(error: Any) -> Iterator[BaseException]:
    """An error and all that it came from: yt-dlp keeps what it translates in several places."""
    seen: list[Any] = []
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            yield one
            exc_info = getattr(one, "exc_info", None) or (None, None)
            waiting += [exc_info[1], getattr(one, "cause", None), one.__cause__, one.__context__]


def pause_s(headers: Any) -> float | None:
    """The seconds in `Retry-After`, which is a number or a date by the server's own clock; None if
    nothing sensible is asked.
    """
    said = str(headers.get("Retry-After") or "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        then, now = (
            email.utils.parsedate_tz(text)
            for text in (said, headers.get("Date") or email.utils.formatdate())
        )
        return (
            max(0.0, email.utils.mktime_tz(then) - email.utils.mktime_tz(now))
            if then and now
            else None
        )
    except (ValueError, OverflowError):
        return None
