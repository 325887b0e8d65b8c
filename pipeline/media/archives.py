"""Archives of videos: WebDataset tars (`tar:shards/{00000..00099}.tar`) and zip files, local or by
URL.

A member is a source of its own, `tar:PLACE!/MEMBER`; its key follows from the archive's name and
its own. An archive from the web lies in the store, like a wheel, until nothing needs it; of a
member only its bytes are taken in, nothing is unpacked beside the store, and no name in an archive
becomes a path. Links, sparse files, packed tars, names that stand twice or lead out are refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.core import canonical
from pipeline.core.errors import BadData, Unavailable
from pipeline.core.reading import shown_value
from pipeline.core.records import Blob
from pipeline.core.store import Store
from pipeline.media import addresses, fetch
from pipeline.media.addresses import Archive

MAX_ARCHIVES = 100_000  # that one address may name
MAX_MEMBERS = 2_000_000  # of one archive
MAX_HEADER_BYTES = 1 << 24  # of what a tar says of one member
MAX_FIELD_BYTES = 1 << 20  # of a text or JSON file beside a video
DENSEST = 200  # times its packed size that a video may have: pictures do not shrink to a hundredth
HEAD = 400  # bytes of a file by which a video is known
VIDEOS = (
    *("mp4", "m4v", "mov", "qt", "mkv", "webm", "avi", "ts", "mts", "m2ts", "m2t", "mpg", "mpeg"),
    *("mpe", "vob", "flv", "f4v", "wmv", "asf", "ogv", "ogg", "mxf", "nut", "3gp", "3g2", "mj2"),
    *("y4m", "ivf", "obu", "h264", "264", "hevc", "h265", "265", "dv", "gif", "insv", "lrv"),
)
# a file without one of these endings is a video if it begins like one
STARTS = re.compile(
    rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV\x01|OggS|\x00\x00\x01[\xb3\xba]|YUV4MPEG2 |DKIF"
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11|nut/multimedia|\x06\x0e\x2b\x34|GIF8[79]a"
    rb"|G.{187}G.{187}G|.{4}G.{191}G",
    re.DOTALL,
)
RANGE = re.compile(r"\{(-?[0-9]+)\.\.(-?[0-9]+)")
META = re.compile(r"(.*/)?(__[^/]*__|__MACOSX|\._[^/]*|\.DS_Store)(/|$)")  # of no sample


@dataclass(frozen=True)
class Member:
    """A regular file in an archive: its name and size; of a tar, where its bytes begin. `problem`
    says why it is not read.
    """

    name: str
    num_bytes: int
    start: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """A video in an archive, and the fields beside it: `json` keys, and the texts of other files by
    their ending (`txt`). `problems` says by ending why a file is none that can be read.
    """

    member: str
    fields: Mapping[str, Any]
    problems: Mapping[str, str]


def places(uri: str, folder: Path) -> list[tuple[str, str]]:
    """The archives that an address names, as addresses, each with its name: its path from the
    first brace or star on. Raises Unavailable for one that is not there.
    """
    archive = addresses.archive_of(uri)
    if addresses.scheme(archive.place) == "file":
        return _local_places(archive, folder)
    place = archive.place
    fixed = place[: place.rfind("/", 0, place.find("{") if "{" in place else len(place)) + 1]
    return [(each, each.removeprefix(fixed)) for each in _braces(place)]


def _local_places(archive: Archive, folder: Path) -> list[tuple[str, str]]:
    """Paths are relative to the recipe where that is possible."""
    files = addresses.named_matches(archive.place, folder)
    if not files:
        missing = []
        for place in _braces(archive.place):
            matches = addresses.named_matches(place, folder)
            missing += [] if matches else [place]
            files += [(path, name) for path, name in matches if (path, name) not in files]
        if missing:
            listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise Unavailable("not-found", f"there is no archive {listed}")
        depth = addresses.fixed_depth(archive.place.partition(":")[2], folder)
        if "{" in archive.place:
            files = [(path, "/".join(path.parts[depth:]) or name) for path, name in files]
    return [(f"file:{addresses.path_in_recipe(path, folder)}", name) for path, name in files]


def _braces(pattern: str) -> list[str]:
    """What braces stand for: `{00000..00099}`, `{a,b}`."""
    import braceexpand

    for first, last in RANGE.findall(pattern):  # each is expanded at once
        if max(len(first), len(last)) > 9 or abs(int(last) - int(first)) >= MAX_ARCHIVES:
            raise Unavailable("unsupported", f"{pattern} names more than {MAX_ARCHIVES} archives")
    try:
        names = list(itertools.islice(braceexpand.braceexpand(pattern), MAX_ARCHIVES + 1))
    except (ValueError, RecursionError) as error:
        raise Unavailable("unsupported", f"{pattern}: {error}") from error
    if len(names) > MAX_ARCHIVES:
        raise Unavailable("unsupported", f"{pattern} names more than {MAX_ARCHIVES} archives")
    return names


def is_there(uri: str, folder: Path) -> bool:
    """Whether what an address names on this machine is there, its archives too; of other addresses
    nobody is asked.
    """
    if addresses.scheme(uri) not in addresses.ARCHIVES:
        return not addresses.is_local(uri) or bool(addresses.matches(uri, folder))
    archive = addresses.archive_of(uri)
    if not addresses.is_local(archive.place):
        return True
    if archive.member is not None:
        return bool(addresses.matches(archive.place, folder))
    with contextlib.suppress(Unavailable):
        return bool(places(uri, folder))
    return False


# Where an archive is


def path_of(archive: Archive, store: Store, folder: Path, per_host: int, attempts: int) -> Path:
    """The archive on this machine; one from the web is fetched, once. Raises Unavailable."""
    if addresses.scheme(archive.place) == "file":
        paths = addresses.matches(archive.place, folder)
        if not paths:
            raise Unavailable("not-found", f"there is no archive {archive.place}")
        if not os.access(paths[0], os.R_OK):
            raise Unavailable(
                "forbidden", f"{archive.place} may not be read by who runs this build"
            )
        return paths[0]
    task = fetch.archive_task(archive.place)
    with fetch.slot(store, f"archive-{canonical.digest(task)[:16]}", 1):
        blob = store.once(task, lambda: _fetched(archive.place, store, per_host, attempts), Blob)
    return store.path(blob["sha256"])


def _fetched(place: str, store: Store, per_host: int, attempts: int) -> Blob:
    rest = store.partial(canonical.digest(["partial", place]))
    if addresses.scheme(place) in ("http", "https"):
        blob, _ = fetch.from_web(place, store, rest, "b", per_host, attempts, is_file=True)
        return blob
    return fetch.from_filesystem(place, store, rest, per_host, attempts)


# What is in it


def samples(path: Path, kind: str) -> Iterator[Sample | BadData]:
    """The videos of an archive with their fields, in the order of their names; BadData for a member
    that is refused, and for a sample without a video. Raises BadData for what is no such archive.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys

    def key_and_ending(name: str) -> tuple[str, str]:
        base, ending = base_plus_ext(name)
        return (name, "") if base is None else (base, ending)

    members = _members(path, kind)
    for member in members.values():
        if member.problem:
            yield _refused(member)
    sound = sorted(name for name, member in members.items() if not member.problem)
    files = ({"fname": name, "data": members[name], "__url__": ""} for name in sound)
    beside: set[str] = {"json"}  # endings of files that belong to a sample
    without_video: list[dict[str, Member]] = []
    with _Content(path, kind) as content:
        for group in group_by_keys(files, key_and_ending, lcase=False):
            endings = {name: member for name, member in group.items() if isinstance(member, Member)}
            videos = {name for name, member in endings.items() if content.is_video(member)}
            if not videos:
                without_video.append(endings)
                continue
            rest = {name: endings[name] for name in sorted(endings.keys() - videos)}
            beside |= rest.keys()
            fields, problems = content.fields(rest)
            for name in sorted(videos):
                yield Sample(endings[name].name, fields, problems)
    for endings in without_video:
        if not beside.isdisjoint(endings):
            names = ", ".join(sorted(shown_value(each.name) for each in endings.values())[:4])
            yield BadData("no-video-stream", f"a sample without a video: {names}")


def put_member(archive: Archive, path: Path, store: Store, sha256: str | None) -> Blob:
    """A member's bytes, taken into the store. Raises Unavailable, or BadData for a member that is
    refused, damaged or packed too densely.
    """
    member = _members(path, archive.kind).get(archive.member or "")
    if member is None:
        raise Unavailable("not-found", f"{archive.place} holds no {shown_value(archive.member)}")
    if member.problem:
        raise _refused(member)
    with _Content(path, archive.kind) as content, store.scratch() as out:
        with out.open("wb") as file:
            content.copy(member, file)
        return store.adopt(out, sha256)


def _refused(member: Member) -> BadData:
    what = f"the member {shown_value(member.name)}" if member.name else "it"
    return BadData("unreadable", f"{what} {member.problem}")


def _members(path: Path, kind: str) -> dict[str, Member]:
    status = path.stat()
    return _index(path, kind, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _index(path: Path, kind: str, num_bytes: int, changed_ns: int) -> dict[str, Member]:
    """Every regular file of an archive by name; looked up once in a process, as long as it stays
    as it is.
    """
    members: dict[str, Member] = {}
    for member in itertools.islice(_listed(path, kind), MAX_MEMBERS + 1):
        if META.match(member.name):
            continue
        if member.name in members:
            member = Member(member.name, 0, problem="stands there twice")
        elif member.name.startswith("/") or ".." in member.name.split("/"):
            member = Member(member.name, 0, problem="leads out of the archive")
        members[member.name] = member
    if len(members) > MAX_MEMBERS:
        raise BadData("too-large", f"an archive of more than {MAX_MEMBERS} members")
    return members


def _listed(path: Path, kind: str) -> Iterable[Member]:
    return _tar_members(path) if kind == "tar" else _zip_members(path)


class _ShortReads:
    """A file of which no large piece is read at once: a header of a tar may claim any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return self._file.read(num_bytes)


def _tar_members(path: Path) -> Iterator[Member]:
    """The files of a tar that is not packed. Raises BadData for what is none, or is cut off."""
    num_bytes, num_members = path.stat().st_size, 0
    try:
        with path.open("rb") as file:
            start = file.read(2)
            if start in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
                raise BadData("unreadable", "a tar that is packed: unpack it to a plain .tar first")
            file.seek(0)
            with tarfile.open(fileobj=_ShortReads(file), mode="r:") as tar:  # type: ignore[call-overload]
                for entry in tar:
                    tar.members.clear()  # it would keep all of them
                    num_members += 1
                    if not entry.isdir():
                        yield _tar_member(entry, num_bytes)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        if not num_members:
            raise BadData("unreadable", f"no tar: {error}") from error
        yield Member("", 0, problem=f"cannot be read to its end: {error}")


def _tar_member(entry: tarfile.TarInfo, num_bytes: int) -> Member:
    name = entry.name.removeprefix("./")
    if not entry.isreg():
        return Member(name, 0, problem="is a link or a device")
    if entry.issparse():
        return Member(name, 0, problem="is a sparse file")
    if entry.offset_data + entry.size > num_bytes:
        return Member(name, 0, problem="is cut off: the archive ends before it")
    return Member(name, entry.size, entry.offset_data)


def _zip_members(path: Path) -> Iterator[Member]:
    """The files of a zip. Raises BadData for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield _zip_member(entry)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise BadData("unreadable", f"no zip: {error}") from error


def _zip_member(entry: zipfile.ZipInfo) -> Member:
    if stat.S_ISLNK(entry.external_attr >> 16):
        return Member(entry.filename, 0, problem="is a link")
    if entry.flag_bits & 1:
        return Member(entry.filename, 0, problem="is encrypted")
    if entry.file_size > DENSEST * entry.compress_size + MAX_FIELD_BYTES:
        problem = f"unpacks to {entry.file_size} bytes from {entry.compress_size}, as no video does"
        return Member(entry.filename, 0, problem=problem)
    return Member(entry.filename, entry.file_size)


class _Content:
    """The bytes of members."""

    def __init__(self, path: Path, kind: str) -> None:
        self._zip = zipfile.ZipFile(path) if kind == "zip" else None
        self._file = path.open("rb")

    def __enter__(self) -> _Content:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._zip is not None:
            self._zip.close()

    def copy(self, member: Member, out: BinaryIO) -> None:
        """Write a member's bytes. Raises BadData if they are damaged, or too many."""
        left = member.num_bytes
        with self._opened(member) as file, _damage_as_bad_data(member):
            while left:
                chunk = file.read(min(left, fetch.CHUNK))
                if not chunk:
                    raise EOFError("it ends early")
                fetch.bound(out.tell() + len(chunk))
                out.write(chunk)
                left -= len(chunk)

    def _opened(self, member: Member) -> Any:
        with _damage_as_bad_data(member):
            if self._zip is not None:
                return self._zip.open(member.name)
        self._file.seek(member.start)
        return contextlib.nullcontext(self._file)

    def _start(self, member: Member, num_bytes: int) -> bytes:
        with self._opened(member) as file, _damage_as_bad_data(member):
            return bytes(file.read(min(num_bytes, member.num_bytes)))

    def is_video(self, member: Member) -> bool:
        """Whether a member is called a video or, called something else, begins like one."""
        ending = member.name.rpartition(".")[2].lower()
        if ending in VIDEOS:
            return True
        try:
            return STARTS.match(self._start(member, HEAD)) is not None
        except BadData:
            return False

    def fields(self, members: Mapping[str, Member]) -> tuple[dict[str, Any], dict[str, str]]:
        """The fields of a sample, by the files beside its video, and what is wrong with files that
        are neither text nor JSON, or too long.
        """
        texts: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for ending, member in members.items():
            try:
                text = self._text(member)
                if is_json(ending):
                    values = json.loads(text)
                    json.dumps(values, ensure_ascii=False).encode()  # half a character is no text
                    keys |= values if isinstance(values, dict) else {ending: values}
                else:
                    texts[ending] = text.strip()
            except BadData as error:
                problems[ending] = error.detail
            except (ValueError, RecursionError) as error:
                is_text = is_json(ending) and not isinstance(error, UnicodeError)
                what = f"no JSON: {error}" if is_text else "no text in UTF-8"
                problems[ending] = f"{shown_value(member.name)} is {what}"
        return {**keys, **texts}, problems

    def _text(self, member: Member) -> str:
        if member.num_bytes > MAX_FIELD_BYTES:
            problem = f"has {member.num_bytes} bytes, {MAX_FIELD_BYTES} at most are read"
            raise BadData("too-large", f"{shown_value(member.name)} {problem}")
        return self._start(member, MAX_FIELD_BYTES).decode("utf-8-sig")


def is_json(ending: str) -> bool:
    return ending.rpartition(".")[2].lower() == "json"


@contextlib.contextmanager
def _damage_as_bad_data(member: Member) -> Iterator[None]:
    """What unpacking says of damaged bytes, as BadData."""
    try:
        yield
    except fetch.DAMAGE as error:
        # an OSError without a number is how bz2 says that its data are damaged
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = f"the member {shown_value(member.name)} is damaged: {error}"
        raise BadData("unreadable", detail) from error
