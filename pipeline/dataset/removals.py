"""`manifests/NAME.removed.jsonl`: sources that were taken down, and stay so whatever the recipe
says: by their key, and by the digest of their video, so that no new name brings one back. Lines
are only ever added.

It stands beside the recipe and is published with it: a rebuild leaves the same sources out. It
names ids, no addresses.

The lines are a chain: each holds the digest of the line it was added after, so a line that is cut
out before another is seen to be missing. What is cut off at the end, or all of it, is seen by the
locks, which say how many lines there were and which was the last: see `check`. Two branches that
each added a line may be merged: a line may follow any line above it, not only the last. Files of
before, whose lines name none, are read as they are; the first line added to one follows its last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.files import replace_file
from pipeline.core.reading import (
    Count,
    Digest,
    Facts,
    Key,
    Text,
    Texts,
    adapter,
    problem_of,
    sealed_lines,
)
from pipeline.core.records import Video

Span = tuple[Fraction | None, Fraction | None]
HINT = "it says which sources were taken down, so nothing is built without it"
Seconds = Annotated[str, Field(strict=True, pattern=r"^-?[0-9]{1,100}/[0-9]{1,100}$")]


@dataclass(frozen=True)
class Removal:
    """When (UTC) a source was taken down, what was said, and what it was: see `note`. `digests` are
    those of its lines in the file (two, where two branches removed it), `line` is the number of
    the last.
    """

    at: str
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    line: int = field(default=0, compare=False)
    digests: tuple[str, ...] = field(default=(), compare=False)


class _Video(Facts):
    """A video that was taken down: its digest, and the part of it, as exact seconds."""

    video: Digest
    span: tuple[Seconds | None, Seconds | None]


class _Roots(Facts):
    before: Text
    after: Text


class _Line(Facts):
    """What a line must say. It comes with a recipe, so somebody else may have written it."""

    source: Key
    at: Text
    why: Text
    videos: dict[Text, _Video] = Field(default_factory=dict)
    samples: Texts = ()
    shards: Texts = ()
    others: Texts = ()  # keys that had the same footage, and kept it
    root_digest: _Roots | None = None
    previous: Digest | None = None

    def facts(self) -> dict[str, Any]:
        """What it says beside who, when and why."""
        context = {"source", "at", "why", "previous"}
        return self.model_dump(mode="json", exclude=context, exclude_defaults=True)


class Head(Facts):
    """What a lock says of the removals that its build knew: how many lines there were, and the
    digest of the last. Locks of before only count sources, which had a line each.
    """

    lines: Count
    last: Digest | None


def path_of(recipe: Path) -> Path:
    return recipe.with_name(f"{recipe.stem}.removed.jsonl")


def read(recipe: Path) -> dict[str, Removal]:
    """The sources taken down, by key. Raises RecipeError if the file cannot be understood, or a
    line is missing: nothing is built without it.
    """
    path = path_of(recipe)
    try:
        return _read(path) if path.exists() or path.is_symlink() else {}
    except Damaged as error:
        raise RecipeError(f"{error}; {HINT}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}); {HINT}") from error


def _read(path: Path) -> dict[str, Removal]:
    removals: dict[str, Removal] = {}
    digests: set[str] = set()
    is_chained = False
    for number, facts in sealed_lines(path, str(path)):
        place = f"{path}: line {number}"
        try:
            line: _Line = adapter(_Line).validate_python(facts)
        except ValidationError as error:
            raise Damaged(f"{place} is damaged ({problem_of(error)})") from None
        if line.previous is not None and line.previous not in digests:
            raise Damaged(f"{place} follows a line that is not there: lines were cut out before it")
        if line.previous is None and is_chained:
            raise Damaged(f"{place} does not name a line that it follows")
        is_chained = is_chained or line.previous is not None
        digest = _digest_of(canonical.seal(facts))
        digests.add(digest)
        known = removals.get(line.source)
        own_digests = (*known.digests, digest) if known else (digest,)
        removals[line.source] = Removal(line.at, line.why, line.facts(), number, own_digests)
    return removals


@dataclass(frozen=True)
class Footage:
    """What was taken down by its bytes: by a video's digest, the part of it, in seconds, with the
    source it was removed as.
    """

    parts: Mapping[str, Sequence[tuple[Span, str, Removal]]]

    def removal_of(self, video: Video) -> tuple[str, Removal] | None:
        """Under which key this video, or a part of what its source asks for, was taken down, and
        how; None if it was not. A key that had the same footage then, and kept it, keeps it.
        """
        span = (video.source.start_s, video.source.end_s)
        return self.removal_of_part(video.key, video.blob.sha256, span)

    def removal_of_part(self, key: str, sha256: str, span: Span) -> tuple[str, Removal] | None:
        """The same, of a part of a video, in seconds."""
        for part, source, removal in self.parts.get(sha256, ()):
            if key not in removal.facts.get("others", ()) and overlap(part, span):
                return source, removal
        return None


def footage_of(removed: Mapping[str, Removal]) -> Footage:
    """What removals say of the bytes of videos."""
    parts: dict[str, list[tuple[Span, str, Removal]]] = {}
    for source, removal in sorted(removed.items()):
        for facts in removal.facts.get("videos", {}).values():
            start, end = (None if time is None else Fraction(time) for time in facts["span"])
            parts.setdefault(facts["video"], []).append(((start, end), source, removal))
    return Footage(parts)


def overlap(part: Span, other: Span) -> bool:
    """Whether two parts of a video share a moment."""
    first_ends = part[1] is not None and part[1] <= (other[0] or 0)
    other_ends = other[1] is not None and other[1] <= (part[0] or 0)
    return not first_ends and not other_ends


def _digest_of(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def head_of(removed: Mapping[str, Removal]) -> Head | None:
    """The end of the file that removals were read from; None if there are none."""
    last = max(removed.values(), key=lambda removal: removal.line, default=None)
    return Head(lines=last.line, last=last.digests[-1]) if last and last.digests else None


def check(recipe: Path, removed: Mapping[str, Removal], head: Head, lock: Path) -> None:
    """Raises RecipeError unless the file a recipe's removals were read from has the lines that its
    lock knew of.
    """
    present = head_of(removed)
    num_lines = present.lines if present else 0
    digests = {digest for removal in removed.values() for digest in removal.digests}
    if num_lines < head.lines or (head.last is not None and head.last not in digests):
        raise RecipeError(
            f"{path_of(recipe)} has lost lines: {lock} knows of {head.lines}, there are "
            f"{num_lines}; {HINT}. Get the file back from where it is published, or from its "
            "history"
        )


def note(recipe: Path, source: str, removal: Removal, facts: Mapping[str, object]) -> Removal:
    """Add a line: the source, when, why, and `facts` for whoever audits it. Returns the removal
    with its place in the file.
    """
    path = path_of(recipe)
    before = path.read_bytes().splitlines() if path.is_file() else []
    line = {"source": source, "at": removal.at, "why": removal.why, **facts}
    if before:
        line["previous"] = _digest_of(before[-1])
    sealed = canonical.seal(line)
    replace_file(path, b"".join(content + b"\n" for content in (*before, sealed)))
    return replace(removal, line=len(before) + 1, digests=(_digest_of(sealed),))
