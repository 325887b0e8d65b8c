"""Train the tiny VAE: `python -m pipeline.media.tiny.train_vae CLIP... --held-out CLIP... --out
DIR`.

A small convolutional `AutoencoderKL` (f8, 4 latent channels, no attention), trained on random crops
of the given clips. Small things on flat ground drown in a mean, and L1 alone paints them over:
squared errors of pixels and of their differences are added, and of a few crops the busiest is
taken. A light KL term keeps the latents in bounds (Rombach et al. 2022, eq. 25). The budget is
wall-clock minutes and the learning rate follows the share of it used, so a slow machine gets fewer
steps but always a finished schedule. Weights are stored as float16; the scaling factor, one over
the standard deviation of the training latents, is written to the config. PSNR is reported clip by
clip.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from pipeline.media import video

CHANNELS = (16, 32, 64, 96)  # 1.6 M parameters: 64 ms for a 256 x 256 frame on one core
CROP = 128
KL_WEIGHT = 1e-4
SQUARE_WEIGHT = 10.0
CANDIDATES = 4


def read_clip(path: Path) -> Tensor:
    """All frames of a clip, `f c h w` uint8. Raises BadData."""
    frames = video.read_clip(path)
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def new_vae() -> Any:
    """The untrained model."""
    vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=256,
    )
    return vae.to(memory_format=torch.channels_last)


def load_vae(folder: Path) -> Any:
    """A saved model, to go on with."""
    vae: Any = AutoencoderKL.from_pretrained(folder)  # type: ignore[no-untyped-call]
    return vae.float().to(memory_format=torch.channels_last).train()


def random_crop(frame: Tensor, rng: random.Random) -> Tensor:
    """One augmented training crop, `c CROP CROP` in [-1, 1]: random scale, place, flip, exposure
    and order of channels.
    """
    height, width = frame.shape[1:]
    side = rng.randint(CROP, min(height, width, CROP * 3 // 2))
    crops = []
    for _ in range(rng.choice((1, CANDIDATES))):
        y, x = rng.randint(0, height - side), rng.randint(0, width - side)
        crops.append(frame[:, y : y + side, x : x + side].float().div(127.5).sub(1))
    # the busiest of them, as small things on flat ground are rare
    crop = max(crops, key=lambda crop: crop.diff(dim=2).square().mean().item())
    crop = F.interpolate(crop[None], size=(CROP, CROP), mode="bilinear", antialias=True)[0]
    if rng.random() < 0.5:
        crop = crop.flip(2)
    if rng.random() < 0.1:
        crop = crop[rng.sample(range(3), 3)]
    if rng.random() < 0.5:
        crop = (crop * rng.uniform(0.7, 1.2) + rng.uniform(-0.2, 0.2)).clamp(-1, 1)
    return crop


def batch_of(clips: list[Tensor], size: int, rng: random.Random) -> Tensor:
    picks = [rng.choice(clips) for _ in range(size)]
    return torch.stack([random_crop(clip[rng.randrange(len(clip))], rng) for clip in picks])


@torch.no_grad()
def psnr(vae: Any, frames: Tensor, count: int = 8) -> float:
    """PSNR in dB of decoded against original frames, over `count` evenly spaced frames."""
    picks = frames[torch.linspace(0, len(frames) - 1, count).long()].float().div(127.5).sub(1)
    decoded = vae.decode(vae.encode(picks).latent_dist.mode()).sample.clamp(-1, 1)
    error = ((decoded - picks) / 2).square().mean().item()
    return -10 * math.log10(error)


@torch.no_grad()
def latent_std(vae: Any, clips: list[Tensor]) -> float:
    picks = [clip[:: max(1, len(clip) // 8)].float().div(127.5).sub(1) for clip in clips]
    return torch.cat([vae.encode(pick).latent_dist.mode().flatten() for pick in picks]).std().item()


def pixel_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Absolute and squared error of pixels, and squared error of differences between neighbours
    across and down.
    """
    across = F.mse_loss(decoded.diff(dim=3), pixels.diff(dim=3))
    down = F.mse_loss(decoded.diff(dim=2), pixels.diff(dim=2))
    squares = F.mse_loss(decoded, pixels) + across + down
    return F.l1_loss(decoded, pixels) + SQUARE_WEIGHT * squares


def fit(vae: Any, clips: list[Tensor], minutes: float, batch: int, rate: float, seed: int) -> int:
    """Train in place for `minutes`; returns the number of steps done."""
    rng = random.Random(seed)  # noqa: S311  no secret
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    start = time.monotonic()
    step = 0
    used = 0.0  # share of the budget
    while used < 1:
        warmup = min(1.0, (step + 1) / 100)
        cosine = 0.5 + 0.5 * math.cos(math.pi * used)
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup * cosine
        pixels = batch_of(clips, batch, rng).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixel_loss(decoded, pixels) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        used = (time.monotonic() - start) / (60 * minutes)
        if step % 50 == 0:
            print(
                f"step {step}  {used:.0%}  loss {loss.item():.4f}  kl {kl.item():.2f}", flush=True
            )
    return step


def save(vae: Any, clips: list[Tensor], out: Path) -> None:
    """Round the weights to float16, then measure the scaling factor with the weights as stored."""
    full = vae.half().float().eval()
    full.register_to_config(scaling_factor=round(1 / latent_std(full, clips), 5))
    full.half().save_pretrained(out)
    full.float()
    path = out / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop("_name_or_path", None)  # a folder of this machine
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def main(
    clips: Annotated[
        list[Path], typer.Argument(help="Clips to learn from; one named twice counts double.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Clips only measured, not learnt.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="A model to go on from, instead of a new one.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Training budget, wall clock.")] = 60.0,
    batch: Annotated[int, typer.Option(help="Crops per step.")] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the crops.")] = 0,
) -> None:
    """Train the tiny VAE on clips and report its PSNR on clips it has and has not seen."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    frames = {path.stem: read_clip(path) for path in dict.fromkeys(clips)}
    unseen = {path.stem: read_clip(path) for path in held_out or []}
    vae = load_vae(start) if start else new_vae()
    shown = [frames[path.stem] for path in clips]
    steps = fit(vae, shown, minutes, batch, rate, seed)
    save(vae, list(frames.values()), out)
    print(f"{steps} steps, {sum(p.numel() for p in vae.parameters()):,} parameters, saved in {out}")
    for kind, table in (("trained on", frames), ("held out", unseen)):
        for name, clip in table.items():
            print(f"{kind:10}  {name:20}  {psnr(vae, clip):.2f} dB")


if __name__ == "__main__":
    typer.run(main)
