"""`--keep-raw no`: one raw video at a time is taken from download to verified clips, then released.

A worker takes all sources of one address, or of one wheel, through the stages up to `extract` by
itself; so the disk holds the raw videos of as many addresses as there are workers. The build then
walks the chain as always and finds everything remembered. The price: every clip is decoded once
more to be sure of it, and later changes of detector, rate or size fetch the raw videos again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from pipeline.core import canonical
from pipeline.core.errors import BadData, Stopped
from pipeline.core.executors import Inline
from pipeline.core.manifest import Manifest, read_lines
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Record, Video, source_of
from pipeline.core.stage import Batch, Executor, Progress, Stage, Troubles
from pipeline.core.store import Store, blobs_in
from pipeline.dataset.chain import Step, manifest_path, runner, stage_of, surveyor, until, walk
from pipeline.dataset.removals import Removal
from pipeline.media import fetch, video
from pipeline.media.addresses import scheme

LAST = "extract"  # the stage after which nothing reads a raw video any more
NAMES_TO_CLIPS = until(LAST)[1:]  # sources come expanded
NAME = "clips"  # what the progress bar says


@dataclass(frozen=True)
class Passage:
    """What a worker does with the sources of one address: `Work` of an executor."""

    setup: Setup
    store: Store
    kept: frozenset[str]  # digests of videos that another dataset has: those stay
    removed: Mapping[str, Removal]
    name: str = NAME

    def num_gpus(self, cluster: int | None) -> int:
        return 0

    def __call__(self, batch: Batch) -> Troubles:
        """Take each source through the stages. Raises Stopped for a clip that is not on disk as it
        was written; everything else is in the store, for the walk that follows.
        """
        by_address: dict[str, list[Record]] = {}
        for _, record in batch.tasks:
            by_address.setdefault(source_of(record).uri, []).append(record)
        for sources in by_address.values():
            self._take(sources)
        for uri in by_address:
            fetch.forget_bundle(uri, self.store)
        return ()

    def _take(self, sources: Sequence[Record]) -> None:
        """Take the sources of one address as far as clips, verify these, release the video."""
        fetching = stage_of("download", self.setup)
        visit = runner(self.store, Inline(), Progress(), fetching, tries_suspicions=True)
        first, *others = NAMES_TO_CLIPS
        [download] = walk(self.setup, visit, sources, [first], self.removed)
        videos = [record for record in download.manifest.records if isinstance(record, Video)]
        if not videos:
            return
        blob = videos[0].blob
        # Another address may give the same bytes: only one worker at a time has to do with them.
        with filelock.FileLock(self.store.root / "tmp" / f"{blob.sha256}.lock"):
            steps = [download, *walk(self.setup, visit, videos, others)]
            if self.store.has(blob):
                verify(stage_of(LAST, self.setup), steps[-1].manifest, self.store)
                self._release(blob, steps)

    def _release(self, blob: Blob, steps: Sequence[Step]) -> None:
        if blob.sha256 in self.kept:
            return
        for step in steps:
            self.store.secure(step.survey.keys.values() if step.survey else ())
        self.store.release(blob)


@dataclass
class RawVideos:
    """What raw videos take on the disk, for the summary of a build. A hard link to somebody's own
    file takes nothing and is not counted.
    """

    at_a_time: int  # addresses
    kept: Mapping[str, set[str]] = field(default_factory=dict)  # by digest: datasets that have it
    peak_bytes: int = 0
    all_bytes: int = 0
    kept_for: set[str] = field(default_factory=set)  # datasets some raw videos stay for

    def count(self, step: Step, start_ns: int, store: Store) -> None:
        """Count the raw videos of the download step that were released since the build began."""
        videos = [record for record in step.manifest.records if isinstance(record, Video)]
        sizes: dict[str, int] = {}
        for record in videos if step.manifest.stage == "download" else ():
            self.kept_for |= self.kept.get(record.blob.sha256, set())
            is_own = scheme(record.source.uri) != "file"
            if is_own and store.released_since(record.blob, start_ns):
                sizes[record.blob.sha256] = record.blob.num_bytes
        largest = sorted(sizes.values(), reverse=True)
        self.peak_bytes += sum(largest[: self.at_a_time])
        self.all_bytes += sum(largest)


def take_through(
    setup: Setup,
    sources: Sequence[Record],
    store: Store,
    executor: Executor,
    progress: Progress,
    kept: Collection[str],
    removed: Mapping[str, Removal],
) -> None:
    """Take sources, each of one video, as far as clips and release their raw videos. Raises
    Stopped for a bad clip.
    """
    fetching = stage_of("download", setup)
    look = surveyor(store)
    groups: dict[str, list[tuple[str, Record]]] = {}
    for source in sources:
        if not _is_through(list(walk(setup, look, [source], NAMES_TO_CLIPS, removed)), store):
            group = groups.setdefault(fetch.bundle_of(source_of(source).uri), [])
            group.append((fetching.task_key(source), source))
    timeout_s = fetching.timeout(0)
    batches = [Batch(tuple(group), len(group), timeout_s * len(group)) for group in groups.values()]
    work = Passage(setup, store, frozenset(kept), removed)
    num_sources = sum(len(batch.tasks) for batch in batches)
    progress.start(NAME, num_sources, num_sources)
    for batch, _ in executor.map(work, batches):
        progress.advance(NAME, len(batch.tasks), batch.cost)


def _is_through(steps: Sequence[Step], store: Store) -> bool:
    """Whether a source needs nothing more: its clips are remembered and its raw video is gone."""
    if any(step.num_pending for step in steps):
        return False
    rejections = [rejection for step in steps for rejection in step.manifest.rejections]
    if any(rejection.fate == "unavailable" for rejection in rejections):
        return False
    videos = [record for record in steps[0].manifest.records if isinstance(record, Video)]
    return not any(store.has(video.blob) for video in videos)


def videos_of_others(data: Path, name: str, store: Store) -> dict[str, set[str]]:
    """The raw videos in the store that other datasets' manifests name: digest -> datasets. Raises
    Damaged for a manifest that cannot be read.
    """
    users: dict[str, set[str]] = {}
    for folder in data.iterdir() if data.is_dir() else ():
        path = manifest_path(folder, "download")
        if folder.name == name or not path.is_file():
            continue
        _, lines = read_lines(str(path), path.read_bytes())
        for blob in {blob for _, line in lines for blob in blobs_in(line)}:
            if store.has(blob):
                users.setdefault(blob.sha256, set()).add(folder.name)
    return users


def verify(stage: Stage, clips: Manifest, store: Store) -> None:
    """Read the clips that a stage made back from disk and decode them. Those that are not what was
    written are forgotten. Raises Stopped with their keys.
    """
    problems: list[str] = []
    for clip in clips.records:
        if isinstance(clip, Clip) and (problem := _problem(clip, store)):
            store.forget(stage.task_key(clip.scene))
            problems.append(f"the clip '{clip.key}' {problem}")
    if problems:
        listed = "; ".join(problems)
        raise Stopped(
            f"{listed}. The raw videos stay, and the same command makes these clips again"
        )


def _problem(clip: Clip, store: Store) -> str:
    """What is wrong with a clip on disk; "" if nothing is."""
    path = store.path(clip.blob.sha256)
    try:
        if canonical.file_digest(path) != clip.blob.sha256:
            return "is not on disk as it was written"
        num_frames = sum(1 for _ in video.frames(path, video.probe(path)))
    except (OSError, BadData) as error:
        return f"cannot be read back ({error})"
    if num_frames != clip.num_frames:
        return f"has {num_frames} frames instead of {clip.num_frames}"
    return ""
