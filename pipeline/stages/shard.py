"""Sample* -> Shard*: deterministic WebDataset tars and their index. The contract is docs/format.md.

Order is sha256(seed, key), so neighbours in a shard come from different videos; the split is drawn
per video, so none is in both halves. A shard's bytes depend on its samples alone: fixed member
order, mtime 0, no owner. Tars are packed from the store and linked into the data folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.core import canonical
from pipeline.core.files import replace_file
from pipeline.core.params import Table
from pipeline.core.records import Blob, Member, Pack, Sample, Shard, Split, public, source_of
from pipeline.core.stage import Stage
from pipeline.core.store import Store, link_or_copy
from pipeline.media import encoders

VERSION = 1
FORMAT = 1
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


def stage() -> Stage:
    return Stage(
        name="shard",
        version=VERSION,
        params={"format": FORMAT},
        makes=Shard,
        process=process,
        identity=identity,
        cost=seconds,
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
    """Draw the split, order the samples, and fill shards one after the other."""
    packs: list[Pack] = []
    split: Split
    for split in ("train", "validation"):
        chosen = sorted(
            (sample for sample in samples if split_of(sample, params) == split),
            key=lambda sample: canonical.digest([params.seed, sample.key]),
        )
        packs += [
            Pack(shard_name(split, index), split, part)
            for index, part in enumerate(_parts(chosen, params))
        ]
    return packs


def shard_name(split: Split, index: int) -> str:
    return f"{index:05d}" if split == "train" else f"{split}-{index:05d}"


def split_of(sample: Sample, params: Params) -> Split:
    """Which half the sample's video fell into: a function of the video's digest, so other videos
    never move it.
    """
    drawn = int(canonical.digest([params.seed, sample.clip.scene.video.blob.sha256])[:8], 16)
    return "validation" if drawn < params.validation * 2**32 else "train"


def _parts(samples: Sequence[Sample], params: Params) -> Iterator[tuple[Sample, ...]]:
    part: list[Sample] = []
    size = END
    for sample in samples:
        sizes = [
            ("json", len(metadata_bytes(sample))),
            *((name, blob.num_bytes) for name, blob in members_of(sample)),
        ]
        own = sum(
            len(header(f"{sample.key}.{name}", num_bytes)) + padded(num_bytes)
            for name, num_bytes in sizes
        )
        if part and (len(part) == params.max_samples or size + own > params.max_bytes):
            yield tuple(part)
            part, size = [], END
        part.append(sample)
        size += own
    if part:
        yield tuple(part)


def padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK) * BLOCK


def header(name: str, num_bytes: int) -> bytes:
    """A member's header: mode 644, mtime 0, no owner; longer than a block for a name longer than
    100 bytes.
    """
    made = tarfile.TarInfo(name)
    made.size = num_bytes
    return made.tobuf(tarfile.PAX_FORMAT)


def members_of(sample: Sample) -> list[tuple[str, Blob]]:
    """Extension and content of every member but the metadata, in the order they are written."""
    named: list[tuple[str, Blob | None]] = [
        ("latents.npy", sample.latents),
        ("latents_std.npy", sample.latents_std),
    ]
    named += [(f"text{index or ''}.npy", blob) for index, blob in enumerate(sample.text)]
    named.append(("image.npy", sample.image))
    return [(name, blob) for name, blob in named if blob is not None]


def metadata(sample: Sample) -> dict[str, Any]:
    """What KEY.json says."""
    clip, scene, source = sample.clip, sample.clip.scene, source_of(sample)
    return {
        "key": sample.key,
        "captions": list(source.captions),
        "caption": source.captions[0] if source.captions else "",
        "fps": canonical.plain(clip.fps),
        "num_frames": clip.num_frames,
        "size": clip.size,
        "source": {
            "key": source.key,
            "uri": public(source.uri),
            "license": source.license,
            "sha256": scene.video.blob.sha256,
        },
        "scene": {
            "start_pts": scene.start_pts,
            "end_pts": scene.end_pts,
            "time_base": canonical.plain(scene.time_base),
        },
        "crop": canonical.plain(clip.crop),
        "scores": {}
        if sample.round_trip_psnr_db is None
        else {"round_trip_psnr_db": sample.round_trip_psnr_db},
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
        yield _write_member(
            out, f"{sample.key}.{name}", store.path(blob.sha256).read_bytes(), blob.sha256
        )


def _write_member(out: _Hashed, name: str, content: bytes, sha256: str) -> Member:
    out.write(header(name, len(content)))
    member = Member(name, out.num_bytes, len(content), sha256)
    out.write(content)
    out.write(bytes(padded(len(content)) - len(content)))
    return member


def root_digest(shards: Sequence[Shard]) -> str:
    """sha256 over the shards' digests, in the order of their names, one a line."""
    ordered = sorted(shards, key=lambda shard: shard.key)
    return hashlib.sha256(
        "".join(f"{shard.blob.sha256}\n" for shard in ordered).encode()
    ).hexdigest()


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
    found: encoders.Encoders,
    null_text: bytes,
    built: dict[str, Any],
) -> bytes:
    """The bytes of index.json. `built` says where and with what, and enters no digest."""
    vae = encoders.vae_facts(found.vae_folder)
    return canonical.seal(
        {
            "format": FORMAT,
            "name": about.name,
            "root_digest": root_digest(shards),
            "fps": about.fps,
            "size": about.size,
            "latents": {
                "scaling_factor": vae["scaling_factor"],
                "shape": [
                    vae["latent_channels"],
                    about.size // vae["factor"],
                    about.size // vae["factor"],
                ],
                "dtype": "float16",
                "axes": "f c h w",
            },
            "encoders": {
                "vae": found.vae,
                "precision": about.precision,
                "chunk_frames": about.chunk_frames,
                "clip": {
                    **canonical.plain(found.clip),
                    "text_layer": found.text_layer,
                    "pad_token": found.pad_token,
                },
            },
            "null_text": {
                "npy_base64": encoders.npy_base64(null_text),
                "sha256": hashlib.sha256(null_text).hexdigest(),
            },
            "num_samples": sum(len(shard.samples) for shard in shards),
            "shards": [_entry(shard) for shard in sorted(shards, key=lambda shard: shard.key)],
            "built": built,
        }
    )


def _entry(shard: Shard) -> dict[str, Any]:
    return {
        "file": f"{shard.key}.tar",
        "split": shard.split,
        "num_bytes": shard.blob.num_bytes,
        "sha256": shard.blob.sha256,
        "samples": [
            {
                "key": key,
                "members": {
                    member.name.removeprefix(f"{key}."): [
                        member.start,
                        member.num_bytes,
                        member.sha256,
                    ]
                    for member in members
                },
            }
            for key, members in zip(shard.samples, shard.members, strict=True)
        ],
    }


def clear(folder: Path) -> None:
    """Remove shards of which nothing is left."""
    for path in [*folder.glob("*.tar"), *folder.glob("index.json")]:
        path.unlink()


def publish(folder: Path, shards: Sequence[Shard], index: bytes, store: Store) -> None:
    """Link the tars into the folder, then write the index, then remove what belongs to neither."""
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / "index.json"
    if there.is_file() and there.read_bytes() != index + b"\n":
        there.unlink()  # no index while the tars it would name change
    wanted = {f"{shard.key}.tar": shard.blob for shard in shards}
    for name, blob in wanted.items():
        beside = folder / f"{name}.tmp"
        beside.unlink(missing_ok=True)
        link_or_copy(store.path(blob.sha256), beside)
        os.replace(beside, folder / name)
        beside.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
    replace_file(there, index + b"\n")
    for path in folder.glob("*.tar*"):
        if path.name not in wanted:
            path.unlink()
