"""What a 2-D model was trained for, and whether a preset and its shards ask the same of it: epsilon
or v, how much noise there is at each step, and whose latents. A model that is asked for another
thing still runs, and learns to undo what it knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from pipeline.media import encoders
from training import diffusion, heldout, models, shards
from training.codec import errors_of_training
from training.errors import UsageError
from training.presets import Prediction, Preset

SCHEDULER = Path("scheduler", "scheduler_config.json")
OTHER_KINDS = ("EDM", "FlowMatch")  # of diffusion: in the names of schedulers
# what diffusers' schedulers take where their config says nothing
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}


def check(preset: Preset, unet: str, from_hub: bool = False) -> Path | None:
    """Compare the preset with what a 2-D model was trained for: with the scheduler of its
    repository (`scheduler/scheduler_config.json` in the folder, beside it, or on the hub, which is
    asked if `from_hub`), or of a model that longtake exported, with its training.json. Gives the
    file that says it, None if there is none. Raises UsageError where they differ, Stopped if the
    hub cannot be reached.
    """
    if models.begins_random(unet):
        return None
    folder = Path(models.flat_source(unet))
    scheduler = _scheduler_of(folder) if folder.is_dir() else None
    if from_hub and not folder.is_dir():
        with errors_of_training():
            scheduler = encoders.hub_file(unet, SCHEDULER.as_posix())
    if scheduler is not None:
        _compare(preset, unet, scheduler, _noise_of(scheduler))
        return scheduler
    path = folder / heldout.MODEL_FACTS
    if path.is_file():
        with _readable(path):
            facts = json.loads(path.read_bytes())
            if "preset" not in facts:
                return None
            objective = facts["preset"]["objective"]
            prediction, zero_snr = objective["prediction"], objective["zero_snr"]
        asked = {"prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}
        _compare(preset, unet, path, {**diffusion.NOISE, **asked})
        return path
    return None


def check_latents(preset: Preset, unet: str, index: shards.Index) -> list[str]:
    """Compare the encoders of the shards with those that made what a 2-D model exported by longtake
    was trained on. Its frozen weights would draw latents that the shards' VAE does not know: raises
    UsageError. A model that is trained whole may learn others: gives a sentence on that. Nothing
    is said where they agree, or where nothing tells whose latents it knows.
    """
    path = Path(models.flat_source(unet)) / heldout.MODEL_FACTS
    if models.begins_random(unet) or not path.is_file():
        return []
    with _readable(path):
        identity = dict(json.loads(path.read_bytes())["dataset"].get("identity") or {})
    differences = index.differences(identity) if identity else {}
    differences.pop("latents.shape", None)  # a UNet takes pictures of any size
    if not differences:
        return []
    if preset.trainable == "all":
        return [f"{unet} was trained on latents or texts of other encoders: a start, no more"]
    lines = "\n".join(f"  {line}" for line in differences.values())
    raise UsageError(
        f"{path}: the model {unet} was trained with other encoders than those of the shards "
        f"{index.url}:\n{lines}\nBuild the shards with its encoders, or train all its weights: "
        "--set trainable=all"
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} does not say what its model was trained for") from error


def _scheduler_of(folder: Path) -> Path | None:
    places = (folder / SCHEDULER, folder.resolve().parent / SCHEDULER)
    return next((path for path in places if path.is_file()), None)


def _noise_of(path: Path) -> dict[str, Any]:
    """What a scheduler's config says of noise. Raises UsageError for another kind of diffusion."""
    try:
        config = encoders.read_config(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    kind = str(config.get("_class_name", ""))
    if config.get("trained_betas") is not None or any(word in kind for word in OTHER_KINDS):
        raise UsageError(
            f"{path}: its model was trained with {kind or 'betas of its own'}, which is another "
            "kind of noise than Stable Diffusion's, the one longtake has: give another --unet"
        )
    return {name: config.get(name, default) for name, default in DEFAULTS.items()}


def _compare(preset: Preset, unet: str, path: Path, noise: Mapping[str, Any]) -> None:
    other = {name: noise[name] for name, value in diffusion.NOISE.items() if noise[name] != value}
    if other:
        listed = ", ".join(f"{name} {value!a:.40}" for name, value in other.items())
        ours = ", ".join(f"{name} {diffusion.NOISE[name]!a}" for name in other)
        raise UsageError(
            f"{path}: the model {unet} was trained with {listed}; longtake trains with {ours}, "
            "as Stable Diffusion does: give another --unet"
        )
    objective = preset.objective
    prediction, zero_snr = noise["prediction_type"], bool(noise["rescale_betas_zero_snr"])
    settings = []
    if prediction != objective.prediction:
        settings.append(f"objective.prediction={prediction}")
    # a model that is trained whole may learn to begin with nothing but noise
    if zero_snr != objective.zero_snr and not (objective.zero_snr and preset.trainable == "all"):
        settings.append(f"objective.zero_snr={str(zero_snr).lower()}")
    if settings:
        advice = " ".join(f"--set {setting}" for setting in settings)
        raise UsageError(
            f"{path}: the model {unet} was trained for {prediction!a:.40}"
            f"{' and zero terminal SNR' if zero_snr else ''}, the preset {preset.name} asks for "
            f"{objective.prediction!a}{' and zero terminal SNR' if objective.zero_snr else ''}: "
            + (f"add {advice}" if prediction in get_args(Prediction) else "give another --unet")
        )
