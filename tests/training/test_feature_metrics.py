"""LPIPS, FID and FVD: the properties a distance has, the files that are taken and those that are
not. The weights are random, in the form of the published ones, which are in no registry.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.media.encoders import Pixels
from tests.making import metric_weights
from tests.making.frames import sliding
from training import feature_metrics
from training.errors import Stopped, UsageError
from training.feature_metrics import (
    FID,
    FVD,
    LPIPS,
    WEIGHTS,
    Networks,
    compare,
    frechet_distance,
    load_networks,
)
from training.frames import Window


def noisy(frames: Pixels, levels: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, levels, frames.shape)
    return np.asarray((frames + noise).round().clip(0, 255), np.uint8)


def network(metric: str, folder: Path, package: str = "") -> Networks:
    """A network of random weights, in a file that counts as the published one."""
    if package:
        pytest.importorskip(package)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        path = metric_weights.publish(patch, metric, metric_weights.WRITERS[metric](folder))
        return load_networks({metric: path})


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return network(LPIPS, tmp_path_factory.mktemp(LPIPS), "lpips")


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return network(FID, tmp_path_factory.mktemp(FID), "torch_fidelity")


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return network(FVD, tmp_path_factory.mktemp(FVD))


# LPIPS


def test_lpips_is_nothing_of_equal_pictures_and_grows_with_noise(alexnet: Networks) -> None:
    frames = sliding(5)
    distances = [alexnet.likeness(noisy(frames, x), frames)[LPIPS] or 0 for x in (0, 4, 16, 64)]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] > 0


def test_lpips_is_the_mean_over_frames_however_many_go_in_at_once(
    alexnet: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, other = sliding(5), noisy(sliding(5), 16)
    alone = [alexnet.likeness(other[at : at + 1], frames[at : at + 1])[LPIPS] for at in range(5)]
    monkeypatch.setattr(feature_metrics, "FRAMES_AT_ONCE", 2)
    mean = alexnet.likeness(other, frames)[LPIPS]
    assert mean == pytest.approx(np.mean([value or 0 for value in alone]), rel=1e-5)


@pytest.mark.parametrize(("network", "zipped"), [("vgg", True), ("alex", False)])
def test_lpips_takes_either_trunk_and_says_which(
    network: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lpips = pytest.importorskip("lpips")
    path = metric_weights.write_trunk(tmp_path / "trunk.pth", network, zipped)
    metric_weights.publish(monkeypatch, LPIPS, path, network)
    networks = load_networks({LPIPS: path})
    assert isinstance(networks.lpips, lpips.LPIPS)
    assert networks.columns[0].heading == f"LPIPS\n{network}"
    state = metric_weights.trunk(network)
    own = networks.lpips.net.state_dict()
    assert {name.partition(".")[2] for name in own} == {
        name.partition(".")[2] for name in state if name.startswith("features.")
    }
    assert all(
        torch.equal(x, state[f"features.{name.partition('.')[2]}"]) for name, x in own.items()
    )


# FID and FVD


def test_fid_sees_2048_numbers_a_frame_and_none_between_equal_sets(inception: Networks) -> None:
    frames = sliding(3)
    features = inception.features(frames, frames)
    assert list(features) == [FID]
    assert features[FID].shape == (3, 2048)
    own, near, far = (
        frechet_distance(inception.features(noisy(frames, x), frames)[FID], features[FID])
        for x in (0, 8, 64)
    )
    assert own < near / 1000
    assert near < far


def test_fvd_sees_400_numbers_a_video_as_the_file_s_own_program_does(i3d: Networks) -> None:
    video = sliding(13)
    features = i3d.features(video, video)
    assert list(features) == [FVD]
    assert features[FVD].shape == (1, 400)
    batch = torch.from_numpy(np.ascontiguousarray(np.moveaxis(video, 3, 0)[None]))
    assert batch.dtype == torch.uint8
    assert batch.shape == (1, 3, 13, *video.shape[1:3])
    expected = i3d.i3d(batch, rescale=True, resize=True, return_features=True)
    assert np.array_equal(features[FVD], expected.detach().numpy())


def test_of_a_video_too_short_for_it_fvd_sees_nothing(i3d: Networks) -> None:
    video = sliding(5)
    assert i3d.features(video, video) == {}
    facts, lines = compare(i3d, Window(5, 1), [{"truth": {}, "model": {}}] * 2, "truth")
    assert facts == {}
    assert lines == ["5@1: FVD is left out: the window has 5 frames, it takes 10 or more"]


def test_without_weights_nothing_is_measured() -> None:
    frames = sliding(13)
    networks = load_networks({})
    assert networks.likeness(frames, frames) == {}
    assert networks.features(frames, frames) == {}
    assert networks.plain() == {}
    assert compare(networks, Window(13, 1), [{"truth": {}}], "truth") == ({}, [])


# The distance

SHIFT = np.array([4, 0, 0], np.float32)


def test_the_distance_of_two_gaussians_is_that_of_the_formula() -> None:
    """Of one dimension it is (m1 - m2)^2 + (s1 - s2)^2."""
    one = np.array([[-1.0], [1.0]], np.float32)  # of variance 2
    two = 3 * one + 5
    assert frechet_distance(one, two) == pytest.approx(25 + 2 * (3 - 1) ** 2)


@pytest.mark.parametrize("num_rows", [200, 5])
def test_the_distance_agrees_with_a_matrix_root(num_rows: int) -> None:
    """Also of fewer rows than features, where the root is inexact."""
    generator = np.random.default_rng(0)
    mixes = generator.normal(size=(2, 8, 8))
    one, two = (generator.normal(size=(num_rows, 8)) @ mix for mix in mixes)
    covariances = [np.cov(rows, rowvar=False) for rows in (one, two)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * root
    )
    distance = frechet_distance(one.astype(np.float32), two.astype(np.float32))
    assert distance == pytest.approx(expected, rel=1e-3)


def test_the_distance_is_symmetric_and_none_of_equal_sets_even_of_few_rows() -> None:
    generator = np.random.default_rng(0)
    one, two = (generator.normal(size=(6, 100)).astype(np.float32) for _ in range(2))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one))
    assert frechet_distance(one, two) > 1


def test_sets_of_the_same_gaussian_are_nearer_the_more_rows_they_have() -> None:
    """Why the number of samples stands beside the distance."""
    generator = np.random.default_rng(0)
    distances = [
        frechet_distance(*generator.normal(size=(2, num_rows, 20)).astype(np.float32))
        for num_rows in (10, 100, 2000)
    ]
    assert distances[0] > 5 * distances[1] > 5 * distances[2]


@pytest.mark.parametrize(
    ("num_windows", "words"),
    [
        (1, ["17@4: FVD is left out: of one of the windows there is no spread"]),
        (
            4,
            [
                "17@4: FVD over 4 windows, too few to mean anything (2,048 of 16 frames are usual):"
                " model 16.00, nearest 0.00"
            ],
        ),
        (2048, ["17@4: FVD over 2,048 windows: model 16.00, nearest 0.00"]),
    ],
)
def test_the_number_of_samples_stands_beside_a_distance(num_windows: int, words: list[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(num_windows, 1, 3)).astype(np.float32)
    outcomes = [
        {"truth": {FVD: row}, "model": {FVD: row + SHIFT}, "nearest": {FVD: row}} for row in rows
    ]
    networks = Networks(weights={FVD: WEIGHTS[FVD][0]})
    facts, lines = compare(networks, Window(17, 4), outcomes, "truth")
    assert lines == words
    if num_windows > 1:
        assert facts[FVD]["num_samples"] == num_windows
        assert facts[FVD]["enough"] == (num_windows >= 2048)
        assert facts[FVD]["distances"]["model"] == pytest.approx(16, rel=1e-4)


# The files


@pytest.mark.parametrize("metric", WEIGHTS)
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"\x80\x04cos\nsystem\n", b"PK\x03\x04"]
)
def test_another_file_is_refused_before_it_is_opened(
    metric: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(torch.jit, "load", None)
    path = tmp_path / WEIGHTS[metric][0].file
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_networks({metric: path})
    [line] = str(error.value).splitlines()
    assert line.startswith(f"--{metric} {path} has {len(content)} bytes and sha256 ")
    for weights in WEIGHTS[metric]:
        assert f"{weights.file} of {weights.project} (sha256 {weights.sha256[:12]})" in line


@pytest.mark.parametrize("name", ["nothing.pth", "."])
def test_a_file_that_is_not_there_says_which_it_would_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"there is no such file; wanted is i3d_torchscript\.pt of StyleGAN-V"
    ):
        load_networks({FVD: tmp_path / name})


def test_the_file_of_another_metric_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = metric_weights.publish(monkeypatch, FVD, metric_weights.WRITERS[FVD](tmp_path))
    with pytest.raises(UsageError, match=r"is i3d_torchscript\.pt, which is for --fvd; wanted"):
        load_networks({FID: path})


def test_digests_are_those_in_the_files_names() -> None:
    for weights in (weights for choices in WEIGHTS.values() for weights in choices):
        assert len(weights.sha256) == 64
        if weights.network != "i3d":
            assert weights.file.endswith(f"-{weights.sha256[:8]}.pth")


@pytest.mark.parametrize(("metric", "package"), [(LPIPS, "lpips"), (FID, "torch_fidelity")])
def test_without_its_package_the_line_that_brings_it_is_said(
    metric: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pth").write_bytes(b"weights")
    metric_weights.publish(monkeypatch, metric, tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Stopped, match=f"uv pip install {package.replace('_', '-')}"):
        load_networks({metric: tmp_path / "weights.pth"})
