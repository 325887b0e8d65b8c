"""What the manifests under a data folder refer to, and `gc`: what they do not refer to goes.

Held are the blobs that any dataset's manifests name, the reels of their videos and the null
prompt's embedding. Wheels are not: they serve fetching only. What a build remembered that was
broken off is held too, for no manifest can name it yet. Every deletion is of blobs first and then
of memos, so that one broken off leaves what the next one finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.manifest import lines_of
from pipeline.core.store import Memo, Store, blobs_in
from pipeline.dataset.build import opened
from pipeline.dataset.chain import manifest_paths
from pipeline.media import reel
from pipeline.stages import encode

WHOLE = {
    "container": "raw videos",
    "pictures": "clips",
    "members": "shards",
}  # kinds by a fact that only they have
PARTS = {
    "reel": "reels",
    "mean": "latents",
    "std": "latents",
    "latents": "latents",
    "latents_std": "latents",
    "text": "text embeddings",
    "image": "image embeddings",
}
TASKS = {
    "wheel": "wheels",
    "text": "text embeddings",
    "images": "image embeddings",
}  # kinds by the name of a smaller task
LEFT_OVER = "left over"  # blobs that no memo names


@dataclass
class Held:
    """What manifests refer to: digests of blobs; identities, as canonical JSON, of videos and of
    sources; who has a video.
    """

    blobs: set[str] = field(default_factory=set)
    videos: set[bytes] = field(default_factory=set)
    sources: set[bytes] = field(default_factory=set)
    users: dict[str, set[str]] = field(default_factory=dict)  # by digest: DATASET/KEY


@dataclass
class Bin:
    """Deletes files, or only counts them, by kind."""

    dry: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    linked_bytes: int = (
        0  # of those, bytes that are also a file elsewhere: nothing is freed by them
    )

    def drop(self, kind: str, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                facts = path.stat()
                if not self.dry:
                    path.unlink()
            except FileNotFoundError:
                continue
            self.counts[kind] += 1
            self.num_bytes[kind] += facts.st_size
            self.linked_bytes += facts.st_size if facts.st_nlink > 1 else 0


def gc(data: Path, dry: bool) -> tuple[Bin, list[str]]:
    """Delete what no manifest refers to; returns what went, and unfinished builds whose work
    stayed. Raises Damaged before it deletes.
    """
    if not (data / "store").is_dir():
        raise RecipeError(f"there is no store in {data}")
    with opened(data) as store:
        memos = list(read(store))
        kept = held(data, store, memos)
        unfinished = hold_unfinished(store, kept)
        kinds = kinds_of(memos)
        going = [sha256 for sha256 in store.blobs() if sha256 not in kept.blobs]
        swept = Bin(dry)
        for sha256 in going:
            swept.drop(kinds.get(sha256, LEFT_OVER), [store.path(sha256)])
        swept.drop("memos", [store.memo_path(memo.key) for memo in naming(memos, set(going))])
    return swept, unfinished


def read(store: Store) -> Iterator[Memo]:
    """Every memo that can be read."""
    for path in store.memos():
        if (memo := store.memo(path.name)) is not None:
            yield memo


def naming(memos: Iterable[Memo], blobs: set[str]) -> list[Memo]:
    """The memos that name one of these blobs."""
    return [memo for memo in memos if any(blob.sha256 in blobs for blob in blobs_in(memo.outputs))]


def held(
    data: Path,
    store: Store,
    memos: Iterable[Memo],
    chosen: Callable[[str], bool] = lambda dataset: True,
) -> Held:
    """Read every manifest of every dataset, or of those that are chosen by name. Raises Damaged."""
    kept = Held()
    any_reel: set[bytes] = set()  # videos of datasets that do not say yet which reel they want
    for folder in sorted(path for path in data.iterdir() if path.is_dir() and chosen(path.name)):
        params: dict[str, Any] = {}
        videos: dict[bytes, Any] = {}
        for path in manifest_paths(folder):
            header, records = records_in(path)
            params[header["stage"]] = header["params"]
            for record in records:
                kept.blobs |= {blob.sha256 for blob in blobs_in(record)}
                if video := video_in(record):
                    kept.users.setdefault(video["blob"]["sha256"], set()).add(
                        f"{folder.name}/{video['key']}"
                    )
                    kept.sources.add(canonical.encode(source_identity(video["source"])))
                    videos[canonical.encode(video_identity(video))] = video_identity(video)
        kept.videos |= videos.keys()
        if "extract" not in params:
            any_reel |= videos.keys()
        elif "reel" in params["extract"]:
            _hold_memos(
                kept,
                store,
                [reel.memo_key(identity, params["extract"]) for identity in videos.values()],
            )
        if "encode" in params:
            _hold_memos(kept, store, [encode.null_text_key(params["encode"])])
    for memo in memos:
        if (
            isinstance(memo.of, list)
            and memo.of[:1] == ["reel"]
            and canonical.encode(memo.of[2]) in any_reel
        ):
            kept.blobs |= {blob.sha256 for blob in blobs_in(memo.outputs)}
    return kept


def _hold_memos(kept: Held, store: Store, keys: Iterable[str]) -> None:
    for key in keys:
        if (memo := store.memo(key)) is not None:
            kept.blobs |= {blob.sha256 for blob in blobs_in(memo.outputs)}


def hold_unfinished(store: Store, kept: Held) -> list[str]:
    """Hold what was remembered since the first unfinished build began; returns the names of those
    builds.
    """
    notes = sorted((store.root / "unfinished").glob("*"))
    since = min((note.stat().st_mtime_ns for note in notes), default=None)
    if since is not None:
        _hold_memos(
            kept, store, [path.name for path in store.memos() if path.stat().st_mtime_ns >= since]
        )
    return [note.name for note in notes]


def records_in(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A manifest's header and records as plain JSON. Raises Damaged if a line is damaged, or one is
    missing.
    """
    name = f"{path.parent.name}/{path.name}"
    header, *lines = lines_of(name, path.read_bytes())
    records = [line["record"] for line in lines if "record" in line]
    wanted = (header.get("out"), sum(header.get("rejected", {}).values()))
    if (
        wanted != (len(records), len(lines) - len(records))
        or not {"stage", "params"} <= header.keys()
    ):
        raise Damaged(
            f"{name}: its lines are not those its first line tells of: remove it, and build again"
        )
    return header, records


def video_in(record: dict[str, Any]) -> dict[str, Any] | None:
    """The video that a record is, or came from; a shard has none."""
    while "container" not in record:
        inner = next((record[name] for name in ("clip", "scene", "video") if name in record), None)
        if inner is None:
            return None
        record = inner
    return record


def video_identity(video: dict[str, Any]) -> dict[str, Any]:
    """What `Video.identity` gives, from plain JSON."""
    return {
        "video": video["blob"]["sha256"],
        "span": [video["source"]["start_s"], video["source"]["end_s"]],
    }


def source_identity(source: dict[str, Any]) -> dict[str, Any]:
    """What `Source.identity` gives, from plain JSON."""
    names = ("uri", "sha256", "format") if source.get("format") else ("uri", "sha256")
    return {name: source.get(name) for name in names}


def kinds_of(memos: Iterable[Memo]) -> dict[str, str]:
    """What each blob is, by digest, as the memos know it."""
    return {sha256: kind for memo in memos for sha256, kind in _kinds_in(memo)}


def _kinds_in(memo: Memo) -> Iterator[tuple[str, str]]:
    task = (
        TASKS.get(str(memo.of[0]), LEFT_OVER)
        if isinstance(memo.of, list) and memo.of
        else LEFT_OVER
    )
    for entry in memo.outputs if isinstance(memo.outputs, list) else [memo.outputs]:
        facts = entry.get("facts", entry) if isinstance(entry, dict) else {}
        kind = next((kind for name, kind in WHOLE.items() if name in facts), None)
        named = {"": facts} if facts.keys() == {"sha256", "num_bytes"} else facts
        for name, value in named.items():
            yield from ((blob.sha256, kind or PARTS.get(name, task)) for blob in blobs_in(value))
