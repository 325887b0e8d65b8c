"""Addresses of sources: their kind, the local files they match, and names for keys."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pipeline.core.errors import RecipeError
from pipeline.core.records import Source

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:[^\x00-\x1f\x7f-\x9f]+")
ARCHIVES = ("tar", "zip")  # schemes
UNSAFE = re.compile("[%!\x00-\x1f\x7f-\x9f\ud800-\udfff]+")  # of a member's name in an address
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}")  # a name that is a part of a key as it is
DIGITS = 12  # of a digest in a key: a million files have less than one chance in 500 to share one
LONGEST = 60  # characters of a name before its digest: the end tells files apart
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


def scheme(uri: str) -> str:
    return uri.partition(":")[0].lower()


@dataclass(frozen=True)
class Archive:
    """`tar:PLACE` or `zip:PLACE`, or a member of one, `tar:PLACE!/MEMBER`. `place` is an address:
    `file:...`, `https://...`, `s3://...`.
    """

    kind: str
    place: str
    member: str | None = None

    @property
    def uri(self) -> str:
        """The address; a local place is written without its `file:`."""
        whole = f"{self.kind}:{self.place.removeprefix('file:')}"
        if self.member is None:
            return whole
        return f"{whole}!/{UNSAFE.sub(_quoted, self.member)}"


def archive_of(uri: str) -> Archive:
    """The archive that a `tar:` or `zip:` address names. Raises ValueError for one that names
    none.
    """
    kind, _, rest = uri.partition(":")
    place, mark, member = rest.rpartition("!/")
    if not mark:
        place, member = rest, ""
    if not re.match(r"[a-z][a-z0-9+.-]+:", place, re.IGNORECASE):
        place = f"file:{place}"
    if not place.partition(":")[2].strip("/") or (mark and not member):
        raise ValueError(f"{kind}:PATH, {kind}:https://... or {kind}:PATH!/MEMBER is wanted")
    if scheme(place) in (*ARCHIVES, "pypi") or "::" in place:
        raise ValueError("an archive lies in no other archive: name the file where it is")
    name = unquote(member, errors="surrogateescape") if mark else None
    return Archive(kind, place, name)


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(match[0]))


def is_from_web(uri: str) -> bool:
    """Whether an address is asked for over a network, if it is a list or an archive."""
    place = archive_of(uri).place if scheme(uri) in ARCHIVES else uri
    return scheme(place) in ("http", "https") or (scheme(uri) in ARCHIVES and not is_local(place))


def is_local(uri: str) -> bool:
    """Whether an address is of a file of this machine."""
    return scheme(uri) == "file"


def identity(source: Source, folder: Path) -> object:
    """What a source's bytes depend on. A local file is known by its size and time stamps as well as
    by its name, so that an edited file is seen; anything else by its address.
    """
    if scheme(source.uri) in ARCHIVES:
        place = archive_of(source.uri).place
        return [source.identity(), *(stamp(path) for path in matches(place, folder))]
    if scheme(source.uri) != "file":
        return source.identity()
    files = [[path_in_recipe(path, folder), *stamp(path)] for path in matches(source.uri, folder)]
    return [source.identity(), files]


def matches(uri: str, folder: Path) -> list[Path]:
    """Files a `file:` address means, sorted; see `named_matches`."""
    return [path for path, _ in named_matches(uri, folder)]


def named_matches(uri: str, folder: Path) -> list[tuple[Path, str]]:
    """Files a `file:` address means, sorted, each with its path from the folder on that the address
    names without any star; a relative address begins at the recipe's folder.

    A name is taken as it is written. Only where no file has it, it may be a URL's (`%20`, the host
    `localhost`), begin at the home folder (`~`), or be spelt in the other Unicode form.
    """
    for pattern in local_patterns(uri):
        if paths := _files(pattern, folder, is_glob=glob.has_magic(uri)):
            depth = fixed_depth(pattern, folder)
            return [(path, "/".join(path.parts[depth:]) or path.name) for path in paths]
    return []


def fixed_depth(pattern: str, folder: Path) -> int:
    """How many parts of a matching path are the same for all: those before the first star or brace,
    or all but the last.
    """
    parts = Path(pattern).parts
    depth = 0 if os.path.isabs(pattern) else len(folder.parts)
    stars = [index for index, part in enumerate(parts) if glob.has_magic(part) or "{" in part]
    fixed = stars[0] if stars else len(parts)
    return depth + min(fixed, len(parts) - 1)


def local_patterns(uri: str) -> list[str]:
    """What the path of a `file:` address may be, the most literal reading first."""
    path = uri.partition(":")[2]
    path = path.removeprefix("//localhost") if path.startswith("//localhost/") else path
    path = path.removeprefix("//") if path.startswith("//") else path
    readings = [path, os.path.expanduser(path)] if path.startswith("~") else [path]
    return list(dict.fromkeys([*readings, *map(unquote, readings)]))


def _files(pattern: str, folder: Path, is_glob: bool) -> list[Path]:
    path = os.path.join(folder, pattern)
    # a file whose name holds brackets or stars is meant as it is
    if (exact := _in_any_form(path)) is not None:
        paths = {exact}
    elif is_glob:
        forms = {pattern, *(unicodedata.normalize(form, pattern) for form in FORMS)}
        roots = [os.path.join(glob.escape(str(folder)), form) for form in forms]
        paths = {path for root in roots for path in glob.glob(root, recursive=True)}
    else:
        return []
    return sorted(Path(path) for path in paths if os.path.isfile(path))


def _in_any_form(path: str) -> str | None:
    """The path of that name as it is on disk, where composed letters (NFC) and decomposed ones
    (NFD, as macOS writes) are two names; None if there is none.
    """
    if os.path.exists(path):
        return path
    if path.isascii() or "\0" in path:
        return None
    parent, name = os.path.split(path)
    there = _in_any_form(parent) if name and parent != path else None
    if there is None or not os.path.isdir(there):
        return None
    plain = plain_form(name)
    siblings = [sibling for sibling in os.listdir(there) if plain_form(sibling) == plain]
    return os.path.join(there, min(siblings)) if siblings else None


def plain_form(name: str) -> str:
    """A name in one of its Unicode forms, so that two spellings of it are equal."""
    return unicodedata.normalize("NFC", name)


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


def key_of_file(name: str) -> str:
    """A file of many as a part of a key: by its path alone, so that no other file changes it.

    `a.mp4` is `a`; another ending, a folder, or letters that no key has cost a short digest, with
    which two names stay two.
    """
    name = plain_form(name)
    stem, ending = os.path.splitext(name)
    return stem if ending == ".mp4" and PLAIN.fullmatch(stem) else _with_digest(stem, name)


def key_of_member(archive: str, member: str) -> str:
    """A member of an archive as a part of a key: by the archive's name and its own."""
    stem = f"{os.path.splitext(archive)[0]}/{member.partition('.')[0]}"
    return _with_digest(stem, f"{plain_form(archive)}!/{plain_form(member)}")


def keys_of_list(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Videos of a list, as (id, address), as parts of keys: by the id. Only an id that the list
    gives to two addresses needs these too.
    """
    counts = Counter(name for name, _ in entries)
    keys = []
    for name, address in entries:
        if counts[name] > 1:
            keys.append(_with_digest(name, f"{name} {address}"))
        else:
            keys.append(name if PLAIN.fullmatch(name) else _with_digest(name, name))
    return keys


def _with_digest(short: str, whole: str) -> str:
    """What of a name is fit for a key, and a digest of the whole of it."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", unicodedata.normalize("NFKD", short).strip("/"))
    digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:DIGITS]
    return f"{readable.strip('_')[-LONGEST:]}-{digest}".lstrip("-_")
