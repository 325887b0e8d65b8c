"""Frames in memory that move in ways known to the pixel: `f h w c` uint8 RGB."""

from __future__ import annotations

from typing import Any

import numpy as np


def ramp(num_frames: int, step: int = 8) -> Any:
    """Every pixel brightens by `step` from frame to frame."""
    base = np.random.default_rng(1).integers(0, 100, (1, 24, 24, 3))
    return (base + step * np.arange(num_frames)[:, None, None, None]).astype(np.uint8)


def sliding(num_frames: int, pixels: int = 2, side: int = 96) -> Any:
    """A textured square that moves to the right over a still ground, by so many pixels a frame."""
    rng = np.random.default_rng(2)
    ground = rng.integers(90, 110, (side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
    square = rng.integers(0, 255, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
    frames = np.broadcast_to(ground, (num_frames, *ground.shape)).copy()
    for number in range(num_frames):
        left = 16 + number * pixels
        frames[number, 32:64, left : left + 32] = square
    return frames.astype(np.uint8)
