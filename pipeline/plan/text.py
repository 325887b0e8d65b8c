"""A plan in words: a table with a row per stage, and sentences under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box, filesize
from rich.table import Table

from pipeline.core.cores import num_cores
from pipeline.plan.plan import Line, Plan
from pipeline.stages import NAMES

EXAMPLES = 3


def table(plan: Plan) -> Table:
    """A row per stage: done, to do, how much video that is, time."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("stage", no_wrap=True)
    for title in ("done", "to do", "video", "time"):
        rows.add_column(title, justify="right", no_wrap=True)
    for name in NAMES:
        line = plan.lines.get(name)
        if line is None:
            rows.add_row(name, "", "not known", "", "")
        elif line.is_idle:
            rows.add_row(name, str(line.num_done), "0", "", "")
        else:
            rows.add_row(name, str(line.num_done), _count(line), _video(line), _time(line))
    return rows


def sentences(plan: Plan) -> Iterator[str]:
    """What stands under the table: why, which ones, and what the whole would take."""
    if plan.is_idle:
        yield "nothing to do: everything was built before"
        return
    for line in plan.lines.values():
        yield from _reasons(line)
        if line.effort:
            yield line.effort
    unknown = [line for line in plan.lines.values() if line.expected.count is None]
    for origin in dict.fromkeys(line.waits_for for line in unknown):
        names = [
            f"{line.stage} (the rest)" if line.num_named else line.stage
            for line in unknown
            if line.waits_for == origin
        ]
        yield f"{', '.join(names)}: known once `{origin}` has run"
    if plan.unknown:
        yield f"later stages are not known: {plan.unknown}"
    yield _duration_of(plan)
    yield from _disk(plan)


def _reasons(line: Line) -> Iterator[str]:
    for reason, keys in sorted(line.reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"{line.stage}: {len(keys)} {reason} ({_examples(keys)})"
    if line.refetched:
        videos = f"{len(line.refetched)} raw videos were let go and are fetched again"
        yield f"{line.stage}: {videos} ({_examples(line.refetched)})"
    if line.num_light:
        words = "of them find their latents remembered: text alone is embedded"
        if line.stage != "encode":
            words = "of them find what is costly remembered"
        yield f"{line.stage}: {line.num_light} {words}"
    if line.expected.count:
        more = " more" if line.num_named else ""
        about = f"about {line.expected.count:.0f}{more}"
        yield f"{line.stage}: {about} on what comes of the stages before"
    changes = [change for change in line.changes if change not in line.reasons]
    if changes and not line.reasons:
        yield f"{line.stage}: {'; '.join(changes)}"


def _examples(keys: Sequence[str]) -> str:
    more = ["..."] if len(keys) > EXAMPLES else []
    return ", ".join([*keys[:EXAMPLES], *more])


def _duration_of(plan: Plan) -> str:
    busy = [line for line in plan.lines.values() if not line.is_idle and line.worker_s != 0]
    untimed = [line.stage for line in busy if not line.is_timed]
    if untimed and len(untimed) == len(busy):
        return "time: no estimate: nothing has been timed here yet"
    if untimed:
        names = ", ".join(untimed)
        return f"time: no estimate for {names}: nothing of the kind has been timed here yet"
    if plan.seconds is None:
        return "time: not known before more of it is done"
    about = "about " if plan.seconds >= 1 else ""
    time = duration(plan.seconds)
    return f"time: {about}{time} with {num_cores()} workers, as earlier builds here went"


def _disk(plan: Plan) -> Iterator[str]:
    sizes = plan.num_bytes
    known = {kind: count for kind, count in sizes.items() if count is not None}
    unknown = [kind for kind in sizes if kind not in known]
    if known:
        parts = [f"{kind} {filesize.decimal(round(count))}" for kind, count in known.items()]
        total = filesize.decimal(round(sum(known.values())))
        free = filesize.decimal(plan.free_bytes)
        yield f"disk: about {total} to be written ({', '.join(parts)}); {free} are free"
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
    if line.stage in ("expand", "download"):
        return ""
    if line.video_s is None:
        return "?"
    return f"{'' if line.is_exact else 'about '}{duration(line.video_s)}"


def _time(line: Line) -> str:
    return "?" if line.seconds is None else duration(line.seconds)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
