"""Shards -> batches: which samples, which windows of them, in which order.

The order is a pure function of (seed, epoch); everything else that is drawn, of (seed, sample
index) or (seed, step), through a hash. So the cursor is one integer, samples seen, and neither
ranks nor workers nor where a run was resumed change what a model sees. Contiguous frames are one
byte range of one file, strided ones a range each: no sample is read whole. Memory does not grow
with the shards, but for the index and a few captions.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from multiprocessing.context import BaseContext

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader, Dataset

from training.errors import LongtakeError, ShardError, UsageError
from training.frames import Window
from training.ranges import Range
from training.shards import (
    DTYPE,
    HEADER,
    Array,
    Caption,
    Entry,
    Index,
    is_finite,
    parse_caption,
    parse_header,
)

MAX_TEXTS = 256


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of clips. `latents` are scaled; `fps` is the effective one: that of the clips over
    the window's stride.
    """

    latents: torch.Tensor  # b f c h w float32
    text: torch.Tensor  # b n d float32
    fps: torch.Tensor  # b float32
    window: Window
    keys: tuple[str, ...]
    starts: tuple[int, ...]
    sample_indices: tuple[int, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; from pinned memory without waiting."""
        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            text=self.text.to(device, non_blocking=True),
            fps=self.fps.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        return replace(
            self,
            latents=self.latents.pin_memory(),
            text=self.text.pin_memory(),
            fps=self.fps.pin_memory(),
        )


def draw(*words: object) -> int:
    """64 bits that depend on all the words and on nothing else."""
    text = "\0".join(map(str, words))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def eligible(index: Index, split: str, span: int) -> list[Entry]:
    """The split's samples of at least `span` frames, in the shards' order. UsageError if there is
    none.
    """
    if split not in index.entries:
        raise UsageError(
            f"{index.url}: no split {split!r}, it has "
            f"{', '.join(sorted(index.entries)) or 'no shards'}"
        )
    longest = max((entry.num_frames for entry in index.entries[split]), default=0)
    if longest < span:
        raise UsageError(
            f"{index.url}: no clip of {split!r} is long enough: the longest has {longest} frames, "
            f"a window spans {span}; "
            "take fewer frames or a smaller stride, or build shards of longer videos"
        )
    return [entry for entry in index.entries[split] if entry.num_frames >= span]


class Stream:
    """Batches of windows, each a pure function of (index, arguments, step).

    Global sample `i` is number `i % n` of epoch `i // n`'s order of the `n` eligible samples;
    global batch `step` holds samples `step * batch_size` and on, and rank `r` takes those with `i %
    world == r`: so `batch_size` is that of all ranks together, and all have equally many batches.
    All samples of a global batch have the same window: one of `windows`, of which a stride `s`
    becomes one of `max(1, s - stride_jitter) .. s`. A share `text_dropout` of samples has the
    index's null text. A clip shorter than the longest window is left out and counted in
    `num_skipped`.

    `bytes_read` and `bytes_used` count what was read of the tars and what of that was wanted, in
    this process.
    """

    def __init__(
        self,
        index: Index,
        split: str = "train",
        windows: Sequence[Window] = (),
        batch_size: int = 1,
        seed: int = 0,
        text_dropout: float = 0.0,
        stride_jitter: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if (
            not windows
            or batch_size < 1
            or stride_jitter < 0
            or not 0 <= text_dropout <= 1
            or not 0 <= rank < world
        ):
            raise UsageError(
                f"no stream of windows {list(map(str, windows))}, batch_size {batch_size}, "
                f"stride_jitter {stride_jitter}, text_dropout "
                f"{text_dropout}, rank {rank} of {world}: there must be a window, a sample, a "
                "jitter of 0 or more, a share of 0 to 1"
            )
        if batch_size % world:
            raise UsageError(
                f"a batch of {batch_size} cannot be shared by {world} ranks equally; take a "
                f"multiple of {world}"
            )
        self.index = index
        self.split = split
        self.windows = tuple(windows)
        self.batch_size = batch_size
        self.seed = seed
        self.text_dropout = text_dropout
        self.stride_jitter = stride_jitter
        self.rank = rank
        self.world = world
        self._eligible = eligible(index, split, max(window.span for window in windows))
        self.num_samples = len(self._eligible)
        self.num_skipped = len(index.entries[split]) - self.num_samples
        self.bytes_read = self.bytes_used = 0
        self._files = index.files(split)
        self._by_key = {entry.key: entry for entry in index.entries[split]}
        self._frame_bytes = math.prod(index.frame_shape) * DTYPE.itemsize
        # of each sample whose header was seen, the byte where its numbers begin
        self._first_frame: dict[str, int] = {}
        self._texts: dict[Caption, Array] = {}
        self._orders: dict[int, Array] = {}

    def batch(self, step: int) -> Batch:
        """The part of global batch `step` that is this rank's."""
        window = self.window(step)
        first = step * self.batch_size
        indices = range(first + self.rank, first + self.batch_size, self.world)
        entries, starts, captions = [], [], []
        for index in indices:
            entry = self._entry(index)
            num_starts = entry.num_frames - window.span + 1
            entries.append(entry)
            starts.append(draw("start", self.seed, index) % num_starts)
            captions.append(self._caption(index, entry))
        return self._gather(entries, starts, captions, window, tuple(indices))

    def window(self, step: int) -> Window:
        """The window of global batch `step`, the same on all ranks."""
        nominal = self.windows[draw("window", self.seed, step) % len(self.windows)]
        least = max(1, nominal.stride - self.stride_jitter)
        num_strides = nominal.stride - least + 1
        return replace(nominal, stride=least + draw("stride", self.seed, step) % num_strides)

    def _entry(self, index: int) -> Entry:
        epoch, position = divmod(index, self.num_samples)
        if epoch not in self._orders:
            # Only a bit generator's raw output is promised to be the same in every numpy.
            bits = np.random.PCG64(draw("order", self.seed, epoch)).random_raw(self.num_samples)
            order = np.argsort(bits, kind="stable")
            # a batch may span two epochs: the one before is kept, older ones are not
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return self._eligible[int(self._orders[epoch][position])]

    def _caption(self, index: int, entry: Entry) -> Caption | None:
        if draw("dropout", self.seed, index) < self.text_dropout * 2**64:
            return None
        return entry.captions[draw("caption", self.seed, index) % len(entry.captions)]

    def gather(self, pairs: Sequence[tuple[str, int]], window: Window) -> Batch:
        """The windows that begin at these (key, start), with the first caption of each: for
        validation and evaluation.
        """
        entries = [self._entry_of(key, start, window) for key, start in pairs]
        return self._gather(
            entries,
            [start for _, start in pairs],
            [entry.captions[0] for entry in entries],
            window,
            tuple(range(len(pairs))),
        )

    def _entry_of(self, key: str, start: int, window: Window) -> Entry:
        entry = self._by_key.get(key)
        if entry is None:
            raise UsageError(f"{self.index.url}: no clip {key!r} in {self.split!r}")
        if not 0 <= start <= entry.num_frames - window.span:
            raise UsageError(
                f"{key} has {entry.num_frames} frames: a window of {window.span} cannot begin at "
                f"frame {start}"
            )
        return entry

    def _gather(
        self,
        entries: Sequence[Entry],
        starts: Sequence[int],
        captions: Sequence[Caption | None],
        window: Window,
        indices: tuple[int, ...],
    ) -> Batch:
        latents = np.empty((len(entries), window.num_frames, *self.index.frame_shape), DTYPE)
        buffer = rearrange(latents, "b f c h w -> (b f c h w)").view(np.uint8).data
        embeddings = self._fetch(entries, starts, window, buffer, captions)
        return Batch(
            latents=self._scaled(latents, entries, starts, window),
            text=torch.from_numpy(np.stack(embeddings)).float(),
            fps=torch.full((len(entries),), float(self.index.fps / window.stride)),
            window=window,
            keys=tuple(entry.key for entry in entries),
            starts=tuple(starts),
            sample_indices=indices,
        )

    def _fetch(
        self,
        entries: Sequence[Entry],
        starts: Sequence[int],
        window: Window,
        buffer: memoryview,
        captions: Sequence[Caption | None],
    ) -> list[Array]:
        """Read the windows into the buffer, with the headers and captions not yet seen, in one go:
        from afar, one round trip.
        """
        heads = {
            entry: bytearray(min(HEADER, entry.latents.num_bytes))
            for entry in entries
            if entry.key not in self._first_frame
        }
        unread = {
            caption.member: bytearray(caption.member.num_bytes)
            for caption in captions
            if caption is not None and caption not in self._texts
        }
        ranges = self._ranges(entries, starts, window, buffer)
        ranges += [
            (entry.latents.file, entry.latents.start, memoryview(head))
            for entry, head in heads.items()
        ]
        ranges += [
            (member.file, member.start, memoryview(content)) for member, content in unread.items()
        ]
        self._fill(ranges)
        for entry, head in heads.items():
            self._see_header(entry, head)
        if any(self._first_frame[entry.key] != entry.latents.start + HEADER for entry in heads):
            self._fill(self._ranges(entries, starts, window, buffer))
        embeddings = []
        for caption in captions:
            if caption is None:
                embeddings.append(self.index.null_text)
                continue
            text = self._texts.pop(caption, None)
            if text is None:
                content = unread[caption.member]
                text = parse_caption(content, caption, self.index.null_text.shape)
            self._texts[caption] = text  # at the end: used last
            embeddings.append(text)
        while len(self._texts) > MAX_TEXTS:  # the one not used for longest
            del self._texts[next(iter(self._texts))]
        self.bytes_used += buffer.nbytes + sum(map(len, unread.values()))
        return embeddings

    def _ranges(
        self, entries: Sequence[Entry], starts: Sequence[int], window: Window, buffer: memoryview
    ) -> list[Range]:
        """One range a window where its frames touch, else one a frame."""
        parts = 1 if window.stride == 1 else window.num_frames
        num_bytes = window.num_frames // parts * self._frame_bytes
        ranges: list[Range] = []
        for entry, start in zip(entries, starts, strict=True):
            first = self._first_frame.get(entry.key, entry.latents.start + HEADER)
            for frame in window.indices(start)[:parts]:
                at = len(ranges) * num_bytes
                part = buffer[at : at + num_bytes]
                ranges.append((entry.latents.file, first + frame * self._frame_bytes, part))
        return ranges

    def _fill(self, ranges: Sequence[Range]) -> None:
        self._files.fill(ranges)
        self.bytes_read += sum(buffer.nbytes for _, _, buffer in ranges)

    def _see_header(self, entry: Entry, head: bytearray) -> None:
        member, where = entry.latents, f"{self.index.url}: {entry.latents}"
        header_bytes = 10 + int.from_bytes(head[8:10], "little")
        length = min(header_bytes, member.num_bytes)
        if len(head) < length:
            head = bytearray(length)
            self._fill([(member.file, member.start, memoryview(head))])
        length, shape = parse_header(bytes(head), where)
        promised = (entry.num_frames, *self.index.frame_shape)
        if shape != promised or length + entry.num_frames * self._frame_bytes != member.num_bytes:
            raise ShardError(
                f"{where}: {member.num_bytes} bytes of shape {shape}, the index says {promised}; "
                "build the shards again"
            )
        self._first_frame[entry.key] = member.start + length

    def _scaled(
        self, latents: Array, entries: Sequence[Entry], starts: Sequence[int], window: Window
    ) -> torch.Tensor:
        if not is_finite(latents):
            row = next(row for row, part in enumerate(latents) if not is_finite(part))
            first = starts[row]
            where = (
                f"{self.index.url}: {entries[row].latents}, "
                f"frames {first} to {first + window.span - 1}"
            )
            raise ShardError(f"{where}: not all numbers are finite; build the shards again")
        return torch.from_numpy(latents).float().mul_(self.index.scaling_factor)

    def loader(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """Batches of steps `start .. stop - 1`, in order; with workers, prepared by that many new
        processes.

        Workers come from a clean process, for a fork of one with threads may hang. Tensors are
        pinned where there is a CUDA device.
        """
        steps: DataLoader[Batch | LongtakeError] = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            multiprocessing_context=_clean_processes() if workers else None,
            generator=torch.Generator(),  # else it draws from the global one
            pin_memory=torch.cuda.is_available(),
        )
        for batch in steps:
            if isinstance(batch, LongtakeError):
                raise batch
            yield batch


def _clean_processes() -> BaseContext:
    """A process that has imported torch once and forks workers from then on; where there is none,
    each begins from nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Steps(Dataset[Batch | LongtakeError]):
    """Batches by step. An error is handed over as it is: torch would put the worker's stack into
    its message.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, step: int) -> Batch | LongtakeError:
        try:
            return self._stream.batch(step)
        except LongtakeError as error:
            return error


def fixed_windows(index: Index, split: str, window: Window, count: int) -> list[tuple[str, int]]:
    """(key, start) of `count` windows of a split, always the same, evenly spaced and overlapping as
    little as can be.

    Each next window goes to the clip whose windows then still have most room, so that none overlaps
    as long as one fits beside the others. Fewer than `count` if there are no more. UsageError if no
    clip is long enough.
    """
    entries = eligible(index, split, window.span)
    numbers = dict.fromkeys(entries, 0)
    room = [(Fraction(-entry.num_frames), entry.key, entry) for entry in entries]
    heapq.heapify(room)
    for _ in range(count):
        if not room:
            break
        _, key, entry = heapq.heappop(room)
        numbers[entry] += 1
        if numbers[entry] <= entry.num_frames - window.span:
            heapq.heappush(room, (-Fraction(entry.num_frames, numbers[entry] + 1), key, entry))
    return sorted(
        (entry.key, start)
        for entry, number in numbers.items()
        for start in _spaced(entry.num_frames - window.span, number)
    )


def _spaced(last: int, number: int) -> list[int]:
    """That many positions from 0 to `last`, both included; one alone is in the middle."""
    return [last // 2] if number == 1 else [index * last // (number - 1) for index in range(number)]
