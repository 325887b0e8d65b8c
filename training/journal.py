"""What a run says of itself: a progress bar, history.jsonl, a loss curve, TensorBoard scalars.

The history is the record, the others are drawn from it. When a run goes on it is cut back to the
checkpoint's step, so that no step stands in it twice.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import writing
from training.run import Run
from training.stream import Stream

SMOOTH = 0.95  # of the loss shown: an average over about 20 steps


def peak_memory_gib() -> float:
    """The most memory this process has held so far: the GPU's if there is one, else its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Journal:
    """Of one run; without a console, as on all ranks but the first, it says and writes nothing."""

    def __init__(self, run: Run, step: int, console: Any = None) -> None:
        self._run = run
        self._console = console
        self._path = run.folder / "history.jsonl"
        self._smooth: float | None = None
        self._bar: Any = None
        self._task: Any = None
        self._scalars: Any = None
        self._num_samples = 0
        self._since = time.monotonic()
        if console is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        lines = [line for line in read_history(run.folder) if line["step"] <= step]
        writing.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._scalars = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)

    def say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False, soft_wrap=True)

    def begin(self, stream: Stream, model: nn.Module, step: int) -> None:
        """Say what is trained on what."""
        run, preset = self._run, self._run.preset
        parameters = list(model.parameters())
        total = sum(weight.numel() for weight in parameters)
        trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
        clips = f"{stream.num_samples} clips"
        if stream.num_skipped:
            clips += f" ({stream.num_skipped} shorter than a window's span skipped)"
        windows = sorted({str(window) for window in preset.windows})
        self.say(
            f"{preset.name} on {run.dataset['name']} ({run.dataset['root_digest'][:12]}): {clips}, "
            f"windows {', '.join(windows)}, {total:,} parameters, {trained:,} trained"
        )
        if step:
            self.say(f"going on from step {step} of {preset.steps}")

    @contextmanager
    def progress(self, num_steps: int) -> Iterator[None]:
        """A bar with loss, samples/s, peak memory and the time left."""
        if self._console is None:
            yield
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=self._console) as bar:  # fits 80 columns
            self._bar = bar
            self._task = bar.add_task("", total=num_steps, facts="")
            self._since = time.monotonic()
            yield
        self._bar = None

    def add(self, step: int, loss: float, norm: float, rate: float, num_samples: int) -> None:
        """One step's numbers."""
        if self._console is None:
            return
        self._smooth = loss if self._smooth is None else SMOOTH * self._smooth + (1 - SMOOTH) * loss
        self._num_samples += num_samples
        speed = self._num_samples / max(1e-9, time.monotonic() - self._since)
        numbers = {"loss": loss, "grad_norm": norm, "lr": rate, "samples_per_s": round(speed, 3)}
        self._append({"step": step, **numbers})
        for name, value in {**numbers, "peak_gib": peak_memory_gib()}.items():
            self._scalars.add_scalar(f"train/{name}", value, step)
        if self._bar is not None:
            facts = f"loss {self._smooth:.4f} {speed:.2f} samples/s {peak_memory_gib():.1f} GiB"
            self._bar.update(self._task, completed=step, facts=facts)

    def validated(self, step: int, losses: dict[str, float]) -> None:
        """Losses on held-out windows, by timestep bucket; "mean" is over all."""
        if self._console is None or not losses:
            return
        self._append({"step": step, "validation": losses})
        for name, value in losses.items():
            self._scalars.add_scalar(f"validation/{name}", value, step)
        buckets = "  ".join(
            f"{name} {value:.4f}" for name, value in losses.items() if name != "mean"
        )
        self.say(f"step {step}: validation loss {losses['mean']:.4f}   by timestep: {buckets}")
        draw_curve(self._run.folder)

    def saved(self, step: int) -> None:
        if self._console is not None:
            draw_curve(self._run.folder)

    def end(self) -> None:
        if self._scalars is not None:
            self._scalars.close()

    def _append(self, values: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """A run's history, one dict a line; a last line cut short by a crash is left out."""
    path = folder / "history.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    history = []
    for line in lines:
        try:
            history.append(json.loads(line))
        except ValueError:
            break
    return history


def draw_curve(folder: Path) -> None:
    """loss.png: each step's loss, their running mean, and the validation loss."""
    from matplotlib.figure import Figure

    history = read_history(folder)
    steps = [(line["step"], line["loss"]) for line in history if "loss" in line]
    held_out = [
        (line["step"], line["validation"]["mean"]) for line in history if "validation" in line
    ]
    if not steps:
        return
    smooth, mean = [], math.nan
    for _, loss in steps:
        mean = loss if math.isnan(mean) else SMOOTH * mean + (1 - SMOOTH) * loss
        smooth.append(mean)
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    x = [step for step, _ in steps]
    axes.plot(x, [loss for _, loss in steps], color="0.8", linewidth=0.8, label="each step")
    axes.plot(x, smooth, color="tab:blue", linewidth=1.6, label="running mean")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            color="tab:orange",
            marker="o",
            linewidth=1.6,
            label="held out",
        )
    axes.set(xlabel="step", ylabel="loss", title=folder.name, yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with writing.beside(folder / "loss.png") as partial:
        figure.savefig(partial, format="png")
