"""`plan`: what a build would do, why, how long it would take and how much disk. Nothing is run,
fetched or written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.filesize import decimal as size
from rich.table import Table

from pipeline.core.errors import Stopped
from pipeline.dataset.build import NAMES, walk
from pipeline.dataset.recipe import Loaded
from pipeline.plan import forecast
from pipeline.plan.forecast import Forecast, Line
from pipeline.plan.past import plus

EXAMPLES = 3


@dataclass(frozen=True)
class Plan:
    """A line per stage, as far as the stages are known, and why no further."""

    lines: dict[str, Line]
    unknown: str
    free_bytes: int

    @property
    def is_idle(self) -> bool:
        return not self.unknown and all(line.is_idle for line in self.lines.values())

    @property
    def seconds(self) -> float | None:
        """Of all stages, one after the other; None if one is not known."""
        total: float | None = None if self.unknown else 0
        for line in self.lines.values():
            total = plus(total, line.seconds)
        return total

    @property
    def num_bytes(self) -> dict[str, float | None]:
        """What is to be written, by what it is."""
        made: dict[str, float | None] = {}
        for line in self.lines.values():
            for what, num_bytes in line.num_bytes.items():
                made[what] = plus(made.get(what, 0), num_bytes)
        return {what: num_bytes for what, num_bytes in made.items() if num_bytes != 0}


def of(loaded: Loaded, data: Path, device: str) -> Plan:
    """Look at what is done and foresee the rest."""
    ahead, unknown = Forecast(loaded, data), ""
    try:
        for _ in walk(loaded, ahead.run, device, NAMES[-1], offline=True):
            pass
    except Stopped as error:
        unknown = str(error)
    there = next(path for path in (data.absolute(), *data.absolute().parents) if path.is_dir())
    return Plan(ahead.lines, unknown, shutil.disk_usage(there).free)


def facts(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON: counts per stage, seconds and bytes, null where they are not known."""
    stages = [
        {
            "stage": line.stage,
            "done": line.num_done,
            "to_do": line.to_do,
            "seconds_of_video": line.to_do_s,
            "seconds": line.seconds,
            "reasons": {reason: len(keys) for reason, keys in line.reasons.items()},
        }
        for line in plan.lines.values()
    ]
    return {
        "stages": stages,
        "seconds": plan.seconds,
        "bytes": plan.num_bytes,
        "free_bytes": plan.free_bytes,
        "unknown": plan.unknown or None,
    }


def table(plan: Plan) -> Table:
    """A row per stage: done, to do, how much video that is, time."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column("stage", no_wrap=True)
    for name in ("done", "to do", "video", "time"):
        made.add_column(name, justify="right", no_wrap=True)
    for name in NAMES:
        line = plan.lines.get(name)
        if line is None:
            made.add_row(name, "", "not known", "", "")
        elif line.is_idle:
            made.add_row(name, str(line.num_done), "0", "", "")
        else:
            made.add_row(name, str(line.num_done), _count(line), _video(line), _time(line))
    return made


def sentences(plan: Plan) -> Iterator[str]:
    """What stands under the table: why, which ones, and what the whole would take."""
    if plan.is_idle:
        yield "nothing to do: everything was built before"
        return
    for line in plan.lines.values():
        yield from _reasons(line)
    unknown = [line for line in plan.lines.values() if line.about.count is None]
    for stage in dict.fromkeys(line.waits_for for line in unknown):
        waiting = ", ".join(
            f"{line.stage}{' (the rest)' if line.num_named else ''}"
            for line in unknown
            if line.waits_for == stage
        )
        yield f"{waiting}: known once `{stage}` has run"
    if plan.unknown:
        yield f"later stages are not known: {plan.unknown}"
    yield from _times(plan)
    yield from _disk(plan)


def _reasons(line: Line) -> Iterator[str]:
    for reason, keys in sorted(line.reasons.items(), key=lambda one: (-len(one[1]), one[0])):
        yield f"{line.stage}: {len(keys)} {reason} ({_some(keys)})"
    if line.again:
        yield f"{line.stage}: {len(line.again)} raw videos were let go and are fetched again ({_some(line.again)})"
    if line.num_light:
        yield f"{line.stage}: {line.num_light} of them find their latents remembered: text alone is embedded"
    changed = f"; {line.setting}" if line.setting not in (*line.reasons, "") else ""
    if line.about.count:
        yield f"{line.stage}: about {line.about.count:.0f}{' more' if line.num_named else ''} on what comes of the stages before{changed}"
    elif changed:
        yield f"{line.stage}: {line.setting}"


def _some(keys: Sequence[str]) -> str:
    return ", ".join([*keys[:EXAMPLES], *(["..."] if len(keys) > EXAMPLES else [])])


def _times(plan: Plan) -> Iterator[str]:
    busy = [line for line in plan.lines.values() if not line.is_idle]
    untimed = [line.stage for line in busy if not line.is_timed]
    if untimed and len(untimed) == len([line for line in busy if line.cost or line.about]):
        yield "time: no estimate: nothing has been timed here yet"
    elif untimed:
        yield f"time: no estimate for {', '.join(untimed)}: nothing of the kind has been timed here yet"
    elif plan.seconds is None:
        yield "time: not known before more of it is done"
    else:
        about = "about " if plan.seconds >= 1 else ""
        yield f"time: {about}{duration(plan.seconds)} with {forecast.WORKERS} workers, as earlier builds here went"


def _disk(plan: Plan) -> Iterator[str]:
    parts = plan.num_bytes
    known = {what: num_bytes for what, num_bytes in parts.items() if num_bytes is not None}
    unknown = [what for what in parts if what not in known]
    if known:
        listed = ", ".join(f"{what} {size(round(num_bytes))}" for what, num_bytes in known.items())
        yield f"disk: about {size(round(sum(known.values())))} to be written ({listed}); {size(plan.free_bytes)} are free"
    if unknown:
        yield f"disk: {'and ' if known else ''}what is not known yet: {', '.join(unknown)}"
    if "raw videos" in unknown:
        yield "disk: how large a raw video from the web is, the web says when it is fetched"
    if plan.unknown:
        yield "disk: what the stages that are not known write comes on top"


def _count(line: Line) -> str:
    if line.to_do is None:
        return f"{line.num_named} + ?" if line.num_named else "?"
    return f"{'' if line.is_exact else 'about '}{line.to_do:.0f}"


def _video(line: Line) -> str:
    if line.stage == "download":
        return ""
    return (
        "?" if line.to_do_s is None else f"{'about ' if line.about else ''}{duration(line.to_do_s)}"
    )


def _time(line: Line) -> str:
    return "?" if line.seconds is None else duration(line.seconds)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
