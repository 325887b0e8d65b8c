"""What a run says of itself: a progress bar, history.jsonl, a loss curve, TensorBoard scalars.

The history is the record, the others are drawn from it. On resume it is cut back to the
checkpoint's step, so that no step is told twice.
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

from training.checkpoint import Run

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
        self._run, self._console = run, console
        self._path = run.folder / "history.jsonl"
        self._smooth: float | None = None
        self._bar: Any = None
        self._task: Any = None
        self._scalars: Any = None
        self._counted, self._since = 0, time.monotonic()
        if console is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        kept = [one for one in read_history(run.folder) if one["step"] <= step]
        self._path.write_text("".join(json.dumps(one) + "\n" for one in kept), "utf-8")
        self._scalars = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1)

    def say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False, soft_wrap=True)

    def begin(self, stream: Any, model: nn.Module, step: int) -> None:
        """Tell what is trained on what."""
        run, preset = self._run, self._run.preset
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        )
        skipped = (
            f" ({stream.num_skipped} shorter than a window's span skipped)"
            if stream.num_skipped
            else ""
        )
        self.say(
            f"{preset.name} on {run.dataset['name']} ({run.dataset['root_digest'][:12]}): {stream.num_samples} clips{skipped}, windows "
            f"{', '.join(sorted({str(window) for window in preset.windows}))}, {total:,} parameters, {trained:,} trained"
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
        self._counted += num_samples
        speed = self._counted / max(1e-9, time.monotonic() - self._since)
        self._append(
            {
                "step": step,
                "loss": loss,
                "grad_norm": norm,
                "lr": rate,
                "samples_per_s": round(speed, 3),
            }
        )
        for name, value in (
            ("loss", loss),
            ("grad_norm", norm),
            ("lr", rate),
            ("samples_per_s", speed),
            ("peak_gib", peak_memory_gib()),
        ):
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
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def draw_curve(folder: Path) -> None:
    """loss.png: each step's loss, their running mean, and the validation loss."""
    from matplotlib.figure import Figure

    history = read_history(folder)
    steps = [(one["step"], one["loss"]) for one in history if "loss" in one]
    held_out = [(one["step"], one["validation"]["mean"]) for one in history if "validation" in one]
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
    beside = folder / ".loss.partial.png"
    figure.savefig(beside)
    beside.replace(folder / "loss.png")
