"""What training costs beside its floors: the stream, the wait for data, the temporal layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests import bench_stream, bench_unet
from training import diffusion, loop, models, presets
from training.errors import UsageError
from training.shards import open_index
from training.stream import Batch, Stream

if TYPE_CHECKING:
    from tests.bench import Row

STEPS = 4


def measure(data: Path, repeats: int, num_samples: int = 200) -> list[Row]:
    """All rows. `make shards` must have built the demo, on which the wait for data is measured."""
    scratch = data / "bench" / "scratch"
    return (
        bench_stream.streaming(scratch, repeats, num_samples)
        + stall(data / "demo" / "shards", repeats)
        + bench_unet.steps(repeats)
        + bench_unet.windows(repeats)
    )


def stall(shards: Path, repeats: int) -> list[Row]:
    """Time of steps fed by the stream over that of the same steps on resident batches, for the tiny
    interpolation preset.
    """
    from tests.bench import Row, cost_of  # which imports this module

    try:
        index = open_index(shards)
    except UsageError as error:
        raise SystemExit(f"{error}\nThe wait for data is measured on the demo.") from error
    preset = presets.find("tiny-interp")
    model = models.new_model(preset, "tiny", 0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    stream = Stream(index, "train", preset.windows[:1], preset.batch_size)
    resident = [stream.batch(step) for step in range(STEPS)]

    def step(batch: Batch) -> None:
        schedule = diffusion.scheduler(preset.objective)
        known, noise, t = loop.draw_task(preset, batch, 0, 1000)
        each = diffusion.losses(
            model,
            schedule,
            preset.objective,
            preset.in_channels,
            batch.latents,
            known,
            batch.text,
            batch.fps,
            noise,
            t,
        )
        each.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def fed() -> None:
        for batch in stream.loader(0, STEPS):
            step(batch)

    def step_resident(batches: list[Any]) -> None:
        for batch in batches:
            step(batch)

    row = Row(
        f"tiny-interp, {STEPS} training steps fed by the stream, wall",
        "s",
        "resident batches",
        ("<=", 1.02),
    )
    step_resident(resident)
    for _ in range(repeats):
        row.add(cost_of(fed).wall_s, cost_of(step_resident, resident).wall_s)
    return [row]
