"""`build` on the command line: what it says of a lock that somebody else has published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.dataset import lock
from tests.making.command import longtake
from tests.making.dataset import Dataset


def test_a_published_lock_is_left_alone_until_one_says_relock(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    clone = small_dataset.published(tmp_path)
    theirs = lock.read(clone.recipe)
    environment = {**theirs.header["environment"], "machine": "another"}
    header = {**theirs.header, "environment": environment}
    lock.write(replace(theirs, header=header), clone.recipe)
    published = clone.lock.stat().st_mtime_ns
    words = ("build", clone.recipe, "--data", clone.data, "--executor", "inline")
    output = longtake(*words)
    assert output.returncode == 0
    assert f"lock: {clone.lock} stays: it was not written from {clone.folder}" in output.stdout
    assert clone.lock.stat().st_mtime_ns == published
    output = longtake(*words, "--relock")
    assert f"lock: {clone.lock}\n" in output.stdout
    assert clone.lock.stat().st_mtime_ns > published
    assert f"lock: {clone.lock}\n" in longtake(*words).stdout
