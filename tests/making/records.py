"""Facts of videos that nobody has made."""

from __future__ import annotations

from fractions import Fraction

from pipeline.core.records import Container


def container(
    num_frames: int,
    end_pts: int,
    time_base: Fraction = Fraction(1, 1000),
    width: int = 320,
    height: int = 240,
) -> Container:
    """A plain mp4 file that begins at 0 and has 25 frames a second."""
    return Container(
        format="mov,mp4",
        codec="h264",
        pix_fmt="yuv420p",
        width=width,
        height=height,
        mirrored=False,
        rotation=0,
        pixel_aspect=Fraction(1),
        color_matrix="bt709",
        color_range="tv",
        color_primaries="bt709",
        color_transfer="bt709",
        time_base=time_base,
        average_fps=Fraction(25),
        num_frames=num_frames,
        start_pts=0,
        end_pts=end_pts,
    )
