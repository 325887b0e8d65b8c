"""A run's model as files that others read: diffusers, `--unet`, `--adapter`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training import adapters, checkpoint, heldout, models, writing
from training.errors import UsageError
from training.run import Run
from training.unet import flat_digest, flat_of


def export(run: Run, out: Path) -> list[Path]:
    """Write the averaged model of a run's checkpoint into a new folder; returns the files' paths.

    Of an image run `out` is the 2-D model, in float16, as diffusers reads it. Of a video run:
    `model/`, all of it, `adapter.safetensors`, its temporal layers, and `unet/`, the 2-D model
    without them, where that was trained or began with random weights; in float32, so that
    `unet/` and the adapter give the model to the bit. training.json says what it was trained on.
    Raises UsageError if `out` exists.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: give another --out, or move it away")
    step, folder = checkpoint.newest(run)
    model: Any = checkpoint.load_model(run)
    facts = {
        "preset": run.preset.plain(),
        "dataset": run.dataset,
        "seed": run.seed,
        "step": step,
        "samples_seen": step * run.preset.batch_size,
    }
    with writing.beside(out) as partial:
        if not run.preset.is_video:
            _write_flat(model, partial, facts, half=True)
        else:
            base = checkpoint.load_state(run, folder).base
            if run.preset.trainable != "temporal" or models.begins_random(run.unet):
                _write_flat(model, partial / "unet", facts)
                base = flat_digest(partial / "unet")
            model.save_pretrained(partial / "model", safe_serialization=True)
            _without_name(partial / "model")
            values = {**run.plain(), "step": step, "base": {"sha256": base}}
            adapters.write(partial / "adapter.safetensors", model, values)
            writing.write_json(partial / heldout.MODEL_FACTS, facts, sort_keys=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _write_flat(model: Any, folder: Path, facts: dict[str, Any], half: bool = False) -> None:
    flat: Any = flat_of(model)
    (flat.half() if half else flat).save_pretrained(folder, safe_serialization=True)
    _without_name(folder)
    writing.write_json(folder / heldout.MODEL_FACTS, facts, sort_keys=True)


def _without_name(folder: Path) -> None:
    """A config without the folder of this machine that its model came from."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)
    writing.write_json(folder / "config.json", config, sort_keys=True)
