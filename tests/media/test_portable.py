"""In float64 what is stored is the same on every kind of CPU: against digests made elsewhere, and
against this machine held to its plainest instructions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import BadData
from pipeline.media import encoders, reel, video
from tests import portable
from tests.making import footage

STORED = ("the clip", "the clip's pixels", "latents", "round trip", "text", "image")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return portable.measure(encoders.PORTABLE, tmp_path_factory.mktemp("portable"))


def parting(here: dict[str, str], there: dict[str, str], whose: str) -> str:
    """A sentence on where two measurements part, if anything stored is different."""
    if all(here[name] == there[name] for name in STORED):
        return ""
    name = portable.first_apart(there, here)
    return f"this machine parts from {whose} at: {name} (all steps: python -m tests.portable)"


def test_what_is_stored_of_a_clip_is_the_same_as_elsewhere(here: dict[str, str]) -> None:
    golden = json.loads(portable.GOLDEN.read_text("utf-8"))
    assert parting(here, golden, "the golden") == ""


def test_instruction_sets_change_nothing_that_is_stored(here: dict[str, str]) -> None:
    low = portable.measure_under(portable.LOW)
    assert parting(here, low, "itself with plain instructions") == ""


def test_a_parting_names_the_layer(here: dict[str, str]) -> None:
    golden = json.loads(portable.GOLDEN.read_text("utf-8"))
    layer = "VAE down_blocks.1.resnets.0.conv1"
    other = {**golden, layer: "0", "latents": "0"}
    assert layer in parting(here, other, "the golden")


def test_double_precision_gives_nearly_the_numbers_of_single(film: Callable[..., Path]) -> None:
    frames = video.read_clip_exactly(film(footage.plain, 1, size="64x64"))[:3]
    rounded = [
        encoders.latents(encoders.load_vae(encoders.TINY / "vae", name, "cpu"), frames, 2, True)
        for name in ("float32", encoders.PORTABLE)
    ]
    for single, double in zip(*rounded, strict=True):
        assert single is not None
        assert double is not None
        assert double.dtype == np.float16
        np.testing.assert_allclose(double, single, rtol=2e-3, atol=1e-3)


def test_pixels_read_exactly_have_the_colours_of_the_film(
    film: Callable[..., Path], tmp_path: Path
) -> None:
    path = film(footage.colour_patches, "bt709")
    facts = video.probe(path)
    writer = reel.Writer(tmp_path / "reel.mp4", facts, reel.Params(size=64))
    for frame, pts, end_pts in video.frames(path, facts):
        writer.add(frame, pts, end_pts)
    writer.close()
    exact = video.read_clip_exactly(tmp_path / "reel.mp4")
    assert exact.shape == video.read_clip(tmp_path / "reel.mp4").shape
    middles = [exact[0, y, x] for y in (16, 48) for x in (16, 48)]
    assert np.abs(np.array(middles, int) - np.array(footage.PATCHES)).max() <= 2


def test_a_clip_that_cannot_be_read_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    with pytest.raises(BadData, match="decode-error"):
        video.read_clip_exactly(tmp_path / "clip.mp4")


def test_a_mac_s_gpu_is_not_chosen_for_what_it_cannot_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert encoders.choose_device("auto") == "mps"
    assert encoders.choose_device("auto", encoders.PORTABLE) == "cpu"
    with pytest.raises(encoders.Stopped, match="mps has no float64: use --device cpu or auto"):
        encoders.choose_device("mps", encoders.PORTABLE)
