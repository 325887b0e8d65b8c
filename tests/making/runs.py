"""Training runs of a few steps, on a wave that travels."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.console import Console

from tests.making.models import SHAPE, SMALL_UNET
from tests.making.shards import Members, new_clip, new_shards, npy
from training import loop, presets
from training.frames import Window
from training.presets import Preset
from training.run import Run
from training.shards import Index, open_index
from training.unet import flat_digest

TEXT = (7, 8)  # tokens of a caption, numbers a token
UNET = {**SMALL_UNET, "cross_attention_dim": TEXT[1]}


def moving_clip(seed: int, num_frames: int) -> Members:
    """A clip of a wave that travels over a still ground."""
    rng = np.random.default_rng(seed)
    f, c, _, w = np.meshgrid(*(np.arange(n) for n in (num_frames, *SHAPE)), indexing="ij")
    wave = np.sin(2 * np.pi * (w - 0.25 * f) / 8 + rng.uniform(0, 6)) * (c + 1) / 4
    members = new_clip(0, 1)
    latents = (wave + rng.normal(size=SHAPE)).astype(np.float16)
    return {
        "json": members["json"],
        "latents.npy": npy(latents),
        "text.npy": npy(rng.normal(size=(1, *TEXT)).astype(np.float16)),
    }


def wave_shards(folder: Path, num_clips: int, num_frames: int) -> Index:
    """Shards of moving clips, with a model small enough for them beside."""
    index = new_shards(
        folder,
        {f"k{number}": moving_clip(number, num_frames) for number in range(num_clips)},
        shape=SHAPE,
        text_shape=TEXT,
    )
    (folder / "small.json").write_text(json.dumps(UNET))
    return index


def damaged_shards(shards: Path, copy: Path) -> Index:
    """A copy of the shards in which one bit is another."""
    shutil.copytree(shards, copy)
    content = bytearray((copy / "00000.tar").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "00000.tar").write_bytes(content)
    return open_index(copy)


def short_preset(**changes: Any) -> Preset:
    """Eight steps of two clips each, with the fields that are asked for changed."""
    preset = replace(
        presets.find("tiny-interp"),
        windows=(Window(5, 2), Window(9, 1)),
        batch_size=2,
        micro_batch=1,
        steps=8,
        warmup=2,
        validate_every=1000,
        checkpoint_every=1000,
    )
    return replace(preset, **changes)


def run_of(folder: Path, index: Index, shards: Path, **changes: Any) -> Run:
    """A run in the folder, not begun, on what `wave_shards` put into `shards`."""
    return Run(
        folder,
        short_preset(**changes),
        loop.dataset_facts(index),
        str(shards / "small.json"),
        seed=3,
    )


def save_flat_model(folder: Path, seed: int = 0) -> str:
    """A 2-D model of random weights in a folder, which is returned."""
    torch.manual_seed(seed)
    UNet2DConditionModel.from_config(UNET).save_pretrained(folder)
    return str(folder)


def temporal_run(folder: Path, index: Index, unet: str, **changes: Any) -> Run:
    """Of temporal layers behind a frozen 2-D model."""
    run = run_of(folder, index, folder, trainable="temporal", **changes)
    return replace(run, unet=unet, unet_sha256=flat_digest(unet))


def train(run: Run, index: Index) -> loop.Outcome:
    """Train to the end on the CPU, and print nothing."""
    console = Console(file=io.StringIO())
    return loop.Trainer(run, index, "cpu", console=console, pictures=False).train()
