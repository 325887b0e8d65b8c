"""What a dataset's folder holds: manifests, clips under names people can open, shards and index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.core.files import make_folder, sync_folder
from pipeline.core.manifest import Manifest
from pipeline.core.records import Clip, Sample, Shard
from pipeline.core.store import Store, link_or_copy
from pipeline.dataset.chain import Step, manifest_path, manifest_paths
from pipeline.dataset.recipe import Loaded
from pipeline.stages import NAMES, encode, shard

LIBRARIES = ("longtake", "torch", "diffusers", "open_clip_torch", "av", "decord2")


def write_outputs(
    loaded: Loaded, steps: Iterator[Step], data: Path, store: Store, device: str
) -> Iterator[Step]:
    """Write each step's manifest and outputs into the dataset's folder as it comes. Manifests of
    stages that were passed over, or that the chain does not have, go.
    """
    folder = data / loaded.recipe.name
    names_left = list(NAMES)
    known = {manifest_path(folder, name) for name in NAMES}
    for path in set(manifest_paths(folder)) - known:
        path.unlink()
    before: Manifest | None = None
    for step in steps:
        name = step.manifest.stage
        while (skipped := names_left.pop(0)) != name:
            manifest_path(folder, skipped).unlink(missing_ok=True)
        step.manifest.write(manifest_path(folder, name))
        if name == "extract":
            link_clips(folder / "clips", step.manifest, store)
        if name == "shard" and before is not None:
            publish(loaded, folder, step.manifest, before, store, device)
        before = step.manifest
        yield step


def link_clips(folder: Path, manifest: Manifest, store: Store) -> None:
    """Give every clip a name a person can open; names of clips that are no more go."""
    make_folder(folder)
    clips = {
        f"{record.key}.mp4": record.blob for record in manifest.records if isinstance(record, Clip)
    }
    for path in folder.glob("*.mp4*"):
        blob = clips.get(path.name)
        if blob is None or not os.path.samefile(path, store.path(blob.sha256)):
            path.unlink()
    for name, blob in clips.items():
        if not (folder / name).exists():
            link_or_copy(store.path(blob.sha256), folder / name)
    sync_folder(folder)


def publish(
    loaded: Loaded, folder: Path, packed: Manifest, samples: Manifest, store: Store, device: str
) -> None:
    """Put the tars and their index where a trainer looks. Raises AssertionError if a sample is in
    no shard.
    """
    recipe = loaded.recipe
    shards = [record for record in packed.records if isinstance(record, Shard)]
    if not shards:
        shard.clear(folder / "shards")
        return
    packed_keys = sorted(key for record in shards for key in record.samples)
    if packed_keys != sorted(record.key for record in samples.records):
        raise AssertionError("the shards do not hold exactly the samples that were encoded")
    models = encode.find_encoders(recipe.encode, loaded.folder)
    null_text = encode.text("", store, recipe.encode, models, device)
    null_bytes = store.path(null_text.sha256).read_bytes()
    devices = sorted({record.device for record in samples.records if isinstance(record, Sample)})
    built: dict[str, Any] = {
        "devices": devices,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    about = shard.About(
        recipe.name,
        recipe.extract.fps,
        recipe.extract.size,
        recipe.encode.precision,
        recipe.encode.chunk_frames,
    )
    index = shard.index_of(about, shards, models, null_bytes, built)
    shard.publish(folder / "shards", shards, index, store)
