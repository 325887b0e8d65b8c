"""Compares interpolation with copied and blended frames, on held-out clips.

Only in-between frames count. Each is compared twice: with the decoded latents of the truth, which
is the model's own part, and with the clip's pixels, where the VAE's loss is included; the row
`truth` of the latter is what that VAE allows at best. Numbers are a window's; over windows stand
mean and standard deviation, and JSON has each. Cost: sampling, and up to four decoded pictures a
frame (0.2 s each on a CPU, for the tiny VAE at 256 pixels).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from pipeline.media.encoders import Pixels, psnr_db
from training import diffusion, media, quality, writing
from training.checkpoint import Run, load_model
from training.codec import Codec
from training.errors import UsageError
from training.frames import Window, interpolated, known_frames
from training.presets import Preset
from training.sampling import Progress, Script, Settings, interpolate, no_progress
from training.shards import Index, check_identity
from training.stream import Batch, Stream, draw, fixed_windows

WINDOWS = (Window(17, 4), Window(65, 1))
SPLIT = "validation"
TRUTH = "truth"
MODEL = "model"
ONE_STEP = "model, 1 step"
NEAREST = "nearest"
LATENT_BLEND = "latent blend"
PIXEL_BLEND = "pixel blend"
METHODS = (TRUTH, MODEL, ONE_STEP, NEAREST, LATENT_BLEND, PIXEL_BLEND)
METRICS = ("psnr_db", "ssim", "psnr_original_db", "ssim_original", "motion", "seam")
SHOWN_FRAMES = 17  # of a window, in the comparison sheet


@dataclass(frozen=True)
class Spread:
    """One number of each window; None where it has none, as motion where nothing moves."""

    values: tuple[float | None, ...]

    @property
    def numbers(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.numbers) if self.numbers else None

    @property
    def std(self) -> float | None:
        if not self.numbers:
            return None
        return statistics.stdev(self.numbers) if len(self.numbers) > 1 else 0.0

    def plain(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}


@dataclass(frozen=True)
class Score:
    """One way to fill the gaps.

    `motion`: mean change from frame to frame over the truth's, 0 is frozen. `seam`: change beside
    keyframes over change elsewhere, to be compared with the truth's own.
    """

    method: str
    metrics: Mapping[str, Spread]  # of METRICS


@dataclass(frozen=True, eq=False)
class Report:
    """All ways, over the windows of one stride. `known_error_*`: how far the model moved a frame it
    was given; must be 0.
    """

    window: Window
    fps: Fraction
    windows: tuple[tuple[str, int], ...]
    known_error_latents: float
    known_error_levels: int
    scores: tuple[Score, ...]
    sheet: Image.Image

    def spread(self, method: str, metric: str) -> Spread:
        """KeyError if there is no such row."""
        return {score.method: score for score in self.scores}[method].metrics[metric]

    def plain(self) -> dict[str, Any]:
        return {
            "window": str(self.window),
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "num_windows": len(self.windows),
            "windows": [list(pair) for pair in self.windows],
            "known_error": {"latents": self.known_error_latents, "levels": self.known_error_levels},
            "scores": {
                score.method: {name: spread.plain() for name, spread in score.metrics.items()}
                for score in self.scores
            },
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that was measured; `facts` say of what, `notes` what could not be measured."""

    facts: dict[str, Any]
    reports: tuple[Report, ...]
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        return {
            **self.facts,
            "notes": list(self.notes),
            "reports": [report.plain() for report in self.reports],
        }


def evaluate(
    run: Run,
    index: Index,
    codec: Codec,
    *,
    num_windows: int = 4,
    windows: Sequence[Window] = WINDOWS,
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure an interpolation run on `num_windows` evenly spaced held-out windows of each shape.

    Raises UsageError if it is no such run, if nothing was held out or no clip is long enough,
    ShardError if the shards are of other encoders, and what `Codec.check` and `load_model` raise.
    """
    settings = settings or Settings()
    if run.preset.tasks[0][0] != "every":
        raise UsageError(
            f"{run.folder} is a run of {run.preset.name}; what is evaluated is interpolation: give "
            "a run of tiny-interp or alike"
        )
    if not index.entries.get(SPLIT):
        raise UsageError(
            f"{index.url}: no video was held out; set `validation = 0.1` in [shard] of the recipe "
            "and build the shards again"
        )
    check_identity(index, run.dataset["identity"])
    codec.check()
    notes: list[str] = []
    places = _places(index, run.preset, windows, num_windows, notes)
    keys = {key for _, pairs in places for key, _ in pairs}
    clips = _clips(index, keys, notes)
    null_text = torch.tensor(index.null_text, dtype=torch.float32)
    script = Script(run.preset, null_text, null_text, index.fps, settings)
    stage = _Stage(
        load_model(run, device),
        script,
        Stream(index, SPLIT, [window for window, _ in places]),
        codec,
        clips,
        progress,
    )
    reports = tuple(_report(stage, window, pairs) for window, pairs in places)
    facts = {
        "run": run.folder.name,
        "preset": run.preset.name,
        "dataset": {"name": index.name, "root_digest": index.root_digest},
        "split": SPLIT,
        "scheduler": settings.scheduler,
        "steps": script.steps,
        "guidance": script.guidance,
        "seed": settings.seed,
    }
    return Evaluation(facts, reports, tuple(notes))


def _places(
    index: Index, preset: Preset, windows: Sequence[Window], num_windows: int, notes: list[str]
) -> list[tuple[Window, list[tuple[str, int]]]]:
    """Where each window is taken: (key, first frame) pairs."""
    places = []
    for window in windows:
        possible = {interpolated(num, preset.every) for num in range(2, window.num_frames)}
        if window.num_frames not in possible:
            raise UsageError(
                f"a window of {window.num_frames} frames does not end in a keyframe: take 5, 9, "
                "13, 17, ..."
            )
        try:
            places.append((window, fixed_windows(index, SPLIT, window, num_windows)))
        except UsageError as error:
            notes.append(f"{window} is left out: {error}")
    if not places:
        raise UsageError(notes[0])
    return places


def _clips(index: Index, keys: set[str], notes: list[str]) -> Path | None:
    """Where the clips are, if all are there: beside the shards, as `make shards` leaves them."""
    folder = Path(index.url).parent / "clips"
    missing = sorted(key for key in keys if not (folder / f"{key}.mp4").is_file())
    if not missing:
        return folder
    notes.append(
        f"nothing is compared with the clips' own pixels: {folder} has no {missing[0]}.mp4 (`make "
        "shards` leaves the clips there)"
    )
    return None


@dataclass(frozen=True, eq=False)
class _Stage:
    """What does not change from window to window. `clips`: the folder of the clips' own pixels."""

    model: Any
    script: Script
    stream: Stream
    codec: Codec
    clips: Path | None
    progress: Progress


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One window. `videos` by method, `f h w c`."""

    metrics: dict[str, dict[str, float | None]]
    known_error_latents: float
    known_error_levels: int
    videos: dict[str, Pixels]


def _report(stage: _Stage, window: Window, pairs: Sequence[tuple[str, int]]) -> Report:
    outcomes = []
    sheet = None
    for number, (key, start) in enumerate(pairs):
        counter = _Counter(stage.progress, f"{window}, window {number + 1} of {len(pairs)}")
        outcome = _outcome(stage, window, key, start, counter)
        if number == len(pairs) // 2:
            known = known_frames("every", window.num_frames, every=stage.script.preset.every)
            caption = f"{key}, frame {start} on, {window}: known frames have a border"
            sheet = _sheet(outcome.videos, known, caption)
        outcomes.append(replace(outcome, videos={}))
    assert sheet is not None
    scores = []
    for method in outcomes[0].metrics:
        spreads = {}
        for name in METRICS:
            values = [outcome.metrics[method][name] for outcome in outcomes]
            spreads[name] = Spread(tuple(values))
        scores.append(Score(method, spreads))
    return Report(
        window=window,
        fps=stage.stream.index.fps / window.stride,
        windows=tuple(pairs),
        known_error_latents=max(outcome.known_error_latents for outcome in outcomes),
        known_error_levels=max(outcome.known_error_levels for outcome in outcomes),
        scores=tuple(scores),
        sheet=sheet,
    )


class _Counter:
    """Pictures decoded, for the progress bar."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._done = 0
        self.total = 0

    def decode(self, codec: Codec, latents: Tensor) -> Pixels:
        pictures = []
        for frame in latents:
            pictures.append(codec.decode(frame[None])[0])
            self._done += 1
            self._progress(self._what, self._done, self.total)
        return np.stack(pictures)


def _outcome(stage: _Stage, window: Window, key: str, start: int, counter: _Counter) -> _Outcome:
    batch = stage.stream.gather([(key, start)], window)
    truth = batch.latents[0]
    known = known_frames("every", window.num_frames, every=stage.script.preset.every)
    flags = torch.tensor(known)
    filled = _fill(stage, window, batch, flags, seed=(key, start))
    num_unknown = len(truth) - sum(known)
    counter.total = 2 * len(truth) + (len(filled) - 1) * num_unknown
    videos = {
        TRUTH: counter.decode(stage.codec, truth),
        MODEL: counter.decode(stage.codec, filled[MODEL]),
    }
    for method in filled.keys() - {MODEL}:
        # equal latents are equal pixels: known frames need no decoding
        videos[method] = videos[TRUTH].copy()
        videos[method][~flags.numpy()] = counter.decode(stage.codec, filled[method][~flags])
    videos[NEAREST] = quality.nearest(videos[TRUTH], known)
    videos[PIXEL_BLEND] = quality.pixel_blend(videos[TRUTH], known)
    videos = {method: videos[method] for method in METHODS if method in videos}
    original = None
    if stage.clips is not None:
        original = media.read_frames(stage.clips / f"{key}.mp4", window.indices(start))
    off = np.abs(videos[MODEL].astype(int) - videos[TRUTH].astype(int))[flags.numpy()]
    return _Outcome(
        metrics={
            method: _metrics(video, videos[TRUTH], original, known, method)
            for method, video in videos.items()
        },
        known_error_latents=float((filled[MODEL] - truth)[flags].abs().max()),
        known_error_levels=int(off.max()),
        videos=videos,
    )


def _fill(
    stage: _Stage, window: Window, batch: Batch, flags: Tensor, seed: tuple[str, int]
) -> dict[str, Tensor]:
    """Scaled latents `f c h w` by method, for those that work on latents."""
    [truth] = batch.latents
    settings = replace(stage.script.settings, seed=draw(stage.script.settings.seed, *seed))
    script = replace(stage.script, text=batch.text[0], settings=settings)
    stride = Fraction(window.stride)
    filled = {MODEL: interpolate(stage.model, script, truth[flags], stride)}
    if script.preset.objective.zero_snr and script.steps != 1:
        one_step = replace(script, settings=replace(settings, steps=1))
        filled[ONE_STEP] = interpolate(stage.model, one_step, truth[flags], stride)
    filled[LATENT_BLEND] = diffusion.hints(truth[None], flags[None], "blend")[0]
    return filled


def _metrics(
    video: Pixels, truth: Pixels, original: Pixels | None, known: Sequence[bool], method: str
) -> dict[str, float | None]:
    between = ~np.array(known)
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    if method != TRUTH:
        metrics["psnr_db"] = psnr_db(video[between], truth[between])
        metrics["ssim"] = quality.ssim(video[between], truth[between])
    if original is not None:
        metrics["psnr_original_db"] = psnr_db(video[between], original[between])
        metrics["ssim_original"] = quality.ssim(video[between], original[between])
    truth_change = quality.change(truth)
    if truth_change.any():
        metrics["motion"] = float(quality.change(video).mean() / truth_change.mean())
    metrics["seam"] = quality.seam(video, known)
    return metrics


def _sheet(videos: Mapping[str, Pixels], known: Sequence[bool], caption: str) -> Image.Image:
    rows = [
        (method, videos[method][:SHOWN_FRAMES], known[:SHOWN_FRAMES])
        for method in (TRUTH, MODEL, LATENT_BLEND, NEAREST)
    ]
    return media.side_by_side(rows, caption, side=96)


def table(report: Report) -> Table:
    """For a terminal of 80 columns: a row a method."""
    rows = Table(
        title=(
            f"{report.window}: {float(report.fps):g} fps, {len(report.windows)} windows, "
            f"known frames off by {report.known_error_latents:g}"
        ),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    rows.add_column("", no_wrap=True)
    for name in ("PSNR", "SSIM", "PSNR\nof clip", "SSIM\nof clip", "motion", "seam"):
        rows.add_column(name, justify="right")
    for score in report.scores:
        rows.add_row(score.method, *(_cell(name, score.metrics[name]) for name in METRICS))
    return rows


def _cell(name: str, spread: Spread) -> str:
    if spread.mean is None or spread.std is None:
        return "-"
    if "psnr" in name:
        return f"{spread.mean:.2f} ±{spread.std:.2f}"
    if "ssim" in name:  # ±.012, as the table must fit 80 columns
        return f"{spread.mean:.3f} ±{spread.std:.3f}".replace("±0.", "±.")
    return f"{spread.mean:.2f}"


def save(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write evaluation.json, and a comparison sheet of each stride, into a run's folder. Returns
    their paths.
    """
    paths = [folder / "evaluation.json"]
    writing.write_json(paths[0], evaluation.plain())
    for report in evaluation.reports:
        name = f"evaluation-{report.window.num_frames}-at-{report.window.stride}.png"
        paths.append(folder / name)
        media.write_image(paths[-1], report.sheet)
    return paths
