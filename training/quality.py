"""How a video differs from the truth: picture by picture, where things move, and in motion.

Frames are `f h w c` uint8 RGB. PSNR is the pipeline's (`pipeline.media.encoders.psnr_db`); VMAF and
XPSNR are ffmpeg's (`training.ffmpeg`). Flows are OpenCV's DIS, the same for the truth and for what
is compared with it. Cost: 6 ms a frame of 256 x 256 on one core.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from pipeline.media.encoders import Pixels, psnr_db
from training.flow import Array, warp
from training.rivals import flow

LUMA = np.array([0.299, 0.587, 0.114])
MOVING_LEVELS = 16  # of 255: what a pixel's luma spans where something passes
STILL = 0.05  # pixels a frame: below it there is no motion to compare with
Where = NDArray[np.bool_]


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


def moving(truth: Pixels, known: Sequence[bool]) -> Where:
    """Which pixels move, for each step from a frame of the truth to the next, `f-1 h w`.

    Pixels are looked at a gap at a time: one moves in all steps of a gap if its luma spans
    `MOVING_LEVELS` or more from the keyframe before to the keyframe after, both included. So what
    enters and leaves between two keyframes counts, and what flickers a little does not.
    """
    luma = truth @ LUMA
    moves = np.zeros((len(luma) - 1, *luma.shape[1:]), bool)
    for left, right in itertools.pairwise(np.flatnonzero(known)):
        moves[left:right] = np.ptp(luma[left : right + 1], axis=0) >= MOVING_LEVELS
    return moves


def psnr_moving(frames: Pixels, truth: Pixels, moves: Where, known: Sequence[bool]) -> float | None:
    """PSNR in dB over the in-between frames' pixels that move; None if none does."""
    where = np.zeros(truth.shape[:3], bool)
    where[:-1] = moves
    where[np.array(known)] = False
    return psnr_db(frames[where], truth[where]) if where.any() else None


def change(frames: Pixels) -> NDArray[np.float64]:
    """Mean absolute difference of each frame to the one before, in levels: `f-1`."""
    levels = frames.astype(np.int16)
    steps = np.abs(levels[1:] - levels[:-1])
    means: NDArray[np.float64] = steps.mean(axis=(1, 2, 3))
    return means


def travel(frames: Pixels) -> float | None:
    """The share of the change from frame to frame that goes away when each is moved along the flow
    to the one before: near 1 where things travel, low where a picture boils. None where nothing
    changes.

    Of squared differences. A flow finds some likeness in anything: two unrelated pictures of one
    texture have about a half.
    """
    left, changed = 0.0, 0.0
    for (before, after), shift in zip(itertools.pairwise(frames), flows(frames), strict=True):
        levels = after.astype(np.float32)
        left += float(np.square(warp(levels, shift) - before).sum())
        changed += float(np.square(levels - before).sum())
    return 1 - left / changed if changed else None


def seam(frames: Pixels, known: Sequence[bool]) -> float | None:
    """Change into and out of keyframes over change elsewhere; None where nothing changes
    elsewhere.
    """
    beside = np.array([a or b for a, b in itertools.pairwise(known)])
    changes = change(frames)
    elsewhere = changes[~beside]
    return float(changes[beside].mean() / elsewhere.mean()) if elsewhere.any() else None


def flows(frames: Pixels) -> Array:
    """The flow of each frame to the next, in pixels: `f-1 h w 2`."""
    pairs = itertools.pairwise(frames)
    return np.stack([flow(before, after) for before, after in pairs])


@dataclass(frozen=True, eq=False)
class Motion:
    """How the truth moves, and where that can be measured. `flows` `f-1 h w 2`; `moves` `f-1 h w`,
    as `moving` says; `seen` `f-1 h w`: what is still seen in the next frame.
    """

    flows: Array
    moves: Where
    seen: Where

    @property
    def speed(self) -> float:
        """Mean length of the flow where something moves, in pixels a frame; 0 if nothing does."""
        lengths = np.linalg.norm(self.flows, axis=3)[self.moves]
        return float(lengths.mean()) if lengths.size else 0.0


def motion(truth: Pixels, known: Sequence[bool]) -> Motion:
    """How the truth moves.

    A pixel is seen in the next frame if the flow back leads to where the flow forth came from
    (Sundaram et al. 2010, equation 5).
    """
    forth = flows(truth)
    masks = []
    for shift, (before, after) in zip(forth, itertools.pairwise(truth), strict=True):
        back = warp(flow(after, before), shift)
        astray = np.square(shift + back).sum(2)
        length = np.square(shift).sum(2) + np.square(back).sum(2)
        masks.append(astray < 0.01 * length + 0.5)
    return Motion(forth, moving(truth, known), np.stack(masks))


def flow_ratio(own: Array, truth: Motion) -> float | None:
    """How much a video of flows `own` moves beside the truth, where the truth moves: 0 is frozen, 1
    as much. None where the truth stands still.
    """
    if truth.speed <= STILL:
        return None
    lengths = np.linalg.norm(own, axis=3)[truth.moves]
    return float(lengths.mean()) / truth.speed


def flow_error(own: Array, truth: Motion) -> float | None:
    """How far a video's flow is from the truth's, over the length of the truth's, where the truth
    moves: 0 is the same motion, 1 what a frozen video has, and a video that waits and jumps has
    more. None where the truth stands still.

    Mean endpoint error, relative to the mean flow.
    """
    if truth.speed <= STILL:
        return None
    astray = np.linalg.norm(own - truth.flows, axis=3)[truth.moves]
    return float(astray.mean()) / truth.speed


def warping_error(frames: Pixels, truth: Motion) -> float | None:
    """How far each frame is from the next one moved back along the truth's flow, in levels, over
    all pixels that are seen in both; None if none is.

    Lai et al. 2018, section 4, with absolute differences. The truth's own is not 0: flows are not
    exact. What flickers, jumps or stays behind has more.
    """
    differences = []
    for before, after, shift, mask in zip(
        frames[:-1], frames[1:], truth.flows, truth.seen, strict=True
    ):
        moved_back = warp(after.astype(np.float32), shift)
        differences.append(np.abs(moved_back - before)[mask])
    values = np.concatenate(differences)
    return float(values.mean()) if values.size else None
