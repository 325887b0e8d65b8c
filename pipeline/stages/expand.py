"""Source -> Source*: what names many videos (a glob, a playlist, a channel) into one source each.

Local files are looked at anew each time. A list on the web is remembered by its address, so that an
edited caption does not ask for it again; `refresh` forgets it. The key of a video follows from what
it is (its path, its id), never from its place in the list; captions, licence and time range are the
source's.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.core.errors import Unavailable
from pipeline.core.params import Setup
from pipeline.core.records import Source
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import fetch
from pipeline.media.addresses import (
    key_of_file,
    keys_of_list,
    named_matches,
    path_in_recipe,
    scheme,
)

VERSION = 3
MAKES = Source


def stage(setup: Setup) -> Stage:
    return Stage(
        name="expand",
        version=VERSION,
        params={},
        makes=MAKES,
        process=partial(process, params=setup.table(fetch.Params), folder=setup.folder),
        identity=address,
        pure=needs_no_answer,
        local=True,
    )


def address(source: Source) -> object:
    return source.uri


def needs_no_answer(source: Source) -> bool:
    """Whether nobody has to be asked what the source names: only a web page may be a list."""
    return scheme(source.uri) not in ("http", "https")


def process(source: Source, store: Store, params: fetch.Params, folder: Path) -> Iterator[Source]:
    """One source per video. Raises Unavailable for a glob without a match or a list that cannot be
    read.
    """
    if scheme(source.uri) == "file" and glob.has_magic(source.uri):
        files = named_matches(source.uri, folder)
        if not files:
            raise Unavailable("not-found", f"no file matches {source.uri}")
        uris = [f"file:{path_in_recipe(path, folder)}" for path, _ in files]
        names = [key_of_file(name) for _, name in files]
    elif needs_no_answer(source):
        yield source
        return
    else:
        entries = fetch.entries(source.uri, store, params.per_host, params.attempts)
        if entries is None:
            yield source
            return
        entries = list(dict.fromkeys(entries))  # a list may name a video twice
        uris = [uri for _, uri in entries]
        names = keys_of_list(entries)
    for uri, name in zip(uris, names, strict=True):
        yield replace(source, key=f"{source.key}-{name}", uri=uri)
