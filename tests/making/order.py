"""The order in which a program syncs, renames and deletes, as it asks the system for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Event = tuple[str, Path]


@dataclass
class Order:
    """What was asked for so far: ("sync", a file or folder), ("unlink", a file), ("rename", what
    the file is called then).
    """

    events: list[Event] = field(default_factory=list)

    def first(self, verb: str, is_meant: Callable[[Path], bool]) -> int:
        """Where the first event of that kind stands. Raises StopIteration if there is none."""
        return next(
            index
            for index, (name, path) in enumerate(self.events)
            if name == verb and is_meant(path)
        )

    def synced_before(self, index: int) -> set[Path]:
        """What was brought to disk before the event that stands there."""
        return {path for verb, path in self.events[:index] if verb == "sync"}


def watched(monkeypatch: pytest.MonkeyPatch) -> Order:
    """The order of what happens from now on in this process."""
    order = Order()
    fsync, unlink, replace = os.fsync, os.unlink, os.replace

    def noting_fsync(descriptor: int) -> None:
        order.events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def noting_unlink(path: Any, **options: Any) -> None:
        unlink(path, **options)
        order.events.append(("unlink", Path(path)))

    def noting_replace(source: Any, target: Any) -> None:
        replace(source, target)
        order.events.append(("rename", Path(target)))

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "unlink", noting_unlink)
    monkeypatch.setattr(os, "replace", noting_replace)
    return order
