"""How well a model knows each clip: its loss at fixed timesteps with fixed noise, one line a clip.

Clips with the highest losses are hard or wrong (damaged, mislabelled, of another kind), those with
the lowest easy or seen too often. Of each clip the window in its middle is measured, with its first
caption and the same noise as any other clip, one at a time: nothing is random, and no number
depends on the clips beside it. Cost: five forward passes a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from training import diffusion, writing
from training.checkpoint import load_model
from training.errors import UsageError
from training.frames import Window, known_frames
from training.run import Run
from training.shards import Entry, Index, check_identity
from training.stream import Stream, draw

TIMESTEPS = (100, 300, 500, 700, 900)
FILE = "losses.parquet"


@dataclass(frozen=True)
class ClipLoss:
    """A clip's loss at each of `TIMESTEPS`; `sha256` is that of its latents in the shards."""

    key: str
    sha256: str
    split: str
    start: int  # of the window, in frames
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)


@torch.no_grad()
def measure(
    run: Run,
    index: Index,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], object] | None = None,
) -> list[ClipLoss]:
    """Every clip that is long enough for the first of the preset's windows, highest loss first.

    Raises UsageError if none is, ShardError if the shards are of other encoders, and what
    `load_model` raises.
    """
    check_identity(index, run.dataset["identity"])
    window = run.preset.windows[0]
    clips = [
        (split, entry)
        for split, entries in sorted(index.entries.items())
        for entry in entries
        if entry.num_frames >= window.span
    ]
    if not clips:
        raise UsageError(f"{index.url}: no clip is as long as a window, {window.span} frames")
    model = load_model(run, device)
    streams = {split: Stream(index, split, [window]) for split in {split for split, _ in clips}}
    rows = []
    for number, (split, entry) in enumerate(clips):
        rows.append(_clip_loss(run, model, streams[split], entry, window, torch.device(device)))
        if progress is not None:
            progress("clips", number + 1, len(clips))
    return sorted(rows, key=lambda row: (-row.mean, row.key))


def _clip_loss(
    run: Run, model: Any, stream: Stream, entry: Entry, window: Window, device: torch.device
) -> ClipLoss:
    preset = run.preset
    schedule = diffusion.scheduler(preset.objective)
    start = (entry.num_frames - window.span) // 2
    batch = stream.gather([(entry.key, start)], window).to(device)
    task = preset.tasks[0][0]
    known = torch.tensor(known_frames(task, window.num_frames, every=preset.every), device=device)
    losses = []
    for t in TIMESTEPS:
        generator = torch.Generator().manual_seed(draw("clip loss", t) % 2**63)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        is_bf16 = preset.precision == "bf16" and device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            loss = diffusion.losses(
                model,
                schedule,
                preset.objective,
                preset.in_channels,
                batch.latents,
                known[None],
                batch.text,
                batch.fps,
                noise,
                torch.tensor([t], device=device),
            )
        losses.append(float(loss))
    return ClipLoss(entry.key, entry.latents.sha256, stream.split, start, tuple(losses))


def save(rows: list[ClipLoss], folder: Path) -> Path:
    """Write the table as FOLDER/losses.parquet: key, sha256, split, start, loss, loss_100, ..."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in ("key", "sha256", "split", "start")
    }
    columns["loss"] = [row.mean for row in rows]
    for number, t in enumerate(TIMESTEPS):
        columns[f"loss_{t}"] = [row.losses[number] for row in rows]
    path = folder / FILE
    with writing.beside(path) as partial:
        parquet.write_table(pa.table(columns), partial)
    return path


def table(rows: Sequence[ClipLoss], show: int) -> Table:
    """Clips with the highest and the lowest loss."""
    sheet = Table("clip", "split", "loss", box=box.SIMPLE, title=f"Loss of {len(rows)} clips")
    sheet.columns[2].justify = "right"
    parts = [rows] if len(rows) <= 2 * show else [rows[:show], rows[-show:]]
    for part in parts:
        for row in part:
            sheet.add_row(row.key, row.split, f"{row.mean:.4f}")
        sheet.add_section()
    return sheet
