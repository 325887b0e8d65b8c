"""`store/rates.json`: what builds in this data folder took, a stage at a time, so that `plan` can
say how long the next one takes.

    {"cut": {"video_s": 81.4, "worker_s": 20.6}, "encode 660e9e04ee9b": {...}}

`video_s` is the cost of what was done (`Stage.cost`: seconds of video, or records), `worker_s` the
time it took times the workers that shared it. Each build adds its own; what was there before weighs
no more than an hour's work, so a new machine is believed soon. Nothing depends on this file:
damaged or gone, there is no estimate until the next build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.files import replace_file
from pipeline.core.manifest import Manifest
from pipeline.core.records import Clip, Record
from pipeline.core.stage import Executor, Stage
from pipeline.core.store import Store
from pipeline.plan.foresee import is_light

MEMORY_S = 3600.0


@dataclass(frozen=True)
class Rate:
    """Cost done, and the seconds of one worker it took."""

    video_s: float
    worker_s: float

    def worker_seconds(self, cost: float) -> float:
        return cost * self.worker_s / self.video_s


def path_of(store: Store) -> Path:
    return store.root / "rates.json"


def read(store: Store) -> dict[str, Rate]:
    """All rates, by `name_of`; none if the file is not there or not whole."""
    try:
        found = canonical.unseal(path_of(store).read_bytes())["rates"]
        rates = {
            str(name): Rate(float(one["video_s"]), float(one["worker_s"]))
            for name, one in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: rate for name, rate in rates.items() if rate.video_s > 0 and rate.worker_s >= 0}


def name_of(stage: str, params: Mapping[str, Any], size: int, fps: Fraction) -> str:
    """Under which name a stage is timed. `encode` has one for each VAE, CLIP, precision, size and
    fps: a thousandfold lies between.
    """
    if stage != "encode":
        return stage
    return f"encode {canonical.digest([params['vae'], params['clip'], params['precision'], size, fps])[:12]}"


def note(store: Store, name: str, took: Rate) -> None:
    """Add what a stage took."""
    rates = read(store)
    before = rates.get(name, Rate(0, 0))
    share = min(1.0, MEMORY_S / before.worker_s) if before.worker_s else 1.0
    rates[name] = Rate(
        before.video_s * share + took.video_s, before.worker_s * share + took.worker_s
    )
    plain = {
        key: {"video_s": round(rate.video_s, 3), "worker_s": round(rate.worker_s, 3)}
        for key, rate in rates.items()
    }
    replace_file(path_of(store), canonical.seal({"rates": plain}) + b"\n")


class Watch:
    """Sees what of a stage is run: `stage` is the stage to run, which tells the watch what it asks
    the cost of.
    """

    def __init__(self, stage: Stage, store: Store) -> None:
        self.stage = replace(stage, cost=self._cost)
        self._stage, self._store = stage, store
        self._costs: dict[str, float] = {}

    def _cost(self, record: Record) -> float:
        cost = float(self._stage.cost(record))
        if (
            record.key not in self._costs
        ):  # asked before anything runs, and again as batches are joined
            self._costs[record.key] = 0.0 if is_light(self._stage, record, self._store) else cost
        return cost

    def note(
        self, seconds: float, executor: Executor, records: Sequence[Record], made: Manifest
    ) -> None:
        """Add to the rates what ran and was not refused by the world, if there was any that costs
        something.
        """
        refused = {one.key for one in made.rejections if one.fate == "unavailable"}
        done = [cost for key, cost in self._costs.items() if cost and key not in refused]
        if not done or made.stage == "expand":
            return
        clip = next((record for record in records if isinstance(record, Clip)), None)
        size, fps = (clip.size, clip.fps) if clip else (0, Fraction(0))
        workers = min(int(getattr(executor, "workers", 1)), len(done))
        note(
            self._store,
            name_of(made.stage, made.params, size, fps),
            Rate(sum(done), seconds * workers),
        )
