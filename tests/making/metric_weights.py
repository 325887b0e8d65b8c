"""Files in the form of the published weights that LPIPS, FID and FVD take, with random numbers in
them: what is tested is that they are read, not what the true ones say.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training import feature_metrics
from training.feature_metrics import FID, FVD, LPIPS


def trunk(network: str) -> dict[str, Tensor]:
    """AlexNet's or VGG-16's state dict, with torchvision's names; of the classifier, which is not
    looked at, a crumb.
    """
    from torchvision import models

    with torch.device("meta"):  # shapes alone
        model = {"alex": models.alexnet, "vgg": models.vgg16}[network]()
    generator = torch.Generator().manual_seed(0)
    state = {
        f"features.{name}": torch.randn(x.shape, generator=generator) / max(1, x[0].numel()) ** 0.5
        for name, x in model.features.state_dict().items()
    }
    return {**state, "classifier.1.weight": torch.zeros(1)}


def write_trunk(path: Path, network: str, zipped: bool = True) -> Path:
    """PyTorch before 1.6 did not zip."""
    torch.save(trunk(network), path, _use_new_zipfile_serialization=zipped)
    return path


def write_inception(path: Path) -> Path:
    """The state dict of FID's Inception, as old as the published one: not zipped."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # the class asks for weights where it is made: these are to become its own
        patch.setattr(torch, "load", lambda *arguments, **options: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *arguments, **options: None)
        model = torch_fidelity.FeatureExtractorInceptionV3("inception", ["2048"], "none")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # with which features do not fade away
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


class SmallI3D(nn.Module):
    """The signature, the sizes and the strides in time of the published I3D, and little else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 8, (3, 7, 7), stride=(2, 8, 8), padding=(1, 3, 3))
        self.second = nn.Conv3d(8, 16, 3, stride=(4, 4, 4), padding=1)
        self.last = nn.Linear(16, 400)

    def forward(
        self,
        x: Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> Tensor:
        x = x.float()
        if rescale:
            x = x / 255 * 2 - 1
        if resize:
            x = F.interpolate(x, size=[x.shape[2], 224, 224], mode="trilinear")
        x = F.relu(self.second(F.relu(self.first(x))))
        x = F.avg_pool3d(x, [2, 7, 7]).mean((2, 3, 4))
        logits: Tensor = self.last(x)
        return logits if return_features else logits.softmax(1)


def write_i3d(path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what the true file is
        torch.jit.script(SmallI3D().eval()).save(str(path))
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    LPIPS: lambda folder: write_trunk(folder / "alexnet-owt-7be5be79.pth", "alex"),
    FID: lambda folder: write_inception(folder / "pt_inception-2015-12-05-6726825d.pth"),
    FVD: lambda folder: write_i3d(folder / "i3d_torchscript.pt"),
}


def publish(patch: pytest.MonkeyPatch, metric: str, path: Path, network: str = "") -> Path:
    """Let a file count as the published one."""
    choices = feature_metrics.WEIGHTS[metric]
    [weights] = [choice for choice in choices if choice.network == (network or choices[0].network)]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    others = [choice for choice in choices if choice is not weights]
    patch.setitem(feature_metrics.WEIGHTS, metric, (replace(weights, sha256=sha256), *others))
    return path
