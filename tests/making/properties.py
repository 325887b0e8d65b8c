"""Clips that were made to have one property, for scorers: as `extract` makes them, 10 frames a
second, every frame a key frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.making.footage import FFMPEG, ffmpeg

FPS = 10
SIDE = 256
NUM_FRAMES = 40
PAN = 5  # pixels a frame: 0.195 of the side a second
ZOOM = 1.01  # a frame
Frames = NDArray[np.uint8]  # f h w 3, RGB


def texture(seed: int, side: int = 2 * SIDE) -> NDArray[np.uint8]:
    """A picture with detail of every size, `h w 3`."""
    random = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells in (4, 16, 64, 128):
        noise = random.standard_normal((cells, cells, 3)).astype(np.float32)
        total += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(128 + 30 * total, 0, 255), np.uint8)


def moving(matrix_of: Callable[[int], Any], seed: int = 0, num_frames: int = NUM_FRAMES) -> Frames:
    """A texture seen through a camera: `matrix_of(index)` takes places of the frame to it."""
    picture = texture(seed)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    frames = [
        cv2.warpAffine(
            picture,
            np.asarray(matrix_of(index), np.float64),
            (SIDE, SIDE),
            flags=how,
            borderMode=cv2.BORDER_REFLECT,
        )
        for index in range(num_frames)
    ]
    return np.stack(frames).astype(np.uint8)


def shifted(x: float, y: float) -> Any:
    return [[1, 0, x], [0, 1, y]]


def zoomed(factor: float) -> Any:
    edge = SIDE * (1 - 1 / factor) / 2
    return [[1 / factor, 0, edge + 64], [0, 1 / factor, edge + 64]]


def still() -> Frames:
    return moving(lambda index: shifted(64, 64))


def pan() -> Frames:
    return moving(lambda index: shifted(10 + PAN * index, 64))


def zoom() -> Frames:
    return moving(lambda index: zoomed(ZOOM**index))


def shake() -> Frames:
    jitter = np.random.default_rng(1).normal(0, 3, (NUM_FRAMES, 2))
    return moving(lambda index: shifted(64 + jitter[index, 0], 64 + jitter[index, 1]))


def thing() -> Frames:
    """A camera that stands still, and a square that crosses."""
    frames = still()
    square = texture(7, 80)
    for index, frame in enumerate(frames):
        frame[90:170, 4 * index : 4 * index + 80] = square
    return frames


def alone() -> Frames:
    """A square that crosses before a plain ground: the only thing that has corners."""
    frames = np.full((NUM_FRAMES, SIDE, SIDE, 3), 90, np.uint8)
    square = texture(7, 72)
    for index, frame in enumerate(frames):
        frame[90:162, 4 * index : 4 * index + 72] = square
    return frames


def wall() -> Frames:
    """A pan over things below a plain wall."""
    frames = pan()
    frames[:, :128] = 90
    return frames


def subtitle() -> Frames:
    frames = pan()
    for frame in frames:
        cv2.putText(frame, "and then they met", (18, 230), 0, 0.75, (255, 255, 255), 2)
    return frames


def blur() -> Frames:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in pan()]).astype(np.uint8)


def dark() -> Frames:
    return (pan() // 12).astype(np.uint8)


def bright() -> Frames:
    return np.clip(pan().astype(np.int16) + 140, 0, 255).astype(np.uint8)


def cut() -> Frames:
    half = NUM_FRAMES // 2
    other = 255 - moving(lambda index: shifted(10 + index, 30), seed=3) // 2
    return np.concatenate([pan()[:half], other[:half]]).astype(np.uint8)


def dissolve() -> Frames:
    """One second of it, in the middle."""
    before = moving(lambda index: shifted(10 + index, 64))
    after = 255 - moving(lambda index: shifted(10 + index, 30), seed=3) // 2
    middle = NUM_FRAMES / 2
    share = np.clip((np.arange(NUM_FRAMES) - middle + FPS / 2) / FPS, 0, 1)[:, None, None, None]
    return (before * (1 - share) + after * share).round().astype(np.uint8)


def flash() -> Frames:
    """One bright frame now and then."""
    frames = moving(lambda index: shifted(10 + index, 64))
    for index in (13, 25):
        frames[index] = np.clip(frames[index].astype(np.int16) + 150, 0, 255)
    return frames


def doubled() -> Frames:
    """Every frame twice, as where a frame rate was raised."""
    return np.repeat(pan()[: NUM_FRAMES // 2], 2, axis=0)


def black() -> Frames:
    return np.full((NUM_FRAMES, SIDE, SIDE, 3), 3, np.uint8)


ALL: Mapping[str, Callable[[], Frames]] = {
    maker.__name__: maker
    for maker in (
        still,
        pan,
        zoom,
        shake,
        thing,
        alone,
        wall,
        subtitle,
        blur,
        dark,
        bright,
        cut,
        dissolve,
        flash,
        doubled,
        black,
    )
}


def film(path: Path, frames: Frames, crf: int = 14) -> Path:
    """The frames as a clip's file."""
    _, height, width, _ = frames.shape
    raw = ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=FPS
    ).filter("scale", out_color_matrix="bt709", out_range="tv")
    job = raw.output(
        str(path), vcodec="libx264", pix_fmt="yuv420p", g=1, bf=0, crf=crf, preset="ultrafast",
        threads=1, loglevel="error",
    )  # fmt: skip
    job.overwrite_output().run(cmd=FFMPEG, input=frames.tobytes(), quiet=True)
    return path
