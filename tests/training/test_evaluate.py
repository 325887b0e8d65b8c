"""evaluate: its measures have the properties they should, and its table compares what it says, on
real small clips.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipeline.media.encoders import MAX_PSNR_DB, psnr_db
from tests.making import footage, metric_weights
from tests.making.frames import sliding
from tests.making.models import OBJECTIVES, SHAPE, encoder_identity, small_model
from tests.making.shards import change_index, new_shards, npy
from training import evaluate, keyframe_scores, media, presets, quality
from training.codec import Codec
from training.errors import ShardError, UsageError
from training.evaluate import ALIKE, LATENT_BLEND, MODEL, ONE_STEP, TRUTH, Evaluation
from training.feature_metrics import FID, FVD, LPIPS, WEIGHTS, Networks, load_networks
from training.frames import Window, known_frames
from training.keyframe_scores import REPEATED, START, WORDS
from training.rivals import FLOW, MINTERPOLATE, NEAREST, PIXEL_BLEND, RIFE
from training.run import Run
from training.scores import Column, Spread
from training.shards import Index, open_index
from training.stream import Stream

KNOWN = known_frames("every", 9)
SHORT = (Window(9, 2), Window(9, 1))


def test_the_spread_is_over_films_and_a_film_s_number_is_the_mean_of_its_windows() -> None:
    spread = Spread((1.0, None, 3.0, 8.0), ("a", "a", "b", "b"))
    assert spread.by_film == {"a": 1, "b": 5.5}
    assert (spread.mean, spread.std) == (3.25, pytest.approx(4.5 / 2**0.5))
    assert Spread((None,), ("a",)).mean is None


def test_one_film_has_no_spread_however_many_windows_it_has() -> None:
    spread = Spread((4.0, 6.0), ("a", "a"))
    assert (spread.mean, spread.std) == (5, None)
    assert Column("psnr_db", "PSNR", 2, spread=1).cell(spread) == "5.00"
    of_two = Spread((4.0, 6.0), ("a", "b"))
    assert Column("psnr_db", "PSNR", 2, spread=1).cell(of_two) == "5.00 ±1.4"


def test_known_frames_do_not_count_for_likeness() -> None:
    frames = sliding(9)
    other = frames.copy()
    other[list(KNOWN)] = 0
    motion = quality.motion(frames, KNOWN)
    measured = evaluate._metrics(other, frames, motion, KNOWN, Fraction(10))
    assert measured["psnr_db"] == measured["psnr_moving_db"] == MAX_PSNR_DB


# On shards


def key_json(key: str) -> bytes:
    """What a sample says of the video it is of."""
    source = {"key": f"film-{key}", "sha256": sha256_of(key)}
    return json.dumps({"key": key, "source": source}).encode()


def sha256_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Codec]:
    """Two held-out films of 64 x 64, test footage of 30 frames and one whose latents move along a
    line; and one to train on.
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
    latents = {
        "moving": codec.encode(moving) / 0.5,
        "straight": straight,
        "taught": codec.encode(moving[::-1].copy())[:20] / 0.5,
    }
    media.write_mp4(folder / "clips" / "moving.mp4", moving, Fraction(10))
    media.write_mp4(folder / "clips" / "straight.mp4", codec.decode(straight * 0.5), Fraction(10))
    text = npy(codec.embed("a test").numpy().astype(np.float16)[None])
    clips = {
        key: {
            "json": key_json(key),
            "latents.npy": npy(numbers.numpy().astype(np.float16)),
            "text.npy": text,
        }
        for key, numbers in latents.items()
    }
    new_shards(folder / "shards", clips, 1, split="validation", shape=SHAPE, text_shape=(77, 32))
    change_index(folder / "shards", lambda plain: plain["shards"][2].update(split="train"))
    return open_index(folder / "shards"), codec


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
def evaluation(run: Run, dataset: tuple[Index, Codec]) -> Evaluation:
    return evaluate.evaluate(run, *dataset, num_windows=2, windows=SHORT)


def test_known_frames_are_off_by_nothing_and_every_method_has_a_row(
    evaluation: Evaluation,
) -> None:
    assert [str(report.window) for report in evaluation.reports] == ["9@2", "9@1"]
    assert [report.fps for report in evaluation.reports] == [5, 10]
    assert [note for note in evaluation.notes if not note.startswith("RIFE")] == []
    for report in evaluation.reports:
        assert report.facts["known_error"] == {"latents": 0, "levels": 0}
        methods = [score.method for score in report.scores if score.method != RIFE]
        assert methods == [
            TRUTH,
            MODEL,
            ONE_STEP,
            LATENT_BLEND,
            NEAREST,
            PIXEL_BLEND,
            FLOW,
            MINTERPOLATE,
        ]
        assert [place.film for place in report.places] == ["film-moving", "film-straight"]


def test_every_measure_has_a_number_for_every_method_but_the_truth_beside_itself(
    evaluation: Evaluation,
) -> None:
    for report in evaluation.reports:
        for score in report.scores:
            missing = {name for name, spread in score.metrics.items() if spread.mean is None}
            assert missing <= (set(ALIKE) if score.method == TRUTH else {"seam"}), score.method
        assert report.spread(TRUTH, "flow_ratio").mean == 1
        assert report.spread(TRUTH, "flow_error").mean == 0
        assert 0 < report.facts["moving_share"] < 1


def test_a_model_that_moves_a_given_frame_is_found_out(
    run: Run, dataset: tuple[Index, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evaluate, "interpolate", lambda model, script, keys, stride: torch.zeros(9, *SHAPE)
    )
    report = evaluate.evaluate(run, *dataset, num_windows=1, windows=SHORT[:1]).reports[0]
    assert report.facts["known_error"]["latents"] > 0.1
    assert report.facts["known_error"]["levels"] > 1
    assert report.spread(MODEL, "flow_ratio").mean == pytest.approx(0, abs=0.01)


def test_where_latents_move_along_a_line_the_latent_blend_is_perfect(
    evaluation: Evaluation,
) -> None:
    for report in evaluation.reports:
        row = [place.key for place in report.places].index("straight")
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
    evaluation: Evaluation, dataset: tuple[Index, Codec]
) -> None:
    index, codec = dataset
    report = evaluation.reports[1]
    row = [place.key for place in report.places].index("moving")
    start = report.places[row].start
    clip = media.read_frames(
        Path(index.url).parent / "clips" / "moving.mp4", range(start, start + 9)
    )
    latents = (
        Stream(index, "validation", SHORT).gather([("moving", start)], Window(9, 1)).latents[0]
    )
    between = ~np.array(KNOWN)
    assert report.spread(TRUTH, "psnr_original_db").values[row] == pytest.approx(
        psnr_db(codec.decode(latents)[between], clip[between])
    )
    assert report.spread(TRUTH, "psnr_db").mean is None


def test_all_is_saved_as_json_and_sheets_and_fits_a_terminal(
    evaluation: Evaluation, tmp_path: Path
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
    assert plain["films"] == {
        "film-moving": sha256_of("moving"),
        "film-straight": sha256_of("straight"),
    }
    assert plain["reports"][0]["num_films"] == 2
    assert plain["reports"][0]["windows"][0]["film"] == "film-moving"
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
    assert any("clips has no " in note for note in result.notes)
    assert result.reports[0].spread(MODEL, "psnr_original_db").mean is None
    assert result.reports[0].spread(MODEL, "psnr_db").mean is not None


def trained_on(run: Run, *keys: str) -> Run:
    """The run, that says it was trained on the videos of these samples."""
    return replace(run, dataset={**run.dataset, "videos": sorted(map(sha256_of, keys))})


Change = Callable[[Run, Index], tuple[Run, Index]]
REFUSED: dict[str, tuple[Change, type[Exception], str]] = {
    "nothing held out": (
        lambda run, index: (run, replace(index, entries={"train": index.entries["train"]})),
        UsageError,
        r"set `validation = 0\.5` in \[shard\] of the recipe",
    ),
    "all of it was trained on": (
        lambda run, index: (trained_on(run, "moving", "straight"), index),
        UsageError,
        r"was trained on every film that is held out here \(film-moving, film-straight\)",
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
    assert any("65@1 is left out" in note for note in result.notes)
    with pytest.raises(UsageError, match="a window spans 65"):
        evaluate.evaluate(run, *dataset, windows=(Window(65, 1),))
    with pytest.raises(UsageError, match=r"take 5, 9, 13, 17"):
        evaluate.evaluate(run, *dataset, windows=(Window(8, 1),))


# What was trained on


def test_a_film_that_was_trained_on_is_not_scored_whatever_the_shards_say(
    run: Run, dataset: tuple[Index, Codec]
) -> None:
    of_other_shards = {**run.dataset, "root_digest": "0" * 64}
    taught = trained_on(replace(run, dataset=of_other_shards), "moving")
    result = evaluate.evaluate(taught, *dataset, num_windows=2, windows=SHORT[1:])
    assert result.reports[0].films == ["film-straight"]
    assert "film-moving is not scored: the run was trained on that video" in result.notes
    assert list(result.facts["films"]) == ["film-straight"]


def test_an_old_run_of_other_shards_gets_a_note_and_one_of_these_shards_none(
    run: Run, dataset: tuple[Index, Codec]
) -> None:
    def notes(of_run: Run) -> str:
        result = evaluate.evaluate(of_run, *dataset, num_windows=1, windows=(Window(5, 1),))
        return " ".join(result.notes)

    old = replace(run, dataset={**run.dataset, "root_digest": "0" * 64})
    assert "does not say which videos it was trained on" in notes(old)
    assert "does not say" not in notes(run)


def test_no_clip_is_needed_for_shards_hold_their_texts(
    run: Run, dataset: tuple[Index, Codec]
) -> None:
    index, codec = dataset
    clip = {**codec.models["clip"], "name": "a-folder-elsewhere", "sha256": "0" * 64}
    models = {**codec.models, "clip": clip}
    without = Codec(models, codec.scaling_factor)
    with pytest.raises(UsageError, match="--clip"):
        without.check()
    result = evaluate.evaluate(run, index, without, num_windows=1, windows=(Window(5, 1),))
    assert result.reports[0].spread(MODEL, "psnr_db").mean is not None


# Keyframes


@pytest.fixture(scope="module")
def keyframe_run(run: Run) -> Run:
    preset = replace(
        presets.find("tiny-keyframe"),
        windows=(Window(3, 8),),
        objective=OBJECTIVES["latents"],
        sampler_steps=2,
        guidance=1.0,
    )
    return replace(run, preset=preset)


def test_keyframes_stand_beside_the_truth_and_a_start_beside_repeating_it(
    keyframe_run: Run, dataset: tuple[Index, Codec], tmp_path: Path
) -> None:
    result = evaluate.evaluate(keyframe_run, *dataset, num_windows=2)
    [report] = result.reports
    assert str(report.window) == "3@8"
    assert [score.method for score in report.scores] == [TRUTH, WORDS, START, REPEATED]
    assert (report.spread(TRUTH, "change").mean or 0) > 1
    assert report.spread(REPEATED, "change").mean == 0
    assert 0 < (report.spread(TRUTH, "travel").mean or 0) <= 1
    assert report.spread(REPEATED, "travel").mean is None
    for method in (TRUTH, WORDS, START):
        assert (report.spread(method, "nearest").mean or 0) > 0
    assert report.spread(REPEATED, "nearest").mean is None
    for method in (START, REPEATED):
        assert report.spread(method, "psnr_db").mean is not None
    assert report.spread(WORDS, "psnr_db").mean is None
    assert report.facts["num_training_frames"] == 20
    assert [path.name for path in evaluate.save(result, tmp_path)] == [
        "evaluation.json",
        "evaluation-3-at-8.png",
    ]


def test_a_model_that_gives_training_frames_back_is_at_no_distance_from_them(
    keyframe_run: Run, dataset: tuple[Index, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, codec = dataset
    stream = Stream(index, "train", [Window(3, 8)])
    memory = stream.gather([("taught", 2)], Window(3, 8)).latents[0]
    monkeypatch.setattr(
        keyframe_scores, "keyframes", lambda model, script, shape, start=None: memory
    )
    monkeypatch.setattr(keyframe_scores, "READ_AT_ONCE", 7)
    [report] = evaluate.evaluate(keyframe_run, index, codec, num_windows=1).reports
    assert report.spread(WORDS, "nearest").mean == pytest.approx(0, abs=1e-6)
    assert (report.spread(TRUTH, "nearest").mean or 0) > 0.01
    assert report.facts["num_training_frames"] == 20


def test_of_very_many_training_frames_evenly_spaced_ones_are_read(
    keyframe_run: Run, dataset: tuple[Index, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyframe_scores, "MAX_TRAINING_FRAMES", 7)
    [report] = evaluate.evaluate(keyframe_run, *dataset, num_windows=1).reports
    assert report.facts["num_training_frames"] == 7


def test_a_model_of_single_pictures_has_no_change_and_no_start(
    keyframe_run: Run, dataset: tuple[Index, Codec]
) -> None:
    preset = replace(keyframe_run.preset, windows=(Window(1, 1),))
    single = replace(keyframe_run, preset=preset)
    [report] = evaluate.evaluate(single, *dataset, num_windows=1).reports
    assert [score.method for score in report.scores] == [TRUTH, WORDS]
    assert report.spread(WORDS, "change").mean is None
    assert (report.spread(WORDS, "nearest").mean or 0) > 0


# With networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networks]:
    """Those whose packages are here, with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    files = {}
    with pytest.MonkeyPatch.context() as patch:
        for metric, package in {LPIPS: "lpips", FID: "torch_fidelity", FVD: "torch"}.items():
            if importlib.util.find_spec(package):
                path = metric_weights.WRITERS[metric](folder)
                files[metric] = metric_weights.publish(patch, metric, path)
        yield load_networks(files)


def test_lpips_is_a_column_and_fid_and_fvd_stand_below_with_their_samples(
    run: Run, dataset: tuple[Index, Codec], networks: Networks, tmp_path: Path
) -> None:
    windows = (Window(13, 1),)
    # Inception would take half a minute here; the test of keyframes has it
    colours = replace(
        networks,
        inception=lambda frames: (frames.float().mean((2, 3)),),
        weights={**networks.weights, FID: WEIGHTS[FID][0]},
    )
    result = evaluate.evaluate(run, *dataset, num_windows=2, windows=windows, networks=colours)
    [report] = result.reports
    methods = {score.method for score in report.scores}
    plain = json.loads(evaluate.save(result, tmp_path)[0].read_text())
    assert set(plain["weights"]) == set(colours.weights)
    for metric, num_samples, samples in ((FID, 18, "frames"), (FVD, 2, "windows")):
        facts = plain["reports"][0][metric]
        assert (facts["num_samples"], facts["enough"]) == (num_samples, False)
        assert set(facts["distances"]) == methods - {TRUTH}
        assert all(distance > 0 for distance in facts["distances"].values())
        [line] = [line for line in report.lines if metric.upper() in line]
        assert f"over {num_samples} {samples}, too few to mean anything" in line
    if LPIPS in networks.weights:
        for method in methods - {TRUTH}:
            assert (report.spread(method, LPIPS).mean or 0) > 0
        assert report.spread(TRUTH, LPIPS).mean is None
        console = Console(width=80, record=True, file=(tmp_path / "shown").open("w"))
        console.print(evaluate.table(report))
        shown = console.export_text()
        console.file.close()
        assert "LPIPS" in shown
        assert "…" not in shown

    without = evaluate.evaluate(run, *dataset, num_windows=2, windows=windows)
    assert "weights" not in without.plain()
    assert not {FID, FVD} & set(without.reports[0].plain())
    assert LPIPS not in without.reports[0].scores[0].metrics
    for score in without.reports[0].scores:  # what is measured anyway is the same
        for name, spread in score.metrics.items():
            assert report.spread(score.method, name) == spread


def test_keyframes_have_fid_and_what_is_drawn_from_a_start_has_lpips(
    keyframe_run: Run, dataset: tuple[Index, Codec], networks: Networks
) -> None:
    [report] = evaluate.evaluate(keyframe_run, *dataset, num_windows=2, networks=networks).reports
    if FID in networks.weights:
        assert report.facts[FID]["num_samples"] == 4
        assert set(report.facts[FID]["distances"]) == {WORDS, START, REPEATED}
    if LPIPS in networks.weights:
        assert (report.spread(START, LPIPS).mean or 0) > 0
        assert report.spread(WORDS, LPIPS).mean is None
    assert FVD not in report.facts
    assert "3@8: FVD is left out: the window has 3 frames, it takes 10 or more" in report.lines


def test_a_window_alone_has_no_fvd_and_says_so(run: Run, dataset: tuple[Index, Codec]) -> None:
    def i3d(videos: torch.Tensor, **options: bool) -> torch.Tensor:
        return torch.zeros(1, 400)

    alone = Networks(i3d=i3d, weights={FVD: WEIGHTS[FVD][0]})
    windows = (Window(13, 1),)
    [report] = evaluate.evaluate(
        run, *dataset, num_windows=1, windows=windows, networks=alone
    ).reports
    assert "13@1: FVD is left out: of one of the windows there is no spread" in report.lines
