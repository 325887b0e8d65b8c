"""evaluate: its measures have the properties they should, and its table compares what it says, on
real small clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipeline.media.encoders import MAX_PSNR_DB, psnr_db
from tests.making import footage
from tests.making.models import OBJECTIVES, SHAPE, encoder_identity, small_model
from tests.making.shards import new_shards, npy
from training import evaluate, media, presets, quality
from training.checkpoint import Run
from training.codec import Codec
from training.errors import ShardError, UsageError
from training.evaluate import LATENT_BLEND, MODEL, NEAREST, ONE_STEP, PIXEL_BLEND, TRUTH
from training.frames import Window, known_frames
from training.shards import Index

KNOWN = known_frames("every", 9)
SHORT = (Window(9, 2), Window(9, 1))


@pytest.fixture
def picture() -> Any:
    return (
        np.random.default_rng(0)
        .integers(40, 200, (1, 16, 16, 3), dtype=np.uint8)
        .repeat(2, 1)
        .repeat(2, 2)
    )


def ramp(num_frames: int, step: int = 8) -> Any:
    """Every pixel brightens by `step` from frame to frame."""
    base = np.random.default_rng(1).integers(0, 100, (1, 24, 24, 3))
    return (base + step * np.arange(num_frames)[:, None, None, None]).astype(np.uint8)


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    black = np.zeros((2, 8, 8, 3), np.uint8)
    assert psnr_db(black, black + 255) == 0
    assert psnr_db(black, black + 1) == pytest.approx(48.1308, abs=1e-3)
    assert psnr_db(black, black) == MAX_PSNR_DB


def test_ssim_is_one_for_equal_pictures_symmetric_and_falls_with_noise(picture: Any) -> None:
    noise = np.random.default_rng(1).normal(0, 1, picture.shape)
    noisy = [(picture + sigma * noise).clip(0, 255).astype(np.uint8) for sigma in (5, 15, 45)]
    scores = [quality.ssim(picture, each) for each in noisy]
    assert quality.ssim(picture, picture) == pytest.approx(1, abs=1e-12)
    assert 1 > scores[0] > scores[1] > scores[2] > -1
    assert quality.ssim(noisy[1], picture) == pytest.approx(scores[1], abs=1e-12)
    assert quality.ssim(picture, 255 - picture) < 0


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    dark, bright = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert quality.ssim(dark, bright) == pytest.approx(
        (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-9
    )


def test_ssim_is_its_definition_window_by_window(picture: Any) -> None:
    other = np.roll(picture, 1, axis=2)
    x, y = (
        frames[0, :11, :11].astype(float) @ [0.299, 0.587, 0.114] for frames in (picture, other)
    )
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy, cov = (
        (weights * (x - mx) ** 2).sum(),
        (weights * (y - my) ** 2).sum(),
        (weights * (x - mx) * (y - my)).sum(),
    )
    c1, c2 = 2.55**2, 7.65**2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert quality.ssim(picture[:, :11, :11], other[:, :11, :11]) == pytest.approx(score, abs=1e-9)


def test_on_a_ramp_the_blend_is_perfect_and_the_copy_is_not() -> None:
    frames = ramp(9)
    assert np.array_equal(quality.pixel_blend(frames, KNOWN), frames)
    copied = quality.nearest(frames, KNOWN)
    assert [int((copied[index].astype(int) - frames[index]).mean()) for index in range(9)] == [
        0,
        -8,
        -16,
        8,
        0,
        -8,
        -16,
        8,
        0,
    ]


def test_motion_and_seam_tell_frozen_stuttering_and_even_motion_apart() -> None:
    frames = ramp(9)
    frozen = frames[:1].repeat(9, 0)
    assert quality.change(frames) == pytest.approx(np.full(8, 8.0))
    assert quality.change(frozen).max() == 0
    assert quality.seam(frames, KNOWN) == pytest.approx(1)
    assert quality.seam(frozen, KNOWN) is None
    stuttering = frames.copy()
    for key in (0, 4):
        stuttering[key + 1 : key + 4] = (
            frames[key + 2].astype(int) + np.array([-1, 0, 1])[:, None, None, None]
        )
    assert quality.seam(stuttering, KNOWN) == pytest.approx(15)


def measured(video: Any, truth: Any) -> dict[str, float | None]:
    return evaluate._metrics(video, truth, None, KNOWN, MODEL)


def test_the_motion_ratio_is_one_for_the_truth_and_nought_for_a_frozen_video() -> None:
    frames = ramp(9)
    assert measured(frames, frames)["motion"] == 1
    assert measured(frames[:1].repeat(9, 0), frames)["motion"] == 0
    assert measured(frames, frames[:1].repeat(9, 0))["motion"] is None


def test_known_frames_do_not_count_for_likeness() -> None:
    frames = ramp(9)
    other = frames.copy()
    other[list(KNOWN)] = 0
    assert measured(other, frames)["psnr_db"] == MAX_PSNR_DB


def test_the_spread_is_over_windows_that_have_a_value() -> None:
    spread = evaluate.Spread((1.0, None, 3.0))
    assert (spread.mean, spread.std) == (2, pytest.approx(2**0.5))
    assert evaluate.Spread((None,)).mean is None
    assert evaluate.Spread((4.0,)).std == 0


# On shards


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Codec]:
    """Two held-out clips of 64 x 64: test footage of 30 frames, and one whose latents move along a
    line.
    """
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dataset")
    known = Codec.of_run({"identity": encoder_identity()})
    codec = Codec(known.models, 0.5)
    film = footage.plain(folder / "film.mp4", 3, size="64x64")
    moving = media.read_start(film, 64, Fraction(10), 30)
    (folder / "clips").mkdir()
    ends = codec.encode(moving[[0, 29]]) / 0.5
    weights = torch.linspace(0, 1, 33)[:, None, None, None]  # in steps that float16 has
    straight = torch.lerp(ends[:1].mul(32).round() / 32, ends[1:].mul(32).round() / 32, weights)
    latents = {"moving": codec.encode(moving) / 0.5, "straight": straight}
    media.write_mp4(folder / "clips" / "moving.mp4", moving, Fraction(10))
    media.write_mp4(folder / "clips" / "straight.mp4", codec.decode(straight * 0.5), Fraction(10))
    text = npy(codec.embed("a test").numpy().astype(np.float16))
    clips = {
        key: {
            "json": b"{}",
            "latents.npy": npy(numbers.numpy().astype(np.float16)),
            "text.npy": text,
        }
        for key, numbers in latents.items()
    }
    index = new_shards(
        folder / "shards", clips, split="validation", shape=SHAPE, text_shape=(77, 32)
    )
    return index, codec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: tuple[Index, Codec]) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "i"
    preset = replace(
        presets.find("tiny-interp"), objective=OBJECTIVES["residual"], sampler_steps=2, guidance=1.0
    )
    index = dataset[0]
    about = {
        "name": "made",
        "root_digest": index.root_digest,
        "identity": index.identity(),
        "fps": "10/1",
        "size": 64,
    }
    small_model().save_pretrained(folder / "checkpoints" / "step-000001" / "model")
    return Run(folder, preset, about, "tiny", 0)


@pytest.fixture(scope="module")
def evaluation(run: Run, dataset: tuple[Index, Codec]) -> evaluate.Evaluation:
    return evaluate.evaluate(run, *dataset, num_windows=2, windows=SHORT)


def test_known_frames_are_off_by_nothing_and_every_method_has_a_row(
    evaluation: evaluate.Evaluation,
) -> None:
    assert [str(report.window) for report in evaluation.reports] == ["9@2", "9@1"]
    assert [report.fps for report in evaluation.reports] == [5, 10]
    assert evaluation.notes == ()
    for report in evaluation.reports:
        assert (report.known_error_latents, report.known_error_levels) == (0, 0)
        assert [score.method for score in report.scores] == [
            TRUTH,
            MODEL,
            ONE_STEP,
            NEAREST,
            LATENT_BLEND,
            PIXEL_BLEND,
        ]
        assert len(report.windows) == 2


def test_a_model_that_moves_a_given_frame_is_found_out(
    run: Run, dataset: tuple[Index, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evaluate, "interpolate", lambda model, script, keys, stride: torch.zeros(9, *SHAPE)
    )
    report = evaluate.evaluate(run, *dataset, num_windows=1, windows=SHORT[:1]).reports[0]
    assert report.known_error_latents > 0.1
    assert report.known_error_levels > 1
    assert report.spread(MODEL, "motion").mean == 0


def test_where_latents_move_along_a_line_the_latent_blend_is_perfect(
    evaluation: evaluate.Evaluation,
) -> None:
    for report in evaluation.reports:
        row = [key for key, _ in report.windows].index("straight")
        likeness = {
            method: report.spread(method, "psnr_db").values[row] or 0
            for method in (NEAREST, LATENT_BLEND, MODEL)
        }
        assert likeness[LATENT_BLEND] > 55
        assert max(likeness[NEAREST], likeness[MODEL]) < likeness[LATENT_BLEND] - 3
        made_up = [
            report.spread(method, "psnr_db").values[1 - row] or 99
            for method in (MODEL, ONE_STEP, NEAREST, LATENT_BLEND, PIXEL_BLEND)
        ]
        assert max(made_up) < 45  # where they do not


def test_the_truth_s_row_is_the_vae_s_ceiling(
    evaluation: evaluate.Evaluation, dataset: tuple[Index, Codec]
) -> None:
    index, codec = dataset
    report = evaluation.reports[1]
    row = [key for key, _ in report.windows].index("moving")
    start = report.windows[row][1]
    clip = media.read_frames(
        Path(index.url).parent / "clips" / "moving.mp4", range(start, start + 9)
    )
    latents = (
        evaluate.Stream(index, "validation", SHORT)
        .gather([("moving", start)], Window(9, 1))
        .latents[0]
    )
    between = ~np.array(KNOWN)
    assert report.spread(TRUTH, "psnr_original_db").values[row] == pytest.approx(
        psnr_db(codec.decode(latents)[between], clip[between])
    )
    assert report.spread(TRUTH, "motion").mean == 1
    assert report.spread(TRUTH, "psnr_db").mean is None


def test_all_is_saved_as_json_and_sheets_and_fits_a_terminal(
    evaluation: evaluate.Evaluation, tmp_path: Path
) -> None:
    paths = evaluate.save(evaluation, tmp_path)
    assert [path.name for path in paths] == [
        "evaluation.json",
        "evaluation-9-at-2.png",
        "evaluation-9-at-1.png",
    ]
    plain = json.loads(paths[0].read_text())
    assert plain["reports"][0]["scores"][MODEL]["psnr_db"]["values"] == list(
        evaluation.reports[0].spread(MODEL, "psnr_db").values
    )
    assert (plain["steps"], plain["guidance"], plain["split"]) == (2, 1.0, "validation")
    with Image.open(paths[1]) as sheet:
        assert sheet.width > 9 * 96
    console = Console(width=80, record=True, file=(tmp_path / "shown").open("w"))
    console.print(evaluate.table(evaluation.reports[0]))
    shown = console.export_text()
    console.file.close()
    assert "…" not in shown
    assert sum(line.split()[:1] == ["truth"] for line in shown.splitlines()) == 1
    assert f"{evaluation.reports[0].spread(MODEL, 'psnr_db').mean:.2f} ±" in shown


def test_without_the_clips_their_half_is_left_out_and_said_so(
    run: Run, dataset: tuple[Index, Codec], tmp_path: Path
) -> None:
    index, codec = dataset
    (tmp_path / "shards").symlink_to(index.url)
    alone = replace(index, url=str(tmp_path / "shards"))
    result = evaluate.evaluate(run, alone, codec, num_windows=1, windows=SHORT[:1])
    assert "clips has no " in result.notes[0]
    assert result.reports[0].spread(MODEL, "psnr_original_db").mean is None
    assert result.reports[0].spread(MODEL, "psnr_db").mean is not None


Change = Callable[[Run, Index], tuple[Run, Index]]
REFUSED: dict[str, tuple[Change, type[Exception], str]] = {
    "nothing held out": (
        lambda run, index: (run, replace(index, entries={"train": index.entries["validation"]})),
        UsageError,
        r"set `validation = 0\.1` in \[shard\] of the recipe",
    ),
    "a keyframe run": (
        lambda run, index: (replace(run, preset=presets.find("tiny-keyframe")), index),
        UsageError,
        "give a run of tiny-interp",
    ),
    "other encoders": (
        lambda run, index: (
            replace(
                run,
                dataset={
                    **run.dataset,
                    "identity": {**index.identity(), "latents.scaling_factor": 9},
                },
            ),
            index,
        ),
        ShardError,
        r"latents\.scaling_factor: 0\.5 in the shards, 9 wanted",
    ),
    "no checkpoint": (
        lambda run, index: (replace(run, folder=Path("nowhere")), index),
        UsageError,
        "no checkpoint yet",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_evaluated_says_what_to_do(
    name: str, run: Run, dataset: tuple[Index, Codec]
) -> None:
    change, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        evaluate.evaluate(*change(run, dataset[0]), dataset[1], windows=SHORT)


def test_windows_too_long_are_noted_and_it_is_an_error_only_if_none_is_left(
    run: Run, dataset: tuple[Index, Codec]
) -> None:
    result = evaluate.evaluate(run, *dataset, num_windows=1, windows=(Window(5, 1), Window(65, 1)))
    assert [str(report.window) for report in result.reports] == ["5@1"]
    assert "65@1 is left out" in result.notes[0]
    with pytest.raises(UsageError, match="a window spans 65"):
        evaluate.evaluate(run, *dataset, windows=(Window(65, 1),))
    with pytest.raises(UsageError, match=r"take 5, 9, 13, 17"):
        evaluate.evaluate(run, *dataset, windows=(Window(8, 1),))
