"""Temporal layers as one file: what `export` writes of a run, and AnimateDiff's motion modules.

An adapter is a safetensors file with every parameter that the 2-D model has not, and the first
convolution where it got more channels, under their names in the video model. Its metadata
(`longtake`, JSON) is the run's run.json, the step, and the digest of the 2-D model that it stands
on: so it is sampled like a run, or another run begins with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.media import encoders
from training.errors import UsageError
from training.unet import MotionModule, VideoUNet, flat_name

KEY = "longtake"  # of the metadata
FILES = ("adapter.safetensors", "diffusion_pytorch_model.safetensors")  # ours, diffusers'
SHOWN = 3  # names in a sentence
# AnimateDiff's names, as first published and as diffusers has them: block, number, and the rest
MODULE = re.compile(
    r"(?:module\.)?(mid_block|(?:down|up)_blocks\.\d+)\.motion_modules\.(\d+)\."
    r"(?:temporal_transformer\.)?(.+)"
)
DIFFUSERS_NAMES = {
    "attention_blocks.0": "attn1",
    "attention_blocks.1": "attn2",
    "norms.0": "norm1",
    "norms.1": "norm2",
    "ff_norm": "norm3",
}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What safetensors and json say of a file they cannot read, as one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:300]
        raise UsageError(
            f"{path} is no adapter that can be read: {reason}. Wanted is a safetensors file; a "
            "pickle (.ckpt, .pt, .bin) is never read"
        ) from error


def file_of(path: Path) -> Path:
    """The adapter's file: itself, or the one in a folder. Raises UsageError if there is none."""
    places = [path / name for name in FILES] if path.is_dir() else [path]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"{path}: no adapter there, looked for {' and '.join(map(str, places))}")


def digest(path: Path) -> str:
    """sha256 of an adapter's bytes."""
    with file_of(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts(path: Path) -> dict[str, Any] | None:
    """What an adapter of ours says of itself; None for a file of another kind."""
    with _reading(path):
        encoders.check_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        values = json.loads(metadata[KEY]) if KEY in metadata else None
        if values is not None and not isinstance(values, dict):
            raise ValueError(f"its metadata {KEY} is no JSON object")
    return values


def temporal(model: VideoUNet) -> dict[str, Tensor]:
    """What is always trained, by name: what the 2-D model has not, and a widened convolution."""
    first = "unet.conv_in." if model.widened else None
    return {
        name: weight
        for name, weight in model.named_parameters()
        if flat_name(name) is None or (first and name.startswith(first))
    }


def write(path: Path, model: VideoUNet, values: Mapping[str, Any]) -> None:
    """Write a model's temporal parameters, and what is to be known of them."""
    weights = {name: weight.detach().contiguous() for name, weight in temporal(model).items()}
    save_file(weights, path, {KEY: json.dumps(values, sort_keys=True, ensure_ascii=False)})


def read(path: Path) -> dict[str, Tensor]:
    """An adapter's weights by name."""
    with _reading(path):
        encoders.check_file(path)
        tensors: dict[str, Tensor] = load_file(path)
    return tensors


def start(model: VideoUNet, path: Path, base: str | None) -> list[str]:
    """Copy what fits of an adapter into a model that a run begins with, and say what was taken and
    what was not. `base` is the digest of the model's 2-D model, if it is known.

    Raises UsageError if nothing fits.
    """
    path = file_of(path)
    values, tensors = facts(path), read(path)
    own = temporal(model)
    renamed = tensors
    remarks: list[str] = []
    if values is None:
        renamed = _animatediff(model, path, tensors)
        num_positions = len(tensors) - len(renamed)
        if num_positions:
            remarks.append(f"{num_positions} tables of positions are computed, not taken")
    elif base is not None and values.get("base", {}).get("sha256") != base:
        remarks.append("it was trained on another 2-D model than this one")
    fits = {name: x for name, x in renamed.items() if name in own and own[name].shape == x.shape}
    if not fits:
        raise UsageError(
            f"{path}: none of its {len(renamed)} weights fits this model, such as "
            f"{next(iter(renamed), 'none')}: is it of another placement, or of another 2-D model?"
        )
    with torch.no_grad():
        for name, tensor in fits.items():
            own[name].copy_(tensor)
    others = sorted({*renamed} - {*fits})
    if others:
        remarks.append(f"{len(others)} of its weights do not fit: {_listed(others)}")
    left = sorted({*own} - {*fits})
    if left:
        remarks.append(f"{len(left)} temporal weights begin as new: {_listed(left)}")
    return [f"{path.name}: {len(fits)} of {len(own)} temporal weights are taken", *remarks]


def _animatediff(model: VideoUNet, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AnimateDiff's weights under this model's names; without positions, which are sinusoids."""
    if not any(isinstance(module, MotionModule) for module in model.modules()):
        raise UsageError(
            f"{path} is no adapter of longtake. If it holds AnimateDiff's motion modules, they fit "
            "with --set placement=motion --set frame_window=null"
        )
    modules = {name for name, _ in model.named_modules()}
    renamed = {}
    for name, tensor in tensors.items():
        match = MODULE.fullmatch(name)
        if match and match[3].endswith((".pos_encoder.pe", ".pos_embed.pe")):
            continue
        if match:
            block, number, rest = match.groups()
            for old, new in DIFFUSERS_NAMES.items():
                rest = rest.replace(f".{old}.", f".{new}.")
            # behind the attention of that number, or the resnet where there is none
            places = (
                f"unet.{block}.{kind}.{number}.temporal" for kind in ("attentions", "resnets")
            )
            place = next((place for place in places if place in modules), None)
            if place is not None:
                name = f"{place}.{rest}"
        renamed[name] = tensor
    return renamed


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
