"""Configs of the 2-D UNets that are inflated: Stable Diffusion's, as published with their weights,
and our own tiny one.
"""

from __future__ import annotations

from typing import Any

_SD = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15_UNET: dict[str, Any] = {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21_UNET: dict[str, Any] = {
    **_SD,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
TINY_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [32, 48, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    # how much noise there is decides how much is said, sooner learnt as a factor than as a term
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
