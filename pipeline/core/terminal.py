"""A terminal, or a pipe, that is not UTF-8 never ends a command: what it cannot show is escaped."""

from __future__ import annotations

import io
import sys


def escape_what_it_cannot_show() -> None:
    """From now on, characters that standard output or error has no bytes for are written as
    escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
