"""Replacing a file: old or new, never half, and nothing is left beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.core import files
from pipeline.core.files import replace_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_content_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.jsonl"]


def test_what_breaks_off_before_the_rename_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    replace_file(path, b"one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a.jsonl"]


def test_a_killed_process_s_file_goes_with_the_next_write_and_another_file_s_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / ".a.jsonl.0123.tmp").write_bytes(b"hal")
    (tmp_path / ".b.jsonl.0123.tmp").write_bytes(b"hal")
    replace_file(tmp_path / "a.jsonl", b"whole")
    assert names(tmp_path) == [".b.jsonl.0123.tmp", "a.jsonl"]


def test_a_link_somebody_put_in_its_way_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "known")
    (tmp_path / ".a.jsonl.known.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "a.jsonl", b"evil")
    assert victim.read_bytes() == b"precious"


def test_a_file_swept_by_another_writer_is_written_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, swept = os.replace, []

    def sweep_once(beside: Path, path: Path) -> None:
        if not swept:
            swept.append(beside)
            beside.unlink()
        rename(beside, path)

    monkeypatch.setattr(os, "replace", sweep_once)
    replace_file(tmp_path / "a.jsonl", b"whole")
    assert (len(swept), (tmp_path / "a.jsonl").read_bytes()) == (1, b"whole")


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "a.jsonl", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o644
