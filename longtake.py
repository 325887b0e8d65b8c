"""The program `longtake`: the commands of `python -m pipeline` and `python -m training` in one.

`pipeline` never imports `training`, so the two meet here. Where both have a command of one name,
the pipeline's keeps it: `longtake plan RECIPE` is about a build, `longtake plan-training` about a
preset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.core import interrupts

if TYPE_CHECKING:  # slow to import: not before `main` has Ctrl-C in hand
    import typer

RENAMED = {"plan": "plan-training"}  # commands of training whose name the pipeline has
SHARDS, MODELS = "Raw videos to shards", "Shards to models and videos"  # headings of the help


def program() -> typer.Typer:
    """All commands under one name, with completion for shells (`--install-completion`)."""
    import typer

    from pipeline.__main__ import app as pipeline_app
    from training.__main__ import app as training_app

    app = typer.Typer(
        add_completion=True,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        help="Raw videos in, training-ready latent shards and long-video diffusion models out.",
        epilog=pipeline_app.info.epilog,
    )
    for name, callback in _commands(pipeline_app):
        app.command(name, rich_help_panel=SHARDS)(callback)
    for name, callback in _commands(training_app):
        app.command(RENAMED.get(name, name), rich_help_panel=MODELS)(callback)
    return app


def _commands(app: typer.Typer) -> Iterator[tuple[str, Callable[..., None]]]:
    """The names and functions of a program's commands."""
    for command in app.registered_commands:
        if command.callback is not None:
            name = command.name or command.callback.__name__.replace("_", "-")
            yield name, command.callback


def main() -> None:
    """Run the program, with Ctrl-C in hand before the slow imports."""
    interrupts.leave_at_once()
    from pipeline.core import terminal

    terminal.escape_what_it_cannot_show()
    try:
        program()(prog_name="longtake")
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()
