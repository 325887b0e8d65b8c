"""Clip -> Clip with scores: what the recipe's scorers measure of it. Nothing is chosen here.
Where near-duplicates are looked for, a clip's frames are hashed too.

Each scorer has a memo of its own for each clip, so another scorer, or another option of one,
measures that one alone. The frames that the missing ones look at are decoded once for all of them.
Scores are no part of a clip's identity: `encode` finds what it encoded before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import BadData, Stopped
from pipeline.core.params import Setup
from pipeline.core.reading import Number, Text
from pipeline.core.records import Clip
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import duplicates, encoders, frame_hashes, scorers
from pipeline.media.scorers.scorer import Pictures, Scorer, is_value, one_thread, rounded

VERSION = 1
MAKES = Clip
Params = scorers.Params
WITHOUT = Params(scorers=())  # a recipe without [score] measures nothing
Facts = Mapping[str, Mapping[str, Any]]  # what values depend on, by scorer; also of HASHES
HASHES = "hashes"  # of frames: no scorer is called so
OUT_OF_MEMORY = -4  # OpenCV's StsNoMem


def stage(setup: Setup) -> Stage:
    """Raises Stopped where the package of a scorer is not installed, RecipeError or Stopped where a
    head or its CLIP is not there.
    """
    chosen = tuple(scorer.ready(setup) for scorer in setup.table(Params).chosen)
    facts: dict[str, Mapping[str, Any]] = {scorer.name: scorer.facts() for scorer in chosen}
    if setup.find(duplicates.Params) is not None:
        facts[HASHES] = {"version": frame_hashes.VERSION}
    return Stage(
        name="score",
        version=VERSION,
        params=facts,
        makes=MAKES,
        process=partial(process, chosen=chosen, facts=facts),
        identity=partial(identity, chosen=chosen),
        pure=partial(is_idle, facts=facts),
        light=partial(is_light, chosen=chosen, facts=facts),
        local=not facts,
        cost=seconds,
        num_gpus=partial(num_gpus, device=setup.device, chosen=chosen),
    )


def num_gpus(cluster: int | None, device: str, chosen: Sequence[Scorer]) -> int:
    """How many GPUs the scorers can use: none but for those that run the recipe's models."""
    if not any(scorer.runs_models for scorer in chosen):
        return 0
    return encoders.num_gpus(device, cluster)


def identity(clip: Clip, chosen: Sequence[Scorer]) -> object:
    """A clip's pixels, what else its scores depend on, and those it has already, of a stage
    before.
    """
    about = {scorer.name: scorer.about(clip) for scorer in chosen}
    return [clip.identity(), clip.scores, about]


def is_idle(clip: Clip, facts: Facts) -> bool:
    """Where nothing is measured, a clip passes as it is, and no memo is needed for that."""
    return not facts


def seconds(clip: Clip) -> float:
    return float(clip.duration_s)


def is_light(clip: Clip, store: Store, chosen: Sequence[Scorer], facts: Facts) -> bool:
    """Whether all that is measured of the clip is remembered."""
    return is_remembered(clip, store, chosen, facts) and (
        HASHES not in facts or are_hashed(clip, store, facts)
    )


def are_hashed(clip: Clip, store: Store, facts: Facts) -> bool:
    """Whether the hashes of the clip's frames are remembered."""
    return store.recall(canonical.digest(_hashes_task(clip, facts))) is not None


def _hashes_task(clip: Clip, facts: Facts) -> list[object]:
    return ["score", HASHES, facts[HASHES], clip.identity(), clip.num_frames, clip.fps]


def is_remembered(clip: Clip, store: Store, chosen: Sequence[Scorer], facts: Facts) -> bool:
    """Whether every scorer has measured the clip already."""
    return all(
        store.recall(canonical.digest(_task(scorer, clip, facts))) is not None for scorer in chosen
    )


def _task(scorer: Scorer, clip: Clip, facts: Facts) -> list[object]:
    return ["score", scorer.name, facts[scorer.name], clip.identity(), scorer.about(clip)]


def process(clip: Clip, store: Store, chosen: Sequence[Scorer], facts: Facts) -> Iterator[Clip]:
    """Measure one clip. Raises BadData: score-failed for an error of a scorer, non-finite for a
    value that is no number; and as `video.some_frames` does.
    """
    missing = [scorer for scorer in chosen if not is_remembered(clip, store, [scorer], facts)]
    is_hashed = HASHES not in facts or are_hashed(clip, store, facts)
    indexes = {index for scorer in missing for index in scorer.frames(clip)}
    moments = () if is_hashed else frame_hashes.moments(clip)
    pictures = Pictures(store.path(clip.blob.sha256), sorted(indexes), moments, store)
    scores: list[tuple[str, float | None]] = []
    failures: list[BadData] = []
    hashes = ""
    if HASHES in facts:
        hashes = store.once(_hashes_task(clip, facts), pictures.hashes, Text)
    for scorer in chosen:

        def measure(scorer: Scorer = scorer) -> list[float | None]:
            return values_of(scorer, clip, pictures)

        try:
            with one_thread():
                values = store.once(_task(scorer, clip, facts), measure, list[Number | None])
        except BadData as failure:
            failures.append(failure)  # the others measure it all the same, and remember
            continue
        scores += zip(scorer.score_names, values, strict=True)
    if failures:
        raise failures[0]
    yield replace(clip, scores=(*clip.scores, *scores), hashes=hashes)


def values_of(scorer: Scorer, clip: Clip, pictures: Pictures) -> list[float | None]:
    """What a scorer measures of a clip, rounded. Raises BadData: score-failed or non-finite."""
    try:
        values = list(scorer.measure(clip, pictures))
    except (BadData, ImportError, MemoryError, OSError, Stopped):
        raise
    except Exception as error:
        if getattr(error, "code", None) == OUT_OF_MEMORY:
            raise MemoryError(str(error)) from error
        words = " ".join(str(error).split())[:200]
        detail = f"the scorer '{scorer.name}': {type(error).__name__}: {words}"
        raise BadData("score-failed", detail) from error
    names = scorer.score_names
    if len(values) != len(names):
        detail = f"the scorer '{scorer.name}' gave {len(values)} values for {len(names)}"
        raise BadData("score-failed", detail)
    for name, value in zip(names, values, strict=True):
        if not is_value(value):
            raise BadData("non-finite", f"the scorer '{scorer.name}': {name} is {value!r}")
    return [None if value is None else rounded(value) for value in values]
