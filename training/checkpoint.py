"""A run on disk: what it trains, and checkpoints from which the same command goes on, bit for bit.

runs/NAME/
├── run.json                  preset, dataset (root digest, encoders), seed: must not change
├── verified.json             the shards whose bytes were compared with their digests
├── checkpoints/step-000300/  whole, as it is written beside and renamed; the newest two are kept
│   ├── model/                averaged weights, a diffusers folder: what sampling loads
│   ├── weights.safetensors   the trained parameters as they are
│   └── average.safetensors, optimizer.safetensors, state.json
└── history.jsonl, loss.png, samples/, tensorboard/

No random number generator is stored: all that is drawn comes from (seed, sample index). Nothing is
pickled either.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.media import encoders
from training import presets, writing
from training.errors import Stopped, UsageError
from training.presets import Preset
from training.shards import Index, Sha256, Side
from training.unet import VideoUNet, save_flat

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
    "dataset.": {"encoders", "videos"},  # older runs do not say on which videos
}


class IdentityFields(BaseModel):
    """A dataset's encoders, in a run.json that may be a stranger's."""

    model_config = ConfigDict(strict=True)

    vae: Sha256 = Field(alias="encoders.vae.sha256")
    clip: Sha256 = Field(alias="encoders.clip.sha256")
    text_layer: encoders.Layer = Field(alias="encoders.clip.text_layer")
    pad_token: int = Field(alias="encoders.clip.pad_token", ge=0, lt=encoders.MAX_SIZE)
    shape: list[Side] = Field(alias="latents.shape", min_length=3, max_length=3)
    scaling_factor: float = Field(alias="latents.scaling_factor", gt=0, allow_inf_nan=False)


class DatasetFields(BaseModel):
    """A run's dataset, in a run.json that may be a stranger's."""

    model_config = ConfigDict(strict=True)

    name: str = Field(max_length=1000)
    root_digest: Sha256
    fps: str = Field(pattern=r"^[1-9][0-9]{0,8}/[1-9][0-9]{0,8}$")
    size: Side
    identity: IdentityFields
    encoders: dict[str, Any] | None = None
    videos: list[Sha256] | None = None  # older runs do not say


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("an odd number is wanted, so that it has a middle")
    return number


Odd = Annotated[int, AfterValidator(_odd)]


class CountFields(BaseModel):
    """What of a preset says how much is done, and how fast."""

    windows: tuple[Any, ...] = Field(min_length=1)
    tasks: tuple[Any, ...] = Field(min_length=1)
    batch_size: int = Field(ge=1, le=1 << 20)
    micro_batch: int = Field(ge=1, le=1 << 20)
    steps: int = Field(ge=1, le=1 << 40)
    sampler_steps: int = Field(ge=1, le=10_000)
    kernel: Odd = Field(ge=1, le=999)
    learning_rate: float = Field(gt=0, le=1)
    ema_decay: float = Field(ge=0, lt=1)
    text_dropout: float = Field(ge=0, le=1)
    terminal: float = Field(ge=0, le=1)
    warmup: int = Field(ge=0)
    validate_every: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)


@dataclass(frozen=True)
class Run:
    """A run folder's constants. `dataset` has name, root_digest, encoders and their identity, fps,
    size, and the digests of the videos its samples are of; `unet_sha256` is the digest of the 2-D
    weights the run began with, if they lay in a folder.
    """

    folder: Path
    preset: Preset
    dataset: dict[str, Any]
    unet: str
    seed: int
    unet_sha256: str | None = None

    def plain(self) -> dict[str, Any]:
        """What run.json says."""
        return {
            "format": FORMAT,
            "preset": self.preset.plain(),
            "dataset": self.dataset,
            "unet": self.unet,
            "unet_sha256": self.unet_sha256,
            "seed": self.seed,
        }


def check_run(run: Run) -> None:
    """Whether a run can begin in its folder, or go on there. Nothing is written.

    Raises UsageError if its folder holds another run, naming what differs.
    """
    if (run.folder / "run.json").exists():
        before = load_run(run.folder)
        differences = _differences(_as_json(before), _as_json(run))
        if differences:
            lines = "\n".join(f"  {field}: {was!r}, now {now!r}" for field, was, now in differences)
            raise UsageError(
                f"{run.folder} holds a run of something else, and cannot go on as this one:\n"
                f"{lines}\n"
                "Ask for what it was begun with, or give this run another name (RUN=, --run)."
            )


def open_run(run: Run) -> Run:
    """Begin a run, or go on with it; what a killed process left half-written is removed. Raises
    UsageError as `check_run` does.
    """
    check_run(run)
    for folder in (run.folder, run.folder / "checkpoints", run.folder / "samples"):
        writing.sweep(folder)
    writing.write_json(run.folder / "run.json", run.plain(), sort_keys=True)
    return run


def _as_json(run: Run) -> dict[str, Any]:
    """What run.json says once it is read back: tuples have become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(run.plain()))
    return plain


def _differences(
    was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """Each field that differs, with its value before and now."""
    differences: list[tuple[str, Any, Any]] = []
    for field in sorted({*was, *now} - MAY_CHANGE.get(prefix, set())):
        a, b = was.get(field), now.get(field)
        if isinstance(a, dict) and isinstance(b, dict):
            differences += _differences(a, b, f"{prefix}{field}.")
        elif a != b:
            differences.append((f"{prefix}{field}", a, b))
    return differences


def is_verified(run: Run, index: Index) -> bool:
    """Whether these shards' bytes were compared with their digests for this run before."""
    try:
        facts = json.loads((run.folder / "verified.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(facts == _verified_facts(index))


def remember_verified(run: Run, index: Index) -> None:
    writing.write_json(run.folder / "verified.json", _verified_facts(index))


def _verified_facts(index: Index) -> dict[str, str]:
    """Which bytes, and where: a copy elsewhere may be damaged."""
    place = index.url if "://" in index.url else str(Path(index.url).resolve())
    return {"root_digest": index.root_digest, "shards": place}


def check_preset(preset: Preset) -> None:
    """Whether every field has its type, and every count is one. Raises pydantic's
    ValidationError.
    """
    TypeAdapter(Preset).validate_python(preset.plain())
    CountFields.model_validate(preset.plain())


def load_run(folder: Path) -> Run:
    """The run in a folder. Raises UsageError if there is none."""
    path = folder / "run.json"
    if not path.is_file():
        near = sorted(str(path.parent) for path in folder.parent.glob("*/run.json"))
        raise UsageError(
            f"{folder} is not a run: there is no run.json in it. "
            f"Runs beside it: {', '.join(near) or 'none'}. "
            "`make train-keyframe` and `make train-interp` make some."
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        if type(values["format"]) is not int or values["format"] != FORMAT:
            raise UsageError(f"{path}: format {values['format']}, this longtake reads {FORMAT}")
        preset = presets.from_plain(values["preset"])
        check_preset(preset)
        DatasetFields.model_validate(values["dataset"])
        TypeAdapter(tuple[str, int]).validate_python((values["unet"], values["seed"]), strict=True)
        return Run(
            folder,
            preset,
            values["dataset"],
            values["unet"],
            values["seed"],
            values.get("unet_sha256"),  # older runs do not say
        )
    except ValidationError as error:
        problem = error.errors()[0]
        field = repr(".".join(map(str, problem["loc"]))[:80])[1:-1]
        raise UsageError(f"{path} cannot be read: {field}: {problem['msg']}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}; move it away to begin anew") from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What torch, diffusers, safetensors and json say of a checkpoint they cannot read, as one
    line.
    """
    try:
        yield
    except (UsageError, OSError, MemoryError, torch.OutOfMemoryError):
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
        match = NAME.fullmatch(path.name)
        if match:
            steps.append((int(match[1]), path))
    return sorted(steps)


def load_model(run: Run, device: str | torch.device = "cpu") -> VideoUNet:
    """The newest checkpoint's averaged model, ready to sample with. Raises UsageError if the run
    has no checkpoint yet.
    """
    newest = checkpoints(run)[-1:]
    if not newest:
        raise UsageError(
            f"{run.folder} has no checkpoint yet: train it first, "
            "`make train-keyframe` or `make train-interp`"
        )
    folder = newest[0][1] / "model"
    with _reading(newest[0][1]):
        for path in (folder / "config.json", *folder.glob("*.safetensors")):
            encoders.check_file(path)
        model: VideoUNet = VideoUNet.from_pretrained(folder, use_safetensors=True)
    module: nn.Module = model  # diffusers' own `to` warns
    module.to(torch.device(device)).to(memory_format=torch.channels_last)
    model.eval()
    model.requires_grad_(False)
    return model


@dataclass(frozen=True)
class Replan:
    """A learning rate's plan that was changed under way: at which step, and from which rate."""

    step: int
    rate: float


@dataclass(frozen=True)
class State:
    """What training goes on from, beside the model.

    `step` optimizer steps were done, of `planned_steps`; samples seen are step * batch_size.
    """

    step: int
    planned_steps: int
    replan: Replan | None
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    average_steps: int
    optimizer: dict[str, Any]


def save(run: Run, model: VideoUNet, state: State) -> Path:
    """Write a checkpoint, whole or not at all, and drop the oldest. `model` holds the averaged
    weights at this moment.
    """
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
    }
    try:
        with writing.beside(folder) as partial:
            partial.mkdir()
            _save_model(model, partial / "model")
            save_file(state.weights, partial / "weights.safetensors")
            save_file(state.average, partial / "average.safetensors")
            save_file(tensors, partial / "optimizer.safetensors")
            writing.write_json(partial / "state.json", facts, sort_keys=True)
    except Stopped as error:
        raise Stopped(
            f"{error}; the checkpoint before it is whole, the same command goes on from there"
        ) from error
    for _, old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _save_model(model: VideoUNet, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)  # a folder of this machine, and other bytes after a resume
    writing.write_json(folder / "config.json", config, sort_keys=True)


def export(run: Run, out: Path) -> list[Path]:
    """Write the newest averaged model of an image run as a 2-D model, and what it was trained on.

    `out` gets config.json and diffusion_pytorch_model.safetensors, in float16, as diffusers reads
    them, and training.json. Returns their paths. Raises UsageError if the model has temporal
    layers, or if `out` exists.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: give another --out, or move it away")
    model = load_model(run)
    step = checkpoints(run)[-1][0]
    with writing.beside(out) as partial:
        save_flat(model, partial)
        config = json.loads((partial / "config.json").read_text("utf-8"))
        config.pop("_name_or_path", None)  # a folder of this machine
        writing.write_json(partial / "config.json", config, sort_keys=True)
        facts = {
            "preset": run.preset.plain(),
            "dataset": run.dataset,
            "seed": run.seed,
            "step": step,
            "samples_seen": step * run.preset.batch_size,
        }
        writing.write_json(partial / "training.json", facts, sort_keys=True)
    return sorted(out.iterdir())


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
    return State(
        step=facts["step"],
        planned_steps=facts["preset"]["steps"],
        replan=None if replan is None else Replan(**replan),
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
