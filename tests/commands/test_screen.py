"""What a terminal is shown: no words of a stranger steer it."""

from __future__ import annotations

import io

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
