"""Clip -> Sample: VAE latents, CLIP embeddings of captions and of a few frames.

Each part has a memo of its own (latents by clip and VAE, images by clip and CLIP, text by caption
and CLIP), so an edited caption costs one text embedding. While one clip is encoded, the next is
decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Table
from pipeline.core.records import Blob, Clip, Sample, source_of
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import encoders, video

VERSION = 1
PSNR_FRAMES = 4
# clips that go to a worker together, so that the next is decoded while one is encoded: seconds of
# video
BATCH_S = 200.0
Pixels = NDArray[np.uint8]


class Params(Table):
    """`[encode]`: which models see the clips and the captions, and how."""

    preset: Literal["sd15", "sd21", "tiny"] = Field(
        default="sd15", description="The encoders a family of models was trained with."
    )
    vae: str | None = Field(
        default=None, description="Another AutoencoderKL: a folder, or a hub id OWNER/NAME."
    )
    vae_revision: str | None = Field(
        default=None, description="Commit, tag or branch of the VAE on the hub."
    )
    vae_subfolder: str | None = Field(
        default=None, description='Where in it the VAE lies, "" for the top.'
    )
    clip: str | None = Field(
        default=None, description="Another open_clip model: a folder, or a hub id OWNER/NAME."
    )
    clip_revision: str | None = Field(
        default=None, description="Commit, tag or branch of the CLIP model on the hub."
    )
    text_layer: encoders.Layer | None = Field(
        default=None, description="CLIP's last block (SD 1.x) or the one before (SD 2.x)."
    )
    pad_token: int | None = Field(
        default=None,
        ge=0,
        description="Token that fills captions up to 77: 49407 (SD 1.x) or 0 (SD 2.x).",
    )
    precision: encoders.Precision = Field(
        default="float32", description="Arithmetic of both models; it changes the numbers."
    )
    chunk_frames: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Frames the VAE sees at a time: lower it for less memory.",
    )
    image_frames: int = Field(
        default=3,
        ge=0,
        le=64,
        description="Evenly spaced frames with a CLIP image embedding; 0 for none.",
    )
    latents_std: bool = Field(
        default=False, description="Store the posterior's standard deviation too."
    )
    psnr_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of clips decoded back to measure the round trip.",
    )


@lru_cache(maxsize=1)
def find_encoders(params: Params, folder: Path, offline: bool = False) -> encoders.Encoders:
    """The models of the preset, or those that stand in for them. Raises RecipeError or Stopped."""
    preset = encoders.PRESETS[params.preset]
    subfolder = (
        params.vae_subfolder
        if params.vae_subfolder is not None
        else ("" if params.vae else preset.vae_subfolder)
    )
    vae_folder, vae = encoders.find_weights(
        params.vae or preset.vae,
        params.vae_revision,
        subfolder,
        encoders.VAE_FILES,
        folder,
        offline,
    )
    clip_folder, clip = encoders.find_weights(
        params.clip or preset.clip, params.clip_revision, "", encoders.CLIP_FILES, folder, offline
    )
    layer = params.text_layer or preset.text_layer
    pad = preset.pad_token if params.pad_token is None else params.pad_token
    return encoders.Encoders(vae, vae_folder, clip, clip_folder, layer, pad)


def stage(params: Params, found: encoders.Encoders, device: str) -> Stage:
    return Stage(
        name="encode",
        version=VERSION,
        params=facts(params, found),
        makes=Sample,
        process=partial(process, params=params, found=found, device=device),
        prepare=partial(prepare, params=params, found=found),
        identity=partial(identity, share=params.psnr_share),
        join_s=BATCH_S,
        cost=seconds,
        timeout=patience,
        num_gpus=partial(encoders.num_gpus, device),
    )


def patience(cost: float) -> float:
    """Stable Diffusion's VAE takes a CPU core 20 s a frame; no clip that moves at all is given
    up.
    """
    return 1800 + 1800 * cost


def facts(params: Params, found: encoders.Encoders) -> dict[str, Any]:
    """What the numbers depend on: digests instead of names and places."""
    return {
        "vae": found.vae.sha256,
        "clip": found.clip.sha256,
        "text": _text_task(found, params),
        **params.model_dump(include={"precision", "chunk_frames", "image_frames", "latents_std"}),
    }


def _text_task(found: encoders.Encoders, params: Params) -> list[object]:
    return ["text", VERSION, found.clip.sha256, found.text_layer, found.pad_token, params.precision]


def _latents_task(clip: Clip, found: encoders.Encoders, params: Params) -> list[object]:
    return [
        "latents",
        VERSION,
        clip.identity(),
        found.vae.sha256,
        params.precision,
        params.chunk_frames,
        params.latents_std,
        measured(clip, params.psnr_share),
    ]


def _images_task(clip: Clip, found: encoders.Encoders, params: Params) -> list[object]:
    return [
        "images",
        VERSION,
        clip.identity(),
        found.clip.sha256,
        params.precision,
        params.image_frames,
    ]


def identity(clip: Clip, share: float) -> object:
    """A clip's pixels and captions, and whether it is one of those decoded back."""
    return [clip.identity(), captions(clip), measured(clip, share)]


def captions(clip: Clip) -> tuple[str, ...]:
    """The captions of the clip's source, or the empty one."""
    return source_of(clip).captions or ("",)


def measured(clip: Clip, share: float) -> bool:
    """Whether this clip is in the sampled share: a pure function of its digest."""
    return int(clip.blob.sha256[:8], 16) < share * 2**32


def seconds(clip: Clip) -> float:
    return float(clip.duration_s)


def prepare(clip: Clip, store: Store, params: Params, found: encoders.Encoders) -> Pixels | None:
    """The clip's frames, unless what needs them is remembered already."""
    needed = [
        _latents_task(clip, found, params),
        *([_images_task(clip, found, params)] if params.image_frames else []),
    ]
    if all(store.recall(canonical.digest(task)) is not None for task in needed):
        return None
    return _read(clip, store)


def _read(clip: Clip, store: Store) -> Pixels:
    frames = video.read_clip(store.path(clip.blob.sha256))
    if len(frames) != clip.num_frames:
        raise BadData(
            "too-few-frames",
            f"the clip promises {clip.num_frames} frames and decodes to {len(frames)}",
        )
    return frames


def process(
    clip: Clip,
    store: Store,
    frames: Pixels | None,
    params: Params,
    found: encoders.Encoders,
    device: str,
) -> Iterator[Sample]:
    """Encode one clip. Raises BadData: decode-error, too-few-frames or non-finite."""
    pixels = _Lazy(clip, store, frames)

    def latents() -> object:
        place = encoders.choose_device(device)
        vae = encoders.load_vae(found.vae_folder, params.precision, place)
        mean, std = encoders.latents(vae, pixels.all(), params.chunk_frames, params.latents_std)
        psnr_db = round_trip(vae, mean, pixels.all()) if measured(clip, params.psnr_share) else None
        stored = [
            store.put(encoders.npy(values)) if values is not None else None
            for values in (mean, std)
        ]
        return {
            "mean": stored[0],
            "std": stored[1],
            "psnr": psnr_db,
            "device": encoders.device_name(place),
        }

    def images() -> object:
        picks = np.linspace(0, clip.num_frames - 1, params.image_frames).round().astype(int)
        model = encoders.load_clip(
            found.clip_folder, params.precision, encoders.choose_device(device)
        )
        return store.put(encoders.npy(encoders.images(model, pixels.all()[picks])))

    coded = store.once(_latents_task(clip, found, params), latents)
    image = store.once(_images_task(clip, found, params), images) if params.image_frames else None
    text(
        "", store, params, found, device
    )  # the index will want the null prompt's, and the model is at hand
    yield Sample(
        key=clip.key,
        clip=clip,
        latents=Blob(**coded["mean"]),
        latents_std=Blob(**coded["std"]) if coded["std"] else None,
        text=tuple(text(caption, store, params, found, device) for caption in captions(clip)),
        image=Blob(**image) if image else None,
        round_trip_psnr_db=coded["psnr"],
        device=coded["device"],
    )


class _Lazy:
    """The clip's frames, read when they are first needed."""

    def __init__(self, clip: Clip, store: Store, frames: Pixels | None) -> None:
        self._clip, self._store, self._frames = clip, store, frames

    def all(self) -> Pixels:
        if self._frames is None:
            self._frames = _read(self._clip, self._store)
        return self._frames


def round_trip(vae: Any, stored: NDArray[np.float16], frames: Pixels) -> float:
    """PSNR of `PSNR_FRAMES` decoded latents (`f c h w`, unscaled) against their frames (`f h w
    c`).
    """
    picks = np.unique(np.linspace(0, len(frames) - 1, PSNR_FRAMES).round().astype(int))
    return round(encoders.psnr_db(encoders.decode(vae, stored[picks]), frames[picks]), 2)


def text(caption: str, store: Store, params: Params, found: encoders.Encoders, device: str) -> Blob:
    """A caption's embedding; the empty one is the null prompt's."""

    def embed() -> Blob:
        model = encoders.load_clip(
            found.clip_folder, params.precision, encoders.choose_device(device)
        )
        return store.put(
            encoders.npy(encoders.text(model, caption, found.text_layer, found.pad_token))
        )

    return Blob(**store.once([*_text_task(found, params), caption], embed))
