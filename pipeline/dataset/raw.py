"""Raw videos that were released (`--keep-raw no`): fetched again when their bytes are needed.

What was made of a released video stays remembered. Another detector, frame rate or size reads its
bytes again, and only the very bytes of before are accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pipeline.core.manifest import Manifest
from pipeline.core.records import Blob, Record, Rejection, Source, Video
from pipeline.core.stage import Executor, Progress, Stage, Survey, run_stage
from pipeline.core.store import Store
from pipeline.media.addresses import scheme


@dataclass(frozen=True)
class _Wanting(Store):
    """The store as if nothing had been let go, so that a released video counts as one to fetch. Its
    note stays until the video is there: of an address that is gone it is all that is left.
    """

    def released(self, blob: Blob) -> bool:
        return False


def released(manifest: Manifest, store: Store) -> frozenset[Blob]:
    """The raw videos of a manifest that are no longer there, on purpose."""
    blobs = {record.blob for record in manifest.records if isinstance(record, Video)}
    return frozenset(blob for blob in blobs if is_released(blob, store))


def is_released(blob: Blob, store: Store) -> bool:
    return store.released(blob) and not store.has(blob)


def needed(stage: Stage, records: Sequence[Record], store: Store) -> dict[str, Video]:
    """By record key: the released video that a task to be done has to read."""
    videos: dict[str, Video] = {}
    for record in records:
        video = stage.opens(record, store)
        if video is not None and is_released(video.blob, store):
            videos[record.key] = video
    return videos


def fetch_again(
    fetching: Stage,
    before: Survey,
    store: Store,
    executor: Executor,
    progress: Progress,
    standing: Collection[Rejection],
) -> list[Rejection]:
    """Fetch the released videos that missing tasks of a stage read, by the download stage
    `fetching`; returns the records whose video cannot be had again, or is another now.
    """
    skipped = {rejection.key for rejection in standing}
    missing = [record for record in before.missing if record.key not in skipped]
    wanting = needed(before.stage, missing, store)
    videos = {video.blob: video for video in wanting.values()}
    if not videos:
        return []
    sources = [pinned(video) for video in videos.values()]
    manifest, _ = run_stage(fetching, sources, _Wanting(store.root), executor, progress)
    for blob in videos:
        if store.has(blob):
            store.reclaim(blob)
    causes = {rejection.key: rejection for rejection in manifest.rejections}
    rejections: list[Rejection] = []
    for key, video in wanting.items():
        if store.has(video.blob):
            continue
        cause = causes[videos[video.blob].key]
        # What lies at the address now may be no video at all: it is not the one that was there.
        reason = cause.reason if cause.fate == "unavailable" else "checksum"
        detail = f"the raw video was let go and cannot be had again: {cause.detail}"
        store.note_failure(before.keys[key], reason, detail, 1)
        rejections.append(Rejection(key, before.stage.name, "unavailable", reason, detail))
    return rejections


def pinned(video: Video) -> Source:
    """The video's source, with the bytes and the format it had."""
    is_page = scheme(video.source.uri) in ("http", "https")
    return replace(
        video.source,
        sha256=video.blob.sha256,
        format=video.fetched_as if is_page else None,
    )
