"""What the temporal layers cost: beside the 2-D model alone, and beside diffusers' two video UNets
of equal width.

A step is forward and backward of all weights on the CPU, without an optimizer; all models take the
same latents, text and timesteps, in turn, in the layout of the tiny presets' training (channels
last). diffusers' models have more temporal layers than ours: an attention with feed-forward behind
every resnet (UNetMotionModel), four convolutions behind every resnet and an attention behind every
transformer (UNet3DConditionModel).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from einops import rearrange, repeat
from torch import Tensor, nn

from training.attention import TemporalAttention
from training.presets import TINY_UNET
from training.unet import VideoUNet

if TYPE_CHECKING:
    from tests.bench import Row

CONFIG = {
    key: value for key, value in TINY_UNET.items() if key != "resnet_time_scale_shift"
}  # which only the 2-D class knows
LENGTHS = (5, 17, 65, 129, 257)
WINDOW = 7
LAYOUT = (
    torch.channels_last
)  # of all 2-D convolutions, as in training; the other layout differs by less than the noise
TEXT_TOKENS = 77
CHANNELS, HEADS, SIDE = 64, 4, 8  # of the attention layer alone


def steps(repeats: int, num_frames: int = 17, size: int = 32) -> list[Row]:
    """Step time of ours over each of the others', of equal width, same frames."""
    from tests.bench import Row, cost_of  # which may import this module

    models = _models()
    inputs = _inputs(num_frames, size)
    what = f"video UNet, {num_frames} frames of {size}x{size}: forward + backward"
    rows = {name: Row(what, "s", name) for name in models if name != "ours"}
    for row in (rows["UNetMotionModel"], rows["UNet3DConditionModel"]):
        row.promise = ("<=", 1.0)
    for run in models.values():
        run(*inputs)  # lazy set-up
    for _ in range(repeats):
        took = {name: cost_of(run, *inputs).wall_s for name, run in models.items()}
        for name, row in rows.items():
            row.add(took["ours"], took[name])
    return list(rows.values())


def windows(repeats: int, lengths: tuple[int, ...] = LENGTHS) -> list[Row]:
    """Time of one temporal attention layer, windowed over full, by number of frames."""
    from tests.bench import Row, cost_of

    full, banded = (
        TemporalAttention(CHANNELS, HEADS, window, False, torch.empty(0))
        for window in (None, WINDOW)
    )
    rows = []
    for num_frames in lengths:
        x = torch.randn(num_frames, CHANNELS, SIDE, SIDE).contiguous(
            memory_format=torch.channels_last
        )
        row = Row(
            f"temporal attention, window {WINDOW}, {num_frames} frames of {SIDE}x{SIDE}",
            "s",
            "all frames seen",
        )
        for layer in (full, banded):
            _layer_step(layer, x, num_frames)
        for _ in range(repeats):
            row.add(
                *(cost_of(_layer_step, layer, x, num_frames).wall_s for layer in (banded, full))
            )
        rows.append(row)
    return rows


def _layer_step(layer: TemporalAttention, x: Tensor, num_frames: int) -> None:
    layer(x, num_frames).square().mean().backward()
    layer.zero_grad()


def _inputs(num_frames: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`b f c h w` latents, `b` timesteps, `b n d` text."""
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(1, num_frames, 4, size, size, generator=random)
    return (
        latents,
        torch.tensor([500]),
        torch.randn(1, TEXT_TOKENS, CONFIG["cross_attention_dim"], generator=random),
    )


def _models() -> dict[str, Callable[[Tensor, Tensor, Tensor], None]]:
    """By name, a step of each model. Only what differs between the classes differs between the
    configs.
    """
    torch.manual_seed(0)
    flat: Any = UNet2DConditionModel.from_config(CONFIG)
    ours = VideoUNet.inflate(flat, in_channels=4)
    motion: Any = UNetMotionModel.from_config(
        {
            **_with_suffix("Motion"),
            "num_attention_heads": CONFIG["attention_head_dim"],
            "motion_num_attention_heads": CONFIG["attention_head_dim"],
            "motion_max_seq_length": max(LENGTHS),
        }
    )
    cubic: Any = UNet3DConditionModel.from_config(
        {**_with_suffix("3D"), "attention_head_dim": CONFIG["attention_head_dim"]}
    )

    def step(
        model: nn.Module, forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor, Tensor], None]:
        model.train()
        for weight in model.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=LAYOUT)

        def run(latents: Tensor, t: Tensor, text: Tensor) -> None:
            forward(latents, t, text).square().mean().backward()
            model.zero_grad()

        return run

    def folded(latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        f = latents.shape[1]
        output: Tensor = flat(
            rearrange(latents, "b f c h w -> (b f) c h w"),
            t,
            repeat(text, "b n d -> (b f) n d", f=f),
        ).sample
        return output

    return {
        "ours": step(
            ours, lambda latents, t, text: ours(latents, t, text, torch.full((len(latents),), 10.0))
        ),
        "2-D UNet, frame by frame": step(flat, folded),
        "UNetMotionModel": step(
            motion,
            lambda latents, t, text: (
                motion(
                    rearrange(latents, "b f c h w -> b c f h w"),
                    t,
                    repeat(text, "b n d -> (b f) n d", f=latents.shape[1]),
                ).sample
            ),
        ),
        "UNet3DConditionModel": step(
            cubic,
            lambda latents, t, text: (
                cubic(rearrange(latents, "b f c h w -> b c f h w"), t, text).sample
            ),
        ),
    }


def _with_suffix(suffix: str) -> dict[str, Any]:
    """The tiny config in the words of diffusers' other classes."""
    output = {key: value for key, value in CONFIG.items() if key != "attention_head_dim"}
    for key in ("down_block_types", "up_block_types"):
        output[key] = [name.replace("2D", suffix) for name in output[key]]
    return output
