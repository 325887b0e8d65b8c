"""Why a task would run: what is otherwise than when the manifests in the dataset's folder were
written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import LongtakeError
from pipeline.core.records import Clip, Pack, Record, Sample, Shard, Source, Video, source_of
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.dataset import lock
from pipeline.dataset.build import NAMES
from pipeline.dataset.recipe import Loaded
from pipeline.plan.past import Past
from pipeline.stages import download, shard

NEVER = "never built"
LOST = "missing blob: it was made before, and the store no longer has it whole"
EDITED = "edited caption"
OTHER = "changed input"
TEXT = (
    "text",
    "text version",
    "clip",
    "text_layer",
    "pad_token",
    "precision",
)  # what encode's `text` holds, see `encode`


@dataclass(frozen=True)
class Reasons:
    """Says why a task is to be done."""

    loaded: Loaded
    past: Past
    store: Store

    def of(self, stage: Stage, record: Record, task_key: str) -> str:
        """A few words: first what the store says, then what is new, then what has changed."""
        if noted := self.store.failure(task_key):
            return f"tried again: {noted['cause']}"
        if self.store.remembers(task_key):
            return LOST
        name = "download" if stage.name == "expand" else stage.name
        if (
            isinstance(record, Source)
            and download.scheme(record.uri) == "file"
            and not download.matches(record.uri, self.loaded.folder)
        ):
            return f"no such file: {record.uri}"
        if not self.past.manifests or (
            name not in self.past.manifests and isinstance(record, Pack)
        ):
            return NEVER
        if isinstance(record, Pack):
            return self._pack(stage, record)
        if not self.past.had(source_of(record).key, in_part=stage.name == "expand"):
            return "new source"
        if name not in self.past.manifests:
            return NEVER
        return self.setting(stage) or self._input(stage, record)

    def setting(self, stage: Stage) -> str:
        """What of the stage itself is otherwise; "" if nothing is, or it has never run."""
        before, told = self.past.manifests.get(stage.name), []
        if before is None:
            return ""
        if before.version != stage.version:
            told.append(f"stage version: {before.version} -> {stage.version}")
        if changed := differences(stage.name, before.params, canonical.plain(stage.params)):
            told.append(f"changed parameter: {', '.join(changed)}")
        return "; ".join(told)

    def _input(self, stage: Stage, record: Record) -> str:
        source = source_of(record)
        video = self.past.record("download", source.key)
        if isinstance(record, Source):
            return self._address(record, video)
        here = _video_of(record)
        if isinstance(video, Video) and here is not None:
            if video.blob != here.blob:
                return f"{OTHER}: the video has other bytes"
            if (video.source.start_s, video.source.end_s) != (
                here.source.start_s,
                here.source.end_s,
            ):
                return f"{OTHER}: another part of the video"
        before = self.past.record(NAMES[NAMES.index(stage.name) - 1], record.key)
        if before is None:
            return f"{OTHER}: no such {type(record).__name__.lower()} before"
        if isinstance(record, Clip) and isinstance(before, Clip) and before.blob == record.blob:
            if source_of(before).captions != source.captions:
                return EDITED
            made = self.past.record("encode", record.key)
            identity: Any = stage.identity(record)
            if isinstance(made, Sample) and (made.round_trip_psnr_db is not None) != identity[-1]:
                return "changed parameter: [encode] psnr_share"
        return (
            LOST
            if stage.identity(before) == stage.identity(record)
            else f"{OTHER}: another {type(record).__name__.lower()}"
        )

    def _address(self, source: Source, before: Record | None) -> str:
        if not isinstance(before, Video):
            return f"{OTHER}: it gave no video before"
        if before.source.uri != source.uri:
            return f"{OTHER}: another address; the same bytes cost nothing more"
        if before.source.identity() != source.identity():
            return f"{OTHER}: other bytes are wanted"
        if download.scheme(source.uri) == "file" and self.store.has(before.blob):
            return (
                f"{OTHER}: the file was moved, copied or edited; the same bytes cost nothing more"
            )
        return LOST

    def _pack(self, stage: Stage, pack: Pack) -> str:
        if told := self.setting(stage):
            return told
        before = self.past.record("shard", pack.key)
        if not all(self.past.had(source_of(sample).key) for sample in pack.samples):
            return "new source"
        if isinstance(before, Shard) and before.samples == tuple(
            sample.key for sample in pack.samples
        ):
            return self._content(pack)
        repacked = differences(
            "shard", self._packing(), canonical.plain(self.loaded.recipe.shard.model_dump())
        )
        return (
            f"changed parameter: {', '.join(repacked)}"
            if repacked
            else f"{OTHER}: other samples in it"
        )

    def _content(self, pack: Pack) -> str:
        pairs = [(sample, self.past.record("encode", sample.key)) for sample in pack.samples]
        known = [(now, then) for now, then in pairs if isinstance(then, Sample)]
        if any(source_of(now).captions != source_of(then).captions for now, then in known):
            return EDITED
        if any(shard.members_of(now) != shard.members_of(then) for now, then in known):
            return f"{OTHER}: other latents or embeddings"
        if any(shard.metadata(now) != shard.metadata(then) for now, then in known):
            return f"{OTHER}: edited metadata (address, licence, cut)"
        return LOST

    def _packing(self) -> Mapping[str, Any]:
        """The [shard] table of the last finished build, if its lock can be read."""
        try:
            found: Mapping[str, Any] = lock.read(self.loaded.path).header["packing"]
        except (LongtakeError, OSError, KeyError):
            return canonical.plain(self.loaded.recipe.shard.model_dump())  # type: ignore[no-any-return]
        return found


def _video_of(record: Record) -> Video | None:
    while not isinstance(record, Video):
        if record.parent is None:
            return None
        record = getattr(record, record.parent)
    return record


def differences(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Parameters that differ, as "[table] name old -> new"."""
    if stage == "cut" and old.get("detector") != new.get("detector"):
        return [f"[cut] detector {_short(old.get('detector'))} -> {_short(new.get('detector'))}"]
    pairs = [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if name != "text"
    ]
    if stage == "encode":
        pairs += [
            one
            for one in zip(TEXT, *(_texts(params) for params in (old, new)), strict=True)
            if one[0] not in new and one[1:] != ()
        ]
    return [f"{_named(stage, name)} {_short(a)} -> {_short(b)}" for name, a, b in pairs if a != b]


def _texts(params: Mapping[str, Any]) -> Sequence[Any]:
    found = params.get("text")
    return found if isinstance(found, list) and len(found) == len(TEXT) else [None] * len(TEXT)


def _named(stage: str, name: str) -> str:
    if name in ("reel", "text version") or (stage, name) == ("shard", "format"):
        return {"reel": "reel version", "format": "shard format"}.get(name, name)
    return f"[{'extract' if name == 'fps' else stage}] {name}"


def _short(value: object) -> str:
    text = str(value).removesuffix("/1")
    return f"{text[:12]}..." if len(text) > 24 else text
