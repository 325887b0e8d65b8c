"""Bytes of a folder's files by ranges: a local folder, or anything fsspec opens.

Local files are read with `pread`, which threads and forked workers may share; others with ranges
fetched all at the same time, and tried again when the network is down for a moment. A file of
another length than promised is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity
from fsspec.implementations.http import HTTPFileSystem

from training.errors import LongtakeError, ShardError, Stopped, UsageError

MAX_OPEN = 128
MOST_WHOLE = 512 << 20  # bytes of a file that is read whole: an index of a million samples
MAX_TRIES, WAIT_S = 5, 0.5
T = TypeVar("T")
Range = tuple[str, int, memoryview]  # a file, a first byte, and the buffer to fill from there


class BoundedHTTP(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Reads no more of an answer than was asked for: one may be endless, or small and packed."""

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        most = MOST_WHOLE
        request = {**self.kwargs, **options}
        headers = {**request.pop("headers", {}), "Accept-Encoding": "identity"}
        if start is not None and end is not None:
            most = end - start
            headers["Range"] = await self._process_limits(url, start, end)
        session = await self.set_session()
        content = bytearray()
        async with session.get(self.encode_url(url), headers=headers, **request) as answer:
            self._raise_not_found_for_status(answer, url)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ShardError(f"{url}: the server packs what it was asked for as it is")
            async for part in answer.content.iter_any():
                content += part
                if len(content) > most:
                    break
        if start is None and len(content) > most:
            raise ShardError(f"{url} is longer than {most >> 20} MiB")
        return bytes(content)


class Files:
    """The files of one folder, read by ranges. May be sent to workers; a descriptor is never shared
    between two positions.
    """

    def __init__(self, url: str, num_bytes: Mapping[str, int] | None = None) -> None:
        self.url = url
        self._num_bytes = dict(num_bytes or {})
        self._open: dict[str, int] = {}
        weakref.finalize(self, _close, self._open)
        try:
            file_system, self._root = _file_system(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{url}: not a folder or URL that can be read: {error}") from None
        protocol = file_system.protocol
        self._is_local = "file" in ([protocol] if isinstance(protocol, str) else protocol)

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.url, self._num_bytes)

    def _remote(self, names: Sequence[str]) -> tuple[Any, list[str]]:
        """The file system, which is another one in another process, and the files' paths in it."""
        file_system, _ = _file_system(self.url)
        folder = self._root.rstrip("/")
        return file_system, [f"{folder}/{name}" for name in names]

    def whole(self, name: str) -> bytes:
        """A small file. FileNotFoundError if it is not there, ShardError if it is a large one."""
        if self._is_local:
            return _tried(self.url, lambda: _whole(Path(self._root, name)))
        fs, (path,) = self._remote([name])
        return _tried(path, lambda: bytes(fs.cat_file(path)))

    def check_lengths(self) -> None:
        """ShardError if a tar is missing or longer or shorter than the index says."""
        names = list(self._num_bytes)
        if self._is_local:
            for name in names:
                self._descriptor(name)
            return
        fs, paths = self._remote(names)
        with self._missing():
            sizes = _tried(self.url, lambda: fs.sizes(paths))
        for name, size in zip(names, sizes, strict=True):
            self._check_length(name, size)

    @contextlib.contextmanager
    def _missing(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            name = str(error.filename or error.args[0]).rpartition("/")[2]
            raise ShardError(
                f"{self.url}: {name} is in the index, but not there; copy it, or build again"
            ) from error

    def _check_length(self, name: str, size: int | None) -> None:
        if size is None:
            raise Stopped(
                f"{self.url}: the server does not say how long {name} is, so it cannot be read by "
                "ranges; copy the shards"
            )
        promised = self._num_bytes.get(name, size)
        if size != promised:
            reason = "truncated" if size < promised else "of another build"
            raise ShardError(
                f"{self.url}: {name} has {size} bytes, {promised} in the index: {reason}; "
                "copy it or build again"
            )

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            while len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            with self._missing():
                self._open[name] = os.open(Path(self._root, name), os.O_RDONLY | os.O_CLOEXEC)
            self._check_length(name, os.fstat(self._open[name]).st_size)
        return self._open[name]

    def fill(self, ranges: Sequence[Range]) -> None:
        """Read each range into its buffer, from afar all at the same time."""
        if self._is_local:
            try:
                counts = [
                    os.preadv(self._descriptor(name), [buffer], start)
                    for name, start, buffer in ranges
                ]
            except OSError as error:
                raise Stopped(f"{self.url}: cannot be read: {error}") from error
        else:
            fs, paths = self._remote([name for name, _, _ in ranges])
            starts = [start for _, start, _ in ranges]
            ends = [start + buffer.nbytes for _, start, buffer in ranges]
            with self._missing():
                parts = _tried(
                    self.url, lambda: fs.cat_ranges(paths, starts, ends, on_error="raise")
                )
            counts = [len(part) for part in parts]
            for (_, _, buffer), part in zip(ranges, parts, strict=True):
                buffer[: len(part)] = part[: buffer.nbytes]
        for (name, start, buffer), num_bytes in zip(ranges, counts, strict=True):
            if num_bytes > buffer.nbytes:
                raise Stopped(
                    f"{self.url}: the server sends all of {name} when asked for a range; copy the "
                    "shards"
                )
            if num_bytes < buffer.nbytes:
                raise ShardError(
                    f"{self.url}: {name} ends at byte {start + num_bytes}: truncated; copy it or "
                    "build again"
                )


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    file_system, root = fsspec.core.url_to_fs(url)
    if type(file_system) is HTTPFileSystem:
        file_system = BoundedHTTP(**file_system.storage_options)
    return file_system, root


def _whole(path: Path) -> bytes:
    facts = path.stat()
    if stat.S_ISREG(facts.st_mode) and facts.st_size > MOST_WHOLE:
        raise ShardError(f"{path} is longer than {MOST_WHOLE >> 20} MiB")
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
        raise ShardError(f"{path} is no file")  # a device has no end, and a pipe waits
    return path.read_bytes()


def _close(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _passes(error: BaseException) -> bool:
    """Whether it may work the next time: a network is down now and then, a missing file is
    missing.
    """
    error = error.__cause__ or error
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    settled = (
        LongtakeError,
        FileNotFoundError,
        PermissionError,
        NotADirectoryError,
        IsADirectoryError,
        ValueError,
        TypeError,
        ImportError,
    )
    return isinstance(error, Exception) and not isinstance(error, settled)


def _tried(what: str, act: Callable[[], T]) -> T:
    """Call until it works or there is no hope. No jitter: it would draw from Python's own
    generator.
    """
    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_passes),
        wait=tenacity.wait_exponential(multiplier=WAIT_S, max=20),
        stop=tenacity.stop_after_attempt(MAX_TRIES),
        reraise=True,
    )
    try:
        return retry(act)
    except Exception as error:
        cause = error.__cause__ or error
        status = getattr(cause, "status", None)
        is_missing = isinstance(cause, FileNotFoundError | NotADirectoryError) or status == 404
        is_of_the_world = isinstance(cause, OSError) or isinstance(status, int) or _passes(error)
        if is_missing or not is_of_the_world:
            raise
        raise Stopped(
            f"{what}: cannot be read: {type(cause).__name__}: {cause}; type the same command again"
        ) from error
