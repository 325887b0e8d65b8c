"""Where things move between two pictures, and what is seen on the way.

OpenCV's DIS flow (Kroeger et al. 2016) on grey pictures, both ways. `moved` takes a window of
latents, whose frames between known ones are blends, and moves them: the hint "flow". It needs no
pixels: the picture it follows is the first principal component of the known latents, enlarged.
Cost on one core: 25 ms a gap between known frames of 32 x 32 latents, 0.1 s of 64 x 64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating[Any]]
Grey = NDArray[np.uint8]  # `h w`

SCALE = 8  # how much latents are enlarged: to the size of the pictures they were made of
LEAST_SIDE = 2  # of latents: DIS takes pictures of 16 x 16 and more
# Latents, over a gap: what moves less is blended rather than moved. A blend is wrong by the square
# of the distance, and a shift by a fraction of a latent blurs, however short it is.
SHORT = 0.7


def shift_between(before: Grey, after: Grey) -> Array:
    """Where each pixel of a grey picture is in another, as a shift in pixels: `h w 2`, x first."""
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    shift = estimator.calc(before, after, None)  # type: ignore[call-overload]
    return np.asarray(shift, np.float32)


def warp(picture: Array, shift: Array) -> Array:
    """Look up each pixel of `h w` or `h w c` where `shift` `h w 2` says it is, linearly between
    pixels; beyond the edge is what stands at the edge.
    """
    height, width = shift.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    warped = cv2.remap(
        picture,
        x + shift[..., 0],
        y + shift[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(warped, np.float32)


@dataclass(frozen=True, eq=False)
class Gap:
    """The motion between a picture and a later one: shifts `h w 2` from the one to the other, and
    back.
    """

    forth: Array
    back: Array

    def shrunk(self, scale: int) -> Gap:
        """The same of pictures that are so many times smaller, in their pixels."""
        height, width = self.forth.shape[:2]
        size = (width // scale, height // scale)
        forth = cv2.resize(self.forth, size, interpolation=cv2.INTER_AREA)
        back = cv2.resize(self.back, size, interpolation=cv2.INTER_AREA)
        return Gap(np.asarray(forth / scale, np.float32), np.asarray(back / scale, np.float32))

    def shifts(self, time: float) -> tuple[Array, Array]:
        """From the picture at a time from 0 to 1 to the earlier one, and to the later one: `h w 2`.

        Put together from the shifts between the two as in Super SloMo (Jiang et al. 2018,
        equation 4).
        """
        to_left = -(1 - time) * time * self.forth + time**2 * self.back
        to_right = (1 - time) ** 2 * self.forth - time * (1 - time) * self.back
        return to_left, to_right


def gap_between(before: Grey, after: Grey) -> Gap:
    """The motion between two grey pictures, `h w`."""
    return Gap(shift_between(before, after), shift_between(after, before))


def moved(blends: Tensor, known: Sequence[bool]) -> Tensor:
    """A window of latents `f c h w` whose frames between known ones are moved along the flow.

    The frames between known ones are blends of these, linear in time, and stay so where little
    moves; all others come back as they are. The same latents give the same bits, whatever the
    number of cores.
    """
    places = np.flatnonzero(known)
    gaps = [(left, right) for left, right in itertools.pairwise(places) if right - left > 1]
    given = blends[torch.from_numpy(places)]
    if not gaps or min(blends.shape[2:]) < LEAST_SIDE or not bool(given.isfinite().all()):
        return blends
    frames = rearrange(blends.detach().float().cpu().numpy(), "f c h w -> f h w c")
    filled = frames.copy()
    with _one_thread():
        greys = dict(zip(places, _greys(frames[places]), strict=True))
        for left, right in gaps:
            gap = gap_between(greys[left], greys[right]).shrunk(SCALE)
            for index in range(left + 1, right):
                time = float((index - left) / (right - left))
                filled[index] = _seen(gap, frames[left], frames[right], frames[index], time)
    return torch.from_numpy(rearrange(filled, "f h w c -> f c h w").copy()).to(blends)


def _seen(gap: Gap, left: Array, right: Array, blend: Array, time: float) -> Array:
    """A frame between two known ones, all `h w c`: both moved to its time where they move far,
    their blend where they hardly do.

    Sides weigh by their distance in time alone. Weighed by how well the two flows agree, too, they
    are worse: what one side hides has no partner there, so the side that shows it would count less.
    """
    to_left, to_right = gap.shifts(time)
    picture = (1 - time) * warp(left, to_left) + time * warp(right, to_right)
    square = np.square(to_right - to_left).sum(2, keepdims=True)
    share = square / (square + SHORT**2)
    frame: Array = share * picture + (1 - share) * blend
    return frame


def _greys(frames: Array) -> list[Grey]:
    """Frames of latents `f h w c` as grey pictures that show as much of them as one channel can:
    their first principal component, from black to white, enlarged.
    """
    height, width, channels = frames.shape[1:]
    values = frames.reshape(-1, channels).astype(np.float64)
    values = values - values.mean(0)
    _, axes = np.linalg.eigh(values.T @ values)
    axis = axes[:, -1]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])  # of two directions always the same
    component = (values @ axis).reshape(-1, height, width)
    low, high = component.min(), component.max()
    levels = (component - low) * (255 / max(high - low, 1e-9))
    size = (width * SCALE, height * SCALE)
    return [
        cv2.resize(level, size, interpolation=cv2.INTER_LINEAR).round().astype(np.uint8)
        for level in levels
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV with one thread: a sum does not depend on how many cores there are."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
