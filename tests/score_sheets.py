"""`python -m tests.score_sheets RECIPE DATA`: docs/scores.jpg, the five lowest and the five highest
clips of every score of a built dataset, to see whether they are plausible.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.core.records import Clip, source_of
from pipeline.core.store import Store
from pipeline.dataset.recipe import load
from pipeline.media import video
from pipeline.publish import scores

TARGET = Path(__file__).parents[1] / "docs" / "scores.jpg"
SIDE, LABEL, ENDS = 72, 150, 5
QUALITY = 70
Ranked = tuple[float, str, Clip]  # a value, the clip's key, the clip


def sheet(clips: list[Clip], store: Store) -> Image.Image:
    """A row a score: its name, the lowest clips with their values, the highest."""
    names = [name for name, _ in clips[0].scores]
    width, row = LABEL + 2 * ENDS * (SIDE + 2) + 10, SIDE + 14
    picture = Image.new("RGB", (width, len(names) * row), "white")
    draw = ImageDraw.Draw(picture)
    for line, name in enumerate(names):
        ranked = sorted(
            (value, clip.key, clip)
            for clip in clips
            if (value := dict(clip.scores)[name]) is not None
        )
        draw.text((4, line * row + 24), name, fill="black", font_size=15)
        ends = [*_of_different_sources(ranked), *_of_different_sources(ranked[::-1])[::-1]]
        for column, (value, _, clip) in enumerate(ends):
            x = LABEL + column * (SIDE + 2) + 10 * (column >= ENDS)
            picture.paste(Image.fromarray(_middle(clip, store)), (x, line * row))
            draw.text((x, line * row + SIDE), f"{value:.3g}", fill="black", font_size=10)
    return picture


def _of_different_sources(ranked: list[Ranked]) -> list[Ranked]:
    """The first clips, one of each source."""
    first: dict[str, Ranked] = {}
    for value, key, clip in ranked:
        first.setdefault(source_of(clip).key, (value, key, clip))
    return list(first.values())[:ENDS]


def _middle(clip: Clip, store: Store) -> NDArray[np.uint8]:
    """The clip's frame in the middle, small, as RGB."""
    import cv2

    path = store.path(clip.blob.sha256)
    [(_, planes)] = video.some_frames(path, [clip.num_frames // 2], 512)
    full = cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420)
    return np.asarray(cv2.resize(full, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def main(recipe: Path, data: Path) -> None:
    clips = scores.clips_of(load(recipe), data)
    sheet(clips, Store(data.absolute() / "store")).save(TARGET, quality=QUALITY, optimize=True)
    print(f"{TARGET}: {len(clips)} clips")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
