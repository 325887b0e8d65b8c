"""How training goes, seen from outside: loss on held-out windows by timestep, and pictures.

The same windows, noise and timesteps every time, so two values differ by the weights alone. Cost:
windows times buckets forward passes, and one sampling, each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import diffusion, heldout, media, sampling
from training.codec import Codec, find_folder
from training.errors import LongtakeError, UsageError
from training.frames import Window, known_frames
from training.run import Run
from training.shards import Index
from training.stream import Batch, Stream, draw, fixed_windows
from training.unet import VideoUNet

NUM_WINDOWS = 2  # of each shape
BUCKETS = 5


class Validation:
    """Of one run, in its first process. Without held-out clips there are no losses; without the
    VAE, no pictures.
    """

    def __init__(
        self,
        run: Run,
        index: Index,
        device: torch.device,
        vae: Path | None,
        pictures: bool,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.device = run, device
        self.batches = list(_batches(run, index, say))
        self.codec = Codec(index.encoders, index.scaling_factor, vae, device=device)
        self.null_text = torch.tensor(index.null_text, dtype=torch.float32)
        self.shows = pictures and bool(self.batches)
        try:
            find_folder("vae", index.encoders["vae"], vae)
        except LongtakeError as error:
            self.shows = False
            say(f"no sample pictures: {error}")

    @torch.no_grad()
    def losses(self, model: VideoUNet, schedule: Any) -> dict[str, float]:
        """Mean loss of each bucket of timesteps, named by its bounds, and "mean"; empty without
        held-out clips.
        """
        preset, num = self.run.preset, schedule.config.num_train_timesteps
        by_bucket: dict[str, list[float]] = {}
        for number, batch in enumerate(self.batches):
            known = self._known(batch.window)[None].expand(len(batch.latents), -1)
            for bucket in range(BUCKETS):
                low, high = bucket * num // BUCKETS, (bucket + 1) * num // BUCKETS
                seed = draw("validation", self.run.seed, number, bucket) % 2**63
                generator = torch.Generator().manual_seed(seed)
                noise = torch.randn(batch.latents.shape, generator=generator)
                t = torch.randint(low, high, (len(batch.latents),), generator=generator)
                parts = (batch.latents, known, batch.text, batch.fps, noise, t)
                args = tuple(part.to(self.device) for part in parts)
                each = diffusion.losses(
                    model, schedule, preset.objective, preset.in_channels, *args
                )
                by_bucket.setdefault(f"{low}-{high - 1}", []).extend(each.tolist())
        if not by_bucket:
            return {}
        means = {name: float(np.mean(values)) for name, values in by_bucket.items()}
        return {**means, "mean": float(np.mean(list(means.values())))}

    def _known(self, window: Window) -> Tensor:
        task = self.run.preset.tasks[0][0]
        return torch.tensor(known_frames(task, window.num_frames, every=self.run.preset.every))

    def pictures(self, model: VideoUNet, step: int) -> None:
        """Sample a held-out window of the fewest frames and put it below the truth:
        samples/step-000300.png.
        """
        if not self.shows:
            return
        preset = self.run.preset
        batch = min(self.batches, key=lambda batch: batch.window.num_frames)
        flags = self._known(batch.window)
        sampled = sampling.sample_window(
            model,
            preset.objective,
            batch.latents[:1],
            flags,
            batch.text[:1],
            self.null_text,
            batch.fps[:1],
            steps=preset.sampler_steps,
            guidance=preset.guidance,
            seed=self.run.seed,
        )
        known = tuple(flags.tolist())
        rows = [
            ("held out", self.codec.decode(batch.latents[0]), known),
            (f"step {step}", self.codec.decode(sampled[0]), known),
        ]
        caption = (
            f"{self.run.folder.name}: {batch.keys[0]}, frame {batch.starts[0]} on, "
            f"{batch.window}; known frames have a border"
        )
        path = self.run.folder / "samples" / f"step-{step:06d}.png"
        media.write_image(path, media.side_by_side(rows, caption, side=96))


def _batches(run: Run, index: Index, say: Callable[[str], None]) -> Iterator[Batch]:
    """Held-out windows, a batch of each of the preset's shapes."""
    windows = dict.fromkeys(run.preset.windows)
    if not index.entries.get(heldout.SPLIT):
        say(_nothing_held_out(index))
        return
    try:
        stream = Stream(index, "validation", tuple(windows), seed=run.seed)
        pairs = {
            window: fixed_windows(index, "validation", window, NUM_WINDOWS) for window in windows
        }
    except UsageError as error:
        say(f"no validation loss: {error}")
        return
    for window in windows:
        yield stream.gather(pairs[window], window)


def _nothing_held_out(index: Index) -> str:
    """What is said before the first step of a run that nothing can judge."""
    line = "!" * 79
    return (
        f"{line}\nNOTHING IS HELD OUT of {index.name}: no number of this run will tell what it "
        "learns from what\nit remembers, there is no validation loss and no sample picture, and "
        f"`make evaluate` will\nrefuse. Now is the time: {heldout.advice(index)}.\n{line}"
    )
