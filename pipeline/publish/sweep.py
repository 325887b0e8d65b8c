"""What the manifests under a data folder refer to, and `gc`: what they do not refer to goes.

Kept are the blobs that any dataset's manifests name, the reels of their videos, the null prompt's
embedding, and where clips are scored by heads the image embeddings of those that were dropped too.
Wheels and archives from the web are not: they serve fetching only. What a build remembered that was
broken off is kept too, for no manifest can name it yet. Of the memos those go that name a blob that
goes or is gone, and those (rejections, cuts and lists of videos among them) of sources and videos
that no manifest has. Memos are read one after the other, twice, and never held together.

The order on disk: manifests are there before anything goes because of them, and blobs are gone
before the first memo goes, so that a sweep broken off, by a power cut too, leaves what the next one
finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.files import sync, sync_folder
from pipeline.core.manifest import Header, read_lines
from pipeline.core.reading import checked, shown_value
from pipeline.core.store import Memo, Store, blobs_in
from pipeline.dataset.build import opened
from pipeline.dataset.chain import CHAIN, KINDS, manifest_paths
from pipeline.media import reel
from pipeline.media.scorers import head
from pipeline.stages import encode

# kinds of blobs by a fact that only they have
WHOLE = {"container": "raw videos", "pictures": "clips", "members": "shards"}
PARTS = {
    "reel": "reels",
    "mean": "latents",
    "std": "latents",
    "latents": "latents",
    "latents_std": "latents",
    "text": "text embeddings",
    "image": "image embeddings",
}
# kinds by the name of a smaller task
TASKS = {
    "wheel": "wheels",
    "archive": "archives",
    "text": "text embeddings",
    "images": "image embeddings",
    "strip": "pictures",
    "decoded": "decoded clips",
}
PAGE = (["strip"], ["decoded"])  # how the tasks begin of what only `report` and `browse` show
LEFT_OVER = "left over"  # blobs that no memo names


@dataclass
class References:
    """What manifests refer to: digests of blobs; identities, as canonical JSON, of videos and of
    sources; addresses; by a video's digest who has it, as DATASET/KEY.

    `any_reel` are videos of datasets that do not say yet which reel they want: all of theirs stay.
    """

    blobs: set[str] = field(default_factory=set)
    videos: set[bytes] = field(default_factory=set)
    sources: set[bytes] = field(default_factory=set)
    uris: set[str] = field(default_factory=set)
    users: dict[str, set[str]] = field(default_factory=dict)
    any_reel: set[bytes] = field(default_factory=set)

    def has(self, kind: str, origin: Any) -> bool:
        """Whether what a memo is of (see `mentions`) is referred to."""
        if kind == "video":
            return canonical.encode(origin) in self.videos
        if kind == "source":
            return canonical.encode(origin) in self.sources
        return origin in (self.uris if kind == "list" else self.blobs)

    def keep(self, memo: Memo) -> None:
        """Keep the blobs a memo names."""
        self.blobs |= {blob.sha256 for blob in blobs_in(memo.outputs)}

    def keep_any_reel(self, memo: Memo) -> None:
        """Keep the reel a memo tells of, if it is one of a dataset that was cut and no more."""
        if isinstance(memo.of, list) and memo.of[:1] == ["reel"]:
            videos = {canonical.encode(value) for _, value in mentions(memo.of)}
            if videos & self.any_reel:
                self.keep(memo)

    def keep_pictures(self, memo: Memo) -> None:
        """Keep what a page shows of clips, latents and videos that are referred to."""
        if not isinstance(memo.of, list) or memo.of[:1] not in PAGE:
            return
        latents = [part for part in memo.of[3:4] if memo.of[:1] == ["decoded"]]
        is_there = all(self.has(kind, origin) for kind, origin in mentions(memo.of))
        if is_there and self.blobs.issuperset(part for part in latents if isinstance(part, str)):
            self.keep(memo)


@dataclass
class Bin:
    """Deletes files, or only counts them, by kind."""

    dry: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    linked_bytes: int = 0  # of those, of files that have another name: nothing is freed by them
    folders: set[Path] = field(default_factory=set)  # of what was deleted since the last `settle`

    def drop(self, kind: str, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                facts = path.stat()
                if not self.dry:
                    path.unlink()
                    self.folders.add(path.parent)
            except FileNotFoundError:
                continue
            self.counts[kind] += 1
            self.num_bytes[kind] += facts.st_size
            self.linked_bytes += facts.st_size if facts.st_nlink > 1 else 0

    def settle(self) -> None:
        """Bring to disk that what was dropped is gone, before anything more goes, or is said."""
        for folder in sorted(self.folders):
            if folder.is_dir():
                sync_folder(folder)
        self.folders.clear()


def gc(data: Path, dry: bool) -> tuple[Bin, list[str]]:
    """Delete what no manifest refers to; returns what went, and unfinished builds whose work
    stayed. Raises Damaged before it deletes.
    """
    if not (data / "store").is_dir():
        raise RecipeError(f"there is no store in {data}")
    swept = Bin(dry)
    with opened(data) as store:
        kept = references_in(data, store)
        since, unfinished = unfinished_builds(store)
        kinds: dict[str, str] = {}
        for memo in memos_of(store):
            kept.keep_any_reel(memo)
            kept.keep_pictures(memo)
            if is_fresh(memo, since, store):
                kept.keep(memo)
            for sha256, kind in kinds_in(memo):
                if sha256 not in kept.blobs:
                    kinds[sha256] = kind
        if not dry:
            sync_manifests(data)
        for sha256 in store.blobs():
            if sha256 not in kept.blobs:
                swept.drop(kinds.get(sha256, LEFT_OVER), [store.path(sha256)])
        swept.settle()
        for memo in memos_of(store):
            if not is_fresh(memo, since, store) and not _is_needed(memo, kept, store):
                swept.drop("memos", [store.memo_path(memo.key)])
        swept.settle()
    return swept, unfinished


def sync_manifests(data: Path) -> None:
    """Bring every dataset's manifests to disk: a build that was killed may have left them in
    memory only.
    """
    for folder in data.iterdir():
        for path in manifest_paths(folder):
            sync(path)


def memos_of(store: Store) -> Iterator[Memo]:
    """Every memo that can be read, one at a time."""
    for path in store.memos():
        if (memo := store.memo(path.name)) is not None:
            yield memo


def unfinished_builds(store: Store) -> tuple[int | None, list[str]]:
    """When the first unfinished build began (nanoseconds; None: there is none), and their names."""
    notes = sorted((store.root / "unfinished").glob("*"))
    since = min((note.stat().st_mtime_ns for note in notes), default=None)
    return since, [note.name for note in notes]


def is_fresh(memo: Memo, since: int | None, store: Store) -> bool:
    """Whether a memo is of the time since a build began that has not ended."""
    return since is not None and store.memo_path(memo.key).stat().st_mtime_ns >= since


def _is_needed(memo: Memo, kept: References, store: Store) -> bool:
    """Whether a memo may be recalled by a dataset that is there."""
    for blob in blobs_in(memo.outputs):
        is_there = store.has(blob) or store.released(blob)
        if blob.sha256 not in kept.blobs or not is_there:
            return False
    if isinstance(memo.of, list) and memo.of[:1] == ["fit"]:  # of models, not of any video
        return bool(kept.blobs)
    origins = list(mentions(memo.of))
    if not origins or any(kept.has(kind, origin) for kind, origin in origins):
        return True
    # a playlist is in no manifest, its videos are
    return not kept.uris.isdisjoint(uris_in(memo))


def mentions(task: Any) -> Iterator[tuple[str, Any]]:
    """What a memo is of: ("source", an identity), ("video", an identity), ("clip", a digest), and
    of an older version's lists of videos, ("list", an address).
    """
    if isinstance(task, list):
        if task[:1] == ["listing"] and isinstance(task[-1], str):
            yield "list", task[-1]
        for part in task:
            yield from mentions(part)
    elif isinstance(task, dict):
        if isinstance(task.get("video"), str) and "span" in task:
            yield "video", task
        elif task.keys() == {"clip"} and isinstance(task["clip"], str):
            yield "clip", task["clip"]
        elif "uri" in task:
            yield "source", task


def facts_in(memo: Memo, name: str) -> Iterator[dict[str, Any]]:
    """What a stage's memo says of each output, if it has a fact of this name."""
    for facts in _facts_of_outputs(memo):
        if name in facts:
            yield facts


def _facts_of_outputs(memo: Memo) -> Iterator[dict[str, Any]]:
    """The facts of each output of a stage, or those of a smaller task. A memo says what whoever
    wrote it liked: what is no object is passed over.
    """
    for entry in memo.outputs if isinstance(memo.outputs, list) else [memo.outputs]:
        facts = entry.get("facts", entry) if isinstance(entry, dict) else None
        if isinstance(facts, dict):
            yield facts


def uris_in(memo: Memo) -> set[str]:
    """The videos that a list was found to name, an older version's too."""
    uris = [facts["uri"] for facts in facts_in(memo, "uri")]
    if isinstance(memo.outputs, dict) and isinstance(memo.outputs.get("videos"), list):
        uris += [pair[-1] for pair in memo.outputs["videos"] if isinstance(pair, list) and pair]
    return {uri for uri in uris if isinstance(uri, str)}


def references_in(data: Path, store: Store, without: str = "") -> References:
    """Read every manifest of every dataset but the one of that name. Raises Damaged."""
    folders = [path for path in sorted(data.iterdir()) if path.is_dir() and path.name != without]
    return references_of(folders, store)


def references_of(folders: Iterable[Path], store: Store) -> References:
    """Read every manifest in these datasets' folders. Raises Damaged."""
    kept = References()
    for folder in folders:
        _add_dataset(folder, store, kept)
    return kept


def _add_dataset(folder: Path, store: Store, kept: References) -> None:
    params: dict[str, Any] = {}
    videos: dict[bytes, Any] = {}
    captions = {""}
    clips: set[str] = set()
    for path in manifest_paths(folder):
        header, records = records_in(path)
        params[header.stage] = header.params
        try:
            for record in records:
                _add_record(record, folder.name, kept, videos)
                if header.stage == "encode" and (source := source_in(record)):
                    captions |= set(source["captions"])
                    captions |= set(record["clip"].get("captions") or ())
                if header.stage == "score":
                    clips.add(record["blob"]["sha256"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # of another version
            raise Damaged(
                f"{folder.name}/{path.name}: its records are not those of a '{header.stage}' "
                f"({shown_value(error)}): remove it, and build again"
            ) from error
    kept.videos |= videos.keys()
    task_keys = []
    if "extract" not in params:
        kept.any_reel |= videos.keys()
    elif "reel" in params["extract"]:
        task_keys += [reel.memo_key(identity, params["extract"]) for identity in videos.values()]
    if "encode" in params:
        task_keys += [encode.text_key(params["encode"], caption) for caption in sorted(captions)]
    task_keys += head.embedding_keys(params.get("score", {}), sorted(clips))
    for task_key in task_keys:
        if memo := store.memo(task_key):
            kept.keep(memo)


def _add_record(
    record: dict[str, Any], dataset: str, kept: References, videos: dict[bytes, Any]
) -> None:
    kept.blobs |= {blob.sha256 for blob in blobs_in(record)}
    if source := source_in(record):
        kept.sources.add(canonical.encode(source_identity(source)))
        kept.uris.add(source["uri"])
    if video := video_in(record):
        user = f"{dataset}/{video['key']}"
        kept.users.setdefault(video["blob"]["sha256"], set()).add(user)
        identity = video_identity(video)
        videos[canonical.encode(identity)] = identity


def records_in(path: Path) -> tuple[Header, list[dict[str, Any]]]:
    """A manifest's header and records as plain JSON. Raises Damaged if a line is damaged, or one is
    missing.
    """
    name = f"{path.parent.name}/{path.name}"
    header, lines = read_lines(name, path.read_bytes())
    records = [line["record"] for _, line in lines if "record" in line]
    counts = (len(records), len(lines) - len(records))
    if counts != (header.num_out, sum(header.rejected.values())):
        raise Damaged(
            f"{name}: its lines are not those its first line tells of: remove it, and build again"
        )
    for number, line in lines:
        if "record" in line:
            _check_record(header, line["record"], f"{name}: line {number}")
    return header, records


def _check_record(header: Header, record: object, place: str) -> None:
    """Raises Damaged for what is no record of its stage; of a stage as another version had it, or
    that the chain no longer has, only for what is no object.
    """
    is_of_today = header.stage in CHAIN and header.version == CHAIN[header.stage].VERSION
    checked(KINDS[header.stage] if is_of_today else dict, record, place, "record")


def _ancestor(record: dict[str, Any], mark: str, parents: Sequence[str]) -> dict[str, Any] | None:
    """The record with the field `mark` that this one is, or came from; a shard has none."""
    while mark not in record:
        parent = next((record[name] for name in parents if name in record), None)
        if parent is None:
            return None
        record = parent
    return record


def video_in(record: dict[str, Any]) -> dict[str, Any] | None:
    """The video that a record is, or came from."""
    return _ancestor(record, "container", ("clip", "scene", "video"))


def source_in(record: dict[str, Any]) -> dict[str, Any] | None:
    """The source that a record is, or came from."""
    return _ancestor(record, "uri", ("clip", "scene", "video", "source"))


def video_identity(video: dict[str, Any]) -> dict[str, Any]:
    """What `Video.identity` gives, from plain JSON."""
    source = video["source"]
    return {"video": video["blob"]["sha256"], "span": [source["start_s"], source["end_s"]]}


def source_identity(source: dict[str, Any]) -> dict[str, Any]:
    """What `Source.identity` gives, from plain JSON."""
    names = ("uri", "sha256", "format") if source.get("format") else ("uri", "sha256")
    return {name: source.get(name) for name in names}


def kinds_in(memo: Memo) -> Iterator[tuple[str, str]]:
    """Digest and kind of each blob that a memo names."""
    task = LEFT_OVER
    if isinstance(memo.of, list) and memo.of:
        task = TASKS.get(str(memo.of[0]), LEFT_OVER)
    for facts in _facts_of_outputs(memo):
        whole = next((kind for name, kind in WHOLE.items() if name in facts), None)
        parts = {"": facts} if facts.keys() == {"sha256", "num_bytes"} else facts
        for name, value in parts.items():
            for blob in blobs_in(value):
                yield blob.sha256, whole or PARTS.get(name, task)
