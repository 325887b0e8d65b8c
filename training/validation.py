"""How training goes, seen from outside: loss on held-out windows by timestep, and pictures.

The same windows, noise and timesteps every time, so two values differ by the weights alone. Cost: windows times
buckets forward passes, and one sampling, each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import diffusion
from training.checkpoint import Run
from training.errors import UsageError
from training.frames import Window, known_frames
from training.stream import Batch, Index, Stream, draw, fixed_windows
from training.unet import VideoUNet

NUM_WINDOWS = 2  # of each shape
BUCKETS = 5


class Validation:
    """Of one run, in its first process. Without held-out clips there are no losses; without the VAE, no pictures."""

    def __init__(self, run: Run, index: Index, device: torch.device, vae: str | None, say: Callable[[str], None]) -> None:
        self.run, self.device = run, device
        self.batches = list(_batches(run, index, say))
        self.codec: Any = None

    @torch.no_grad()
    def losses(self, model: VideoUNet, schedule: Any) -> dict[str, float]:
        """Mean loss of each bucket of timesteps, named by its bounds, and "mean"; empty without held-out clips."""
        preset, num = self.run.preset, schedule.config.num_train_timesteps
        found: dict[str, list[float]] = {}
        for number, batch in enumerate(self.batches):
            known = self._known(batch.window)[None].expand(len(batch.latents), -1)
            for bucket in range(BUCKETS):
                low, high = bucket * num // BUCKETS, (bucket + 1) * num // BUCKETS
                generator = torch.Generator().manual_seed(draw("validation", self.run.seed, number, bucket) % 2**63)
                noise = torch.randn(batch.latents.shape, generator=generator)
                t = torch.randint(low, high, (len(batch.latents),), generator=generator)
                parts = (batch.latents, known, batch.text, batch.fps, noise, t)
                args = tuple(part.to(self.device) for part in parts)
                each = diffusion.losses(model, schedule, preset.objective, preset.in_channels, *args)
                found.setdefault(f"{low}-{high - 1}", []).extend(each.tolist())
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return {**means, "mean": float(np.mean(list(means.values())))} if means else {}

    def _known(self, window: Window) -> Tensor:
        task = self.run.preset.tasks[0][0]
        return torch.tensor(known_frames(task, window.num_frames, every=self.run.preset.every))

    def pictures(self, model: VideoUNet, step: int) -> None:
        """Sample one held-out window of each shape, into samples/."""


def _batches(run: Run, index: Index, say: Callable[[str], None]) -> Iterator[Batch]:
    """Held-out windows, a batch of each of the preset's shapes."""
    windows = dict.fromkeys(run.preset.windows)
    try:
        stream = Stream(index, "validation", tuple(windows), seed=run.seed)
        pairs = {window: fixed_windows(index, "validation", window, NUM_WINDOWS) for window in windows}
    except UsageError as error:
        say(f"no validation loss: {error}")
        return
    for window in windows:
        yield stream.gather(pairs[window], window)
