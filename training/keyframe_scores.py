"""How good keyframes are: how much they change, how much of them is memory, and what a start
picture is worth.

There is no truth to compare a drawing with, so each number stands beside the one that held-out
footage has:

- *change* from keyframe to keyframe, in levels: far less than the truth's is a frozen video.
- *travel*: the share of that change which moving explains. What boils instead of turning has less.
- *nearest*: distance to the nearest frame of the training set, in latents. Where drawings are much
  nearer than held-out frames are, they are remembered. The mean of many frames is near to all of
  them, though, so a blurred drawing is near, too: look at the pictures.
- with the first frame of the truth to start from, the others are compared with the truth's, and so
  is that frame repeated, which is what one would have without a model.

Cost: every frame of the training set is read once, or evenly spaced ones if there are very many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pipeline.media.encoders import Pixels, psnr_db
from training import feature_metrics, media, quality
from training.codec import Codec
from training.feature_metrics import Features, Networks
from training.frames import Window
from training.heldout import Place
from training.sampling import Progress, Script, keyframes
from training.scores import Column, Report, scores
from training.shards import Index
from training.stream import Stream, draw

TRUTH = "truth"
WORDS = "from words"
START = "from a start"
REPEATED = "start repeated"
METRICS = ("change", "travel", "nearest", "psnr_db", "ssim")
COLUMNS = (
    Column("change", "change", 2, spread=1),
    Column("travel", "travel", 2, spread=1),
    Column("nearest", "nearest\ntraining frame", 3, spread=2),
    Column("psnr_db", "PSNR", 2, spread=1),
    Column("ssim", "SSIM", 3),
)
MAX_TRAINING_FRAMES = 20_000
READ_AT_ONCE = 64  # frames of a clip


def report(
    model: Any,
    script: Script,
    index: Index,
    codec: Codec,
    places: Sequence[Place],
    networks: Networks,
    progress: Progress,
) -> Report:
    """A keyframe model beside held-out windows of the shape it makes, with their own captions."""
    window = script.preset.windows[0]
    stream = Stream(index, "validation", [window])
    drawings = []
    for number, place in enumerate(places):
        batch = stream.gather([(place.key, place.start)], window)
        seed = draw(script.settings.seed, place.key, place.start)
        own = replace(script, text=batch.text[0], settings=replace(script.settings, seed=seed))
        drawings.append(_drawings(model, own, batch.latents[0]))
        progress("keyframes", number + 1, len(places))
    distances, num_frames = _nearest(index, drawings, progress)
    outcomes = []
    features = []
    videos: dict[str, Pixels] = {}
    for number, (place, latents, nearest) in enumerate(
        zip(places, drawings, distances, strict=True)
    ):
        pictures = {method: codec.decode(frames) for method, frames in latents.items()}
        outcomes.append(_metrics(pictures, nearest, networks))
        features.append(_features(pictures, networks))
        if number == len(places) // 2:
            videos, shown = pictures, place
        progress("pictures", number + 1, len(places))
    rows = [
        (method, frames, [method in (START, REPEATED) and at == 0 for at in range(len(frames))])
        for method, frames in videos.items()
    ]
    caption = f"{shown.key}, frame {shown.start} on, {window}: known frames have a border"
    facts, comparison = feature_metrics.compare(networks, window, features, TRUTH)
    return Report(
        window=window,
        fps=index.fps / window.stride,
        places=tuple(places),
        scores=scores(places, outcomes),
        columns=(*COLUMNS, *networks.columns),
        sheet=media.side_by_side(rows, caption, side=128),
        facts={"num_training_frames": num_frames, **facts},
        lines=(
            f"{window}: compared with {num_frames} frames of the training set",
            *comparison,
        ),
    )


def _drawings(model: Any, script: Script, truth: Tensor) -> dict[str, Tensor]:
    """Scaled latents `f c h w` by method."""
    shape = (truth.shape[1], truth.shape[2], truth.shape[3])
    drawings = {TRUTH: truth, WORDS: keyframes(model, script, shape)}
    if len(truth) > 1:
        drawings[START] = keyframes(model, script, shape, truth[:1])
        drawings[REPEATED] = truth[:1].expand_as(truth)
    return drawings


def _nearest(
    index: Index, drawings: Sequence[dict[str, Tensor]], progress: Progress
) -> tuple[list[dict[str, float]], int]:
    """For each window and method, the distance of its frames to the nearest training frame, on
    average: the root of the mean squared difference of scaled latents. Also how many training
    frames there were.

    Frames that were given count in no method, and neither does the repeated start.
    """
    queries = []
    names = []
    for number, window in enumerate(drawings):
        for method in (TRUTH, WORDS, START):
            if method in window:
                frames = window[method][1:] if method == START else window[method]
                queries.append(rearrange(frames, "f c h w -> f (c h w)"))
                names += [(number, method)] * len(frames)
    asked = torch.cat(queries).double()
    least = torch.full((len(asked),), torch.inf, dtype=torch.float64)
    num_frames = 0
    for frames in _training_frames(index, progress):
        known = rearrange(frames, "f c h w -> f (c h w)").double()
        least = torch.minimum(least, torch.cdist(asked, known).amin(1))
        num_frames += len(frames)
    values: dict[tuple[int, str], list[float]] = {}
    for name, distance in zip(names, least / asked.shape[1] ** 0.5, strict=True):
        if num_frames:
            values.setdefault(name, []).append(float(distance))
    distances: list[dict[str, float]] = [{} for _ in drawings]
    for (number, method), numbers in values.items():
        distances[number][method] = float(np.mean(numbers))
    return distances, num_frames


def _training_frames(index: Index, progress: Progress) -> Iterator[Tensor]:
    """Scaled latents of the training set, `f c h w`, at most `READ_AT_ONCE` at a time."""
    entries = index.entries.get("train", ())
    total = sum(entry.num_frames for entry in entries)
    if not entries:
        return
    stride = max(1, -(-total // MAX_TRAINING_FRAMES))
    stream = Stream(index, "train", [Window(1, 1)])
    for number, entry in enumerate(entries):
        num_frames = -(-entry.num_frames // stride)
        for first in range(0, num_frames, READ_AT_ONCE):
            part = Window(min(READ_AT_ONCE, num_frames - first), stride)
            yield stream.gather([(entry.key, first * stride)], part).latents[0]
        progress("training frames", number + 1, len(entries))


def _metrics(
    pictures: dict[str, Pixels], nearest: dict[str, float], networks: Networks
) -> dict[str, dict[str, float | None]]:
    truth = pictures[TRUTH]
    outcome: dict[str, dict[str, float | None]] = {}
    for method, frames in pictures.items():
        metrics: dict[str, float | None] = dict.fromkeys((*METRICS, *networks.metrics))
        if len(frames) > 1:
            metrics["change"] = float(quality.change(frames).mean())
            metrics["travel"] = quality.travel(frames)
        metrics["nearest"] = nearest.get(method)
        if method in (START, REPEATED):
            metrics["psnr_db"] = psnr_db(frames[1:], truth[1:])
            metrics["ssim"] = quality.ssim(frames[1:], truth[1:])
            metrics |= networks.likeness(frames[1:], truth[1:])
        outcome[method] = metrics
    return outcome


def _features(pictures: dict[str, Pixels], networks: Networks) -> dict[str, dict[str, Features]]:
    """By method and metric. First frames count in none, for some were given: so all are compared
    with the same frames of the truth.
    """
    return {
        method: networks.features(frames[1:] if len(frames) > 1 else frames, frames)
        for method, frames in pictures.items()
    }
