"""What people see: progress bars while a build runs, the funnel and the rejections after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from pipeline.core.ledger import Failure
from pipeline.core.records import Sample, Shard
from pipeline.core.stage import Progress
from pipeline.dataset.chain import Step
from pipeline.dataset.passage import RawVideos
from pipeline.publish.sweep import Bin
from pipeline.publish.verify import Checked


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Bars per stage with the time left, judged by seconds of video; silent where nobody
    watches.
    """
    if not console.is_terminal:
        yield Progress()
        return
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description:9}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[all]}"),
    ]
    tasks: dict[str, Any] = {}
    with Bars(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
    ) as bars:

        def start(stage: str, records: int, cost: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=0, done=0, all=0)
            before = bars.tasks[tasks[stage]]
            bars.update(
                tasks[stage], total=(before.total or 0) + cost, all=before.fields["all"] + records
            )

        def advance(stage: str, records: int, cost: float) -> None:
            done = bars.tasks[tasks[stage]].fields["done"] + records
            bars.update(tasks[stage], advance=cost, done=done)

        yield Progress(start, advance)


def size(num_bytes: int) -> str:
    """Bytes as people say them."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def show(console: Console, title: str, table: Table) -> None:
    """A table under its title, which is not wrapped to the table's width."""
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)


def funnel(steps: Sequence[Step]) -> Table:
    """Per stage: in, out, rejected and why, done before, to do, bytes and hours."""
    reasons = [
        ", ".join(f"{count} {reason}" for reason, count in sorted(step.manifest.reasons.items()))
        for step in steps
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for name in ("in", "out", "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", min_width=min(10, max(map(len, reasons), default=0)), overflow="fold")
    for name in ("cached", "pending", "size", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for step, why in zip(steps, reasons, strict=True):
        made = step.manifest
        counts = (made.num_in + step.num_pending, len(made.records), len(made.rejections))
        sizes = (size(step.num_bytes) if step.num_bytes else "", f"{step.hours:.2f}")
        table.add_row(
            made.stage,
            *map(str, counts),
            why,
            str(step.num_cached),
            str(step.num_pending or ""),
            *sizes,
        )
    return table


def rejections(found: Sequence[Failure]) -> Table:
    """Every rejection: where, what, why, since when, how often it was tried."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("stage", "key", "class", "detail", "last tried (UTC)", "tries"):
        table.add_column(
            name,
            no_wrap=name == "class",
            overflow="fold",
            justify="right" if name == "tries" else "left",
        )
    for one in sorted(found, key=lambda failed: (failed.rejection.stage, failed.rejection.key)):
        told = one.rejection
        when = minute(one.last) + (
            f" (first {minute(one.first)})" if minute(one.first) != minute(one.last) else ""
        )
        table.add_row(told.stage, told.key, told.reason, escape(told.detail), when, str(one.tries))
    return table


def verified(checked: Checked) -> list[str]:
    """What `verify` found wrong, one a line, what it noted, and what it looked at."""
    found = [f"{one.kind}: {one.name}: {one.problem}" for one in checked.findings]
    decoded = (
        f", {len(checked.decoded)} samples decode to {min(checked.decoded):.1f} dB PSNR or better"
        if checked.decoded
        else ""
    )
    looked_at = f"{checked.manifests} manifests, {checked.memos} memos, {checked.blobs} files ({size(checked.num_bytes)})"
    wrong = (
        "1 thing is not as it should be"
        if len(found) == 1
        else f"{len(found)} things are not as they should be"
    )
    near = f"within tolerance of the lock: {len(checked.near)} things are not bit-identical"
    verdict = {"identical": "all is as the lock says", "equivalent": near, "different": wrong}[
        checked.grade
    ]
    return [
        *found,
        *checked.near,
        *checked.notes,
        f"checked: {looked_at}, {checked.arrays} arrays without NaN or infinity{decoded}",
        verdict,
    ]


def raws_before(raws: RawVideos, until: str) -> str:
    """What `--keep-raw no` promises."""
    if until in ("download", "cut", "filter"):
        return f"raw videos stay: `--until {until}` makes no clips of them"
    addresses = "1 address" if raws.at_a_time == 1 else f"{raws.at_a_time} addresses"
    return f"raw videos of at most {addresses} at a time; they go once their clips are verified"


def raws_after(raws: RawVideos) -> str:
    """What raw videos took on disk."""
    if not raws.all_bytes:
        told = "raw videos took no space of their own"
    else:
        told = f"raw videos took at most {size(raws.peak_bytes)} at a time, {size(raws.all_bytes)} in all; let go"
    return told + (
        f", but for those that {', '.join(sorted(raws.kept_for))} had before"
        if raws.kept_for
        else ""
    )


def swept(what: Bin, verb: str) -> Table:
    """What was deleted, or would be, by kind."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("kind", no_wrap=True)
    for name in ("count", verb):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in sorted(what.counts, key=lambda one: (-what.num_bytes[one], one)):
        table.add_row(kind, str(what.counts[kind]), size(what.num_bytes[kind]))
    table.add_row("in all", str(what.counts.total()), size(what.num_bytes.total()))
    if what.linked_bytes:
        table.caption = (
            f"{size(what.linked_bytes)} of it are hard links to files of yours, which stay"
        )
        table.caption_justify = "left"
    return table


def minute(time: str) -> str:
    """A UTC time as people read it, to the minute."""
    return time[:16].replace("T", " ")


def scores(steps: Sequence[Step]) -> str | None:
    """The round trip through the VAE, over the clips it was measured on."""
    samples = [
        record for step in steps for record in step.manifest.records if isinstance(record, Sample)
    ]
    values = sorted(
        sample.round_trip_psnr_db for sample in samples if sample.round_trip_psnr_db is not None
    )
    if not values:
        return None
    return f"VAE round trip: {values[len(values) // 2]:.1f} dB PSNR in the median ({values[0]:.1f} to {values[-1]:.1f}, {len(values)} clips)"


def shards(steps: Sequence[Step]) -> list[Shard]:
    return [record for record in steps[-1].manifest.records if isinstance(record, Shard)]
