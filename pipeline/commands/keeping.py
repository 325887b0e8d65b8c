"""Commands that keep a data folder in order: refresh, remove, gc, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands import recipes
from pipeline.commands.command import Data, Device, Facts, Json, RecipePath, app, guarded, say
from pipeline.core import interrupts

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A source's id, or the key of one video of a glob or playlist."
    ),
]


@app.command()
def refresh(
    recipe: RecipePath,
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help="A source's id; by default all from the web."),
    ] = None,
    data: Data = Path("data"),
    as_json: Json = False,
) -> None:
    """Forget which videos a channel or playlist names, so that the next build asks again.

    Videos that were fetched stay. A video that the list no longer names leaves the dataset with
    that build.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts
        from pipeline.dataset.recipe import load
        from pipeline.dataset.refresh import refresh

        loaded = load(recipe)
        keys = refresh(loaded, data, source)
        if keys:
            say(console, f"forgotten: the lists of {', '.join(keys)}; the next build asks again")
        else:
            say(console, "no list of a source from the web is remembered: the next build asks")
        return 0, {**facts.dataset(loaded, data), "forgotten": keys}

    guarded(act, as_json)


@app.command()
def remove(
    recipe: RecipePath,
    source: Source,
    why: Annotated[
        str, typer.Option(help="What to write into manifests/NAME.removed.jsonl beside the date.")
    ] = "",
    data: Data = Path("data"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Take a source down: leave it out for ever, delete what only it needed.

    The shards are rewritten without it. No video is decoded.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts
        from pipeline.dataset import removals
        from pipeline.dataset.recipe import load
        from pipeline.publish import takedown

        path, line = recipes.own(recipe)
        if line:
            say(console, line)
        loaded = load(path)
        with interrupts.raised():
            removed = takedown.remove(loaded, data, source, why, device)
        results = {
            **facts.dataset(loaded, data),
            "source": source,
            "since": removed.since or None,
            "deleted": facts.swept(removed.bin),
            "shards": removed.num_shards,
            "rewritten": removed.num_rewritten,
            "root_digest": {"before": removed.before or None, "after": removed.after or None},
            "notes": list(removed.notes),
            "pending": removed.num_pending,
            "removals": str(removals.path_of(path)),
        }
        _say_removed(console, results)
        return 0, results

    guarded(act, as_json)


def _say_removed(console: Any, results: Facts) -> None:
    from pipeline.commands import report

    source, digests = results["source"], results["root_digest"]
    if results["since"]:
        when = report.minute(results["since"])
        say(console, f"'{source}' was taken down on {when} UTC already")
    if results["deleted"]["kinds"]:
        title = f"{source}, taken down from {results['dataset']}"
        report.show(console, title, report.swept(results["deleted"], "deleted"))
    else:
        say(console, "nothing of it was left to delete")
    if digests["before"] or digests["after"]:
        say(
            console,
            f"{results['rewritten']} of {results['shards']} shards rewritten",
            f"root digest {digests['before'] or 'none'} -> {digests['after'] or 'none'}",
        )
    say(console, *results["notes"])
    if results["pending"]:
        count = f"{results['pending']} tasks of other sources"
        say(console, f"{count} are pending, as before: `build` does them")
    say(console, f"the next build leaves it out: {results['removals']}")


@app.command()
def gc(
    data: Data = Path("data"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing, say what would go.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sweep the store: delete what no dataset's manifests refer to.

    That is clips and shards of earlier settings, wheels, and what was left over.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.publish import sweep

        with interrupts.raised():
            swept, unfinished = sweep.gc(data, dry_run)
        results = {"data": str(data), "dry_run": dry_run, **facts.swept(swept)}
        results["unfinished"] = list(unfinished)
        if results["kinds"]:
            verb = "would free" if dry_run else "freed"
            report.show(console, str(data), report.swept(results, verb))
        else:
            say(console, "nothing to sweep: manifests refer to all there is")
        if unfinished:
            notes = ", ".join(str(data / "store" / "unfinished" / name) for name in unfinished)
            names = ", ".join(unfinished)
            say(
                console,
                f"kept: what builds that are not finished have done so far ({names}): "
                f"finish them, or if nobody will, delete {notes} and sweep again",
            )
        return 0, results

    guarded(act, as_json)


@app.command()
def clean(recipe: RecipePath, data: Data = Path("data"), as_json: Json = False) -> None:
    """Delete a dataset that was built, and of the store what it alone refers to.

    Recipe and lock stay.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.naming import name_of
        from pipeline.publish import clean as cleaning

        dataset = name_of(recipe)
        folder = data / dataset
        with interrupts.raised():
            swept = cleaning.clean(dataset, data)
        results = {"dataset": dataset, "folder": str(folder), **facts.swept(swept)}
        if results["kinds"]:
            report.show(console, f"{folder}, deleted", report.swept(results, "freed"))
        else:
            say(console, f"there is nothing in {folder}")
        return 0, results

    guarded(act, as_json)
