"""How pictures differ: likeness to the truth, motion, seams, and the baselines any interpolation
must beat.

Frames are `f h w c` uint8 RGB. PSNR is the pipeline's (`pipeline.media.encoders.psnr_db`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pipeline.media.encoders import Pixels
from training.frames import neighbours

LUMA = np.array([0.299, 0.587, 0.114])


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
    blended = frames.copy()
    for index, (left, right, weight) in enumerate(neighbours(tuple(known))):
        if not known[index] and left is not None and right is not None:
            before, after = frames[left].astype(np.float32), frames[right].astype(np.float32)
            mixture = (1 - weight) * before + weight * after
            blended[index] = mixture.round().astype(np.uint8)
    return blended


def ssim(frames: Pixels, truth: Pixels) -> float:
    """Structural similarity of luma, mean over frames `f h w c` of at least 11 x 11.

    Wang et al. 2004, equation 13, with its Gaussian window of 11 x 11 and sigma 1.5; the edge where
    the window does not fit is left out.
    """
    score = structural_similarity(  # type: ignore[no-untyped-call]
        frames @ LUMA,
        truth @ LUMA,
        channel_axis=0,  # each frame is a picture of its own
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(score)


def change(frames: Pixels) -> NDArray[np.float64]:
    """Mean absolute difference of each frame to the one before, in levels: `f-1`."""
    levels = frames.astype(np.int16)
    steps = np.abs(levels[1:] - levels[:-1])
    means: NDArray[np.float64] = steps.mean(axis=(1, 2, 3))
    return means


def seam(frames: Pixels, known: Sequence[bool]) -> float | None:
    """Change into and out of keyframes over change elsewhere; None where nothing changes
    elsewhere.
    """
    beside = np.array([a or b for a, b in itertools.pairwise(known)])
    changes = change(frames)
    elsewhere = changes[~beside]
    return float(changes[beside].mean() / elsewhere.mean()) if elsewhere.any() else None
