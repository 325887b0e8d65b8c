"""sampling: known frames come back bit for bit, windows meet in a keyframe, and memory does not
grow with the video.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.making.models import OBJECTIVES, SHAPE, encoder_identity, small_model
from tests.making.runs import wave_shards
from training import continuation, presets, sampling
from training.codec import Codec
from training.errors import ShardError, UsageError
from training.frames import Window, known_frames
from training.presets import Objective, Preset
from training.run import Run
from training.sampling import Scheduler, Script, Settings, sample_window
from training.stream import Stream
from training.unet import VideoUNet


class Watched:
    """A model, and the number of frames of every forward pass."""

    def __init__(self, model: VideoUNet) -> None:
        self.model, self.config, self.dtype, self.parameters = (
            model,
            model.config,
            model.dtype,
            model.parameters,
        )
        self.calls: list[tuple[int, int]] = []
        self.fps: list[float] = []

    def __call__(
        self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, fps: torch.Tensor
    ) -> torch.Tensor:
        self.calls.append((noisy.shape[0], noisy.shape[1]))
        self.fps.append(float(fps[0]))
        predicted: torch.Tensor = self.model(noisy, t, text, fps)
        return predicted


@pytest.fixture(scope="module")
def model() -> VideoUNet:
    return small_model()


@pytest.fixture(scope="module")
def words() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 32, generator=generator), torch.randn(5, 32, generator=generator)


@pytest.fixture
def asked(words: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """17 frames of two windows, of which every fourth is known."""
    latents = torch.randn(2, 17, *SHAPE, generator=torch.Generator().manual_seed(2))
    known = torch.tensor(known_frames("every", 17))
    return {
        "latents": latents,
        "known": known,
        "text": words[0].expand(2, -1, -1),
        "null_text": words[1],
        "fps": torch.full((2,), 2.5),
        "steps": 3,
    }


@pytest.mark.parametrize("scheduler", sampling.SCHEDULERS)
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_known_frames_come_back_bit_equal(
    model: VideoUNet, asked: dict[str, Any], objective: Objective, scheduler: Scheduler
) -> None:
    sampled = sample_window(model, objective, **asked, scheduler=scheduler, guidance=2.0)
    known = asked["known"]
    assert torch.equal(sampled[:, known], asked["latents"][:, known])
    assert sampled.isfinite().all()
    assert ((sampled - asked["latents"])[:, ~known].abs() > 0).float().mean() > 0.99


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_unknown_frames_are_never_read(
    model: VideoUNet, asked: dict[str, Any], objective: Objective
) -> None:
    other = asked["latents"].clone()
    other[:, ~asked["known"]] = torch.nan
    assert torch.equal(
        sample_window(model, objective, **asked),
        sample_window(model, objective, **{**asked, "latents": other}),
    )


def test_known_frames_may_differ_within_a_batch(model: VideoUNet, asked: dict[str, Any]) -> None:
    known = torch.stack([asked["known"], torch.tensor(known_frames("ends", 17))])
    sampled = sample_window(model, OBJECTIVES["residual"], **{**asked, "known": known})
    assert torch.equal(sampled[known], asked["latents"][known])
    alone = sample_window(
        model,
        OBJECTIVES["residual"],
        **{**asked, **{key: asked[key][:1] for key in ("latents", "text", "fps")}},
    )
    torch.testing.assert_close(sampled[:1], alone, atol=1e-5, rtol=1e-5)


def test_known_frames_are_shown_at_each_step_s_noise(asked: dict[str, Any]) -> None:
    objective, seen = OBJECTIVES["latents"], []

    class Listening(Watched):
        def __call__(
            self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, fps: torch.Tensor
        ) -> torch.Tensor:
            seen.append((noisy[:, asked["known"], :4], int(t[0])))
            return super().__call__(noisy, t, text, fps)

    sample_window(Listening(small_model()), objective, **asked)
    schedule, noise = (
        sampling.diffusion.scheduler(objective),
        sampling.starting_noise(asked["latents"].shape, 0),
    )
    assert len(seen) == 3
    for shown, t in seen:
        expected = schedule.add_noise(asked["latents"], noise, torch.tensor([t, t]))[
            :, asked["known"]
        ]
        assert torch.equal(shown, expected)


def test_guidance_of_one_asks_once_and_more_asks_twice_and_changes_what_is_made(
    model: VideoUNet, asked: dict[str, Any]
) -> None:
    once, twice = Watched(model), Watched(model)
    plain = sample_window(once, OBJECTIVES["residual"], **asked, guidance=1.0)
    guided = sample_window(twice, OBJECTIVES["residual"], **asked, guidance=3.0)
    assert (len(once.calls), len(twice.calls)) == (3, 6)
    assert set(twice.calls) == {(2, 17)}
    assert not torch.equal(plain, guided)
    same_words = {**asked, "null_text": asked["text"][0]}
    torch.testing.assert_close(
        sample_window(model, OBJECTIVES["residual"], **same_words, guidance=3.0),
        plain,
        atol=1e-4,
        rtol=1e-4,
    )


def test_one_step_of_zero_snr_is_the_model_s_guess_from_nothing_but_the_hint(
    model: VideoUNet, asked: dict[str, Any]
) -> None:
    objective = OBJECTIVES["residual"]
    sampled = sample_window(model, objective, **{**asked, "steps": 1})
    is_known = asked["known"][None, :, None, None, None]
    hint = sampling.diffusion.hints(asked["latents"], asked["known"].expand(2, -1), objective.hint)
    noise = sampling.starting_noise(sampled.shape, 0)
    shown = sampling.diffusion.model_input(noise, asked["known"].expand(2, -1), hint, objective, 9)
    guess = -model(shown, torch.tensor([999, 999]), asked["text"], asked["fps"])
    torch.testing.assert_close(sampled, torch.where(is_known, asked["latents"], hint + 0.2 * guess))


def test_known_frames_with_noise_come_back_without_it_and_the_model_hears_its_level(
    model: VideoUNet, asked: dict[str, Any]
) -> None:
    masks, hints = [], []

    class Listening(Watched):
        def __call__(
            self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, fps: torch.Tensor
        ) -> torch.Tensor:
            masks.append(noisy[:, :, 4])
            hints.append(noisy[:, asked["known"], 5:])
            return super().__call__(noisy, t, text, fps)

    sampled = sample_window(
        Listening(model), OBJECTIVES["latents"], **{**asked, "steps": 1}, hint_noise=0.25
    )
    known = asked["known"]
    assert torch.equal(sampled[:, known], asked["latents"][:, known])
    assert (masks[0][:, known] == 0.25).all()
    assert (masks[0][:, ~known] == 1).all()
    added = hints[0] - asked["latents"][:, known]
    assert 0.2 < added.std() < 0.3


def test_the_same_seed_makes_the_same_and_another_something_else(
    model: VideoUNet, asked: dict[str, Any]
) -> None:
    a, b, c = (
        sample_window(model, OBJECTIVES["latents"], **asked, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_settings_that_cannot_be_are_said_so(model: VideoUNet, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no sampler is called 'euler'; there are ddim, dpm"):
        Settings(scheduler="euler")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="take 1 to 1000"):
        Settings(steps=0)
    with pytest.raises(UsageError, match=r"61 steps cannot be spread .* take 60"):
        sample_window(model, OBJECTIVES["latents"], **{**asked, "steps": 61})


TWO_WINDOWS = (Window(9, 4), Window(17, 1))


@pytest.fixture
def script(words: tuple[torch.Tensor, torch.Tensor]) -> Script:
    preset = replace(
        presets.find("tiny-interp"),
        windows=TWO_WINDOWS,
        objective=OBJECTIVES["residual"],
        sampler_steps=2,
        guidance=1.0,
    )
    return Script(preset, words[0], words[1], Fraction(10), Settings())


def test_a_video_is_interpolated_in_windows_no_larger_than_those_trained_on(
    model: VideoUNet, script: Script
) -> None:
    keys = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(5))
    lengths, largest, fps = [len(keys)], [], []
    for stride in (Fraction(4), Fraction(1), Fraction(1, 4)):
        watched = Watched(model)
        sampled = sampling.interpolate(watched, script, keys, stride)
        assert torch.equal(sampled[::4], keys)
        lengths.append(len(sampled))
        largest.append(max(num_frames for _, num_frames in watched.calls))
        fps.append(set(watched.fps))
        assert {num_windows for num_windows, _ in watched.calls} == {1}
        keys = sampled
    assert lengths == [5, 17, 65, 257]
    assert largest == [9, 17, 17]
    assert fps == [{2.5}, {10.0}, {40.0}]


def test_neighbouring_windows_share_a_keyframe_and_nothing_else(
    model: VideoUNet, script: Script
) -> None:
    keys = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(5))
    sampled = sampling.interpolate(model, script, keys, Fraction(4))
    other = keys.clone()
    other[4] += 1
    again = sampling.interpolate(model, script, other, Fraction(4))
    assert torch.equal(sampled[:9], again[:9])  # the first window: keyframes 0, 1, 2
    assert not torch.equal(sampled[9:16], again[9:16])


def test_frames_a_clip_gives_are_kept_between_keyframes_too(
    model: VideoUNet, script: Script
) -> None:
    generator = torch.Generator().manual_seed(5)
    start, keys = (
        torch.randn(17, *SHAPE, generator=generator),
        torch.randn(3, *SHAPE, generator=generator),
    )
    keys[:2] = start[::16]
    quarter = sampling.interpolate(model, script, keys, Fraction(4), start)
    assert torch.equal(quarter[:5], start[::4])
    watched = Watched(model)
    full = sampling.interpolate(watched, script, quarter, Fraction(1), start)
    assert torch.equal(full[:17], start)
    assert len(watched.calls) == 2  # the window of frames 0 to 16 asks for nothing
    double = sampling.interpolate(model, script, full, Fraction(1, 4), start)
    assert torch.equal(double[:65:4], start)


def test_keyframes_begin_with_those_given(model: VideoUNet, script: Script) -> None:
    preset = replace(presets.find("tiny-keyframe"), sampler_steps=2)
    first = replace(script, preset=preset)
    start = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    watched = Watched(model)
    sampled = sampling.keyframes(watched, first, SHAPE, start)
    assert sampled.shape == (5, *SHAPE)
    assert torch.equal(sampled[:2], start)
    assert set(watched.fps) == {10 / 16}
    assert sampling.keyframes(model, first, SHAPE).isfinite().all()


@pytest.fixture(scope="module")
def coded() -> Codec:
    """The shipped VAE and CLIP."""
    torch.set_num_threads(1)
    return Codec.of_run({"identity": encoder_identity()})


def new_run(folder: Path, preset: Preset, seed: int = 0) -> Run:
    """A run with one checkpoint of random weights, on clips of 64 x 64."""
    dataset = {
        "name": "demo",
        "root_digest": "0" * 64,
        "identity": encoder_identity(),
        "fps": "10/1",
        "size": 64,
    }
    run = Run(folder, preset, dataset, "tiny", seed)
    small_model(seed).save_pretrained(folder / "checkpoints" / "step-000001" / "model")
    (folder / "run.json").write_text(json.dumps(run.plain()))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("runs")
    keyframe = replace(presets.find("tiny-keyframe"), sampler_steps=2, guidance=2.0)
    interp = replace(
        presets.find("tiny-interp"),
        windows=(Window(17, 4), Window(65, 1)),
        sampler_steps=1,
        guidance=1.0,
    )
    return new_run(folder / "k", keyframe, 1), new_run(folder / "i", interp, 2)


Generate = Callable[..., sampling.Film]


@pytest.fixture
def generate(runs: tuple[Run, Run], coded: Codec) -> Generate:
    return lambda prompt="a fish", **options: sampling.generate(*runs, prompt, coded, **options)


def test_words_become_a_video_and_frames_of_a_shorter_one_stay_as_they_were(
    generate: Generate,
) -> None:
    short, long = generate(num_frames=5), generate(num_frames=17)
    assert (short.frames.shape, short.fps) == ((5, 64, 64, 3), Fraction(10, 16))
    assert (long.frames.shape, long.fps) == ((17, 64, 64, 3), Fraction(10, 4))
    assert torch.equal(long.latents[::4], short.latents)
    assert np.array_equal(long.frames[::4], short.frames)
    assert not any(long.known)
    assert not np.array_equal(
        generate(num_frames=5, settings=Settings(seed=1)).frames, short.frames
    )
    assert not np.array_equal(generate("the earth", num_frames=5).frames, short.frames)


def test_a_picture_is_the_first_frame_as_it_is(generate: Generate, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    film = generate(num_frames=17, start=str(tmp_path / "a.png"))
    assert np.array_equal(film.frames[0], picture)
    assert film.known == (True, *[False] * 16)


def test_a_clip_is_gone_on_from(generate: Generate, coded: Codec, tmp_path: Path) -> None:
    frames = (
        np.random.default_rng(0)
        .integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        .repeat(8, 1)
        .repeat(8, 2)
    )
    sampling.media.write_mp4(tmp_path / "a.mp4", frames, Fraction(10))
    read = sampling.media.read_start(tmp_path / "a.mp4", 64, Fraction(10), 17)
    film = generate(num_frames=17, start=str(tmp_path / "a.mp4"))
    assert film.known == (*[True] * 5, *[False] * 12)
    assert np.array_equal(film.frames[:5], read[::4])
    assert torch.equal(film.latents[:5], coded.encode(read)[::4])


def test_the_latents_of_a_sample_are_gone_on_from_as_they_are(
    runs: tuple[Run, Run], coded: Codec, tmp_path: Path
) -> None:
    index = wave_shards(tmp_path / "shards", 2, 20)
    keyframe = replace(
        runs[0], dataset={**runs[0].dataset, "identity": index.identity(), "fps": "10/1"}
    )
    stored = Stream(index, "train", [Window(17)]).gather([("k1", 3)], Window(17)).latents[0]
    pictures, latents, keyframes = sampling.read_start(f"{tmp_path}/shards/k1", keyframe, coded)
    assert latents is not None
    assert keyframes is not None
    assert torch.equal(latents, stored)
    assert torch.equal(keyframes, stored[::16])
    assert np.array_equal(pictures, coded.decode(stored))
    with pytest.raises(UsageError, match=r"no sample 'k7'; there are k0, k1"):
        sampling.read_start(f"{tmp_path}/shards/k7", keyframe, coded)
    with pytest.raises(ShardError, match="not the encoders"):
        sampling.read_start(f"{tmp_path}/shards/k1", runs[0], coded)
    slow = replace(keyframe, dataset={**keyframe.dataset, "fps": "5/1"})
    with pytest.raises(UsageError, match="clips of 10 fps"):
        sampling.read_start(f"{tmp_path}/shards/k1", slow, coded)
    with pytest.raises(UsageError, match="no such file"):
        sampling.read_start(f"{tmp_path}/nothing/k1", keyframe, coded)


def test_a_video_of_few_frames_says_at_what_rate_it_plays(
    generate: Generate, runs: tuple[Run, Run]
) -> None:
    line = sampling.rate(generate(num_frames=17), runs[0])
    assert line.startswith("17 frames at 2.5 a second, 6.8 s: the rate they were made for")
    assert line.endswith("65 frames play at the clips' 10")
    assert sampling.rate(generate(num_frames=65), runs[0]) == "65 frames at 10 a second, 6.5 s"


def test_a_clip_of_random_weights_is_said_to_understand_no_words(coded: Codec) -> None:
    assert not coded.understands_words
    clip = {**coded.models["clip"], "sha256": "f" * 64}
    assert Codec({**coded.models, "clip": clip}, 1.0).understands_words


def test_all_that_is_saved_can_be_opened(generate: Generate, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    film = generate(num_frames=17, progress=lambda *what: calls.append(what))
    paths = sampling.save(film, tmp_path / "videos" / "out.mp4")
    assert [path.name for path in paths] == ["out.mp4", "out.gif", "out.png", "out.json"]
    with av.open(str(paths[0])) as container:
        assert len(list(container.decode(video=0))) == 17
        assert container.streams.video[0].average_rate == Fraction(5, 2)
    with Image.open(paths[1]) as gif, Image.open(paths[2]) as sheet:
        assert (gif.n_frames, sheet.format) == (17, "PNG")
    facts = json.loads(paths[3].read_text())
    assert (facts["prompt"], facts["seed"], facts["num_frames"], facts["fps"]) == (
        "a fish",
        0,
        17,
        "5/2",
    )
    assert (
        facts["keyframe"]["steps"],
        facts["interp"]["guidance"],
        facts["interp"]["root_digest"],
    ) == (2, 1.0, "0" * 64)
    for what, group in itertools.groupby(calls, key=lambda call: call[0]):
        steps = list(group)
        assert [done for _, done, _ in steps] == list(range(1, steps[0][2] + 1)), what
    assert [what for what, _ in itertools.groupby(calls, key=lambda call: call[0])] == [
        "every 16 frames",
        "every 4 frames",
        "pictures",
    ]


def test_a_number_of_frames_that_cannot_be_lists_those_that_can(runs: tuple[Run, Run]) -> None:
    with pytest.raises(
        UsageError, match="no video of 64 frames: the number can be 5, 17, 65, 257, 1025, and so on"
    ):
        sampling.check(*runs, 64)
    sampling.check(*runs, 4097)


def test_runs_in_the_wrong_places_are_told_apart(runs: tuple[Run, Run]) -> None:
    with pytest.raises(UsageError, match="--keyframe wants a keyframe run"):
        sampling.check(runs[1], runs[0], 65)


def test_a_run_of_single_frames_makes_no_keyframes(runs: tuple[Run, Run]) -> None:
    image = replace(runs[0], preset=presets.find("tiny-image"))
    with pytest.raises(UsageError, match=r"is a run of tiny-image.*wants a keyframe run"):
        sampling.check(image, runs[1], 65)


def test_runs_of_different_datasets_are_refused_with_what_differs(runs: tuple[Run, Run]) -> None:
    keyframe, interp = runs
    other = {
        **interp.dataset,
        "size": 128,
        "identity": {**interp.dataset["identity"], "latents.scaling_factor": 0.5},
    }
    with pytest.raises(
        UsageError,
        match=r"(?s)  size: 64 in .*, 128 in .*  latents.scaling_factor: .*Train both on the "
        r"same shards",
    ):
        sampling.check(keyframe, replace(interp, dataset=other), 65)


def test_an_output_must_be_an_mp4(runs: tuple[Run, Run]) -> None:
    with pytest.raises(UsageError, match=r"ends in \.mp4"):
        sampling.check(*runs, 65, Path("out.avi"))


def test_a_run_that_was_never_trained_is_said_so(
    runs: tuple[Run, Run], coded: Codec, tmp_path: Path
) -> None:
    untrained = replace(runs[0], folder=tmp_path)
    shutil.copy(runs[0].folder / "run.json", tmp_path)
    with pytest.raises(UsageError, match="no checkpoint yet"):
        sampling.generate(untrained, runs[1], "a fish", coded)


# Videos that go on


def test_keyframes_go_on_from_the_last_two_which_stay_as_they_were(
    model: VideoUNet, script: Script
) -> None:
    first = replace(script, preset=replace(presets.find("tiny-keyframe"), sampler_steps=2))
    watched = Watched(model)
    chain = continuation.chained_keyframes(watched, first, SHAPE, 10)
    assert len(chain) == 11  # windows of 5 that share 2: 5, 8, 11
    assert torch.equal(chain[:5], sampling.keyframes(model, first, SHAPE))
    assert {frames for _, frames in watched.calls} == {5}
    assert torch.equal(continuation.chained_keyframes(model, first, SHAPE, 8), chain[:8])
    assert len({frame.sum().item() for frame in chain}) == 11


def test_a_long_video_begins_as_the_short_one_and_its_stretches_meet(
    runs: tuple[Run, Run], coded: Codec, generate: Generate, tmp_path: Path
) -> None:
    out = tmp_path / "long.mp4"
    calls: list[tuple[str, int, int]] = []
    paths, drifts = continuation.write(
        *runs, "a fish", coded, out, seconds=9.0, progress=lambda *what: calls.append(what)
    )
    assert [path.name for path in paths] == ["long.mp4", "long.png", "long.json"]
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == Fraction(10)
    assert len(frames) == 90
    short = generate(num_frames=65)
    sampling.media.write_mp4(tmp_path / "short.mp4", short.frames, short.fps)
    with av.open(str(tmp_path / "short.mp4")) as container:
        begin = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # compressed one after the other: the same pictures, nearly the same pixels
    assert np.abs(np.stack(frames[:60]).astype(int) - np.stack(begin[:60])).mean() < 2
    assert [(drift.start_s, drift.end_s) for drift in drifts] == [(0.0, 6.4), (6.4, 9.0)]
    assert all(drift.sharpness > 0 and drift.change > 0 for drift in drifts)
    facts = json.loads(paths[2].read_text())
    assert (facts["num_frames"], facts["fps"], len(facts["drift"])) == (90, "10/1", 2)
    assert [call for call in calls if call[0] == "stretches"] == [
        ("stretches", 1, 2),
        ("stretches", 2, 2),
    ]


def test_stretches_are_made_one_at_a_time(model: VideoUNet, script: Script) -> None:
    """However long a video is, no more than a stretch of it is in memory."""
    keyframes = torch.randn(21, *SHAPE, generator=torch.Generator().manual_seed(0))
    watched = Watched(model)
    parts = continuation.stretches(watched, script, keyframes, Fraction(16), 5)
    first = next(parts)
    calls = len(watched.calls)
    assert len(first) == 65
    assert torch.equal(first[::16], keyframes[:5])
    assert [len(part) for part in parts] == [64] * 4
    assert len(watched.calls) == 5 * calls


def test_a_clip_is_gone_on_from_for_seconds(
    runs: tuple[Run, Run], coded: Codec, tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    out = tmp_path / "on.mp4"
    paths, _ = continuation.write(
        *runs,
        "",
        coded,
        out,
        seconds=1.0,
        start=str(tmp_path / "a.png"),
        settings=Settings(steps=1),
    )
    assert json.loads(paths[2].read_text())["start"] == "a.png"
    with av.open(str(out)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    blurred = np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX), int)
    own = np.asarray(Image.fromarray(first).resize((8, 8), Image.Resampling.BOX), int)
    assert np.abs(blurred - own).mean() < 8


@pytest.mark.parametrize("seconds", [0.0, -1.0, 4000.0, float("nan")])
def test_a_length_that_cannot_be_is_refused(
    runs: tuple[Run, Run], coded: Codec, tmp_path: Path, seconds: float
) -> None:
    with pytest.raises(UsageError, match="wanted is more than 0 and at most 3600"):
        continuation.write(*runs, "", coded, tmp_path / "a.mp4", seconds=seconds)
    assert not list(tmp_path.iterdir())
