"""A stage that misbehaves as each record asks: it rejects, fails, crashes or sleeps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

from pipeline.core import executors
from pipeline.core.errors import BadData, Unavailable
from pipeline.core.records import Source
from pipeline.core.stage import Outcome, Stage
from pipeline.core.store import Store


def behave(source: Source, store: Store) -> Iterator[Outcome]:
    """Does what the address says; spawned workers find it by name, so it lives at module level."""
    match source.uri.partition(":")[0]:
        case "bad":
            raise BadData("truncated", "half of it is there")
        case "gone":
            raise Unavailable("gone", "404")
        case "bug":
            raise ZeroDivisionError("one of ours")
        case "full":
            raise OSError(28, "no space left on device")
        case "read-only":
            raise OSError(30, "Read-only file system", "store/tmp/1")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sleep":
            time.sleep(600)
        case "meet":  # end only once another worker is at work beside this one
            folder = store.root / "met"
            folder.mkdir(exist_ok=True)
            (folder / source.key).touch()
            while len(list(folder.iterdir())) < 2:
                time.sleep(0.01)
            yield replace(source, license=os.environ[executors.WORKER_INDEX])
        case "nap":
            time.sleep(0.6)
            yield replace(source, license="CC0-1.0")
        case "join":  # end only once another one is at work too
            (store.root / source.key).touch()
            while len(list(store.root.glob("a[0-9]"))) < 2:
                time.sleep(0.01)
            yield replace(source, license="CC0-1.0")
        case "hold":  # end only once somebody says so
            while not (store.root / "go").exists():
                time.sleep(0.01)
            yield replace(source, license="CC0-1.0")
        case "many":
            yield replace(source, key=f"{source.key}-a", license="A")
            yield replace(source, key=f"{source.key}-b", license="B")
        case _:
            yield replace(source, license=f"seen with {store.put(source.uri.encode()).sha256[:8]}")


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def letter(source: Source) -> str:
    return source.key[0]


def cost(source: Source) -> float:
    return 1.0 if source.uri.startswith("sleep") else 100.0


def patience(cost: float) -> float:
    """Two seconds for whatever holds one sleeper, a minute for everybody else."""
    return 2.0 if cost % 100 else 60.0


STAGE = Stage("behave", 1, {}, Source, behave, group=letter, cost=cost, timeout=patience)
