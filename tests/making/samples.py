"""Samples of noise, in shards that `pipeline` packs and publishes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Crop, Sample, Scene, Scores, Shard
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import encoders
from pipeline.media.encoders import Encoders, Weights
from pipeline.stages import shard
from pipeline.stages.shard import Params

SIZE, WIDTH, IMAGES = 16, 8, 3  # pixels a side, numbers in an embedding, frames with one
Arrays = dict[str, dict[str, Any]]
NewScene = Callable[..., Scene]


def sample_of(
    store: Store,
    scene: Scene,
    key: str,
    num_frames: int,
    captions: tuple[str, ...] = ("a street",),
    std: bool = False,
    license: str | None = None,
    psnr_db: float | None = 31.25,
    scores: Scores = (),
) -> Sample:
    """A sample with arrays of noise, of a video of its own."""
    random = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))

    def array(*shape: int) -> Blob:
        return store.put(encoders.npy(random.standard_normal(shape).astype(np.float16)))

    source = replace(scene.video.source, key=key, captions=captions, license=license)
    video = replace(
        scene.video, key=key, source=source, blob=Blob(hashlib.sha256(key.encode()).hexdigest(), 1)
    )
    clip = Clip(
        key,
        replace(scene, key=key, video=video),
        Blob("1" * 64, 1),
        num_frames,
        Fraction(10),
        SIZE,
        Crop(40, 0, 240, 240),
        "3" * 64,
        scores,
    )
    return Sample(
        key=key,
        clip=clip,
        latents=array(num_frames, 4, 2, 2),
        latents_std=array(num_frames, 4, 2, 2) if std else None,
        text=array(len(captions) or 1, 77, WIDTH),
        image=array(IMAGES, WIDTH),
        round_trip_psnr_db=psnr_db,
        device="cpu",
    )


def pack(store: Store, samples: Sequence[Sample], params: Params) -> list[Shard]:
    manifest, _ = run_stage(
        shard.stage(Setup((params,))), shard.pack(samples, params), store, Inline(), Progress()
    )
    return [record for record in manifest.records if isinstance(record, Shard)]


def publish(
    folder: Path, store: Store, samples: Sequence[Sample], params: Params
) -> dict[str, Any]:
    """Pack the samples, put the shards into the folder, and give the index as it is read back."""
    vae = folder.parent / "vae"
    vae.mkdir(exist_ok=True)
    (vae / "config.json").write_text(
        json.dumps(
            {"scaling_factor": 0.18215, "latent_channels": 4, "block_out_channels": [8, 8, 8, 8]}
        )
    )
    models = Encoders(
        Weights("vae", None, "a" * 64),
        vae,
        Weights("clip", "main", "b" * 64),
        folder,
        "last",
        49407,
    )
    shards = pack(store, samples, params)
    null = encoders.npy(np.zeros((77, WIDTH), np.float16))
    shard.publish(
        folder,
        shards,
        shard.index_of(
            shard.About("tiny", Fraction(10), SIZE, "float32", 8),
            shards,
            models,
            null,
            {"devices": ["cpu"]},
        ),
        store,
    )
    index: dict[str, Any] = json.loads((folder / "index.json").read_text("utf-8"))
    return index


def arrays_of(samples: Sequence[Sample], store: Store) -> Arrays:
    """The arrays of each sample: what every reader should read."""
    return {
        sample.key: {
            name: np.load(store.path(blob.sha256), allow_pickle=False)
            for name, blob in shard.members_of(sample)
            if name.endswith(".npy")
        }
        for sample in samples
    }
