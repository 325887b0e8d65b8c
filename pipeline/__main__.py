"""The command line: `python -m pipeline`. Parses, wires, exits; the work is elsewhere.

Exit codes: 0 done; 1 a bug of ours; 2 a wrong recipe or command; 3 built, but something was unavailable
(run again); 4 stopped by the outside world (disk full, lock held, no such model); 5 built, and nothing
was left to keep; 130 interrupted. What was finished is kept in every case; the same command goes on.
"""

from __future__ import annotations

from pipeline import interrupts  # isort: split

if __name__ == "__main__":
    interrupts.leave_at_once()  # before the imports below: they take half a second

import os
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Raw videos in, training-ready latent shards out: download, cut, filter, extract, encode, shard.",
    epilog="Exit codes: 0 done, 1 bug, 2 wrong recipe or command, 3 something was unavailable (run again), "
    "4 stopped from outside (disk full, no such model), 5 nothing was kept, 130 interrupted. The same command resumes.",
)


StageName = StrEnum("StageName", ["download", "cut", "filter", "extract", "encode", "shard"])


ExecutorName = StrEnum("ExecutorName", ["inline", "processes", "ray"])


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe such as manifests/demo.toml.")]
Data = Annotated[Path, typer.Option("--data", help="Folder for the store and the datasets.")]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise typer.BadParameter(f"got '{value}', allowed are auto, cpu, cuda, cuda:N and mps")
    return value


Device = Annotated[
    str, typer.Option(callback=_device, help="Where models run: auto, cpu, cuda, cuda:1, mps. Recorded, never part of a task's key.")
]


def guarded(act: Callable[[Any], int]) -> None:
    """Run a command with a console; turn what went wrong into a message and an exit code."""
    from rich.console import Console

    from pipeline.errors import BadData, Bug, RecipeError, Stopped, Unavailable

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = act(Console(highlight=False))
    except RecipeError as error:
        errors.print(f"[red]recipe:[/] {_plain(error)}")
        code = 2
    except (Stopped, BadData, Unavailable, OSError) as error:
        errors.print(f"[red]stopped:[/] {_plain(error)}")
        code = 4
    except Bug as error:
        errors.print(f"[red]bug:[/] {_plain(error)}\nPlease report it with the lines above; the same command goes on after a fix.")
        code = 1
    except KeyboardInterrupt:
        errors.print(interrupts.MESSAGE)
        code = interrupts.CODE
    raise typer.Exit(code)


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))


@app.command()
def build(
    recipe: RecipePath,
    until: Annotated[StageName, typer.Option(help="The last stage to run.")] = StageName.shard,
    data: Data = Path("data"),
    executor: Annotated[
        ExecutorName, typer.Option(help="inline: this process; processes: safe from crashes and hangs; ray: a cluster.")
    ] = ExecutorName.processes,
    workers: Annotated[int, typer.Option(min=1, help="Tasks at a time, by default one per core.")] = os.cpu_count() or 1,
    device: Device = "auto",
) -> None:
    """Build a dataset, or go on with one; what is done already is not done again."""

    def act(console: Any) -> int:
        from pipeline import executors, report
        from pipeline import recipe as recipes
        from pipeline.build import build as run

        loaded = recipes.load(recipe)
        steps = []
        with interrupts.raised(), report.progress(console) as progress:
            for step in run(loaded, data, executors.make(executor.value, workers), device, until.value, progress):
                steps.append(step)
        return _summary(console, loaded.recipe.name, data, steps)

    guarded(act)


def _summary(console: Any, name: str, data: Path, steps: list[Any]) -> int:
    from pipeline import report, shard

    console.print(report.funnel(steps, f"{name}, built in {data / name}"))
    if scores := report.scores(steps):
        console.print(scores)
    rejected = [one for step in steps for one in step.manifest.rejections]
    missing = [one for one in rejected if one.fate == "unavailable"]
    for one in missing[:10]:
        console.print(f"unavailable: {one.key} ({one.reason}): {one.detail}", markup=False, soft_wrap=True)
    if missing:
        console.print(f"{len(missing)} unavailable in all: the same command tries them again")
    if not any(step.num_run for step in steps):
        console.print("nothing to do: everything was built before")
    if steps[-1].manifest.stage == "shard":
        made = report.shards(steps)
        samples = sum(len(one.samples) for one in made)
        console.print(f"{samples} samples in {len(made)} shards, root digest {shard.root_digest(made)}", soft_wrap=True)
    if missing:
        return 3
    return 0 if steps[-1].manifest.records else 5


@app.command()
def status(recipe: RecipePath, data: Data = Path("data"), device: Device = "auto") -> None:
    """Show the funnel: per stage what went in, came out, was rejected and why, is done, is pending."""

    def act(console: Any) -> int:
        from pipeline import recipe as recipes
        from pipeline import report
        from pipeline.build import look
        from pipeline.errors import Stopped

        loaded = recipes.load(recipe)
        steps: list[Any] = []
        try:
            for step in look(loaded, data, device):
                steps.append(step)
        except Stopped as error:
            console.print(f"later stages are not known: {error}", markup=False, soft_wrap=True)
        console.print(report.funnel(steps, f"{loaded.recipe.name}, in {data / loaded.recipe.name}"))
        pending = next((step for step in steps if step.num_pending), None)
        if pending:
            console.print(f"next: {pending.num_pending} to {pending.manifest.stage}; later stages show what is known so far")
        return 0

    guarded(act)


@app.command()
def rejections(recipe: RecipePath, data: Data = Path("data")) -> None:
    """List every record that was dropped, at which stage, and why."""

    def act(console: Any) -> int:
        from pipeline import recipe as recipes
        from pipeline import report
        from pipeline.manifest import rejections_in

        loaded = recipes.load(recipe)
        folder = data / loaded.recipe.name
        files = sorted(folder.glob("[1-6]-*.jsonl"))
        found = [one for file in files for one in rejections_in(file)]
        if not files:
            console.print(f"nothing is built in {folder} yet", markup=False, soft_wrap=True)
        elif not found:
            console.print("nothing was rejected")
        else:
            console.print(report.rejections(found))
        return 0

    guarded(act)


@app.command()
def show(
    recipe: RecipePath,
    key: Annotated[str, typer.Argument(help="Key of a clip, as in 5-encode.jsonl or clips/KEY.mp4.")],
    data: Data = Path("data"),
    out: Annotated[Path | None, typer.Option(help="File to write, by default data/NAME/show/KEY.png.")] = None,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Frames on the sheet.")] = 6,
    device: Device = "auto",
) -> None:
    """Draw a contact sheet: a clip's frames, and under them its latents decoded."""

    def act(console: Any) -> int:
        from pipeline import recipe as recipes
        from pipeline.show import contact_sheet

        path, line = contact_sheet(recipes.load(recipe), data, key, out, frames, device)
        console.print(f"{line}\n{path}", markup=False, soft_wrap=True)
        return 0

    guarded(act)


@app.command()
def check(recipe: RecipePath) -> None:
    """Validate a recipe and its sources table without doing any work."""

    def act(console: Any) -> int:
        from collections import Counter

        from pipeline import recipe as recipes
        from pipeline.download import scheme

        loaded = recipes.load(recipe)
        kinds = Counter(scheme(source.uri) for source in loaded.sources)
        made = loaded.recipe
        counts = ", ".join(f"{n} {kind}:" for kind, n in sorted(kinds.items()))
        console.print(f"{recipe} is fine: {len(loaded.sources)} sources ({counts})", markup=False, soft_wrap=True)
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
        from pipeline import recipe as recipes

        sys.stdout.write(recipes.schema())
        return 0

    guarded(act)


if __name__ == "__main__":
    try:
        app()
    finally:
        interrupts.ignore()
