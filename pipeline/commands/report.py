"""What people see: progress bars while a build runs, tables and sentences after it. All but the
bars is drawn from what `--json` prints: `facts`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
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

from pipeline.core.errors import SUSPECTED
from pipeline.core.stage import MAX_SUSPICIONS, Progress
from pipeline.dataset.passage import RawVideos
from pipeline.media.captions import TOKENS

Row = Mapping[str, Any]
MAX_NAMED = 5  # lines of one kind
GAP = 2  # characters between two columns


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Bars per stage with the time left, judged by seconds of video; no bars where nobody
    watches.
    """
    if console.quiet:
        yield Progress()
        return

    def announce(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield Progress(announce=announce)
        return
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description:9}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[all]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=console) as bars:

        def start(stage: str, num_records: int, cost: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=0, done=0, all=0)
            before = bars.tasks[tasks[stage]]
            total = (before.total or 0) + cost
            bars.update(tasks[stage], total=total, all=before.fields["all"] + num_records)

        def advance(stage: str, num_records: int, cost: float) -> None:
            done = bars.tasks[tasks[stage]].fields["done"] + num_records
            bars.update(tasks[stage], advance=cost, done=done)

        yield Progress(start, advance, announce)


def show(console: Console, title: str, table: Table) -> None:
    """A table under its title, which is not wrapped to the table's width. A table that would not
    fit the screen is drawn without gaps and edges.
    """
    if needed_width(table) > console.width:
        table.padding = 0
        table.show_edge = False
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)


def needed_width(table: Table) -> int:
    """Characters a plain table takes at least, with its gaps of two."""
    width = 0
    for column in table.columns:
        width += GAP + (column.min_width or 0)
        if column.no_wrap:
            width += max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    return width


def plain_table() -> Table:
    """A table with a line under its head and no others."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def funnel(stages: Sequence[Row]) -> Table:
    """Per stage: in, out, rejected and why, done before, to do, bytes and hours."""
    table = plain_table()
    table.add_column("stage", no_wrap=True)
    for name in ("in", "out", "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    reasons = [reason for stage in stages for reason in stage["rejected"]]
    # A reason is one word to people who search for it: the column never breaks it.
    table.add_column("why", min_width=max((len(f"{reason},") for reason in reasons), default=0))
    for name in ("cached", "pending", "size", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        rejected = stage["rejected"]
        table.add_row(
            escape(stage["stage"]),
            str(stage["in"]),
            str(stage["out"]),
            str(sum(rejected.values())),
            escape(", ".join(f"{count} {reason}" for reason, count in rejected.items())),
            str(stage["cached"]),
            str(stage["pending"] or ""),
            decimal(stage["bytes"]) if stage["bytes"] else "",
            f"{stage['hours']:.2f}",
        )
    return table


def suspicions(stages: Sequence[Row]) -> str:
    """How many records of a funnel were rejected on suspicion, and what becomes of them; "" for
    none.
    """
    rows = [stage["rejected"] for stage in stages]
    count = sum(rejected.get(reason, 0) for rejected in rows for reason in SUSPECTED)
    if not count:
        return ""
    return (
        f"{count} rejected on suspicion (crashed, timed-out): builds try each again, until it has "
        f"failed in {MAX_SUSPICIONS}"
    )


def long_captions(facts: Row) -> str:
    """How many captions are longer than CLIP reads, and what becomes of them; "" for none."""
    count = facts["long_captions"]
    if not count:
        return ""
    fate = "CLIP does not see their ends"
    if facts["long_captions_are"] == "reject":
        fate = "their clips are rejected"
    return (
        f"{count} of {facts['captions']} different captions are longer than the {TOKENS} tokens "
        f'that CLIP reads: {fate} (long_captions = "{facts["long_captions_are"]}" under [encode])'
    )


def absent_files(addresses: Sequence[str]) -> list[str]:
    """Local files that are not there: the first, and how many there are."""
    if not addresses:
        return []
    named = ", ".join(addresses[:MAX_NAMED]) + (", ..." if len(addresses) > MAX_NAMED else "")
    what = "1 local file is" if len(addresses) == 1 else f"{len(addresses)} local files are"
    return [f"{what} not where the recipe says: {named}; put it there, or edit the recipe"]


def unmatched_captions(lines: Sequence[str]) -> list[str]:
    """Lines of a table of captions that name no clip: the first, and how many there are."""
    num_more = len(lines) - MAX_NAMED
    more = [f"and {num_more} more lines of it name no clip"] if num_more > 0 else []
    return [*lines[:MAX_NAMED], *more]


def rejections(rows: Sequence[Row]) -> Table:
    """Every rejection: where, what, why, since when, how often it was tried."""
    table = plain_table()
    table.add_column("stage", overflow="fold")
    table.add_column("key", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("detail", overflow="fold")
    table.add_column("last tried (UTC)", overflow="fold")
    table.add_column("tries", overflow="fold", justify="right")
    for row in rows:
        first, last = minute(row["first"]), minute(row["last"])
        when = last if first == last else f"{last} (first {first})"
        names = [escape(row[name]) for name in ("stage", "key", "class", "detail")]
        table.add_row(*names, escape(when), str(row["tries"]))
    return table


def verified(checked: Row) -> list[str]:
    """What `verify` says is wrong, one a line, what it noted, and what it looked at."""
    problems = [
        f"{finding['kind']}: {finding['name']}: {finding['problem']}"
        for finding in checked["findings"]
    ]
    files = f"{checked['files']} files ({decimal(checked['bytes'])})"
    line = f"checked: {checked['manifests']} manifests, {checked['memos']} memos, {files}"
    line += f", {checked['arrays']} arrays without NaN or infinity"
    if decoded := checked["decoded_db"]:
        line += f", {len(decoded)} samples decode to {min(decoded):.1f} dB PSNR or better"
    if count := checked["scored_again"]["clips"]:
        line += f", {count} clips scored again: {_distance(checked['scored_again']['largest'])}"
    return [*problems, *checked["near"], *checked["notes"], line, _verdict(checked)]


def _distance(largest: Mapping[str, float]) -> str:
    """How far scores that were measured again are off, by score and as a share of what is
    allowed.
    """
    far = max(largest, key=largest.__getitem__, default="")
    if not far or not largest[far]:
        return "as they were"
    return f"{far} is off by up to {largest[far]:.2g} of what is allowed"


def _verdict(checked: Row) -> str:
    if checked["grade"] == "identical":
        return "all is as the lock says"
    if checked["grade"] == "equivalent":
        count = len(checked["near"])
        return f"within tolerance of the lock: {count} things are not bit-identical"
    count = len(checked["findings"])
    if count == 1:
        return "1 thing is not as it should be"
    return f"{count} things are not as they should be"


def raws_before(raws: RawVideos, until: str) -> str:
    """What `--keep-raw no` promises."""
    if until in ("download", "cut", "filter"):
        return f"raw videos stay: `--until {until}` makes no clips of them"
    addresses = "1 address" if raws.at_a_time == 1 else f"{raws.at_a_time} addresses"
    return f"raw videos of at most {addresses} at a time; they go once their clips are verified"


def raws_after(raws: RawVideos) -> str:
    """What raw videos took on disk."""
    if not raws.all_bytes:
        line = "raw videos took no space of their own"
    else:
        peak, total = decimal(raws.peak_bytes), decimal(raws.all_bytes)
        line = f"raw videos took at most {peak} at a time, {total} in all; let go"
    if raws.kept_for:
        line += f", but for those that {', '.join(sorted(raws.kept_for))} had before"
    return line


def swept(bin: Row, verb: str) -> Table:
    """What was deleted, or would be, by kind, the largest first."""
    kinds = bin["kinds"]
    table = plain_table()
    table.add_column("kind", no_wrap=True)
    for name in ("count", verb):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in sorted(kinds, key=lambda kind: (-kinds[kind]["bytes"], kind)):
        table.add_row(kind, str(kinds[kind]["count"]), decimal(kinds[kind]["bytes"]))
    count = sum(row["count"] for row in kinds.values())
    table.add_row("in all", str(count), decimal(sum(row["bytes"] for row in kinds.values())))
    if bin["linked_bytes"]:
        linked = decimal(bin["linked_bytes"])
        table.caption = f"{linked} of it are hard links to files of yours, which stay"
        table.caption_justify = "left"
    return table


def quantiles(scores: Sequence[Row]) -> Table:
    """How the values of each score are spread over the clips."""
    names = list(scores[0]["quantiles"]) if scores else []
    table = plain_table()
    table.add_column("score", no_wrap=True)
    for name in (*names, "null"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for row in scores:
        values = row["quantiles"].values()
        cells = ["" if value is None else f"{value:.3g}" for value in values]
        table.add_row(row["score"], *cells, str(row["nulls"] or ""), row["unit"])
    return table


def rules(summary: Row) -> Table:
    """What each rule drops: alone, and what no other rule drops; and all of them together."""
    table = plain_table()
    table.add_column("rule", no_wrap=True)
    for name in ("drops", "it alone", "not known"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("true of what stays", overflow="fold")
    for row in summary["rules"]:
        counts = (row["drops"], row["drops_alone"], row["unknown"] or "")
        table.add_row(row["rule"], *map(str, counts), escape(row["text"]))
    table.add_row("together", str(summary["dropped"]), "", "", f"{summary['kept']} clips stay")
    return table


def minute(time: str) -> str:
    """A UTC time as people read it, to the minute."""
    return time[:16].replace("T", " ")


def psnr(psnr: Row) -> str:
    """The round trip through the VAE, in a line."""
    spread = f"{psnr['min_db']:.1f} to {psnr['max_db']:.1f}, {psnr['clips']} clips"
    return f"VAE round trip: {psnr['median_db']:.1f} dB PSNR in the median ({spread})"
