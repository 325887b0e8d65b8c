"""Source -> Source*: what names many videos (a glob, an archive, a playlist) into one source each.

Local files are looked at anew each time, a local archive when it has changed. A list on the web is
remembered by its address, so that an edited caption does not ask for it again; `refresh` forgets
it. The key of a video follows from what it is (its path, its id), never from its place in the list;
captions, licence and time range are the source's, or stand beside the video in an archive.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.columns import Columns, captions_of, names_in, text_in
from pipeline.core.errors import BadData, Unavailable
from pipeline.core.params import Setup
from pipeline.core.reading import shown_value
from pipeline.core.records import Source
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import archives, fetch
from pipeline.media.addresses import (
    ARCHIVES,
    Archive,
    archive_of,
    is_local,
    key_of_file,
    key_of_member,
    keys_of_list,
    matches,
    named_matches,
    path_in_recipe,
    scheme,
    stamp,
)

VERSION = 4
MAX_FIELDS_SHOWN = 12
MAKES = Source


def stage(setup: Setup) -> Stage:
    columns = setup.find(Columns) or Columns()
    return Stage(
        name="expand",
        version=VERSION,
        params={},
        makes=MAKES,
        process=partial(
            process,
            params=setup.table(fetch.Params),
            folder=setup.folder,
            columns=columns,
            keep_raw=setup.keep_raw,
        ),
        identity=partial(identity, folder=setup.folder, columns=columns),
        pure=needs_no_answer,
        local=True,
    )


def identity(source: Source, folder: Path, columns: Columns) -> object:
    """The address; of an archive also its file, and what is taken from beside its videos."""
    if scheme(source.uri) not in ARCHIVES:
        return source.uri
    archive = archive_of(source.uri)
    stamps: list[object] = []
    if is_local(archive.place) and archive.member is None:
        with contextlib.suppress(Unavailable):
            named = archives.places(source.uri, folder)
            stamps = [stamp(path) for place, _ in named for path in matches(place, folder)]
    fields = [columns.caption, columns.license, source.captions, source.license]
    return [source.uri, stamps, fields]


def needs_no_answer(source: Source) -> bool:
    """Whether nobody has to be asked what the source names, and nothing to be read: only a web page
    may be a list, and an archive holds one.
    """
    if scheme(source.uri) in ARCHIVES:
        return archive_of(source.uri).member is not None
    return scheme(source.uri) not in ("http", "https")


def process(
    source: Source,
    store: Store,
    params: fetch.Params,
    folder: Path,
    columns: Columns,
    keep_raw: bool = True,
) -> Iterator[Source | BadData]:
    """One source per video. Raises Unavailable for a glob without a match, a list that cannot be
    read, an archive that cannot be had.
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
    elif scheme(source.uri) in ARCHIVES:
        fields = Fields(columns)
        for place, name in archives.places(source.uri, folder):
            yield from _in_archive(source, place, name, store, params, folder, fields)
            # it is fetched again when its videos are: the disk holds one at a time
            if not keep_raw:
                fetch.forget_bundle(f"{scheme(source.uri)}:{place}", store)
        yield from fields.missing(source.uri)
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


def _in_archive(
    source: Source,
    place: str,
    name: str,
    store: Store,
    params: fetch.Params,
    folder: Path,
    fields: Fields,
) -> Iterator[Source | BadData]:
    """The videos of one archive, with the captions and the licence that stand beside them."""
    archive = Archive(scheme(source.uri), place)
    path = archives.path_of(archive, store, folder, params.per_host, params.attempts)
    num_videos = 0
    try:
        for sample in archives.samples(path, archive.kind):
            if isinstance(sample, BadData):
                yield BadData(sample.reason, f"{archive.uri}: {sample.detail}")
                continue
            num_videos += 1
            key = f"{source.key}-{key_of_member(name, sample.member)}"
            uri = replace(archive, member=sample.member).uri
            try:
                yield replace(source, key=key, uri=uri, **fields.beside(sample, source))
            except ValueError as error:
                yield BadData("unreadable", f"{uri}: {error}")
    except BadData as error:
        yield BadData(error.reason, f"{archive.uri}: {error.detail}")
        return
    if not num_videos:
        yield BadData("no-video-stream", f"{archive.uri} holds no video")


class Fields:
    """Captions and licences that stand beside the videos of archives, by [columns]."""

    def __init__(self, columns: Columns) -> None:
        self._columns = {"caption": columns.caption, "license": columns.license}
        self._absent = {name for name, column in self._columns.items() if column is not None}
        self._others: set[str] = set()
        self._num_samples = 0

    def beside(self, sample: archives.Sample, source: Source) -> dict[str, Any]:
        """Captions and licence of a sample, where [columns] names fields that it has; else those of
        the source. Raises ValueError for a file beside it that is needed and cannot be read.
        """
        captions, license_ = source.captions, source.license
        if self._has("caption", sample):
            own, _ = captions_of(sample.fields, self._columns["caption"])
            captions = tuple(caption for caption in own if caption) or captions
        if self._has("license", sample):
            license_ = text_in(sample.fields, self._columns["license"]) or license_
        self._num_samples += 1
        if self._absent and len(self._others) < MAX_FIELDS_SHOWN:
            self._others |= sample.fields.keys()
        return {"captions": captions, "license": license_}

    def _has(self, name: str, sample: archives.Sample) -> bool:
        column = self._columns[name]
        if column is None:
            return False
        for field in names_in(column):
            in_json = [] if field in sample.fields else filter(archives.is_json, sample.problems)
            for ending in (field, *in_json):
                if ending in sample.problems:
                    raise ValueError(
                        f"[columns] {name} = {shown_value(column)}: {sample.problems[ending]}"
                    )
        is_there = set(names_in(column)) <= sample.fields.keys()
        if is_there:
            self._absent.discard(name)
        return is_there

    def missing(self, uri: str) -> Iterator[BadData]:
        """What [columns] names and no sample has."""
        if not self._num_samples:
            return
        fields = ", ".join(map(shown_value, sorted(self._others)[:MAX_FIELDS_SHOWN])) or "no fields"
        for name in sorted(self._absent):
            yield BadData(
                "missing-field",
                f"{uri}: no sample has what [columns] {name} = {shown_value(self._columns[name])} "
                f"names; beside its videos stand {fields}",
            )
