"""What a build would do, stage by stage, without doing it: what `plan` prints.

The stages are walked as a build walks them. What a task to be done will give is foreseen
(`foresee`), exactly or by a stand-in, so that later stages can be asked too. Behind a video that is
not there, or not cut, only the ratios of the last build are left: so many scenes a second, so many
of them kept. Where there was none, nothing is said before that stage has run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core import canonical
from pipeline.core.manifest import Manifest
from pipeline.core.records import Clip, Pack, Record, Rejection, Scene, Source, Video
from pipeline.core.stage import Stage, collect, survey
from pipeline.core.store import Store
from pipeline.dataset import rates, raw
from pipeline.dataset.build import NAMES, Step
from pipeline.dataset.recipe import Loaded
from pipeline.media import reel
from pipeline.media.encoders import Encoders
from pipeline.plan import foresee, why
from pipeline.plan.past import Amount, Past, plus
from pipeline.stages import download, encode, shard

WORKERS = os.cpu_count() or 1  # as `build` has by default
COUNTED = ("download", "filter")  # timed by records, not by seconds of video
AGAIN = ("tried again", "no such file")  # may well fail once more: nothing is expected of it


@dataclass
class Line:
    """What one stage has to do. Records that share a task, as one video at two addresses does,
    count once.
    """

    stage: str
    num_done: int = 0
    reasons: dict[str, list[str]] = field(
        default_factory=dict
    )  # why, and the keys of the tasks to do that can be named
    setting: str = ""  # what of the stage itself is otherwise than in the last build
    num_guessed: int = 0  # of those, how many may turn out to be done already, or to be several
    num_light: int = 0  # of those, how many find all that is costly remembered
    again: list[str] = field(
        default_factory=list
    )  # sources whose raw videos were let go and are fetched again
    about: Amount = field(default_factory=Amount)  # to do besides
    waits_for: str = ""  # the stage that will tell how many, where nothing else does
    video_s: float = 0
    cost: float = 0
    worker_s: float | None = 0  # None: not known
    is_timed: bool = True  # or nothing of the kind was timed here
    local: bool = False
    num_bytes: dict[str, float | None] = field(
        default_factory=dict
    )  # to be written, by what it is; None: not known

    @property
    def num_named(self) -> int:
        return sum(len(keys) for keys in self.reasons.values())

    @property
    def is_exact(self) -> bool:
        return not self.num_guessed and not self.about

    @property
    def is_idle(self) -> bool:
        return not self.num_named and not self.about

    @property
    def to_do(self) -> float | None:
        return plus(self.num_named, self.about.count)

    @property
    def to_do_s(self) -> float | None:
        """Seconds of video."""
        return plus(self.video_s, self.about.video_s)

    @property
    def seconds(self) -> float | None:
        """By the clock, with as many workers as `build` has by default."""
        shared = 1 if self.local else max(1, min(WORKERS, round(self.to_do or 1)))
        return None if self.worker_s is None else self.worker_s / shared


class Forecast:
    """To be walked through the stages by `run`; `lines` then says what each has to do."""

    def __init__(self, loaded: Loaded, data: Path) -> None:
        self.lines: dict[str, Line] = {}
        self._recipe, self._folder = loaded.recipe, loaded.folder
        self._store = Store(data.absolute() / "store")
        self._past = Past.read(data / loaded.recipe.name)
        self._reasons = why.Reasons(loaded, self._past, self._store)
        self._rates = rates.read(self._store)
        self._sizes = foresee.Sizes(
            self._recipe.extract,
            self._recipe.encode,
            self._past.frame_bytes(self._recipe.extract.size),
        )
        self._stood_in: set[str] = (
            set()
        )  # keys of the records this stage is given that are stand-ins
        self._coming = Amount()  # on the way to this stage, besides the records it is given
        self._origin = ""  # the stage after which that will have a number, where it has none
        self._reels: set[str] = set()  # that are counted already
        self._again: set[str] = set()  # raw videos, too

    def run(self, stage: Stage, records: Sequence[Record], local: bool) -> Step:
        """Foresee one stage; `walk` calls this."""
        name = "download" if stage.name == "expand" else stage.name
        line = self.lines.setdefault(name, Line(name, local=local and name != "download"))
        line.setting = self._reasons.setting(stage)
        expected = [record for record in records if self._is_stand_in(record)]
        found = survey(
            stage, [record for record in records if not self._is_stand_in(record)], self._store
        )
        known = [record for record in records if found.memos.get(record.key) is not None]
        made = collect(stage, known, found.memos, [])
        outputs: list[Record | Rejection] = [*made.records, *made.rejections]
        if stage.name != "expand":
            line.num_done = len({found.keys[record.key] for record in known})
            line.about = self._arriving(stage, line.num_done)
            line.waits_for = self._origin if line.about.count is None else ""
        self._stood_in, arrived, self._coming = set(), self._coming, Amount()
        outputs += self._missing(line, stage, found.missing)
        outputs += self._expected(line, stage, expected)
        self._coming += self._through(stage, arrived)
        self._origin = self._origin or (name if self._coming.count is None else "")
        self._estimate(line, stage)
        return _step(stage, records, outputs, line.num_done)

    def _is_stand_in(self, record: Record) -> bool:
        if isinstance(record, Pack):
            return any(sample.key in self._stood_in for sample in record.samples)
        return record.key in self._stood_in

    def _missing(
        self, line: Line, stage: Stage, records: Sequence[Record]
    ) -> Iterator[Record | Rejection]:
        """Note the tasks to do; yields what they will give, as far as can be said."""
        told: set[str] = set()
        for record in records:
            task_key, foreseen = stage.task_key(record), foresee.exact(stage, record, self._store)
            reason = self._reasons.of(stage, record, task_key)
            if task_key not in told and (
                stage.name != "expand" or foreseen is None
            ):  # what expands without asking anybody is no work
                self._note(
                    line, stage, record, reason, foresee.is_light(stage, record, self._store)
                )
                line.num_guessed += stage.name == "expand"
            told.add(task_key)
            if foreseen is not None:
                yield from foreseen
            elif not reason.startswith(AGAIN):
                yield from self._stand_in(stage, record)

    def _expected(self, line: Line, stage: Stage, records: Sequence[Record]) -> Iterator[Record]:
        for record in records:
            self._note(
                line,
                stage,
                record,
                f"on what `{NAMES[NAMES.index(stage.name) - 1]}` will make",
                light=False,
            )
            line.num_guessed += 1
            yield from self._stand_in(stage, record)

    def _note(self, line: Line, stage: Stage, record: Record, reason: str, light: bool) -> None:
        line.reasons.setdefault(reason, []).append(record.key)
        line.num_light += light
        if not light:
            line.video_s += float(getattr(record, "duration_s", 0))
            line.cost += float(stage.cost(record))
        video = raw.wanted_again(stage, record, self._store)
        if (
            video
            and video.blob.sha256 not in self._again
            and download.scheme(video.source.uri) != "file"
        ):
            self._again.add(video.blob.sha256)
            line.again.append(video.key)
            line.num_bytes["raw videos"] = plus(
                line.num_bytes.get("raw videos", 0), video.blob.num_bytes
            )
        for what, num_bytes in self._bytes(stage, record, light):
            line.num_bytes[what] = plus(line.num_bytes.get(what, 0), num_bytes)

    def _stand_in(self, stage: Stage, record: Record) -> Iterator[Record]:
        """A stand-in for what a record will give, or a number more in what is coming."""
        if stage.name == "extract" and isinstance(record, Scene):
            self._stood_in.add(record.key)
            yield foresee.clip(record, self._sizes)
        elif isinstance(record, Clip):
            self._stood_in.add(record.key)
            yield foresee.sample(record, self._sizes, self._encoders)
        elif isinstance(record, Video):
            self._coming += self._past.scenes(float(record.duration_s))
        elif isinstance(record, Source):
            self._coming += self._past.videos(record)

    def _arriving(self, stage: Stage, num_done: int) -> Amount:
        """How much of what is coming is to be done here. Lists that nobody has read yet count as
        one download each.
        """
        if stage.name == "download":
            return Amount()
        return self._past.packed(self._coming, num_done) if stage.name == "shard" else self._coming

    def _through(self, stage: Stage, arrived: Amount) -> Amount:
        """What a stage makes of what was on the way to it."""
        if stage.name == "cut":
            return self._past.scenes(arrived.video_s) if arrived else arrived
        return self._past.kept(arrived) if stage.name == "filter" else arrived

    def _bytes(
        self, stage: Stage, record: Record, light: bool
    ) -> Iterator[tuple[str, float | None]]:
        """What a task writes."""
        if isinstance(
            record, Source
        ):  # a local file is linked, or copied to where no link can lead
            yield (
                "raw videos",
                0 if download.scheme(record.uri) == "file" else self._past.video_bytes,
            )
        elif isinstance(record, Video):
            yield from self._reel(record)
        elif isinstance(record, Scene) and stage.name == "extract":
            yield from self._reel(record.video)
            yield "clips", record.num_frames(self._recipe.extract.fps) * self._sizes.frame
        elif isinstance(record, Clip):
            made = foresee.sample(record, self._sizes, self._encoders)
            blobs = made.text if light else [blob for _, blob in shard.members_of(made)]
            yield "latents and embeddings", sum(blob.num_bytes for blob in blobs)
        elif isinstance(record, Pack):
            yield (
                "shards",
                sum(
                    blob.num_bytes
                    for sample in record.samples
                    for _, blob in shard.members_of(sample)
                ),
            )

    def _reel(self, video: Video) -> Iterator[tuple[str, float]]:
        task_key = canonical.digest(reel.task(video, self._recipe.extract))
        if task_key not in self._reels and self._store.recall(task_key) is None:
            yield "reels", self._sizes.reel(float(video.duration_s))
        self._reels.add(task_key)

    @property
    def _encoders(self) -> Encoders:
        return encode.find_encoders(self._recipe.encode, self._folder, True)

    def _estimate(self, line: Line, stage: Stage) -> None:
        """Time for all of the stage, and bytes for what nobody can name yet."""
        cost = plus(line.cost, line.about.count if line.stage in COUNTED else line.about.video_s)
        rate = self._rates.get(
            rates.name_of(
                line.stage, stage.params, self._recipe.extract.size, self._recipe.extract.fps
            )
        )
        line.worker_s = (
            0 if cost == 0 else None if cost is None or rate is None else rate.worker_seconds(cost)
        )
        line.is_timed = rate is not None or cost == 0
        what = {
            "cut": "reels",
            "extract": "clips",
            "encode": "latents and embeddings",
            "shard": "shards",
        }.get(line.stage)
        if line.about and what:
            video_s = line.about.video_s
            size = self._sizes.reel if line.stage in ("cut", "extract") else self._sample_bytes
            line.num_bytes[what] = plus(
                line.num_bytes.get(what, 0), None if video_s is None else size(video_s)
            )

    def _sample_bytes(self, video_s: float) -> float:
        return self._sizes.sample(video_s * float(self._recipe.extract.fps), self._encoders)


def _step(
    stage: Stage, records: Sequence[Record], outputs: Sequence[Record | Rejection], num_done: int
) -> Step:
    """The foreseen outputs as `walk` passes them on."""
    kept = tuple(
        sorted((one for one in outputs if not isinstance(one, Rejection)), key=lambda one: one.key)
    )
    rejected = tuple(one for one in outputs if isinstance(one, Rejection))
    num_in = min(len(records), len(outputs))
    manifest = Manifest(
        stage.name, stage.version, stage.params, num_in, len(outputs) - num_in, kept, rejected
    )
    return Step(manifest, num_done, len(records) - num_in)
