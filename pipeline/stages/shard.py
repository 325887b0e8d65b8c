"""Sample* -> Shard*: deterministic WebDataset tars and their index. The contract is docs/format.md.

Order is sha256(seed, key), so neighbours in a shard come from different videos; the split is drawn
per video, and once for all videos that share near-duplicates, so none is in both halves. Which
samples share a shard follows from those digests too (see `pack`), so a source more or less changes
few shards. A shard's bytes depend on its samples alone: fixed member order, mtime 0, no owner. Tars
are packed from the store and linked into the data folder.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.core import canonical
from pipeline.core.files import make_folder, replace_file, sync_folder
from pipeline.core.params import Setup, Table
from pipeline.core.records import (
    Blob,
    Member,
    Pack,
    Sample,
    Shard,
    Split,
    captions_of,
    public,
    source_of,
)
from pipeline.core.stage import Stage
from pipeline.core.store import Store, link_or_copy
from pipeline.media import encoders

VERSION = 3
MAKES = Shard
FORMAT = 2
NAME_BITS = 16  # of the order digest, in a shard's number
BLOCK = tarfile.BLOCKSIZE
END = 2 * BLOCK


class Params(Table):
    """`[shard]`: how samples are packed."""

    seed: int = Field(default=0, ge=0, description="Seed of the order and of the split.")
    max_samples: int = Field(default=1000, ge=1, description="Samples per shard at most.")
    max_bytes: int = Field(
        default=1_000_000_000,
        ge=1_000,
        description="Bytes per shard at most; one sample always fits.",
    )
    validation: float = Field(
        default=0.0, ge=0, lt=1, description="Share of videos held out, in shards of their own."
    )


def stage(setup: Setup) -> Stage:
    return Stage(
        name="shard",
        version=VERSION,
        params={"format": FORMAT},
        makes=MAKES,
        process=process,
        identity=identity,
        cost=seconds,
        must_succeed=True,
        gather=partial(pack, params=setup.table(Params)),
    )


def seconds(pack: Pack) -> float:
    return float(pack.duration_s)


def identity(pack: Pack) -> object:
    """Every byte of the tar: keys, metadata and the members' digests."""
    return [
        pack.split,
        [[sample.key, metadata(sample), members_of(sample)] for sample in pack.samples],
    ]


def pack(samples: Sequence[Sample], params: Params) -> list[Pack]:
    """Draw the split and share each half out among shards, by content.

    The order digests of a split's samples are taken as bits. A shard is all samples whose digests
    begin with the same bits: with none where all fit into one shard, else with as many as are
    needed for `max_samples` and `max_bytes` to hold. So which samples share a shard, and what it is
    called, follows from the samples alone: one sample more or less changes one shard, divides one,
    or joins two.
    """
    packs: list[Pack] = []
    split: Split
    for split in ("train", "validation"):
        items = [_item(sample, params) for sample in samples if split_of(sample, params) == split]
        items.sort(key=lambda item: item.order)
        for prefix, part in _buckets(items, "", params):
            packed = tuple(item.sample for item in part)
            packs.append(Pack(shard_name(split, prefix), split, packed))
    return packs


def shard_name(split: Split, prefix: str) -> str:
    """The name of the shard whose samples' order digests begin with the bits `prefix`.

    The first 16 bits, filled up with zeros, are a decimal number of five digits; any further bits
    follow after a dash. So names sort as the digests do, and of two halves the first keeps the
    name of the whole.
    """
    first, further = prefix[:NAME_BITS], prefix[NAME_BITS:]
    number = int(first.ljust(NAME_BITS, "0"), 2)
    name = f"{number:05d}-{further}" if further else f"{number:05d}"
    return name if split == "train" else f"{split}-{name}"


def order_of(key: str, seed: int) -> str:
    """The order digest of a sample, in hexadecimal: samples are sorted by it."""
    return canonical.digest([seed, key])


def split_of(sample: Sample, params: Params) -> Split:
    """Which half the sample's video fell into: a function of the video's digest, so other videos
    never move it, but those that share near-duplicates with it.
    """
    drawn_by = sample.clip.split_group or sample.clip.scene.video.blob.sha256
    drawn = int(canonical.digest([params.seed, drawn_by])[:8], 16)
    return "validation" if drawn < params.validation * 2**32 else "train"


@dataclass(frozen=True)
class _Item:
    """A sample to be packed, its order digest as 256 bits ("0110..."), its bytes in a tar."""

    sample: Sample
    order: str
    num_bytes: int


def _item(sample: Sample, params: Params) -> _Item:
    order = int(order_of(sample.key, params.seed), 16)
    return _Item(sample, f"{order:0256b}", tar_bytes(sample))


def tar_bytes(sample: Sample) -> int:
    """What the sample takes in a tar: headers, contents, and what fills up the blocks."""
    sizes = [("json", len(metadata_bytes(sample)))]
    sizes += [(name, blob.num_bytes) for name, blob in members_of(sample)]
    return sum(
        len(header(f"{sample.key}.{name}", num_bytes)) + padded(num_bytes)
        for name, num_bytes in sizes
    )


def _buckets(
    items: Sequence[_Item], prefix: str, params: Params
) -> Iterator[tuple[str, Sequence[_Item]]]:
    """Share out sorted items that begin with the bits `prefix`: (bits, items) of each shard."""
    if not items:
        return
    if len(items) == 1 or _fits(items, params):
        yield prefix, items
        return
    middle = bisect.bisect_left(items, prefix + "1", key=lambda item: item.order)
    yield from _buckets(items[:middle], prefix + "0", params)
    yield from _buckets(items[middle:], prefix + "1", params)


def _fits(items: Sequence[_Item], params: Params) -> bool:
    num_bytes = END + sum(item.num_bytes for item in items)
    return len(items) <= params.max_samples and num_bytes <= params.max_bytes


def padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK) * BLOCK


def header(name: str, num_bytes: int) -> bytes:
    """A member's header: mode 644, mtime 0, no owner; longer than a block for a name longer than
    100 bytes.
    """
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    return member.tobuf(tarfile.PAX_FORMAT)


def members_of(sample: Sample) -> list[tuple[str, Blob]]:
    """Extension and content of every member but the metadata, in the order they are written."""
    members: list[tuple[str, Blob | None]] = [
        ("latents.npy", sample.latents),
        ("latents_std.npy", sample.latents_std),
        ("text.npy", sample.text),
        ("image.npy", sample.image),
    ]
    return [(name, blob) for name, blob in members if blob is not None]


def metadata(sample: Sample) -> dict[str, Any]:
    """What KEY.json says: the same fields of the same types in every sample of a dataset.

    There is no null, no empty list and no number but whole ones in it, because readers that make a
    table of samples take the types of its columns from the first few.
    """
    clip, scene, source = sample.clip, sample.clip.scene, source_of(sample)
    captions = captions_of(clip) or ("",)
    return {
        "key": sample.key,
        "captions": list(captions),
        "caption": captions[0],
        "fps": canonical.plain(clip.fps),
        "num_frames": clip.num_frames,
        "size": clip.size,
        "source": {
            "key": source.key,
            "uri": public(source.uri),
            "license": source.license or "",
            "sha256": scene.video.blob.sha256,
        },
        "scene": {
            "start_pts": scene.start_pts,
            "end_pts": scene.end_pts,
            "time_base": canonical.plain(scene.time_base),
        },
        "crop": canonical.plain(clip.crop),
        "scores": _scores(sample),
    }


def _scores(sample: Sample) -> dict[str, str]:
    """Scores as decimal numbers in text, "" for what was not measured."""
    scores = {**dict(sample.clip.scores), "round_trip_psnr_db": sample.round_trip_psnr_db}
    return {
        name: "" if value is None else canonical.encode(float(value)).decode()
        for name, value in scores.items()
    }


def metadata_bytes(sample: Sample) -> bytes:
    return canonical.encode(metadata(sample))


class _Hashed:
    """A file being written, and its digest."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.num_bytes += len(content)
        return self._file.write(content)


def process(packed: Pack, store: Store) -> Iterator[Shard]:
    """Write one tar into the store."""
    with store.scratch() as path:
        with path.open("wb") as file:
            out = _Hashed(file)
            members = tuple(tuple(_write_sample(out, sample, store)) for sample in packed.samples)
            out.write(bytes(END))
        blob = store.settle(path, Blob(out.sha256.hexdigest(), out.num_bytes))
    keys = tuple(sample.key for sample in packed.samples)
    yield Shard(packed.key, packed.split, keys, packed.duration_s, blob, members)


def _write_sample(out: _Hashed, sample: Sample, store: Store) -> Iterator[Member]:
    content = metadata_bytes(sample)
    digest = hashlib.sha256(content).hexdigest()
    yield _write_member(out, f"{sample.key}.json", content, digest)
    for name, blob in members_of(sample):
        content = store.path(blob.sha256).read_bytes()
        yield _write_member(out, f"{sample.key}.{name}", content, blob.sha256)


def _write_member(out: _Hashed, name: str, content: bytes, sha256: str) -> Member:
    out.write(header(name, len(content)))
    member = Member(name, out.num_bytes, len(content), sha256)
    out.write(content)
    out.write(bytes(padded(len(content)) - len(content)))
    return member


def root_digest(shards: Sequence[Shard]) -> str:
    """sha256 over the shards' digests, in the order of their names, one a line."""
    ordered = sorted(shards, key=lambda shard: shard.key)
    lines = "".join(f"{shard.blob.sha256}\n" for shard in ordered)
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class About:
    """What holds for every sample of a dataset."""

    name: str
    fps: Fraction
    size: int
    precision: encoders.Precision
    chunk_frames: int


def index_of(
    about: About,
    shards: Sequence[Shard],
    models: encoders.Encoders,
    null_text: bytes,
    built: dict[str, Any],
) -> bytes:
    """The bytes of index.json. `null_text` is the empty caption's .npy file. `built` says where
    and with what the dataset was made, and enters no digest.
    """
    vae = encoders.vae_facts(models.vae_folder)
    side = about.size // vae["factor"]
    latents = {
        "scaling_factor": vae["scaling_factor"],
        "shape": [vae["latent_channels"], side, side],
        "dtype": "float16",
        "axes": "f c h w",
    }
    clip = {
        **canonical.plain(models.clip),
        "text_layer": models.text_layer,
        "pad_token": models.pad_token,
    }
    if models.force_quick_gelu:
        clip["quick_gelu"] = True
    index = {
        "format": FORMAT,
        "name": about.name,
        "root_digest": root_digest(shards),
        "fps": about.fps,
        "size": about.size,
        "latents": latents,
        "encoders": {
            "vae": models.vae,
            "precision": about.precision,
            "chunk_frames": about.chunk_frames,
            "clip": clip,
        },
        "null_text": {
            "npy_base64": encoders.npy_base64(null_text),
            "sha256": hashlib.sha256(null_text).hexdigest(),
        },
        "num_samples": sum(len(shard.samples) for shard in shards),
        "shards": [_shard_entry(shard) for shard in sorted(shards, key=lambda shard: shard.key)],
        "built": built,
    }
    return canonical.seal(index)


def _shard_entry(shard: Shard) -> dict[str, Any]:
    samples = zip(shard.samples, shard.members, strict=True)
    return {
        "file": f"{shard.key}.tar",
        "split": shard.split,
        "num_bytes": shard.blob.num_bytes,
        "sha256": shard.blob.sha256,
        "samples": [_sample_entry(key, members) for key, members in samples],
    }


def _sample_entry(key: str, members: Sequence[Member]) -> dict[str, Any]:
    places = {
        member.name.removeprefix(f"{key}."): [member.start, member.num_bytes, member.sha256]
        for member in members
    }
    return {"key": key, "members": places}


def clear(folder: Path) -> None:
    """Remove shards of which nothing is left, the index first."""
    if folder.is_dir():
        _delete(folder, [folder / "index.json"])
        _delete(folder, list(folder.glob("*.tar")))


def _delete(folder: Path, paths: Sequence[Path]) -> None:
    """Delete files of a folder; it is on disk that they are gone when this returns."""
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        sync_folder(folder)


def publish(folder: Path, shards: Sequence[Shard], index: bytes, store: Store) -> None:
    """Link the tars into the folder, then write the index, then remove what belongs to neither.
    Each is on disk before the next: an index there never names other tars than those there.
    """
    make_folder(folder)
    path_of_index = folder / "index.json"
    if path_of_index.is_file() and path_of_index.read_bytes() != index + b"\n":
        _delete(folder, [path_of_index])  # no index while the tars it would name change
    tars = {f"{shard.key}.tar": shard.blob for shard in shards}
    for name, blob in tars.items():
        beside = folder / f"{name}.tmp"
        beside.unlink(missing_ok=True)
        link_or_copy(store.path(blob.sha256), beside)
        os.replace(beside, folder / name)
        beside.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
    sync_folder(folder)
    replace_file(path_of_index, index + b"\n")
    _delete(folder, [path for path in folder.glob("*.tar*") if path.name not in tars])
