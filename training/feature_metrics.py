"""LPIPS, FID and FVD: how far apart pictures and videos are for networks that learnt to see.

The networks' weights are in no package registry, so a metric is measured only where its file is
given. A file is taken by its sha256: it is the one that published numbers were measured with, or it
is refused before it is opened. So a number can stand beside other people's, and no unknown file is
unpickled or, being TorchScript, run. The networks' code comes from `lpips`, `torch-fidelity`, and,
for FVD, from the file itself.

LPIPS compares frame with frame. FID and FVD compare two sets by the mean and covariance of their
features, which takes thousands of samples: the number of samples stands beside each. Kept are
features, not frames: 8 kB a frame and method for FID, 1.6 kB a window and method for FVD. Cost, of
a frame of 256 x 256 and a method on one core: LPIPS 0.03 s (AlexNet) or 0.7 s (VGG-16), FID 0.12 s.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from pipeline.media.encoders import Pixels
from training.errors import Stopped, UsageError
from training.frames import Window
from training.scores import Column

LPIPS = "lpips"
FID = "fid"
FVD = "fvd"
FRAMES_AT_ONCE = 4  # VGG-16 takes 0.3 GB for one of 512 x 512
I3D_FRAMES = 10  # of a shorter video too little is left after I3D's strides in time
Features = NDArray[np.float32]  # `n d`, a row a sample


@dataclass(frozen=True)
class Weights:
    """A file that published numbers were measured with, and the project it is from."""

    file: str
    project: str
    network: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.file} of {self.project} (sha256 {self.sha256[:12]})"


WEIGHTS = {
    LPIPS: (
        Weights(
            "alexnet-owt-7be5be79.pth",
            "torchvision",
            "alex",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
        Weights(
            "vgg16-397923af.pth",
            "torchvision",
            "vgg",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
    ),
    FID: (
        Weights(
            "pt_inception-2015-12-05-6726825d.pth",
            "pytorch-fid",
            "inception",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
    ),
    FVD: (
        Weights(
            "i3d_torchscript.pt",
            "StyleGAN-V",
            "i3d",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        ),
    ),
}


@dataclass(frozen=True)
class Usage:
    """What a Fréchet distance is usually measured over: at least `num_samples` of `samples`."""

    samples: str
    num_samples: int
    habit: str


USAGE = {
    FID: Usage("frames", 10_000, "10,000 to 50,000 are usual"),
    FVD: Usage("windows", 2048, "2,048 of 16 frames are usual"),
}


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks whose weights were given, None where not. `weights`: which these are, by
    metric.
    """

    lpips: Any = None
    inception: Any = None
    i3d: Any = None
    device: torch.device | str = "cpu"
    weights: Mapping[str, Weights] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `likeness` measures."""
        return () if self.lpips is None else (LPIPS,)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of `metrics`, in a table."""
        return tuple(
            Column(name, f"LPIPS\n{self.weights[name].network}", 3) for name in self.metrics
        )

    def plain(self) -> dict[str, Any]:
        """For evaluation.json; empty if no weights were given."""
        files = {
            metric: {"file": weights.file, "sha256": weights.sha256}
            for metric, weights in self.weights.items()
        }
        return {"weights": files} if files else {}

    def likeness(self, frames: Pixels, truth: Pixels) -> dict[str, float | None]:
        """LPIPS of frames `f h w c`, the mean over them: 0 is equal, more is less alike; no entry
        without its weights.

        Zhang et al. 2018, equation 1, version 0.1: each layer's features, of unit length in every
        pixel, differ by a weighted sum of squares. Pictures go in as they are, from -1 to 1.
        """
        if self.lpips is None:
            return {}
        distances = []
        for own, other in zip(self._batches(frames), self._batches(truth), strict=True):
            with torch.no_grad():
                distances.append(self.lpips(own / 127.5 - 1, other / 127.5 - 1).flatten().cpu())
        return {LPIPS: float(torch.cat(distances).mean())}

    def features(self, frames: Pixels, video: Pixels) -> dict[str, Features]:
        """What FID sees in frames `f h w c` (`f 2048`), and FVD in a video `f h w c` (`1 400`), if
        it is long enough; no entry without its weights.

        FID, as in Heusel et al. 2017: Inception's last pooled features, of pictures that
        torch-fidelity resizes to 299 x 299 as TensorFlow 1 did. FVD, as in StyleGAN-V (Skorokhodov
        et al. 2022, `metrics/frechet_video_distance.py`): I3D's 400 logits, of levels 0 to 255 as
        uint8 `b c f h w`; the file itself brings them to -1 to 1 (`rescale`) and to 224 x 224
        (`resize`).
        """
        features: dict[str, Features] = {}
        if self.inception is not None:
            rows = []
            for batch in self._batches(frames):
                with torch.no_grad():
                    rows.append(self.inception(batch)[0].cpu().numpy())
            features[FID] = np.concatenate(rows)
        if self.i3d is not None and len(video) >= I3D_FRAMES:
            batch = torch.from_numpy(rearrange(video, "f h w c -> 1 c f h w").copy())
            with torch.no_grad():
                logits = self.i3d(
                    batch.to(self.device), rescale=True, resize=True, return_features=True
                )
            features[FVD] = logits.float().cpu().numpy()
        return features

    def _batches(self, frames: Pixels) -> list[Tensor]:
        """Frames as uint8 `b c h w`."""
        pictures = torch.from_numpy(rearrange(frames, "f h w c -> f c h w").copy())
        return list(torch.split(pictures.to(self.device), FRAMES_AT_ONCE))


def load_networks(files: Mapping[str, Path], device: torch.device | str = "cpu") -> Networks:
    """The networks of the weights in `files`, by metric (`WEIGHTS`).

    Raises UsageError if a file is not there or is another, Stopped if a package is not there.
    """
    weights = {metric: _weights(metric, path) for metric, path in files.items()}
    networks: dict[str, Any] = {}
    if LPIPS in files:
        networks["lpips"] = _lpips(files[LPIPS], weights[LPIPS].network)
    if FID in files:
        networks["inception"] = _inception(files[FID])
    if FVD in files:
        networks["i3d"] = _i3d(files[FVD])
    for network in networks.values():
        network.to(device).eval()
    return Networks(**networks, device=device, weights=weights)


def _weights(metric: str, path: Path) -> Weights:
    """Which weights a file holds, by its digest alone."""
    advice = f"wanted is {' or '.join(map(str, WEIGHTS[metric]))}"
    if not path.is_file():
        raise UsageError(f"--{metric} {path}: there is no such file; {advice}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for other, choices in WEIGHTS.items():
        for weights in choices:
            if digest == weights.sha256 and other == metric:
                return weights
            if digest == weights.sha256:
                raise UsageError(
                    f"--{metric} {path} is {weights.file}, which is for --{other}; {advice}"
                )
    size = path.stat().st_size
    raise UsageError(f"--{metric} {path} has {size:,} bytes and sha256 {digest[:12]}; {advice}")


def _package(name: str, metric: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise Stopped(
            f"--{metric} needs the package {package} ({error}): `uv pip install {package}`"
        ) from error


def _lpips(path: Path, network: str) -> Any:
    """The package brings the weights of the layers' sums, the file those of the layers."""
    package = _package("lpips", LPIPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks torchvision in a former way
        model = package.LPIPS(net=network, pnet_rand=True, verbose=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    # slice2.3.weight there is features.3.weight in torchvision
    layers = {name: state[f"features.{name.partition('.')[2]}"] for name in model.net.state_dict()}
    model.net.load_state_dict(layers)
    return model


def _inception(path: Path) -> Any:
    package = _package("torch_fidelity", FID)
    # it unpickles the file, whose digest is known by now
    return package.FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    )


def _i3d(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what the file is
        return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]


def frechet_distance(features: Features, others: Features) -> float:
    """Squared Fréchet distance of two sets of features, `n d` and `m d`, each taken for Gaussian:
    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). At least two rows each.

    Dowson and Landau 1982; Heusel et al. 2017, equation 6. No matrix root is taken, which is
    inexact where there are fewer rows than features: with the QR decomposition of centred rows, S =
    R^T R, S1 S2 has the eigenvalues of M M^T for M = R1 R2^T, so the trace of its root is the sum
    of M's singular values. Cost: at most 4 s, for 2048 features.
    """
    (mean, factor), (other_mean, other_factor) = _moments(features), _moments(others)
    shift = (mean - other_mean).square().sum()
    traces = factor.square().sum() + other_factor.square().sum()
    shared = torch.linalg.svdvals(factor @ other_factor.T).sum()
    return max(0.0, float(shift + traces - 2 * shared))


def _moments(features: Features) -> tuple[Tensor, Tensor]:
    """The mean `d`, and a factor R `r d` of the covariance R^T R."""
    rows = torch.from_numpy(features).double()
    mean = rows.mean(0)
    factor = torch.linalg.qr((rows - mean) / (len(rows) - 1) ** 0.5, mode="r").R
    return mean, factor


def compare(
    networks: Networks,
    window: Window,
    outcomes: Sequence[Mapping[str, Mapping[str, Features]]],
    truth: str,
) -> tuple[dict[str, Any], list[str]]:
    """FID and FVD of each method beside the truth, from the features of each window by method and
    metric: facts for programs, and lines for people.
    """
    facts: dict[str, Any] = {}
    lines = []
    for metric, usage in USAGE.items():
        if metric not in networks.weights:
            continue
        name = f"{window}: {metric.upper()}"
        if metric not in outcomes[0][truth]:
            lines.append(
                f"{name} is left out: the window has {window.num_frames} frames, it takes "
                f"{I3D_FRAMES} or more"
            )
            continue
        rows = {
            method: np.concatenate([outcome[method][metric] for outcome in outcomes])
            for method in outcomes[0]
        }
        num_samples = len(rows[truth])
        if num_samples < 2:
            lines.append(f"{name} is left out: of one of the {usage.samples} there is no spread")
            continue
        distances = {
            method: frechet_distance(own, rows[truth])
            for method, own in rows.items()
            if method != truth
        }
        facts[metric] = {
            "num_samples": num_samples,
            "enough": num_samples >= usage.num_samples,
            "distances": distances,
        }
        over = f"{num_samples:,} {usage.samples}"
        if num_samples < usage.num_samples:
            over += f", too few to mean anything ({usage.habit})"
        listed = ", ".join(f"{method} {distance:.2f}" for method, distance in distances.items())
        lines.append(f"{name} over {over}: {listed}")
    return facts, lines
