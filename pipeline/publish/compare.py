"""How a rebuild compares with its lock: sources, clips, arrays, shards, root digest.

`judge` gives the report for programs, plain JSON; `show` and `lines` say it to people. What counts
as within tolerance stands in dataset/likeness.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import RETRIED
from pipeline.core.records import Clip, Record, Rejection, Sample, Shard
from pipeline.core.store import Store
from pipeline.dataset import lock
from pipeline.dataset.chain import Step
from pipeline.dataset.likeness import Distance, Grade, are_near, grade_members, score_distances
from pipeline.dataset.lock import Lock, LockedClip, LockedSample
from pipeline.dataset.probe import PROBES, probe_of
from pipeline.publish.reproduce import Edit
from pipeline.stages import shard as shard_stage

NAMED = 8  # of each kind, on the screen
TOLD_IN_METADATA = {"uri", "captions", "license"}  # fields of a source that are in KEY.json
# of each level the parts of the report that the table counts as near, far and lost
LEVELS: Mapping[str, tuple[str, Sequence[str], str]] = {
    "sources": ("", ["changed"], "gone"),
    "clips": ("same_frames", ["different"], "lost"),
    "samples": ("equivalent", ["edited", "different"], "lost"),
    "shards": ("", ["different"], "lost"),
}
FETCHING = ("expand", "download")  # stages whose rejections are told with the sources


def judge(
    locked: Lock, steps: Sequence[Step], edits: Sequence[Edit], store: Store
) -> dict[str, Any]:
    """The report: plain JSON. `verdict` is "identical" (to the root digest), "equivalent" or
    "different".
    """
    records: dict[str, dict[str, Any]] = {}
    rejections: list[Rejection] = []
    for step in steps:
        records[step.manifest.stage] = {record.key: record for record in step.manifest.records}
        rejections += step.manifest.rejections
    samples, shards = records["encode"], records["shard"]
    devices = sorted({sample.device for sample in samples.values()})
    root_digest = shard_stage.root_digest(list(shards.values()))
    report: dict[str, Any] = {
        "sources": _sources(locked, records["download"], rejections),
        "edits": [
            {
                "source": edit.source,
                "field": edit.field,
                "locked": edit.locked,
                "found": edit.recipe,
            }
            for edit in edits
        ],
        "clips": _clips(locked, records["extract"]),
        "samples": _samples(locked, samples, shards, edits, store),
        "shards": _shards(locked, shards),
        "rejected": [
            {
                "key": rejection.key,
                "stage": rejection.stage,
                "class": rejection.reason,
                "detail": rejection.detail,
            }
            for rejection in rejections
            if rejection.stage not in FETCHING
        ],
        "contradictions": _contradictions(locked, records),
        "root": {"locked": locked.root_digest, "found": root_digest},
        "obtainable": _obtainable(locked, samples),
        "environment": {
            "locked": locked.header["environment"],
            "found": lock.environment(devices),
        },
    }
    return {"verdict": _verdict(report), **report}


def _sources(
    locked: Lock, videos: Mapping[str, Record], rejections: Sequence[Rejection]
) -> dict[str, Any]:
    needed = {clip.video for clip in locked.clips.values()}
    by_key = {rejection.key: rejection for rejection in rejections}
    absent = [by_key[key] for key in sorted(needed - videos.keys())]
    lines = [
        {"source": rejection.key, "class": rejection.reason, "detail": rejection.detail}
        for rejection in absent
    ]
    return {
        "identical": len(needed & videos.keys()),
        "changed": [line for line in lines if line["class"] == "checksum"],
        "gone": [line for line in lines if line["class"] != "checksum"],
        "not_needed": len(locked.videos) - len(needed),
    }


def _clips(locked: Lock, clips: Mapping[str, Clip]) -> dict[str, Any]:
    grades: dict[str, list[str]] = {"identical": [], "same_frames": [], "different": [], "lost": []}
    for key, recorded in sorted(locked.clips.items()):
        clip = clips.get(key)
        if clip is None:
            grades["lost"].append(key)
        elif clip.blob.sha256 == recorded.sha256:
            grades["identical"].append(key)
        elif clip.pictures == recorded.pictures:
            grades["same_frames"].append(key)
        else:
            grades["different"].append(key)
    return {**grades, "identical": len(grades["identical"])}


def _samples(
    locked: Lock,
    samples: Mapping[str, Sample],
    shards: Mapping[str, Shard],
    edits: Sequence[Edit],
    store: Store,
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "identical": 0,
        "equivalent": [],
        "edited": [],
        "different": [],
        "lost": [],
        "more": sorted(samples.keys() - locked.samples.keys()),
        "rescored": [],
    }
    edited: dict[str, set[str]] = defaultdict(set)  # fields by source
    for edit in edits:
        edited[edit.source].add(edit.field)
    json_digests = lock.json_digests_of(shards.values())
    distances: dict[str, list[Distance]] = defaultdict(list)  # by member
    scores: list[tuple[float, float]] = []  # PSNR as recorded and as rebuilt, dB
    for key, recorded in sorted(locked.samples.items()):
        sample = samples.get(key)
        if sample is None:
            report["lost"].append(key)
            continue
        digests = {name: blob.sha256 for name, blob in shard_stage.members_of(sample)}
        digests["json"] = json_digests[key]
        grades, apart = grade_members(recorded.members, digests, probes_in(store, digests))
        clip = locked.clips[key]
        if grades["json"] == "different" and same_but_for_scores(sample, recorded, clip):
            grades["json"] = "equivalent"
            report["rescored"].append(key)
        different = {name for name, grade in grades.items() if grade == "different"}
        fields = edited[clip.video]
        by_edits = {name for name in different if _follows(name, fields)}
        # how far apart two captions are tells nothing of the machine
        for name in apart.keys() - by_edits:
            distances[name].append(apart[name])
        if recorded.round_trip_psnr_db is not None and sample.round_trip_psnr_db is not None:
            scores.append((recorded.round_trip_psnr_db, sample.round_trip_psnr_db))
        line = {"sample": key, "members": sorted(different)}
        if different - by_edits:
            report["different"].append(line)
        elif different:
            report["edited"].append(line)
        elif "equivalent" in grades.values():
            report["equivalent"].append(key)
        else:
            report["identical"] += 1
    report["apart"] = {name: _apart(distances[name]) for name in sorted(distances)}
    report["round_trip_psnr_db"] = _means(scores)
    report["scores"] = _scores(locked, samples)
    return report


def _scores(locked: Lock, samples: Mapping[str, Sample]) -> dict[str, Any] | None:
    """How far scores are from the lock's: of how many clips all are the same, and by score the
    largest distance as a share of what is allowed. None where nothing was measured.
    """
    pairs = [
        (locked.clips[key].scores, samples[key].clip.scores)
        for key in sorted(locked.samples.keys() & samples.keys())
    ]
    if not any(before or now for before, now in pairs):
        return None
    largest: dict[str, float] = {}
    for before, now in pairs:
        for name, distance in (score_distances(before, now) or {}).items():
            if distance:
                largest[name] = max(distance, largest.get(name, 0.0))
    return {
        "clips": len(pairs),
        "identical": sum(before == now for before, now in pairs),
        "near": sum(before != now and are_near(before, now) for before, now in pairs),
        "largest": {name: round(share, 4) for name, share in sorted(largest.items())},
    }


def _follows(member: str, fields: Collection[str]) -> bool:
    """Whether a member differs because the recipe says otherwise than the lock in these fields of
    its source.
    """
    if member.startswith("text"):
        return "captions" in fields
    return member == "json" and not TOLD_IN_METADATA.isdisjoint(fields)


def probes_in(store: Store, digests: Mapping[str, str]) -> Callable[[str], str | None]:
    """What gives the kept values of an array by its name; None where it is missing or damaged."""

    def probe(name: str) -> str | None:
        try:
            return probe_of(store.path(digests[name]))
        except (OSError, ValueError):
            return None

    return probe


def same_but_for_scores(sample: Sample, recorded: LockedSample, clip: LockedClip) -> bool:
    """Whether the metadata is the lock's, once what was measured is put aside: the round trip's
    PSNR, and scores that are within tolerance.
    """
    if not are_near(clip.scores, sample.clip.scores):
        return False
    as_scored = replace(
        sample,
        round_trip_psnr_db=recorded.round_trip_psnr_db,
        clip=replace(sample.clip, scores=clip.scores),
    )
    metadata = shard_stage.metadata_bytes(as_scored)
    return hashlib.sha256(metadata).hexdigest() == recorded.members["json"].sha256


def _apart(distances: Sequence[Distance]) -> dict[str, Any]:
    means = [distance.mean for distance in distances]
    return {
        "arrays": len(means),
        "mean_abs": sum(means) / len(means),
        "max_abs": max(distance.largest for distance in distances),
    }


def _means(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """The mean round trip then and now, over the clips that were decoded back both times."""
    if not pairs:
        return None
    recorded = sum(before for before, _ in pairs) / len(pairs)
    rebuilt = sum(now for _, now in pairs) / len(pairs)
    return {"clips": len(pairs), "locked": round(recorded, 3), "found": round(rebuilt, 3)}


def _shards(locked: Lock, shards: Mapping[str, Shard]) -> dict[str, Any]:
    common = locked.shards.keys() & shards.keys()
    identical = {key for key in common if shards[key].blob.sha256 == locked.shards[key].sha256}
    return {
        "identical": len(identical),
        "different": sorted(common - identical),
        "lost": sorted(locked.shards.keys() - shards.keys()),
    }


def _obtainable(locked: Lock, samples: Mapping[str, Sample]) -> dict[str, Any]:
    obtained = [key for key in locked.samples if key in samples]
    num_frames = sum(locked.clips[key].num_frames for key in locked.samples)
    num_obtained = sum(locked.clips[key].num_frames for key in obtained)
    return {
        "samples": len(obtained),
        "of": len(locked.samples),
        "share_of_frames": num_obtained / max(1, num_frames),
    }


def _contradictions(locked: Lock, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the lock says otherwise than the very bytes it names: no build wrote that."""
    lines = []

    def check(kind: str, recorded: Any, fields: Mapping[str, object]) -> None:
        for name, value in fields.items():
            claim = getattr(recorded, name)
            if claim != value:
                line = {"kind": kind, "key": recorded.key, "field": name}
                lines.append({**line, "locked": str(claim), "found": str(value)})

    for key, video in records["download"].items():
        check("video", locked.videos[key], {"num_bytes": video.blob.num_bytes})
    for key, clip in records["extract"].items():
        check("clip", locked.clips[key], {"num_frames": clip.num_frames, "crop": clip.crop})
    for key, shard in records["shard"].items():
        recorded = locked.shards.get(key)
        if recorded is None or recorded.sha256 != shard.blob.sha256:
            continue
        check("shard", recorded, {"split": shard.split, "samples": shard.samples})
        check("shard", recorded, {"num_bytes": shard.blob.num_bytes})
        for name in shard.samples:
            if name in locked.samples:
                psnr = records["encode"][name].round_trip_psnr_db
                check("sample", locked.samples[name], {"round_trip_psnr_db": psnr})
    return lines


def _verdict(report: Mapping[str, Any]) -> Grade:
    samples = report["samples"]
    wrong = [*samples["different"], *report["contradictions"]]
    if report["root"]["locked"] == report["root"]["found"] and not wrong:
        return "identical"
    return "different" if [*wrong, *samples["edited"], *samples["lost"]] else "equivalent"


def show(console: Console, report: Mapping[str, Any], path: Path) -> None:
    """The table, and every difference by name."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "identical", "equivalent", "different", "lost"):
        table.add_column(name, justify="left" if not name else "right")
    for level, (near, far, lost) in LEVELS.items():
        part = report[level]
        num_near = len(part[near]) if near else ""
        num_far = sum(len(part[name]) for name in far)
        table.add_row(level, *map(str, (part["identical"], num_near, num_far, len(part[lost]))))
    console.print(table)
    for line in [*lines(report), f"the whole report: {path}"]:
        console.print(line, markup=False, soft_wrap=True)


def lines(report: Mapping[str, Any]) -> list[str]:
    """What the table leaves out, in words."""
    rejections = [
        f"{line['key']} ({line['stage']}, {line['class']}): {line['detail']}"
        for line in report["rejected"]
    ]
    contradictions = [
        f"{line['kind']} {line['key']}: {line['field']} is {line['locked']} in the lock; what has "
        f"the digests of the lock has {line['found']}"
        for line in report["contradictions"]
    ]
    return [
        *_lines_of_sources(report["sources"]),
        *_up_to_eight("edited", [_edit(line) for line in report["edits"]]),
        *_up_to_eight("rejected", rejections),
        *_up_to_eight("clip with other frames", report["clips"]["different"]),
        *_lines_of_samples(report["samples"]),
        *_up_to_eight("the lock contradicts itself", contradictions),
        *_lines_of_numbers(report["samples"]),
        *_lines_of_verdict(report),
    ]


def _up_to_eight(what: str, names: Sequence[str]) -> list[str]:
    lines = [f"{what}: {name}" for name in names[:NAMED]]
    if len(names) > NAMED:
        lines.append(f"{what}: and {len(names) - NAMED} more")
    return lines


def _lines_of_sources(sources: Mapping[str, Any]) -> list[str]:
    lines = []
    num_unneeded = sources["not_needed"]
    if num_unneeded == 1:
        lines.append("1 source gave no clip and is not fetched")
    elif num_unneeded:
        lines.append(f"{num_unneeded} sources gave no clip and are not fetched")
    changed = [f"{line['source']}: {line['detail']}" for line in sources["changed"]]
    lines += _up_to_eight("changed", changed)
    classes = Counter(line["class"] for line in sources["gone"])
    for name, count in classes.items():
        of_class = [line for line in sources["gone"] if line["class"] == name]
        details = [f"{line['source']}: {line['detail']}" for line in of_class]
        lines += _up_to_eight(f"gone ({name}, {count})", details)
    if passing := sorted(RETRIED & classes.keys()):
        causes = " or ".join(passing)
        lines.append(f"what was {causes} may come back: the same command tries it again")
    return lines


def _lines_of_samples(samples: Mapping[str, Any]) -> list[str]:
    lines = []
    for grade in ("edited", "different"):
        names = [f"{line['sample']} ({', '.join(line['members'])})" for line in samples[grade]]
        lines += _up_to_eight(f"sample {grade}", names)
    return lines + _up_to_eight("sample the lock does not have", samples["more"])


def _line_of_scores(scores: Mapping[str, Any]) -> str:
    line = f"scores: {scores['identical']} of {scores['clips']} clips as in the lock"
    if scores["identical"] == scores["clips"]:
        return line
    far = max(scores["largest"], key=scores["largest"].__getitem__, default="")
    line += f", {scores['near']} within tolerance"
    if far:
        line += f"; {far} is off by up to {scores['largest'][far]:.2g} of what is allowed"
    return line


def _lines_of_numbers(samples: Mapping[str, Any]) -> list[str]:
    lines = [_line_of_scores(samples["scores"])] if samples["scores"] else []
    if count := len(samples["rescored"]):
        lines.append(
            f"another PSNR of the round trip, or none, in the metadata of {count} samples that "
            "are otherwise as before"
        )
    for name, apart in samples["apart"].items():
        lines.append(
            f"{name}: {apart['arrays']} not bit-identical; of each {PROBES} values compared: mean "
            f"|difference| {apart['mean_abs']:.2g}, largest {apart['max_abs']:.2g}"
        )
    if psnr := samples["round_trip_psnr_db"]:
        lines.append(
            f"VAE round trip: {psnr['found']:.2f} dB PSNR after decoding in the mean, "
            f"{psnr['locked']:.2f} in the lock ({psnr['clips']} clips)"
        )
    return lines


def _lines_of_verdict(report: Mapping[str, Any]) -> list[str]:
    root, share, lines = report["root"], report["obtainable"], []
    if share["samples"] < share["of"]:
        lines.append(
            f"obtainable: {share['samples']} of {share['of']} samples, "
            f"{share['share_of_frames']:.1%} of the frames"
        )
    if report["verdict"] == "identical":
        return [*lines, f"bit-identical: root digest {root['found']}"]
    if root["locked"] == root["found"]:
        return [*lines, f"not what the lock says, though the root digest is: {root['found']}"]
    verdict = "not what the lock says"
    if report["verdict"] == "equivalent":
        verdict = "equivalent within tolerance"
    machine = _other_machine(report["environment"])
    why = f"; the lock's machine had {machine}" if machine else ""
    digests = f"root digest {root['found']}, the lock has {root['locked']}"
    return [*lines, f"{verdict}: {digests}{why}"]


def _edit(line: Mapping[str, str]) -> str:
    source, name = line["source"], line["field"]
    if name == "missing":
        return f"{source} is in the lock and not in the recipe"
    if name == "added":
        return f"{source} is in the recipe and not in the lock: `build` adds it"
    values = f"the recipe says {line['found']}, the lock {line['locked']}"
    if source.startswith("["):
        return f"{source} {name}: {values}, which is what was used"
    return f"{source}: {name}: {values}"


def _other_machine(environment: Mapping[str, Any]) -> str:
    """What the lock's machine had that this one has otherwise: "torch 2.9, cpu AVX512"."""
    locked, here = environment["locked"], environment["found"]
    versions = [
        f"{name} {version}"
        for name, version in locked["versions"].items()
        if here["versions"].get(name) != version
    ]
    devices = [str(device) for device in locked["devices"] if device not in here["devices"]]
    return ", ".join([*versions, *devices])
