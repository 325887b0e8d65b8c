"""What all commands share: the program, its options, and how an error becomes a message and an exit
code.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands import recipes
from pipeline.core import interrupts
from pipeline.core.cores import num_cores
from pipeline.stages import NAMES

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Raw videos in, training-ready latent shards out: "
    "download, cut, filter, extract, score, keep, caption, encode, shard.",
    epilog="Exit codes: 0 done, 1 bug, 2 wrong recipe or command, "
    "3 something was unavailable (run again), "
    "4 stopped from outside (disk full, no such model), 5 nothing was kept, "
    "6 reproduced within tolerance, 7 not what the lock says, 130 interrupted. "
    "The same command resumes.",
)

Facts = dict[str, Any]  # what a command reports, as plain JSON

ExecutorName = StrEnum("ExecutorName", ["inline", "processes", "ray"])
PROCESSES = ExecutorName.processes
CORES = num_cores()

RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        parser=recipes.find,
        autocompletion=recipes.names,
        help="A recipe's file, or its name: `demo` is manifests/demo.toml, "
        "or else the recipe that comes with longtake.",
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Folder for the store and the datasets.")]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise typer.BadParameter(f"got '{value}', allowed are auto, cpu, cuda, cuda:N and mps")
    return value


Device = Annotated[
    str,
    typer.Option(
        callback=_device,
        help="Where models run: auto, cpu, cuda, cuda:1, mps. "
        "Recorded, never part of a task's key.",
    ),
]


def _stage(value: str) -> str:
    if value not in NAMES:
        raise typer.BadParameter(f"got '{value}', allowed are {', '.join(NAMES)}")
    return value


Until = Annotated[
    str,
    typer.Option(callback=_stage, metavar=f"<{'|'.join(NAMES)}>", help="The last stage to run."),
]
ExecutorOption = Annotated[
    ExecutorName,
    typer.Option(
        "--executor",
        help="inline: this process; processes: safe from crashes and hangs; ray: a cluster.",
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", min=1, help="Tasks at a time, by default one per core.")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, no tables and sentences."),
]


def guarded(act: Callable[[Any], tuple[int, Facts]], as_json: bool = False) -> None:
    """Run a command with a console; turn what went wrong into a message and an exit code.

    `act` prints for people and returns its exit code and the same as facts. With `as_json` the
    console is silent, and the facts go to standard output. Messages of errors go to standard error
    in either case.
    """
    from pipeline.commands.screen import Screen
    from pipeline.core.errors import BadData, Bug, RecipeError, Stopped, Unavailable

    errors = Screen(stderr=True, highlight=False, soft_wrap=True)
    try:
        code, facts = act(Screen(highlight=False, quiet=as_json))
        if as_json:
            sys.stdout.write(json.dumps(facts) + "\n")
    except RecipeError as error:
        errors.print(f"[red]recipe:[/] {_plain(error)}")
        code = 2
    except (Stopped, BadData, Unavailable, OSError) as error:
        errors.print(f"[red]stopped:[/] {_plain(error)}")
        code = 4
    except Bug as error:
        errors.print(f"[red]bug:[/] {_plain(error)}")
        errors.print("Please report it with the lines above; the same command goes on after a fix.")
        code = 1
    except KeyboardInterrupt:
        errors.print(interrupts.MESSAGE)
        code = interrupts.CODE
    raise typer.Exit(code)


def say(console: Any, *lines: object) -> None:
    """Print lines as they are: no markup in them, and not wrapped."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _plain(error: Exception) -> str:
    """What went wrong, as text: a stranger's words in it are no markup."""
    from rich.markup import escape

    return escape(str(error))
