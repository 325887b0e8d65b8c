"""What can be said of a task without running it: what it would give, and whether it would touch
pixels.

Exactly, where a stage reads nothing but its record (`expand` of anything but a web page, `filter`),
and where a memo is there whose blobs are gone, because equal tasks give equal bytes. Of `extract`
and `encode` only roughly: a stand-in of the right length and size, whose digest nobody knows yet.
Of the others not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import BadData, Unavailable
from pipeline.core.records import Blob, Clip, Crop, Record, Rejection, Sample, Scene
from pipeline.core.stage import Stage, collect
from pipeline.core.store import Store
from pipeline.media import encoders
from pipeline.media.reel import Params as Extract
from pipeline.stages.encode import Params as Encode
from pipeline.stages.encode import captions

PURE = ("expand", "filter")  # stages that read records only, and lists that are remembered
NPY_HEADER = 128
NOWHERE = Crop(0, 0, 0, 0)


class Unforeseen(Exception):
    """Only running it would tell."""


@dataclass(frozen=True)
class Looking(Store):
    """A store to look at. Whoever wants to make something, or to open a file, is stopped by
    `Unforeseen`.
    """

    def path(self, sha256: str) -> Any:
        raise Unforeseen

    def has(self, blob: Blob) -> bool:
        return Store(self.root).has(blob)

    def once(self, task: object, make: object) -> Any:
        found = self.recall(canonical.digest(task))
        if found is None:
            raise Unforeseen
        return found


def is_light(stage: Stage, record: Record, store: Store) -> bool:
    """Whether a task would find all that is costly remembered: its `prepare` has nothing to
    read.
    """
    if stage.prepare is None:
        return False
    try:
        return stage.prepare(record, Looking(store.root)) is None
    except Unforeseen:
        return False


def exact(stage: Stage, record: Record, store: Store) -> list[Record | Rejection] | None:
    """What a task would give; None if only running it would tell."""
    memo = store.memo(stage.task_key(record))
    if memo is not None:
        made = collect(stage, [record], {record.key: memo.outputs}, [])
        return [*made.records, *made.rejections]
    if stage.name not in PURE:
        return None
    try:
        outcomes = list(stage.process(record, Looking(store.root)))
    except Unforeseen:
        return None
    except Unavailable as error:
        return [Rejection(record.key, stage.name, "unavailable", error.cause, error.detail)]
    return [
        Rejection(record.key, stage.name, "bad", one.reason, one.detail)
        if isinstance(one, BadData)
        else one
        for one in outcomes
    ]


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is not there yet: clips by measured frames, arrays by arithmetic."""

    extract: Extract
    encode: Encode
    frame: float  # bytes of one frame of a reel or clip

    def reel(self, video_s: float) -> float:
        return video_s * float(self.extract.fps) * self.frame

    def latents(self, num_frames: float, found: encoders.Encoders) -> float:
        """One `f c h w` float16 array."""
        vae = encoders.vae_facts(found.vae_folder)
        side = self.extract.size // int(vae["factor"])
        return NPY_HEADER + 2 * num_frames * int(vae["latent_channels"]) * side * side

    def text(self, found: encoders.Encoders) -> int:
        """One caption's `77 d` float16 array."""
        tower = _clip_facts(found)["text_cfg"]
        return NPY_HEADER + 2 * int(tower.get("context_length", 77)) * int(tower.get("width", 512))

    def image(self, found: encoders.Encoders) -> int:
        """The `k d` float16 array of a few frames."""
        return (
            NPY_HEADER + 2 * self.encode.image_frames * int(_clip_facts(found)["embed_dim"])
            if self.encode.image_frames
            else 0
        )

    def sample(self, num_frames: float, found: encoders.Encoders) -> float:
        """All arrays of a sample of one caption."""
        return (
            self.latents(num_frames, found) * (1 + self.encode.latents_std)
            + self.text(found)
            + self.image(found)
        )


def _clip_facts(found: encoders.Encoders) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = json.loads((found.clip_folder / encoders.CLIP_FILES[0]).read_text())[
        "model_cfg"
    ]
    return facts


def clip(scene: Scene, sizes: Sizes) -> Clip:
    """A stand-in for the clip of a scene."""
    count = scene.num_frames(sizes.extract.fps)
    blob = Blob(_nobody("clip", scene.key), round(count * sizes.frame))
    return Clip(
        scene.key, scene, blob, count, Fraction(sizes.extract.fps), sizes.extract.size, NOWHERE, ""
    )


def sample(clip: Clip, sizes: Sizes, found: encoders.Encoders) -> Sample:
    """A stand-in for the sample of a clip, or of its stand-in."""
    latents = Blob(_nobody("latents", clip.key), round(sizes.latents(clip.num_frames, found)))
    text = tuple(
        Blob(_nobody(f"text {caption}", clip.key), sizes.text(found)) for caption in captions(clip)
    )
    image = (
        Blob(_nobody("image", clip.key), sizes.image(found)) if sizes.encode.image_frames else None
    )
    return Sample(
        clip.key,
        clip,
        latents,
        latents if sizes.encode.latents_std else None,
        text,
        image,
        None,
        "",
    )


def _nobody(what: str, key: str) -> str:
    """A digest that nothing has."""
    return canonical.digest(["stand-in", what, key])
