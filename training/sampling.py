"""From words, a picture or a clip to a video: 5 keyframes, then 17, 65 and further frames between
them.

Known frames are put back at every step at that step's noise, and at the end as they were: bit-equal
in latents, and, because pictures are decoded one by one, in pixels. Each window's noise comes from
(seed, level, window) on the CPU, so it depends on neither the device nor the windows beside it. A
window is at most what the model was trained on and one is in the model at a time: memory does not
grow with the video, but for the video itself.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from pipeline.media.encoders import Pixels
from training import diffusion, media, writing
from training.checkpoint import load_model
from training.codec import Codec
from training.errors import UsageError
from training.frames import Window, frames_between, interpolated, known_frames, window_plan
from training.presets import Objective, Preset
from training.run import Run
from training.shards import Index, check_identity, open_index
from training.stream import Stream, draw

Scheduler = Literal["ddim", "dpm"]
SCHEDULERS: tuple[Scheduler, ...] = ("ddim", "dpm")
Progress = Callable[[str, int, int], object]  # what is made, model calls done, and of how many
MAX_START_FRAMES = 17  # of a clip that a video continues: two keyframes say which way things move


def no_progress(what: str, done: int, total: int) -> None:
    """A progress that nobody sees."""


@dataclass(frozen=True)
class Settings:
    """How to sample: `steps` and `guidance` of None are the preset's."""

    scheduler: Scheduler = "ddim"
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise UsageError(
                f"no sampler is called {self.scheduler!r}; there are {', '.join(SCHEDULERS)}"
            )
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise UsageError(
                f"{self.steps} steps: there are 1000 levels of noise, take 1 to 1000 steps"
            )


@dataclass(frozen=True, eq=False)
class Film:
    """A video, and what it was made with. `latents` `f c h w` scaled, `frames` `f h w c` uint8;
    `known` says which frames are those of the start, not made by a model.
    """

    latents: Tensor
    frames: Pixels
    fps: Fraction
    known: tuple[bool, ...]
    facts: dict[str, Any]


@torch.no_grad()
def sample_window(
    model: Any,
    objective: Objective,
    latents: Tensor,
    known: Tensor,
    text: Tensor,
    null_text: Tensor,
    fps: Tensor,
    *,
    scheduler: Scheduler = "ddim",
    steps: int = 30,
    guidance: float = 1.0,
    seed: int = 0,
    hint_noise: float = 0.0,
    bf16: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Make the unknown frames of windows: scaled latents `b f c h w`, of which known frames come
    back bit-equal.

    Of `latents` `b f c h w` only known frames are read; `known` is `f` or `b f` bool, `text` `b n
    d`, `null_text` `n d`, `fps` `b`. `guidance` 1 asks the model once a step, anything else twice
    (Ho and Salimans 2022). Two windows of a batch have noise of their own, by (seed, place in the
    batch). `hint_noise` is added to what the model sees of known frames, and told to it.
    """
    device = next(model.parameters()).device
    if known.ndim == 1:
        known = repeat(known, "f -> b f", b=len(latents))
    known = known.to(device)
    is_known = rearrange(known, "b f -> b f 1 1 1")
    exact = latents.to(device, torch.float32)
    given, level = exact, None
    if hint_noise:
        level = torch.full((len(latents),), hint_noise, device=device)
        added = starting_noise(latents.shape, draw("hint noise", seed)).to(device)
        given = diffusion.with_noise(exact, known, level, added)
    hint = diffusion.hints(given, known, objective.hint)
    clean = diffusion.to_target(given, hint, objective)
    noise = starting_noise(latents.shape, seed).to(device)
    fps = fps.to(device)
    texts = [text.to(device)]
    if guidance != 1:
        texts.append(repeat(null_text.to(device), "n d -> b n d", b=len(latents)))
    levels = diffusion.scheduler(objective)
    schedule = _spaced(objective, scheduler, steps)
    noisy = noise
    for done, t in enumerate(schedule.timesteps):
        batch_t = t.to(device).expand(len(latents))
        noisy = torch.where(is_known, levels.add_noise(clean, noise, batch_t), noisy)
        inputs = diffusion.model_input(
            noisy, known, hint, objective, model.config.in_channels, level
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and device.type == "cuda"):
            outputs = [
                model(inputs.to(model.dtype), batch_t, words.to(model.dtype), fps).float()
                for words in texts
            ]
        output = outputs[0]
        if guidance != 1:  # Ho and Salimans 2022, equation 6, w = guidance - 1
            conditional, unconditional = outputs
            output = unconditional + guidance * (conditional - unconditional)
        noisy = schedule.step(output, t, noisy, return_dict=False)[0]
        if progress is not None:
            progress(done + 1, steps)
    noisy = noisy * diffusion.gates(given, known, objective.gate)
    sampled = diffusion.from_target(noisy, hint, objective)
    return torch.where(is_known, exact, sampled).to(latents.device, latents.dtype)


def starting_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise of the given shape `b ...`, each of a batch from (seed, its place), drawn on the
    CPU.
    """
    generators = [
        torch.Generator().manual_seed(draw("noise", seed, index)) for index in range(shape[0])
    ]
    return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])


def _spaced(objective: Objective, kind: Scheduler, steps: int) -> Any:
    schedule = diffusion.scheduler(objective, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # DPM-Solver's way from torch to numpy
        schedule.set_timesteps(steps)
    # diffusers rounds 1000 / 61 so that a step of no noise is left over
    if len(schedule.timesteps) != steps:
        raise UsageError(
            f"{steps} steps cannot be spread over 1000 levels of noise; take {steps - 1}"
        )
    return schedule


@dataclass(frozen=True, eq=False)
class Script:
    """How one model is sampled. `text` and `null_text` are embeddings, `n d`; `clip_fps` is the
    dataset's.
    """

    preset: Preset
    text: Tensor
    null_text: Tensor
    clip_fps: Fraction
    settings: Settings
    progress: Progress = no_progress

    @property
    def steps(self) -> int:
        return self.settings.steps or self.preset.sampler_steps

    @property
    def guidance(self) -> float:
        return self.preset.guidance if self.settings.guidance is None else self.settings.guidance

    def window(
        self,
        model: Any,
        latents: Tensor,
        known: Tensor,
        stride: Fraction,
        number: int,
        num_windows: int,
    ) -> Tensor:
        """Window `number` of `num_windows` at a stride: `f c h w` to the same."""
        name = _name(stride)

        def advance(done: int, steps: int) -> None:
            self.progress(name, number * steps + done, num_windows * steps)

        sampled = sample_window(
            model,
            self.preset.objective,
            latents[None],
            known,
            self.text[None],
            self.null_text,
            torch.tensor([float(self.clip_fps / stride)]),
            scheduler=self.settings.scheduler,
            steps=self.steps,
            guidance=self.guidance,
            seed=draw(self.settings.seed, "stride", stride, "window", number),
            bf16=self.preset.precision == "bf16",
            progress=advance,
        )
        return sampled[0]


def _name(stride: Fraction) -> str:
    if stride > 1:
        return f"every {stride.numerator} frames"
    return "every frame" if stride == 1 else f"{1 / stride} a frame"


def keyframes(
    model: Any, script: Script, frame_shape: tuple[int, int, int], start: Tensor | None = None
) -> Tensor:
    """The first frames of all, `f c h w` scaled, as many and as far apart as in the preset's
    window.

    `start` `f c h w` are the first of them, which are kept, if the video has a start.
    """
    window = script.preset.windows[0]
    latents = torch.zeros(window.num_frames, *frame_shape)
    known = torch.zeros(window.num_frames, dtype=torch.bool)
    if start is not None:
        latents[: len(start)] = start
        known[: len(start)] = True
    if known.all():
        return latents
    return script.window(model, latents, known, Fraction(window.stride), 0, 1)


def interpolate(
    model: Any, script: Script, latents: Tensor, stride: Fraction, start: Tensor | None = None
) -> Tensor:
    """Keyframes `n c h w` to `(n - 1) * 4 + 1` frames, `stride` (of the result, in frames of a
    clip) apart.

    `start` `f c h w` are a clip's own first frames, which are kept where one falls on a frame of
    the result. Windows hold at most as many keyframes as the model was trained on at that stride,
    one window at a time, and share a keyframe.
    """
    every = script.preset.every
    filled = latents.new_zeros(interpolated(len(latents), every), *latents.shape[1:])
    filled[::every] = latents
    known = torch.zeros(len(filled), dtype=torch.bool)
    known[::every] = True
    if start is not None:
        for index, at in _on_frames(len(filled), stride, len(start)):
            filled[index] = start[at]
            known[index] = True
    plan = window_plan(len(latents), max_keyframes(script.preset, stride))
    for number, keys in enumerate(plan):
        between = frames_between(keys, every)
        part = slice(between.start, between.stop)
        if not known[part].all():
            filled[part] = script.window(
                model, filled[part], known[part], stride, number, len(plan)
            )
    return filled


def _on_frames(num_frames: int, stride: Fraction, length: int) -> Iterator[tuple[int, int]]:
    """Frames of a video that fall on one of a clip's first `length` frames: both indices."""
    for index in range(num_frames):
        at = index * stride
        if at.denominator == 1 and at < length:
            yield index, int(at)


def max_keyframes(preset: Preset, stride: Fraction) -> int:
    """Known frames in the window the model was trained on at the stride nearest to this one."""
    window = min(preset.windows, key=lambda window: abs(window.stride - stride))
    return sum(known_frames("every", window.num_frames, every=preset.every))


def lengths(keyframe: Preset, interp: Preset, count: int = 5) -> list[int]:
    """How many frames a video can have: 5, 17, 65, ..."""
    numbers = [keyframe.windows[0].num_frames]
    while len(numbers) < count:
        numbers.append(interpolated(numbers[-1], interp.every))
    return numbers


def check(keyframe: Run, interp: Run, num_frames: int, out: Path | None = None) -> None:
    """Raise UsageError, before any work, if these runs cannot make such a video together."""
    makes_keyframes = keyframe.preset.is_video and keyframe.preset.tasks[0][0] != "every"
    if not makes_keyframes or interp.preset.tasks[0][0] != "every":
        raise UsageError(
            f"{keyframe.folder} is a run of {keyframe.preset.name} and {interp.folder} of "
            f"{interp.preset.name}: "
            "--keyframe wants a keyframe run, --interp an interpolation run"
        )
    pairs = {
        "fps": (keyframe.dataset["fps"], interp.dataset["fps"]),
        "size": (keyframe.dataset["size"], interp.dataset["size"]),
    }
    a, b = keyframe.dataset["identity"], interp.dataset["identity"]
    pairs |= {field: (a.get(field), b.get(field)) for field in sorted({*a, *b})}
    differences = [
        f"  {field}: {left} in {keyframe.folder}, {right} in {interp.folder}"
        for field, (left, right) in pairs.items()
        if left != right
    ]
    if differences:
        lines = "\n".join(differences)
        raise UsageError(
            f"the two runs were trained on shards of different kinds:\n{lines}\nTrain both on the "
            "same shards."
        )
    possible = lengths(keyframe.preset, interp.preset)
    while possible[-1] < num_frames:
        possible.append(interpolated(possible[-1], interp.preset.every))
    if num_frames not in possible:
        raise UsageError(
            f"no video of {num_frames} frames: the number can be {', '.join(map(str, possible))}, "
            "and so on"
        )
    if out is not None and out.suffix != ".mp4":
        raise UsageError(
            f"--out {out}: give a name that ends in .mp4; the GIF, the contact sheet and the facts "
            "get the same name"
        )


def generate(
    keyframe: Run,
    interp: Run,
    prompt: str,
    codec: Codec,
    *,
    num_frames: int = 65,
    start: str | None = None,
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> Film:
    """A video of `num_frames` frames from a prompt, and from a picture, the end of a clip or of a
    sample of shards if there is a `start`.

    The models are on the device one after the other. Raises what `check`, `Codec.check`,
    `load_model` and `media.read_start` raise, all before the first model call.
    """
    check(keyframe, interp, num_frames)
    codec.check()
    settings = settings or Settings()
    clip_fps = Fraction(keyframe.dataset["fps"])
    stride = Fraction(keyframe.preset.windows[0].stride)
    pictures, start_latents, start_keyframes = read_start(start, keyframe, codec)
    model = load_model(keyframe, device)
    scripts = [
        Script(run.preset, codec.embed(prompt), codec.embed(""), clip_fps, settings, progress)
        for run in (keyframe, interp)
    ]
    frame_shape = tuple(keyframe.dataset["identity"]["latents.shape"])
    latents = keyframes(model, scripts[0], frame_shape, start_keyframes)
    if len(latents) < num_frames:
        del model
        model = load_model(interp, device)
    while len(latents) < num_frames:
        stride /= interp.preset.every
        latents = interpolate(model, scripts[1], latents, stride, start_latents)
    del model
    frames = decode(codec, latents, progress)
    known = [False] * len(latents)
    if pictures is not None:
        for index, at in _on_frames(len(frames), stride, len(pictures)):
            frames[index] = pictures[at]
            known[index] = True
    facts = facts_of(keyframe, interp, prompt, start, scripts, num_frames, clip_fps / stride)
    return Film(latents, frames, clip_fps / stride, tuple(known), facts)


def read_start(
    start: str | None, keyframe: Run, codec: Codec
) -> tuple[Pixels | None, Tensor | None, Tensor | None]:
    """What a video begins with: pictures `f h w c`, their scaled latents `f c h w`, and those of
    them that are keyframes; None three times without a start.

    `start` is a picture, a clip, or SHARDS/KEY, a sample of shards, whose latents are taken as they
    are. Raises UsageError for what is none of them or does not fit the run, and ShardError for
    shards of other encoders.
    """
    if start is None:
        return None, None, None
    stride = keyframe.preset.windows[0].stride
    shards, _, key = start.rpartition("/")
    if shards and not Path(start).exists() and _are_shards(shards):
        latents = _latents_of(open_index(shards), key, keyframe)
        latents = latents[(len(latents) - 1) % stride :]
        return decode(codec, latents), latents, latents[::stride]
    size, fps = int(keyframe.dataset["size"]), Fraction(keyframe.dataset["fps"])
    pictures = media.read_start(Path(start), size, fps, MAX_START_FRAMES)
    # as many of the last ones as make the first and the last of them keyframes
    pictures = pictures[(len(pictures) - 1) % stride :]
    latents = codec.encode(pictures)
    return pictures, latents, latents[::stride]


def _are_shards(place: str) -> bool:
    return "://" in place or (Path(place) / "index.json").is_file()


def _latents_of(index: Index, key: str, keyframe: Run) -> Tensor:
    """The last frames of a sample, `f c h w` scaled."""
    check_identity(index, keyframe.dataset["identity"])
    if index.fps != Fraction(keyframe.dataset["fps"]):
        raise UsageError(
            f"{index.url}: clips of {index.fps} fps, {keyframe.folder} was trained on "
            f"{keyframe.dataset['fps']}"
        )
    lengths = {
        entry.key: (entry.num_frames, split)
        for split, entries in index.entries.items()
        for entry in entries
    }
    if key not in lengths:
        near = difflib.get_close_matches(key, lengths, 3) or sorted(lengths)[:3]
        raise UsageError(f"{index.url}: no sample {key!r}; there are {', '.join(near)}, ...")
    num_frames, split = lengths[key]
    window = Window(min(num_frames, MAX_START_FRAMES))
    start = num_frames - window.num_frames
    return Stream(index, split, [window]).gather([(key, start)], window).latents[0]


def decode(codec: Codec, latents: Tensor, progress: Progress = no_progress) -> Pixels:
    """Scaled latents `f c h w` to `f h w c` uint8; `progress` is called after each frame."""
    pictures = []
    for index, frame in enumerate(latents):
        pictures.append(codec.decode(frame[None])[0])
        progress("pictures", index + 1, len(latents))
    return np.stack(pictures)


def facts_of(
    keyframe: Run,
    interp: Run,
    prompt: str,
    start: str | None,
    scripts: list[Script],
    num_frames: int,
    fps: Fraction,
) -> dict[str, Any]:
    """What another person needs to make the same video."""
    runs = {
        kind: {
            "run": run.folder.name,
            "preset": run.preset.name,
            "root_digest": run.dataset["root_digest"],
            "steps": script.steps,
            "guidance": script.guidance,
        }
        for kind, run, script in zip(
            ("keyframe", "interp"), (keyframe, interp), scripts, strict=True
        )
    }
    return {
        "prompt": prompt,
        "start": None if start is None else Path(start).name,
        "num_frames": num_frames,
        "fps": f"{fps.numerator}/{fps.denominator}",
        "dataset": keyframe.dataset["name"],
        "seed": scripts[0].settings.seed,
        "scheduler": scripts[0].settings.scheduler,
        **runs,
    }


def rate(film: Film, keyframe: Run) -> str:
    """How fast a video plays, in one line, and, if that is not the clips' own rate, what gives
    it.
    """
    number, clip_fps = len(film.frames), Fraction(keyframe.dataset["fps"])
    line = f"{number} frames at {float(film.fps):g} a second, {float(number / film.fps):.1f} s"
    if film.fps == clip_fps:
        return line
    same_rate = (number - 1) * clip_fps / film.fps + 1
    return f"{line}: the rate they were made for; {same_rate} frames play at the clips' {clip_fps}"


def save(film: Film, out: Path) -> list[Path]:
    """Write OUT.mp4, and beside it the GIF, the contact sheet (.png) and what it was made with
    (.json). Returns their paths.
    """
    video, gif, sheet, facts = (
        out.with_suffix(suffix) for suffix in (".mp4", ".gif", ".png", ".json")
    )
    media.write_mp4(video, film.frames, film.fps)
    media.write_gif(gif, film.frames, film.fps)
    caption = (
        f"{film.facts['prompt'] or 'no prompt'}   {len(film.frames)} frames at "
        f"{float(film.fps):g} fps, seed {film.facts['seed']}"
    )
    media.write_image(sheet, media.contact_sheet(film.frames, film.known, caption))
    writing.write_json(facts, film.facts)
    return [video, gif, sheet, facts]
