"""The short form of tests/chaos.py: every trial once or a few times. The long form writes
docs/reliability.md.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import chaos
from tests.making.dataset import Dataset

SHORT = {
    "killed": 2,
    "segfaults": 1,
    "damaged": 6,
    "half_written": 4,
    "disk_full": 1,
    "clock_set_back": 1,
    "two_at_once": 1,
}


def may_mount() -> bool:
    """Whether a file system of one's own may be mounted: not in every container."""
    try:
        return (
            subprocess.run(
                ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"],
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


def test_every_trial_has_a_short_form() -> None:
    assert SHORT.keys() | {"interrupted"} == chaos.TRIALS.keys()  # Ctrl-C: tests/test_end_to_end.py


@pytest.mark.parametrize("trial", [name for name in SHORT if name != "disk_full"])
def test_nothing_is_lost(small_dataset: Dataset, tmp_path: Path, trial: str) -> None:
    act: Callable[[Dataset, Path, int, int], chaos.Row] = chaos.TRIALS[trial][0]
    row = act(small_dataset, tmp_path / trial, SHORT[trial], 1)
    assert (row.lost, row.times) == ("nothing", SHORT[trial])


@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here")
def test_a_full_disk_stops_a_build_and_more_room_lets_it_go_on(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    row = chaos.disk_full(small_dataset, tmp_path / "disk", SHORT["disk_full"], 1)
    assert (row.lost, row.times) == ("nothing", 1)
