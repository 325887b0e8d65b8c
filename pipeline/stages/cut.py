"""Video -> Scene*: find the cuts, in the video's own time stamps. The same decode fills the reel.

Frames are counted for the detector and mapped back to exact time stamps. The detectors and what
decided on the default are in `pipeline.media.detectors`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from pipeline.core import canonical
from pipeline.core.params import Setup
from pipeline.core.records import Scene, Video
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import detectors, reel, video

VERSION = 1
MAKES = Scene


def stage(setup: Setup) -> Stage:
    options, extract = setup.table(detectors.Options), setup.table(reel.Params)
    return Stage(
        name="cut",
        version=VERSION,
        params=canonical.plain(options.model_dump()),
        makes=MAKES,
        process=partial(process, options=options, extract=extract),
        cost=seconds,
        opens=itself,
    )


def itself(record: Video, store: Store) -> Video:
    return record


def seconds(record: Video) -> float:
    return float(record.duration_s)


def process(
    record: Video, store: Store, options: detectors.Options, extract: reel.Params
) -> Iterator[Scene]:
    """Find the scenes of one video, and fill its reel on the way if there is none yet. Raises
    BadData as `video.frames` and `reel.finish` do.
    """
    detector = options.start(record.container)
    task = reel.task(record, extract)
    reel_key = canonical.digest(task)
    if store.recall(reel_key) is not None:
        stamps, end = watch(record, store, detector, None)
    else:
        with store.scratch(".mp4") as scratch:
            writer = reel.Writer(scratch, record.container, extract)
            stamps, end = watch(record, store, detector, writer)
            store.remember(reel_key, reel.finish(writer, scratch, store), task)
    for index, (start_pts, end_pts) in enumerate(scenes(stamps, end, detector.cuts())):
        yield Scene(f"{record.key}-{index:04d}", record, start_pts, end_pts)


def watch(
    record: Video, store: Store, detector: detectors.Detector, writer: reel.Writer | None
) -> tuple[list[int], int]:
    """Decode the video once for detector and writer; gives the time stamp of every frame, and the
    end of the last.
    """
    stamps: list[int] = []
    end_pts = 0
    path = store.path(record.blob.sha256)
    source = record.source
    for frame, pts, end_pts in video.frames(path, record.container, source.start_s, source.end_s):
        detector.see(frame)
        stamps.append(pts)
        if writer is not None:
            writer.add(frame, pts, end_pts)
    return stamps, end_pts


def scenes(stamps: Sequence[int], end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Spans between cuts, where a cut is the index of the first frame after it."""
    inside = sorted({cut for cut in cuts if 0 < cut < len(stamps)})
    bounds = [stamps[0], *(stamps[cut] for cut in inside), end]
    return list(itertools.pairwise(bounds))
