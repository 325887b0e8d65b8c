"""README's moving picture and its sheet, drawn anew by the demo's models: `make pictures`.

Both are what `make sample` makes with two captions and the default seed, side by side: `docs/
sample.gif`, as wide as fits into 500 kB, and `docs/sample.png`, every fifth frame.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg

CAPTIONS = ("the earth turning, seen from space", "small fish in a round tank")
LIMIT = 500_000  # bytes
WIDTHS = (512, 448, 384, 320, 256)  # of the moving picture
STEP, SIDE = 5, 96  # frames, pixels: of the sheet
COLUMNS = 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keyframe", default="runs/demo-keyframe", help="run of the keyframes")
    parser.add_argument("--interp", default="runs/demo-interp", help="run of what lies between")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the pictures go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = [Path(folder) / f"{number}.mp4" for number in range(len(CAPTIONS))]
        for caption, film in zip(CAPTIONS, films, strict=True):
            sample = [sys.executable, "-m", "training", "sample", "--prompt", caption]
            runs = ["--keyframe", options.keyframe, "--interp", options.interp]
            subprocess.run([*sample, *runs, "--out", film], check=True)
        draw_gif(films, options.docs / "sample.gif")
        draw_sheet(films, options.docs / "sample.png")


def draw_gif(films: list[Path], path: Path) -> None:
    """Films side by side with one palette, at the largest of `WIDTHS` that keeps to `LIMIT`."""
    for width in WIDTHS:
        scaled = f"hstack=inputs={len(films)},scale={width}:-2:flags=lanczos,split[a][b]"
        palette = "[a]palettegen=max_colors=96[p];[b][p]paletteuse=dither=bayer:bayer_scale=4"
        _ffmpeg(films, f"{scaled};{palette}", "-loop", "0", path)
        if path.stat().st_size <= LIMIT:
            print(f"{path}: {width} pixels wide, {path.stat().st_size / 1000:.0f} kB")
            return
    sys.exit(f"{path}: {path.stat().st_size} bytes at {WIDTHS[-1]} pixels, wanted is {LIMIT}")


def draw_sheet(films: list[Path], path: Path) -> None:
    """A row a film, every `STEP`th frame."""
    tile = (
        f"select=not(mod(n\\,{STEP})),scale={SIDE}:{SIDE}:flags=lanczos,tile={COLUMNS}x1:padding=3"
    )
    rows = "".join(f"[{number}:v]{tile}[row{number}];" for number in range(len(films)))
    names = "".join(f"[row{number}]" for number in range(len(films)))
    _ffmpeg(films, f"{rows}{names}vstack=inputs={len(films)}", "-frames:v", "1", path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def _ffmpeg(films: list[Path], filters: str, *options: str | Path) -> None:
    inputs = [word for film in films for word in ("-i", film)]
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    subprocess.run([*program, *inputs, "-filter_complex", filters, *options], check=True)


if __name__ == "__main__":
    main()
