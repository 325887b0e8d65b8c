"""The program `longtake`: the commands of both packages under one name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer.main
from typer.testing import CliRunner

import longtake
from pipeline.__main__ import app as pipeline
from tests.making.command import PLAIN
from training.__main__ import app as training

ROOT = Path(__file__).parents[2]


def commands_of(app: typer.Typer) -> dict[str, object]:
    commands: dict[str, object] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return commands


def test_every_command_of_both_is_there_and_none_hides_another() -> None:
    ours, theirs = set(commands_of(pipeline)), set(commands_of(training))
    assert ours & theirs == longtake.RENAMED.keys()
    renamed = {longtake.RENAMED.get(name, name) for name in theirs}
    assert set(commands_of(longtake.program())) == ours | renamed
    assert len(ours | renamed) == len(ours) + len(theirs)


def test_plan_is_about_a_build_and_plan_training_about_a_preset() -> None:
    runner = CliRunner()
    plan = runner.invoke(longtake.program(), ["plan", "--help"], env=PLAIN)
    assert "RECIPE" in plan.stdout
    plan = runner.invoke(longtake.program(), ["plan-training", "--help"], env=PLAIN)
    assert "--preset" in plan.stdout


def test_a_shell_can_be_taught_to_complete_words() -> None:
    said = CliRunner().invoke(longtake.program(), ["--help"], env=PLAIN)
    assert "--install-completion" in said.stdout


def test_the_program_answers_to_its_name() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "longtake.py", "check", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("manifests/demo.toml is fine: 5 sources")
