"""The console of all commands. Whatever they print holds words of strangers: a caption, a reason, a
field of a lock. None of them steers the terminal.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.core.errors import printable


class Screen(Console):
    """A console whose texts, cells of tables too, hold no control characters but ends of lines."""

    def render_str(self, text: str, **options: Any) -> Text:
        lines = [printable(line) for line in text.split("\n")]
        return super().render_str("\n".join(lines), **options)
