"""What commands report, as plain JSON: `--json` prints it, and the tables are drawn from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import printable
from pipeline.core.records import (
    Clip,
    Record,
    Rejection,
    Sample,
    Shard,
    captions_of,
    source_of,
)
from pipeline.media import archives, scorers
from pipeline.media.addresses import scheme
from pipeline.media.captions import num_long
from pipeline.stages import caption, keep, shard

if TYPE_CHECKING:  # heavy, and only their names are needed
    from pipeline.core.ledger import Failure
    from pipeline.dataset.chain import Step
    from pipeline.dataset.recipe import Loaded
    from pipeline.publish.sweep import Bin
    from pipeline.publish.verify import Checked


def dataset(loaded: Loaded, data: Path) -> dict[str, Any]:
    """Which dataset a report is about."""
    name = loaded.recipe.name
    return {"dataset": name, "recipe": str(loaded.path), "folder": str(data / name)}


def recipe(loaded: Loaded) -> dict[str, Any]:
    """What a recipe asks for."""
    tables, setup = loaded.recipe, loaded.setup("auto", offline=True)
    kinds = Counter(scheme(source.uri) for source in loaded.sources)
    alike = tables.duplicates
    return {
        "dataset": tables.name,
        "recipe": str(loaded.path),
        "sources": len(loaded.sources),
        "kinds": dict(sorted(kinds.items())),
        "detector": tables.cut.detector,
        "min_frames": tables.filter.min_frames,
        "fps": str(tables.extract.fps),
        "size": tables.extract.size,
        "scorers": [scorer.name for scorer in setup.table(scorers.Params).chosen],
        "rules": {name: rule.text for name, rule in keep.rules_of(setup).items()},
        "duplicates": None if alike is None else alike.model_dump(),
        "captions_from": caption.origin(setup),
        "preset": tables.encode.preset,
        "precision": tables.encode.precision,
        **captions(loaded, loaded.sources),
    }


def captions(loaded: Loaded, records: Iterable[Record]) -> dict[str, Any]:
    """How many different captions these clips and the sources of other records have, how many of
    these are longer than CLIP reads, and what becomes of them.
    """
    different = {
        caption
        for record in records
        for caption in (
            captions_of(record) if isinstance(record, Clip) else source_of(record).captions
        )
    }
    return {
        "captions": len(different),
        "long_captions": num_long(different),
        "long_captions_are": loaded.recipe.encode.long_captions,
    }


def absent_files(loaded: Loaded) -> list[str]:
    """Addresses of files of this machine that are not where the recipe says."""
    return [
        printable(source.uri)
        for source in loaded.sources
        if source.key not in loaded.removed and not archives.is_there(source.uri, loaded.folder)
    ]


def unmatched_captions(loaded: Loaded, steps: Sequence[Step]) -> list[str]:
    """Lines of the table of captions that name no clip, in words; none before there are clips."""
    for step in steps:
        if step.manifest.stage == "extract" and not step.num_pending:
            clips = [record for record in step.manifest.records if isinstance(record, Clip)]
            return caption.unmatched(loaded.setup("auto", offline=True), clips)
    return []


def stages(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The funnel, a row per stage. `rejected` counts by reason, `hours` are of video."""
    return [
        {
            "stage": step.manifest.stage,
            "in": step.manifest.num_in + step.num_pending,
            "out": len(step.manifest.records),
            "rejected": dict(sorted(step.manifest.reasons.items())),
            "cached": step.num_cached,
            "pending": step.num_pending,
            "bytes": step.num_bytes,
            "hours": step.hours,
        }
        for step in steps
    ]


def unavailable(steps: Sequence[Step]) -> list[dict[str, str]]:
    """What could not be had this time."""
    rejections = [rejection for step in steps for rejection in step.manifest.rejections]
    return [_rejection(rejection) for rejection in rejections if rejection.fate == "unavailable"]


def rejections(failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """Every record that was dropped. `first` and `last` are times of tries, UTC."""
    rows = [
        {
            **_rejection(failure.rejection),
            "first": failure.first,
            "last": failure.last,
            "tries": failure.tries,
        }
        for failure in failures
    ]
    return sorted(rows, key=lambda row: (row["stage"], row["key"]))


def _rejection(rejection: Rejection) -> dict[str, str]:
    return {
        "stage": rejection.stage,
        "key": rejection.key,
        "class": rejection.reason,
        "detail": rejection.detail,
    }


def psnr(steps: Sequence[Step]) -> dict[str, Any] | None:
    """The round trip through the VAE in dB PSNR, over the clips it was measured on."""
    records = [record for step in steps for record in step.manifest.records]
    measured = [record.round_trip_psnr_db for record in records if isinstance(record, Sample)]
    values = sorted(value for value in measured if value is not None)
    if not values:
        return None
    median = values[len(values) // 2]
    return {"median_db": median, "min_db": values[0], "max_db": values[-1], "clips": len(values)}


def shards(steps: Sequence[Step]) -> dict[str, Any] | None:
    """What a build packed; None if it did not come so far."""
    last = steps[-1].manifest
    if last.stage != "shard":
        return None
    packed = [record for record in last.records if isinstance(record, Shard)]
    return {
        "samples": sum(len(record.samples) for record in packed),
        "shards": len(packed),
        "root_digest": shard.root_digest(packed),
    }


def checked(checks: Checked) -> dict[str, Any]:
    """What `verify` looked at and what it found wrong."""
    return {
        "grade": checks.grade,
        "findings": [
            {"kind": finding.kind, "name": finding.name, "problem": finding.problem}
            for finding in checks.findings
        ],
        "near": list(checks.near),
        "notes": list(checks.notes),
        "manifests": checks.manifests,
        "memos": checks.memos,
        "files": checks.blobs,
        "bytes": checks.num_bytes,
        "arrays": checks.arrays,
        "decoded_db": list(checks.decoded),
        "scored_again": {"clips": checks.scored, "largest": dict(checks.score_distances)},
    }


def swept(what: Bin) -> dict[str, Any]:
    """What was deleted, or would be. `linked_bytes` are also files elsewhere: they free nothing."""
    kinds = {
        kind: {"count": count, "bytes": what.num_bytes[kind]}
        for kind, count in sorted(what.counts.items())
    }
    return {"kinds": kinds, "linked_bytes": what.linked_bytes}
