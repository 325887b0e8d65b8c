"""The command line: typed in a process of its own, or run in this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from pipeline.__main__ import app

ROOT = Path(__file__).parents[2]
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


@dataclass
class Output:
    """The exit code of a command and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def longtake(*words: str | Path) -> Output:
    """Run the command in this process, which is fast. An unplanned exception is raised."""
    with contextlib.chdir(ROOT):
        result = CliRunner().invoke(
            app, [str(word) for word in words], env=PLAIN, catch_exceptions=False
        )
    return Output(result.exit_code, result.stdout, result.stderr)


def longtake_process(*words: str | Path, timeout: float = 300) -> Output:
    """Run the command in a process of its own, as a person types it in the project's folder."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pipeline", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **PLAIN},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Output(process.returncode, process.stdout, process.stderr)
