"""What Ctrl-C does: 130 and one line, from the first moment on. Imports next to nothing, to be
there early.

While there is nothing to tidy up (imports, `status`), it ends the process where it is. While a
build runs, it raises, so that workers are stopped and half-written files removed. Once the work is
over, it does nothing. Raising everywhere is not enough: torch's import answers an exception with
SIGABRT, and a KeyboardInterrupt that passed through an `exec` of text (as in a dataclass) ends
`python -m` with signal 2, caught or not.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

MESSAGE = "interrupted: what was finished is kept, the same command goes on"
CODE = 130


class Interrupted(KeyboardInterrupt):
    """Like its parent, but `python -m` has no opinion of its own about it."""


def leave_at_once() -> None:
    """From now on, Ctrl-C ends the process; to be called first thing."""
    # A signal that is ignored stays so, as under `nohup` or behind `&` in a script.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM raise Interrupted; afterwards they do what they did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _raise)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """From now on, Ctrl-C does nothing: the work is over, and Python takes its time to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    try:
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # progress bars hide the cursor
        os.write(2, f"{MESSAGE}\n".encode())
    finally:
        os._exit(CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    below = frame
    while below is not None:
        if below.f_code.co_filename.startswith("<frozen importlib"):
            _leave(number, frame)  # no workers are running: stages import before they start any
        below = below.f_back
    raise Interrupted
