"""Which films may be scored as held out: a film is one video, whatever clips were cut from it.

A sample's KEY.json says the sha256 of the video it comes from. A run keeps those of all samples it
was trained on, and with them those of the model it began with, if that says so (`training.json`
beside its weights). A clip of one of them is not scored, whatever the shards say. The digest is of
the video's bytes: the same film in another encoding is not recognised. Cost: KEY.json of every
sample is read once, less than 1 kB each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.errors import ShardError, UsageError
from training.frames import Window
from training.run import Run
from training.shards import Entry, Index, SampleFields
from training.stream import eligible, fixed_windows

SPLIT = "validation"
MODEL_FACTS = "training.json"  # beside a model's weights: what it was trained on
MEMBER = "json"  # of a sample, KEY.json
READ_AT_ONCE = 256
MAX_BYTES = 1 << 20  # of a KEY.json, which has less than one kB
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")  # what is printed as it is


@dataclass(frozen=True)
class Film:
    """A video, and its samples in a split. `sha256` is of the video's bytes, None if the shards do
    not say which video a sample is of.
    """

    name: str
    sha256: str | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Place:
    """A window of a film: the sample, and the frame it begins at."""

    film: str
    key: str
    start: int


def films(index: Index, split: str = SPLIT) -> list[Film]:
    """The films of a split, in the shards' order. Raises ShardError if a KEY.json is not what its
    digest says.
    """
    sources = dict(_sources(index, split))
    clips: dict[tuple[str, str | None], list[Entry]] = {}
    for entry in index.entries.get(split, ()):
        source = sources.get(entry.key, (entry.key, None))
        clips.setdefault(source, []).append(entry)
    return [Film(name, sha256, tuple(entries)) for (name, sha256), entries in clips.items()]


def _sources(index: Index, split: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Each sample's key, with the name and digest of its video."""
    files = index.files(split)
    samples: list[tuple[str, SampleFields]] = []
    for shard in index.shards:
        if shard.split == split:
            samples += [(shard.file, sample) for sample in shard.samples]
    for at in range(0, len(samples), READ_AT_ONCE):
        part = samples[at : at + READ_AT_ONCE]
        for file, sample in part:
            if MEMBER in sample.members and sample.members[MEMBER][1] > MAX_BYTES:
                raise ShardError(
                    f"{index.url}: {file}: {sample.key}.{MEMBER} is too long for facts"
                )
        contents = {
            sample.key: bytearray(sample.members[MEMBER][1])
            for _, sample in part
            if MEMBER in sample.members
        }
        files.fill(
            [
                (file, sample.members[MEMBER][0], memoryview(contents[sample.key]))
                for file, sample in part
                if sample.key in contents
            ]
        )
        for file, sample in part:
            where = f"{index.url}: {file}: {sample.key}.{MEMBER}"
            content = bytes(contents.get(sample.key, b"{}"))
            if sample.key in contents:
                _check(content, sample.members[MEMBER][2], where)
            yield sample.key, _source(content, sample.key, where)


def _check(content: bytes, sha256: str, where: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ShardError(
            f"{where}: sha256 {digest}, {sha256} in the index: damaged or of another build; build "
            "the shards again"
        )


def _source(content: bytes, key: str, where: str) -> tuple[str, str | None]:
    """Name and digest of the video; those that are not there are the sample's key, and None."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: cannot be parsed, {error}") from None
    source = facts.get("source") if isinstance(facts, dict) else None
    if not isinstance(source, dict):
        return key, None
    name, sha256 = source.get("key"), source.get("sha256")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        name = key
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        sha256 = None
    return name, sha256


def training_videos(index: Index, unet: str = "", adapter: Any = None) -> list[str]:
    """The videos a model is trained on, by their digests, sorted: those of the shards, and those of
    what it begins with, the model in the folder `unet` and an adapter's facts, if these say so.
    """
    own = {film.sha256 for film in films(index, "train")}
    digests = {digest for digest in own if digest is not None} | _videos_of_model(unet)
    if adapter is not None:
        digests |= _videos_in(adapter, "the adapter")
    return sorted(digests)


def _videos_of_model(unet: str) -> set[str]:
    path = Path(unet) / MODEL_FACTS
    if not unet or not path.is_file():
        return set()
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unread(path, error) from error
    return _videos_in(facts, path)


def _videos_in(facts: Any, where: object) -> set[str]:
    try:
        videos = facts["dataset"].get("videos") or []  # older ones do not say
        digests = {video for video in videos if SHA256.fullmatch(video)}
        if len(digests) != len(videos):
            raise ValueError("its videos are no sha256 digests")
        return digests
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unread(where, error) from error


def _unread(where: object, error: Exception) -> UsageError:
    return UsageError(
        f"{where} cannot be read ({error!r}): it says which videos the model was trained on"
    )


def unseen(run: Run, index: Index, notes: list[str]) -> list[Film]:
    """The held-out films that the run was not trained on; a sentence on each other film goes into
    `notes`.

    Raises UsageError if nothing was held out, or if the run was trained on all of it.
    """
    if not index.entries.get(SPLIT):
        raise UsageError(f"{index.url}: no video was held out; {advice(index)}")
    seen = _seen(run, index)
    candidates = films(index)
    if seen is None:
        notes.append(
            f"{run.folder.name} does not say which videos it was trained on, and it was trained on "
            "other shards than these: a film below may be one of its training"
        )
        return candidates
    unknown = [film.name for film in candidates if film.sha256 is None]
    if unknown:
        notes.append(
            f"the shards do not say which video {_listed(unknown)} is: it may be one the run was "
            "trained on"
        )
    kept = [film for film in candidates if film.sha256 not in seen]
    known = [film.name for film in candidates if film.sha256 in seen]
    if not kept:
        raise UsageError(
            f"{index.url}: {run.folder} was trained on every film that is held out here "
            f"({_listed(known)}): evaluate it with the shards it was trained on, or train again "
            "on these"
        )
    if known:
        notes.append(f"{_listed(known)} is not scored: the run was trained on that video")
    return kept


def _seen(run: Run, index: Index) -> frozenset[str] | None:
    """Digests of the videos a run was trained on; None if they cannot be known."""
    videos = run.dataset.get("videos")
    if videos is not None:
        return frozenset(videos)
    if run.dataset["root_digest"] == index.root_digest:
        return frozenset(training_videos(index, run.unet))
    return None


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def advice(index: Index) -> str:
    """What to write into the recipe so that a video is held out."""
    num_videos = len(films(index, "train"))
    # a tenth, or, where that is less than one video, the share that one video has
    share = max(0.1, -(-100 // max(2, num_videos)) / 100)
    return (
        f"set `validation = {share:g}` in [shard] of the recipe and build the shards again "
        "(of few videos another `seed` there holds out others)"
    )


def places(index: Index, held_out: Sequence[Film], window: Window, num_windows: int) -> list[Place]:
    """`num_windows` windows of held-out films, the same every time, from as many films as there
    can be; in a film evenly spaced. Fewer if there are no more.

    Raises UsageError if no clip is long enough.
    """
    own = {SPLIT: tuple(entry for film in held_out for entry in film.entries)}
    eligible(replace(index, entries=own), SPLIT, window.span)
    films_of_length = [film for film in held_out if _longest(film) >= window.span]
    # if there are more films than windows, evenly spaced ones
    number = min(num_windows, len(films_of_length))
    chosen = [films_of_length[at * len(films_of_length) // number] for at in range(number)]
    edges = [at * num_windows // number for at in range(number + 1)]
    windows: list[Place] = []
    for film, (first, last) in zip(chosen, itertools.pairwise(edges), strict=True):
        alone = replace(index, entries={SPLIT: film.entries})
        pairs = fixed_windows(alone, SPLIT, window, last - first)
        windows += [Place(film.name, key, start) for key, start in pairs]
    return windows


def _longest(film: Film) -> int:
    return max(entry.num_frames for entry in film.entries)
