"""What can go wrong, by what is done about it.

LongtakeError
├── RecipeError    the recipe is wrong: stop before any work, name file, field and value
├── BadData        the bytes are bad: a Rejection, remembered, counted, the build goes on
│   └── Unchosen   a rule of the recipe's [keep] drops the clip
├── Unavailable    the world said no (404, 429, network): retried, counted, never remembered
├── Stopped        the world stops the build (disk full, no such model): fix it, run again
│   └── Damaged    a file of ours has changed on disk: remove it, or `verify`, and build again
└── Bug            ours: stop with the key of the record that found it
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Reason = Literal[
    "unreadable",  # no known container, or its header cannot be read
    "no-video-stream",
    "no-timestamps",
    "truncated",  # the container promises more than is there
    "decode-error",
    "damaged",  # a part of a video, up to the next key frame
    "gap",  # a part of a video in which it shows nothing
    "outside-span",  # the source's time range holds no frame
    "too-few-frames",
    "unknown-colours",  # tagged with colours that longtake cannot convert
    "missing-field",  # [columns] names what no sample of an archive has
    "interlaced",  # not wanted in this recipe, or a field a picture
    "black-bars",  # not wanted in this recipe
    "faces",  # the same
    "too-few-distinct",  # a still: most frames show the picture before once more
    "too-large",  # more pixels, frames or hours than one task may decode (`video.MAX_...`)
    "non-finite",  # NaN or Inf in the output of an encoder or a scorer
    "duplicate",  # another clip shows the same, and stays
    "score-failed",  # a scorer raised an error on this clip
    "caption-refused",  # the model that writes captions will not describe the clip
    "caption-cut",  # its answer was longer than `max_tokens`
    "caption-empty",  # its answer holds no words
    "long-caption",  # CLIP would not see its end, and the recipe says `long_captions = "reject"`
    "crashed",  # the worker process died, twice: a suspicion, see SUSPECTED
    "timed-out",  # a suspicion too
    "removed",  # taken down with `remove`: see manifests/NAME.removed.jsonl
]
Cause = Literal[
    "gone",  # 404, 410, removed
    "forbidden",  # 401, 403
    "private",  # private, or for members only
    "geo-blocked",  # not for this country, 451
    "bot-check",  # "confirm you're not a bot"
    "rate-limited",  # 429
    "http-status",  # any other refusal
    "network",
    "timeout",
    "checksum",  # the bytes served are not the bytes the recipe asks for
    "not-found",  # no such local file, wheel member or object
    "unsupported",  # no downloader understands the address
]
REASONS: frozenset[str] = frozenset(get_args(Reason))
CAUSES: frozenset[str] = frozenset(get_args(Cause))
# What a worker's end says of its record: that it may have been at fault, not that it was.
SUSPECTED: frozenset[str] = frozenset({"crashed", "timed-out"})
RETRIED: frozenset[str] = frozenset({"rate-limited", "network", "timeout"})


class LongtakeError(Exception):
    """Any error longtake raises on purpose."""


class RecipeError(LongtakeError):
    """The recipe cannot be built as written."""


class BadData(LongtakeError):
    """A property of the bytes; becomes a remembered Rejection."""

    def __init__(self, reason: Reason, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"no reason is called '{reason}': add it to Reason in core/errors.py")
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Unchosen(BadData):
    """A rule of the recipe drops a clip; the class of the rejection is the rule's name."""

    def __init__(self, rule: str, detail: str) -> None:
        if rule in REASONS | CAUSES:
            raise ValueError(f"a rule cannot be called '{rule}': that is a reason of its own")
        LongtakeError.__init__(self, rule, detail)
        self.reason = rule  # type: ignore[assignment]  # the list is closed, but for the recipe's
        self.detail = detail


class Unavailable(LongtakeError):
    """A property of the world at this moment; counted by cause and tried again by the next run.

    `detail` is printed and kept, so no user and no password stays in the addresses it names.
    """

    def __init__(self, cause: Cause, detail: str, tries: int = 1) -> None:
        detail = without_credentials(detail)
        super().__init__(cause, detail, tries)
        self.cause: Cause = cause
        self.detail = detail
        self.tries = tries  # how often it was tried before giving up

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"


def without_credentials(text: str) -> str:
    """A text whose addresses have no `user:password@` in front of their host."""
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#]*@", r"\1", text)


# control characters, which a terminal would obey, those that turn the direction of writing, line
# separators, and half characters
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Somebody else's words, fit for a screen and for one line."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class Stopped(LongtakeError):
    """The build cannot go on until something outside it changes; what is done is kept."""


class Damaged(Stopped):
    """A manifest or lock whose bytes are not those that were written."""


class Bug(LongtakeError):
    """An exception nobody planned for, with the stage and the key of the record it happened on."""

    def __init__(self, stage: str, key: str, trace: str) -> None:
        super().__init__(stage, key, trace)
        self.stage = stage
        self.key = key
        self.trace = trace

    def __str__(self) -> str:
        return f"a bug in stage '{self.stage}' on record '{self.key}':\n{self.trace}"
