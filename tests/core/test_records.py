import itertools
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.records import Blob, Clip, Crop, Pack, Scene, grid_index, public, source_of

TIME_BASES = st.sampled_from(
    [
        Fraction(1, 12800),
        Fraction(1, 90000),
        Fraction(1, 1000),
        Fraction(1001, 30000),
        Fraction(1001, 24000),
        Fraction(1, 25),
        Fraction(1),
    ]
)
RATES = st.sampled_from(
    [
        Fraction(10),
        Fraction(24),
        Fraction(30000, 1001),
        Fraction(24000, 1001),
        Fraction(25, 2),
        Fraction(1, 3),
    ]
)
STAMPS = st.integers(-(10**9), 10**12)


@given(STAMPS, TIME_BASES, RATES)
def test_the_grid_index_is_the_first_point_at_or_after_the_stamp(
    pts: int, time_base: Fraction, fps: Fraction
) -> None:
    index = grid_index(pts, time_base, fps)
    assert index / fps >= pts * time_base > (index - 1) / fps


@given(st.lists(STAMPS, min_size=2, max_size=8, unique=True), TIME_BASES, RATES)
def test_the_counts_of_adjacent_spans_add_up(
    stamps: list[int], time_base: Fraction, fps: Fraction
) -> None:
    stamps.sort()
    edges = [grid_index(pts, time_base, fps) for pts in stamps]
    assert all(b >= a for a, b in itertools.pairwise(edges))
    whole = grid_index(stamps[-1], time_base, fps) - grid_index(stamps[0], time_base, fps)
    assert sum(b - a for a, b in itertools.pairwise(edges)) == whole
    assert abs(whole - (stamps[-1] - stamps[0]) * time_base * fps) < 1


@pytest.mark.parametrize(
    ("pts", "time_base", "fps", "index"),
    [
        (0, Fraction(1, 25), Fraction(10), 0),
        (1, Fraction(1, 25), Fraction(10), 1),
        (5, Fraction(1, 25), Fraction(10), 2),
        (6, Fraction(1, 25), Fraction(10), 3),
        (-1, Fraction(1, 25), Fraction(10), 0),
        (-3, Fraction(1, 25), Fraction(10), -1),
        (30000, Fraction(1001, 30000), Fraction(10), 10010),
        (30001, Fraction(1001, 30000), Fraction(10), 10011),
    ],
)
def test_grid_indices_by_hand(pts: int, time_base: Fraction, fps: Fraction, index: int) -> None:
    assert grid_index(pts, time_base, fps) == index


def test_ten_hours_of_ntsc_do_not_drift(new_scene: Callable[..., Scene]) -> None:
    frames = 10 * 3600 * 30
    scene = new_scene(0, frames, Fraction(1001, 30000))
    assert scene.num_frames(Fraction(30000, 1001)) == frames
    assert scene.num_frames(Fraction(10)) == math.ceil(Fraction(frames * 1001, 3000))
    assert scene.duration_s == Fraction(frames * 1001, 30000)


def test_pixels_do_not_depend_on_keys_captions_licences_or_addresses(
    new_scene: Callable[..., Scene],
) -> None:
    scene = new_scene(0, 400)
    source = replace(
        scene.video.source,
        key="other",
        uri="https://example.org/film",
        captions=("another",),
        license="CC-BY-4.0",
    )
    other = replace(
        scene,
        key="other-0003",
        video=replace(scene.video, key="other", source=source, fetched_as="137"),
    )
    assert other.identity() == scene.identity()


def test_pixels_depend_on_the_bytes_the_time_range_and_the_span(
    new_scene: Callable[..., Scene],
) -> None:
    scene = new_scene(0, 400)
    others = [
        replace(scene, video=replace(scene.video, blob=Blob("1" * 64, 1))),
        replace(
            scene,
            video=replace(scene.video, source=replace(scene.video.source, start_s=Fraction(1, 4))),
        ),
        replace(
            scene, video=replace(scene.video, source=replace(scene.video.source, end_s=Fraction(9)))
        ),
        replace(scene, start_pts=1),
        replace(scene, end_pts=399),
    ]
    assert len({str(each.identity()) for each in [scene, *others]}) == 6


@pytest.mark.parametrize(
    ("start_s", "end_s", "duration_s"),
    [
        (None, None, Fraction(10)),
        (Fraction(3), None, Fraction(7)),
        (Fraction(3), Fraction(5), Fraction(2)),
        (None, Fraction(99), Fraction(10)),
        (Fraction(12), None, Fraction(0)),
    ],
)
def test_a_video_lasts_as_long_as_the_part_its_source_asks_for(
    new_scene: Callable[..., Scene],
    start_s: Fraction | None,
    end_s: Fraction | None,
    duration_s: Fraction,
) -> None:
    whole = new_scene(0, 10_000).video
    assert (
        replace(whole, source=replace(whole.source, start_s=start_s, end_s=end_s)).duration_s
        == duration_s
    )


def test_every_record_leads_back_to_its_source(new_scene: Callable[..., Scene]) -> None:
    scene = new_scene(0, 10_000)
    clip = Clip(
        "film-0000",
        scene,
        Blob("2" * 64, 5),
        100,
        Fraction(10),
        64,
        Crop(40, 0, 240, 240),
        "3" * 64,
    )
    assert source_of(clip) is scene.video.source
    assert clip.duration_s == 10
    with pytest.raises(TypeError, match="Pack 'pack' has no single source"):
        source_of(Pack("pack", "train", ()))


def test_records_cannot_be_changed(new_scene: Callable[..., Scene]) -> None:
    with pytest.raises(FrozenInstanceError):
        new_scene(0, 400).end_pts = 3


def test_an_absolute_local_address_keeps_its_file_name_alone() -> None:
    assert public("file:/home/somebody/films/a b.mp4") == "file:a b.mp4"
    assert public("file:films/a.mp4") == "file:films/a.mp4"
    assert public("https://example.org/file:/a.mp4") == "https://example.org/file:/a.mp4"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@example.org/a.mp4", "https://example.org/a.mp4"),
        ("ftp://me:p@ss@example.org:21/a.mp4", "ftp://example.org:21/a.mp4"),
        ("https://token@example.org/a.mp4", "https://example.org/a.mp4"),
        ("https://example.org/@me/a.mp4", "https://example.org/@me/a.mp4"),
        ("https://example.org/a.mp4?by=me@home", "https://example.org/a.mp4?by=me@home"),
        ("file:films/me@home.mp4", "file:films/me@home.mp4"),
    ],
)
def test_a_password_in_an_address_is_not_public(uri: str, shown: str) -> None:
    assert public(uri) == shown
