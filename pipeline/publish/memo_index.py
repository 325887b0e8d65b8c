"""Which memos are of which source, video, clip, list of videos and caption: their keys alone.

Taking a source down asks for all that was ever made of it. One pass over the store answers it: of
every memo only its key stays in memory, under what it is of.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.core import canonical
from pipeline.core.store import Memo, Store, blobs_in
from pipeline.publish.sweep import facts_in, memos_of, mentions


def _keys_by_origin() -> defaultdict[tuple[str, str], list[str]]:
    return defaultdict(list)


@dataclass
class MemoIndex:
    """Keys of memos by what they are of, and blobs that no memo names."""

    store: Store
    keys: defaultdict[tuple[str, str], list[str]] = field(default_factory=_keys_by_origin)
    spans: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    left_over: set[str] = field(default_factory=set)

    def memos(self, kind: str, value: Any) -> Iterator[Memo]:
        """The memos of one source or video (by its identity), clip (by its digest), list of videos
        (by its address), caption, or the shards (by "").
        """
        for key in self.keys.get((kind, _text(value)), ()):
            if (memo := self.store.memo(key)) is not None:
                yield memo

    def identities_of(self, sha256: str) -> list[Any]:
        """Identities of a video by its digest: one for each time range that was asked for."""
        return [json.loads(text) for text in sorted(self.spans.get(sha256, ()))]


def index_memos(store: Store) -> MemoIndex:
    """Read every memo once."""
    index = MemoIndex(store, left_over=set(store.blobs()))
    for memo in memos_of(store):
        for kind, value in _origins(memo):
            index.keys[kind, _text(value)].append(memo.key)
            if kind == "video":
                index.spans[value["video"]].add(_text(value))
        # a memo that is of nothing is none of this version's: its blobs are nobody's
        if memo.of is not None:
            index.left_over -= {blob.sha256 for blob in blobs_in(memo.outputs)}
    return index


def _origins(memo: Memo) -> Iterable[tuple[str, Any]]:
    yield from mentions(memo.of)
    if isinstance(memo.of, list) and memo.of[:1] == ["text"]:
        yield "caption", memo.of[-1]
    if any(facts_in(memo, "members")):
        yield "shards", ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical.encode(value).decode()
