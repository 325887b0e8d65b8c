"""How pictures differ: likeness to the truth, motion, seams, and the baselines any interpolation
must beat.

Frames are `f h w c` uint8 RGB; nothing here knows of models. SSIM is written out because no library
at hand has it; OpenCV's separable filter makes it a tenth of what it costs as a convolution in
torch.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import cv2
import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from training.frames import neighbours

Pixels = NDArray[np.uint8]
MAX_PSNR_DB = 99.0  # of equal pictures


def nearest(frames: Pixels, known: Sequence[bool]) -> Pixels:
    """Every in-between frame a copy of the keyframe nearest in time, of two the earlier: `f h w
    c`.
    """
    sides = [
        left if right is None or (left is not None and weight <= 0.5) else right
        for left, right, weight in neighbours(tuple(known))
    ]
    copies: Pixels = frames[np.array(sides)]
    return copies


def pixel_blend(frames: Pixels, known: Sequence[bool]) -> Pixels:
    """Every in-between frame the blend of its two keyframes, linear in time: `f h w c`."""
    made = frames.copy()
    for index, (left, right, weight) in enumerate(neighbours(tuple(known))):
        if not known[index] and left is not None and right is not None:
            blend = (1 - weight) * frames[left].astype(np.float32) + weight * frames[right].astype(
                np.float32
            )
            made[index] = blend.round().astype(np.uint8)
    return made


def psnr_db(shown: Pixels, wanted: Pixels) -> float:
    """Peak signal-to-noise ratio of the mean squared error over all frames; 99 for equal ones."""
    error = float(
        np.mean((shown.astype(np.float32) - wanted.astype(np.float32)) ** 2, dtype=np.float64)
    )
    return min(MAX_PSNR_DB, 10 * float(np.log10(255**2 / error))) if error else MAX_PSNR_DB


def _gaussian(side: int = 11, sigma: float = 1.5) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    return weights


def ssim(shown: Pixels, wanted: Pixels) -> float:
    """Structural similarity of luma, mean over frames `f h w c` of at least 11 x 11.

    Wang et al. 2004, equation 13, with its Gaussian window of 11 x 11 and sigma 1.5, K1 = 0.01, K2
    = 0.03.
    """
    luma, kernel = np.array([0.299, 0.587, 0.114]), _gaussian()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for one, other in zip(shown, wanted, strict=True):
        x, y = one @ luma, other @ luma
        blurred = cv2.sepFilter2D(
            np.stack([x, y, x * x, y * y, x * y], axis=-1), -1, kernel, kernel
        )
        mean_x, mean_y, xx, yy, xy = rearrange(
            blurred[5:-5, 5:-5], "h w maps -> maps h w"
        )  # where the window fits
        var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        score = (
            (2 * mean_x * mean_y + c1)
            * (2 * cov + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        )
        found.append(float(score.mean()))
    return statistics.fmean(found)


def change(frames: Pixels) -> NDArray[np.float64]:
    """Mean absolute difference of each frame to the one before, in levels: `f-1`."""
    return np.array(
        [
            np.abs(b.astype(np.int16) - a.astype(np.int16)).mean()
            for a, b in itertools.pairwise(frames)
        ]
    )


def seam(frames: Pixels, known: Sequence[bool]) -> float | None:
    """Change into and out of keyframes over change elsewhere; None where nothing changes
    elsewhere.
    """
    beside = np.array([a or b for a, b in itertools.pairwise(known)])
    changes = change(frames)
    elsewhere = changes[~beside]
    return float(changes[beside].mean() / elsewhere.mean()) if elsewhere.any() else None
