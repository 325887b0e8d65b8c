"""Commands that build a dataset: build, retry."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands import recipes
from pipeline.commands.command import (
    CORES,
    PROCESSES,
    Data,
    Device,
    ExecutorName,
    ExecutorOption,
    Facts,
    Json,
    RecipePath,
    Until,
    Workers,
    app,
    guarded,
    say,
)
from pipeline.core import interrupts
from pipeline.stages import NAMES

MAX_NAMED = 10  # of what was unavailable; `rejections` lists all
YesNo = StrEnum("YesNo", ["yes", "no"])


@app.command()
def build(
    recipe: RecipePath,
    until: Until = NAMES[-1],
    data: Data = Path("data"),
    executor: ExecutorOption = PROCESSES,
    workers: Workers = CORES,
    device: Device = "auto",
    keep_raw: Annotated[
        YesNo,
        typer.Option(
            help="no: raw videos go once their clips are verified, "
            "and are fetched again if they are needed."
        ),
    ] = YesNo.yes,
    relock: Annotated[
        bool,
        typer.Option(
            "--relock", help="Replace the lock beside the recipe, also one of another machine."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a dataset, or go on with one: what is done already is not done again.

    Writes the lock beside the recipe. Where there is a lock of another machine, it stays, and the
    build says how both compare.
    """
    keeps_raw = keep_raw is YesNo.yes
    _build(
        recipe, until, data, executor, workers, device, as_json, keeps_raw=keeps_raw, relock=relock
    )


@app.command()
def retry(
    recipe: RecipePath,
    classes: Annotated[
        list[str],
        typer.Option(
            "--class", help="A class that `status` shows, such as rate-limited; may be repeated."
        ),
    ],
    until: Until = NAMES[-1],
    data: Data = Path("data"),
    executor: ExecutorOption = PROCESSES,
    workers: Workers = CORES,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Build, and of what failed before try only some classes again.

    Crashed, timed-out and other bad records are tried again too if they are named.
    """
    from pipeline.core.errors import CAUSES, REASONS

    allowed = sorted((REASONS | CAUSES) - {"removed"})
    for name in classes:
        if name not in allowed:
            raise typer.BadParameter(
                f"got '{name}', allowed are {', '.join(allowed)}", param_hint="--class"
            )
    _build(recipe, until, data, executor, workers, device, as_json, frozenset(classes))


def _build(
    recipe: Path,
    until: str,
    data: Path,
    executor: ExecutorName,
    workers: int,
    device: str,
    as_json: bool,
    classes: frozenset[str] | None = None,
    keeps_raw: bool = True,
    relock: bool = False,
) -> None:
    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import report
        from pipeline.core import executors
        from pipeline.dataset import build as building
        from pipeline.dataset.passage import RawVideos
        from pipeline.dataset.recipe import load

        path, line = recipes.own(recipe)
        if line:
            say(console, line)
        loaded = load(path)
        raws = None if keeps_raw else RawVideos(workers)
        if raws:
            say(console, report.raws_before(raws, until))
        with interrupts.raised(), report.progress(console) as progress:
            steps = list(
                building.build(
                    loaded,
                    data,
                    executors.make(executor.value, workers),
                    device,
                    until,
                    progress,
                    classes,
                    raws,
                    relock,
                )
            )
        code, summary = _summary(console, loaded, data, steps, classes)
        if raws:
            say(console, report.raws_after(raws))
            summary["raw_videos"] = {"peak_bytes": raws.peak_bytes, "bytes": raws.all_bytes}
        return code, summary

    guarded(act, as_json)


def _summary(
    console: Any, loaded: Any, data: Path, steps: list[Any], classes: Collection[str] | None
) -> tuple[int, Facts]:
    """Say what a build made; returns its exit code and the same as facts."""
    from pipeline.commands import facts, report
    from pipeline.dataset import relock

    name = loaded.recipe.name
    is_finished = steps[-1].manifest.stage == NAMES[-1]
    summary = {
        **facts.dataset(loaded, data),
        "stages": facts.stages(steps),
        "num_run": sum(step.num_run for step in steps),
        "unavailable": facts.unavailable(steps),
        "unmatched_captions": facts.unmatched_captions(loaded, steps),
        "psnr": facts.psnr(steps),
        "shards": facts.shards(steps),
        "lost": relock.losses(loaded, [step.manifest for step in steps]) if is_finished else {},
    }
    report.show(console, f"{name}, built in {data / name}", report.funnel(summary["stages"]))
    if summary["psnr"]:
        say(console, report.psnr(summary["psnr"]))
    if line := report.suspicions(summary["stages"]):
        say(console, line)
    say(console, *report.unmatched_captions(summary["unmatched_captions"]))
    _say_unavailable(console, summary["unavailable"], classes)
    if not summary["num_run"]:
        reason = "everything was built before"
        if classes:
            reason = f"nothing had failed as {', '.join(sorted(classes))}"
        say(console, f"nothing to do: {reason}")
    if summary["shards"]:
        _say_shards(console, loaded, data, summary)
    _say_lost(console, summary["lost"])
    if summary["unavailable"] or summary["lost"]:
        return 3, summary
    return 0 if steps[-1].manifest.records else 5, summary


def _say_unavailable(
    console: Any, unavailable: list[dict[str, str]], classes: Collection[str] | None
) -> None:
    for row in unavailable[:MAX_NAMED]:
        say(console, f"unavailable: {row['key']} ({row['class']}): {row['detail']}")
    if unavailable:
        again = "the same command tries them again"
        if classes is not None:
            again = "`build` tries all of them again"
        say(console, f"{len(unavailable)} unavailable in all: {again}")


def _say_lost(console: Any, lost: dict[str, str]) -> None:
    for key, reason in list(lost.items())[:MAX_NAMED]:
        say(console, f"lost: {key} ({reason})")
    if lost:
        say(console, f"{len(lost)} samples of the lock are not in this build")


def _say_shards(console: Any, loaded: Any, data: Path, summary: Facts) -> None:
    from pipeline.dataset import lock, relock

    shards = summary["shards"]
    counts = f"{shards['samples']} samples in {shards['shards']} shards"
    say(console, f"{counts}, root digest {shards['root_digest']}")
    if shards["shards"]:
        folder = data / loaded.recipe.name
        line = relock.sentence(loaded.path, folder, shards["root_digest"])
        say(console, line)
        summary["lock"] = {"path": str(lock.path_of(loaded.path)), "said": line}
