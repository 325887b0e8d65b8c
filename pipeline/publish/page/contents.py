"""What the page shows of a dataset, as plain JSON: the funnel, sources, clips, what was rejected.

Everything comes from a survey of the chain (as `status` makes one), so a dataset that is half built
can be seen too. What there is one of for each clip is a column (`columns.py`); what repeats is
named by an index. 100,000 clips with 20 scores are 14 MB of JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

from pipeline.core.errors import printable
from pipeline.core.ledger import Failure
from pipeline.core.picks import Pick
from pipeline.core.records import (
    Clip,
    Record,
    Rejection,
    Sample,
    Scene,
    Shard,
    Source,
    Video,
    public,
    source_of,
)
from pipeline.core.store import now
from pipeline.dataset.chain import Step
from pipeline.dataset.recipe import Loaded
from pipeline.media.duplicates import Likeness, Overview
from pipeline.media.scorers import Score
from pipeline.publish.page import columns
from pipeline.publish.page.rules import rules_of
from pipeline.publish.scores import described
from pipeline.stages import NAMES, keep, shard

FORMAT = 1
PENDING = 65535  # the fate of a clip that is not encoded yet; records.js has it too
NOTHING = -1
SPLITS = {"train": 1, "validation": 2}
K = TypeVar("K", bound=Record)


@dataclass(frozen=True)
class Dropped:
    """A rejection with its history, and the record it was made of, as far as that is known."""

    failure: Failure
    record: Record | None

    @property
    def rejection(self) -> Rejection:
        return self.failure.rejection

    @property
    def scene(self) -> Scene | None:
        if isinstance(self.record, Sample):
            return self.record.clip.scene
        if isinstance(self.record, Clip):
            return self.record.scene
        return self.record if isinstance(self.record, Scene) else None


@dataclass(frozen=True)
class Survey:
    """A dataset as it stands: its steps, and from them the records by stage."""

    loaded: Loaded
    steps: Sequence[Step]
    unknown: str = ""  # why later stages are not known
    only: str = ""  # the source, or the list of sources, that is looked at; all by default

    def records(self, stage: str, kind: type[K]) -> list[K]:
        """What a stage gave, in order of keys."""
        step = next((step for step in self.steps if step.manifest.stage == stage), None)
        records = [
            record
            for record in (step.manifest.records if step else ())
            if isinstance(record, kind) and (isinstance(record, Shard) or self._covers(record))
        ]
        return sorted(records, key=lambda record: record.key)

    def _covers(self, record: Record | None) -> bool:
        if not self.only or record is None:
            return not self.only
        key = source_of(record).key
        return key == self.only or key.startswith(f"{self.only}-")

    @property
    def clips(self) -> list[Clip]:
        """Every clip that was extracted, with its scores where they are there."""
        clips = {clip.key: clip for clip in self.records("extract", Clip)}
        for stage in ("score", "caption"):
            clips |= {clip.key: clip for clip in self.records(stage, Clip)}
        return list(clips.values())

    @property
    def duplicates(self) -> Mapping[str, Sequence[Likeness]]:
        """The near-duplicates of every clip that has some, by key; the best clips first."""
        for step in self.steps:
            if step.survey is not None and isinstance(step.survey.overview, Overview):
                return step.survey.overview.likes
        return {}

    @property
    def dropped(self) -> list[Dropped]:
        """Every rejection, by stage and key."""
        result: list[Dropped] = []
        before: dict[str, Record] = {source.key: source for source in self.loaded.sources}
        for step in self.steps:
            rejections = {(r.key, r.reason): r for r in step.manifest.rejections}
            known = {
                (failure.rejection.key, failure.rejection.reason): failure
                for failure in step.failures
            }
            failures = [
                known.get(name) or Failure(rejection, "", "", 1)
                for name, rejection in rejections.items()
            ]
            result += [
                Dropped(failure, before.get(failure.rejection.key))
                for failure in sorted(failures, key=lambda failure: failure.rejection.key)
                if self._covers(before.get(failure.rejection.key))
            ]
            before = {record.key: record for record in step.manifest.records}
        return result


def contents(
    survey: Survey,
    picks: Sequence[Pick],
    pictures: Mapping[str, str],
    decoded: Iterable[str],
    likes: Mapping[str, Sequence[tuple[str, float]]],
) -> dict[str, Any]:
    """The page's data.

    `pictures` gives by key (of a clip, or of a rejected scene) the name of its strip; `decoded` are
    keys of clips whose latents were decoded; `likes` gives by key the clips that look most alike.
    """
    recipe = survey.loaded.recipe
    sources = _Sources(survey)
    clips, dropped = survey.clips, survey.dropped
    classes = _classes(dropped)
    shards = survey.records("shard", Shard)
    measures = _measures(survey, clips)
    rules = keep.rules_of(survey.loaded.setup("auto", offline=True))
    return {
        "format": FORMAT,
        "name": recipe.name,
        "recipe_file": printable(survey.loaded.path.name),
        "description": printable(recipe.description),
        "written": now(),
        "fps": float(recipe.extract.fps),
        "size": recipe.extract.size,
        "max_frames": recipe.filter.max_frames,
        "root_digest": shard.root_digest(shards) if shards else None,
        "unknown": survey.unknown,
        "stages": [_stage(step) for step in survey.steps],
        "classes": [list(name) for name in classes],
        "clips": _clips(survey, clips, dropped, classes, sources, pictures, decoded, likes),
        "rejected": _rejected(clips, dropped, classes, sources, pictures),
        "pending": _pending(survey, clips, dropped, sources),
        "sources": sources.rows(),
        "measures": measures,
        "rules": rules_of(rules, {measure["name"] for measure in measures}),
        "picks": [pick.model_dump() for pick in picks],
    }


def _stage(step: Step) -> dict[str, Any]:
    """A row of the funnel."""
    manifest = step.manifest
    return {
        "stage": manifest.stage,
        "in": manifest.num_in + step.num_pending,
        "out": len(manifest.records),
        "rejected": dict(sorted(manifest.reasons.items())),
        "pending": step.num_pending,
        "bytes": step.num_bytes,
        "hours": step.hours,
    }


@dataclass
class _Sources:
    """The sources of a dataset, numbered: those of the recipe, and those that lists name."""

    survey: Survey
    index: dict[str, int] = field(default_factory=dict)
    videos: dict[str, Video] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        expanded = self.survey.records("expand", Source)
        self.videos = {video.key: video for video in self.survey.records("download", Video)}
        rejected = {
            dropped.rejection.key
            for dropped in self.survey.dropped
            if dropped.rejection.stage == "expand"
        }
        named = [source for source in self.survey.loaded.sources if source.key in rejected]
        for source in (*expanded, *named):
            self.index.setdefault(source.key, len(self.index))
            if self.index[source.key] == len(self.sources):
                self.sources.append(source)

    def of(self, record: Record | None) -> int:
        """The number of the source a record began as; NOTHING if it has none."""
        if record is None or (record.parent is None and not isinstance(record, Source)):
            return NOTHING
        return self.index.get(source_of(record).key, NOTHING)

    def rows(self) -> list[dict[str, Any]]:
        cuts: dict[str, list[float]] = {}
        for scene in self.survey.records("cut", Scene):
            cuts.setdefault(scene.video.key, []).append(span_of(scene)[0])
        return [_source(source, self.videos.get(source.key), cuts) for source in self.sources]


def _source(source: Source, video: Video | None, cuts: Mapping[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": source.key,
        "uri": public(source.uri),
        "license": source.license,
        "captions": list(source.captions),
        "cuts": sorted(cuts.get(source.key, []))[1:],  # the first scene begins without one
    }
    if video is not None:
        facts = video.container
        row |= {
            "seconds": _rounded(facts.duration_s),
            "start": _rounded(source.start_s or Fraction(0)),
            "end": _rounded(facts.duration_s if source.end_s is None else source.end_s),
            "width": facts.width,
            "height": facts.height,
            "fps": _rounded(facts.average_fps),
            "codec": facts.codec,
            "bytes": video.blob.num_bytes,
        }
    return row


def span_of(scene: Scene) -> tuple[float, float]:
    """Where a scene lies in its video, in seconds from the first frame."""
    first = scene.video.container.start_pts
    edges = (scene.start_pts - first, scene.end_pts - first)
    start_s, end_s = (_rounded(edge * scene.time_base) for edge in edges)
    return start_s, end_s


def _rounded(value: Fraction) -> float:
    return round(float(value), 3)


def _classes(dropped: Sequence[Dropped]) -> dict[tuple[str, str], int]:
    """Classes of rejections, numbered: a stage and a reason."""
    names = {(d.rejection.stage, d.rejection.reason) for d in dropped}
    ordered = sorted(names, key=lambda name: (NAMES.index(name[0]), name[1]))
    return {name: number for number, name in enumerate(ordered)}


def _clips(
    survey: Survey,
    clips: Sequence[Clip],
    dropped: Sequence[Dropped],
    classes: Mapping[tuple[str, str], int],
    sources: _Sources,
    pictures: Mapping[str, str],
    decoded: Iterable[str],
    likes: Mapping[str, Sequence[tuple[str, float]]],
) -> dict[str, Any]:
    samples = {sample.key: sample for sample in survey.records("encode", Sample)}
    splits = {
        key: SPLITS[record.split]
        for record in survey.records("shard", Shard)
        for key in record.samples
    }
    fates = {
        d.rejection.key: classes[d.rejection.stage, d.rejection.reason] + 1
        for d in dropped
        if isinstance(d.record, Clip | Sample)
    }
    number = {clip.key: index for index, clip in enumerate(clips)}
    spans = [span_of(clip.scene) for clip in clips]
    fate_of = [fates.get(clip.key, 0 if clip.key in samples else PENDING) for clip in clips]
    return {
        "keys": [clip.key for clip in clips],
        "digest": columns.digests([clip.blob.sha256 for clip in clips]),
        "source": columns.whole_numbers([max(0, sources.of(clip)) for clip in clips]),
        "start": columns.numbers([start_s for start_s, _ in spans]),
        "end": columns.numbers([end_s for _, end_s in spans]),
        "frames": columns.whole_numbers([clip.num_frames for clip in clips]),
        "fate": columns.whole_numbers(fate_of, "u2"),
        "split": columns.whole_numbers([splits.get(clip.key, 0) for clip in clips], "u1"),
        "picture": columns.whole_numbers([clip.key in pictures for clip in clips], "u1"),
        "captions": {
            str(number[clip.key]): [printable(caption) for caption in clip.captions]
            for clip in clips
            if clip.captions is not None
        },
        "decoded": sorted(number[key] for key in decoded if key in number),
        "likes": {
            str(number[key]): [[number[other], round(near, 4)] for other, near in others]
            for key, others in likes.items()
            if key in number
        },
        "duplicates": [
            [
                number[key],
                [
                    [number[like.other], like.later_s, like.bits, like.is_mirrored, like.is_better]
                    for like in others
                    if like.other in number
                ],
            ]
            for key, others in survey.duplicates.items()
            if key in number
        ],
    }


def _rejected(
    clips: Sequence[Clip],
    dropped: Sequence[Dropped],
    classes: Mapping[tuple[str, str], int],
    sources: _Sources,
    pictures: Mapping[str, str],
) -> dict[str, Any]:
    number = {clip.key: index for index, clip in enumerate(clips)}
    details: dict[str, int] = {}
    times: dict[str, int] = {}
    spans = [span_of(d.scene) if d.scene else (None, None) for d in dropped]
    rows = [d.rejection for d in dropped]
    is_clip = [isinstance(d.record, Clip | Sample) for d in dropped]
    clip_of = [
        number.get(row.key, NOTHING) if is_one else NOTHING
        for row, is_one in zip(rows, is_clip, strict=True)
    ]
    return {
        "keys": [printable(row.key) for row in rows],
        "class": columns.whole_numbers([classes[row.stage, row.reason] for row in rows], "u2"),
        "source": columns.whole_numbers([sources.of(d.record) for d in dropped], "i4"),
        "start": columns.numbers([start_s for start_s, _ in spans]),
        "end": columns.numbers([end_s for _, end_s in spans]),
        "clip": columns.whole_numbers(clip_of, "i4"),
        "picture": [pictures.get(row.key, "") for row in rows],
        "detail": columns.whole_numbers(
            [details.setdefault(printable(row.detail), len(details)) for row in rows]
        ),
        "first": columns.whole_numbers(
            [times.setdefault(d.failure.first, len(times)) for d in dropped]
        ),
        "last": columns.whole_numbers(
            [times.setdefault(d.failure.last, len(times)) for d in dropped]
        ),
        "tries": columns.whole_numbers([d.failure.tries for d in dropped]),
        "details": list(details),
        "times": list(times),
    }


def _pending(
    survey: Survey, clips: Sequence[Clip], dropped: Sequence[Dropped], sources: _Sources
) -> list[list[float]]:
    """Scenes that no clip was made of yet: source, start, end."""
    done = {clip.key for clip in clips} | {d.rejection.key for d in dropped if d.scene}
    scenes = survey.records("filter", Scene)
    return [[sources.of(s), *span_of(s)] for s in scenes if s.key not in done]


def _measures(survey: Survey, clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """What the page draws histograms of: a column of numbers, with what it means. `rule` says
    where a recipe can hold a threshold of it: keep, filter or nowhere.
    """
    psnr = {sample.key: sample.round_trip_psnr_db for sample in survey.records("encode", Sample)}
    measures = [
        {
            "name": "frames",
            "unit": "",
            "low": 0,
            "high": None,
            "meaning": "frames of the clip",
            "rule": "filter",
            "column": columns.numbers([float(clip.num_frames) for clip in clips]),
        }
    ]
    measures += _scores(clips, described(survey.loaded))
    values = [psnr.get(clip.key) for clip in clips]
    if any(value is not None for value in values):
        measures.append(
            {
                "name": "psnr",
                "unit": "dB",
                "low": 0,
                "high": None,
                "meaning": "round trip through the VAE: decoded latents against the clip",
                "rule": "",
                "column": columns.numbers(values),
            }
        )
    bits = [clip.blob.num_bytes * 8 / max(1, clip.num_frames * clip.size**2) for clip in clips]
    measures.append(
        {
            "name": "clip bits",
            "unit": "bits per pixel",
            "low": 0,
            "high": None,
            "meaning": "what the clip's own file takes: detail, grain and motion take more",
            "rule": "",
            "column": columns.numbers([float(f"{value:.4g}") for value in bits]),
        }
    )
    return measures


def _scores(clips: Sequence[Clip], meanings: Mapping[str, Score]) -> list[dict[str, Any]]:
    """A measure for each score that a clip has, with what the scorer says of it."""
    tables = [dict(clip.scores) for clip in clips]
    names = list(dict.fromkeys(name for clip in clips for name, _ in clip.scores))
    return [
        {
            "name": name,
            "unit": score.unit,
            "low": score.low,
            "high": score.high,
            "meaning": printable(score.meaning),
            "rule": "keep",
            "column": columns.numbers([table.get(name) for table in tables]),
        }
        for name in names
        for score in [meanings.get(name, Score(name, "", None, None, ""))]
    ]
