"""Video -> Scene*: find the cuts, in the video's own time stamps. The same decode fills the reel.

Detectors: PySceneDetect's by name, fed with small frames, and ffmpeg's scdet. Frames are counted
for the detector and mapped back to exact time stamps, so variable frame rate needs no special care.
Which one is the default was decided by measured F1 on a truth set, then by cost:
docs/benchmarks.md.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from pipeline.core import canonical
from pipeline.core.params import Setup, Table
from pipeline.core.records import Container, Scene, Video
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import reel, video

VERSION = 1
MAKES = Scene


class _Params(Table):
    min_scene_s: float = Field(
        default=0.6,
        ge=0,
        description="Cuts nearer than this to the one before, or to the start, are ignored.",
    )


class _Scaled(_Params):
    width: int = Field(
        default=96, ge=32, description="Width of the small frames the detector looks at."
    )


class Adaptive(_Scaled):
    """Change of hue, saturation and brightness against a rolling average: stands camera motion."""

    detector: Literal["adaptive"] = "adaptive"
    adaptive_threshold: float = Field(
        default=2.5, gt=0, description="How many times the neighbours' change is a cut."
    )
    min_content_val: float = Field(
        default=10.0, ge=0, description="Changes below this are never a cut."
    )
    window_width: int = Field(
        default=12,
        ge=1,
        description="Frames before and after that make the average; wide sees slow fades.",
    )


class Content(_Scaled):
    """Change of hue, saturation and brightness between two frames."""

    detector: Literal["content"] = "content"
    threshold: float = Field(default=27.0, ge=0, le=255, description="Change that is a cut.")


class Histogram(_Scaled):
    """Correlation of brightness histograms."""

    detector: Literal["histogram"] = "histogram"
    threshold: float = Field(default=0.2, ge=0, le=1, description="Change that is a cut.")
    bins: int = Field(default=128, ge=2, le=256, description="Bins of the histogram.")


class Hash(_Scaled):
    """Distance of perceptual hashes."""

    detector: Literal["hash"] = "hash"
    threshold: float = Field(
        default=0.35, ge=0, le=1, description="Share of differing bits that is a cut."
    )
    size: int = Field(default=8, ge=2, description="Side of the hash.")
    lowpass: int = Field(default=2, ge=1, description="How much fine detail the hash leaves out.")


class Threshold(_Scaled):
    """Fades to and from black."""

    detector: Literal["threshold"] = "threshold"
    threshold: int = Field(
        default=8, ge=0, le=255, description="Mean brightness below which a frame is black."
    )
    fade_bias: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="Where in the black the cut lies: -1 at its start, 1 at its end.",
    )


class Scdet(_Params):
    """ffmpeg's scene change score."""

    detector: Literal["scdet"] = "scdet"
    threshold: float = Field(default=10.0, ge=0, le=100, description="Score that is a cut.")


class Whole(_Params):
    """No cuts: the video, or the time range its source names, is one scene."""

    detector: Literal["none"] = "none"


Params = Annotated[
    Adaptive | Content | Histogram | Hash | Threshold | Scdet | Whole,
    Field(discriminator="detector"),
]
AnyParams = Adaptive | Content | Histogram | Hash | Threshold | Scdet | Whole
KINDS: tuple[type[AnyParams], ...] = (Adaptive, Content, Histogram, Hash, Threshold, Scdet, Whole)
DEFAULT = Adaptive()


def stage(setup: Setup) -> Stage:
    params, extract = setup.table(_Params), setup.table(reel.Params)
    return Stage(
        name="cut",
        version=VERSION,
        params=canonical.plain(params.model_dump()),
        makes=MAKES,
        process=partial(process, params=params, extract=extract),
        cost=seconds,
        opens=itself,
    )


def itself(record: Video, store: Store) -> Video:
    return record


def seconds(record: Video) -> float:
    return float(record.duration_s)


def process(record: Video, store: Store, params: _Params, extract: reel.Params) -> Iterator[Scene]:
    """Find the scenes of one video, and fill its reel on the way if there is none yet."""
    reel_task = reel.task(record, extract)
    detector = new_detector(params, record.container)
    stamps: list[int] = []
    end = 0
    path, span = store.path(record.blob.sha256), (record.source.start_s, record.source.end_s)
    with store.scratch(".mp4") as scratch:
        writer = (
            reel.Writer(scratch, record.container, extract)
            if store.recall(canonical.digest(reel_task)) is None
            else None
        )
        for frame, pts, end in video.frames(
            path, record.container, *span
        ):  # the last end is the video's
            detector.see(frame)
            stamps.append(pts)
            if writer is not None:
                writer.add(frame, pts, end)
        if writer is not None:
            store.remember(
                canonical.digest(reel_task), reel.finish(writer, scratch, store), reel_task
            )
    for index, (start_pts, end_pts) in enumerate(scenes(stamps, end, detector.cuts())):
        yield Scene(f"{record.key}-{index:04d}", record, start_pts, end_pts)


def scenes(stamps: Sequence[int], end: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Spans between cuts, where a cut is the index of the first frame after it."""
    inside = sorted({cut for cut in cuts if 0 < cut < len(stamps)})
    bounds = [stamps[0], *(stamps[cut] for cut in inside), end]
    return list(itertools.pairwise(bounds))


class Detector(Protocol):
    """Sees every frame once, in order; then names the indices of the first frames after cuts."""

    def see(self, frame: Any) -> None: ...

    def cuts(self) -> list[int]: ...


class _Nothing:
    def see(self, frame: Any) -> None:
        """Nothing to look at."""

    def cuts(self) -> list[int]:
        return []


class _Scored:
    """scdet: a score at or over the threshold is a cut, unless the last one is too near."""

    def __init__(self, params: Scdet, facts: Container) -> None:
        self._score = video.SceneScore(facts)
        self._threshold = params.threshold
        self._apart = params.min_scene_s * float(facts.average_fps)
        self._index = 0
        self._cuts: list[int] = []

    def see(self, frame: Any) -> None:
        if (
            self._score.of(frame) >= self._threshold
            and self._index - (self._cuts[-1] if self._cuts else 0) >= self._apart
        ):
            self._cuts.append(self._index)
        self._index += 1

    def cuts(self) -> list[int]:
        return self._cuts


class _PySceneDetect:
    """One of PySceneDetect's detectors, told frame numbers instead of times."""

    def __init__(self, params: _Scaled, facts: Container) -> None:
        from scenedetect.common import FrameTimecode

        self._small = video.Thumbnails(facts, params.width)
        self._detector = _detector_of(
            params, max(1, round(params.min_scene_s * float(facts.average_fps)))
        )
        self._clock = partial(FrameTimecode, fps=float(facts.average_fps))
        window = params.window_width if isinstance(params, Adaptive) else 0
        self._recent: deque[Any] = deque(maxlen=window + 1)
        self._index = 0
        self._cuts: list[int] = []

    def see(self, frame: Any) -> None:
        self._recent.append(self._small.of(frame))
        self._look(self._recent[-1])

    def _look(self, picture: Any) -> None:
        found = self._detector.process_frame(self._clock(self._index), picture)
        self._cuts += [cut.frame_num for cut in found]
        self._index += 1

    def cuts(self) -> list[int]:
        for picture in list(self._recent)[
            -2::-1
        ]:  # a rolling average judges a frame by those after it: mirror the end
            self._look(picture)
        last = self._clock(max(0, self._index - 1))
        return self._cuts + [cut.frame_num for cut in self._detector.post_process(last)]


def _detector_of(params: _Scaled, min_frames: int) -> Any:
    from scenedetect import detectors

    options: dict[str, Any] = params.model_dump(exclude={"detector", "width", "min_scene_s"})
    kinds = {
        "adaptive": detectors.AdaptiveDetector,
        "content": detectors.ContentDetector,
        "histogram": detectors.HistogramDetector,
        "hash": detectors.HashDetector,
        "threshold": detectors.ThresholdDetector,
    }
    return kinds[params.model_dump()["detector"]](min_scene_len=min_frames, **options)


def new_detector(params: _Params, facts: Container) -> Detector:
    """The detector the recipe names."""
    if isinstance(params, Whole):
        return _Nothing()
    if isinstance(params, Scdet):
        return _Scored(params, facts)
    assert isinstance(params, _Scaled)
    return _PySceneDetect(params, facts)
