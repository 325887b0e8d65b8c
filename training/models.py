"""The model a run begins with: a 2-D model, looked for by its name, and inflated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import presets
from training.errors import UsageError
from training.presets import TINY_IMAGE, Preset
from training.unet import Unit, VideoUNet

TINY_IMAGE_FOLDER = Path(__file__).parent / "tiny" / "unet"


def new_model(preset: Preset, unet: str, seed: int) -> VideoUNet:
    """The model a run begins with, a 2-D model inflated; config.json files and some of ours begin
    with random weights.
    """
    torch.manual_seed(seed)
    if not begins_random(unet):
        pretrained: VideoUNet = VideoUNet.inflate(flat_source(unet), **preset.inflation)
        return pretrained
    config = presets.RANDOM.get(unet) or _config(Path(unet))
    # a pretrained model is widened to the mask and hint channels; a random one is made that wide
    config = {**config, "in_channels": preset.in_channels}
    model: VideoUNet = VideoUNet.inflate(config, **preset.inflation)
    # random weights would predict noise of their own; a last layer of zeros predicts nothing
    last: Any = model.unet.conv_out
    conv: Any = last.spatial if isinstance(last, Unit) else last
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return model


def begins_random(unet: str) -> bool:
    """Whether the 2-D model of that name has random weights at the start of a run."""
    return unet in presets.RANDOM or unet.endswith(".json")


def flat_source(unet: str) -> str:
    """Where the 2-D model of that name is: the folder of the one that comes with longtake, or the
    name itself, a folder or a hub id.
    """
    return str(TINY_IMAGE_FOLDER) if unet == TINY_IMAGE else unet


def _config(path: Path) -> Any:
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not the config of a diffusers UNet2DConditionModel: {error}"
        ) from error
    return config
