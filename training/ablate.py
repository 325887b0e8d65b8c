"""The seeds' open questions, asked of small models at a stated budget, several seeds each.

Which window of temporal attention, the first frame always visible or not, what hint, which mask
convention: each variant is the preset with one thing changed, trained from nothing and measured on
held-out windows in latents, where the linear blend is 0 dB. Variants of hint and mask diffuse
latents, not residuals, whose origin is the hint. Each is a run of its own: what is finished is not
trained again, so Ctrl-C costs the variant under way alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import torch
from rich import box
from rich.table import Table

from training import checkpoint, diffusion, loop
from training.checkpoint import Run
from training.errors import UsageError
from training.frames import Window, known_frames
from training.presets import Hint, Mask, Preset
from training.sampling import Script, Settings, interpolate
from training.shards import Index
from training.stream import Stream, fixed_windows

NUM_WINDOWS = 4
QUESTIONS = ("window", "first-frame", "hint", "mask")


@dataclass(frozen=True)
class Variant:
    """A question, one answer to it, and the preset that gives it."""

    question: str
    answer: str
    preset: Preset


@dataclass(frozen=True)
class Result:
    """One variant: for each window, the gain over the blend in dB of each seed."""

    variant: Variant
    gains: dict[str, tuple[float, ...]]


def variants(base: Preset, questions: Sequence[str]) -> list[Variant]:
    """All answers to the questions. Raises UsageError for a question that is none, or a preset that
    fills no gaps.
    """
    unknown = sorted(set(questions) - set(QUESTIONS))
    if unknown:
        raise UsageError(
            f"no question is called {', '.join(unknown)}; there are {', '.join(QUESTIONS)}"
        )
    if base.tasks[0][0] != "every":
        raise UsageError(
            f"{base.name} makes keyframes; the questions are about interpolation: take tiny-interp "
            "or alike"
        )
    return [variant for question in questions for variant in _answers(base, question)]


def _answers(base: Preset, question: str) -> Iterator[Variant]:
    plain = replace(base, objective=replace(base.objective, target="latents", residual_std=1.0))
    if question == "window":
        for window in (3, 5, 7, 9, None):
            preset = replace(base, frame_window=window, first_frame=False)
            yield Variant(question, str(window or "full"), preset)
    elif question == "first-frame":
        for visible in (False, True):
            preset = replace(base, frame_window=5, first_frame=visible)
            yield Variant(question, "window 5, always seen" if visible else "window 5", preset)
    elif question == "hint":
        for hint in get_args(Hint):
            preset = replace(plain, objective=replace(plain.objective, hint=hint))
            yield Variant(question, hint, preset)
    else:
        masks: dict[str, Mask] = {"1 = unknown": "unknown", "0 everywhere": "seed"}
        for answer, mask in masks.items():
            objective = replace(plain.objective, hint="left", mask=mask)
            yield Variant(question, answer, replace(plain, objective=objective))


def ablate(
    base: Preset,
    index: Index,
    folder: Path,
    *,
    questions: Sequence[str],
    steps: int,
    num_seeds: int,
    device: str,
    console: Any,
) -> list[Result]:
    """Train and measure every variant. Raises KeyboardInterrupt when a training was stopped by
    Ctrl-C.
    """
    results = []
    todo = variants(base, questions)
    for number, variant in enumerate(todo):
        gains: dict[str, list[float]] = {}
        for seed in range(num_seeds):
            name = f"{variant.question} = {variant.answer}, seed {seed}"
            console.print(f"{number + 1} of {len(todo)}: {name}", markup=False)
            run = _train(variant, index, folder, steps, seed, device, console)
            for window, gain in measure(run, index, device).items():
                gains.setdefault(window, []).append(gain)
        by_window = {window: tuple(values) for window, values in gains.items()}
        results.append(Result(variant, by_window))
    return results


def _train(
    variant: Variant, index: Index, folder: Path, steps: int, seed: int, device: str, console: Any
) -> Run:
    """The finished run of a variant, trained now unless it was before."""
    label = f"{variant.question}-{variant.answer}-{seed}"
    name = label.replace(" ", "-").replace("=", "is").replace(",", "")
    preset = replace(variant.preset, steps=steps, validate_every=steps, checkpoint_every=steps)
    run = Run(folder / name, preset, loop.dataset_facts(index), preset.unet, seed)
    done = checkpoint.checkpoints(run) if (run.folder / "run.json").exists() else []
    if not done or done[-1][0] < steps:
        trainer = loop.Trainer(run, index, device, console=console, pictures=False)
        if trainer.train().interrupted:
            raise KeyboardInterrupt
    return checkpoint.open_run(run)


@torch.no_grad()
def measure(run: Run, index: Index, device: str) -> dict[str, float]:
    """Gain over the linear blend on held-out windows of each stride: ten times the log of the ratio
    of mean squared errors, dB.
    """
    preset, model = run.preset, checkpoint.load_model(run, device)
    null = torch.tensor(index.null_text, dtype=torch.float32)
    gains = {}
    for window in (Window(17, 4), Window(65, 1)):
        stream = Stream(index, "validation", (window,))
        batch = stream.gather(fixed_windows(index, "validation", window, NUM_WINDOWS), window)
        known = torch.tensor(known_frames("every", window.num_frames, every=preset.every))
        blend = diffusion.hints(batch.latents, known.expand(len(batch.latents), -1), "blend")
        ours = theirs = 0.0
        for truth, text, blended in zip(batch.latents, batch.text, blend, strict=True):
            script = Script(preset, text, null, index.fps, Settings(seed=run.seed))
            filled = interpolate(model, script, truth[known], Fraction(window.stride))
            ours += (filled - truth)[~known].square().mean().item()
            theirs += (blended - truth)[~known].square().mean().item()
        gains[str(window)] = 10 * math.log10(theirs / ours)
    return gains


def table(results: Sequence[Result], steps: int) -> Table:
    """A row a variant; mean and standard deviation over seeds."""
    windows = list(results[0].gains)
    num_seeds = len(results[0].gains[windows[0]])
    budget = f"{steps} steps, {num_seeds} seeds"
    rows = Table(
        title=f"gain over the linear blend, dB, on held-out windows ({budget})", box=box.SIMPLE
    )
    rows.add_column("question")
    rows.add_column("answer")
    for window in windows:
        rows.add_column(window, justify="right")
    for result in results:
        cells = [_cell(result.gains[window]) for window in windows]
        rows.add_row(result.variant.question, result.variant.answer, *cells)
    return rows


def _cell(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):+.2f} ±{spread:.2f}"


def plain(results: Sequence[Result], steps: int) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {
            "question": result.variant.question,
            "answer": result.variant.answer,
            "steps": steps,
            "gain_db": {window: list(gains) for window, gains in result.gains.items()},
        }
        for result in results
    ]
