"""Clip -> Sample: VAE latents, CLIP embeddings of captions and of a few frames.

Each part has a memo of its own (latents by clip and VAE, images by clip and CLIP, text by caption
and CLIP, the round trip by latents), so an edited caption costs one text embedding, and another
`psnr_share` encodes nothing. While one clip is encoded, the next is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import BadData, RecipeError
from pipeline.core.params import Setup, Table
from pipeline.core.reading import Facts, Number, Text
from pipeline.core.records import Blob, Clip, Sample, captions_of
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import encoders, video, weights
from pipeline.media.captions import is_long

VERSION = 3
LATENTS_VERSION = IMAGES_VERSION = TEXT_VERSION = 1
ROUND_TRIP_VERSION = 2
FIT_VERSION = 1
MAKES = Sample
PSNR_FRAMES = 4
TEXT_SUBFOLDER = "text_encoder"  # where a Stable Diffusion checkpoint keeps its CLIP
BATCH_S = 200.0  # seconds of video that go to a worker together, so that `prepare` can run ahead
FACTS = {"precision", "chunk_frames", "image_frames", "latents_std", "long_captions"}
Pixels = NDArray[np.uint8]
if TYPE_CHECKING:
    PresetName = str
else:  # the rows of the table, so that a new preset is a row and nothing else
    PresetName = Literal[tuple(encoders.PRESETS)]


class Params(Table):
    """`[encode]`: which models see the clips and the captions, and how."""

    preset: PresetName = Field(
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
        default=None,
        description="Another CLIP: a folder or a hub id OWNER/NAME, of open_clip or with a "
        "`text_encoder` as Stable Diffusion has it (then image_frames = 0).",
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
        default="float32",
        description="Arithmetic of both models; it changes the numbers. float64 gives the same "
        "bytes on every kind of CPU, in two to four times the time.",
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
    long_captions: Literal["cut", "reject"] = Field(
        default="cut",
        description="What becomes of a caption that is longer than CLIP reads (77 tokens): it is "
        "embedded without its end, or the clip is rejected.",
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
    subfolder = params.vae_subfolder
    if subfolder is None:
        subfolder = "" if params.vae else preset.vae_subfolder
    vae_folder, vae = encoders.find_weights(
        params.vae or preset.vae,
        params.vae_revision,
        subfolder,
        encoders.VAE_LAYOUTS,
        folder,
        offline,
    )
    clip_folder, clip = encoders.find_weights(
        params.clip or preset.clip,
        params.clip_revision,
        TEXT_SUBFOLDER,
        encoders.CLIP_LAYOUTS,
        folder,
        offline,
    )
    has_images = encoders.has_images(clip_folder)
    if params.image_frames and not has_images:
        raise RecipeError(
            f"the CLIP '{params.clip or preset.clip}' sees no pictures, it is a text encoder alone "
            f"({clip_folder}): write image_frames = 0 under [encode], or name a whole CLIP"
        )
    if params.precision == "float16" and encoders.cannot_be_half(vae_folder):
        raise RecipeError(
            f"the VAE '{params.vae or preset.vae}' says it cannot be run in float16 (force_upcast "
            f'in {vae_folder}): write precision = "float32" or "bfloat16" under [encode]'
        )
    # Stable Diffusion 2's text_encoder has lost the last block already
    layer = params.text_layer or (preset.text_layer if has_images else "last")
    pad = preset.pad_token if params.pad_token is None else params.pad_token
    force = (
        params.clip is None
        and preset.quick_gelu is True
        and not encoders.says_quick_gelu(clip_folder)
    )
    return encoders.Encoders(vae, vae_folder, clip, clip_folder, layer, pad, force)


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
    store.once([*task, *_forced(models)], check)


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
        *_forced(models),
    ]


def _forced(models: encoders.Encoders) -> list[object]:
    """What a task's key says of an activation that is not the config's."""
    return ["quick_gelu"] if models.force_quick_gelu else []


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


def _images_task(clip: Clip, models: encoders.Encoders, params: Params) -> list[object]:
    return [
        "images",
        IMAGES_VERSION,
        clip.identity(),
        models.clip.sha256,
        params.precision,
        params.image_frames,
        *_forced(models),
    ]


def needs_no_frames(clip: Clip, store: Store, params: Params, models: encoders.Encoders) -> bool:
    """Whether all that is made of the clip's frames is remembered already, or nothing will be."""
    if long_caption(clip, params, models):
        return True
    tasks = [_latents_task(clip, models, params)]
    if params.image_frames:
        tasks.append(_images_task(clip, models, params))
    if is_measured(clip, params.psnr_share):
        tasks.append(_round_trip_task(clip, models, params))
    return all(store.recall(canonical.digest(task)) is not None for task in tasks)


def prepare(clip: Clip, store: Store, params: Params, models: encoders.Encoders) -> Pixels | None:
    """The clip's frames, unless all that needs them is remembered already."""
    if needs_no_frames(clip, store, params, models):
        return None
    return pixels_of(clip, store, params.precision)


def pixels_of(clip: Clip, store: Store, precision: encoders.Precision) -> Pixels:
    """The clip's frames, `f h w c` RGB, as the VAE sees them. Raises BadData: decode-error,
    too-few-frames or too-large.
    """
    is_portable = precision == encoders.PORTABLE
    read = video.read_clip_exactly if is_portable else video.read_clip
    frames = read(store.path(clip.blob.sha256))
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

        def embed() -> object:
            last, count = self.clip.num_frames - 1, self.params.image_frames
            picks = np.linspace(0, last, count).round().astype(int)
            model = encoders.load_clip(
                self.models.clip_folder,
                self.params.precision,
                self._place(),
                self.models.force_quick_gelu,
            )
            return self.store.put(encoders.npy(encoders.images(model, self.frames.all()[picks])))

        task = _images_task(self.clip, self.models, self.params)
        return Blob(**self.store.once(task, embed, Blob))

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
