import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.core.errors import BadData, RecipeError
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Scene
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import reel
from pipeline.stages import filter as filtering
from pipeline.stages.filter import Params, process, stage, takes

FPS = Fraction(10)
TIME_BASES = [
    Fraction(1, 12800),
    Fraction(1, 90000),
    Fraction(1, 1000),
    Fraction(1001, 30000),
    Fraction(1001, 24000),
    Fraction(1, 25),
]
RATES = [Fraction(10), Fraction(24000, 1001), Fraction(25, 2), Fraction(1, 3)]
same_builder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)


def outcomes(scene: Scene, store: Store, **params: object) -> list[Scene | BadData]:
    return list(process(scene, store, Params(**params), FPS))


@pytest.mark.parametrize(
    ("end_pts", "count"), [(9_900, 99), (9_901, 100), (10_000, 100), (10_001, 101)]
)
def test_a_scene_needs_min_frames_and_not_one_more(
    store: Store, new_scene: Callable[..., Scene], end_pts: int, count: int
) -> None:
    scene = new_scene(0, end_pts)
    assert scene.num_frames(FPS) == count
    (outcome,) = outcomes(scene, store)
    if count < 100:
        assert isinstance(outcome, BadData)
        assert outcome.reason == "too-few-frames"
        assert outcome.detail == "99 frames at 10 fps, 100 wanted"
    else:
        assert outcome == scene


def test_where_a_scene_lies_on_the_grid_decides_how_many_frames_it_gives(
    store: Store, new_scene: Callable[..., Scene]
) -> None:
    assert [
        new_scene(start, start + 9_950).num_frames(FPS) for start in (0, 1, 50, 51, 99, 100)
    ] == [100, 99, 99, 100, 100, 100]


@given(
    start=st.integers(-(10**6), 10**7),
    length=st.integers(1, 10**7),
    time_base=st.sampled_from(TIME_BASES),
    fps=st.sampled_from(RATES),
    max_frames=st.integers(1, 700),
)
@same_builder
def test_takes_are_equal_adjacent_and_never_too_long(
    new_scene: Callable[..., Scene],
    start: int,
    length: int,
    time_base: Fraction,
    fps: Fraction,
    max_frames: int,
) -> None:
    seconds = min(length * time_base, Fraction(4000))
    scene = new_scene(start, start + max(1, int(seconds / time_base)), time_base)
    fps = min(fps, 1 / time_base)
    parts = takes(scene, Params(min_frames=1, max_frames=max_frames), fps)
    counts = [part.num_frames(fps) for part in parts]
    assert sum(counts) == scene.num_frames(fps)
    assert max(counts) <= max_frames or sum(counts) == 0
    assert max(counts) - min(counts) <= 1
    assert len(parts) == max(1, -(-sum(counts) // max_frames))
    assert (parts[0].start_pts, parts[-1].end_pts) == (scene.start_pts, scene.end_pts)
    assert all(first.end_pts == second.start_pts for first, second in itertools.pairwise(parts))


def counts_of(scene: Scene, fps: Fraction, **limits: object) -> list[int]:
    return [take.num_frames(fps) for take in takes(scene, Params(**limits), fps)]


def test_takes_keep_their_limits_where_a_tick_holds_several_frames(
    new_scene: Callable[..., Scene],
) -> None:
    for start, num_ticks in itertools.product(range(100), (83, 84, 125, 166, 167, 1000)):
        scene = new_scene(start, start + num_ticks, Fraction(1, 25))
        counts = counts_of(scene, Fraction(60), min_frames=100, max_frames=199)
        assert min(counts) >= 100
        assert max(counts) <= 199
        assert scene.num_frames(Fraction(60)) - sum(counts) <= 5, "two ticks are lost at most"


@given(
    start=st.integers(-(10**4), 10**4),
    num_ticks=st.integers(1, 600),
    rate=st.fractions(Fraction(1), Fraction(10), max_denominator=1001),
    min_frames=st.integers(1, 120),
    more=st.integers(0, 60),
)
@same_builder
def test_only_limits_finer_than_a_video_s_clock_are_refused(
    new_scene: Callable[..., Scene],
    start: int,
    num_ticks: int,
    rate: Fraction,
    min_frames: int,
    more: int,
) -> None:
    scene = new_scene(start, start + num_ticks, Fraction(1, 25))
    fps, max_frames = 25 * rate, 2 * min_frames - 1 + more
    try:
        parts = takes(scene, Params(min_frames=min_frames, max_frames=max_frames), fps)
    except RecipeError:
        assert min_frames < rate + 1
        return
    counts = [part.num_frames(fps) for part in parts]
    assert max(counts) <= max_frames
    assert min(counts) >= min(min_frames, scene.num_frames(fps))
    assert parts[0].start_pts == scene.start_pts
    assert 0 <= scene.end_pts - parts[-1].end_pts <= 2
    assert all(first.end_pts == second.start_pts for first, second in itertools.pairwise(parts))


def test_limits_that_no_take_can_keep_are_refused_in_one_line(
    new_scene: Callable[..., Scene],
) -> None:
    with pytest.raises(RecipeError) as caught:
        counts_of(new_scene(0, 100, Fraction(1, 25)), Fraction(60), min_frames=1, max_frames=1)
    assert str(caught.value) == (
        "the scene 'film-0000' has no takes of 1 to 1 frames at 60 fps: its video's clock ticks "
        "every 2.4 frames. Take a higher filter.max_frames, a lower filter.min_frames or a lower "
        "extract.fps"
    )


def test_a_scene_of_exactly_max_frames_stays_whole(new_scene: Callable[..., Scene]) -> None:
    scene = new_scene(0, 30_000)
    assert takes(scene, Params(max_frames=300), FPS) == [scene]
    assert takes(scene, Params(max_frames=None), FPS) == [scene]
    assert counts_of(scene, FPS, max_frames=299) == [150, 150]


def test_a_four_hour_drive_becomes_takes_with_keys_of_their_own(
    store: Store, new_scene: Callable[..., Scene]
) -> None:
    drive = new_scene(0, 4 * 3600 * 1000)
    manifest, _ = run_stage(
        stage(Setup((Params(max_frames=600), reel.Params()))), [drive], store, Inline(), Progress()
    )
    assert len(manifest.records) == 240
    assert manifest.records[0].key == "film-0000-000"
    assert manifest.records[-1].key == "film-0000-239"
    assert {record.num_frames(FPS) for record in manifest.records} == {600}
    assert {record.video for record in manifest.records} == {drive.video}
    assert (manifest.num_in, manifest.num_split) == (1, 239)


def test_trimming_takes_time_from_both_ends(store: Store, new_scene: Callable[..., Scene]) -> None:
    (outcome,) = outcomes(new_scene(1_000, 21_000), store, trim_s=0.5)
    assert isinstance(outcome, Scene)
    assert (outcome.start_pts, outcome.end_pts) == (1_500, 20_500)


def test_a_trim_that_is_no_whole_number_of_ticks_takes_the_next_tick(
    store: Store, new_scene: Callable[..., Scene]
) -> None:
    (outcome,) = outcomes(new_scene(0, 500, Fraction(1, 25)), store, trim_s="1/30")
    assert isinstance(outcome, Scene)
    assert (outcome.start_pts, outcome.end_pts) == (1, 499)


def test_a_scene_shorter_than_its_trims_is_rejected(
    store: Store, new_scene: Callable[..., Scene]
) -> None:
    (outcome,) = outcomes(new_scene(0, 1_000), store, trim_s=2, min_frames=1)
    assert isinstance(outcome, BadData)
    assert outcome.detail == "0 frames at 10 fps, 1 wanted"


def test_trimming_comes_before_judging_and_splitting(
    store: Store, new_scene: Callable[..., Scene]
) -> None:
    assert isinstance(outcomes(new_scene(0, 10_100), store, trim_s=0.1)[0], BadData)
    parts = outcomes(new_scene(0, 40_200), store, trim_s=0.1, max_frames=200)
    assert [part.num_frames(FPS) for part in parts if isinstance(part, Scene)] == [200, 200]


def test_every_short_scene_is_counted(store: Store, new_scene: Callable[..., Scene]) -> None:
    scenes = [new_scene(0, length, key=f"film-{length}") for length in (9_000, 11_000, 500)]
    manifest, _ = run_stage(
        stage(Setup((Params(), reel.Params()))), scenes, store, Inline(), Progress()
    )
    assert [record.key for record in manifest.records] == ["film-11000"]
    assert manifest.reasons == {"too-few-frames": 2}


def test_parameters_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_frames must be at least 199"):
        Params(max_frames=50)


def test_another_fps_is_another_task(new_scene: Callable[..., Scene]) -> None:
    scene = new_scene(0, 10_000)
    keys = {
        stage(Setup((Params(), reel.Params(fps=fps)))).task_key(scene)
        for fps in (FPS, Fraction(24), Fraction(10000, 1000))
    }
    assert len(keys) == 2
    assert stage(Setup((Params(), reel.Params()))).version == filtering.VERSION


@pytest.mark.parametrize(
    ("distinct", "least", "is_in"),
    [(0.01, 0.05, False), (0.05, 0.05, True), (None, 0.05, True), (0.01, 0.0, True)],
)
def test_a_scene_of_too_few_new_pictures_is_one_rejection(
    store: Store,
    new_scene: Callable[..., Scene],
    distinct: float | None,
    least: float,
    is_in: bool,
) -> None:
    scene = replace(new_scene(0, 120_000), distinct=distinct)
    results = outcomes(scene, store, min_distinct=least)
    if is_in:
        assert [part.num_frames(FPS) for part in results if isinstance(part, Scene)] == [600, 600]
    else:
        assert [str(result) for result in results] == [
            "too-few-distinct: 0.010 of the frames at 10 fps are new pictures, 0.05 wanted"
        ]
