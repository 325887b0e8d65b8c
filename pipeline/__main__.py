"""The command line: `python -m pipeline`. Parses, wires, exits; the commands are in `commands`.

Exit codes: 0 done; 1 a bug of ours; 2 a wrong recipe or command; 3 built, but something was
unavailable (run again) or is in the lock and not in this build; 4 stopped by the outside world
(disk full, lock held, no such model); 5 built, and nothing was left to keep; 6 and 7 from
`reproduce` and `verify`: within tolerance, and not what the lock says; 130 interrupted. What was
finished is kept in every case; the same command goes on.
"""

from __future__ import annotations

from pipeline.core import interrupts  # isort: split

if __name__ == "__main__":
    interrupts.leave_at_once()  # before the imports below: they take half a second

# Each of these modules adds its commands to `app`.
from pipeline.commands import (  # noqa: F401
    building,
    inspecting,
    keeping,
    looking,
    publishing,
)
from pipeline.commands.command import app
from pipeline.core import terminal

__all__ = ["app"]

if __name__ == "__main__":
    terminal.escape_what_it_cannot_show()
    try:
        app()
    finally:
        interrupts.ignore()
