"""A run on disk: what it trains, and checkpoints from which the same command goes on, bit for bit.

runs/NAME/
├── run.json                    preset, dataset (root digest, encoders), seed: what must not change under a run
├── checkpoints/step-000300/    written beside and renamed, so each is whole; the newest two are kept
│   ├── model/                  EMA weights, a diffusers folder: what sampling and evaluation load
│   ├── weights.safetensors     the trained parameters as they are, optimizer.safetensors, state.json
└── history.jsonl, loss.png, samples/, tensorboard/

No random number generator is stored: all that is drawn comes from (seed, sample index). No pickle
either.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training import presets
from training.errors import Stopped, UsageError
from training.presets import Preset
from training.unet import VideoUNet

FORMAT = 1
KEPT = 2
NAME = re.compile(r"step-(\d{6,})")
# under a run: what changes neither the weights a step ends with nor what they were trained on
MAY_CHANGE = {
    "preset.": {
        "steps",
        "micro_batch",
        "checkpointing",
        "sampler_steps",
        "guidance",
        "validate_every",
        "checkpoint_every",
    },
    "dataset.": {"encoders"},
}


@dataclass(frozen=True)
class Run:
    """A run folder's constants. `dataset` has name, root_digest, encoders and their identity, fps
    and size.
    """

    folder: Path
    preset: Preset
    dataset: dict[str, Any]
    unet: str
    seed: int

    def plain(self) -> dict[str, Any]:
        """What run.json says."""
        return {
            "format": FORMAT,
            "preset": self.preset.plain(),
            "dataset": self.dataset,
            "unet": self.unet,
            "seed": self.seed,
        }


def open_run(wanted: Run) -> Run:
    """Begin a run, or go on with it. Raises UsageError if its folder holds another one, naming what
    differs.
    """
    if not (wanted.folder / "run.json").exists():
        _write(wanted.folder / "run.json", wanted.plain())
        return wanted
    found = load_run(wanted.folder)
    differences = list(
        _differences(*(json.loads(json.dumps(one.plain())) for one in (found, wanted)))
    )
    if differences:
        lines = "\n".join(f"  {field}: {was!r}, now {now!r}" for field, was, now in differences)
        raise UsageError(
            f"{wanted.folder} holds a run of something else, and cannot go on as this one:\n{lines}\n"
            "Ask for what it was begun with, or give this run another name (RUN=, --run)."
        )
    _write(wanted.folder / "run.json", wanted.plain())
    return wanted


def _differences(
    was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for field in sorted({*was, *now} - MAY_CHANGE.get(prefix, set())):
        a, b = was.get(field), now.get(field)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{field}.")
        elif a != b:
            found.append((f"{prefix}{field}", a, b))
    return found


def load_run(folder: Path) -> Run:
    """The run in a folder. Raises UsageError if there is none."""
    path = folder / "run.json"
    if not path.is_file():
        near = (
            ", ".join(sorted(str(one.parent) for one in folder.parent.glob("*/run.json"))) or "none"
        )
        raise UsageError(
            f"{folder} is not a run: there is no run.json in it. Runs beside it: {near}. "
            "`make train-keyframe` and `make train-interp` make some."
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["format"] != FORMAT:
            raise UsageError(f"{path}: format {values['format']}, this longtake reads {FORMAT}")
        return Run(
            folder,
            presets.from_plain(values["preset"]),
            values["dataset"],
            values["unet"],
            values["seed"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}; move it away to begin anew") from error


def checkpoints(run: Run) -> list[tuple[int, Path]]:
    """The run's checkpoints, as (step, folder), the newest last."""
    found = [
        (match, path)
        for path in (run.folder / "checkpoints").glob("step-*")
        if (match := NAME.fullmatch(path.name))
    ]
    return sorted((int(match[1]), path) for match, path in found)


def load_model(run: Run, device: str | torch.device = "cpu") -> VideoUNet:
    """The newest checkpoint's averaged model, ready to sample with. Raises UsageError if the run
    has no checkpoint yet.
    """
    found = checkpoints(run)
    if not found:
        raise UsageError(
            f"{run.folder} has no checkpoint yet: train it first, `make train-keyframe` or `make train-interp`"
        )
    model: VideoUNet = VideoUNet.from_pretrained(found[-1][1] / "model", use_safetensors=True)
    flat: nn.Module = model
    flat.to(torch.device(device)).to(memory_format=torch.channels_last)
    model.eval()
    model.requires_grad_(False)
    return model


@dataclass(frozen=True)
class State:
    """What training goes on from, beside the model: `step` optimizer steps were done; samples seen
    are step * batch_size.
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    average_steps: int
    optimizer: dict[str, Any]


def save(run: Run, model: VideoUNet, state: State) -> Path:
    """Write a checkpoint, whole or not at all, and drop the oldest. `model` holds the averaged
    weights at this moment.
    """
    folder = run.folder / "checkpoints" / f"step-{state.step:06d}"
    partial = folder.with_name(f"partial-{state.step:06d}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _save_model(model, partial / "model")
        tensors, numbers = _split(state.optimizer)
        save_file(state.weights, partial / "weights.safetensors")
        save_file(state.average, partial / "average.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
        facts = {
            "format": FORMAT,
            "step": state.step,
            "samples_seen": state.step * run.preset.batch_size,
            "average_steps": state.average_steps,
            "optimizer": numbers,
            "root_digest": run.dataset["root_digest"],
            "preset": run.preset.plain(),
        }
        _write(partial / "state.json", facts)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise Stopped(
            f"cannot write the checkpoint {folder}: {error}; the one before it is whole, the same command goes on from there"
        ) from error
    for _, old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _save_model(model: VideoUNet, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)  # a folder of this machine, and other bytes after a resume
    _write(folder / "config.json", config)


def load_state(run: Run, folder: Path) -> State:
    """A checkpoint's state. Raises UsageError if it is not one of this run's shards."""
    facts = json.loads((folder / "state.json").read_text("utf-8"))
    if facts["root_digest"] != run.dataset["root_digest"]:
        raise UsageError(
            f"{folder} was trained on shards {facts['root_digest']}, these are {run.dataset['root_digest']}"
        )
    return State(
        step=facts["step"],
        weights=load_file(folder / "weights.safetensors"),
        average=load_file(folder / "average.safetensors"),
        average_steps=facts["average_steps"],
        optimizer=_join(load_file(folder / "optimizer.safetensors"), facts["optimizer"]),
    )


def _split(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by name, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value.detach().cpu().contiguous()
            else:
                rest.setdefault(str(index), {})[name] = value
    return tensors, {"state": rest, "param_groups": optimizer["param_groups"]}


def _join(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in numbers["state"].items()
    }
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": numbers["param_groups"]}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(beside, path)
