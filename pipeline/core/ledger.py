"""The ledger: what failed, of which class, with what words, since when, and how often it was tried.

Nothing here decides anything but which failures are tried again. What was bad is in the memo of its
task and stays. What was unavailable is noted beside the memos, and every build tries it again.
Times and tries are for people: they are in no manifest, so that equal builds stay equal bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.core.records import Rejection
from pipeline.core.stage import Survey
from pipeline.core.store import Store, now


@dataclass(frozen=True)
class Failure:
    """A rejection with its history: UTC times, and how often it was tried in all."""

    rejection: Rejection
    first: str
    last: str
    tries: int


def unavailable(survey: Survey, store: Store) -> list[Failure]:
    """What the world did not let happen at the last try, and pure records it refuses now."""
    failures = []
    for record in survey.missing:
        if note := store.failure(survey.keys[record.key]):
            rejection = Rejection(
                record.key, survey.stage.name, "unavailable", note["cause"], note["detail"]
            )
            failures.append(Failure(rejection, note["first"], note["last"], note["tries"]))
    for rejection in survey.troubles:
        note = store.failure(survey.keys[rejection.key]) or {"first": now(), "tries": 0}
        failures.append(Failure(rejection, note["first"], now(), note["tries"] + 1))
    return failures


def bad(survey: Survey) -> list[Failure]:
    """What is remembered as bad, and pure records that are."""
    return [
        Failure(
            Rejection(key, survey.stage.name, "bad", entry["bad"], entry["detail"]),
            entry["at"],
            entry["at"],
            entry["tries"],
        )
        for key, entries in survey.memos.items()
        for entry in entries or ()
        if "bad" in entry
    ]


def forget(survey: Survey, store: Store, classes: Collection[str]) -> bool:
    """Forget what is remembered as bad and of one of these classes; returns whether anything was,
    so that the survey is out of date.
    """
    keys = {
        survey.keys[failure.rejection.key]
        for failure in bad(survey)
        if failure.rejection.reason in classes
    }
    remembered = {task_key for task_key in keys if store.remembers(task_key)}
    for task_key in remembered:
        store.forget(task_key)
    return bool(remembered)


def standing(survey: Survey, store: Store, classes: Collection[str]) -> list[Rejection]:
    """The failures that are not of these classes: they stand, without another try."""
    return [
        failure.rejection
        for failure in unavailable(survey, store)
        if failure.rejection.reason not in classes
    ]
