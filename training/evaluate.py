"""Compares a model with what one would take instead, on films it has not seen.

Of an interpolation run the frames in between are measured, beside copied, blended and flow-warped
ones, ffmpeg's `minterpolate`, and RIFE if it is there. Of a keyframe run it is the keyframes:
`training.keyframe_scores`.

Each frame in between is compared twice: with the decoded latents of the truth, which is the model's
own part, and with the clip's pixels, where the VAE's loss is included; the row `truth` of the
latter is what that VAE allows at best. Cost: sampling, up to four decoded pictures a frame (0.2 s
each on a CPU, for the tiny VAE at 256 pixels), and 6 ms of flow a frame and method; RIFE takes 0.1
s a frame, and so on with the networks of `training.feature_metrics`, if there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.media.encoders import Pixels, psnr_db
from training import diffusion, feature_metrics, ffmpeg, heldout, keyframe_scores, media, quality
from training.checkpoint import load_model
from training.codec import Codec
from training.errors import UsageError
from training.feature_metrics import Features, Networks
from training.frames import Window, interpolated, known_frames
from training.heldout import SPLIT, Film, Place
from training.presets import Preset
from training.rivals import FLOW, NEAREST, PIXEL_BLEND, Rival, rivals
from training.run import Run
from training.sampling import Progress, Script, Settings, interpolate, no_progress
from training.scores import Column, Evaluation, Report, save, scores, table
from training.shards import Index, check_identity
from training.stream import Batch, Stream, draw

__all__ = ["Evaluation", "evaluate", "save", "table"]

WINDOWS = (Window(17, 4), Window(65, 1))
TRUTH = "truth"
MODEL = "model"
ONE_STEP = "model, 1 step"
LATENT_BLEND = "latent blend"
ALIKE = ("psnr_db", "psnr_moving_db", "ssim", "vmaf", "xpsnr_db")  # how like the truth
ORIGINAL = ("psnr_original_db", "ssim_original")  # how like the clip's own pixels
MOTION = ("flow_ratio", "flow_error", "warping_error", "seam")
METRICS = (*ALIKE, *ORIGINAL, *MOTION)
COLUMNS = (
    Column("psnr_db", "PSNR", 2, spread=1),
    Column("psnr_moving_db", "PSNR\nmoving", 2, spread=1),
    Column("ssim", "SSIM", 3),
    Column("vmaf", "VMAF", 1, spread=0),
    Column("xpsnr_db", "XPSNR", 1),
    Column("flow_ratio", "flow", 2),
    Column("flow_error", "flow\nerror", 2),
    Column("warping_error", "warp", 2),
    Column("seam", "seam", 2),
)
NO_NETWORKS = Networks()
SHOWN_FRAMES = 17  # of a window, in the comparison sheet
SHOWN_METHODS = (TRUTH, MODEL, FLOW, PIXEL_BLEND, NEAREST)


def evaluate(
    run: Run,
    index: Index,
    codec: Codec,
    *,
    num_windows: int = 4,
    windows: Sequence[Window] = WINDOWS,
    settings: Settings | None = None,
    networks: Networks = NO_NETWORKS,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a run on `num_windows` held-out windows of each shape, of as many films as there can
    be. A keyframe run is measured on windows of the shape it was trained on. LPIPS, FID and FVD are
    measured with those of their `networks` that are there.

    No CLIP is needed: texts are the shards' own. Raises UsageError if nothing was held out, if all
    of it was trained on or no clip is long enough, ShardError if the shards are of other encoders,
    and what `Codec.check` and `load_model` raise.
    """
    settings = settings or Settings()
    preset = run.preset
    interpolates = preset.tasks[0][0] == "every"
    if not interpolates:
        windows = preset.windows[:1]
    notes: list[str] = []
    films = heldout.unseen(run, index, notes)
    check_identity(index, run.dataset["identity"])
    codec.check("vae")
    null_text = torch.tensor(index.null_text, dtype=torch.float32)
    script = Script(preset, null_text, null_text, index.fps, settings)
    facts = {
        "run": run.folder.name,
        "preset": preset.name,
        "dataset": {"name": index.name, "root_digest": index.root_digest},
        "split": SPLIT,
        "films": {film.name: film.sha256 for film in films},
        "scheduler": settings.scheduler,
        "steps": script.steps,
        "guidance": script.guidance,
        "seed": settings.seed,
        **networks.plain(),
    }
    if interpolates:
        plan = _plan(index, preset, films, windows, num_windows, notes)
        clips = _clips(index, {place.key for _, places in plan for place in places}, notes)
        functions, absent = rivals()
        notes += absent
        stage = _Stage(
            load_model(run, device),
            script,
            Stream(index, SPLIT, [window for window, _ in plan]),
            codec,
            clips,
            functions,
            networks,
            progress,
        )
        reports = tuple(_report(stage, window, places) for window, places in plan)
    else:
        places = heldout.places(index, films, windows[0], num_windows)
        if run.dataset["root_digest"] != index.root_digest:
            notes.append(
                "the nearest training frame is looked for in these shards, and the run was trained "
                "on others"
            )
        model = load_model(run, device)
        reports = (keyframe_scores.report(model, script, index, codec, places, networks, progress),)
    return Evaluation(facts, reports, tuple(notes))


def _plan(
    index: Index,
    preset: Preset,
    films: Sequence[Film],
    windows: Sequence[Window],
    num_windows: int,
    notes: list[str],
) -> list[tuple[Window, list[Place]]]:
    """Where each window is taken."""
    plan = []
    for window in windows:
        possible = {interpolated(num, preset.every) for num in range(2, window.num_frames)}
        if window.num_frames not in possible:
            raise UsageError(
                f"a window of {window.num_frames} frames does not end in a keyframe: take 5, 9, "
                "13, 17, ..."
            )
        try:
            plan.append((window, heldout.places(index, films, window, num_windows)))
        except UsageError as error:
            notes.append(f"{window} is left out: {error}")
    if not plan:
        raise UsageError(notes[-1])
    return plan


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
    rivals: Mapping[str, Rival]
    networks: Networks
    progress: Progress


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One window. `videos` by method, `f h w c`; `features` by method and metric; `moving` is the
    share of pixels that move.
    """

    metrics: dict[str, dict[str, float | None]]
    features: dict[str, dict[str, Features]]
    moving: float
    known_error_latents: float
    known_error_levels: int
    videos: dict[str, Pixels]


def _report(stage: _Stage, window: Window, places: Sequence[Place]) -> Report:
    outcomes = []
    sheet = None
    for number, place in enumerate(places):
        counter = _Counter(stage.progress, f"{window}, window {number + 1} of {len(places)}")
        outcome = _outcome(stage, window, place, counter)
        if number == len(places) // 2:
            known = known_frames("every", window.num_frames, every=stage.script.preset.every)
            caption = f"{place.key}, frame {place.start} on, {window}: known frames have a border"
            sheet = _sheet(outcome.videos, known, caption)
        outcomes.append(replace(outcome, videos={}))
    assert sheet is not None
    error_latents = max(outcome.known_error_latents for outcome in outcomes)
    error_levels = max(outcome.known_error_levels for outcome in outcomes)
    moving = float(np.mean([outcome.moving for outcome in outcomes]))
    rows = scores(places, [outcome.metrics for outcome in outcomes])
    features = [outcome.features for outcome in outcomes]
    distances, comparison = feature_metrics.compare(stage.networks, window, features, TRUTH)
    report = Report(
        window=window,
        fps=stage.stream.index.fps / window.stride,
        places=tuple(places),
        scores=rows,
        columns=_columns(stage.networks),
        sheet=sheet,
        facts={
            "known_error": {"latents": error_latents, "levels": error_levels},
            "moving_share": moving,
            **distances,
        },
    )
    lines = [
        f"{window}: known frames are off by {error_latents:g}; {moving:.1%} of the pixels move"
    ]
    if stage.clips is not None:
        lines.append(_of_clip(report))
    return replace(report, lines=(*lines, *comparison))


def _columns(networks: Networks) -> tuple[Column, ...]:
    """A terminal of 80 columns has no room for both XPSNR and LPIPS."""
    left_out = "xpsnr_db" if networks.columns else ""
    shown = [column for column in COLUMNS if column.metric != left_out]
    return (*shown, *networks.columns)


def _of_clip(report: Report) -> str:
    """What is said of the clip's own pixels, in one line."""
    likeness = []
    for score in report.scores:
        mean = score.metrics["psnr_original_db"].mean
        if mean is not None:
            likeness.append(f"{score.method} {mean:.2f}")
    return f"{report.window}: PSNR of the clip's own pixels: {', '.join(likeness)}"


class _Counter:
    """Pictures decoded and videos made and measured, for the progress bar."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._done = 0
        self.total = 0

    def advance(self) -> None:
        self._done += 1
        self._progress(self._what, self._done, self.total)

    def decode(self, codec: Codec, latents: Tensor) -> Pixels:
        pictures = []
        for frame in latents:
            pictures.append(codec.decode(frame[None])[0])
            self.advance()
        return np.stack(pictures)


def _outcome(stage: _Stage, window: Window, place: Place, counter: _Counter) -> _Outcome:
    batch = stage.stream.gather([(place.key, place.start)], window)
    truth = batch.latents[0]
    known = known_frames("every", window.num_frames, every=stage.script.preset.every)
    flags = torch.tensor(known)
    filled = _fill(stage, window, batch, flags, seed=(place.key, place.start))
    num_unknown = len(truth) - sum(known)
    num_pictures = 2 * len(truth) + (len(filled) - 1) * num_unknown
    num_rivals = len(stage.rivals)
    counter.total = num_pictures + num_rivals + 1 + len(filled) + num_rivals
    videos = {
        TRUTH: counter.decode(stage.codec, truth),
        MODEL: counter.decode(stage.codec, filled[MODEL]),
    }
    for method, latents in filled.items():
        if method != MODEL:
            # equal latents are equal pixels: known frames need no decoding
            videos[method] = videos[TRUTH].copy()
            videos[method][~flags.numpy()] = counter.decode(stage.codec, latents[~flags])
    for method, rival in stage.rivals.items():
        videos[method] = rival(videos[TRUTH], known)
        counter.advance()
    original = None
    if stage.clips is not None:
        original = media.read_frames(stage.clips / f"{place.key}.mp4", window.indices(place.start))
    off = np.abs(videos[MODEL].astype(int) - videos[TRUTH].astype(int))[flags.numpy()]
    motion = quality.motion(videos[TRUTH], known)
    fps = stage.stream.index.fps / window.stride
    metrics = {}
    features = {}
    between = ~flags.numpy()
    for method, video in videos.items():
        metrics[method] = _metrics(video, videos[TRUTH], motion, known, fps)
        metrics[method] |= stage.networks.likeness(video[between], videos[TRUTH][between])
        features[method] = stage.networks.features(video[between], video)
        if method == TRUTH:
            metrics[method] |= dict.fromkeys((*ALIKE, *stage.networks.metrics))  # it is itself
        if original is not None:
            metrics[method] |= _likeness(video, original, known)
        counter.advance()
    return _Outcome(
        metrics=metrics,
        features=features,
        moving=float(motion.moves.mean()),
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
    video: Pixels, truth: Pixels, motion: quality.Motion, known: Sequence[bool], fps: Fraction
) -> dict[str, float | None]:
    """A video beside the truth, which moves as `motion` says; those of the clip's own pixels are
    None.
    """
    between = ~np.array(known)
    own = quality.flows(video)
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    metrics["psnr_db"] = psnr_db(video[between], truth[between])
    metrics["psnr_moving_db"] = quality.psnr_moving(video, truth, motion.moves, known)
    metrics["ssim"] = quality.ssim(video[between], truth[between])
    for name, values in ffmpeg.scores(video, truth, fps).items():
        metrics[name] = float(values[between].mean())
    metrics["flow_ratio"] = quality.flow_ratio(own, motion)
    metrics["flow_error"] = quality.flow_error(own, motion)
    metrics["warping_error"] = quality.warping_error(video, motion)
    metrics["seam"] = quality.seam(video, known)
    return metrics


def _likeness(video: Pixels, original: Pixels, known: Sequence[bool]) -> dict[str, float | None]:
    """A video beside the clip's own pixels."""
    between = ~np.array(known)
    return {
        "psnr_original_db": psnr_db(video[between], original[between]),
        "ssim_original": quality.ssim(video[between], original[between]),
    }


def _sheet(videos: Mapping[str, Pixels], known: Sequence[bool], caption: str) -> Image.Image:
    rows = [
        (method, videos[method][:SHOWN_FRAMES], known[:SHOWN_FRAMES]) for method in SHOWN_METHODS
    ]
    return media.side_by_side(rows, caption, side=96)
