"""How much of the faces in real videos `[extract] faces = "blur"` covers, beside another detector.

    python -m tests.face_covers FOLDER [SIZE]

FOLDER holds videos. The other detector is MTCNN of the package facenet-pytorch, which this needs:
`pip install --no-deps facenet-pytorch==2.6.0`. Prints a line a video, and writes beside it a
picture of a few frames before and after.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import BadData
from pipeline.core.records import Cover
from pipeline.media import faces, reel, video

SURE = 0.95  # the other detector, of a face that counts
SHARE = 0.9  # of a face's box, under which it is missed
SHOWN = 8  # frames in the picture


def clip_of(source: Path, params: reel.Params, path: Path) -> int:
    """All of a video as a clip; gives its number of frames."""
    facts = video.probe(source)
    writer = reel.Writer(path, facts, params)
    for frame, pts, end_pts in video.frames(source, facts, None, None):
        writer.add(frame, pts, end_pts)
    writer.close()
    return writer.num_frames


def mask_of(covers: Sequence[Cover], index: int, size: int) -> NDArray[np.bool_]:
    """What of a frame is covered."""
    mask = np.zeros((size, size), bool)
    for cover in covers:
        if cover.start <= index < cover.end:
            rows = slice(cover.y, cover.y + cover.height)
            mask[rows, cover.x : cover.x + cover.width] = True
    return mask


def boxes_in(detector: Any, picture: Any, size: int) -> list[tuple[int, int, int, int]]:
    """Faces that the other detector is sure of: left, top, right, bottom."""
    boxes, confidence = detector.detect(picture)
    if boxes is None:
        return []
    rounded = np.clip(boxes, 0, size).astype(int)
    return [tuple(box) for box, sure in zip(rounded, confidence, strict=True) if sure >= SURE]


def line_of(source: Path, size: int, detector: Any) -> str:
    """What is covered in a video, as a row of a table."""
    params = reel.Params(size=size)
    clip, after = (source.with_suffix(f".{size}.{name}") for name in ("clip", "blurred"))
    num_frames = clip_of(source, params, clip)
    begin = time.process_time()
    covers = faces.covers_of(clip, size, num_frames, params.fps)
    middle = time.process_time()
    frames = range(num_frames)
    reel.write_covered(clip, params, frames, faces.cover_with(covers), after)
    cost = [
        1000 * seconds / num_frames for seconds in (middle - begin, time.process_time() - middle)
    ]
    num_faces = missed = left = 0
    area = covered = 0
    shown = []
    blurred_by_index = dict(video.some_frames(after, frames, size))
    for index, before in video.some_frames(clip, frames, size):
        blurred = blurred_by_index[index]
        picture, rest = (cv2.cvtColor(x, cv2.COLOR_YUV2RGB_I420) for x in (before, blurred))
        mask = mask_of(covers, index, size)
        for x0, y0, x1, y1 in boxes_in(detector, picture, size):
            part = mask[y0:y1, x0:x1]
            num_faces, missed = num_faces + 1, missed + (part.mean() < SHARE)
            area, covered = area + part.size, covered + int(part.sum())
        left += len(boxes_in(detector, rest, size))
        if index % max(1, num_frames // SHOWN) == 0:
            shown.append(cv2.resize(np.vstack([picture, rest]), (160, 320)))
    cv2.imwrite(str(source.with_suffix(f".{size}.png")), np.hstack(shown)[..., ::-1])
    share = f"{covered / area:.1%}" if area else ""
    return (
        f"| {source.stem} | {num_frames} | {num_faces} | {share} | {missed} | {left} | "
        f"{cost[0]:.0f} + {cost[1]:.0f} ms |"
    )


def main() -> None:
    folder, size = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 512
    detector = import_module("facenet_pytorch.models.mtcnn").MTCNN(
        keep_all=True, thresholds=[0.6, 0.7, 0.7]
    )
    print("| video | frames | faces | area covered | missed | left | CPU a frame |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for source in sorted(folder.iterdir()):
        try:
            print(line_of(source, size, detector), flush=True)
        except BadData as problem:
            print(f"{source.name}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
