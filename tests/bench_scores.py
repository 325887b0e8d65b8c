"""What scoring costs: CPU seconds a clip of each scorer, and the stage as a share of cut and
extract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import frame_hashes, scorers
from pipeline.media.scorers.scorer import Pictures, Scorer, one_thread
from pipeline.stages import score

SETS = {
    "the default scorers": scorers.DEFAULT,
    "all scorers": tuple(scorers.SCORERS),
}


def installed() -> list[str]:
    """The scorers whose network, if they have one, is there, and that no recipe has to complete."""
    return [
        name
        for name, kind in scorers.SCORERS.items()
        if (kind.weights is None or kind.weights.path() is not None) and not kind().problem()
    ]


def run_scorer(scorer: Scorer, clip: Clip, store: Store) -> None:
    """One scorer with a decode of its own, nothing remembered."""
    with one_thread():
        pictures = Pictures(store.path(clip.blob.sha256), scorer.frames(clip))
        score.values_of(scorer, clip, pictures)


def run_hashes(clip: Clip, store: Store) -> None:
    """What near-duplicates are found by, with a decode of its own."""
    Pictures(store.path(clip.blob.sha256), (), frame_hashes.moments(clip)).hashes()


def run_set(names: tuple[str, ...], clips: list[Clip], store: Store) -> None:
    """The whole stage with these scorers, as far as they are there."""
    chosen = tuple(name for name in names if name in installed())
    stage = score.stage(Setup((score.Params(scorers=chosen),)))
    run_stage(stage, clips, store, Inline(), Progress())


def costs(
    clips: list[Clip], store: Store, cost_of: Callable[..., Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds a clip of each scorer and of the hashes, decode and all; and of each set, one
    decode for all.
    """
    for name in installed():
        run_scorer(scorers.SCORERS[name](), clips[0], store)  # imports, networks
    single = {
        name: sum(cost_of(run_scorer, scorers.SCORERS[name](), clip, store).cpu_s for clip in clips)
        / len(clips)
        for name in installed()
    }
    single["hashes of frames"] = sum(
        cost_of(run_hashes, clip, store).cpu_s for clip in clips
    ) / len(clips)
    joined = {}
    for what, names in SETS.items():
        joined[what] = cost_of(run_set, names, clips, store).cpu_s
        for memo in store.memos():  # of scorers; nothing else is needed here
            memo.unlink()
    return single, joined
