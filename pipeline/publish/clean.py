"""`clean`: delete a dataset, and of the store what it alone refers to.

What other datasets share with it stays, and so does what unfinished builds of others have done so
far. Like `gc`, it deletes blobs before the memos that name them. Last of all goes the dataset's own
folder: while it is there, the same command finds what is left. Each step is on disk before the
next one begins.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core.files import sync_folder
from pipeline.core.store import Memo, Store, blobs_in
from pipeline.dataset.build import opened
from pipeline.publish import sweep
from pipeline.publish.sweep import Bin, References


def clean(name: str, data: Path) -> Bin:
    """Delete the dataset of that name; returns what went. Raises Damaged, Stopped."""
    deleted = Bin()
    folder = data / name
    if (data / "store").is_dir():
        with opened(data) as store:
            (store.root / "unfinished" / name).unlink(missing_ok=True)
            own = sweep.references_of([folder], store)
            others = sweep.references_in(data, store, without=name)
            sweep.sync_manifests(data)
            _delete_second_names(folder)
            _delete(own, others, store, deleted)
            _delete_folder(folder, deleted)
    else:
        _delete_folder(folder, deleted)
    return deleted


def _delete_second_names(folder: Path) -> None:
    """Clips and shards in the folder are second names of blobs. Without them, what goes from the
    store is freed, and counted once.
    """
    for path in [*folder.glob("clips/*"), *folder.glob("shards/*")]:
        if path.stat().st_nlink > 1:
            path.unlink()


def _delete(own: References, others: References, store: Store, deleted: Bin) -> None:
    since, _ = sweep.unfinished_builds(store)
    kinds: dict[str, str] = {}
    for memo in sweep.memos_of(store):
        own.keep_any_reel(memo)
        others.keep_any_reel(memo)
        own.keep_pictures(memo)
        others.keep_pictures(memo)
        if sweep.is_fresh(memo, since, store):
            others.keep(memo)
        kinds.update(sweep.kinds_in(memo))
    going = own.blobs - others.blobs
    for sha256 in sorted(going):
        deleted.drop(kinds.get(sha256, sweep.LEFT_OVER), [store.path(sha256)])
    deleted.settle()
    for memo in sweep.memos_of(store):
        names_one = any(blob.sha256 in going for blob in blobs_in(memo.outputs))
        if names_one or _is_of(memo, own, others):
            deleted.drop("memos", [store.memo_path(memo.key)])
    deleted.settle()


def _is_of(memo: Memo, own: References, others: References) -> bool:
    """Whether a memo is of a source or video that only this dataset has, or lists only such."""
    for kind, identity in sweep.mentions(memo.of):
        if kind != "clip" and own.has(kind, identity) and not others.has(kind, identity):
            return True
    uris = sweep.uris_in(memo)
    return bool(uris & own.uris) and not uris & others.uris


def _delete_folder(folder: Path, deleted: Bin) -> None:
    deleted.drop("files", [path for path in folder.rglob("*") if path.is_file()])
    deleted.folders.clear()  # they go as well
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir():
        sync_folder(folder.parent)
