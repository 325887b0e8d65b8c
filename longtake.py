"""The program `longtake`: the commands of `python -m pipeline` and `python -m training` in one.

`pipeline` never imports `training`, so the two meet here. Where both have a command of one name,
the pipeline's keeps it: `longtake plan RECIPE` is about a build, `longtake plan-training` about a
preset.
"""

from __future__ import annotations

import typer

from pipeline.core import interrupts

RENAMED = {"plan": "plan-training"}  # commands of training whose name the pipeline has
SHARDS, MODELS = "Raw videos to shards", "Shards to models and videos"  # headings of the help


def program() -> typer.Typer:
    """All commands under one name, with completion for shells (`--install-completion`)."""
    from pipeline.__main__ import app as pipeline
    from training.__main__ import app as training

    app = typer.Typer(
        add_completion=True,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        help="Raw videos in, training-ready latent shards and long-video diffusion models out.",
        epilog=pipeline.info.epilog,
    )
    for command in pipeline.registered_commands:
        app.command(_name(command), rich_help_panel=SHARDS)(command.callback)
    for command in training.registered_commands:
        name = RENAMED.get(_name(command), _name(command))
        app.command(name, rich_help_panel=MODELS)(command.callback)
    return app


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or command.callback.__name__.replace("_", "-")


def main() -> None:
    """Run the program, with Ctrl-C in hand before the slow imports."""
    interrupts.leave_at_once()
    try:
        program()(prog_name="longtake")
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()
