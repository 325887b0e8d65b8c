"""Clip -> Sample: VAE latents, CLIP embeddings of captions and of a few frames.

Each part has a memo of its own (latents by clip and VAE, images by clip and CLIP, text by caption
and CLIP, the round trip by latents), so an edited caption costs one text embedding, and another
`psnr_share` encodes nothing. While one clip is encoded, the next is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Setup
from pipeline.core.reading import Facts, Number, Text
from pipeline.core.records import Blob, Clip, Sample, captions_of
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import encoders, weights
from pipeline.media.captions import is_long
from pipeline.media.models import Params as Params
from pipeline.media.models import Pixels, forced, image_embeddings, images_task
from pipeline.media.models import find_encoders as find_encoders
from pipeline.media.models import pixels_of as pixels_of

VERSION = 3
LATENTS_VERSION = TEXT_VERSION = 1
ROUND_TRIP_VERSION = 2
FIT_VERSION = 1
MAKES = Sample
PSNR_FRAMES = 4
BATCH_S = 200.0  # seconds of video that go to a worker together, so that `prepare` can run ahead
FACTS = {"precision", "chunk_frames", "image_frames", "latents_std", "long_captions"}


def check_models(setup: Setup, store: Store) -> None:
    """Whether the models can be run, asked before any work and once for each pair. Raises
    RecipeError.
    """
    params = setup.table(Params)
    models = find_encoders(params, setup.folder, setup.offline)

    def check() -> object:
        encoders.check_fit(models)
        return "fits"

    task = ["fit", FIT_VERSION, models.vae.sha256, models.clip.sha256]
    store.once([*task, *forced(models)], check)


def stage(setup: Setup) -> Stage:
    params = setup.table(Params)
    models = find_encoders(params, setup.folder, setup.offline)
    return Stage(
        name="encode",
        version=VERSION,
        params=facts(params, models),
        makes=MAKES,
        process=partial(process, params=params, models=models, device=setup.device),
        prepare=partial(prepare, params=params, models=models),
        identity=partial(identity, share=params.psnr_share),
        light=partial(needs_no_frames, params=params, models=models),
        join_s=BATCH_S,
        cost=seconds,
        timeout=patience,
        num_gpus=partial(encoders.num_gpus, setup.device),
    )


def patience(cost: float) -> float:
    """Seconds to wait for `cost` seconds of video: Stable Diffusion's VAE takes a CPU core 20 s a
    frame, and no clip that moves at all is given up.
    """
    return 1800 + 1800 * cost


def facts(params: Params, models: encoders.Encoders) -> dict[str, Any]:
    """What the numbers depend on: digests instead of names and places."""
    return {
        "vae": models.vae.sha256,
        "clip": models.clip.sha256,
        "text": _text_task(models, params),
        **params.model_dump(include=FACTS),
    }


def text_key(stage_params: Mapping[str, Any], caption: str) -> str:
    """The key of the memo of a caption's embedding, from the parameters that manifests and locks
    have of this stage.
    """
    return canonical.digest(_caption_task(stage_params["text"], caption))


def _caption_task(text_task: Sequence[object], caption: str) -> list[object]:
    if encoders.looks_special(caption):  # which had another embedding before this was text
        return [*text_task, "all is text", caption]
    return [*text_task, caption]


def identity(clip: Clip, share: float) -> object:
    """A clip's pixels and captions, and whether it is one of those decoded back."""
    return [clip.identity(), captions(clip), is_measured(clip, share)]


def captions(clip: Clip) -> tuple[str, ...]:
    """The captions of the clip, or the empty one."""
    return captions_of(clip) or ("",)


def long_caption(clip: Clip, params: Params, models: encoders.Encoders) -> str:
    """Why the clip is rejected for its captions; "" if it is not."""
    if params.long_captions == "cut":
        return ""
    limit = weights.clip_facts(models.clip_folder)["tokens"]
    for number, caption in enumerate(captions(clip), 1):
        if is_long(caption, limit):
            words = f"{caption[:40]}..."
            return f"caption {number} has more than the {limit} tokens that CLIP reads: {words!r}"
    return ""


def is_measured(clip: Clip, share: float) -> bool:
    """Whether this clip is in the sampled share: a pure function of its digest."""
    return int(clip.blob.sha256[:8], 16) < share * 2**32


def seconds(clip: Clip) -> float:
    return float(clip.duration_s)


def _text_task(models: encoders.Encoders, params: Params) -> list[object]:
    """What a caption's embedding depends on, but for the caption."""
    return [
        "text",
        TEXT_VERSION,
        models.clip.sha256,
        models.text_layer,
        models.pad_token,
        params.precision,
        *forced(models),
    ]


def _latents_task(clip: Clip, models: encoders.Encoders, params: Params) -> list[object]:
    return [
        "latents",
        LATENTS_VERSION,
        clip.identity(),
        models.vae.sha256,
        params.precision,
        params.chunk_frames,
        params.latents_std,
    ]


def _round_trip_task(clip: Clip, models: encoders.Encoders, params: Params) -> list[object]:
    return ["round_trip", ROUND_TRIP_VERSION, PSNR_FRAMES, *_latents_task(clip, models, params)]


def needs_no_frames(clip: Clip, store: Store, params: Params, models: encoders.Encoders) -> bool:
    """Whether all that is made of the clip's frames is remembered already, or nothing will be."""
    if long_caption(clip, params, models):
        return True
    tasks = [_latents_task(clip, models, params)]
    if params.image_frames:
        tasks.append(images_task(clip, models, params))
    if is_measured(clip, params.psnr_share):
        tasks.append(_round_trip_task(clip, models, params))
    return all(store.recall(canonical.digest(task)) is not None for task in tasks)


def prepare(clip: Clip, store: Store, params: Params, models: encoders.Encoders) -> Pixels | None:
    """The clip's frames, unless all that needs them is remembered already."""
    if needs_no_frames(clip, store, params, models):
        return None
    return pixels_of(clip, store, params.precision)


def process(
    clip: Clip,
    store: Store,
    frames: Pixels | None,
    params: Params,
    models: encoders.Encoders,
    device: str,
) -> Iterator[Sample]:
    """Encode one clip; `frames` are what `prepare` gave. Raises BadData: decode-error,
    too-few-frames, non-finite or long-caption.
    """
    if detail := long_caption(clip, params, models):
        raise BadData("long-caption", detail)
    pixels = _Frames(clip, store, params.precision, frames)
    coder = _Coder(clip, pixels, store, params, models, device)
    latents = coder.latents()
    image = coder.image() if params.image_frames else None
    psnr_db = None
    if is_measured(clip, params.psnr_share):
        psnr_db = coder.round_trip_psnr_db(Blob(**latents["mean"]))
    # the index will want the null prompt's embedding, and the model is at hand
    text("", store, params, models, device)
    yield Sample(
        key=clip.key,
        clip=clip,
        latents=Blob(**latents["mean"]),
        latents_std=Blob(**latents["std"]) if latents["std"] else None,
        text=coder.text(),
        image=image,
        round_trip_psnr_db=psnr_db,
        device=latents["device"],
    )


class _Frames:
    """The clip's frames, read when they are first needed."""

    def __init__(
        self, clip: Clip, store: Store, precision: encoders.Precision, frames: Pixels | None
    ) -> None:
        self._clip, self._store, self._precision, self._frames = clip, store, precision, frames

    def all(self) -> Pixels:
        if self._frames is None:
            self._frames = pixels_of(self._clip, self._store, self._precision)
        return self._frames


class _Latents(Facts):
    """What is remembered of a clip's latents."""

    mean: Blob
    std: Blob | None
    device: Text


class _RoundTrip(Facts):
    """What is remembered of a clip that was decoded back."""

    psnr_db: Number


@dataclass(frozen=True)
class _Coder:
    """One clip and all that encodes it. Each method gives what is remembered, or computes it."""

    clip: Clip
    frames: _Frames
    store: Store
    params: Params
    models: encoders.Encoders
    device: str

    def latents(self) -> dict[str, Any]:
        """`mean` and `std` (or None): blobs of `f c h w` float16 arrays, unscaled; `device`."""

        def encode() -> object:
            mean, std = encoders.latents(
                self._vae(), self.frames.all(), self.params.chunk_frames, self.params.latents_std
            )
            return {
                "mean": self.store.put(encoders.npy(mean)),
                "std": None if std is None else self.store.put(encoders.npy(std)),
                "device": encoders.device_name(self._place()),
            }

        task = _latents_task(self.clip, self.models, self.params)
        memo: dict[str, Any] = self.store.once(task, encode, _Latents)
        return memo

    def round_trip_psnr_db(self, latents: Blob) -> float:
        """How well the frames come back from the stored latents."""

        def decode() -> object:
            stored = np.load(self.store.path(latents.sha256), allow_pickle=False)
            return {"psnr_db": round_trip(self._vae(), stored, self.frames.all())}

        task = _round_trip_task(self.clip, self.models, self.params)
        return float(self.store.once(task, decode, _RoundTrip)["psnr_db"])

    def image(self) -> Blob:
        """Embeddings of a few frames: a `k d` float16 array."""
        return image_embeddings(
            self.clip, self.store, self.params, self.models, self.device, self.frames.all
        )

    def text(self) -> Blob:
        """Embeddings of the captions: an `n 77 d` float16 array."""
        blobs = [
            text(caption, self.store, self.params, self.models, self.device)
            for caption in captions(self.clip)
        ]
        for blob in blobs:
            self.store.check(blob)
        paths = [self.store.path(blob.sha256) for blob in blobs]
        arrays = [np.load(path, allow_pickle=False) for path in paths]
        return self.store.put(encoders.npy(np.stack(arrays)))

    def _vae(self) -> Any:
        return encoders.load_vae(self.models.vae_folder, self.params.precision, self._place())

    def _place(self) -> str:
        return encoders.choose_device(self.device, self.params.precision)


def round_trip(vae: Any, stored: NDArray[np.float16], frames: Pixels) -> float:
    """PSNR of `PSNR_FRAMES` decoded latents (`f c h w`, unscaled) against their frames (`f h w
    c`).
    """
    picks = np.unique(np.linspace(0, len(frames) - 1, PSNR_FRAMES).round().astype(int))
    return round(encoders.psnr_db(encoders.decode(vae, stored[picks]), frames[picks]), 2)


def text(
    caption: str, store: Store, params: Params, models: encoders.Encoders, device: str
) -> Blob:
    """A caption's embedding, a `77 d` float16 array; the empty one is the null prompt's."""

    def embed() -> Blob:
        model = encoders.load_clip(
            models.clip_folder,
            params.precision,
            encoders.choose_device(device, params.precision),
            models.force_quick_gelu,
        )
        hidden = encoders.text(model, caption, models.text_layer, models.pad_token)
        return store.put(encoders.npy(hidden))

    task = _caption_task(_text_task(models, params), caption)
    return Blob(**store.once(task, embed, Blob))
