"""What a person sees of any command: bars, messages, JSON, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


def errors() -> Any:
    """A console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2, ensure_ascii=False))


def print_paths(console: Any, paths: list[Path]) -> None:
    """Files that were written, with their sizes."""
    for path in paths:
        size_kb = path.stat().st_size / 1000
        console.print(f"{path}  {size_kb:.0f} kB", markup=False, soft_wrap=True)


def guarded(act: Callable[[Any], int]) -> None:
    """Run a command with a console; turn what went wrong into a message and an exit code."""
    from rich.console import Console

    from training.errors import NonFinite, ShardError, Stopped, UsageError

    messages = errors()

    def say(kind: str, error: Exception) -> None:
        words = (char if char.isprintable() or char == "\n" else "\ufffd" for char in str(error))
        messages.print(f"{kind}: {''.join(words)}", markup=False)  # a stranger's: nothing steers

    try:
        code = act(Console(highlight=False))
    except UsageError as error:
        say("wrong", error)
        code = 2
    except NonFinite as error:
        say("not a number", error)
        code = 1
    except (ShardError, Stopped, OSError) as error:
        say("stopped", error)
        code = 4
    except KeyboardInterrupt:
        messages.print("interrupted: the last checkpoint is whole, the same command goes on")
        code = 130
    raise typer.Exit(code)


Advance = Callable[[str, int, int], None]  # what is made, how much of it, of how much


@contextmanager
def progress(console: Any) -> Iterator[Advance]:
    """A bar for each thing that is made, with the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        "{task.description:24}",
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance
