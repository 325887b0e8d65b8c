"""Files that are on disk, not only in the machine's memory, so that a power cut loses none of them.

A file is on disk when its content is, and its entry in the folder, and the entry of every new
folder above it: three things, each brought there by an `fsync` of its own. `replace_file` leaves
either the old content or the new, never a part. `sync` is for what somebody else wrote, before
something is deleted because of it: a file that can be read may still be in memory only.
"""

from __future__ import annotations

import errno
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
    make_folder(path.parent)
    while not _replaced(path, content):
        pass  # another process took our file beside for a left-over: write it once more
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left_over.unlink(missing_ok=True)
    sync_folder(path.parent)


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


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are not there, each with its entry on disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync(path: Path) -> None:
    """Bring a file that is there to disk: its content and its entry in the folder."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring to disk which names a folder has: what was made, renamed or deleted in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # file systems that sync no folders say so in these words
        if error.errno not in (errno.EBADF, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)
