"""Video -> Scene*: find the cuts, in the video's own time stamps. The same decode fills the reel,
and tells which share of a scene's frames are new pictures, and where its black bars end.

Where a video has a hole (a gap, damage, time that goes back) a scene ends too: see
`pipeline.media.timeline`. The detectors and what decided on the default are in
`pipeline.media.detectors`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Setup
from pipeline.core.records import Scene, Video
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import bars, detectors, reel, stills, video
from pipeline.media.timeline import Loss

VERSION = 5
MAKES = Scene


def stage(setup: Setup) -> Stage:
    options, extract = setup.table(detectors.Options), setup.table(reel.Params)
    return Stage(
        name="cut",
        version=VERSION,
        params={"fps": canonical.plain(extract.fps), **canonical.plain(options.model_dump())},
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
) -> Iterator[Scene | BadData]:
    """Find the scenes of one video, and fill its reel on the way if there is none yet. What of it
    gives no frames is a rejection beside its scenes. Raises BadData as `video.frames` and
    `reel.finish` do.
    """
    task = reel.task(record, extract)
    reel_key = canonical.digest(task)
    losses: list[Loss] = []
    if store.recall(reel_key) is not None:
        spans = watch(record, store, options, extract.fps, None, losses)
    else:
        with store.scratch(".mp4") as scratch:
            writer = reel.Writer(scratch, record.container, extract)
            spans = watch(record, store, options, extract.fps, writer, losses)
            store.remember(reel_key, reel.finish(writer, scratch, store), task)
    durations = [span.end_pts - span.start_pts for span in spans]
    pictures = bars.pictures([span.profile for span in spans], durations, record.container)
    for index, (span, picture) in enumerate(zip(spans, pictures, strict=True)):
        key = f"{record.key}-{index:04d}"
        yield Scene(key, record, span.start_pts, span.end_pts, span.distinct, picture)
    for loss in losses:
        yield BadData(loss.reason, loss.why)


class Span(NamedTuple):
    """What is known of a scene when its stretch has been seen."""

    start_pts: int
    end_pts: int
    distinct: float
    profile: bars.Profile


@dataclass
class Stretch:
    """Frames that follow each other without a hole, and who sees them."""

    detector: detectors.Detector
    stills: stills.Stills
    bars: bars.Looks
    time_base: Fraction
    stamps: list[int] = field(default_factory=list)
    end_pts: int = 0

    def add(self, frame: Any, pts: int, end_pts: int) -> None:
        first = self.stamps[0] if self.stamps else pts
        self.detector.see(frame, float((pts - first) * self.time_base))
        self.stills.see(frame, pts, end_pts)
        self.bars.see(frame, pts)
        self.stamps.append(pts)
        self.end_pts = end_pts

    def spans(self) -> list[Span]:
        return [
            Span(*bounds, self.stills.share(*bounds), self.bars.profile(*bounds))
            for bounds in scenes(self.stamps, self.end_pts, self.detector.cuts())
        ]


def watch(
    record: Video,
    store: Store,
    options: detectors.Options,
    fps: Fraction,
    writer: reel.Writer | None,
    losses: list[Loss],
) -> list[Span]:
    """Decode the video once for all who look at it and for the writer; gives the scenes' spans."""
    path, source, facts = store.path(record.blob.sha256), record.source, record.container
    spans: list[Span] = []
    stretch: Stretch | None = None
    for frame, pts, end_pts in video.frames(path, facts, source.start_s, source.end_s, losses):
        if stretch is None or pts != stretch.end_pts:
            spans += stretch.spans() if stretch else []
            lookers = (options.start(facts), stills.Stills(facts, fps), bars.Looks(facts))
            stretch = Stretch(*lookers, facts.time_base)
        stretch.add(frame, pts, end_pts)
        if writer is not None:
            writer.add(frame, pts, end_pts)
    return spans + (stretch.spans() if stretch else [])


def scenes(stamps: Sequence[int], end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Spans between cuts, where a cut is the index of the first frame after it."""
    inside = sorted({cut for cut in cuts if 0 < cut < len(stamps)})
    bounds = [stamps[0], *(stamps[cut] for cut in inside), end]
    return list(itertools.pairwise(bounds))
