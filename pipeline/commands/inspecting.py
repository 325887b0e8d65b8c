"""Commands that look and change nothing: check, name, schema, plan, status, rejections, scores,
show.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.command import Data, Device, Facts, Json, RecipePath, app, guarded, say


@app.command()
def status(
    recipe: RecipePath, data: Data = Path("data"), device: Device = "auto", as_json: Json = False
) -> None:
    """Show the funnel: what went in and out of each stage, was rejected, is pending."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.build import known
        from pipeline.dataset.recipe import load
        from pipeline.publish.reproduce import look

        loaded = load(recipe)
        steps, unknown = known(look(loaded, data, device))
        funnel = facts.stages(steps)
        if unknown:
            say(console, f"later stages are not known: {unknown}")
        title = f"{loaded.recipe.name}, in {data / loaded.recipe.name}"
        report.show(console, title, report.funnel(funnel))
        # what an archive says of its members is in no recipe
        listed = [record for step in steps[:1] for record in step.manifest.records]
        listed += [
            record
            for step in steps
            if step.manifest.stage == "caption"
            for record in step.manifest.records
        ]
        captions = facts.captions(loaded, [*loaded.sources, *listed])
        for line in (report.suspicions(funnel), report.long_captions(captions)):
            if line:
                say(console, line)
        unmatched = facts.unmatched_captions(loaded, steps)
        say(console, *report.unmatched_captions(unmatched))
        following = next((row for row in funnel if row["pending"]), None)
        if following:
            count = f"{following['pending']} to {following['stage']}"
            say(console, f"next: {count}; later stages show what is known so far")
        absent = facts.absent_files(loaded)
        say(console, *report.absent_files(absent))
        about = {
            **facts.dataset(loaded, data),
            **captions,
            "unmatched_captions": unmatched,
            "absent_files": absent,
        }
        return 0, {**about, "stages": funnel, "unknown": unknown or None}

    guarded(act, as_json)


@app.command()
def plan(
    recipe: RecipePath, data: Data = Path("data"), device: Device = "auto", as_json: Json = False
) -> None:
    """Say what a build would do and why, how long it would take and how much disk."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.recipe import load
        from pipeline.plan import text
        from pipeline.plan.plan import plan as plan_build

        loaded = load(recipe)
        planned = plan_build(loaded, data, device)
        if not planned.is_idle:
            title = f"{loaded.recipe.name}, in {data / loaded.recipe.name}"
            report.show(console, title, text.table(planned))
        say(console, *text.sentences(planned))
        absent = facts.absent_files(loaded)
        say(console, *report.absent_files(absent))
        return 0, {**facts.dataset(loaded, data), **planned.as_json(), "absent_files": absent}

    guarded(act, as_json)


@app.command()
def rejections(
    recipe: RecipePath, data: Data = Path("data"), device: Device = "auto", as_json: Json = False
) -> None:
    """List every record that was dropped: where, why, since when, how often it was tried."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.build import known
        from pipeline.dataset.recipe import load
        from pipeline.publish.reproduce import look

        loaded = load(recipe)
        steps, _ = known(look(loaded, data, device))
        rows = facts.rejections([failure for step in steps for failure in step.failures])
        is_built = any(step.manifest.records for step in steps[1:])  # `expand` only names sources
        if rows:
            console.print(report.rejections(rows))
        elif is_built:
            say(console, "nothing was rejected")
        else:
            say(console, f"nothing is built in {data / loaded.recipe.name} yet")
        return 0, {**facts.dataset(loaded, data), "rejections": rows}

    guarded(act, as_json)


@app.command()
def show(
    recipe: RecipePath,
    key: Annotated[str, typer.Argument(help="Key of a clip, as in clips/KEY.mp4.")],
    data: Data = Path("data"),
    out: Annotated[
        Path | None, typer.Option(help="File to write, by default data/NAME/show/KEY.png.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Frames on the sheet.")] = 6,
    device: Device = "auto",
) -> None:
    """Draw a contact sheet: a clip's frames, and under them its latents decoded."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands.show import contact_sheet
        from pipeline.dataset.recipe import load

        path, line = contact_sheet(load(recipe), data, key, out, frames, device)
        say(console, line, path)
        return 0, {}

    guarded(act)


@app.command()
def scores(
    recipe: RecipePath,
    data: Data = Path("data"),
    csv: Annotated[Path | None, typer.Option(help="Write the scores of all clips here.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="The same as a parquet file.")] = None,
    as_json: Json = False,
) -> None:
    """Show how the scores of all clips are spread, and what each of the rules under `keep` drops.

    The rules are those that the recipe has now: nothing is built, and nothing measured.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.recipe import load
        from pipeline.publish import scores as scored

        loaded = load(recipe)
        clips = scored.clips_of(loaded, data)
        summary = scored.summary(loaded, clips)
        title = f"{loaded.recipe.name}: {len(clips)} clips"
        report.show(console, title, report.quantiles(summary["scores"]))
        if summary["rules"]:
            console.print(report.rules(summary))
        for path, write in ((csv, scored.write_csv), (parquet, scored.write_parquet)):
            if path is not None:
                write(clips, path)
                say(console, f"{path}: {len(clips)} clips")
        return 0, {**facts.dataset(loaded, data), **summary}

    guarded(act, as_json)


@app.command()
def check(recipe: RecipePath, as_json: Json = False) -> None:
    """Validate a recipe, its sources table and which local files it names, without any work."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts, report
        from pipeline.dataset.recipe import check_files, load

        loaded = load(recipe)
        check_files(recipe, loaded.removed)
        terms = facts.recipe(loaded)
        kinds = ", ".join(f"{count} {kind}:" for kind, count in terms["kinds"].items())
        say(
            console,
            f"{recipe} is fine: {terms['sources']} sources ({kinds})",
            f"cuts by '{terms['detector']}', "
            f"at least {terms['min_frames']} frames at {terms['fps']} fps, "
            f"{terms['size']} x {terms['size']}, "
            f"encoders of '{terms['preset']}' in {terms['precision']}",
        )
        if line := report.long_captions(terms):
            say(console, line)
        if terms["captions_from"]:
            say(console, f"captions: {terms['captions_from']}")
        if terms["scorers"]:
            rules = "; ".join(f"{name}: {rule}" for name, rule in terms["rules"].items())
            say(console, f"scores: {', '.join(terms['scorers'])}", f"keeps: {rules or 'all'}")
        if alike := terms["duplicates"]:
            mirrored = ", mirrored or not" if alike["mirrored"] else ""
            say(
                console,
                f"of near-duplicates{mirrored}, up to {alike['max_bits']:g} of 64 bits apart, the "
                "best stays",
            )
        return 0, terms

    guarded(act, as_json)


@app.command()
def name(recipe: RecipePath) -> None:
    """Print what a recipe's dataset is called, for scripts: its folder under data/."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.dataset.naming import name_of

        say(console, name_of(recipe))
        return 0, {}

    guarded(act)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.dataset import recipe as recipes

        sys.stdout.write(recipes.schema())
        return 0, {}

    guarded(act)
