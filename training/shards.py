"""What the shards are: index.json and the arrays it names, checked. docs/format.md is the contract.

Whatever does not hold is a ShardError that names the shard and the member, what is there and what
should be. Nothing is ever unpickled. Costs: the index in memory, about 1 kB a sample.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError

from training.errors import ShardError, UsageError
from training.ranges import Files

FORMAT = 2
FORMATS = (1, FORMAT)  # those this reader knows
DTYPE = np.dtype("<f2")
HEADER = 128  # bytes of a .npy header as numpy writes it; one of another length costs a second read
MAX_HEADER = 10 + 0xFFFF
PIECE = 8 << 20  # bytes at a time, to verify a shard
Array = np.ndarray[Any, Any]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(strict=True, gt=0, le=1 << 16)]
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=250)]
Place = tuple[Count, Count, Sha256]  # first byte, bytes, digest
# What one may take in memory, before it is taken
MOST_FRAME = 64 << 20  # bytes: 16 channels of 1,448 x 1,448
MOST_TEXT = 64 << 20  # bytes of a sample's captions; one of CLIP's has 118 kB
MOST_MEMBERS = 64  # of a sample
SPARSEST = 32  # bytes for each list or object, at least: ours have 80, a bomb 2
MOST_PROBLEMS = 1000


class Fields(BaseModel):
    """What a reader relies on; fields it does not know are ignored."""

    model_config = ConfigDict(frozen=True)


def _few(members: object) -> object:
    if isinstance(members, dict) and len(members) > MOST_MEMBERS:
        raise ValueError(f"{len(members)} members, at most {MOST_MEMBERS} are read")
    return members


class SampleFields(Fields):
    key: Key
    members: Annotated[dict[str, Place], BeforeValidator(_few)]


class Shard(Fields):
    # nothing that could lead out of the folder
    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=250)
    split: Key
    num_bytes: Count
    sha256: Sha256
    samples: Annotated[tuple[SampleFields, ...], FailFast()]


class LatentsFields(Fields):
    scaling_factor: Number = Field(gt=0)
    shape: tuple[Side, Side, Side]
    dtype: Literal["float16"]
    axes: Literal["f c h w"]


class VaeFields(Fields, extra="allow"):
    sha256: Sha256


class ClipFields(VaeFields):
    text_layer: str
    pad_token: Count


class EncodersFields(Fields, extra="allow"):
    vae: VaeFields
    clip: ClipFields


class NullTextFields(Fields):
    npy_base64: str
    sha256: Sha256


class IndexFields(Fields):
    name: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=250)
    root_digest: Sha256
    fps: str = Field(pattern=r"^[1-9][0-9]{0,8}/[1-9][0-9]{0,8}$")
    size: Side
    latents: LatentsFields
    encoders: EncodersFields
    null_text: NullTextFields
    shards: Annotated[tuple[Shard, ...], FailFast()]


@dataclass(frozen=True)
class Member:
    """Where one array is."""

    file: str
    name: str
    start: int
    num_bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


@dataclass(frozen=True)
class Caption:
    """Where a caption's embedding is: row `row` of an `n 77 d` array, or in format 1 (row None) a
    whole array `77 d`.
    """

    member: Member
    row: int | None


@dataclass(frozen=True)
class Entry:
    """A sample, as far as the index knows it."""

    key: str
    num_frames: int
    latents: Member
    captions: tuple[Caption, ...]


@dataclass(frozen=True, eq=False)
class Index:
    """What index.json says. `frame_shape` is (c, h, w); `null_text` is of the empty caption, `n d`
    float16; `entries` are by split.
    """

    url: str
    name: str
    root_digest: str
    fps: Fraction
    size: int
    scaling_factor: float
    frame_shape: tuple[int, int, int]
    encoders: dict[str, Any]
    null_text: Array
    shards: tuple[Shard, ...]
    entries: dict[str, tuple[Entry, ...]]

    def files(self, split: str | None = None) -> Files:
        """The tars of a split, or all; their lengths are compared with the index, ShardError."""
        shards = [shard for shard in self.shards if split in (None, shard.split)]
        files = Files(self.url, {shard.file: shard.num_bytes for shard in shards})
        files.check_lengths()
        return files

    def identity(self) -> dict[str, Any]:
        """What a model must agree with, in plain values that survive JSON: see `check_identity`."""
        clip = self.encoders["clip"]
        return {
            "encoders.vae.sha256": self.encoders["vae"]["sha256"],
            "encoders.clip.sha256": clip["sha256"],
            "encoders.clip.text_layer": clip["text_layer"],
            "encoders.clip.pad_token": clip["pad_token"],
            "latents.shape": list(self.frame_shape),
            "latents.scaling_factor": self.scaling_factor,
        }

    def differences(self, identity: Mapping[str, Any]) -> dict[str, str]:
        """What the encoders have that is other than in `identity`: fields, and a line of each."""
        return {
            field: f"{field}: {value} in the shards, {identity.get(field, 'nothing')} wanted"
            for field, value in self.identity().items()
            if identity.get(field) != value
        }


def check_identity(index: Index, identity: Mapping[str, Any]) -> None:
    """ShardError, naming each field that differs, unless the shards' encoders have this
    identity.
    """
    differences = index.differences(identity)
    if differences:
        lines = "\n".join(f"  {line}" for line in differences.values())
        raise ShardError(
            f"{index.url}: not the encoders the model was trained with:\n{lines}\nBuild shards "
            "with the model's encoders."
        )


def open_index(url: str | Path) -> Index:
    """Read and check `index.json` of a folder or URL; no shard is opened.

    UsageError if there is none, ShardError if it is not one this reader may trust, Stopped if the
    network is in the way.
    """
    url = str(url)
    files = Files(url)
    try:
        content = files.whole("index.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "`make shards DATASET=NAME` builds them, into data/NAME/shards"
        name = Path(url).parent.name
        if Path(url).name == "shards" and name:
            hint = f"`make shards DATASET={name}` builds them"
        raise UsageError(f"{url}: no shards there (no index.json); {hint}") from error
    where = f"{url}: index.json"
    num_parts = content.count(b"[") + content.count(b"{")
    if num_parts > 1000 + len(content) // SPARSEST:
        raise ShardError(
            f"{where}: {num_parts} lists and objects in {len(content)} bytes: no index"
        )
    try:
        plain = json.loads(content)
        version = plain.get("format") if isinstance(plain, dict) else None
        if type(version) is not int or version not in FORMATS:
            known = " and ".join(map(str, FORMATS))
            raise ShardError(
                f"{where}: format {version!r}, this reader knows {known}; build the shards again, "
                "or update longtake"
            )
        fields = IndexFields.model_validate(plain)
    except ValidationError as error:
        raise ShardError(f"{where}: {_problems_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: cannot be parsed, {error}; build the shards again") from None
    _check_whole(fields, where)
    null_text = _null_text(fields.null_text, f"{where}: null_text")
    text_bytes = null_text.nbytes if version > 1 else None
    entries: dict[str, list[Entry]] = {}
    for shard in fields.shards:
        samples = _entries(shard, fields.latents.shape, text_bytes)
        entries.setdefault(shard.split, []).extend(samples)
    return Index(
        url=url,
        name=fields.name,
        root_digest=fields.root_digest,
        fps=Fraction(fields.fps),
        size=fields.size,
        scaling_factor=fields.latents.scaling_factor,
        frame_shape=fields.latents.shape,
        encoders=fields.encoders.model_dump(),
        null_text=null_text,
        shards=fields.shards,
        entries={split: tuple(members) for split, members in entries.items()},
    )


def _problems_of(error: ValidationError) -> str:
    """The first fields that are wrong, in one line."""
    if error.error_count() > MOST_PROBLEMS:
        return f"{error.error_count()} fields are not what they should be"
    problems = []
    for problem in error.errors()[:3]:
        field = repr(".".join(map(str, problem["loc"]))[:80])[1:-1]
        value = problem["input"]
        is_short = isinstance(value, str | int | float | None)
        shown = repr(str(value)[:80]) if is_short else f"a {type(value).__name__}"
        problems.append(f"{field}: {problem['msg']}, not {shown}")
    return "; ".join(problems)


def _check_whole(fields: IndexFields, where: str) -> None:
    """The index against itself: its digest, keys that are there once, members inside their
    shard.
    """
    lines = "".join(f"{shard.sha256}\n" for shard in fields.shards)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    if digest != fields.root_digest:
        raise ShardError(
            f"{where}: root_digest {fields.root_digest}, that of its shards is {digest}; build the "
            "shards again"
        )
    frame = math.prod(fields.latents.shape) * DTYPE.itemsize
    if frame > MOST_FRAME:
        raise ShardError(f"{where}: latents.shape: a frame of {frame} bytes is too large")
    seen: set[str] = set()
    for shard in fields.shards:
        for sample in shard.samples:
            if sample.key in seen:
                raise ShardError(f"{where}: {sample.key} is there twice")
            seen.add(sample.key)
            for name, (start, num_bytes, _) in sample.members.items():
                if name.startswith("text") and num_bytes > MOST_TEXT:
                    raise ShardError(
                        f"{where}: {shard.file}: {sample.key}.{name} has {num_bytes} bytes: no "
                        "embeddings of captions"
                    )
                if start + num_bytes > shard.num_bytes:
                    raise ShardError(
                        f"{where}: {shard.file}: {sample.key}.{name} is outside its shard, "
                        f"bytes {start} to {start + num_bytes} of {shard.num_bytes}"
                    )
            for name in {"latents.npy", "text.npy"} - sample.members.keys():
                raise ShardError(f"{where}: {shard.file}: {sample.key} has no {name}")


def _entries(
    shard: Shard, frame_shape: tuple[int, int, int], text_bytes: int | None
) -> Iterator[Entry]:
    """The samples of a shard. A caption takes `text_bytes` of its sample's one member of text;
    None in format 1, where each has a member of its own.
    """
    frame = math.prod(frame_shape) * DTYPE.itemsize
    for sample in shard.samples:
        members = {
            name: Member(shard.file, f"{sample.key}.{name}", *where)
            for name, where in sample.members.items()
        }
        captions = _captions(members, text_bytes)
        num_frames = _num_rows(members["latents.npy"], frame)
        yield Entry(sample.key, num_frames, members["latents.npy"], tuple(captions))


def _captions(members: Mapping[str, Member], text_bytes: int | None) -> Iterator[Caption]:
    text = members["text.npy"]
    if text_bytes is not None:
        # where the size is wrong there is one, and whoever reads it says what is wrong
        for row in range(max(1, _num_rows(text, text_bytes))):
            yield Caption(text, row)
        return
    yield Caption(text, None)
    for number in itertools.count(1):
        if f"text{number}.npy" not in members:
            return
        yield Caption(members[f"text{number}.npy"], None)


def _num_rows(member: Member, row_bytes: int) -> int:
    """How many rows of so many bytes an array has, by its size alone: see `HEADER`."""
    return max(0, member.num_bytes - HEADER + row_bytes // 2) // row_bytes


def _null_text(fields: NullTextFields, where: str) -> Array:
    try:
        content = base64.b64decode(fields.npy_base64, validate=True)
    except ValueError as error:
        raise ShardError(f"{where}: {error}") from None
    return parse(content, fields.sha256, where)


def parse_caption(content: bytes | bytearray, caption: Caption, shape: tuple[int, ...]) -> Array:
    """The embedding of a caption, of that shape, `n d` float16, from the whole member it is in.
    Raises ShardError.
    """
    member, row = caption.member, caption.row
    if row is None:
        return parse(content, member.sha256, member, shape)
    num_rows = _num_rows(member, math.prod(shape) * DTYPE.itemsize)
    rows = parse(content, member.sha256, member, (num_rows, *shape))
    if not num_rows:
        raise ShardError(f"{member}: no caption in it, not even an empty one")
    text: Array = rows[row].copy()  # the others are let go
    return text


def parse(
    content: bytes | bytearray, sha256: str, where: object, shape: tuple[int, ...] | None = None
) -> Array:
    """A whole `.npy` file that must have this digest, and float16 numbers that are finite, `n d` or
    of the given shape.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ShardError(
            f"{where}: sha256 {digest}, {sha256} in the index: damaged or of another build; build "
            "the shards again"
        )
    start, own_shape = parse_header(bytes(content[:MAX_HEADER]), where)
    is_right_shape = own_shape == shape or (shape is None and len(own_shape) == 2)
    if not is_right_shape or start + math.prod(own_shape) * DTYPE.itemsize != len(content):
        raise ShardError(
            f"{where}: {len(content)} bytes of shape {own_shape}, wanted {shape or 'n d'}"
        )
    array = np.frombuffer(content, DTYPE, offset=start).reshape(own_shape)
    if not is_finite(array):
        raise ShardError(f"{where}: not all numbers are finite")
    return array


def is_finite(array: Array) -> bool:
    """Whether no number of a float16 array is NaN or infinite: several times faster than through
    `isfinite`.
    """
    return bool((array.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)


def parse_header(content: bytes, where: object) -> tuple[int, tuple[int, ...]]:
    """Where the numbers begin, and the array's shape. ShardError unless it is .npy 1.0, float16 and
    in C order.
    """
    header_bytes = 10 + int.from_bytes(content[8:10], "little")
    try:
        version, length, shape, is_fortran, dtype = _read_header(content[:header_bytes])
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ShardError(f"{where}: not a .npy array: {error}") from None
    # numpy takes True and -1 for sizes
    if any(type(size) is not int or size < 0 for size in shape):
        raise ShardError(f"{where}: {shape} is the shape of no array")
    if version != (1, 0):
        raise ShardError(f"{where}: .npy version {version[0]}.{version[1]}, wanted 1.0")
    if dtype != DTYPE or is_fortran:
        order = "Fortran" if is_fortran else "C"
        raise ShardError(
            f"{where}: {dtype} in {order} order, wanted little-endian float16 in C order"
        )
    return length, shape


@functools.lru_cache(maxsize=1024)  # all clips of one length have the same header, and all captions
def _read_header(header: bytes) -> tuple[tuple[int, int], int, tuple[int, ...], bool, Any]:
    """Version, length, shape, whether in Fortran order, dtype; of a version but 1.0 nothing
    more.
    """
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        return version, 0, (), False, None
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    return version, stream.tell(), shape, is_fortran, dtype


def verify(index: Index, progress: Callable[[int], object] | None = None) -> None:
    """Compare every shard with its sha256, reading all of it; `progress` is told of bytes read.
    ShardError names the first that differs.
    """
    files = index.files()
    for shard in index.shards:
        verify_shard(files, shard, progress)


def verify_shard(
    files: Files, shard: Shard, progress: Callable[[int], object] | None = None
) -> None:
    """Compare one shard with its sha256, reading all of it. Raises ShardError if it differs."""
    digest = hashlib.sha256()
    for start in range(0, shard.num_bytes, PIECE):
        piece = memoryview(bytearray(min(PIECE, shard.num_bytes - start)))
        files.fill([(shard.file, start, piece)])
        digest.update(piece)
        if progress is not None:
            progress(piece.nbytes)
    if digest.hexdigest() != shard.sha256:
        raise ShardError(
            f"{files.url}: {shard.file} has sha256 {digest.hexdigest()}, {shard.sha256} in the "
            "index: damaged; copy it or build again"
        )
