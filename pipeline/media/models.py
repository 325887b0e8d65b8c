"""The models that a recipe names under [encode], and what its CLIP sees in a few frames of a clip.

Two stages ask for that: `encode`, and `score` for heads over CLIP's embeddings. Both remember it
under the same key, so whoever asks second computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core import canonical
from pipeline.core.errors import BadData, RecipeError
from pipeline.core.params import Table
from pipeline.core.records import Blob, Clip
from pipeline.core.store import Store
from pipeline.media import encoders, video

IMAGES_VERSION = 1
TEXT_SUBFOLDER = "text_encoder"  # where a Stable Diffusion checkpoint keeps its CLIP
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


def forced(models: encoders.Encoders) -> list[object]:
    """What a task's key says of an activation that is not the config's."""
    return ["quick_gelu"] if models.force_quick_gelu else []


def images_task(clip: Clip, models: encoders.Encoders, params: Params) -> list[object]:
    """What the embeddings of a clip's frames depend on."""
    facts = [models.clip.sha256, params.precision, params.image_frames, *forced(models)]
    return _images_task(clip.identity(), facts)


def images_key(identity: object, facts: Sequence[object]) -> str:
    """The key of the memo of a clip's embeddings, from the clip's identity and what a manifest has
    of the models: CLIP's digest, precision, `image_frames`, and what `forced` says.
    """
    return canonical.digest(_images_task(identity, facts))


def _images_task(identity: object, facts: Sequence[object]) -> list[object]:
    return ["images", IMAGES_VERSION, identity, *facts]


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


def image_embeddings(
    clip: Clip,
    store: Store,
    params: Params,
    models: encoders.Encoders,
    device: str,
    frames: Callable[[], Pixels] | None = None,
) -> Blob:
    """What CLIP makes of a few frames of a clip, a `k d` float16 array, or what is remembered of
    that. `frames` gives all of the clip's; without it they are decoded. Raises BadData: non-finite,
    or as `pixels_of` does.
    """

    def embed() -> object:
        picks = np.linspace(0, clip.num_frames - 1, params.image_frames).round().astype(int)
        model = encoders.load_clip(
            models.clip_folder,
            params.precision,
            encoders.choose_device(device, params.precision),
            models.force_quick_gelu,
        )
        pixels = frames() if frames else pixels_of(clip, store, params.precision)
        return store.put(encoders.npy(encoders.images(model, pixels[picks])))

    return Blob(**store.once(images_task(clip, models, params), embed, Blob))
