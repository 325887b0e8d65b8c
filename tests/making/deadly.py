"""An executor whose workers die, or hang, until somebody mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.core.stage import Batch, Job, Lost, Troubles


class Deadly:
    """Loses every batch (of one stage, if it is named), without having done anything, as long as it
    is out of order.
    """

    def __init__(self, reason: Literal["crashed", "timed-out"], stage: str = "") -> None:
        self.reason = reason
        self.stage = stage
        self.is_out_of_order = True
        self.num_tried = 0

    def map(self, work: Job, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Troubles | Lost]]:
        for batch in batches:
            if self.stage not in ("", work.name):
                yield batch, work(batch)
                continue
            self.num_tried += 1
            if self.is_out_of_order:
                yield batch, Lost(self.reason, "no word of it")
            else:
                yield batch, work(batch)
