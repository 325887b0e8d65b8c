"""What stored latents decode to, as a video one can lay beside the clip. Each is made once and
remembered in the store, by the digests of the latents and of the VAE.

A decoded clip costs what the VAE costs: 70 ms a frame of 256 pixels for the tiny one on a CPU core;
Stable Diffusion's takes 20 s a frame of 512 there, and 15 ms on a GPU. So a caller gives seconds,
and a clip that would take longer is left out, after one chunk of it. The video is H.264 of quality
10, every frame a key frame: what one sees of a difference below 1 level is the codec's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import canonical
from pipeline.core.reading import Facts
from pipeline.core.records import Blob, Sample
from pipeline.core.store import Store
from pipeline.media import encoders

VERSION = 1
CRF = 10  # of x264
Pixels = NDArray[np.uint8]


class _Decoded(Facts):
    """What is remembered of a decoded clip."""

    decoded: Blob


@dataclass
class Decoder:
    """A VAE that is loaded when the first clip needs it."""

    folder: Path  # of the VAE
    digest: str  # of its weights
    chunk_frames: int
    device: str
    seconds_a_frame: float | None = None  # as measured here
    is_ended: bool = False  # set by another thread: what is under way is given up
    _vae: Any = None
    _num_done: int = 0  # frames of the clip under way

    def remembered(self, sample: Sample, store: Store) -> Blob | None:
        """The decoded clip, if it was made before."""
        memo = store.recall(canonical.digest(self._task(sample)))
        return Blob(**memo["decoded"]) if memo else None

    def decoded_of(self, sample: Sample, store: Store, seconds: float) -> Blob | None:
        """The decoded clip, made if that takes no longer than so many seconds; None if it would, or
        the latents are gone.
        """
        if (blob := self.remembered(sample, store)) is not None:
            return blob
        needed = sample.clip.num_frames * (self.seconds_a_frame or 0)
        if seconds <= 0 or needed > seconds or not store.has(sample.latents):
            return None
        latents = np.load(store.path(sample.latents.sha256), allow_pickle=False, mmap_mode="r")
        with store.scratch(".mp4") as path:
            if not self._write(path, sample, latents, time.monotonic() + seconds):
                return None
            made = store.once(self._task(sample), lambda: {"decoded": store.adopt(path)}, _Decoded)
        return Blob(**made["decoded"])

    def _task(self, sample: Sample) -> list[object]:
        return ["decoded", VERSION, sample.clip.identity(), sample.latents.sha256, self.digest]

    def _write(self, path: Path, sample: Sample, latents: Any, deadline: float) -> bool:
        """Write the video; whether it was done in time."""
        import imageio_ffmpeg

        writer: Any = None
        for frames in self._chunks(latents, deadline):
            if writer is None:
                height, width = frames.shape[1:3]
                writer = imageio_ffmpeg.write_frames(
                    str(path),
                    (width, height),
                    fps=float(sample.clip.fps),
                    codec="libx264",
                    quality=None,
                    macro_block_size=2,
                    output_params=OUTPUT,
                )
                writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame))
        if writer is not None:
            writer.close()
        return writer is not None and len(latents) == self._num_done

    def _chunks(self, latents: Any, deadline: float) -> Iterator[Pixels]:
        """Decoded frames `f h w c`, a chunk at a time; ends early if time would run out."""
        if self._vae is None:
            self._vae = encoders.load_vae(self.folder, "float32", self.device)
        self._num_done = 0
        for start in range(0, len(latents), self.chunk_frames):
            began = time.monotonic()
            chunk = np.array(latents[start : start + self.chunk_frames])
            frames = encoders.decode(self._vae, chunk)
            self.seconds_a_frame = (time.monotonic() - began) / len(frames)
            self._num_done += len(frames)
            yield frames
            left = (len(latents) - self._num_done) * self.seconds_a_frame
            if self.is_ended or time.monotonic() + left > deadline:
                return


OUTPUT = [
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
    *("-crf", str(CRF), "-preset", "ultrafast", "-g", "1", "-bf", "0"),
    *("-threads", "1", "-fflags", "+bitexact", "-movflags", "+faststart"),
]
