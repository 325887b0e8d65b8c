"""Films of a walk over a picture, and copies of a film, changed as copies are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.making import properties
from tests.making.footage import ffmpeg, make


def walk(path: Path, seed: int, first: int, count: int) -> Path:
    """A walk over a picture, 10 frames a second at 256 x 256; frames are counted from its start."""

    def place(index: int) -> Any:
        return properties.shifted(4 * (first + index), 2 * (first + index))

    return properties.film(path, properties.moving(place, seed, count))


def changed(path: Path, source: Path, *filters: tuple[str, dict[str, object]]) -> Path:
    """The film, filtered and coded again."""
    stream = ffmpeg.input(str(source)).video
    for name, options in filters:
        stream = stream.filter(name, **options)
    return make(path, stream, vcodec="libx264", crf=28, pix_fmt="yuv420p")
