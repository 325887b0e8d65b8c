"""Scores by linear heads over a clip's CLIP image embeddings: an aesthetic predictor is one, what
`taste` fits to picks is another.

    score = weight . (mean over frames of embedding / its length) + bias

or the sigmoid of that, where the file says so. A head is a safetensors file with `weight` (`d` or
`1 d`, d as wide as CLIP's image embeddings) and, if it has one, `bias` (one number). The frames are
those that `encode` embeds, and are embedded once for both. Sums are rounded once (`math.fsum`), so
with equal embeddings a score is the same on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import keyword
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from pipeline.core import canonical
from pipeline.core.errors import BadData, Damaged, RecipeError, printable
from pipeline.core.params import Setup
from pipeline.core.reading import shown_value, whole
from pipeline.core.records import Clip
from pipeline.core.store import Store
from pipeline.media import encoders
from pipeline.media.models import Params as Encode
from pipeline.media.models import find_encoders, forced, image_embeddings, images_key
from pipeline.media.scorers.scorer import Pictures, Score, Scorer

NUM_FRAMES = 3  # that are embedded where the recipe's `image_frames` is 0
MAX_BYTES = 8 << 20
MAX_HEADS = 32
HEAD_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
METADATA = "head"  # the key of a file's metadata whose value is JSON: activation, clip
# columns beside the scores, in tables and on the page
TAKEN = {"key", "source", "start_s", "duration_s", "frames", "psnr", "round_trip_psnr_db"}
PROBABILITY = "probability"  # the unit of a head that ends in a sigmoid; the page's order knows it
HeadFile = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class LinearHead:
    """What a file says. `clip` is the digest of the CLIP it was fitted to, where it says that."""

    sha256: str
    weight: tuple[float, ...]
    bias: float
    is_probability: bool
    clip: str | None

    def value(self, embedding: Sequence[float]) -> float:
        """The score of a clip's embedding."""
        products = [w * x for w, x in zip(self.weight, embedding, strict=True)]
        logit = math.fsum([*products, self.bias])
        return _sigmoid(logit) if self.is_probability else logit


def _sigmoid(logit: float) -> float:
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)


class Head(Scorer):
    """`[score.head]`: heads over CLIP's image embeddings, as NAME = "FILE.safetensors". NAME is
    that of the score, FILE lies beside the recipe.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, HeadFile]

    name = "head"
    version = 1
    scores = ()  # named by the recipe
    cost = "that of CLIP on 3 frames, which `encode` then has"

    @model_validator(mode="before")
    @classmethod
    def _names(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if not HEAD_NAME.fullmatch(str(name)) or keyword.iskeyword(str(name)):
                raise ValueError(
                    f"{name!r} is no name for a score: up to 40 of a-z, 0-9 and _, a letter first"
                )
            if name in TAKEN:
                raise ValueError(
                    f"a head cannot be called '{name}': something else is; take another name"
                )
        if isinstance(values, dict) and len(values) > MAX_HEADS:
            raise ValueError(f"at most {MAX_HEADS} heads")
        return values

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.__pydantic_extra__))

    def files(self, folder: Path) -> Mapping[str, Path]:
        return {name: folder / self.__pydantic_extra__[name] for name in self.score_names}

    def problem(self) -> str:
        if self.__pydantic_extra__:
            return ""
        return 'no head is named: write NAME = "FILE.safetensors" under [score.head]'

    def described(self, folder: Path) -> list[Score]:
        scores = []
        for name, path in self.files(folder).items():
            meaning = f"the head {path.name} over CLIP's image embeddings"
            score = Score(name, "", None, None, meaning)
            with contextlib.suppress(RecipeError):  # what is not there is not known
                if read(path).is_probability:
                    score = Score(name, PROBABILITY, 0, 1, meaning)
            scores.append(score)
        return scores

    def ready(self, setup: Setup) -> Scorer:
        """Raises RecipeError for a head that cannot be read or does not fit the CLIP, for a CLIP
        that sees no pictures; Stopped for models that cannot be had.
        """
        params, models = clip_of(setup)
        width = encoders.clip_facts(models.clip_folder)["image_width"]
        files = self.files(setup.folder)
        heads = {name: read(path) for name, path in files.items()}
        for name, head in heads.items():
            _check_fit(f"score.head.{name}: {files[name]}", head, width, models)
        return ReadyHead(heads=heads, params=params, models=models, device=setup.device)


class ReadyHead(Scorer):
    """The heads of a recipe, read, and the CLIP that they are over."""

    name = "head"
    version = Head.version
    scores = ()
    cost = Head.cost
    runs_models = True

    heads: dict[str, LinearHead]
    params: Encode
    models: encoders.Encoders
    device: str

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def frames(self, clip: Clip) -> Sequence[int]:
        return ()  # they are read in colour and full size, if the embeddings are not there yet

    def facts(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "heads": {name: head.sha256 for name, head in self.heads.items()},
            "clip": self.models.clip.sha256,
            "precision": self.params.precision,
            "image_frames": self.params.image_frames,
            "forced": forced(self.models),
        }

    def measure(self, clip: Clip, pictures: Pictures) -> Sequence[float | None]:
        assert pictures.store is not None
        embedding = embedding_of(clip, pictures.store, self.params, self.models, self.device)
        return [head.value(embedding) for head in self.heads.values()]


def clip_of(setup: Setup) -> tuple[Encode, encoders.Encoders]:
    """The recipe's CLIP, and how many frames it sees in which arithmetic. Raises RecipeError for
    one that sees no pictures, Stopped for models that cannot be had.
    """
    params = setup.table(Encode)
    models = find_encoders(params, setup.folder, setup.offline)
    if not encoders.has_images(models.clip_folder):
        raise RecipeError(
            "heads are over image embeddings, and the CLIP under [encode] is a text encoder alone: "
            'name a whole CLIP, or leave "head" out of scorers'
        )
    if not params.image_frames:
        params = params.model_copy(update={"image_frames": NUM_FRAMES})
    return params, models


def embedding_of(
    clip: Clip,
    store: Store,
    params: Encode,
    models: encoders.Encoders,
    device: str,
) -> list[float]:
    """The mean of a clip's image embeddings, each of length 1: what a head is over. Raises BadData
    as `image_embeddings` does.
    """
    blob = image_embeddings(clip, store, params, models, device)
    store.check(blob)
    return mean_of(np.load(store.path(blob.sha256), allow_pickle=False))


def embedding_keys(params: Mapping[str, Any], clips: Sequence[str]) -> list[str]:
    """The keys of the memos of these clips' embeddings (the clips by digest), from the parameters
    that a manifest has of a stage `score` with heads; none without.
    """
    facts = params.get("head")
    if not isinstance(facts, dict) or facts.get("version") != Head.version:
        return []
    of_models = [facts["clip"], facts["precision"], facts["image_frames"], *facts["forced"]]
    return [images_key({"clip": clip}, of_models) for clip in clips]


def mean_of(embeddings: NDArray[np.floating[Any]]) -> list[float]:
    """The mean of embeddings (`k d`), each scaled to length 1; `d` numbers. Raises BadData for one
    without a length.
    """
    rows = embeddings.astype(np.float64).tolist()
    lengths = [math.sqrt(math.fsum(x * x for x in row)) for row in rows]
    if not all(lengths):
        raise BadData("non-finite", "an image embedding is all zeros, so it has no direction")
    units = [[x / length for x in row] for row, length in zip(rows, lengths, strict=True)]
    return [math.fsum(column) / len(rows) for column in zip(*units, strict=True)]


def _check_fit(place: str, head: LinearHead, width: int, models: encoders.Encoders) -> None:
    if len(head.weight) != width:
        raise RecipeError(
            f"{place}: its weight has {len(head.weight)} numbers, and the image embeddings of "
            f"'{models.clip.name}' have {width}: take the CLIP that the head was made for"
        )
    if head.clip is not None and head.clip != models.clip.sha256:
        raise RecipeError(
            f"{place}: it was fitted to another CLIP than '{models.clip.name}': name that one "
            "under [encode], or fit it anew with `taste`"
        )


def read(path: Path) -> LinearHead:
    """A head from its file. Raises RecipeError, in a line, for a file that is not there or is no
    head, for a weight of another shape, and for numbers that are not finite.
    """
    try:
        return _parsed(whole(path, MAX_BYTES))
    except OSError as error:
        raise RecipeError(f"the head {path} cannot be read ({error.strerror})") from error
    except (Damaged, ValueError) as error:
        raise RecipeError(
            f"{path} is no head: {error}; wanted is a safetensors file with `weight` (d or 1 d "
            "numbers, float16, float32 or float64) and, if it has one, `bias` (1)"
        ) from error


def _parsed(content: bytes) -> LinearHead:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Mapping[str, NDArray[Any]] = load(content)
    except (SafetensorError, KeyError, TypeError) as error:  # KeyError: a type numpy has not
        raise ValueError(printable(" ".join(str(error).split())[:200])) from None
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    listed = ", ".join(f"{name!a:.60} {shape}" for name, shape in sorted(shapes.items())[:5])
    if "weight" not in arrays or not arrays.keys() <= {"weight", "bias"}:
        raise ValueError(f"it holds {listed or 'nothing'}")
    weight, bias = arrays["weight"], arrays.get("bias", np.zeros(1))
    if weight.ndim not in (1, 2) or weight.size != weight.shape[-1] or bias.size != 1:
        raise ValueError(f"it holds {listed}")
    if weight.dtype.kind != "f" or bias.dtype.kind != "f":
        raise ValueError(f"its numbers are {weight.dtype} and {bias.dtype}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError("it holds NaN or infinity")
    activation, clip = _metadata(content)
    return LinearHead(
        hashlib.sha256(content).hexdigest(),
        tuple(map(float, weight.ravel())),
        float(bias.ravel()[0]),
        activation == "sigmoid",
        clip,
    )


def _metadata(content: bytes) -> tuple[str, str | None]:
    """The activation and the CLIP that a file names. Raises ValueError."""
    (size,) = struct.unpack("<Q", content[:8])
    text = canonical.parse(content[8 : 8 + size]).get("__metadata__", {}).get(METADATA, "{}")
    facts = canonical.parse(text)
    if not isinstance(facts, dict):
        raise ValueError(f"its metadata '{METADATA}' is {shown_value(facts)}")
    activation, clip = facts.get("activation", "none"), facts.get("clip")
    if activation not in ("none", "sigmoid"):
        raise ValueError(f"its activation is {shown_value(activation)}, not none or sigmoid")
    if not isinstance(clip, str | None):
        raise ValueError(f"its clip is {shown_value(clip)}, not a digest")
    return activation, clip


def encoded(weight: NDArray[np.floating[Any]], bias: float, clip: str) -> bytes:
    """The file of a head that gives a probability, over embeddings of the CLIP of this digest."""
    from safetensors.numpy import save

    # in one value, because safetensors writes several in no fixed order
    facts = json.dumps({"activation": "sigmoid", "clip": clip}, sort_keys=True)
    arrays = {"weight": weight.astype(np.float32), "bias": np.array([bias], np.float32)}
    return bytes(save(arrays, metadata={METADATA: facts}))


SCORERS = (Head,)
