"""Addresses of sources: their kind, the local files they match, and names for keys."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import RecipeError
from pipeline.core.records import Source


def scheme(uri: str) -> str:
    return uri.partition(":")[0].lower()


def identity(source: Source, folder: Path) -> object:
    """What a source's bytes depend on. A local file is known by its size and time stamps as well as
    by its name, so that an edited file is seen; anything else by its address.
    """
    if scheme(source.uri) != "file":
        return source.identity()
    files = [[path_in_recipe(path, folder), *stamp(path)] for path in matches(source.uri, folder)]
    return [source.identity(), files]


def matches(uri: str, folder: Path) -> list[Path]:
    """Files a `file:` address means, sorted; a relative one begins at the recipe's folder."""
    pattern = re.sub(r"^file:(//)?", "", uri)
    path = os.path.join(folder, pattern)
    # a file whose name holds brackets or stars is meant as it is
    if os.path.exists(path) or not glob.has_magic(pattern):
        paths = [path]
    else:
        paths = glob.glob(os.path.join(glob.escape(str(folder)), pattern), recursive=True)
    return sorted(Path(path) for path in paths if os.path.isfile(path))


def path_in_recipe(path: Path, folder: Path) -> str:
    """The path as a recipe would write it: relative to the recipe where that is possible. Raises
    RecipeError if it is not UTF-8.
    """
    name = os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"the file {name!a}: its name is not UTF-8, as every address is; rename it"
        ) from error
    return name


def stamp(path: Path) -> list[Any]:
    """What changes when a file is edited."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns, status.st_ino]


def unique(names: Sequence[str]) -> list[str]:
    """Names fit for keys: letters, digits, - and _; what is no longer unique then gets a digest."""
    short = [re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80] for name in names]
    counts = Counter(short)
    keys: list[str] = []
    for index, name in enumerate(names):
        key = short[index]
        if counts[key] > 1:
            key += "-" + hashlib.sha256(f"{index}/{name}".encode()).hexdigest()[:8]
        keys.append(key)
    return keys
