"""A recipe in, a dataset in the data folder and a lock out; and a survey of what is done.

manifests/NAME.lock.jsonl                       the facts that pin a finished build, by its recipe
data/NAME/0-expand.jsonl ... 9-shard.jsonl      a manifest per stage
data/NAME/clips/KEY.mp4                         the clips, to watch
data/NAME/shards/00000.tar ... index.json       what a trainer reads
data/store/                                     everything by content, for all datasets
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import filelock

from pipeline.core.errors import LongtakeError, Stopped
from pipeline.core.executors import device_here
from pipeline.core.files import make_folder
from pipeline.core.params import Setup
from pipeline.core.records import Video
from pipeline.core.stage import Executor, Progress
from pipeline.core.store import Store
from pipeline.dataset import passage
from pipeline.dataset.chain import (
    Step,
    runner,
    stage_of,
    surveyor,
    until,
    walk,
)
from pipeline.dataset.outputs import write_outputs
from pipeline.dataset.passage import RawVideos
from pipeline.dataset.recipe import Loaded
from pipeline.dataset.relock import check_removals, write_lock
from pipeline.media import encoders
from pipeline.stages import NAMES, caption, encode, keep


@contextlib.contextmanager
def opened(data: Path) -> Iterator[Store]:
    """The store of a data folder, for one process at a time. Raises Stopped if another one is at
    work in it.
    """
    store = Store(data.absolute() / "store")
    make_folder(store.root)
    try:
        acquired = filelock.FileLock(store.root / "lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise Stopped(
            f"another build is working in {data}: wait for it, or give this one another folder "
            "(--data)"
        ) from error
    with acquired:
        store.prepare()
        yield store


@contextlib.contextmanager
def undisturbed(data: Path) -> Iterator[None]:
    """Nobody builds in the data folder meanwhile. Raises Stopped if somebody does. A folder that
    cannot be written to is read all the same: nobody can build there either.
    """
    with contextlib.ExitStack() as stack:
        if (data / "store").is_dir():
            try:
                stack.enter_context(opened(data))
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
        yield


def build(
    loaded: Loaded,
    data: Path,
    executor: Executor,
    device: str,
    last: str,
    progress: Progress,
    classes: Collection[str] | None = None,
    raws: RawVideos | None = None,
    relock: bool = False,
) -> Iterator[Step]:
    """Do what is missing up to the stage `last`, and write the outputs and the lock. Raises
    Stopped, Bug or RecipeError.

    With `classes`, of what failed before only those are tried again. With `raws`, raw videos go as
    soon as their clips are there and verified. With `relock`, a published lock is replaced.
    """
    names = until(last)
    if last == NAMES[-1] and not os.access(loaded.folder, os.W_OK):
        raise Stopped(
            f"cannot write a lock beside {loaded.path}: "
            "copy the recipe to a folder you may write to"
        )
    check_removals(loaded, data / loaded.recipe.name)
    setup = loaded.setup(device)
    here = device_here(executor, device)
    ready(setup, names, here)
    with opened(data) as store, store.unfinished(loaded.recipe.name):
        if "keep" in names:
            keep.check_picks(setup)
        if "caption" in names:
            caption.check_table(setup)
            _check_key(loaded, data, device)
        if "encode" in names:
            encode.check_models(setup, store)
        visit = runner(store, executor, progress, stage_of("download", setup), classes)
        start_ns = time.time_ns()
        if raws is not None and passage.LAST in names:
            _pass_raw_videos(loaded, data, executor, device, progress, store, raws)
            # What failed a moment ago is not tried again. A suspicion is: what a worker dies of
            # there counts only once it has died of it alone.
            fetching = stage_of("download", setup)
            visit = runner(store, executor, progress, fetching, (), tries_suspicions=True)
        steps: list[Step] = []
        walked = walk(setup, visit, loaded.sources, names, loaded.removed)
        for step in write_outputs(loaded, walked, data, store, here):
            if raws is not None:
                step = _credit(step, start_ns, store)
                raws.count(step, start_ns, store)
            if step.removed:
                _let_go(step, data, loaded.recipe.name, store)
            steps.append(step)
            yield step
        if last == NAMES[-1] and steps[-1].manifest.records:
            manifests, folder = [step.manifest for step in steps], data / loaded.recipe.name
            write_lock(loaded, manifests, folder, store, relock)


def _check_key(loaded: Loaded, data: Path, device: str) -> None:
    """Raises Stopped if a model has to be asked for captions, and the key for it is not there: now,
    not after hours of decoding.
    """
    try:
        caption.check_key(loaded.setup(device))
    except Stopped:
        for step in look(loaded, data, device):
            if step.num_pending:
                raise
            if step.manifest.stage == "caption":
                return


def _pass_raw_videos(
    loaded: Loaded,
    data: Path,
    executor: Executor,
    device: str,
    progress: Progress,
    store: Store,
    raws: RawVideos,
) -> None:
    """Take every source as far as clips, a few raw videos at a time."""
    setup = replace(loaded.setup(device), keep_raw=False)
    visit = runner(store, executor, progress, stage_of("download", setup))
    raws.kept = passage.videos_of_others(data, loaded.recipe.name, store)
    [expand] = walk(setup, visit, loaded.sources, NAMES[:1], loaded.removed)
    sources = expand.manifest.records
    passage.take_through(setup, sources, store, executor, progress, raws.kept, loaded.removed)


def _let_go(step: Step, data: Path, name: str, store: Store) -> None:
    """Release what was fetched once more though it had been taken down, unless somebody else has
    it: no build fetches it again, and none has it.
    """
    used = {record.blob for record in step.manifest.records if isinstance(record, Video)}
    kept = passage.videos_of_others(data, name, store)
    for video in step.removed:
        if video.blob not in used and video.blob.sha256 not in kept:
            store.release(video.blob)


def _credit(step: Step, start_ns: int, store: Store) -> Step:
    """A step of the walk after the raw videos passed: what was remembered since the build began was
    no work of before.
    """
    task_keys = step.survey.keys.values() if step.survey else ()
    num_fresh = sum(store.remembered_since(task_key, start_ns) for task_key in task_keys)
    num_fresh = min(num_fresh, step.num_cached)
    return replace(step, num_cached=step.num_cached - num_fresh, num_run=step.num_run + num_fresh)


def ready(setup: Setup, names: Sequence[str], device: str) -> None:
    """Stop now, not after hours of decoding, if a stage, a model or this process's device is not
    there.
    """
    for name in names:
        stage_of(name, setup)
    if "encode" in names and device not in ("auto", "cpu"):
        encoders.choose_device(device)


def look(loaded: Loaded, data: Path, device: str) -> Iterator[Step]:
    """What is done of a dataset, what failed and what is pending; nothing is run."""
    visit = surveyor(Store(data.absolute() / "store"))
    setup = loaded.setup(device, offline=True)
    yield from walk(setup, visit, loaded.sources, removed=loaded.removed)


def known(steps: Iterator[Step]) -> tuple[list[Step], str]:
    """Steps as far as they are known, and why no further: "" or a model that is not on this machine
    yet, a lock that is damaged.
    """
    result: list[Step] = []
    try:
        for step in steps:
            result.append(step)
    except LongtakeError as error:
        return result, str(error)
    return result, ""
