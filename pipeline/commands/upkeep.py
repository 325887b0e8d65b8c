"""Commands for what is built: rebuild it from its lock, verify it, take a source down, sweep the
store, describe it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.command import (
    CORES,
    PROCESSES,
    Data,
    Device,
    ExecutorOption,
    RecipePath,
    Workers,
    app,
    guarded,
)
from pipeline.core import interrupts

EXIT_CODES = {"identical": 0, "equivalent": 6, "different": 7}


@app.command()
def reproduce(
    recipe: RecipePath,
    data: Data = Path("data"),
    executor: ExecutorOption = PROCESSES,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Rebuild a dataset from its lock, and say how near it comes: bit-identical (0), within
    tolerance (6), or not (7).
    """

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.core import canonical, executors
        from pipeline.core.files import replace_file
        from pipeline.core.store import Store
        from pipeline.dataset import lock
        from pipeline.dataset import recipe as recipes
        from pipeline.publish import compare
        from pipeline.publish import reproduce as rebuild

        loaded = recipes.load(recipe)
        locked = lock.read(recipe)
        edits = rebuild.edits(loaded, locked)
        with interrupts.raised(), report.progress(console) as progress:
            made = executors.make(executor.value, workers)
            steps = list(rebuild.reproduce(loaded, locked, data, made, device, progress))
        for line in rebuild.versions(locked, steps):
            console.print(line, markup=False, soft_wrap=True)
        judged = compare.judge(locked, steps, edits, Store(data.absolute() / "store"))
        path = data / loaded.recipe.name / "reproduce.json"
        replace_file(path, canonical.encode(judged) + b"\n")
        title = f"{loaded.recipe.name}, rebuilt in {data / loaded.recipe.name} from {lock.path_of(recipe)}"
        report.show(console, title, report.funnel(steps))
        compare.show(console, judged, path)
        return EXIT_CODES[judged["verdict"]]

    guarded(act)


@app.command()
def verify(
    recipe: RecipePath,
    data: Data = Path("data"),
    device: Device = "auto",
    drop: Annotated[
        bool,
        typer.Option(
            "--drop", help="Remove what is damaged, so that the next build makes it again."
        ),
    ] = False,
) -> None:
    """Check what is on disk against the lock without rebuilding: every digest, count and number,
    and a few decoded samples.
    """

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.dataset import recipe as recipes
        from pipeline.dataset.build import opened
        from pipeline.publish import verify as checks

        loaded = recipes.load(recipe)
        with report.progress(console) as progress:
            checked = checks.verify(loaded, data, device, progress)
        for line in report.verified(checked):
            console.print(line, markup=False, soft_wrap=True)
        if checks.damaged(checked) and drop:
            with opened(data):
                console.print(
                    f"{checks.drop(checked)} damaged files removed: `build` (or `reproduce`) makes them again"
                )
        elif checks.damaged(checked):
            console.print("--drop removes what is damaged, so that the next build makes it again")
        elif checked.findings:
            console.print("there is nothing to drop: `plan` says what a build would make again")
        return EXIT_CODES[checked.grade]

    guarded(act)


@app.command()
def remove(
    recipe: RecipePath,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A source's id, or the key of one video of a glob or playlist."
        ),
    ],
    why: Annotated[
        str, typer.Option(help="What to write into manifests/NAME.removed.jsonl beside the date.")
    ] = "",
    data: Data = Path("data"),
    device: Device = "auto",
) -> None:
    """Take a source down: leave it out for ever, rewrite the shards without it, delete what only it
    needed. No video is decoded.
    """

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.dataset import recipe as recipes
        from pipeline.dataset import removals
        from pipeline.publish import takedown

        loaded = recipes.load(recipe)
        with interrupts.raised():
            done = takedown.remove(loaded, data, source, why, device)
        if done.since:
            console.print(
                f"'{source}' was taken down on {report.minute(done.since)} UTC already",
                markup=False,
            )
        if done.bin.counts:
            report.show(
                console,
                f"{source}, taken down from {loaded.recipe.name}",
                report.swept(done.bin, "deleted"),
            )
        else:
            console.print("nothing of it was left to delete")
        if done.before or done.after:
            console.print(
                f"{done.num_rewritten} of {done.num_shards} shards rewritten", soft_wrap=True
            )
            console.print(
                f"root digest {done.before or 'none'} -> {done.after or 'none'}", soft_wrap=True
            )
        for note in done.notes:
            console.print(note, markup=False, soft_wrap=True)
        if done.num_pending:
            console.print(
                f"{done.num_pending} tasks of other sources are pending, as before: `build` does them"
            )
        console.print(
            f"the next build leaves it out: {removals.path_of(loaded.path)}",
            markup=False,
            soft_wrap=True,
        )
        return 0

    guarded(act)


@app.command()
def gc(
    data: Data = Path("data"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing, say what would go.")
    ] = False,
) -> None:
    """Sweep the store: delete what no dataset's manifests refer to, such as clips and shards of
    earlier settings, and wheels.
    """

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.publish import sweep

        with interrupts.raised():
            swept, unfinished = sweep.gc(data, dry_run)
        if swept.counts:
            report.show(
                console, str(data), report.swept(swept, "would free" if dry_run else "freed")
            )
        else:
            console.print("nothing to sweep: manifests refer to all there is")
        if unfinished:
            notes = ", ".join(str(data / "store" / "unfinished" / name) for name in unfinished)
            told = f"kept: what builds that are not finished have done so far ({', '.join(unfinished)})"
            console.print(
                f"{told}: finish them, or if nobody will, delete {notes} and sweep again",
                markup=False,
                soft_wrap=True,
            )
        return 0

    guarded(act)


@app.command()
def card(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(help="File to write, by default NAME.card.md beside the recipe.")
    ] = None,
    with_shards: Annotated[
        bool, typer.Option("--with-shards", help="The card is to lie beside the folder shards/.")
    ] = False,
) -> None:
    """Write a dataset card, the README.md a model hub shows, from the recipe and its lock alone."""

    def act(console: Any) -> int:
        from pipeline.dataset import lock
        from pipeline.dataset import recipe as recipes
        from pipeline.publish import card as cards

        path = out or cards.path_of(recipe)
        cards.write(recipes.load(recipe), lock.read(recipe), path, with_shards)
        console.print(path, markup=False, soft_wrap=True)
        return 0

    guarded(act)
