"""The ledger: what failed, of which class, with what words, since when, and how often it was tried.

Nothing here decides anything but which failures are tried again. What was bad is in the memo of its
task and stays; what was unavailable is noted beside, and every build tries it again. Times and
tries are for people: they are in no manifest, so that equal builds stay equal bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.core.records import Record, Rejection
from pipeline.core.stage import Stage, Survey, survey
from pipeline.core.store import Store


@dataclass(frozen=True)
class Failure:
    """A rejection with its history: UTC times, and how often it was tried in all."""

    rejection: Rejection
    first: str
    last: str
    tries: int


def unavailable(found: Survey, store: Store) -> list[Failure]:
    """What the world did not let happen at the last try: the missing records that have a note."""
    made = []
    for record in found.missing:
        if noted := store.failure(found.keys[record.key]):
            rejection = Rejection(
                record.key, found.stage.name, "unavailable", noted["cause"], noted["detail"]
            )
            made.append(Failure(rejection, noted["first"], noted["last"], noted["tries"]))
    return made


def bad(found: Survey) -> list[Failure]:
    """What is remembered as bad."""
    return [
        Failure(
            Rejection(key, found.stage.name, "bad", entry["bad"], entry["detail"]),
            entry["at"],
            entry["at"],
            entry["tries"],
        )
        for key, memo in found.memos.items()
        for entry in memo or ()
        if "bad" in entry
    ]


def hold(
    stage: Stage, records: Sequence[Record], store: Store, classes: Collection[str]
) -> list[Rejection]:
    """Make ready to try again the failures of these classes and no others: returns those that
    stand.

    What is remembered as bad, and of one of the classes, is forgotten.
    """
    found = survey(stage, records, store)
    for failed in bad(found):
        if failed.rejection.reason in classes:
            store.forget(found.keys[failed.rejection.key])
    return [
        failed.rejection
        for failed in unavailable(found, store)
        if failed.rejection.reason not in classes
    ]
