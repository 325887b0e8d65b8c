"""Video models of random weights, small enough for tests, and what they are trained for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.media import encoders
from training.presets import TINY_UNET, Objective
from training.unet import VideoUNet

SHAPE = (4, 8, 8)  # of a frame of latents: channels, height, width
# A small 2-D model: text of 32 numbers a token, as the tiny encoders give it.
SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
# The same size, but with text of 8 numbers and with attention in the outer blocks.
NARROW_UNET: dict[str, Any] = {
    **TINY_UNET,
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
OBJECTIVES = {
    "latents": Objective("v_prediction", "left", zero_snr=True),
    "residual": Objective(
        "v_prediction", "blend", target="residual", residual_std=0.2, zero_snr=True
    ),
    "flow": Objective("v_prediction", "flow", target="residual", residual_std=0.2, zero_snr=True),
    "epsilon": Objective("epsilon", "zeros"),
}


def small_model(seed: int = 0) -> VideoUNet:
    """A video UNet of which every weight is random, so that every input matters."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    model = VideoUNet.inflate(SMALL_UNET, in_channels=9)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            0.5 / max(1, parameter[0].numel()) ** 0.5
        )
    return model.eval().requires_grad_(False)


def weights_digest(folder: str, files: Sequence[str]) -> str:
    return encoders.find_weights(folder, None, "", files, Path())[1].sha256


def encoder_identity() -> dict[str, Any]:
    """What a run remembers of the encoders of its shards: those of the tiny preset."""
    tiny = encoders.PRESETS["tiny"]
    return {
        "encoders.vae.sha256": weights_digest(tiny.vae, encoders.VAE_LAYOUTS),
        "encoders.clip.sha256": weights_digest(tiny.clip, encoders.CLIP_LAYOUTS),
        "encoders.clip.text_layer": tiny.text_layer,
        "encoders.clip.pad_token": tiny.pad_token,
        "latents.shape": list(SHAPE),
        "latents.scaling_factor": encoders.vae_facts(Path(tiny.vae))["scaling_factor"],
    }
