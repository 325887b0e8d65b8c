"""A table of captions beside a recipe, clip by clip: JSON lines.

    {"clip": "beach-0003", "caption": "waves roll over a flat beach"}
    {"clip": "2f32...", "caption": ["a gull lands on a pole", "a bird by the sea"]}

A clip is its key or, where its bytes are meant whatever it is called, its digest; a line by digest
counts before one by key. Also what becomes of a caption that a stranger or a model wrote.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import UNPRINTABLE, Damaged, RecipeError
from pipeline.core.reading import Facts, Text, checked, shown, whole
from pipeline.core.records import Clip

MOST_BYTES = 1 << 30
LONGEST_LINE = 1 << 20  # bytes
LONGEST = 10_000  # characters of a caption; CLIP reads about 300
MOST_CAPTIONS = 100  # of a clip
EXAMPLE = '{"clip": "beach-0003", "caption": "waves roll over a flat beach"}'


class _Line(Facts):
    """What a line must say; what it says besides is nobody's business here."""

    clip: Annotated[Text, Field(min_length=1, max_length=300)]
    caption: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CAPTIONS)]


@dataclass(frozen=True)
class CaptionTable:
    """Captions by the clip's key or digest, and the number of the line of each."""

    name: str
    captions: Mapping[str, tuple[str, ...]]
    lines: Mapping[str, int]

    def of(self, clip: Clip) -> tuple[str, ...] | None:
        """The captions of a clip; None if it has no line."""
        by_digest = self.captions.get(clip.blob.sha256)
        return self.captions.get(clip.key) if by_digest is None else by_digest

    def unmatched(self, clips: Collection[Clip]) -> list[tuple[int, str]]:
        """Lines, by number, that name none of these clips, and what they name."""
        names = {name for clip in clips for name in (clip.key, clip.blob.sha256)}
        return sorted((line, name) for name, line in self.lines.items() if name not in names)

    @property
    def digest(self) -> str:
        """Of what it says, in whatever order."""
        return canonical.digest({name: list(texts) for name, texts in self.captions.items()})


NONE = CaptionTable("", {}, {})


def cleaned(text: str) -> str:
    """A caption as one line of text: what a terminal would obey and what turns the direction of
    writing is a space, and there is one space between words.
    """
    return " ".join(UNPRINTABLE.sub(" ", text).split())


def read(path: Path) -> CaptionTable:
    """A table; an empty one where there is no file. Raises RecipeError with the line that is
    wrong.
    """
    try:
        facts = path.stat()
    except FileNotFoundError:
        return NONE
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror})") from error
    return _read(path, facts.st_mtime_ns, facts.st_size, facts.st_ino)


@lru_cache(maxsize=2)
def _read(path: Path, *stamp: int) -> CaptionTable:
    try:
        content = whole(path, MOST_BYTES)
    except Damaged as error:
        raise RecipeError(f"{error}: it should hold captions of clips") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror})") from error
    captions: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        clip, texts = _parsed(line, place)
        if clip in lines:
            raise RecipeError(
                f"{place}: '{shown(clip)}' has line {lines[clip]} already: write all captions of a "
                "clip into one line, as a list"
            )
        captions[clip], lines[clip] = texts, number
    return CaptionTable(path.name, captions, lines)


def _parsed(line: bytes, place: str) -> tuple[str, tuple[str, ...]]:
    if len(line) > LONGEST_LINE:
        raise RecipeError(f"{place} is longer than {LONGEST_LINE >> 20} MiB")
    try:
        entry = checked(_Line, canonical.parse(line), place)
    except ValueError as error:
        raise RecipeError(f"{place} is no JSON: {shown(str(error))}") from None
    except Damaged as error:
        raise RecipeError(f"{error}; a line looks like {EXAMPLE}") from None
    captions = (entry.caption,) if isinstance(entry.caption, str) else entry.caption
    texts = tuple(dict.fromkeys(map(cleaned, captions)))
    for text in texts:
        if not text:
            raise RecipeError(
                f"{place}: a caption is empty; leave the line out, and the clip has the captions "
                "of its source"
            )
        if len(text) > LONGEST:
            raise RecipeError(
                f"{place}: a caption has {len(text)} characters, {LONGEST} at most are wanted"
            )
    return entry.clip, texts
