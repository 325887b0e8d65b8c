"""The frozen models around ours: a VAE between latents and pictures, a CLIP from words to
embeddings.

They must be the ones that made the shards: what decides is the digest of config and weights in the
index, never a name. The code that runs them is the pipeline's own (`pipeline.media.encoders`).
Pictures are decoded one at a time, so that equal latents are equal pixels whatever stands beside
them; on a CPU that costs nothing (one frame at a time takes 190 to 210 ms, sixteen 195 to 520).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.media import encoders
from pipeline.media.encoders import Pixels
from training.errors import ShardError, Stopped, UsageError

LAYOUTS = {"vae": encoders.VAE_LAYOUTS, "clip": encoders.CLIP_LAYOUTS}
SUBFOLDERS = {"vae": "vae", "clip": "text_encoder"}  # of a Stable Diffusion checkpoint
SHIPPED = {"longtake/tiny-vae": "vae", "longtake/tiny-clip": "clip"}  # folders in encoders.TINY


class ModelFields(BaseModel):
    """What is said of one model; what is not known is ignored."""

    model_config = ConfigDict(strict=True)

    name: str = Field(max_length=1000)
    revision: str | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ClipFields(ModelFields):
    text_layer: encoders.Layer
    pad_token: int = Field(ge=0, lt=encoders.MAX_SIZE)


class CodecFields(BaseModel):
    """What `Codec` relies on: of an index, or of the run.json of a stranger."""

    model_config = ConfigDict(strict=True)

    vae: ModelFields
    clip: ClipFields
    scaling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    precision: encoders.Precision = "float32"
    chunk_frames: int = Field(default=8, ge=1, le=4096)


@contextmanager
def errors_of_training() -> Iterator[None]:
    """What the encoders raise, as errors of training: the same sentence, and an exit code. What
    torch says of a model whose parts do not fit becomes one line.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(
            f"the encoders cannot be run: {type(error).__name__}: {reason}; "
            "give the models that made the shards with --vae and --clip"
        ) from error
    except encoders.RecipeError as error:
        raise UsageError(str(error)) from error
    except encoders.Stopped as error:
        raise Stopped(str(error)) from error
    except encoders.BadData as error:
        raise ShardError(str(error)) from error


def choose_device(name: str) -> str:
    """A torch device that is there; "auto" is the GPU if there is one. Raises Stopped if not."""
    with errors_of_training():
        return encoders.choose_device(name)


def find_folder(kind: str, facts: Mapping[str, Any], folder: Path | None = None) -> Path:
    """The folder of the model ("vae" or "clip") that made the shards.

    `facts` are the index's `encoders.KIND`: name, revision, sha256. `folder` is the user's own;
    without it the model is looked for among the shipped ones, then on the hub. Raises UsageError if
    `folder` holds another model or none, or if only a folder's name is known; ShardError if what
    the name leads to is not what made the shards; Stopped if the hub cannot be reached.
    """
    name, what = str(facts.get("name")), kind.upper()
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(f"--{kind} {folder}: there is no such folder")
        source = str(folder)
    elif name in SHIPPED:
        source = str(encoders.TINY / SHIPPED[name])
    elif name.count("/") == 1:
        source = name
    else:
        raise UsageError(
            f"the shards were made with the {what} '{name}', a folder of the machine that built "
            f"them; give a folder that holds {' and '.join(LAYOUTS[kind][0])} with --{kind}"
        )
    subfolder = kind if (Path(source) / kind).is_dir() else SUBFOLDERS[kind]
    try:
        with errors_of_training():
            path, weights = encoders.find_weights(
                source, facts.get("revision"), subfolder, LAYOUTS[kind], Path()
            )
    except (UsageError, Stopped) as error:
        advice = "" if folder else f"; give the folder of the {what} with --{kind}"
        raise type(error)(f"{error}{advice}") from error
    former = encoders.former_digest(path, LAYOUTS[kind])
    if facts["sha256"] not in (weights.sha256, former):
        problem = (
            f"{source if folder else name} is another {what} than the one that made the shards: "
            f"sha256 {weights.sha256}, {facts['sha256']} in their index"
        )
        if folder is not None:
            raise UsageError(f"{problem}; give the folder of {name} with --{kind}")
        raise ShardError(
            f"{problem}; give the right one's folder with --{kind}, or build the shards and train "
            "again"
        )
    return path


class Codec:
    """VAE and CLIP as the shards' index describes them; each is loaded when it is first used.
    Latents go in and come out scaled.

    `models` are the index's `encoders`, `scaling_factor` is its latents'; `vae` and `clip` are the
    user's own folders. The arithmetic is as precise as the index says. Raises UsageError for facts
    that are none; and what `find_folder` raises, when a model is first used or at once in `check`.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        scaling_factor: float,
        vae: Path | None = None,
        clip: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        try:
            facts = CodecFields.model_validate({**models, "scaling_factor": scaling_factor})
        except (ValidationError, TypeError) as error:
            raise UsageError(f"what made the shards is not understood: {_problem(error)}") from None
        self.models = models
        self.scaling_factor = facts.scaling_factor
        # bytes that are the same on every machine are a matter of shards: pictures need none
        is_portable = facts.precision == encoders.PORTABLE
        self._precision: encoders.Precision = "float32" if is_portable else facts.precision
        self._chunk_frames = facts.chunk_frames
        self.device = str(device)
        self._own_folders = {"vae": vae, "clip": clip}
        self._folders: dict[str, Path] = {}
        self._embeddings: dict[str, Tensor] = {}

    @classmethod
    def of_run(
        cls,
        dataset: Mapping[str, Any],
        vae: Path | None = None,
        clip: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> Codec:
        """The codec of a run's dataset, as run.json describes it: `identity`, and `encoders` for
        the names.
        """
        identity = dataset["identity"]
        models = dataset.get("encoders")
        if not models:  # a run that names no encoders is tried with the shipped ones
            clip_facts = {
                field: identity[f"encoders.clip.{field}"]
                for field in ("sha256", "text_layer", "pad_token")
            }
            models = {
                "vae": {"name": "longtake/tiny-vae", "sha256": identity["encoders.vae.sha256"]},
                "clip": {"name": "longtake/tiny-clip", **clip_facts},
            }
        return cls(models, identity["latents.scaling_factor"], vae, clip, device)

    @property
    def understands_words(self) -> bool:
        """Whether the CLIP was trained: the one that comes with longtake has random weights."""
        _, shipped = encoders.find_weights(
            str(encoders.TINY / "clip"), None, "", LAYOUTS["clip"], Path()
        )
        return bool(self.models["clip"]["sha256"] != shipped.sha256)

    def check(self, *kinds: str) -> None:
        """Find these models ("vae", "clip"; by default both) and compare their digests with the
        index, before any work.
        """
        for kind in kinds or LAYOUTS:
            self._folder(kind)

    def _folder(self, kind: str) -> Path:
        if kind not in self._folders:
            own_folder = self._own_folders[kind]
            self._folders[kind] = find_folder(kind, self.models[kind], own_folder)
        return self._folders[kind]

    @cached_property
    def _vae(self) -> Any:
        return encoders.new_vae(self._folder("vae"), self._precision, self.device)

    @cached_property
    def _clip(self) -> Any:
        force_quick_gelu = self.models["clip"].get("quick_gelu") is True
        folder = self._folder("clip")
        clip = encoders.new_clip(folder, self._precision, self.device, force_quick_gelu)
        clip.visual = None  # only words are embedded here
        return clip

    def decode(self, latents: Tensor) -> Pixels:
        """Scaled latents `f c h w` to pictures `f h w c`, uint8 RGB. Raises UsageError for latents
        that are not finite.
        """
        if not bool(torch.isfinite(latents).all()):
            raise UsageError(
                "the latents to decode are not all finite numbers: the model that made them is "
                "damaged"
            )
        unscaled = (latents / self.scaling_factor).cpu().numpy()
        with errors_of_training():
            pictures = [encoders.decode(self._vae, frame[None]) for frame in unscaled]
        return np.concatenate(pictures)

    def encode(self, frames: Pixels) -> Tensor:
        """Pictures `f h w c`, uint8 RGB, to scaled latents `f c h w` float32: the posterior's mean,
        as the shards have it.
        """
        with errors_of_training():
            mean, _ = encoders.latents(self._vae, frames, self._chunk_frames, with_std=False)
        return torch.from_numpy(mean).float() * self.scaling_factor

    def embed(self, prompt: str) -> Tensor:
        """CLIP's hidden states of a prompt, `n d` float32, rounded to float16 as the shards' are.
        "" gives the null text.
        """
        if prompt not in self._embeddings:
            facts = self.models["clip"]
            with errors_of_training():
                hidden = encoders.text(self._clip, prompt, facts["text_layer"], facts["pad_token"])
            self._embeddings[prompt] = torch.from_numpy(hidden).float()
        return self._embeddings[prompt]


def _problem(error: ValidationError | TypeError) -> str:
    """The first field that is wrong, in one line."""
    if not isinstance(error, ValidationError):
        return repr(str(error)[:200])
    problem = error.errors()[0]
    field = repr(".".join(map(str, problem["loc"]))[:80])[1:-1]
    return f"{field}: {problem['msg']}, not {str(problem['input'])[:80]!r}"
