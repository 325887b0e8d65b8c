"""What a clock of time-outs is, and what becomes of a batch that runs out of time."""

from __future__ import annotations

from time import monotonic

from pipeline.core.stage import Batch, Lost

DIED = "the worker died"
TURN_S = 1.0  # how often executors look at what runs
MAX_TURN_S = 5.0  # what one look adds at most to the age of a task


class AwakeClock:
    """Seconds for time-outs: it cannot be set, and stands still while the build does not run.

    A monotonic clock does not move with the date, and on Linux and macOS not while the machine
    sleeps. It does move while the build is stopped (Ctrl-Z, a paused virtual machine), and its
    workers with it. So from one look to the next at most `MAX_TURN_S` count.
    """

    def __init__(self) -> None:
        self._last = monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        moment = monotonic()
        self._seconds += min(moment - self._last, MAX_TURN_S)
        self._last = moment
        return self._seconds


def timed_out(batch: Batch) -> Lost:
    """What is known of a batch that took longer than it may."""
    return Lost("timed-out", f"no result within {batch.timeout_s:.0f} s")
