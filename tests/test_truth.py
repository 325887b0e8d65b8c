"""The truth set's own truth: joints are where it says, and hits are counted right."""

from __future__ import annotations

import itertools
from pathlib import Path

import ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.media import detectors, video
from tests import truth
from tests.truth import Joint, Piece, Score, Transition

SOURCES = [
    "testsrc2=size=320x180:rate=25",
    "mandelbrot=size=320x180:rate=25:start_scale=0.5",
    "smptehdbars=size=320x180:rate=25",
    "life=size=320x180:rate=25:mold=20:seed=4:life_color=orange:death_color=navy",
    "gradients=size=320x180:rate=25:seed=3:c0=white:c1=yellow:nb_colors=2",
]
TRANSITIONS = [
    Transition("hard"),
    Transition("fade", 12),
    Transition("dissolve", 14),
    Transition("hard"),
]


def pixels(path: Path) -> NDArray[np.int16]:
    """Every fourth pixel of every fourth line of all frames, in grey."""
    grey = (
        frame.reformat(format="gray").to_ndarray()
        for frame, _, _ in video.frames(path, video.probe(path))
    )
    return np.stack([picture[::4, ::4].astype(np.int16) for picture in grey])


def difference(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    return float(np.abs(a - b).mean())


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Piece]:
    folder = tmp_path_factory.mktemp("takes")
    pieces = []
    for number, source in enumerate(SOURCES):
        path = folder / f"{number}.mp4"
        truth.encode(
            truth.fit(ffmpeg.input(source, f="lavfi", t=2)), path, crf=6, preset="ultrafast"
        )
        pieces.append(Piece(path, first=3 * number, num_frames=38 - number))
    return pieces


@pytest.fixture(scope="module")
def joined_film(pieces: list[Piece], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("joined") / "joined.mp4"
    truth.join(pieces, TRANSITIONS, path)
    return path


@pytest.fixture(scope="module")
def joints(pieces: list[Piece]) -> list[Joint]:
    return truth.timeline("small", pieces, TRANSITIONS)


@pytest.fixture(scope="module")
def shown(joined_film: Path) -> NDArray[np.int16]:
    return pixels(joined_film)


@pytest.fixture(scope="module")
def takes_shown(pieces: list[Piece]) -> list[NDArray[np.int16]]:
    return [pixels(piece.path)[piece.first : piece.first + piece.num_frames] for piece in pieces]


def test_joints_have_readable_keys_and_known_frames(joints: list[Joint]) -> None:
    assert joints == [
        Joint("small-00-hard", "hard", 38, 38),
        Joint("small-01-fade", "fade", 64, 86),
        Joint("small-02-dissolve", "dissolve", 97, 110),
        Joint("small-03-hard", "hard", 131, 131),
    ]


def test_around_a_hard_joint_are_the_last_frame_of_one_take_and_the_first_of_the_next(
    shown: NDArray[np.int16], takes_shown: list[NDArray[np.int16]], joints: list[Joint]
) -> None:
    assert len(shown) == 131 + len(takes_shown[4])
    for number in (0, 3):
        at = joints[number].first
        assert difference(shown[at - 1], takes_shown[number][-1]) < 3
        assert difference(shown[at], takes_shown[number + 1][0]) < 3
        assert difference(shown[at - 1], shown[at]) > 20


def test_a_fade_is_darkest_inside_its_span_and_the_takes_alone_are_outside(
    shown: NDArray[np.int16], takes_shown: list[NDArray[np.int16]], joints: list[Joint]
) -> None:
    fade = joints[1]
    assert fade.first < int(shown.mean(axis=(1, 2)).argmin()) < fade.last
    assert difference(shown[fade.first - 1], takes_shown[1][-12]) < 3
    assert difference(shown[fade.first], takes_shown[1][-11]) > 3
    assert difference(shown[fade.last], takes_shown[2][11]) > 3
    assert difference(shown[fade.last + 1], takes_shown[2][12]) < 3


def test_all_frames_of_a_dissolve_show_both_takes_and_none_outside_do(
    shown: NDArray[np.int16], takes_shown: list[NDArray[np.int16]], joints: list[Joint]
) -> None:
    dissolve, mixed = joints[2], TRANSITIONS[2].mixed
    for number, at in enumerate(range(dissolve.first - 1, dissolve.last + 1)):
        left = 1 - number / (mixed + 1)
        blend = left * takes_shown[2][number - mixed - 1] + (1 - left) * takes_shown[3][number]
        assert difference(shown[at], blend) < 4
    assert difference(shown[dissolve.last + 1], takes_shown[3][mixed + 1]) < 3


def test_the_default_detector_finds_every_hard_cut(joined_film: Path, joints: list[Joint]) -> None:
    (cuts,) = truth.cuts_in(joined_film, [detectors.DEFAULT])
    assert truth.score(joints, cuts).recall("hard") == 1


HARD, FADE = Joint("a", "hard", 50, 50), Joint("b", "fade", 100, 120)


@pytest.mark.parametrize(
    ("cuts", "hard", "fade", "false"),
    [
        ([50, 110], 1, 1, 0),
        ([49, 98], 1, 1, 0),
        ([51, 122], 1, 1, 0),
        ([48, 97], 0, 0, 2),
        ([52, 123], 0, 0, 2),
        ([49, 50, 51], 1, 0, 2),
        ([100, 120], 0, 1, 1),
        ([], 0, 0, 0),
    ],
)
def test_each_joint_is_hit_once_and_only_near_its_frames(
    cuts: list[int], hard: int, fade: int, false: int
) -> None:
    result = truth.score([FADE, HARD], cuts)
    assert (result.hits["hard"], result.hits["fade"], result.false) == (hard, fade, false)


def test_figures_are_of_all_kinds_or_of_one() -> None:
    result = truth.score([HARD, FADE], [50, 70, 80]) + truth.score([HARD], [50])
    assert result.recall(*truth.KINDS) == pytest.approx(2 / 3)
    assert result.precision(*truth.KINDS) == pytest.approx(2 / 4)
    assert result.f1(*truth.KINDS) == pytest.approx(4 / 7)
    assert result.f1("hard") == pytest.approx(2 / 3)
    assert Score().f1("hard") == 0


def test_a_plan_repeats_and_uses_each_take_once_with_no_place_twice_in_a_row() -> None:
    takes = {take.key: Path(take.key) for take in truth.TAKES}
    lengths = dict.fromkeys(takes, 120)
    place = {take.key: take.place for take in truth.TAKES}
    for index in range(truth.VIDEOS):
        planned, transitions = truth.plan(index, takes, lengths)
        assert (planned, transitions) == truth.plan(index, takes, lengths)
        names = [piece.path.name for piece in planned]
        assert sorted(names) == sorted(takes)
        assert all(place[a] != place[b] for a, b in itertools.pairwise(names))
        assert all(
            2 * transition.mixed <= 4 * piece.num_frames // 5
            for transition, piece in zip(transitions, planned, strict=False)
        )
