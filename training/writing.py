"""Files are written beside their place and renamed, so there is never half a file under its name.

A process that is killed leaves what it wrote so far under a name that begins with `partial-`;
`sweep` removes such leftovers.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import Stopped

PARTIAL = "partial-"


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path in the same folder, for a file or a folder: renamed to `path` if all goes well,
    removed if not. What stood at `path` is replaced.

    Raises Stopped if it cannot be written.
    """
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if partial.is_dir():
                _remove(path)  # a folder cannot be renamed onto another one
            partial.replace(path)
        finally:
            _remove(partial)
    except OSError as error:
        raise Stopped(f"{path}: cannot be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    with beside(path) as partial:
        partial.write_text(text, "utf-8")


def write_json(path: Path, values: Mapping[str, Any], sort_keys: bool = False) -> None:
    """Indented JSON, for people and programs."""
    text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    write_text(path, text + "\n")


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder."""
    for path in folder.glob(f"{PARTIAL}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
