"""How a rebuild compares with its lock: sources, clips, arrays, shards, root; a report for programs
and a table for people.

Two machines rarely round alike, so an array that is not bit-identical is judged by the values the
lock kept of it: within tolerance means that it differs by less than storing the clip as video does
(docs/lock.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.core import canonical
from pipeline.core.errors import RETRIED
from pipeline.core.records import Clip, Record, Sample, Shard
from pipeline.core.store import Store
from pipeline.dataset import lock
from pipeline.dataset.chain import Step
from pipeline.dataset.lock import Lock, LockedMember, LockedSample
from pipeline.publish.reproduce import Edit
from pipeline.stages import shard

MEAN_TOLERANCE = (
    0.01  # of the standard deviation of the recorded values: 40 dB; storing the clip costs 34 dB
)
MAX_TOLERANCE = 0.1
NAMED = 8  # of each kind, on the screen

Grade = Literal["identical", "equivalent", "different"]
Verdict = Grade
Edited = Mapping[str, Collection[str]]  # fields, by source


def judge(
    locked: Lock, steps: Sequence[Step], edits: Sequence[Edit], store: Store
) -> dict[str, Any]:
    """The report: plain JSON. `verdict` is "identical" (to the root digest), "equivalent" or
    "different".
    """
    made = {step.manifest.stage: step.manifest for step in steps}
    records: dict[str, dict[str, Any]] = {
        stage: {record.key: record for record in one.records} for stage, one in made.items()
    }
    lost = {one.key: one for manifest in made.values() for one in manifest.rejections}
    edited: dict[str, set[str]] = {}
    for edit in edits:
        edited.setdefault(edit.source, set()).add(edit.field)
    report: dict[str, Any] = {
        "sources": _sources(locked, records["download"], lost),
        "edits": [canonical.plain(edit) for edit in edits],
        "clips": _clips(locked, records["extract"]),
        "samples": _samples(locked, records["encode"], records["shard"], edited, store),
        "shards": _shards(locked, records["shard"]),
        "rejected": [
            {"key": one.key, "stage": stage, "class": one.reason, "detail": one.detail}
            for stage, manifest in made.items()
            for one in manifest.rejections
            if stage != "download"
        ],
        "contradictions": _contradictions(locked, records),
        "root": {
            "locked": locked.root_digest,
            "found": shard.root_digest(list(records["shard"].values())),
        },
        "obtainable": _obtainable(locked, records["encode"]),
        "environment": {
            "locked": locked.header["environment"],
            "found": lock.environment(
                sorted({sample.device for sample in records["encode"].values()})
            ),
        },
    }
    return {"verdict": _verdict(report), **report}


def _sources(locked: Lock, found: Mapping[str, Record], lost: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {clip.video for clip in locked.clips.values()}
    missing = [lost[key] for key in sorted(wanted) if key not in found]
    told = [{"source": one.key, "class": one.reason, "detail": one.detail} for one in missing]
    return {
        "identical": len(wanted & found.keys()),
        "changed": [one for one in told if one["class"] == "checksum"],
        "gone": [one for one in told if one["class"] != "checksum"],
        "not_needed": len(locked.videos) - len(wanted),
    }


def _clips(locked: Lock, found: Mapping[str, Clip]) -> dict[str, Any]:
    grades: dict[str, list[str]] = {"identical": [], "same_frames": [], "different": [], "lost": []}
    for key, wanted in sorted(locked.clips.items()):
        clip = found.get(key)
        if clip is None:
            grades["lost"].append(key)
        elif clip.blob.sha256 == wanted.sha256:
            grades["identical"].append(key)
        else:
            grades["same_frames" if clip.pictures == wanted.pictures else "different"].append(key)
    return {**grades, "identical": len(grades["identical"])}


def _samples(
    locked: Lock,
    found: Mapping[str, Sample],
    shards: Mapping[str, Shard],
    edited: Edited,
    store: Store,
) -> dict[str, Any]:
    json_digests = {
        key: members[0].sha256
        for made in shards.values()
        for key, members in zip(made.samples, made.members, strict=True)
    }
    grades: dict[str, list[Any]] = {
        "identical": [],
        "equivalent": [],
        "edited": [],
        "different": [],
        "lost": [],
    }
    rescored: list[str] = []
    apart: dict[str, list[tuple[float, float]]] = {}
    psnr = []
    for key, wanted in sorted(locked.samples.items()):
        sample = found.get(key)
        if sample is None:
            grades["lost"].append(key)
            continue
        here = {
            "json": json_digests[key],
            **{name: blob.sha256 for name, blob in shard.members_of(sample)},
        }
        far: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted.members}
        graded: dict[str, Grade] = {
            name: grade(member, here.get(name), store, far[name])
            for name, member in wanted.members.items()
        }
        if graded["json"] == "different" and same_but_for_scores(sample, wanted):
            graded["json"] = "equivalent"
            rescored.append(key)
        graded |= dict.fromkeys(here.keys() - wanted.members.keys(), "different")
        worst = [name for name, one in graded.items() if one == "different"]
        words = [name for name in worst if _follows(name, edited.get(locked.clips[key].video, ()))]
        for name in far.keys() - set(
            words
        ):  # how far apart two captions are tells nothing of the machine
            apart.setdefault(name, []).extend(far[name])
        if wanted.round_trip_psnr_db is not None and sample.round_trip_psnr_db is not None:
            psnr.append((wanted.round_trip_psnr_db, sample.round_trip_psnr_db))
        if not worst:
            grades["identical" if set(graded.values()) == {"identical"} else "equivalent"].append(
                key
            )
        elif worst == words:
            grades["edited"].append({"sample": key, "members": sorted(worst)})
        else:
            grades["different"].append({"sample": key, "members": sorted(worst)})
    return {
        **grades,
        "identical": len(grades["identical"]),
        "more": sorted(found.keys() - locked.samples.keys()),
        "rescored": rescored,
        "apart": _apart(apart),
        "round_trip_psnr_db": _means(psnr),
    }


def _follows(member: str, fields: Collection[str]) -> bool:
    """Whether a member differs because the recipe says otherwise than the lock in these fields of
    its source.
    """
    return (
        "captions" in fields
        if member.startswith("text")
        else member == "json" and not {"uri", "captions", "license"}.isdisjoint(fields)
    )


def grade(
    wanted: LockedMember, found: str | None, store: Store, apart: list[tuple[float, float]]
) -> Grade:
    """One member; what is not identical adds (mean, max) of the absolute difference to `apart`."""
    if found == wanted.sha256:
        return "identical"
    if found is None or wanted.probe is None:
        return "different"
    here, there = lock.probed(lock.probe(store.path(found))), lock.probed(wanted.probe)
    if here.shape != there.shape:
        return "different"
    difference = np.abs(here - there)
    mean, most, scale = float(difference.mean()), float(difference.max()), float(there.std()) or 1.0
    apart.append((mean, most))
    return (
        "equivalent"
        if mean <= MEAN_TOLERANCE * scale and most <= MAX_TOLERANCE * scale
        else "different"
    )


def same_but_for_scores(sample: Sample, wanted: LockedSample) -> bool:
    """Whether the metadata is the lock's, once the round trip's PSNR, a measurement, is put
    aside.
    """
    metadata = shard.metadata_bytes(replace(sample, round_trip_psnr_db=wanted.round_trip_psnr_db))
    return hashlib.sha256(metadata).hexdigest() == wanted.members["json"].sha256


def _apart(apart: Mapping[str, list[tuple[float, float]]]) -> dict[str, Any]:
    return {
        name: {
            "arrays": len(pairs),
            "mean_abs": sum(mean for mean, _ in pairs) / len(pairs),
            "max_abs": max(most for _, most in pairs),
        }
        for name, pairs in sorted(apart.items())
        if pairs
    }


def _means(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """The mean round trip then and now, over the clips that were decoded back both times."""
    if not pairs:
        return None
    locked, found = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return {"clips": len(pairs), "locked": round(locked, 3), "found": round(found, 3)}


def _shards(locked: Lock, found: Mapping[str, Shard]) -> dict[str, Any]:
    same = [
        key
        for key, wanted in locked.shards.items()
        if key in found and found[key].blob.sha256 == wanted.sha256
    ]
    other = sorted(locked.shards.keys() & found.keys() - set(same))
    return {
        "identical": len(same),
        "different": other,
        "lost": sorted(locked.shards.keys() - found.keys()),
    }


def _obtainable(locked: Lock, found: Mapping[str, Sample]) -> dict[str, Any]:
    frames = sum(locked.clips[key].num_frames for key in locked.samples)
    here = sum(locked.clips[key].num_frames for key in locked.samples if key in found)
    return {
        "samples": sum(key in found for key in locked.samples),
        "of": len(locked.samples),
        "share_of_frames": here / max(1, frames),
    }


def _contradictions(locked: Lock, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the lock says otherwise than the very bytes it names: no build wrote that."""
    claims: list[tuple[str, str, str, Any, Any]] = []
    for key, made in records["download"].items():
        claims.append(
            ("video", key, "num_bytes", locked.videos[key].num_bytes, made.blob.num_bytes)
        )
    for key, made in records["extract"].items():
        claims += [
            ("clip", key, name, getattr(locked.clips[key], name), getattr(made, name))
            for name in ("num_frames", "crop")
        ]
    for key, wanted in locked.shards.items():
        made = records["shard"].get(key)
        if made is None or made.blob.sha256 != wanted.sha256:
            continue
        claims += [
            ("shard", key, name, getattr(wanted, name), getattr(made, name))
            for name in ("split", "samples")
        ]
        claims.append(("shard", key, "num_bytes", wanted.num_bytes, made.blob.num_bytes))
        scored = [
            (one, locked.samples[one], records["encode"][one])
            for one in made.samples
            if one in locked.samples
        ]
        claims += [
            ("sample", one, "round_trip_psnr_db", a.round_trip_psnr_db, b.round_trip_psnr_db)
            for one, a, b in scored
        ]
    return [
        {"kind": kind, "key": key, "field": name, "locked": str(there), "found": str(here)}
        for kind, key, name, there, here in claims
        if there != here
    ]


def _verdict(report: Mapping[str, Any]) -> Verdict:
    samples = report["samples"]
    wrong = [*samples["different"], *report["contradictions"]]
    if report["root"]["locked"] == report["root"]["found"] and not wrong:
        return "identical"
    return "different" if [*wrong, *samples["edited"], *samples["lost"]] else "equivalent"


def show(console: Console, report: Mapping[str, Any], path: Path) -> None:
    """The table, and every difference by name."""
    sources, clips, samples, shards = (
        report[level] for level in ("sources", "clips", "samples", "shards")
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "identical", "equivalent", "different", "lost"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(
        "sources",
        str(sources["identical"]),
        "",
        str(len(sources["changed"])),
        str(len(sources["gone"])),
    )
    table.add_row(
        "clips",
        str(clips["identical"]),
        str(len(clips["same_frames"])),
        str(len(clips["different"])),
        str(len(clips["lost"])),
    )
    other = len(samples["edited"]) + len(samples["different"])
    table.add_row(
        "samples",
        str(samples["identical"]),
        str(len(samples["equivalent"])),
        str(other),
        str(len(samples["lost"])),
    )
    table.add_row(
        "shards",
        str(shards["identical"]),
        "",
        str(len(shards["different"])),
        str(len(shards["lost"])),
    )
    console.print(table)
    for line in lines(report):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"the whole report: {path}", markup=False, soft_wrap=True)


def lines(report: Mapping[str, Any]) -> list[str]:
    """What the table leaves out, in words."""
    sources, samples, share = report["sources"], report["samples"], report["obtainable"]
    told = []
    if none := sources["not_needed"]:
        told.append(
            "1 source gave no clip and is not fetched"
            if none == 1
            else f"{none} sources gave no clip and are not fetched"
        )
    told += _named("changed", [f"{one['source']}: {one['detail']}" for one in sources["changed"]])
    for cause, count in Counter(one["class"] for one in sources["gone"]).items():
        of_cause = [
            f"{one['source']}: {one['detail']}" for one in sources["gone"] if one["class"] == cause
        ]
        told += _named(f"gone ({cause}, {count})", of_cause)
    if passing := sorted(RETRIED & {one["class"] for one in sources["gone"]}):
        told.append(
            f"what was {' or '.join(passing)} may come back: the same command tries it again"
        )
    told += _named("edited", [_edit(Edit(**edit)) for edit in report["edits"]])
    told += _named(
        "rejected",
        [
            f"{one['key']} ({one['stage']}, {one['class']}): {one['detail']}"
            for one in report["rejected"]
        ],
    )
    told += _named("clip with other frames", report["clips"]["different"])
    for kind in ("edited", "different"):
        told += _named(
            f"sample {kind}",
            [f"{one['sample']} ({', '.join(one['members'])})" for one in samples[kind]],
        )
    told += _named("sample the lock does not have", samples["more"])
    told += _named(
        "the lock contradicts itself", [_contradiction(one) for one in report["contradictions"]]
    )
    if count := len(samples["rescored"]):
        told.append(
            f"another PSNR of the round trip, or none, in the metadata of {count} samples that are otherwise as before"
        )
    for name, one in samples["apart"].items():
        apart = f"mean |difference| {one['mean_abs']:.2g}, largest {one['max_abs']:.2g}"
        told.append(
            f"{name}: {one['arrays']} not bit-identical; of each {lock.PROBES} values compared: {apart}"
        )
    if psnr := samples["round_trip_psnr_db"]:
        two = f"{psnr['found']:.2f} dB PSNR after decoding in the mean, {psnr['locked']:.2f} in the lock"
        told.append(f"VAE round trip: {two} ({psnr['clips']} clips)")
    if share["samples"] < share["of"]:
        told.append(
            f"obtainable: {share['samples']} of {share['of']} samples, {share['share_of_frames']:.1%} of the frames"
        )
    root = report["root"]
    if report["verdict"] == "identical":
        return [*told, f"bit-identical: root digest {root['found']}"]
    if root["locked"] == root["found"]:
        return [*told, f"not what the lock says, though the root digest is: {root['found']}"]
    apart = _versions(report["environment"])
    why = f"; the lock's machine had {apart}" if apart else ""
    word = (
        "equivalent within tolerance"
        if report["verdict"] == "equivalent"
        else "not what the lock says"
    )
    return [*told, f"{word}: root digest {root['found']}, the lock has {root['locked']}{why}"]


def _named(what: str, names: Sequence[str]) -> list[str]:
    more = [f"{what}: and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return [f"{what}: {name}" for name in names[:NAMED]] + more


def _contradiction(one: Mapping[str, str]) -> str:
    return f"{one['kind']} {one['key']}: {one['field']} is {one['locked']} in the lock; what has the digests of the lock has {one['found']}"


def _edit(edit: Edit) -> str:
    if edit.field == "missing":
        return f"{edit.source} is in the lock and not in the recipe"
    if edit.field == "added":
        return f"{edit.source} is in the recipe and not in the lock: `build` adds it"
    if edit.source.startswith("["):
        return f"{edit.source} {edit.field}: the recipe says {edit.found}, the lock {edit.locked}, which is what was used"
    return f"{edit.source}: {edit.field}: the recipe says {edit.found}, the lock {edit.locked}"


def _versions(environment: Mapping[str, Any]) -> str:
    """What the lock's machine had that this one has otherwise."""
    locked, found = environment["locked"], environment["found"]
    apart = [
        f"{name} {version}"
        for name, version in locked["versions"].items()
        if found["versions"].get(name) != version
    ]
    return ", ".join(
        [*apart, *(f"{device}" for device in locked["devices"] if device not in found["devices"])]
    )
