"""Raw videos that go once there are clips of them (`--keep-raw no`), and are fetched again when
their bytes are needed.

The sources are taken as far as clips a few at a time, so that the disk never holds all raw videos;
what was made of them stays remembered. The price: another detector, fps or size fetches again (and
other bytes than before are refused), every clip is decoded once more to be sure of it, and the
downloads of one wave wait for the clips of the wave before.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.core import canonical
from pipeline.core.errors import BadData, Stopped
from pipeline.core.manifest import Manifest, lines_of
from pipeline.core.records import Blob, Clip, Record, Rejection, Scene, Source, Video
from pipeline.core.stage import Executor, Progress, Stage, run_stage
from pipeline.core.store import Store, blobs_in
from pipeline.media import fetch, reel, video
from pipeline.stages import download


@dataclass
class Raws:
    """Lets raw videos go, and measures what they take. A hard link to somebody's own file takes
    nothing and is not counted.
    """

    at_a_time: int  # sources
    peak_bytes: int = 0
    all_bytes: int = 0
    kept_for: set[str] = field(
        default_factory=set
    )  # other datasets that had some of the raw videos before: those stay
    _shared: dict[str, set[str]] = field(default_factory=dict)
    _here: dict[str, int] = field(default_factory=dict)
    _before: set[str] = field(default_factory=set)  # blobs that were there when the wave began

    def begin(self, known: Iterable[Blob], data: Path, name: str, store: Store) -> None:
        """Take stock. Raises Damaged for another dataset's manifest that cannot be read."""
        for path in data.glob("*/1-download.jsonl"):
            for blob in (
                set(blobs_in(lines_of(str(path), path.read_bytes())))
                if path.parent.name != name
                else ()
            ):
                if store.has(blob):
                    self._shared.setdefault(blob.sha256, set()).add(path.parent.name)
        self._count(known, store)
        self._before = set(store.blobs())

    def let_go(
        self,
        videos: Manifest,
        clips: Manifest,
        part: Sequence[Source],
        later: Sequence[Sequence[Source]],
        store: Store,
    ) -> None:
        """Verify the clips of a wave, then let its raw videos go, wheels that no later wave opens,
        and bytes that were refused.

        Raises Stopped for a bad clip.
        """
        waiting = {fetch.bundle_of(source.uri) for wave in later for source in wave}
        bundles = {fetch.bundle_of(source.uri) for source in part}
        wheels = {bundle: key for bundle in bundles if (key := fetch.wheel_key(bundle))}
        opened = {
            bundle: blob for bundle, key in wheels.items() for blob in blobs_in(store.recall(key))
        }
        going = {
            record.blob
            for record in videos.records
            if isinstance(record, Video) and store.has(record.blob)
        }
        refused = self._refused(videos, clips, set(opened.values()), store)
        self._count([*going, *opened.values(), *refused], store)
        made = [
            record
            for record in clips.records
            if isinstance(record, Clip) and record.scene.video.blob in going
        ]
        check(made, clips, store)
        for blob in going:
            if others := self._shared.get(blob.sha256):
                self.kept_for |= others
            else:
                store.release(blob)
                self._here.pop(blob.sha256, None)
        for bundle, blob in opened.items():
            if bundle not in waiting:
                store.path(blob.sha256).unlink(missing_ok=True)
                store.forget(wheels[bundle])
                self._here.pop(blob.sha256, None)
        for blob in refused:
            store.path(blob.sha256).unlink(missing_ok=True)
            self._here.pop(blob.sha256, None)
        self._before = set(store.blobs())

    def _refused(
        self, videos: Manifest, clips: Manifest, wheels: set[Blob], store: Store
    ) -> list[Blob]:
        """What came in with this wave and nothing names: videos that are none, or whose bytes are
        not those that were wanted.
        """
        reels = [
            store.recall(reel.memo_key(video.identity(), clips.params))
            for video in videos.records
            if isinstance(video, Video)
        ]
        made = [
            record.blob
            for record in (*videos.records, *clips.records)
            if isinstance(record, Video | Clip)
        ]
        named = {blob.sha256 for blob in (*made, *wheels, *blobs_in(reels))}
        return [
            Blob(sha256, size)
            for sha256, size in store.blobs().items()
            if sha256 not in self._before | named
        ]

    def _count(self, blobs: Iterable[Blob], store: Store) -> None:
        for blob in blobs:
            if (
                blob.sha256 not in self._here
                and store.has(blob)
                and store.path(blob.sha256).stat().st_nlink == 1
            ):
                self._here[blob.sha256] = blob.num_bytes
                self.all_bytes += blob.num_bytes
        self.peak_bytes = max(self.peak_bytes, sum(self._here.values()))


def waves(sources: Sequence[Source], at_a_time: int) -> list[list[Source]]:
    """The sources, so many addresses at a time. Those of one address, and files of one wheel, come
    one after the other.
    """
    bundles: dict[str, dict[str, list[Source]]] = {}
    for source in sources:
        bundles.setdefault(fetch.bundle_of(source.uri), {}).setdefault(source.uri, []).append(
            source
        )
    addresses = [same for bundle in bundles.values() for same in bundle.values()]
    parts = [addresses[start : start + at_a_time] for start in range(0, len(addresses), at_a_time)]
    return [[source for same in part for source in same] for part in parts]


def check(clips: Sequence[Clip], made: Manifest, store: Store) -> None:
    """Read clips back from disk and decode them. Those that are not what was written are forgotten.
    Raises Stopped with their keys.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = zip(clips, pool.map(lambda one: _trouble(one, store), clips), strict=True)
        bad = {clip: trouble for clip, trouble in found if trouble}
    for clip in bad:
        store.forget(
            canonical.digest([made.stage, made.version, made.params, clip.scene.identity()])
        )
    if bad:
        told = "; ".join(f"the clip '{clip.key}' {trouble}" for clip, trouble in bad.items())
        raise Stopped(f"{told}. The raw videos stay, and the same command makes these clips again")


def _trouble(clip: Clip, store: Store) -> str:
    path = store.path(clip.blob.sha256)
    try:
        if canonical.file_digest(path) != clip.blob.sha256:
            return "is not on disk as it was written"
        count = sum(1 for _ in video.frames(path, video.probe(path)))
    except (OSError, BadData) as error:
        return f"cannot be read back ({error})"
    return "" if count == clip.num_frames else f"has {count} frames instead of {clip.num_frames}"


def let_go(made: Manifest, store: Store) -> frozenset[Blob]:
    """The raw videos of a manifest that are no longer there, on purpose."""
    blobs = {record.blob for record in made.records if isinstance(record, Video)}
    return frozenset(blob for blob in blobs if _is_gone(blob, store))


def _is_gone(blob: Blob, store: Store) -> bool:
    return store.released(blob) and not store.has(blob)


def fetch_again(
    fetching: Stage,
    stage: Stage,
    records: Sequence[Record],
    store: Store,
    executor: Executor,
    progress: Progress,
    held: Collection[str],
) -> list[Rejection]:
    """Fetch raw videos that were let go and that `stage` needs; returns records whose video cannot
    be had again, or is another now.
    """
    waiting: dict[Blob, dict[str, Record]] = {}
    videos: dict[str, Video] = {}
    for record in records:
        needed = wanted_again(stage, record, store) if record.key not in held else None
        if needed:
            waiting.setdefault(needed.blob, {})[record.key] = record
            videos.setdefault(needed.blob.sha256, needed)
    if not waiting:
        return []
    for blob in waiting:
        store.reclaim(blob)
    try:
        told, _ = run_stage(
            fetching, [_pinned(one) for one in videos.values()], store, executor, progress
        )
    finally:
        for blob in waiting:
            if not store.has(blob):
                store.release(blob)
    why = {one.key: one for one in told.rejections}
    lost: list[Rejection] = []
    for blob, needing in waiting.items():
        if store.has(blob):
            continue
        cause = why[videos[blob.sha256].key]
        reason = (
            cause.reason if cause.fate == "unavailable" else "checksum"
        )  # what is there now is no such video
        detail = f"the raw video was let go and cannot be had again: {cause.detail}"
        for record in needing.values():
            store.note_failure(stage.task_key(record), reason, detail, 1)
            lost.append(Rejection(record.key, stage.name, "unavailable", reason, detail))
    return lost


def video_of(record: Record) -> Video | None:
    """The video a record to be cut or extracted is of."""
    return (
        record if isinstance(record, Video) else record.video if isinstance(record, Scene) else None
    )


def wanted_again(stage: Stage, record: Record, store: Store) -> Video | None:
    """The video that was let go and that the stage has to decode for this record: an extract with a
    reel has not.
    """
    needed = video_of(record) if stage.name in ("cut", "extract") else None
    if (
        needed is None
        or not _is_gone(needed.blob, store)
        or store.recall(stage.task_key(record)) is not None
    ):
        return None
    has_reel = (
        stage.name == "extract"
        and store.recall(reel.memo_key(needed.identity(), stage.params)) is not None
    )
    return None if has_reel else needed


def _pinned(wanted: Video) -> Source:
    """The source, with the bytes and the format it had."""
    source = wanted.source
    chosen = wanted.fetched_as if download.scheme(source.uri) in ("http", "https") else None
    return replace(source, sha256=wanted.blob.sha256, format=chosen)
