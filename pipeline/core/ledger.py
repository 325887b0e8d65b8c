"""The ledger: what failed, of which class, with what words, since when, and how often it was tried.

Nothing here decides anything but which failures are tried again. What was bad is in the memo of its
task and stays. What was unavailable is noted beside the memos, and every build tries it again. What
crashed or ran out of time is in the memo too, but it is a suspicion: so many builds try it again
(`stage.MAX_SUSPICIONS`), and then it stays.
Times and tries are for people: they are in no manifest, so that equal builds stay equal bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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


def passing(survey: Survey, store: Store) -> list[Failure]:
    """The failures that the next build tries again: what the world did not let happen at the last
    try, pure records it refuses now, and suspicions.
    """
    failures = []
    for record in survey.missing:
        if note := store.failure(survey.keys[record.key]):
            rejection = Rejection(
                record.key, survey.stage.name, "unavailable", note["cause"], note["detail"]
            )
            failures.append(Failure(rejection, note["first"], note["last"], note["tries"]))
        elif record.key in survey.suspicions:
            entry = survey.suspicions[record.key][0]
            failures.append(_failure(survey, record.key, entry))
    for rejection in survey.troubles:
        note = store.failure(survey.keys[rejection.key]) or {"first": now(), "tries": 0}
        failures.append(Failure(rejection, note["first"], now(), note["tries"] + 1))
    return failures


def bad(survey: Survey) -> list[Failure]:
    """What is remembered as bad, and pure records that are."""
    return [
        _failure(survey, key, entry)
        for key, entries in survey.memos.items()
        for entry in entries or ()
        if "bad" in entry
    ]


def _failure(survey: Survey, key: str, entry: Mapping[str, Any]) -> Failure:
    """What an entry of a memo says that is bad of the record with this key."""
    rejection = Rejection(key, survey.stage.name, "bad", entry["bad"], entry["detail"])
    return Failure(rejection, entry.get("first", entry["at"]), entry["at"], entry["tries"])


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


def standing(
    survey: Survey, store: Store, classes: Collection[str] | None, tries_suspicions: bool
) -> list[Rejection]:
    """The failures that stand, without another try. What is of one of the classes does not (None:
    of any), nor a suspicion that is to be tried.
    """
    rejections = [failure.rejection for failure in passing(survey, store)]
    return [
        rejection for rejection in rejections if not _is_tried(rejection, classes, tries_suspicions)
    ]


def _is_tried(
    rejection: Rejection, classes: Collection[str] | None, tries_suspicions: bool
) -> bool:
    if classes is not None and rejection.reason in classes:
        return True
    return tries_suspicions if rejection.fate == "bad" else classes is None
