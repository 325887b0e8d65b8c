"""Replacing a file so that a crash leaves either the old content or the new, never a part.

The new content is written beside the file, brought to disk, and renamed onto it. The price is two
`fsync`s, some milliseconds; that is for manifests and locks, not for the thousands of blobs of a
store.
"""

from __future__ import annotations

import glob
import os
import secrets
from pathlib import Path

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
ALL_MAY_READ = 0o666  # less the umask, as `open` has it


def replace_file(path: Path, content: bytes) -> None:
    """Make `content` the content of `path`; the folder is made if it is not there.

    What a killed process left beside the same file is removed. Of two processes that write one file
    at the same time the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _replaced(path, content):
        pass  # another process took our file beside for a left-over: write it once more
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left_over.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _replaced(path: Path, content: bytes) -> bool:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_new(beside, content)
        os.replace(beside, path)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _write_new(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, NEW_FILE, ALL_MAY_READ), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring the rename to disk: it is an entry of the folder, not of the file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
