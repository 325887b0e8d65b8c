"""What the stream costs: beside plain webdataset on the same samples, and beside a raw read of the
same bytes.

All three give the same windows of the same clips, once an epoch, from the page cache. webdataset
decodes whole samples and crops them, for that is what a tar without an index allows; the raw read
takes the stream's own ranges and makes nothing of them.
"""

from __future__ import annotations

import gc
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tests.making.shards import Members, new_shards, npy
from training.frames import Window
from training.ranges import Range
from training.shards import Index
from training.stream import Stream

if TYPE_CHECKING:
    from tests.bench import Row

FRAME, TEXT = (4, 64, 64), (77, 768)  # of a 512 x 512 clip under SD 1.x
NUM_FRAMES, PER_SHARD, BATCH = 100, 50, 4
WINDOWS = (Window(5, 1), Window(5, 16), Window(17, 4), Window(65, 1))
PROMISED = Window(5, 1)


class Noting(Stream):
    """A stream that notes what it reads."""

    ranges_read: list[tuple[str, int, int]]

    def _fill(self, ranges: Sequence[Range]) -> None:
        self.ranges_read += [(file, start, buffer.nbytes) for file, start, buffer in ranges]
        super()._fill(ranges)


def streaming(scratch: Path, repeats: int, num_samples: int = 200) -> list[Row]:
    """Samples per second of the stream over those of webdataset and of raw reads, and bytes read
    per byte used, by window.
    """
    from tests.bench import Row, cost_of  # which imports this module

    rows: list[Row] = []
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        index = shards_of(Path(folder), num_samples)
        for window in WINDOWS:
            what = f"stream, {window} of {NUM_FRAMES} frames"
            plain = Row(
                f"{what}, {'x'.join(map(str, FRAME))}", "samples/s", "webdataset, whole samples"
            )
            raw = Row(what, "samples/s", "raw read of the same bytes")
            moved = Row(
                f"{what}: bytes read per byte used",
                "MB",
                "MB used",
                ("<=", 1.2) if window == PROMISED else None,
            )
            starts, ranges, (read, used) = first_epoch(index, window, num_samples)
            moved.add(read / 1e6, used / 1e6)
            for _ in range(repeats):
                ours = cost_of(epoch, index, window, num_samples).wall_s
                plain.add(
                    num_samples / ours,
                    num_samples / cost_of(webdataset_epoch, index, window, starts).wall_s,
                )
                raw.add(num_samples / ours, num_samples / cost_of(raw_epoch, index, ranges).wall_s)
            rows += [plain, raw, moved]
    gc.collect()  # webdataset leaves its files to it
    return rows


def shards_of(folder: Path, num_samples: int) -> Index:
    """Clips of noise, of which one in ten differs: nothing here looks at the numbers, and making
    them takes longest.
    """
    random = np.random.default_rng(0)

    def clip() -> Members:
        latents, text = (
            random.standard_normal(shape, np.float32).astype(np.float16)
            for shape in ((NUM_FRAMES, *FRAME), (1, *TEXT))
        )
        return {"json": b"{}", "latents.npy": npy(latents), "text.npy": npy(text)}

    different = [clip() for _ in range(max(1, num_samples // 10))]
    clips = {
        f"clip-{number:04d}": different[number % len(different)] for number in range(num_samples)
    }
    return new_shards(folder, clips, PER_SHARD, shape=FRAME, text_shape=TEXT)


def first_epoch(
    index: Index, window: Window, num_samples: int
) -> tuple[dict[str, int], list[tuple[str, int, int]], tuple[int, int]]:
    """Where each clip's window begins, what is read for all of them, and how many bytes are read
    and used.
    """
    stream = Noting(index, windows=[window], batch_size=BATCH)
    stream.ranges_read = []
    batches = [stream.batch(step) for step in range(num_samples // BATCH)]
    starts = {
        key: start for batch in batches for key, start in zip(batch.keys, batch.starts, strict=True)
    }
    return starts, stream.ranges_read, (stream.bytes_read, stream.bytes_used)


def epoch(index: Index, window: Window, num_samples: int) -> None:
    """Ours: a new stream, so headers and captions are read too."""
    for _ in Stream(index, windows=[window], batch_size=BATCH).loader(0, num_samples // BATCH):
        pass


def webdataset_epoch(index: Index, window: Window, starts: dict[str, int]) -> None:
    """The same windows as the same tensors through plain webdataset, without shuffling."""
    import webdataset

    files = [str(Path(index.url, shard.file)) for shard in index.shards]
    for sample in webdataset.WebDataset(files, shardshuffle=False):
        latents, text = (
            np.load(io.BytesIO(sample[name]), allow_pickle=False)
            for name in ("latents.npy", "text.npy")
        )
        start = starts[sample["__key__"]]
        torch.from_numpy(latents[start : start + window.span : window.stride]).float().mul_(
            index.scaling_factor
        )
        torch.from_numpy(text).float()


def raw_epoch(index: Index, ranges: Sequence[tuple[str, int, int]]) -> None:
    """The floor: the same bytes by the same calls of the system."""
    files = {
        shard.file: os.open(Path(index.url, shard.file), os.O_RDONLY) for shard in index.shards
    }
    for file, start, num_bytes in ranges:
        os.pread(files[file], num_bytes, start)
    for descriptor in files.values():
        os.close(descriptor)
