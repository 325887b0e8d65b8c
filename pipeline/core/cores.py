"""How many cores there are to work on. Imports next to nothing: `--help` asks."""

from __future__ import annotations

import os


def num_cores() -> int:
    """The cores this process may use: fewer than the machine has under `taskset` and the like."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
