"""Which numbers are the same on every machine: digests of a short clip and of what is made of it.

    python -m tests.portable > docs/portable-bits/NAME.json     this machine, under several settings
    python -m tests.portable --compare A.json B.json            two machines: where they part first
    python -m tests.portable --golden                           write tests/media/portable.json anew

`tests/media/test_portable.py` compares the machine at hand with the golden. Remake that only with a
new version of a stage, of the shipped models or of the ffmpeg that makes the film.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.media import encoders, machine, reel, video
from tests.making import footage

GOLDEN = Path(__file__).parent / "media" / "portable.json"
CAPTION = "zebrafish swimming in a dish, seen from above"
FRAMES = 6  # of the clip, 64 x 64
NO_AV = "LONGTAKE_TEST_PLAIN_C"  # tells `measure` to hold FFmpeg to plain C
LOW = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    NO_AV: "1",
}
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "torch held to AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN held to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL held to AVX2": {"MKL_CBWR": "AVX2"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "everything held low": LOW,
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def hold_ffmpeg_to_plain_c() -> None:
    """No vector instructions in the FFmpeg of PyAV, from now on."""
    (library,) = (Path(av.__file__).parents[1] / "av.libs").glob("libavutil-*")
    ctypes.CDLL(str(library)).av_force_cpu_flags(0)


def measure(precision: encoders.Precision, folder: Path) -> dict[str, str]:
    """A film is made, decoded, cropped, scaled, encoded and read back, then seen by the shipped
    models: digests of what comes out of each step and layer, in order. A layer's output counts as
    float16, as what is stored does.
    """
    film = footage.plain(folder / "film.mp4", 1, size="160x120")
    facts = video.probe(film)
    digests = {"the film, decoded": digest(b"".join(_planes(film, facts)))}
    params = reel.Params(fps=Fraction(10), size=64)
    writer = reel.Writer(folder / "reel.mp4", facts, params)
    for frame, pts, end_pts in video.frames(film, facts):
        writer.add(frame, pts, end_pts)
    writer.close()
    _, pictures = reel.cut_clip(folder / "reel.mp4", params.fps, 0, FRAMES, folder / "clip.mp4")
    digests["the clip"] = pictures[:12]
    is_portable = precision == encoders.PORTABLE
    read = video.read_clip_exactly if is_portable else video.read_clip
    frames = read(folder / "clip.mp4")
    digests["the clip's pixels"] = digest(frames.tobytes())

    vae = encoders.load_vae(encoders.TINY / "vae", precision, "cpu")
    with recording(vae.encoder, "VAE ", digests):
        latents, _ = encoders.latents(vae, frames, 8, with_std=False)
    digests["latents"] = digest(latents.tobytes())
    with recording(vae.decoder, "VAE ", digests):
        again = encoders.decode(vae, latents)
    digests["round trip"] = f"{encoders.psnr_db(again, frames):.2f} dB"
    clip = encoders.load_clip(encoders.TINY / "clip", precision, "cpu")
    with recording(clip.transformer, "CLIP, words, ", digests):
        text = encoders.text(clip, CAPTION, "last", 49407)
    digests["text"] = digest(text.tobytes())
    with recording(clip.visual, "CLIP, pictures, ", digests):
        image = encoders.images(clip, frames[[0, -1]])
    digests["image"] = digest(image.tobytes())
    return digests


def _planes(film: Path, facts: video.Container) -> Iterator[bytes]:
    for frame, _, _ in video.frames(film, facts):
        yield from (bytes(plane) for plane in frame.planes)


@contextmanager
def recording(model: Any, name: str, digests: dict[str, str]) -> Iterator[None]:
    """Add digests of the first output of every layer that has no layers of its own."""

    def hook(layer: str) -> Any:
        def add(module: Any, args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            values = out.detach().contiguous().double().numpy().astype(np.float16)
            values += np.float16(0)  # one zero, as in `encoders`
            digests.setdefault(f"{name}{layer}", digest(values.tobytes()))

        return add

    layers = [(layer, m) for layer, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(hook(layer)) for layer, module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_under(
    setting: Mapping[str, str], precision: encoders.Precision = encoders.PORTABLE
) -> dict[str, str]:
    """`measure` in a process of its own, with these variables in its environment."""
    command = [sys.executable, "-m", "tests.portable", "--one", precision]
    environment = {**os.environ, **setting}
    root = Path(__file__).parents[1]
    out = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr[-2000:]
    digests: dict[str, str] = json.loads(out.stdout.splitlines()[-1])
    return digests


def first_apart(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    """The first step or layer of `a` that `b` has otherwise; None where all are equal."""
    return next((name for name in a if a[name] != b.get(name)), None)


def compare(a: Path, b: Path) -> Iterator[str]:
    """A line for each setting that two machines measured."""
    ours, theirs = (json.loads(path.read_text("utf-8")) for path in (a, b))
    for precision, settings in ours["settings"].items():
        for setting, digests in settings.items():
            others = theirs["settings"].get(precision, {})
            plain = settings["as it is"] | digests, others["as it is"] | others.get(setting, {})
            name = first_apart(*plain)
            yield f"{precision}, {setting:24} {f'part at {name}' if name else 'equal'}"


def settings_of(precision: encoders.Precision) -> dict[str, dict[str, str]]:
    """Digests by setting: all of them as the machine is, of the others those that differ."""
    plain = measure_under({}, precision)
    settings = {"as it is": plain}
    for name, setting in SETTINGS.items():
        digests = measure_under(setting, precision)
        settings[name] = {step: value for step, value in digests.items() if value != plain[step]}
    return settings


def main(words: list[str]) -> None:
    if words[:1] == ["--one"]:
        if NO_AV in os.environ:
            hold_ffmpeg_to_plain_c()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(words[1], Path(folder))))  # type: ignore[arg-type]
    elif words[:1] == ["--compare"]:
        print("\n".join(compare(*map(Path, words[1:3]))))
    elif words[:1] == ["--golden"]:
        GOLDEN.write_text(json.dumps(measure_under({}), indent=1) + "\n", "utf-8")
    else:
        settings = {name: settings_of(name) for name in ("float32", encoders.PORTABLE)}
        device = encoders.device_name("cpu")
        print(json.dumps({**machine.cpu(), "device": device, "settings": settings}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
