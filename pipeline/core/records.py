"""The nouns: one frozen type per stage passed. A record that says it is a Clip is a good clip.

    Source -> Video -> Scene -> Clip -> Sample -> Shard, or a Rejection

Every record holds the record it came from, so a line of a manifest tells its whole story. Records
are plain values and digests: no bytes, no arrays, no paths. `identity` is what the *pixels* of a
record depend on: from Video on it leaves out keys, addresses, captions and licences, so an edited
caption decodes nothing and one video behind two addresses is decoded once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from pipeline.core.errors import without_credentials
from pipeline.core.reading import (
    Count,
    Digest,
    Flag,
    Key,
    Number,
    Positive,
    Rational,
    Text,
    Whole,
)


@dataclass(frozen=True, slots=True)
class Blob:
    """A file in the store, by content."""

    sha256: Digest
    num_bytes: Count


@dataclass(frozen=True, slots=True)
class Source:
    """One line of a recipe. A time range, in seconds from the video's first frame, limits it."""

    parent: ClassVar[str | None] = None
    key: Key
    uri: Text
    captions: tuple[Text, ...] = ()
    license: Text | None = None
    sha256: Digest | None = None
    start_s: Rational | None = None
    end_s: Rational | None = None
    format: Text | None = None  # the downloader's format, where a lock names it

    def identity(self) -> object:
        address = {"uri": self.uri, "sha256": self.sha256}
        return {**address, "format": self.format} if self.format else address


@dataclass(frozen=True, slots=True)
class Container:
    """What a probe found. Sizes are of the coded picture, before rotation and pixel aspect."""

    format: Text
    codec: Text
    pix_fmt: Text
    width: Count
    height: Count
    mirrored: Flag  # to be flipped left to right for display, before it is turned
    rotation: Count  # degrees clockwise to turn it for display: 0, 90, 180, 270
    pixel_aspect: Positive
    color_matrix: Text
    color_range: Text
    color_primaries: Text
    color_transfer: Text
    time_base: Positive
    average_fps: Rational
    num_frames: Count
    start_pts: Whole
    end_pts: Whole  # first time stamp after the last frame
    stream: Count = 0  # which stream of the file is the film
    order: Text = "steady"  # of time stamps: "steady", "unordered" or "broken", see media.timeline
    scan: Text = "progressive"  # or interlaced: "top", "bottom" or "flagged", see media.interlacing

    @property
    def duration_s(self) -> Fraction:
        return (self.end_pts - self.start_pts) * self.time_base


@dataclass(frozen=True, slots=True)
class Video:
    """A source's bytes, fetched, fingerprinted and probed. `fetched_as` is the downloader's
    format.
    """

    parent: ClassVar[str | None] = "source"
    key: Key
    source: Source
    blob: Blob
    fetched_as: Text
    container: Container

    def identity(self) -> object:
        return {"video": self.blob.sha256, "span": [self.source.start_s, self.source.end_s]}

    @property
    def duration_s(self) -> Fraction:
        """Length of the part the source asks for."""
        start = self.source.start_s or Fraction(0)
        end = self.source.end_s if self.source.end_s is not None else self.container.duration_s
        return max(Fraction(0), min(end, self.container.duration_s) - start)


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle in coded pixels. A clip's is its centre square, which is not square where pixels
    are not.
    """

    x: Count
    y: Count
    width: Count
    height: Count


@dataclass(frozen=True, slots=True)
class Cover:
    """A rectangle of a clip, in its pixels, that is blurred from frame `start` up to `end`."""

    start: Count
    end: Count
    x: Count
    y: Count
    width: Count
    height: Count


@dataclass(frozen=True, slots=True)
class Scene:
    """The span [start_pts, end_pts) between two cuts, in the video's own time stamps."""

    parent: ClassVar[str | None] = "video"
    key: Key
    video: Video
    start_pts: Whole
    end_pts: Whole
    distinct: Number | None = None  # share of its frames at the target fps that are new pictures
    picture: Crop | None = None  # what is inside its black bars, if it has some
    covers: tuple[Cover, ...] | None = None  # over faces, in a rebuild; None: they are looked for

    def identity(self) -> object:
        span: dict[str, object] = {
            "video": self.video.identity(),
            "pts": [self.start_pts, self.end_pts],
            "tb": self.time_base,
        }
        if self.picture is not None:
            span["picture"] = self.picture
        if self.covers is not None:
            span["covers"] = self.covers
        return span

    @property
    def time_base(self) -> Fraction:
        return self.video.container.time_base

    @property
    def duration_s(self) -> Fraction:
        return (self.end_pts - self.start_pts) * self.time_base

    def num_frames(self, fps: Fraction) -> int:
        """Frames the scene gives at `fps`: points n / fps of the video's own clock inside the
        span.
        """
        return grid_index(self.end_pts, self.time_base, fps) - grid_index(
            self.start_pts, self.time_base, fps
        )


# names and values; None is what cannot be measured of this clip
Scores = tuple[tuple[Text, Number | None], ...]


@dataclass(frozen=True, slots=True)
class Clip:
    """A scene's frames: low fps, square, re-encoded, playable."""

    parent: ClassVar[str | None] = "scene"
    key: Key
    scene: Scene
    blob: Blob
    num_frames: Count
    fps: Positive
    size: Count
    crop: Crop
    pictures: Digest  # digest of the coded pictures: equal where only the container differs
    scores: Scores = ()  # for a sample's metadata
    covers: tuple[Cover, ...] = ()  # over faces
    captions: tuple[Text, ...] | None = None  # of the clip; None: those of its source
    hashes: Text = ""  # of its frames, if near-duplicates are looked for (media.frame_hashes)
    split_group: Digest | None = None  # what its split is drawn by, if not by its video alone

    def identity(self) -> object:
        return {"clip": self.blob.sha256}

    @property
    def duration_s(self) -> Fraction:
        return self.num_frames / self.fps


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip's latents (`f c h w` float16, unscaled), text (`n 77 d`) and image (`k d`)
    embeddings.
    """

    parent: ClassVar[str | None] = "clip"
    key: Key
    clip: Clip
    latents: Blob
    latents_std: Blob | None
    text: Blob  # of each caption; of the empty one, if there is none
    image: Blob | None
    round_trip_psnr_db: Number | None  # of a few decoded latents against their clip, if sampled
    device: Text

    @property
    def duration_s(self) -> Fraction:
        return self.clip.duration_s


Split = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Pack:
    """The samples of one shard, in order, before the tar is written."""

    parent: ClassVar[str | None] = None
    key: Key
    split: Split
    samples: tuple[Sample, ...]

    @property
    def duration_s(self) -> Fraction:
        return sum((sample.duration_s for sample in self.samples), Fraction(0))


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: its byte range (`start` is the first byte of content), size and digest."""

    name: Text
    start: Count
    num_bytes: Count
    sha256: Digest


@dataclass(frozen=True, slots=True)
class Shard:
    """One WebDataset tar. It names its samples; their stories are in the manifest before it."""

    parent: ClassVar[str | None] = None
    key: Key
    split: Split
    samples: tuple[Key, ...]
    duration_s: Rational
    blob: Blob
    members: tuple[tuple[Member, ...], ...]  # per sample, in the order of `samples`


Record = Source | Video | Scene | Clip | Sample | Pack | Shard


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was dropped. `fate` is "bad" (remembered) or "unavailable" (tried again)."""

    key: Text
    stage: Text
    fate: Literal["bad", "unavailable"]
    reason: Text
    detail: Text


def grid_index(pts: int, time_base: Fraction, fps: Fraction) -> int:
    """The first n with n / fps at or after `pts`: ceil(pts * time_base * fps), in whole numbers."""
    rate = time_base * fps
    return -((-pts * rate.numerator) // rate.denominator)


def public(uri: str) -> str:
    """An address without the folders of this machine, and without user and password."""
    kind, _, rest = uri.partition(":")
    if kind in ("tar", "zip"):
        path, mark, member = rest.removeprefix("file:").rpartition("!/")
        path = path if mark else member
        if os.path.isabs(path):
            return f"{kind}:{os.path.basename(path)}{mark}{member if mark else ''}"
    elif kind == "file" and os.path.isabs(rest):
        return f"file:{os.path.basename(rest)}"
    return without_credentials(uri)


def source_of(record: Record) -> Source:
    """The source a record began as."""
    while not isinstance(record, Source):
        if record.parent is None:
            raise TypeError(f"{type(record).__name__} '{record.key}' has no single source")
        record = getattr(record, record.parent)
    return record


def captions_of(clip: Clip) -> tuple[str, ...]:
    """A clip's captions: its own, or else those of its source."""
    return source_of(clip).captions if clip.captions is None else clip.captions


def blobs_read(record: Record) -> list[Blob]:
    """The blobs a task on this record reads its pictures from."""
    if isinstance(record, Video | Clip):
        return [record.blob]
    return [record.video.blob] if isinstance(record, Scene) else []


def origins(record: Record) -> list[object]:
    """What a record is of, so that all that was made of a video can be found: its videos'
    identities; of a source, its own.
    """
    if isinstance(record, Source):
        return [record.identity()]
    if isinstance(record, Shard):
        return []
    if isinstance(record, Pack):
        videos = [sample.clip.scene.video for sample in record.samples]
        parts = {(video.blob, video.source.start_s, video.source.end_s): video for video in videos}
        return [video.identity() for video in parts.values()]
    while not isinstance(record, Video):
        record = (
            record.clip
            if isinstance(record, Sample)
            else record.scene
            if isinstance(record, Clip)
            else record.video
        )
    return [record.identity()]
