"""`NAME.picks.jsonl`: what people kept and rejected by hand, clip by clip. Lines are only added.

    {"clip":"2f32...","note":"","pick":"reject","time":"2026-11-29T16:40:12Z"}

A clip is its digest, so a pick outlives keys, captions and settings that leave its bytes alone. The
last line of a clip counts. `null` for a pick takes back what stood before: an undo adds a line too.
The lines carry no check, because people write and merge them by hand and browsers write them as
well. A line that a kill or a power cut left unfinished, the last one without its end, is passed
over by the reader and cut off by the next writer.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.files import make_folder, sync_folder
from pipeline.core.reading import Digest, Facts, Text, checked, shown, whole

MOST_BYTES = 256 << 20  # a million presses
LONGEST_LINE = 8192
LONGEST_NOTE = 1000  # characters
Choice = Literal["keep", "reject"]


class Pick(Facts):
    """One press: a clip, what was chosen (None takes back), when (UTC), and a note."""

    clip: Digest
    pick: Choice | None
    time: Annotated[Text, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]
    note: Annotated[Text, Field(max_length=LONGEST_NOTE)] = ""

    def line(self) -> bytes:
        """Canonical JSON and an end of line."""
        return canonical.encode(self.model_dump()) + b"\n"


def path_of(recipe: Path) -> Path:
    """Where a recipe's picks are by default: beside it."""
    return recipe.with_name(f"{recipe.stem}.picks.jsonl")


def read(path: Path) -> list[Pick]:
    """Every line in order; none where there is no file. Raises RecipeError with the line that is
    none.
    """
    try:
        content = whole(path, MOST_BYTES)
    except FileNotFoundError:
        return []
    except Damaged as error:
        raise RecipeError(f"{error}: it should hold the picks of a dataset") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror})") from error
    complete, _, torn = content.rpartition(b"\n")
    lines = complete.split(b"\n") if complete else []
    if torn.strip() and _is_line(torn):
        lines.append(torn)  # whole, but for its end: somebody's editor
    return [
        _parsed(line, f"{path}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _parsed(line: bytes, place: str) -> Pick:
    if len(line) > LONGEST_LINE:
        raise RecipeError(f"{place} is longer than {LONGEST_LINE} bytes")
    try:
        return checked(Pick, canonical.parse(line), place)
    except ValueError as error:
        raise RecipeError(f"{place} is no JSON: {shown(str(error))}") from None
    except Damaged as error:
        example = '{"clip": "<sha256>", "pick": "keep", "time": "2026-11-29T16:40:12Z"}'
        raise RecipeError(f"{error}; a line looks like {example}") from None


def _is_line(content: bytes) -> bool:
    try:
        _parsed(content, "")
    except RecipeError:
        return False
    return True


def last_of_each(picks: Iterable[Pick]) -> dict[str, Pick]:
    """The pick that counts, by clip; clips whose pick was taken back are not there."""
    latest = {pick.clip: pick for pick in picks}
    return {clip: pick for clip, pick in latest.items() if pick.pick is not None}


def merged(files: Sequence[Sequence[Pick]]) -> list[Pick]:
    """The lines of several files as one, each once, by time."""
    lines = dict.fromkeys(pick for file in files for pick in file)
    return sorted(lines, key=lambda pick: pick.time.removesuffix("Z"))


def conflicts(files: Sequence[Sequence[Pick]]) -> dict[str, list[Pick | None]]:
    """Clips that one file keeps and another rejects: the pick of each file, None for a file that
    has none, by clip.
    """
    latest = [last_of_each(file) for file in files]
    clips = sorted(set().union(*latest))
    picked = {clip: [picks.get(clip) for picks in latest] for clip in clips}
    return {
        clip: row
        for clip, row in picked.items()
        if len({pick.pick for pick in row if pick is not None}) > 1
    }


def pick_of(value: Mapping[str, Any], place: str) -> Pick:
    """A pick from plain JSON. Raises Damaged with what is wrong."""
    return checked(Pick, value, place)


def append(path: Path, picks: Iterable[Pick]) -> None:
    """Add lines; they are on disk when this returns. Several programs may add to one file.

    Raises RecipeError where the file cannot be written.
    """
    content = b"".join(pick.line() for pick in picks)
    try:
        make_folder(path.parent)
        is_new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file.fileno(), _repair(file.fileno()) + content)
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise RecipeError(f"cannot add picks to {path} ({error.strerror})") from error


def _repair(descriptor: int) -> bytes:
    """Cut off a line that was left unfinished; gives the end of a last line that lacks it alone."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - 2 * LONGEST_LINE)
    tail = os.pread(descriptor, size - start, start)
    last = tail.rpartition(b"\n")[2]
    if not last:
        return b""
    if _is_line(last):
        return b"\n"
    os.ftruncate(descriptor, size - len(last))
    return b""
