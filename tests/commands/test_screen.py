"""What a terminal is shown: no words of a stranger steer it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from pipeline.commands import report
from pipeline.commands.screen import Screen

EVIL = ("\x1b[2J", "\x1b]0;mine\x07", "\x9b31m", "\r", "\u202e", "\u2066", "\ud800", "\x7f")


def shown(*parts: object) -> str:
    stream = io.StringIO()
    console = Screen(file=stream, width=200, highlight=False)
    for part in parts:
        console.print(part, markup=False, soft_wrap=True)
    return stream.getvalue()


@pytest.mark.parametrize("evil", EVIL)
def test_text_tables_and_titles_are_printable(evil: str) -> None:
    table = Table(f"head{evil}")
    table.add_row(f"cell{evil}")
    text = shown(f"line{evil}\nnext", table)
    assert not set(evil) & set(text) - set("[]0123456789;mineJ")
    assert "line\N{REPLACEMENT CHARACTER}" in text
    assert "\nnext" in text
    assert "head\N{REPLACEMENT CHARACTER}" in text
    assert "cell\N{REPLACEMENT CHARACTER}" in text


def test_a_rejection_is_listed_with_its_words_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {
        "stage": "[red]cut", "key": "[/]a", "class": "[link=x]y", "detail": "[b]z", "first": "[i]",
        "last": "[i]", "tries": 1,
    }  # fmt: skip
    text = shown(report.rejections([row]))
    for words in ("[red]cut", "[/]a", "[link=x]y", "[b]z", "[i]"):
        assert words in text


@pytest.mark.parametrize(("program", "encoding"), [("pipeline", "ascii"), ("longtake", "cp1252")])
def test_a_terminal_that_is_not_utf_8_ends_no_command(
    tmp_path: Path, program: str, encoding: str
) -> None:
    recipe = tmp_path / "\u6620\u753b.toml"
    recipe.write_text('name = "a"\n[[source]]\nuri = "file:\u97f3\u697d.mp4"\n', "utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for command, code, shown in (("check", 2, "\\u97f3"), ("build", 3, "not-found")):
        data = ["--data", str(tmp_path / "data"), "--executor", "inline", "--until", "download"]
        process = subprocess.run(
            [sys.executable, "-m", program, command, str(recipe), *(data if code == 3 else [])],
            env=environment,
            capture_output=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        said = (process.stdout + process.stderr).decode(encoding)
        assert process.returncode == code, said
        assert shown in said
        assert "Traceback" not in said
