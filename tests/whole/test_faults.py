"""The short form of tests/faults.py: some system calls of a build and a removal fail, and the power
is cut at some moments. The long form tries all of them and writes docs/reliability.md.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import compile_shim
from tests.making import power

ROOT = Path(__file__).parents[2]


def may_compile(folder: Path) -> bool:
    """Whether the shim can be made and used here."""
    try:
        compile_shim(folder)
    except (OSError, subprocess.CalledProcessError):
        return False
    return sys.platform == "linux"


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_after_a_fault_or_a_power_cut_the_same_command_ends_as_always(tmp_path: Path) -> None:
    if not may_compile(tmp_path):
        pytest.skip("the shim cannot be made here")
    sweep = [sys.executable, "-m", "tests.faults", "--only", "build", "remove", "--sample", "79"]
    process = subprocess.run(sweep, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    for kind in ("faults", "cuts"):
        for command in ("build", "remove"):
            assert f"{kind} | `{command}` |" in process.stdout


def record_of(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "log").write_text("\n".join(lines))
    return folder


def left_after(tmp_path: Path, mode: str, *lines: str) -> dict[str, bytes]:
    """What a power cut leaves of a folder in which there was one file, `old`, after these calls."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    disk = power.disk_of([folder], tmp_path / "copy")
    record = record_of(tmp_path / "record", *(line.replace("PLACE", str(folder)) for line in lines))
    (record / "1").write_bytes(b"new")
    list(power.replay(disk, record))
    shutil.rmtree(folder)
    power.cut(disk, mode, random.Random(0), {})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WRITTEN = ("create\tPLACE/a\t7", "bytes\t7\t1")
SYNCED = (*WRITTEN, "sync\tPLACE/a\t7\t1")
RENAMED = (*SYNCED, "rename\tPLACE/a\tPLACE/old")


def test_what_is_not_synced_is_lost(tmp_path: Path) -> None:
    assert left_after(tmp_path, "lost", *SYNCED) == {"old": b"old"}


def test_a_name_without_its_content_is_left(tmp_path: Path) -> None:
    assert left_after(tmp_path, "names", *WRITTEN) == {"old": b"old", "a": bytes(3)}


def test_a_rename_is_there_when_its_folder_is_synced(tmp_path: Path) -> None:
    assert left_after(tmp_path, "lost", *RENAMED, "syncdir\tPLACE") == {"old": b"new"}


def test_a_rename_alone_may_be_undone(tmp_path: Path) -> None:
    assert left_after(tmp_path, "lost", *RENAMED) == {"old": b"old"}


def test_a_deletion_may_come_to_disk_before_what_was_done_earlier(tmp_path: Path) -> None:
    assert left_after(tmp_path, "deletions", *SYNCED, "unlink\tPLACE/old") == {}
