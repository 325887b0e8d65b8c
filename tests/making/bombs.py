"""Small files and servers that would like to be enormous, and what a process of its own makes of
each: `python -m tests.making.bombs FOLDER` prints a line of JSON for each, with the error, the
seconds and the peak of memory.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from pipeline.dataset import lock, naming, removals
from pipeline.dataset import recipe as recipes
from tests.making.serving import Handler, serving
from training.shards import open_index

MIB = 1 << 20
SOURCE = '[[source]]\nid = "a"\nuri = "file:a.mp4"\n'
Read = Callable[[], object]


def packed_lock(folder: Path, header: bytes, line: bytes, num_bytes: int) -> Read:
    """A lock of so many bytes, of one line over and over, packed."""
    recipe = folder / "mine.toml"
    path = lock.packed_form(lock.plain_path(recipe))
    part = line * (MIB // len(line) or 1)
    with zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=3)) as file:
        file.write(header)
        for _ in range(num_bytes // len(part)):
            file.write(part)
    return lambda: lock.read(recipe)


def lock_of_empty_lines(folder: Path) -> Read:
    return packed_lock(folder, b"", b"\n", 2 << 30)


def lock_of_one_endless_line(folder: Path) -> Read:
    return packed_lock(folder, b'{"lock":"', b"a" * MIB, 64 * MIB)


def lock_of_a_list_of_objects(folder: Path) -> Read:
    return packed_lock(folder, b'{"lock":[{}', b",{}" * 1000, 64 * MIB)


def lock_with_a_million_wrong_fields(folder: Path) -> Read:
    line: dict[str, Any] = {"sample": {"key": "x", "members": {}}}
    line["sample"]["members"] = {f"{number}": number for number in range(500_000)}
    return lambda: lock.parsed("mine.lock.jsonl: line 2", line)


def nested_lock(folder: Path) -> Read:
    recipe = folder / "mine.toml"
    lock.plain_path(recipe).write_bytes(b'{"lock":' + b"[" * 50_000 + b"]" * 50_000 + b"}\n")
    return lambda: lock.read(recipe)


def removals_of_many_wrong_lines(folder: Path) -> Read:
    recipe = folder / "mine.toml"
    removals.path_of(recipe).write_bytes(b"\n" * (64 * MIB))
    return lambda: removals.read(recipe)


def removals_of_one_endless_line(folder: Path) -> Read:
    recipe = folder / "mine.toml"
    with removals.path_of(recipe).open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    return lambda: removals.read(recipe)


def recipe_of(folder: Path, text: str) -> Read:
    path = folder / "mine.toml"
    path.write_text(text)
    return lambda: recipes.load(path).digest


def number_of_5000_digits(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + "[filter]\nmin_frames = " + "9" * 5000)


def number_of_4299_digits(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + "[filter]\nmax_frames = " + "9" * 4299)


def number_in_hexadecimal(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + "[filter]\nmax_frames = 0x" + "f" * 1_000_000)


def hours_of_4299_digits(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + f'end = "{"9" * 4299}:00:00"')


def exponent_of_nine_digits(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + 'end = "1e999999999"')


def key_of_50000_parts(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + "x." * 50_000 + "y = 1")


def quoted_key_of_50000_parts(folder: Path) -> Read:
    return recipe_of(folder, SOURCE + '["a" . ' + "'b'." * 50_000 + "y]")


def name_of_50000_parts(folder: Path) -> Read:
    path = folder / "mine.toml"
    path.write_text("x." * 50_000 + "y = 1")
    return lambda: naming.name_of(path)


def tables_of_50000_levels(folder: Path) -> Read:
    return recipe_of(folder, "x = " + "{a=" * 50_000 + "1" + "}" * 50_000)


def many_wrong_sources(folder: Path) -> Read:
    return recipe_of(folder, '[[source]]\nuri = "a"\n' * 20_000)


def recipe_without_end(folder: Path) -> Read:
    (folder / "mine.toml").symlink_to("/dev/zero")
    return lambda: recipes.load(folder / "mine.toml")


def table_of(folder: Path, row: dict[str, Any]) -> Read:
    (folder / "t.jsonl").write_text(json.dumps(row) + "\n")
    columns = '[columns]\nend = "end"\ncaption = "caption"\nranges = "ranges"\n'
    return recipe_of(folder, 'sources = "t.jsonl"\n' + columns)


def row_with_hours_of_4299_digits(folder: Path) -> Read:
    row = {"uri": "file:a.mp4", "caption": "x", "ranges": [[0, "9" * 4299 + ":0:0"]]}
    return table_of(folder, row)


def row_with_a_list_of_ten_million(folder: Path) -> Read:
    row = {"uri": "file:a.mp4", "caption": "x", "ranges": "[" + "1," * 10_000_000 + "]"}
    return table_of(folder, row)


def row_of_50000_levels(folder: Path) -> Read:
    read = table_of(folder, {})
    (folder / "t.jsonl").write_text('{"uri":' + "[" * 50_000)
    return read


def small_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> Read:
    """An index of one sample, changed, beside a tar that takes no space on disk."""
    sha256 = "a" * 64
    members = {"latents.npy": [512, 640, sha256], "text.npy": [2048, 1000, sha256]}
    sample = {"key": "a", "members": members}
    shard = {"file": "0.tar", "split": "train", "num_bytes": 1 << 50, "sha256": sha256}
    index: dict[str, Any] = {
        "format": 1,
        "name": "mine",
        "root_digest": hashlib.sha256(f"{sha256}\n".encode()).hexdigest(),
        "fps": "10/1",
        "size": 64,
        "latents": {
            "scaling_factor": 1.0,
            "shape": [4, 8, 8],
            "dtype": "float16",
            "axes": "f c h w",
        },
        "encoders": {
            "vae": {"sha256": sha256},
            "clip": {"sha256": sha256, "text_layer": "last", "pad_token": 0},
        },
        "null_text": {"npy_base64": "", "sha256": sha256},
        "shards": [{**shard, "samples": [sample]}],
    }
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    return lambda: open_index(folder)


def member_of_10_to_the_12_bytes(folder: Path) -> Read:
    def change(index: dict[str, Any]) -> None:
        index["shards"][0]["samples"][0]["members"]["text.npy"][1] = 10**12

    return small_index(folder, change)


def frame_of_10_to_the_12_bytes(folder: Path) -> Read:
    return small_index(folder, lambda index: index["latents"].update(shape=[4096, 16384, 16384]))


def index_of_empty_lists(folder: Path) -> Read:
    (folder / "index.json").write_bytes(b'{"x":[' + b"[]," * (16 * MIB) + b"[]]}")
    return lambda: open_index(folder)


def index_without_end(folder: Path) -> Read:
    (folder / "index.json").symlink_to("/dev/zero")
    return lambda: open_index(folder)


def index_of_a_terabyte(folder: Path) -> Read:
    with (folder / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    return lambda: open_index(folder)


def served(answer: Callable[[Handler], None]) -> Read:
    def read() -> object:
        with serving({"/index.json": answer}) as (address, _):
            return open_index(address)

    return read


def served_index_without_end(folder: Path) -> Read:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while handler.command == "GET":
            handler.wfile.write(b" " * MIB)

    return served(answer)


def served_index_that_is_packed(folder: Path) -> Read:
    packed = gzip.compress(b" " * (64 * MIB), 1) * 100  # 6.6 GB, as gzip joins them

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(packed)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(packed)

    return served(answer)


BOMBS: tuple[Callable[[Path], Read], ...] = (
    lock_of_empty_lines,
    lock_of_one_endless_line,
    lock_of_a_list_of_objects,
    lock_with_a_million_wrong_fields,
    nested_lock,
    removals_of_many_wrong_lines,
    removals_of_one_endless_line,
    number_of_5000_digits,
    number_of_4299_digits,
    number_in_hexadecimal,
    hours_of_4299_digits,
    exponent_of_nine_digits,
    key_of_50000_parts,
    quoted_key_of_50000_parts,
    name_of_50000_parts,
    tables_of_50000_levels,
    many_wrong_sources,
    recipe_without_end,
    row_with_hours_of_4299_digits,
    row_with_a_list_of_ten_million,
    row_of_50000_levels,
    member_of_10_to_the_12_bytes,
    frame_of_10_to_the_12_bytes,
    index_of_empty_lists,
    index_without_end,
    index_of_a_terabyte,
    served_index_without_end,
    served_index_that_is_packed,
)


def outcomes(folder: Path) -> Iterator[dict[str, Any]]:
    """Set off every bomb, one after the other."""
    for bomb in BOMBS:
        place = folder / bomb.__name__
        place.mkdir()
        read = bomb(place)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        start, kind, message = time.process_time(), "", ""
        try:
            read()
        except Exception as error:
            kind, message = type(error).__name__, str(error)
        peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
        yield {
            "bomb": bomb.__name__,
            "error": kind,
            "message": message[:1000],
            "seconds": round(time.process_time() - start, 2),
            "mib": int(peak) >> 10,
        }


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    with contextlib.suppress(BrokenPipeError):
        for outcome in outcomes(Path(sys.argv[1])):
            print(json.dumps(outcome), flush=True)
