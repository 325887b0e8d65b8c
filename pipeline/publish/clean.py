"""`clean`: delete a dataset, and of the store what it alone refers to.

What other datasets share with it stays, and so does what unfinished builds of others have done so
far. Like `gc`, it deletes blobs before the memos that name them. Last of all goes the dataset's own
folder: while it is there, the same command finds what is left.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core import canonical
from pipeline.core.store import Memo
from pipeline.dataset.build import opened
from pipeline.publish import sweep
from pipeline.publish.sweep import Bin, Held
from pipeline.publish.takedown import mentions


def clean(name: str, data: Path) -> Bin:
    """Delete the dataset of that name; returns what went. Raises Damaged, Stopped."""
    deleted = Bin()
    folder = data / name
    if not (data / "store").is_dir():
        deleted.drop("files", _files(folder))
        shutil.rmtree(folder, ignore_errors=True)
        return deleted
    with opened(data) as store:
        (store.root / "unfinished" / name).unlink(missing_ok=True)
        memos = list(sweep.read(store))
        others = sweep.held(data, store, memos, lambda dataset: dataset != name)
        sweep.hold_unfinished(store, others)
        own = sweep.held(data, store, memos, lambda dataset: dataset == name)
        going = own.blobs - others.blobs
        kinds = sweep.kinds_of(memos)
        for sha256 in sorted(going):
            deleted.drop(kinds.get(sha256, sweep.LEFT_OVER), [store.path(sha256)])
        named = sweep.naming(memos, going)
        of_own = [memo for memo in memos if _is_of(memo, own, others)]
        deleted.drop("memos", [store.memo_path(memo.key) for memo in [*named, *of_own]])
        # Clips and shards there are second names of blobs: only what is not counted yet counts.
        deleted.drop("files", _files(folder))
        shutil.rmtree(folder, ignore_errors=True)
    return deleted


def _is_of(memo: Memo, own: Held, others: Held) -> bool:
    """Whether a memo is of a source or video that only this dataset has."""
    for kind, identity in mentions(memo.of):
        key = canonical.encode(identity)
        if kind == "source" and key in own.sources - others.sources:
            return True
        if kind == "video" and key in own.videos - others.videos:
            return True
    return False


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
