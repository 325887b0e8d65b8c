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
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import Damaged
from pipeline.core.files import replace_file
from pipeline.core.reading import Facts, Number, Text, checked
from pipeline.core.records import Clip, Record
from pipeline.core.stage import Completion, Executor, Stage
from pipeline.core.store import Store

MEMORY_S = 3600.0


@dataclass(frozen=True)
class Rate:
    """Cost done, and the seconds of one worker it took."""

    video_s: Number
    worker_s: Number

    def worker_seconds(self, cost: float) -> float:
        return cost * self.worker_s / self.video_s


class _Table(Facts):
    """What the file says."""

    rates: dict[Text, Rate]


def path_of(store: Store) -> Path:
    return store.root / "rates.json"


def read(store: Store) -> dict[str, Rate]:
    """All rates, by `name_of`; none if the file is not there or not whole."""
    try:
        facts = canonical.unseal(path_of(store).read_bytes())
        rates = checked(_Table, facts, "rates.json").rates
    except (OSError, ValueError, Damaged):
        return {}
    return {name: rate for name, rate in rates.items() if rate.video_s > 0 and rate.worker_s >= 0}


def name_of(stage: str, params: Mapping[str, Any], size: int, fps: Fraction) -> str:
    """Under which name a stage is timed. `encode` has one for each VAE, CLIP, precision, size and
    fps: a thousandfold lies between.
    """
    if stage != "encode":
        return stage
    what = [params["vae"], params["clip"], params["precision"], size, fps]
    return f"encode {canonical.digest(what)[:12]}"


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


def note_stage(
    store: Store,
    stage: Stage,
    completion: Completion,
    seconds: float,
    executor: Executor,
    records: Sequence[Record],
) -> None:
    """Add a stage that has run, if anything in it cost something."""
    if not completion.cost or stage.local:
        return
    clip = next((record for record in records if isinstance(record, Clip)), None)
    size, fps = (clip.size, clip.fps) if clip else (0, Fraction(0))
    workers = min(int(getattr(executor, "workers", 1)), completion.num_run)
    name = name_of(stage.name, stage.params, size, fps)
    note(store, name, Rate(completion.cost, seconds * workers))
