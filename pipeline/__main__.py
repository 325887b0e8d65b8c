"""The command line: `python -m pipeline`. Parses, wires, exits; the work is elsewhere.

Exit codes: 0 done; 1 a bug of ours; 2 a wrong recipe or command; 3 built, but something was
unavailable (run again); 4 stopped by the outside world (disk full, lock held, no such model); 5
built, and nothing was left to keep; 6 and 7 from `reproduce` and `verify`: within tolerance, and
not what the lock says; 130 interrupted. What was finished is kept in every case; the same command
goes on.
"""

from __future__ import annotations

from pipeline.core import interrupts  # isort: split

if __name__ == "__main__":
    interrupts.leave_at_once()  # before the imports below: they take half a second

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.command import (
    CORES,
    PROCESSES,
    Data,
    Device,
    ExecutorName,
    ExecutorOption,
    RecipePath,
    StageName,
    Workers,
    app,
    guarded,
)
from pipeline.stages import NAMES

LAST_STAGE = StageName(NAMES[-1])
YesNo = StrEnum("YesNo", ["yes", "no"])


@app.command()
def build(
    recipe: RecipePath,
    until: Annotated[StageName, typer.Option(help="The last stage to run.")] = LAST_STAGE,
    data: Data = Path("data"),
    executor: ExecutorOption = PROCESSES,
    workers: Workers = CORES,
    device: Device = "auto",
    keep_raw: Annotated[
        YesNo,
        typer.Option(
            help="no: raw videos go once their clips are verified, and are fetched again if they are needed."
        ),
    ] = YesNo.yes,
) -> None:
    """Build a dataset, or go on with one; what is done already is not done again. Writes the lock
    beside the recipe.
    """
    _build(recipe, until, data, executor, workers, device, keep_raw=keep_raw is YesNo.yes)


def _build(
    recipe: Path,
    until: StageName,
    data: Path,
    executor: ExecutorName,
    workers: int,
    device: str,
    classes: frozenset[str] | None = None,
    keep_raw: bool = True,
) -> None:
    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.core import executors
        from pipeline.dataset import recipe as recipes
        from pipeline.dataset.build import build as run
        from pipeline.dataset.passage import RawVideos

        loaded = recipes.load(recipe)
        raws = None if keep_raw else RawVideos(workers)
        if raws:
            console.print(report.raws_before(raws, until.value), soft_wrap=True)
        steps = []
        with interrupts.raised(), report.progress(console) as progress:
            for step in run(
                loaded,
                data,
                executors.make(executor.value, workers),
                device,
                until.value,
                progress,
                classes,
                raws,
            ):
                steps.append(step)
        code = _summary(console, loaded, data, steps, classes)
        if raws:
            console.print(report.raws_after(raws), markup=False, soft_wrap=True)
        return code

    guarded(act)


def _summary(
    console: Any, loaded: Any, data: Path, steps: list[Any], classes: frozenset[str] | None
) -> int:
    from pipeline.commands import report
    from pipeline.dataset import lock
    from pipeline.stages import shard

    name = loaded.recipe.name
    report.show(console, f"{name}, built in {data / name}", report.funnel(steps))
    if scores := report.scores(steps):
        console.print(scores)
    rejected = [one for step in steps for one in step.manifest.rejections]
    missing = [one for one in rejected if one.fate == "unavailable"]
    for one in missing[:10]:
        console.print(
            f"unavailable: {one.key} ({one.reason}): {one.detail}", markup=False, soft_wrap=True
        )
    if missing:
        again = (
            "the same command tries them again"
            if classes is None
            else "`build` tries all of them again"
        )
        console.print(f"{len(missing)} unavailable in all: {again}")
    if not any(step.num_run for step in steps):
        why = (
            f"nothing had failed as {', '.join(sorted(classes))}"
            if classes
            else "everything was built before"
        )
        console.print(f"nothing to do: {why}")
    if steps[-1].manifest.stage == "shard":
        made = report.shards(steps)
        samples = sum(len(one.samples) for one in made)
        console.print(
            f"{samples} samples in {len(made)} shards, root digest {shard.root_digest(made)}",
            soft_wrap=True,
        )
        if made:
            stays = missing and lock.read(loaded.path).root_digest != shard.root_digest(made)
            told = (
                " stays as it was: it has samples that could not be had this time" if stays else ""
            )
            console.print(f"lock: {lock.path_of(loaded.path)}{told}", markup=False, soft_wrap=True)
    if missing:
        return 3
    return 0 if steps[-1].manifest.records else 5


@app.command()
def retry(
    recipe: RecipePath,
    classes: Annotated[
        list[str],
        typer.Option(
            "--class", help="A class that `status` shows, such as rate-limited; may be repeated."
        ),
    ],
    until: Annotated[StageName, typer.Option(help="The last stage to run.")] = LAST_STAGE,
    data: Data = Path("data"),
    executor: ExecutorOption = PROCESSES,
    workers: Workers = CORES,
    device: Device = "auto",
) -> None:
    """Build, and of what failed before try only these classes again; crashed, timed-out and other
    bad ones too if named.
    """
    from pipeline.core.errors import CAUSES, REASONS

    allowed = sorted((REASONS | CAUSES) - {"removed"})
    for one in classes:
        if one not in allowed:
            raise typer.BadParameter(
                f"got '{one}', allowed are {', '.join(allowed)}", param_hint="--class"
            )
    _build(recipe, until, data, executor, workers, device, frozenset(classes))


@app.command()
def status(recipe: RecipePath, data: Data = Path("data"), device: Device = "auto") -> None:
    """Show the funnel: per stage what went in, came out, was rejected and why, is done, is
    pending.
    """

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.dataset import recipe as recipes
        from pipeline.dataset.build import known
        from pipeline.publish import reproduce

        loaded = recipes.load(recipe)
        steps, unknown = known(reproduce.look(loaded, data, device))
        if unknown:
            console.print(f"later stages are not known: {unknown}", markup=False, soft_wrap=True)
        report.show(
            console, f"{loaded.recipe.name}, in {data / loaded.recipe.name}", report.funnel(steps)
        )
        pending = next((step for step in steps if step.num_pending), None)
        if pending:
            console.print(
                f"next: {pending.num_pending} to {pending.manifest.stage}; later stages show what is known so far"
            )
        return 0

    guarded(act)


@app.command()
def plan(recipe: RecipePath, data: Data = Path("data"), device: Device = "auto") -> None:
    """Say what a build would do, why, how long it would take and how much disk, before any work."""

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.dataset import recipe as recipes
        from pipeline.plan import text
        from pipeline.plan.plan import plan as plan_build

        loaded = recipes.load(recipe)
        planned = plan_build(loaded, data, device)
        if not planned.is_idle:
            title = f"{loaded.recipe.name}, in {data / loaded.recipe.name}"
            report.show(console, title, text.table(planned))
        for line in text.sentences(planned):
            console.print(line, markup=False, soft_wrap=True)
        return 0

    guarded(act)


@app.command()
def rejections(recipe: RecipePath, data: Data = Path("data"), device: Device = "auto") -> None:
    """List every record that was dropped: at which stage, why, since when, how often it was
    tried.
    """

    def act(console: Any) -> int:
        from pipeline.commands import report
        from pipeline.dataset import recipe as recipes
        from pipeline.dataset.build import known
        from pipeline.publish import reproduce

        loaded = recipes.load(recipe)
        steps, _ = known(reproduce.look(loaded, data, device))
        found = [one for step in steps for one in step.failures]
        if found:
            console.print(report.rejections(found))
        elif not any(step.manifest.records for step in steps):
            console.print(
                f"nothing is built in {data / loaded.recipe.name} yet", markup=False, soft_wrap=True
            )
        else:
            console.print("nothing was rejected")
        return 0

    guarded(act)


@app.command()
def show(
    recipe: RecipePath,
    key: Annotated[
        str, typer.Argument(help="Key of a clip, as in 5-encode.jsonl or clips/KEY.mp4.")
    ],
    data: Data = Path("data"),
    out: Annotated[
        Path | None, typer.Option(help="File to write, by default data/NAME/show/KEY.png.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Frames on the sheet.")] = 6,
    device: Device = "auto",
) -> None:
    """Draw a contact sheet: a clip's frames, and under them its latents decoded."""

    def act(console: Any) -> int:
        from pipeline.commands.show import contact_sheet
        from pipeline.dataset import recipe as recipes

        path, line = contact_sheet(recipes.load(recipe), data, key, out, frames, device)
        console.print(f"{line}\n{path}", markup=False, soft_wrap=True)
        return 0

    guarded(act)


@app.command()
def check(recipe: RecipePath) -> None:
    """Validate a recipe and its sources table without doing any work."""

    def act(console: Any) -> int:
        from collections import Counter

        from pipeline.dataset import recipe as recipes
        from pipeline.media.addresses import scheme

        loaded = recipes.load(recipe)
        kinds = Counter(scheme(source.uri) for source in loaded.sources)
        made = loaded.recipe
        counts = ", ".join(f"{n} {kind}:" for kind, n in sorted(kinds.items()))
        console.print(
            f"{recipe} is fine: {len(loaded.sources)} sources ({counts})",
            markup=False,
            soft_wrap=True,
        )
        console.print(
            f"cuts by '{made.cut.detector}', at least {made.filter.min_frames} frames at {made.extract.fps} fps, "
            f"{made.extract.size} x {made.extract.size}, encoders of '{made.encode.preset}' in {made.encode.precision}",
            soft_wrap=True,
        )
        return 0

    guarded(act)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""

    def act(console: Any) -> int:
        from pipeline.dataset import recipe as recipes

        sys.stdout.write(recipes.schema())
        return 0

    guarded(act)


from pipeline.commands import upkeep  # noqa: E402, F401  more commands, listed after those above

if __name__ == "__main__":
    try:
        app()
    finally:
        interrupts.ignore()
