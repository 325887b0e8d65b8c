"""A run on disk: what it trains, and on what; none of it may change when the same command goes on.

runs/NAME/
├── run.json                  preset, dataset (root digest, encoders), seed: must not change
├── verified.json             the shards whose bytes were compared with their digests
├── checkpoints/step-000300/  what training goes on from: `training.checkpoint`
└── history.jsonl, loss.png, samples/, tensorboard/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.media import encoders
from training import adapters, presets, writing
from training.errors import UsageError
from training.presets import Preset
from training.shards import Index, Sha256, Side

FORMAT = 1  # of run.json and of a checkpoint's state.json
STEP = re.compile(r"step-(\d{6,})")  # a checkpoint's folder
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
        "keep_every",
        "offload",
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
    keep_every: int = Field(ge=0)


@dataclass(frozen=True)
class Run:
    """A run folder's constants. `dataset` has name, root_digest, encoders and their identity, fps,
    size, and the digests of the videos its samples are of; `unet_sha256` is the digest of the 2-D
    weights the run began with, if they lay in a folder; `adapter_sha256` that of the file whose
    weights were then taken in. Not in run.json: `adapter`, where that file is, `unets`, folders
    where the 2-D model may lie instead, and `step`, the checkpoint that is looked at, by default
    the newest.
    """

    folder: Path
    preset: Preset
    dataset: dict[str, Any]
    unet: str
    seed: int
    unet_sha256: str | None = None
    adapter_sha256: str | None = None
    adapter: str | None = None
    unets: tuple[str, ...] = ()
    step: int | None = None

    def plain(self) -> dict[str, Any]:
        """What run.json says."""
        return {
            "format": FORMAT,
            "preset": self.preset.plain(),
            "dataset": self.dataset,
            "unet": self.unet,
            "unet_sha256": self.unet_sha256,
            "adapter_sha256": self.adapter_sha256,
            "seed": self.seed,
        }


def check_run(run: Run) -> None:
    """Whether a run can begin in its folder, or go on there. Nothing is written.

    Raises UsageError if its folder holds another run, naming what differs.
    """
    if (run.folder / "run.json").exists():
        before = load_run(run.folder)
        same_weights = before.unet_sha256 is not None and before.unet_sha256 == run.unet_sha256
        if same_weights:  # wherever they lie now
            before = replace(before, unet=run.unet)
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


def load_run(folder: Path, unets: Sequence[str] = ()) -> Run:
    """The run in a folder, or, of RUN/checkpoints/step-000300, the run as it was then, or the run
    that an exported adapter is of. `unets` are folders where the 2-D model it began with may lie.
    Raises UsageError if there is no run.
    """
    match = STEP.fullmatch(folder.name)
    if match and folder.is_dir():
        run = _load_run(folder.parent.parent)
        return replace(run, unets=tuple(unets), step=int(match[1]))
    is_adapter = folder.is_file() or (folder / adapters.FILES[0]).is_file()
    if is_adapter and not (folder / "run.json").is_file():
        path = adapters.file_of(folder)
        values = adapters.facts(path)
        if values is None:
            raise UsageError(f"{path} is no adapter that `export` wrote of a run")
        beside = [str(path.parent / "unet")] if (path.parent / "unet").is_dir() else []
        return replace(_run_of(path, path, values), unets=(*unets, *beside))
    return replace(_load_run(folder), unets=tuple(unets))


def _load_run(folder: Path) -> Run:
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
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}; move it away to begin anew") from error
    return _run_of(folder, path, values)


def _run_of(folder: Path, path: Path, values: Any) -> Run:
    """What was read of a run, checked."""
    try:
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
            values.get("adapter_sha256"),
        )
    except ValidationError as error:
        problem = error.errors()[0]
        field = repr(".".join(map(str, problem["loc"]))[:80])[1:-1]
        raise UsageError(f"{path} cannot be read: {field}: {problem['msg']}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}; move it away to begin anew") from error
