"""Whether a video's frames are made of two fields each, filmed one after the other, and in which
order.

Flags alone do not say: cameras and broadcasters store progressive pictures in interlaced streams
(PsF), and tools that convert drop the flag and keep the combs. So some frames of every video that
may be interlaced are looked at. Weave the fields of two frames anew, the top one of the second with
the bottom one of the first and the other way round: of progressive frames both combine two moments
and are combed, of interlaced ones the one whose fields follow each other is hardly worse than the
frames themselves, and the other combines moments that are three fields apart. (ffmpeg's `idet`
compares these two with each other alone, and takes every second frame of a moving test pattern for
interlaced.)

What is interlaced is deinterlaced by `bwdif`, one frame for two fields, so that time stamps stay.
Telecined film (24 frames a second in 60 fields: two frames of five are combed) is put together
again by `fieldmatch`, and only what is combed after that goes through `bwdif`.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Container

# which field is first; "mixed": of some frames, and no flag says of which (telecined film, film and
# video in turn); "flagged": the frames say it, each for itself
Scan = Literal["progressive", "top", "bottom", "mixed-top", "mixed-bottom", "flagged"]
NEVER_INTERLACED = ("av1", "gif", "theora", "vp8", "vp9")  # codecs
MAX_LINES = 1152  # of interlaced formats
# What has less, and no flag, is not looked at: in test patterns of 240 lines and less the lines of
# two moments mix by chance. 272 is what 480 lines are without the bars of a 2.35:1 film.
LEAST_LINES = 270
FLAT = 2.5  # width by height, as displayed: an HEVC picture that is a field alone is flatter
NUM_PLACES = 6  # in a video, at which frames are looked at
FRAMES_A_PLACE = 7
COLUMN_STEP = 4  # every fourth column of a frame is enough
MOVING = 0.02  # share by which the worse weave is more combed, below which nothing moves
# What the better weave is more combed, as a share of what the worse one is: 0.6 to 1 of progressive
# frames, -0.3 to 0.57 of interlaced ones (test patterns and films, H.264, MPEG-2, DV, ProRes)
PROGRESSIVE_FROM = 0.6
LEAST = 8  # pairs of frames with an opinion, without which the flags decide
CLEARLY = 4  # one opinion is so many times as frequent as the others
OTHER_ORDER = 9  # footage has one order: it is seen so many times as often as the other


def is_possible(facts: Container, is_flagged: bool) -> bool:
    """Whether a video may be interlaced at all, so that its frames are to be looked at."""
    is_tiny = facts.width < 3 or facts.height < 4  # to bwdif
    if is_tiny or facts.height > MAX_LINES or facts.codec in NEVER_INTERLACED:
        return False
    return is_flagged or facts.height >= LEAST_LINES


def is_single_field(facts: Container) -> bool:
    """Whether the pictures of a video flagged as interlaced are fields, each by itself: HEVC alone
    has such, and a field has half the lines.
    """
    return facts.codec == "hevc" and facts.width * facts.pixel_aspect > FLAT * facts.height


def opinion(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Scan | None:
    """What two frames that follow each other (`h w`, luma) are; None where nothing moves."""
    first, second = (frame[:, ::COLUMN_STEP].astype(np.int16) for frame in (before, after))
    top_is_later, bottom_is_later = first.copy(), first.copy()
    top_is_later[::2], bottom_is_later[1::2] = second[::2], second[1::2]
    usual = (_combs(first) + _combs(second)) / 2
    by_top, by_bottom = _combs(top_is_later) - usual, _combs(bottom_is_later) - usual
    better, worse = min(by_top, by_bottom), max(by_top, by_bottom)
    if worse <= MOVING * usual or worse == 0:
        return None
    if better >= PROGRESSIVE_FROM * worse:
        return "progressive"
    # after the first frame's bottom field comes the second one's top field, if top is first
    return "top" if by_top < by_bottom else "bottom"


def _combs(frame: NDArray[np.int16]) -> int:
    """How far the lines of a frame are from their neighbours."""
    return int(np.abs(2 * frame[1:-1] - frame[:-2] - frame[2:]).sum(dtype=np.int64))


def scan_of(opinions: Counter[Scan], num_flagged: int, num_frames: int) -> Scan:
    """The scan of a video, from opinions on pairs of its frames, and how many of the frames are
    flagged as interlaced.
    """
    order: Scan = "top" if opinions["top"] >= opinions["bottom"] else "bottom"
    progressive, total = opinions["progressive"], opinions.total()
    most, other = opinions[order], total - opinions[order] - progressive
    if total >= LEAST and progressive >= CLEARLY * most:
        return "progressive"
    if num_flagged not in (0, num_frames):  # flags that change mean something
        return "flagged"
    if most >= LEAST and most >= OTHER_ORDER * other:
        if most > progressive:
            return order
        return "mixed-top" if order == "top" else "mixed-bottom"
    return "flagged" if num_flagged else "progressive"  # little moves


def deinterlacers(scan: str) -> list[tuple[str, str]]:
    """The filters that make of every frame a progressive one."""
    if scan == "flagged":
        return [("bwdif", "mode=send_frame:parity=auto:deint=interlaced")]
    order = "tff" if scan.endswith("top") else "bff"
    if scan.startswith("mixed"):
        match = ("fieldmatch", f"order={order}:combmatch=full:mchroma=0")
        return [match, ("bwdif", f"mode=send_frame:parity={order}:deint=interlaced")]
    return [("bwdif", f"mode=send_frame:parity={order}:deint=all")]
