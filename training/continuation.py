"""Videos that go on: keyframes after keyframes, then what lies between, stretch by stretch.

A keyframe window begins with the last `OVERLAP` keyframes of the one before it, as latents, so
nothing passes through pixels or an mp4 on the way. All keyframes are made first (one of 64 x 64
takes 64 kB), and then each stretch is filled, decoded frame by frame, measured and written: memory
does not grow with the length. A stretch's noise comes from (seed, stretch), and the first stretch
is the very video that `sampling.generate` makes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import Tensor

from pipeline.media.encoders import Pixels
from training import media, sampling, writing
from training.checkpoint import load_model
from training.codec import Codec
from training.errors import UsageError
from training.run import Run
from training.sampling import Progress, Script, Settings, no_progress
from training.stream import draw

OVERLAP = 2  # keyframes that a window knows: two say which way things move
SHEET_FRAMES = 39  # of the contact sheet
MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class Drift:
    """What a stretch looks like: the mean of red, green and blue (0 to 255), the mean step from
    pixel to pixel, and the mean change from frame to frame, both in levels of grey.
    """

    start_s: float
    end_s: float
    colour: tuple[float, float, float]
    sharpness: float
    change: float


def chained_keyframes(
    model: Any,
    script: Script,
    frame_shape: tuple[int, int, int],
    count: int,
    start: Tensor | None = None,
) -> Tensor:
    """`count` keyframes or a few more, `n c h w` scaled: a window, then windows that begin with the
    last keyframes of the one before. `start` `f c h w` are the first of all, which are kept.
    """
    window = script.preset.windows[0]
    overlap = min(OVERLAP, window.num_frames - 1)
    step = window.num_frames - overlap
    num_windows = 1 + max(0, math.ceil((count - window.num_frames) / step))
    latents = sampling.keyframes(model, script, frame_shape, start)
    known = torch.arange(window.num_frames) < overlap
    for number in range(1, num_windows):
        start_of_window = torch.zeros(window.num_frames, *frame_shape)
        start_of_window[:overlap] = latents[-overlap:]
        stride = Fraction(window.stride)
        sampled = script.window(model, start_of_window, known, stride, number, num_windows)
        latents = torch.cat([latents, sampled[overlap:]])
    return latents


def stretches(
    model: Any,
    script: Script,
    keyframes: Tensor,
    stride: Fraction,
    keyframes_each: int,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """All frames of a video, in stretches of `f c h w` scaled latents; a stretch does not repeat
    the keyframe that it shares with the one before. `stride` is that of the keyframes.
    """
    starts = range(0, len(keyframes) - 1, keyframes_each - 1)
    for number, first in enumerate(starts):
        latents = keyframes[first : first + keyframes_each]
        own = script
        if number:
            seed = draw(script.settings.seed, "stretch", number)
            own = replace(script, settings=replace(script.settings, seed=seed))
        at = stride
        while at > 1:
            at /= script.preset.every
            latents = sampling.interpolate(model, own, latents, at, None if number else start)
        script.progress("stretches", number + 1, len(starts))
        yield latents if number == 0 else latents[1:]


def write(
    keyframe: Run,
    interp: Run,
    prompt: str,
    codec: Codec,
    out: Path,
    *,
    seconds: float,
    start: str | None = None,
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> tuple[list[Path], list[Drift]]:
    """Make a video of so many seconds at the clips' own rate, and write it as OUT.mp4, with a
    contact sheet (.png) and what it was made with (.json). Returns their paths, and how the video
    drifts.

    Raises UsageError if the runs cannot make it, before any work; and what `sampling.generate`
    raises.
    """
    sampling.check(keyframe, interp, keyframe.preset.windows[0].num_frames, out)
    codec.check()
    settings = settings or Settings()
    fps = Fraction(keyframe.dataset["fps"])
    stride = Fraction(keyframe.preset.windows[0].stride)
    num_frames = _num_frames(seconds, fps, stride, interp)
    pictures, start_latents, start_keyframes = sampling.read_start(start, keyframe, codec)
    quiet = [
        Script(run.preset, codec.embed(prompt), codec.embed(""), fps, settings, report)
        for run, report in ((keyframe, progress), (interp, no_progress))
    ]
    model = load_model(keyframe, device)
    frame_shape = tuple(keyframe.dataset["identity"]["latents.shape"])
    count = math.ceil((num_frames - 1) / stride) + 1
    keyframes = chained_keyframes(model, quiet[0], frame_shape, count, start_keyframes)[:count]
    del model
    model = load_model(interp, device)
    filling = replace(quiet[1], progress=_only("stretches", progress))
    each = keyframe.preset.windows[0].num_frames
    latents = stretches(model, filling, keyframes, stride, each, start_latents)
    meter = _Meter(fps, (each - 1) * int(stride), num_frames)
    shown = _frames(latents, codec, pictures, num_frames)
    media.write_mp4(out, meter.watch(shown), fps)
    drifts = meter.drifts()
    sheet, facts = out.with_suffix(".png"), out.with_suffix(".json")
    caption = f"{prompt or 'no prompt'}   {float(num_frames / fps):g} s, seed {settings.seed}"
    known = [False] * len(meter.kept)
    media.write_image(sheet, media.contact_sheet(np.stack(meter.kept), known, caption))
    facts_of_film = sampling.facts_of(keyframe, interp, prompt, start, quiet, num_frames, fps)
    writing.write_json(facts, {**facts_of_film, "drift": [drift.__dict__ for drift in drifts]})
    return [out, sheet, facts], drifts


def _num_frames(seconds: float, fps: Fraction, stride: Fraction, interp: Run) -> int:
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"--seconds {seconds:g}: wanted is more than 0 and at most 3600")
    at = stride
    while at > 1:
        at /= interp.preset.every
    if at != 1:
        raise UsageError(
            f"keyframes {stride} frames apart cannot be filled to every frame by {interp.folder}, "
            f"which makes {interp.preset.every} of one"
        )
    return max(2, round(seconds * fps))


def _only(what: str, progress: Progress) -> Progress:
    """A progress that hears of one thing."""

    def advance(name: str, done: int, total: int) -> None:
        if name == what:
            progress(name, done, total)

    return advance


def _frames(
    latents: Iterator[Tensor], codec: Codec, pictures: Pixels | None, num_frames: int
) -> Iterator[NDArray[np.uint8]]:
    """A video's frames, `h w c`, one by one; a clip's own stand where they were given."""
    frames = (frame for stretch in latents for frame in stretch)
    for index, frame in enumerate(itertools.islice(frames, num_frames)):
        if pictures is not None and index < len(pictures):
            yield pictures[index]
        else:
            yield codec.decode(frame[None])[0]


class _Meter:
    """What is measured of frames as they pass, and a few of them for the contact sheet."""

    def __init__(self, fps: Fraction, num_each: int, num_frames: int) -> None:
        self.fps, self.num_each = fps, num_each
        count = min(SHEET_FRAMES, num_frames)
        self.picks = set(np.linspace(0, num_frames - 1, count).round().astype(int).tolist())
        self.kept: list[NDArray[np.uint8]] = []
        self._measured: list[tuple[tuple[float, ...], float, float | None]] = []

    def watch(self, frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        before = None
        for index, frame in enumerate(frames):
            grey = frame.astype(np.float32).mean(2)
            steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
            change = None if before is None else float(np.abs(grey - before).mean())
            colour = tuple(float(mean) for mean in frame.mean((0, 1)))
            self._measured.append((colour, float(steps) / 2, change))
            if index in self.picks:
                self.kept.append(frame)
            before = grey
            yield frame

    def drifts(self) -> list[Drift]:
        """One for each stretch."""
        drifts = []
        for first in range(0, len(self._measured), self.num_each):
            part = self._measured[first : first + self.num_each]
            red, green, blue = np.mean([colour for colour, _, _ in part], axis=0).round(2).tolist()
            changes = [change for _, _, change in part if change is not None]
            drifts.append(
                Drift(
                    start_s=round(float(first / self.fps), 3),
                    end_s=round(float((first + len(part)) / self.fps), 3),
                    colour=(red, green, blue),
                    sharpness=round(float(np.mean([steps for _, steps, _ in part])), 3),
                    change=round(float(np.mean(changes)) if changes else 0.0, 3),
                )
            )
        return drifts


def table(drifts: Sequence[Drift]) -> Table:
    """How a long video changes from stretch to stretch."""
    title = "Drift: means of each stretch, levels of 0 to 255"
    columns = ("seconds", "red", "green", "blue", "sharpness", "change")
    sheet = Table(*columns, box=box.SIMPLE, title=title)
    for drift in drifts:
        numbers = (*drift.colour, drift.sharpness, drift.change)
        span = f"{drift.start_s:g} to {drift.end_s:g}"
        sheet.add_row(span, *(f"{number:.1f}" for number in numbers))
    for column in sheet.columns[1:]:
        column.justify = "right"
    return sheet
