"""Commands for a dataset that others are to have: reproduce, verify, card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands import recipes
from pipeline.commands.command import (
    CORES,
    PROCESSES,
    Data,
    Device,
    ExecutorOption,
    Facts,
    Json,
    RecipePath,
    Workers,
    app,
    guarded,
    say,
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
    as_json: Json = False,
) -> None:
    """Rebuild a dataset from its lock, and say how near it comes.

    Exit codes: 0 bit-identical, 6 within tolerance, 7 neither.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.core import canonical, executors
        from pipeline.core.files import replace_file
        from pipeline.core.store import Store
        from pipeline.dataset import lock
        from pipeline.dataset.recipe import load
        from pipeline.publish import compare
        from pipeline.publish import reproduce as rebuilding

        loaded, locked = load(recipe), lock.read(recipe)
        edits = rebuilding.edits(loaded, locked)
        workplace = executors.make(executor.value, workers)
        with interrupts.raised(), report.progress(console) as progress:
            steps = list(rebuilding.reproduce(loaded, locked, data, workplace, device, progress))
        say(console, *rebuilding.versions(locked, steps))
        judgement = compare.judge(locked, steps, edits, Store(data.absolute() / "store"))
        folder = data / loaded.recipe.name
        path = folder / "reproduce.json"
        replace_file(path, canonical.encode(judgement) + b"\n")
        funnel = facts.stages(steps)
        title = f"{loaded.recipe.name}, rebuilt in {folder} from {lock.path_of(recipe)}"
        report.show(console, title, report.funnel(funnel))
        compare.show(console, judgement, path)
        code = EXIT_CODES[judgement["verdict"]]
        return code, {**facts.dataset(loaded, data), "stages": funnel, **judgement}

    guarded(act, as_json)


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
    as_json: Json = False,
) -> None:
    """Check what is on disk against the lock, without rebuilding.

    Reads every digest, count and number, and decodes a few samples.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.build import undisturbed
        from pipeline.dataset.recipe import load
        from pipeline.publish import verify as verifying

        loaded = load(recipe)
        with undisturbed(data):
            with report.progress(console) as progress:
                checked = verifying.verify(loaded, data, device, progress)
            damaged = verifying.damaged(checked)
            num_dropped = verifying.drop(checked) if drop else 0
        results = {**facts.dataset(loaded, data), **facts.checked(checked), "dropped": num_dropped}
        say(console, *report.verified(results))
        if num_dropped:
            again = "`build` (or `reproduce`) makes them again"
            say(console, f"{results['dropped']} damaged files removed: {again}")
        elif damaged:
            say(console, "--drop removes what is damaged, so that the next build makes it again")
        elif checked.findings:
            say(console, "there is nothing to drop: `plan` says what a build would make again")
        return EXIT_CODES[checked.grade], results

    guarded(act, as_json)


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
    """Write a dataset card, as a model hub shows it, from the recipe and its lock alone."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.dataset import lock
        from pipeline.dataset.recipe import load
        from pipeline.publish import card as cards

        source, line = recipes.own(recipe) if out is None else (recipe, "")
        if line:
            say(console, line)
        path = out or cards.path_of(source)
        cards.write(load(source), lock.read(source), path, with_shards)
        say(console, path)
        return 0, {}

    guarded(act)
