"""ffmpeg on frames in memory: how like they are to the truth (VMAF, XPSNR), and what its own filter
puts between keyframes.

The binary is the one in the imageio-ffmpeg wheel, so that numbers do not depend on what a machine
happens to have. Frames are `f h w c` uint8 RGB. Cost: 0.3 s a window of 65 frames of 256 x 256 for
both scores, about 1 s for the frames in between.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.media.encoders import MAX_PSNR_DB, Pixels
from training.errors import Stopped

MIN_SIDE = 32  # of a picture: VMAF's program ends with a crash at 16
# The conversion between RGB and YUV: 0.03 dB of a picture are lost, where swscale's quick one
# loses ten times that.
SCALE = "scale=flags=accurate_rnd+full_chroma_int+full_chroma_inp"
TO_YUV = f"{SCALE}:out_color_matrix=bt709"
TO_RGB = f"{SCALE}:in_color_matrix=bt709"


@functools.cache
def filters() -> frozenset[str]:
    """The names of all filters the binary has."""
    listing = _run(["-filters"], Path()).decode()
    lines = re.findall(r"^ [TS.]{2,3} (\w+) ", listing, re.MULTILINE)
    return frozenset(lines)


def _run(arguments: Sequence[str], folder: Path, frames: bytes = b"") -> bytes:
    """What ffmpeg writes to its standard output. Raises Stopped with its last line if it fails."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-hide_banner", "-nostdin", "-loglevel", "error", *arguments]
    if frames:
        command.remove("-nostdin")
    process = subprocess.run(command, input=frames, capture_output=True, cwd=folder, check=False)
    if process.returncode:
        last = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Stopped(f"ffmpeg ended with {process.returncode}: {last}")
    return process.stdout


def _input(frames: Pixels, fps: Fraction, source: str) -> list[str]:
    """The options that tell ffmpeg what raw frames are."""
    _, height, width, _ = frames.shape
    size = f"{width}x{height}"
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", source]


def scores(frames: Pixels, truth: Pixels, fps: Fraction) -> dict[str, NDArray[np.float64]]:
    """VMAF (0 to 100) and XPSNR of luma (dB, at most 99) of each frame, `f`, by the name of the
    metric; without those that the binary cannot measure, and without any of pictures smaller than
    32 x 32.

    Both look at the frames before, so `frames` are a whole window in order. VMAF is model v0.6.1.
    """
    graphs = {
        "vmaf": "libvmaf=log_path=vmaf.json:log_fmt=json",
        "xpsnr_db": "xpsnr=stats_file=xpsnr.txt",
    }
    measured: dict[str, NDArray[np.float64]] = {}
    if min(frames.shape[1:3]) < MIN_SIDE:
        return measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "frames.rgb").write_bytes(np.ascontiguousarray(frames).tobytes())
        (folder / "truth.rgb").write_bytes(np.ascontiguousarray(truth).tobytes())
        inputs = _input(frames, fps, "frames.rgb") + _input(truth, fps, "truth.rgb")
        for metric, graph in graphs.items():
            if graph.partition("=")[0] not in filters():
                continue
            to_yuv = f"{TO_YUV},format=yuv420p"
            chain = f"[0:v]{to_yuv}[frames];[1:v]{to_yuv}[truth];[frames][truth]{graph}"
            _run([*inputs, "-lavfi", chain, "-f", "null", "-"], folder)
            read = _vmaf if metric == "vmaf" else _xpsnr
            measured[metric] = read(folder)
    return measured


def _vmaf(folder: Path) -> NDArray[np.float64]:
    log = json.loads((folder / "vmaf.json").read_text("utf-8"))
    return np.array([frame["metrics"]["vmaf"] for frame in log["frames"]])


def _xpsnr(folder: Path) -> NDArray[np.float64]:
    text = (folder / "xpsnr.txt").read_text("utf-8")
    values = [float(value) for value in re.findall(r"XPSNR y: *(\S+)", text)]
    # of equal frames it is infinite
    return np.array([min(value, MAX_PSNR_DB) for value in values])


def minterpolate(keyframes: Pixels, every: int) -> Pixels:
    """Keyframes `n h w c` and what ffmpeg's `minterpolate` puts between them, in steps of 1 /
    `every`: `(n - 1) * every + 1` frames. The keyframes among them went through YUV.

    Options are the filter's own, without its search for cuts. It makes nothing in the first and
    last gap for want of neighbours, so both ends are put in twice.
    """
    padded = np.concatenate([keyframes[:1], keyframes, keyframes[-1:]])
    rate = f"minterpolate=fps={every}:mi_mode=mci:scd=none"
    chain = f"{TO_YUV},format=yuv444p,{rate},{TO_RGB}"
    output = ["-vf", chain, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    content = np.ascontiguousarray(padded).tobytes()
    raw = _run([*_input(padded, Fraction(1), "-"), *output], Path(), content)
    frames = np.frombuffer(raw, np.uint8).reshape(-1, *keyframes.shape[1:])
    first = every  # where the first of the padded keyframes is over
    video: Pixels = frames[first : first + every * (len(keyframes) - 1) + 1]
    return video
