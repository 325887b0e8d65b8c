"""The seeds' open questions, asked of small models at a stated budget, several seeds each.

Of an interpolation preset: which window of temporal attention, the first frame always visible or
not, what hint, which mask convention, which weights are trained, from an image model or from
nothing. Each variant is the preset with one thing changed, measured on held-out windows in latents,
where the linear blend is 0 dB. Variants of hint and mask diffuse latents, not residuals, whose
origin is the hint. Of a keyframe preset: what comes of asking for another number of frames than it
was trained on, in change from keyframe to keyframe, where the held-out footage's is 1.

Each variant is a run of its own: what is finished is not trained again, so Ctrl-C costs the variant
under way alone.
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

from training import checkpoint, diffusion, loop, writing
from training.errors import UsageError
from training.frames import Window, known_frames
from training.presets import RANDOM, TINY_IMAGE, Hint, Mask, Preset, Trainable
from training.run import Run, open_run
from training.sampling import Script, Settings, interpolate, keyframes
from training.shards import Index
from training.stream import Stream, fixed_windows

NUM_WINDOWS = 4
QUESTIONS = ("window", "first-frame", "hint", "mask", "trained", "start")
KEYFRAME_QUESTIONS = ("asked",)
ASKED = (5, 6, 7, 9)  # keyframes


@dataclass(frozen=True)
class Variant:
    """A question, one answer to it, and the preset that gives it."""

    question: str
    answer: str
    preset: Preset
    num_keyframes: int = 0  # that are asked for, of a keyframe preset

    @property
    def run_name(self) -> str:
        """Folder of its run, but for the seed; how many keyframes are asked trains nothing."""
        label = self.question if self.num_keyframes else f"{self.question}-{self.answer}"
        return label.replace(" ", "-").replace("=", "is").replace(",", "")


@dataclass(frozen=True)
class Result:
    """One variant: for each window, the number of each seed: the gain over the blend in dB, or the
    change between keyframes over that of held-out footage.
    """

    variant: Variant
    values: dict[str, tuple[float, ...]]


def questions_of(base: Preset) -> tuple[str, ...]:
    """What can be asked of a preset."""
    return QUESTIONS if base.tasks[0][0] == "every" else KEYFRAME_QUESTIONS


def variants(base: Preset, questions: Sequence[str]) -> list[Variant]:
    """All answers to the questions. Raises UsageError for a question that this preset cannot be
    asked.
    """
    known = questions_of(base)
    unknown = sorted(set(questions) - set(known))
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)}: no question for {base.name}; there are {', '.join(known)}, "
            f"and for {'keyframe' if known is QUESTIONS else 'interpolation'} presets "
            f"{', '.join(KEYFRAME_QUESTIONS if known is QUESTIONS else QUESTIONS)}"
        )
    return [variant for question in questions for variant in _answers(base, question)]


def _answers(base: Preset, question: str) -> Iterator[Variant]:
    plain = replace(
        base, objective=replace(base.objective, target="latents", residual_std=1.0, gate=0.0)
    )
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
    elif question == "trained":
        unet = TINY_IMAGE if base.unet in RANDOM else base.unet
        for trainable in get_args(Trainable):
            yield Variant(question, trainable, replace(base, unet=unet, trainable=trainable))
    elif question == "start":
        if base.unet not in {*RANDOM, TINY_IMAGE}:
            raise UsageError(f"start: asked of our own small models alone, not of {base.unet}")
        for answer, unet in {"image model": TINY_IMAGE, "nothing": "tiny-untrained"}.items():
            yield Variant(question, answer, replace(base, unet=unet, trainable="all"))
    elif question == "asked":
        for num_keyframes in ASKED:
            yield Variant(question, f"{num_keyframes} keyframes", base, num_keyframes)
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
        values: dict[str, list[float]] = {}
        for seed in range(num_seeds):
            name = f"{variant.question} = {variant.answer}, seed {seed}"
            console.print(f"{number + 1} of {len(todo)}: {name}", markup=False)
            run = _train(variant, index, folder, steps, seed, device, console)
            measured = (
                change(run, index, device, variant.num_keyframes)
                if variant.num_keyframes
                else gain(run, index, device)
            )
            for window, value in measured.items():
                values.setdefault(window, []).append(value)
        by_window = {window: tuple(numbers) for window, numbers in values.items()}
        results.append(Result(variant, by_window))
    return results


def _train(
    variant: Variant, index: Index, folder: Path, steps: int, seed: int, device: str, console: Any
) -> Run:
    """The finished run of a variant, trained now unless it was before."""
    name = f"{variant.run_name}-{seed}"
    preset = replace(variant.preset, steps=steps, validate_every=steps, checkpoint_every=steps)
    run = Run(folder / name, preset, loop.dataset_facts(index), preset.unet, seed)
    done = checkpoint.checkpoints(run) if (run.folder / "run.json").exists() else []
    if not done or done[-1][0] < steps:
        trainer = loop.Trainer(run, index, device, console=console, pictures=False)
        if trainer.train().interrupted:
            raise KeyboardInterrupt
    return open_run(run)


@torch.no_grad()
def gain(run: Run, index: Index, device: str) -> dict[str, float]:
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


@torch.no_grad()
def change(run: Run, index: Index, device: str, num_keyframes: int) -> dict[str, float]:
    """Mean squared change of latents from keyframe to keyframe, drawn from the captions of held-out
    windows, over that of the windows themselves.
    """
    preset, model = run.preset, checkpoint.load_model(run, device)
    null = torch.tensor(index.null_text, dtype=torch.float32)
    window = preset.windows[0]
    stream = Stream(index, "validation", (window,))
    batch = stream.gather(fixed_windows(index, "validation", window, NUM_WINDOWS), window)
    longer = replace(preset, windows=(replace(window, num_frames=num_keyframes),))
    drawn = truth = 0.0
    for number, (latents, text) in enumerate(zip(batch.latents, batch.text, strict=True)):
        shape = (latents.shape[1], latents.shape[2], latents.shape[3])
        settings = Settings(seed=run.seed * NUM_WINDOWS + number)
        frames = keyframes(model, Script(longer, text, null, index.fps, settings), shape)
        drawn += frames.diff(dim=0).square().mean().item()
        truth += latents.diff(dim=0).square().mean().item()
    return {f"change, {window}": drawn / truth}


def table(results: Sequence[Result], steps: int) -> Table:
    """A row a variant; mean and standard deviation over seeds."""
    windows = list(results[0].values)
    num_seeds = len(results[0].values[windows[0]])
    signed = not results[0].variant.num_keyframes
    unit = "over that of held-out windows"
    if signed:
        unit = "gain over the linear blend, dB, on held-out windows"
    rows = Table(title=f"{unit} ({steps} steps, {num_seeds} seeds)", box=box.SIMPLE)
    rows.add_column("question")
    rows.add_column("answer")
    for window in windows:
        rows.add_column(window, justify="right")
    for result in results:
        cells = [_cell(result.values[window], signed) for window in windows]
        rows.add_row(result.variant.question, result.variant.answer, *cells)
    return rows


def _cell(values: Sequence[float], signed: bool) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{'+' if signed else ''}.2f} ±{spread:.2f}"


def draw(results: Sequence[Result], path: Path) -> None:
    """A PNG: a panel a window, a row a variant, a dot a seed, a bar at their mean."""
    from matplotlib.figure import Figure

    windows = list(results[0].values)
    figure = Figure(figsize=(8, 1.2 + 0.26 * len(results)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(windows), sharey=True, squeeze=False)[0]
    questions = list(dict.fromkeys(result.variant.question for result in results))
    rows = [-number for number in range(len(results))]
    for axes, window in zip(panels, windows, strict=True):
        for row, result in zip(rows, results, strict=True):
            values = result.values[window]
            color = f"C{questions.index(result.variant.question)}"
            axes.plot(values, [row] * len(values), "o", color=color, markersize=4, alpha=0.6)
            axes.plot([statistics.fmean(values)], [row], "|", color=color, markersize=14)
        axes.axvline(1 if results[0].variant.num_keyframes else 0, color="0.6", linewidth=0.8)
        axes.set(xlabel="change over the held-out one" if "change" in window else "gain, dB")
        axes.set_title(window, fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    labels = [f"{result.variant.question}: {result.variant.answer}" for result in results]
    panels[0].set_yticks(rows, labels, fontsize="small")
    with writing.beside(path) as partial:
        figure.savefig(partial, format="png")


def plain(results: Sequence[Result], steps: int) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {
            "question": result.variant.question,
            "answer": result.variant.answer,
            "steps": steps,
            "change_ratio" if result.variant.num_keyframes else "gain_db": {
                window: list(values) for window, values in result.values.items()
            },
        }
        for result in results
    ]
