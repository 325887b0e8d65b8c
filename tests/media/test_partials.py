"""Downloads that break off in one version of a file and go on in another, over HTTP and fsspec."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tenacity
import zstandard
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from pipeline.core.canonical import file_digest
from pipeline.core.manifest import Manifest
from pipeline.core.records import Blob, Source
from pipeline.core.store import Store
from pipeline.media import fetch, partials
from tests.making import footage, serving
from tests.making.downloads import download_all
from tests.making.serving import (
    Answer,
    changing,
    content,
    etag,
    last_modified,
    page,
    status,
    weak_etag,
)

YT_DLP = fetch._yt_dlp
Says = Callable[[Path], dict[str, str]]
CUT = 4000  # bytes after which a download breaks off
PIECE = 3000
HEAD = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-VERSION:4\n"
HLS = "application/x-mpegurl"


def nothing(path: Path) -> dict[str, str]:
    return {}


def constant_weak(path: Path) -> dict[str, str]:
    return {"ETag": 'W/"1"'}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses of our own, and of yt-dlp's 1,800 sites only the one that any address is."""
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())
    monkeypatch.setattr(
        fetch, "_yt_dlp", lambda options: YT_DLP({**options, "allowed_extractors": ["generic"]})
    )


@pytest.fixture
def new(film: Callable[..., Path]) -> Path:
    path = film(footage.plain, 2, size="160x120")
    assert path.stat().st_size > 2 * CUT
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


@pytest.fixture
def old(new: Path, tmp_path: Path) -> Path:
    """The version before: as long, and every byte of it is another one."""
    path = tmp_path / "old.mp4"
    path.write_bytes(bytes(255 - byte for byte in new.read_bytes()))
    os.utime(path, (1_500_000_000, 1_500_000_000))
    return path


@pytest.fixture
def longer(old: Path, tmp_path: Path) -> Path:
    """A version before that is as old as the new one, and longer."""
    path = tmp_path / "longer.mp4"
    path.write_bytes(old.read_bytes() * 2)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


def got(
    store: Store, answers: dict[str, Answer], path: str = "/film.mp4"
) -> tuple[Manifest, list[tuple[str, str | None]]]:
    """What the stage made of an address, and the (path, range) of all that was asked for."""
    with serving.serving(answers) as (address, asked):
        manifest = download_all([Source("a", f"{address}{path}")], store, store.root)
    return manifest, asked


def digests(manifest: Manifest) -> list[str]:
    return [video.blob.sha256 for video in manifest.records]


def refusal(manifest: Manifest) -> tuple[str, str]:
    [rejection] = manifest.rejections
    return rejection.fate, rejection.reason


def starts(asked: list[tuple[str, str | None]]) -> list[int]:
    return [int(span.removeprefix("bytes=").partition("-")[0]) for _, span in asked if span]


# One file over HTTP


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("says", [etag, weak_etag, constant_weak, last_modified, nothing])
def test_a_file_that_changes_between_two_connections_is_fetched_anew(
    store: Store, old: Path, new: Path, says: Says, heeds_if_range: bool
) -> None:
    answer = changing(old, new, says, CUT, heeds_if_range)
    assert digests(got(store, {"/film.mp4": answer})[0]) == [file_digest(new)]


@pytest.mark.parametrize("says", [last_modified, constant_weak, nothing])
def test_a_file_whose_length_alone_changes_is_fetched_anew(
    store: Store, longer: Path, new: Path, says: Says
) -> None:
    answer = changing(longer, new, says, CUT, heeds_if_range=False)
    assert digests(got(store, {"/film.mp4": answer})[0]) == [file_digest(new)]


@pytest.mark.parametrize("says", [etag, last_modified])
def test_a_file_that_has_not_changed_is_gone_on_with(store: Store, new: Path, says: Says) -> None:
    manifest, asked = got(store, {"/film.mp4": changing(new, new, says, CUT)})
    assert digests(manifest) == [file_digest(new)]
    [start] = starts(asked)
    assert 0 < start <= CUT


@pytest.mark.parametrize("says", [weak_etag, nothing])
def test_without_proof_of_the_version_a_download_starts_anew(
    store: Store, new: Path, says: Says
) -> None:
    manifest, asked = got(store, {"/film.mp4": changing(new, new, says, CUT)})
    assert digests(manifest) == [file_digest(new)]
    assert starts(asked) == []


def test_a_time_stamp_of_this_minute_is_no_proof(store: Store, new: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.mp4"
    fresh.write_bytes(new.read_bytes())
    manifest, asked = got(store, {"/film.mp4": changing(fresh, fresh, last_modified, CUT)})
    assert digests(manifest) == [file_digest(new)]
    assert starts(asked) == []


DAMAGED: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b'{"condition": 1, "path": "/film.mp4"}',
    b'{"condition": null}',
    b'{"condition": "x", "num_bytes": true}',
    b'{"condition": "x", "num_bytes": 1e400}',
    b"[" * 50_000,
    b" " * 200_000,
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_partial_with_a_damaged_version_beside_it_starts_anew(
    store: Store, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    answers: dict[str, Answer] = {"/film.mp4": changing(old, old, etag, CUT)}
    with serving.serving(answers) as (address, asked):
        folder, uri = store.partial("x"), f"{address}/film.mp4"
        with pytest.raises(fetch.Unavailable):
            fetch.from_web(uri, store, folder, "b", 1, 1)
        [version] = folder.glob(f"*{partials.SUFFIX}")
        version.write_bytes(damage)
        answers["/film.mp4"] = changing(new, new, etag, CUT)
        with pytest.raises(fetch.Unavailable):
            fetch.from_web(uri, store, folder, "b", 1, 1)
        assert starts(asked) == []
        blob, _ = fetch.from_web(uri, store, folder, "b", 1, 1)
    assert len(starts(asked)) == 1
    assert blob.sha256 == file_digest(new)
    assert not folder.exists()


def test_a_partial_of_an_earlier_run_is_gone_on_with_only_if_the_file_is_the_same(
    store: Store, old: Path, new: Path
) -> None:
    answers: dict[str, Answer] = {"/film.mp4": changing(old, new, etag, CUT)}
    with serving.serving(answers) as (address, _):
        folder, uri = store.partial("x"), f"{address}/film.mp4"
        with pytest.raises(fetch.Unavailable):
            fetch.from_web(uri, store, folder, "b", 1, 1)
        assert len(list(folder.iterdir())) == 2
        blob, _ = fetch.from_web(uri, store, folder, "b", 1, 1)
    assert blob.sha256 == file_digest(new)


def test_what_an_older_longtake_left_is_not_gone_on_with(
    store: Store, old: Path, new: Path
) -> None:
    folder = store.partial("x")
    for name in ("video.0.mp4", "video.0.mp4.part", "video.mp4", "video.mp4.part", "video.part"):
        (folder / name).write_bytes(old.read_bytes()[:CUT])
    with serving.serving({"/film.mp4": content(new)}) as (address, _):
        blob, _ = fetch.from_web(f"{address}/film.mp4", store, folder, "b", 1, 1)
    assert blob.sha256 == file_digest(new)


def test_two_builds_that_fetch_one_source_do_so_one_after_the_other(
    store: Store, new: Path
) -> None:
    folder = store.partial("x")
    blobs: list[Blob] = []
    with serving.serving({"/film.mp4": content(new)}) as (address, asked):

        def fetch_one() -> None:
            blob, _ = fetch.from_web(f"{address}/film.mp4", store, folder, "b", 1, 1)
            blobs.append(blob)

        other_build = threading.Thread(target=fetch_one)
        with fetch._alone(store, folder):
            (folder / "video.0.mp4.part").write_bytes(b"ours")
            other_build.start()
            other_build.join(0.5)
            assert asked == []
            assert (folder / "video.0.mp4.part").read_bytes() == b"ours"
        other_build.join()
    assert [blob.sha256 for blob in blobs] == [file_digest(new)]


def resumed_by(path: Path, respond: Callable[[serving.Handler, bytes, int], None]) -> Answer:
    """The first download breaks off; how it goes on says `respond`, once; then all is well."""
    state = {"gets": 0, "resumes": 0}
    broken, whole = changing(path, path, etag, CUT), content(path)

    def answer(handler: serving.Handler) -> None:
        state["gets"] += 1
        first = serving.first_wanted(handler)
        if first and state["resumes"] == 0:
            state["resumes"] = 1
            respond(handler, path.read_bytes(), first)
        elif state["gets"] <= 2:
            broken(handler)
        else:
            whole(handler)

    return answer


def respond_with(code: int, headers: Mapping[str, str], body: Callable[[bytes, int], bytes]) -> Any:
    def respond(handler: serving.Handler, whole: bytes, first: int) -> None:
        sent = body(whole, first)
        places = {"FIRST": first, "LAST": len(whole) - 1, "LEN": len(whole)}
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value.format(**places))
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    return respond


WRONG_PARTS: dict[str, tuple[int, str, Callable[[bytes, int], bytes]]] = {
    "begins earlier": (206, "bytes 0-{LAST}/{LEN}", lambda whole, first: whole),
    "begins later": (206, "bytes 5000-{LAST}/{LEN}", lambda whole, first: whole[5000:]),
    "ends earlier": (206, "bytes {FIRST}-5000/{LEN}", lambda whole, first: whole[first:5001]),
    "of a longer file": (
        206,
        "bytes {FIRST}-{LAST}/99999999",
        lambda whole, first: whole[first:],
    ),
    "of no length": (206, "bytes {FIRST}-{LAST}/*", lambda whole, first: whole[first:]),
    "of no range": (206, "nonsense", lambda whole, first: whole),
    "beyond the end": (416, "bytes */{LEN}", lambda whole, first: b""),
}


@pytest.mark.parametrize("part", WRONG_PARTS)
def test_a_part_that_does_not_fit_is_not_joined_to_what_is_there(
    store: Store, new: Path, part: str
) -> None:
    code, content_range, body = WRONG_PARTS[part]
    headers = {**etag(new), "Content-Range": content_range}
    answer = resumed_by(new, respond_with(code, headers, body))
    manifest, _ = got(store, {"/film.mp4": answer})
    assert digests(manifest) == [file_digest(new)]


def test_a_part_that_was_not_asked_for_is_no_video(store: Store, new: Path) -> None:
    half = new.stat().st_size // 2
    respond = respond_with(
        206,
        {"Content-Type": "video/mp4", "Content-Range": f"bytes 0-{half - 1}/{{LEN}}"},
        lambda whole, first: whole[:half],
    )
    manifest, _ = got(store, {"*": lambda handler: respond(handler, new.read_bytes(), 0)})
    assert refusal(manifest) == ("unavailable", "network")
    assert "gives other bytes than it was asked for" in manifest.rejections[0].detail


# One file over HTTP, piece by piece


def pieces(path_of: Callable[[int], Path], says: Says, heeds_if_range: bool = True) -> Answer:
    """A file with ranges that end; `path_of` says which file it is at the n-th of them."""
    state = {"ranges": 0}

    def answer(handler: serving.Handler) -> None:
        span = handler.headers.get("Range")
        path = path_of(state["ranges"])
        state["ranges"] += span is not None
        whole, headers = path.read_bytes(), says(path)
        condition = handler.headers.get("If-Range")
        if condition and heeds_if_range and condition not in headers.values():
            span = None
        if span is None:
            handler.send(whole, "video/mp4", headers=headers)
            return
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        sent = whole[first : last + 1]
        handler.send_response(206)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Range", f"bytes {first}-{first + len(sent) - 1}/{len(whole)}")
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    return answer


@pytest.fixture
def _in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    piecewise = {"allowed_extractors": ["generic"], "http_chunk_size": PIECE}
    monkeypatch.setattr(fetch, "_yt_dlp", lambda options: YT_DLP({**options, **piecewise}))


@pytest.mark.usefixtures("_in_pieces")
@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("says", [etag, weak_etag, last_modified, nothing])
def test_a_file_that_changes_between_two_pieces_is_fetched_anew(
    store: Store, old: Path, new: Path, says: Says, heeds_if_range: bool
) -> None:
    answer = pieces(lambda num: old if num < 2 else new, says, heeds_if_range)
    with serving.serving({"/film.mp4": answer}) as (address, asked):
        blob, _ = fetch.from_web(f"{address}/film.mp4", store, store.partial("x"), "b", 1, 3)
    # without proof of the version no piece is asked for, and the old file comes whole
    is_proof = says in (etag, last_modified)
    assert blob.sha256 == file_digest(new if is_proof else old)
    assert (len(starts(asked)) > 2) is is_proof


# Packed answers


def packed(body: bytes, encoding: str, kind: str) -> Answer:
    def answer(handler: serving.Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Encoding", encoding)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


ZEROS = bytes(60_000_000)
PACKED = {
    "gzip": lambda: gzip.compress(ZEROS, 1),
    "deflate": lambda: zlib.compress(ZEROS, 1),
    "zstd": lambda: zstandard.compress(ZEROS, 1),
    "br": lambda: b"\x0b\x02\x80hello\x03",
    "gzip, gzip": lambda: gzip.compress(gzip.compress(ZEROS, 1), 1),
    "GZIP": lambda: gzip.compress(ZEROS, 1),
}


@pytest.mark.parametrize("encoding", PACKED)
def test_a_video_that_comes_packed_is_refused_before_it_is_unpacked(
    store: Store, encoding: str
) -> None:
    body = PACKED[encoding]()
    tracemalloc.start()
    try:
        manifest, _ = got(store, {"*": packed(body, encoding, "video/mp4")})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refusal(manifest) == ("unavailable", "unsupported")
    assert "packed (Content-Encoding: " in manifest.rejections[0].detail
    assert peak < 50_000_000
    assert not [path for path in store.root.rglob("*") if path.stat().st_size > 100_000]


@pytest.mark.parametrize("code", [200, 404])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "gzip, gzip"])
def test_a_packed_page_is_bounded_as_it_is_unpacked(
    store: Store, monkeypatch: pytest.MonkeyPatch, encoding: str, code: int
) -> None:
    monkeypatch.setattr(fetch, "MAX_PAGE_BYTES", 5_000_000)
    body = PACKED[encoding]()
    tracemalloc.start()
    try:
        manifest, _ = got(store, {"*": packed(body, encoding, "text/html")}, "/page")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refusal(manifest) == ("unavailable", "unsupported")
    assert peak < 50_000_000


FETCH = """
import sys, time
from pathlib import Path
import yt_dlp
from pipeline.core.store import Store
from pipeline.media import fetch
store = Store(Path(sys.argv[1]))
store.prepare()
YT_DLP = fetch._yt_dlp
fetch._yt_dlp = lambda options: YT_DLP({**options, "allowed_extractors": ["generic"]})
begin = time.monotonic()
for index, address in enumerate(sys.argv[2:]):
    try:
        fetch.from_web(address, store, store.partial(str(index)), "b", 1, 1)
    except (fetch.Unavailable, fetch.BadData) as error:
        print(error)
seconds = time.monotonic() - begin
status = Path("/proc/self/status").read_text()  # ru_maxrss counts the process that forked, too
print(seconds, status.partition("VmHWM:")[2].split()[0])
"""


def test_a_hostile_server_ends_in_one_line_within_ten_seconds_and_a_gigabyte(
    tmp_path: Path,
) -> None:
    bomb = gzip.compress(bytes(100_000_000), 9) * 30  # 3 MB that unpack to 3 GB
    assert len(bomb) < 3_500_000
    manifest = page(f"{HEAD}#EXTINF:1,\n/film\n#EXT-X-ENDLIST\n", HLS)
    answers = {
        "/film.mp4": packed(bomb, "gzip", "video/mp4"),
        "/film": packed(bomb, "gzip", "application/octet-stream"),
        "/page": packed(bomb, "gzip", "text/html"),
        "/playlist": packed(bomb, "gzip", HLS),
        "/film.m3u8": manifest,
    }
    with serving.serving(answers) as (address, _):
        command = [sys.executable, "-c", FETCH, str(tmp_path / "store")]
        command += [f"{address}{path}" for path in answers]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, figures = process.stdout.splitlines()
    seconds, kilobytes = map(float, figures.split())
    assert len(lines) == len(answers)
    assert all(line.startswith("unsupported: ") for line in lines)
    assert seconds < 10 * len(answers)
    assert kilobytes < 1_000_000
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_size > 1_000_000]


# Fragments

# yt-dlp leaves the file of a download in fragments open when it fails
leaves_a_file_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def playlist(*lines: str) -> Answer:
    return page(HEAD + "\n".join(lines) + "\n#EXT-X-ENDLIST\n", HLS)


@pytest.fixture
def stream(film: Callable[..., Path]) -> Path:
    return film(footage.mpegts, suffix=".ts")


def part(path: Path, first: int, last: int) -> Answer:
    return lambda handler: handler.send(path.read_bytes()[first:last], "video/mp2t")


@leaves_a_file_open
def test_fragments_of_a_broken_off_download_are_not_gone_on_with(
    store: Store, stream: Path
) -> None:
    size = stream.stat().st_size
    half = size // 376 * 188
    fragments = playlist("#EXTINF:1,", "/0.ts", "#EXTINF:1,", "/1.ts")
    answers = {
        "/film.m3u8": fragments,
        "/0.ts": lambda handler: handler.send(b"\x47" * half, "video/mp2t"),  # the old version
        "/1.ts": status(503),
    }
    with serving.serving(answers) as (address, _):
        folder, uri = store.partial("x"), f"{address}/film.m3u8"
        with pytest.raises(fetch.Unavailable):
            fetch.from_web(uri, store, folder, "b", 1, 1)
        assert list(folder.iterdir())
        answers["/0.ts"], answers["/1.ts"] = part(stream, 0, half), part(stream, half, size)
        blob, _ = fetch.from_web(uri, store, folder, "b", 1, 1)
        fresh, _ = fetch.from_web(uri, store, store.partial("y"), "b", 1, 1)
    assert blob == fresh
    gc.collect()


@leaves_a_file_open
def test_a_stream_with_a_fragment_that_is_not_there_is_no_video(store: Store, stream: Path) -> None:
    size = stream.stat().st_size
    fragments = playlist("#EXTINF:1,", "/0.ts", "#EXTINF:1,", "/1.ts", "#EXTINF:1,", "/0.ts")
    answers = {"/film.m3u8": fragments, "/0.ts": part(stream, 0, size), "/1.ts": status(404)}
    assert refusal(got(store, answers, "/film.m3u8")[0]) == ("unavailable", "gone")
    gc.collect()


@leaves_a_file_open
@pytest.mark.parametrize("says", [etag, weak_etag, last_modified])
def test_fragments_that_are_ranges_of_one_file_are_of_one_version(
    store: Store, stream: Path, tmp_path: Path, says: Says
) -> None:
    old_stream = tmp_path / "old.ts"
    old_stream.write_bytes(bytes(255 - byte for byte in stream.read_bytes()))
    os.utime(old_stream, (1_500_000_000, 1_500_000_000))
    size = stream.stat().st_size
    half = size // 2
    fragments = playlist(
        "#EXTINF:1,",
        f"#EXT-X-BYTERANGE:{half}@0",
        "/all.ts",
        "#EXTINF:1,",
        f"#EXT-X-BYTERANGE:{size - half}@{half}",
        "/all.ts",
    )
    answers = {"/film.m3u8": fragments, "/all.ts": pieces(lambda num: stream, says)}
    [fresh] = digests(got(store, answers, "/film.m3u8")[0])
    answers["/all.ts"] = pieces(lambda num: old_stream if num < 1 else stream, says)
    assert digests(got(store, answers, "/film.m3u8")[0]) == [fresh]
    answers["/all.ts"] = content(stream)  # a server that gives no part
    manifest, _ = got(store, {**answers, "/b.m3u8": fragments}, "/b.m3u8")
    assert manifest.records == ()
    gc.collect()


@leaves_a_file_open
def test_a_fragment_that_is_larger_than_any_is_too_large(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "MAX_FRAGMENT_BYTES", 300_000)
    fragments = playlist("#EXTINF:1,", "/0.ts")
    answers = {"/film.m3u8": fragments, "/0.ts": serving.endless(b"\x47", "video/mp2t")}
    assert refusal(got(store, answers, "/film.m3u8")[0]) == ("bad", "too-large")
    gc.collect()


# fsspec


class Reader(AbstractBufferedFile):  # type: ignore[misc]
    """Reads block by block, each from what the object is by then."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.read(start, end))


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """One object, which is another one after some reads; a read may fail."""

    protocol = "bucket"
    cachable = False
    versions: tuple[bytes, ...] = ()
    facts: tuple[dict[str, Any], ...] = ()
    reads: tuple[int, ...] = ()  # how many reads each version but the last one gives
    failures: tuple[int, ...] = ()  # the numbers of the reads that fail
    starts: tuple[int, ...] = ()
    count = 0

    @classmethod
    def now(cls) -> int:
        total = 0
        for version, num_reads in enumerate(cls.reads):
            total += num_reads
            if cls.count < total:
                return version
        return len(cls.versions) - 1

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", **self.facts[self.now()]}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Reader:
        size = len(self.versions[self.now()])
        return Reader(self, path, mode, block_size=PIECE, cache_type="none", size=size)

    def read(self, start: int, end: int) -> bytes:
        kind = type(self)
        content = kind.versions[kind.now()]
        kind.starts += (start,)
        kind.count += 1
        if kind.count in kind.failures:
            raise ConnectionResetError("gone")
        return content[start:end]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> type[Bucket]:
    kind = type("FreshBucket", (Bucket,), {})
    fsspec.register_implementation("bucket", kind, clobber=True)
    monkeypatch.setattr(fetch, "CHUNK", PIECE)
    return kind


def facts_as(style: str, version: int, size: int) -> dict[str, Any]:
    styles: dict[str, dict[str, Any]] = {
        "etag": {"ETag": f'"{version}"'},
        "time": {"mtime": 1.5 + version},
        "generation": {"generation": version},
        "nothing": {},
    }
    return {"size": size, **styles[style]}


def fill(kind: type[Bucket], style: str, *versions: bytes) -> None:
    kind.versions = versions
    kind.facts = tuple(
        facts_as(style, version, len(content)) for version, content in enumerate(versions)
    )


@pytest.mark.parametrize("style", ["etag", "time", "generation"])
def test_an_object_that_changes_under_an_open_file_is_fetched_anew(
    store: Store, old: Path, new: Path, bucket: type[Bucket], style: str
) -> None:
    fill(bucket, style, old.read_bytes(), new.read_bytes())
    bucket.reads = (2,)
    [video] = download_all([Source("a", "bucket://film.mp4")], store, store.root).records
    assert video.blob.sha256 == file_digest(new)


@pytest.mark.parametrize("style", ["etag", "time", "generation", "nothing"])
def test_an_object_that_changes_between_two_connections_is_fetched_anew(
    store: Store, old: Path, new: Path, bucket: type[Bucket], style: str
) -> None:
    fill(bucket, style, old.read_bytes(), new.read_bytes())
    bucket.reads, bucket.failures = (3,), (3,)
    [video] = download_all([Source("a", "bucket://film.mp4")], store, store.root).records
    assert video.blob.sha256 == file_digest(new)


@pytest.mark.parametrize(("style", "is_gone_on_with"), [("etag", True), ("nothing", False)])
def test_an_object_that_has_not_changed_is_gone_on_with_if_its_version_is_known(
    store: Store, new: Path, bucket: type[Bucket], style: str, is_gone_on_with: bool
) -> None:
    fill(bucket, style, new.read_bytes())
    bucket.failures = (3,)
    [video] = download_all([Source("a", "bucket://film.mp4")], store, store.root).records
    assert video.blob.sha256 == file_digest(new)
    assert (bucket.starts.count(0) == 1) is is_gone_on_with


def test_an_object_that_ends_before_its_size_is_not_taken_for_whole(
    store: Store, new: Path, bucket: type[Bucket]
) -> None:
    fill(bucket, "etag", new.read_bytes())
    bucket.facts = ({"size": len(bucket.versions[0]) + 1, "ETag": "1"},)
    manifest = download_all([Source("a", "bucket://film.mp4")], store, store.root)
    assert refusal(manifest) == ("unavailable", "network")


def test_a_local_object_behind_a_link_is_known_by_its_own_time_stamp(
    store: Store, old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film, link = tmp_path / "film.mp4", tmp_path / "link.mp4"
    film.write_bytes(old.read_bytes())
    link.symlink_to(film)
    copy, changes = fetch._copy, [new.read_bytes()]

    def changing_copy(source: Any, target: Any) -> None:
        copy(source, target)
        if changes:
            film.write_bytes(changes.pop())

    monkeypatch.setattr(fetch, "_copy", changing_copy)
    [video] = download_all([Source("a", f"local://{link}")], store, store.root).records
    assert video.blob.sha256 == file_digest(new)


def test_a_version_is_all_that_a_file_system_says_of_it_but_when_it_was_read() -> None:
    class FileSystem:
        def __init__(self, **details: Any) -> None:
            self.details = details

        def invalidate_cache(self) -> None: ...

        def info(self, path: str) -> dict[str, Any]:
            return self.details

    def facts(**details: Any) -> dict[str, str | int]:
        return partials.facts_of_object(FileSystem(**details), "x")

    assert facts(size=3, time=1, name="x") == facts(size=3, time=2, name="y") == {"num_bytes": 3}
    assert "condition" not in facts(size=3)
    for name in ("ETag", "LastModified", "last-modified", "md5Hash", "VersionId", "modify"):
        assert facts(size=3, **{name: 1}) != facts(size=3, **{name: 2})
        assert "condition" in facts(**{name: 1})
    assert json.dumps(facts(size=None, mtime=None)) == "{}"
