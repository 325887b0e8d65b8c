"""Commands that show a dataset in a browser, and what people pick there: report, browse,
merge-picks, taste.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands import recipes
from pipeline.commands.command import Data, Device, Facts, Json, RecipePath, app, guarded, say
from pipeline.core import interrupts

MOST_CONFLICTS = 20  # that are printed

Source = Annotated[
    str,
    typer.Option(
        metavar="KEY", help="Only what came from this source, or from this channel or folder."
    ),
]


@app.command()
def report(
    recipe: RecipePath,
    data: Data = Path("data"),
    decode: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long latents may be decoded, to be seen beside their clips; 0 for none.",
        ),
    ] = 60,
    source: Source = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write a page on which one sees the dataset: data/NAME/report/index.html."""

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts
        from pipeline.commands.report import progress
        from pipeline.dataset.recipe import load
        from pipeline.publish.page import report as reports

        loaded = load(recipe)
        with progress(console) as bars:
            made = reports.write(loaded, data, device, decode, bars, source)
        size = made.path.stat().st_size
        say(
            console,
            f"{made.path}: {made.num_clips} clips, {made.num_rejected} rejected records, "
            f"{size / 1e6:.1f} MB",
        )
        if not made.num_clips:
            say(
                console,
                "no clip is there yet: `longtake build` goes on, "
                "`longtake status` says how far it is",
            )
        if made.num_decoded < made.num_to_decode:
            pace = made.seconds_a_frame
            cost = f" (a frame takes {pace:.2g} s here)" if pace else ""
            say(
                console,
                f"latents decoded of {made.num_decoded} of {made.num_to_decode} clips{cost}: "
                "--decode SECONDS gives them more time",
            )
        return 0, {
            **facts.dataset(loaded, data),
            "page": str(made.path),
            "bytes": size,
            "clips": made.num_clips,
            "rejected": made.num_rejected,
            "decoded": made.num_decoded,
        }

    guarded(act, as_json)


@app.command()
def browse(
    recipe: RecipePath,
    data: Data = Path("data"),
    host: Annotated[str, typer.Option(help="The address that is listened on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 8765,
    source: Source = "",
    device: Device = "auto",
) -> None:
    """Serve that page, live while a build runs.

    Picks go into NAME.picks.jsonl beside the recipe.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.core.errors import Stopped
        from pipeline.publish.page import server as serving

        path, line = recipes.own(recipe)
        if line:
            say(console, line)

        def ready(address: str) -> None:
            say(console, f"{address} (Ctrl-C ends it)", *_hints(address, host))

        try:
            with interrupts.raised():
                serving.serve(serving.Server(path, data, device, source), host, port, ready)
        except OSError as error:
            raise Stopped(
                f"cannot listen on {host} port {port} ({error.strerror}): --port takes another"
            ) from error
        except KeyboardInterrupt:
            say(console, "ended")
        return 0, {}

    guarded(act)


@app.command("merge-picks")
def merge_picks(
    files: Annotated[
        list[Path], typer.Argument(help="Files of picks, NAME.picks.jsonl, of several people.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    latest: Annotated[
        bool, typer.Option("--latest", help="Where they differ, the later pick counts.")
    ] = False,
) -> None:
    """Make one file of several people's picks.

    Clips that one keeps and another rejects are named, and nothing is written unless --latest says
    that the later pick counts.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.core import picks
        from pipeline.core.errors import RecipeError

        for path in files:
            if not path.is_file():
                raise RecipeError(f"there is no file {path}")
        if out.exists():
            raise RecipeError(f"{out} is there already: give another name with --out")
        contents = [picks.read(path) for path in files]
        conflicts = picks.conflicts(contents)
        lines = [
            f"{clip[:12]}: "
            + ", ".join(
                f"{path.name}: {pick.pick}, {pick.time}"
                for path, pick in zip(files, row, strict=True)
                if pick is not None
            )
            for clip, row in conflicts.items()
        ]
        if lines and not latest:
            shown = "\n".join(lines[:MOST_CONFLICTS])
            more = len(lines) - MOST_CONFLICTS
            rest = f"\nand {more} more" if more > 0 else ""
            raise RecipeError(
                f"{len(lines)} clips are kept by one and rejected by another:\n{shown}{rest}\n"
                "--latest takes the later pick of each; nothing was written"
            )
        merged = picks.merged(contents)
        picks.append(out, merged)
        counts = [pick.pick for pick in picks.last_of_each(merged).values()]
        kept, dropped = counts.count("keep"), counts.count("reject")
        say(console, *lines, f"{out}: {kept} clips kept, {dropped} rejected")
        return 0, {}

    guarded(act)


@app.command()
def taste(
    recipe: RecipePath,
    data: Data = Path("data"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Learn from picks: fit a head over CLIP's image embeddings, which scores clips as you would.

    It takes 50 picks or more, says how often it is right about picks it has not seen, and is
    written (NAME.taste.safetensors, beside the recipe) if that is better than chance.
    """

    def act(console: Any) -> tuple[int, Facts]:
        from pipeline.commands import facts
        from pipeline.commands.report import progress
        from pipeline.dataset.recipe import load
        from pipeline.publish import taste as tastes

        path, line = recipes.own(recipe)
        if line:
            say(console, line)
        loaded = load(path)
        with progress(console) as bars, interrupts.raised():
            taste = tastes.taste(loaded, data, device, bars)
        fit = taste.fit
        more = "kept" if taste.num_kept >= taste.num_rejected else "rejected"
        held_out = "film by film" if fit.by_film else "clip by clip, for there are few films"
        say(
            console,
            f"{taste.num_kept} picks kept, {taste.num_rejected} rejected"
            + (f"; {taste.num_elsewhere} of clips that are not here" * bool(taste.num_elsewhere)),
            f"right about {fit.accuracy:.0%} of picks it has not seen (held out {held_out}; "
            f"{fit.spread:.0%} standard deviation over folds); always '{more}' is right about "
            f"{fit.chance:.0%}",
        )
        results = {
            **facts.dataset(loaded, data),
            "kept": taste.num_kept,
            "rejected": taste.num_rejected,
            "elsewhere": taste.num_elsewhere,
            "accuracy": round(fit.accuracy, 4),
            "spread": round(fit.spread, 4),
            "chance": round(fit.chance, 4),
            "by_film": fit.by_film,
            "head": str(taste.path) if taste.path else None,
        }
        if taste.path is None:
            say(
                console,
                "no better than chance, so nothing was written: this CLIP does not see what you "
                "go by, or it takes more picks, best as many of one kind as of the other",
            )
            return 5, results
        lines = tastes.recipe_lines(loaded, taste.path)
        if lines:
            say(console, f"{taste.path}: to score clips by it, the recipe needs", *lines)
        else:
            say(console, f"{taste.path}: the recipe names it, and the next build scores by it")
        return 0, {**results, "recipe_lines": lines}

    guarded(act, as_json)


def _hints(address: str, host: str) -> list[str]:
    """How to reach it from where one sits, and who else can."""
    hints = []
    connection = os.environ.get("SSH_CONNECTION", "").split()
    port = address.rstrip("/").rpartition(":")[2]
    if len(connection) == 4 and host in ("127.0.0.1", "localhost"):
        hints.append(
            f"this is a remote machine: type `ssh -L {port}:127.0.0.1:{port} {connection[2]}` "
            "where you sit, and open the address there"
        )
    if host not in ("127.0.0.1", "localhost", "::1"):
        hints.append("anybody who reaches this machine can see the clips, and pick")
    return hints
