"""A checkpoint: what a run goes on from, bit for bit, and what its model is looked at with.

checkpoints/step-000300/      whole, as it is written beside and renamed; the newest two are kept,
│                             the best by validation, and every `keep_every` steps of the preset
├── average.safetensors       the trained parameters' average: what sampling loads
├── weights.safetensors       the trained parameters as they are
└── optimizer.safetensors, state.json, config.json (the model's)

Frozen weights are not kept: they are those of the 2-D model the run began with, which is found
again by its digest, in state.json. Only of a model that began with random weights everything is
kept. No random number generator is stored: all that is drawn comes from (seed, sample index).
Nothing is pickled either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.media import encoders
from training import adapters, models, writing
from training.errors import LongtakeError, Stopped, UsageError
from training.run import FORMAT, STEP, Run
from training.shards import Sha256
from training.unet import VideoUNet, flat_digest

KEPT = 2


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What torch, diffusers, safetensors and json say of a checkpoint they cannot read, as one
    line.
    """
    try:
        yield
    except (LongtakeError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(
            f"{folder} is no checkpoint that can be read: {type(error).__name__}: {reason[:300]}; "
            "move it away to go on from the one before it"
        ) from error


def checkpoints(run: Run) -> list[tuple[int, Path]]:
    """The run's checkpoints, as (step, folder), the newest last."""
    steps = []
    for path in (run.folder / "checkpoints").glob("step-*"):
        match = STEP.fullmatch(path.name)
        if match:
            steps.append((int(match[1]), path))
    return sorted(steps)


def newest(run: Run) -> tuple[int, Path]:
    """The checkpoint that a run is looked at with: the newest, if no other was asked for. Raises
    UsageError if there is none.
    """
    steps = [pair for pair in checkpoints(run) if run.step in (None, pair[0])]
    if not steps:
        raise UsageError(
            f"{run.folder} has no checkpoint yet: train it first, "
            "`make train-keyframe` or `make train-interp`"
        )
    return steps[-1]


def load_model(run: Run, device: str | torch.device = "cpu") -> VideoUNet:
    """The averaged model of a run's newest checkpoint, or of an adapter, ready to sample with.

    Raises UsageError if the run has no checkpoint yet, or if the 2-D model that it began with is
    not there or another.
    """
    if run.folder.is_file():
        model = _load_adapter(run)
    else:
        _, folder = newest(run)
        with _reading(folder):
            model = _load_model(run, folder)
    module: nn.Module = model  # diffusers' own `to` warns
    module.to(torch.device(device)).to(memory_format=torch.channels_last)
    model.eval()
    model.requires_grad_(False)
    return model


def _load_model(run: Run, folder: Path) -> VideoUNet:
    model: VideoUNet
    if (folder / "model").is_dir():  # of an older version: whole
        for path in (folder / "model" / "config.json", *folder.glob("model/*.safetensors")):
            encoders.check_file(path)
        model = VideoUNet.from_pretrained(folder / "model", use_safetensors=True)
        return model
    base = BaseFields.model_validate(json.loads((folder / "state.json").read_text("utf-8"))).base
    if base is None:
        encoders.check_file(folder / "config.json")
        model = VideoUNet.from_config(encoders.read_config(folder / "config.json"))
    else:
        model = VideoUNet.inflate(find_base(run, base.sha256), **run.preset.inflation)
    take(model, load_file(folder / "average.safetensors"), whole=base is None)
    return model


def _load_adapter(run: Run) -> VideoUNet:
    with _reading(run.folder):
        base = BaseFields.model_validate(adapters.facts(run.folder)).base
    if base is None:
        raise UsageError(f"{run.folder} does not say which 2-D model it stands on")
    model: VideoUNet = VideoUNet.inflate(find_base(run, base.sha256), **run.preset.inflation)
    tensors = adapters.read(run.folder)
    absent = sorted({*adapters.temporal(model)} - {*tensors})
    if absent:
        raise UsageError(f"{run.folder} lacks {len(absent)} weights, such as {absent[0]}")
    take(model, tensors)
    return model


class Base(BaseModel):
    """The 2-D model that a checkpoint's frozen weights are those of."""

    model_config = ConfigDict(strict=True, frozen=True)

    sha256: Sha256


class BaseFields(BaseModel):
    base: Base | None


def find_base(run: Run, sha256: str) -> str:
    """Where the 2-D model with that digest is: in one of the run's `unets`, or where it was. Raises
    UsageError if it is not there or another, Stopped if the hub cannot be reached.
    """
    for place in run.unets:
        if flat_digest(place) == sha256:
            return place
    source = models.flat_source(run.unet)
    whose = f"{run.folder} keeps what was trained on top of the 2-D model {run.unet}"
    advice = f"give the folder of the one with sha256 {sha256[:12]} with --unet"
    try:
        digest = flat_digest(source, from_hub=True)
    except (UsageError, Stopped) as error:
        raise type(error)(
            f"{whose}, which is not there: {error}\nFor another place, {advice}"
        ) from error
    if digest != sha256:
        raise UsageError(f"{whose}, which is now another (sha256 {str(digest)[:12]}): {advice}")
    return source


def take(model: VideoUNet, tensors: Mapping[str, Tensor], whole: bool = False) -> None:
    """Copy weights into a model, by name; all of its own if `whole`. Raises UsageError, naming one,
    for weights it has not, or lacks.
    """
    own = dict(model.named_parameters())
    absent = sorted({*own} - {*tensors}) if whole else []
    wrong = [name for name, x in tensors.items() if name not in own or own[name].shape != x.shape]
    if absent or wrong:
        raise UsageError(
            f"these weights are not of this model: {len(wrong)} are of another name or shape, "
            f"{len(absent)} lack, such as {[*wrong, *absent][0]}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


@dataclass(frozen=True)
class Replan:
    """A learning rate's plan that was changed under way: at which step, and from which rate."""

    step: int
    rate: float


@dataclass(frozen=True)
class State:
    """What training goes on from, beside the model.

    `step` optimizer steps were done, of `planned_steps`; samples seen are step * batch_size.
    `weights` and `average` are of what is kept; `base` is the digest of the 2-D model that all else
    is of, None if nothing else is left. `validation` is the mean loss on held-out windows at this
    step, if it was measured.
    """

    step: int
    planned_steps: int
    replan: Replan | None
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    average_steps: int
    optimizer: dict[str, Any]
    base: str | None = None
    validation: float | None = None


def save(run: Run, model: VideoUNet, state: State) -> Path:
    """Write a checkpoint, whole or not at all, and drop older ones that nobody wants to keep."""
    folder = run.folder / "checkpoints" / f"step-{state.step:06d}"
    tensors, numbers = _split(state.optimizer)
    facts = {
        "format": FORMAT,
        "step": state.step,
        "samples_seen": state.step * run.preset.batch_size,
        "average_steps": state.average_steps,
        "optimizer": numbers,
        "root_digest": run.dataset["root_digest"],
        "preset": run.preset.plain(),
        "replan": None if state.replan is None else asdict(state.replan),
        "base": None if state.base is None else {"sha256": state.base},
        "validation": state.validation,
    }
    try:
        with writing.beside(folder) as partial:
            partial.mkdir()
            model.save_config(partial)
            config = json.loads((partial / "config.json").read_text("utf-8"))
            config.pop("_name_or_path", None)  # a folder of this machine
            writing.write_json(partial / "config.json", config, sort_keys=True)
            save_file(state.weights, partial / "weights.safetensors")
            save_file(state.average, partial / "average.safetensors")
            save_file(tensors, partial / "optimizer.safetensors")
            writing.write_json(partial / "state.json", facts, sort_keys=True)
    except Stopped as error:
        raise Stopped(
            f"{error}; the checkpoint before it is whole, the same command goes on from there"
        ) from error
    _drop_old(run)
    return folder


def _drop_old(run: Run) -> None:
    """Keep the newest, the best of those with a validation loss, and the milestones."""
    every, whole = run.preset.keep_every, checkpoints(run)
    losses = {path: _validation(path) for _, path in whole}
    best = min((loss for loss in losses.values() if loss is not None), default=None)
    for step, path in whole[:-KEPT]:
        is_best = best is not None and losses[path] == best
        if not (is_best or (every and step % every == 0)):
            shutil.rmtree(path, ignore_errors=True)


def _validation(folder: Path) -> float | None:
    try:
        loss = json.loads((folder / "state.json").read_text("utf-8"))["validation"]
        return None if loss is None else float(loss)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_state(run: Run, folder: Path) -> State:
    """A checkpoint's state. Raises UsageError if it is not one of this run's shards."""
    with _reading(folder):
        return _load_state(run, folder)


def _load_state(run: Run, folder: Path) -> State:
    facts = json.loads((folder / "state.json").read_text("utf-8"))
    if facts["root_digest"] != run.dataset["root_digest"]:
        raise UsageError(
            f"{folder} was trained on shards {facts['root_digest']}, "
            f"these are {run.dataset['root_digest']}"
        )
    replan = facts.get("replan")  # checkpoints of older versions do not say
    base = BaseFields.model_validate({"base": facts.get("base")}).base
    return State(
        step=facts["step"],
        planned_steps=facts["preset"]["steps"],
        replan=None if replan is None else Replan(**replan),
        weights=load_file(folder / "weights.safetensors"),
        average=load_file(folder / "average.safetensors"),
        average_steps=facts["average_steps"],
        optimizer=_join(load_file(folder / "optimizer.safetensors"), facts["optimizer"]),
        base=None if base is None else base.sha256,
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
