"""Fuzzing of every reader of our own formats, from valid files outward, as strangers, disks and
merges make them.

What is read is a valid value, or the error is one of ours: one printable line that names the file.
`LONGTAKE_FUZZ=3000 pytest tests/whole/test_readers.py` looks further: so many examples of each, and
others in every run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline.core import errors, manifest
from pipeline.core.store import Store
from pipeline.dataset import build, lock, naming, rates, removals
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import KINDS, manifest_path
from pipeline.dataset.likeness import compare_locks
from pipeline.dataset.removals import Removal
from pipeline.media.scorers import head
from pipeline.publish import card, reproduce, sweep
from tests.making.bombs import BOMBS
from tests.making.dataset import Dataset
from training import errors as training_errors
from training.shards import open_index

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("LONGTAKE_FUZZ", "0"))
MOST_S = 10.0  # of one example, on the processor
OURS = (errors.LongtakeError, training_errors.LongtakeError)
WRONG: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "0", "1/0", "-1/3", "1/3", "1e999999999", "9" * 4299, f"{'9' * 4299}/1",
    "a" * 64, "A" * 64, "../../etc/passwd", "/etc/passwd", "a\nb", "\x1b[31mred\x9b0m", "\ud800",
    "\u202ereversed", "{}", [], {}, [[]], [{}], [None], {"": None}, {"a": {"b": [1]}},
    {"sha256": "x", "num_bytes": -1}, {"sha256": "a" * 64, "num_bytes": 0},
]  # fmt: skip
deep: Any = []
for _ in range(90):
    deep = [deep]
WRONG.append(deep)
NAMES = ("key", "sha256", "video", "of", "facts", "bad", "suffix", "check", "removals", "previous")


def fuzzed(num_examples: int) -> Callable[..., Any]:
    """The settings of a test that takes so many examples under `make test`."""
    return settings(
        max_examples=EXAMPLES or num_examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a value of JSON."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    places: list[tuple[Any, Any]] = []
    for key in keys if isinstance(value, dict | list) else ():
        places.append((value, key))
        if isinstance(value[key], dict | list):
            places += places_in(value[key])
    return places


def changed(value: Any, data: st.DataObject) -> Any:
    """A value with one, two or three of its parts replaced, dropped, doubled or added."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        places = places_in(value)
        if not places:
            return copy.deepcopy(data.draw(st.sampled_from(WRONG)))
        container, key = data.draw(st.sampled_from(places))
        act = data.draw(st.sampled_from(["replace", "replace", "drop", "copy", "add", "wrap"]))
        if act == "replace":
            container[key] = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
        elif act == "drop":
            del container[key]
        elif act == "copy":
            container[key] = copy.deepcopy(data.draw(st.sampled_from([c[k] for c, k in places])))
        elif act == "wrap":
            container[key] = data.draw(st.sampled_from([[container[key]], {"a": container[key]}]))
        elif isinstance(container, dict):
            name = data.draw(st.sampled_from(NAMES))
            container[name] = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
        else:
            container.append(copy.deepcopy(data.draw(st.sampled_from(WRONG))))
    return value


def sealed(value: Any) -> bytes:
    """As `canonical.seal`, for what that refuses too: a stranger computes any check."""

    def text(plain: Any) -> bytes:
        line = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return line.encode("utf-8", "surrogatepass")

    if not isinstance(value, dict):
        return text(value)
    value = {name: item for name, item in value.items() if name != "check"}
    return text({**value, "check": hashlib.sha256(text(value)).hexdigest()[:16]})


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Bytes of which some are flipped, cut out, doubled or put in."""
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 400)))
    junk = data.draw(st.sampled_from([b"", b"\0", b"\n", b"\xff", b"\r", b'"', b"[" * 2000, b"{}"]))
    return content[:start] + junk + content[data.draw(st.sampled_from([start, end])) :]


def fuzz_lines(content: bytes, data: st.DataObject) -> bytes:
    """A file of sealed lines with a line that says something else under a right check, with lines
    dropped, doubled or moved, or with damaged bytes.
    """
    if data.draw(st.integers(0, 4)) == 0:
        return damaged(content, data)
    lines = [json.loads(line) for line in content.splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    act = data.draw(st.sampled_from(["change", "change", "change", "change", "drop", "double"]))
    if act == "drop":
        del lines[number]
    elif act == "double":
        lines.insert(data.draw(st.integers(0, len(lines))), lines[number])
    else:
        lines[number] = changed(lines[number], data)
    return b"".join(sealed(line) + b"\n" for line in lines)


def check(read: Callable[[], object], name: str, num_lines: int = 1) -> None:
    """Read; raises AssertionError unless it works, or is refused as it should be."""
    start, message = time.process_time(), ""
    try:
        read()
    except OURS as error:
        message = str(error) or "nothing was said"
    lines = message.split("\n")
    assert len(lines) <= num_lines, message
    for line in lines if message else ():
        assert name in line or line.startswith("and "), line
        assert len(line) < 3000, line
        assert errors.printable(line) == line, ascii(line)
    assert time.process_time() - start < MOST_S


@fuzzed(80)
@given(st.data())
def test_any_lock_is_read_or_refused_in_a_line(
    small_dataset: Dataset, tmp_path: Path, data: st.DataObject
) -> None:
    recipe = tmp_path / "small.toml"
    shutil.copy(small_dataset.recipe, recipe)
    path = lock.plain_path(recipe)
    path.write_bytes(fuzz_lines(small_dataset.lock.read_bytes(), data))
    loaded, whole = recipes.load(small_dataset.recipe), lock.read(small_dataset.recipe)
    lock.removals_known(path)

    def read() -> None:
        locked = lock.read(recipe)
        assert lock.read(recipe).encode() == locked.encode()
        card.markdown(loaded, locked)
        compare_locks(whole, locked)
        compare_locks(locked, whole)
        reproduce.edits(loaded, locked)

    check(read, "small.lock.jsonl")


@fuzzed(50)
@given(st.data())
def test_any_removals_file_is_read_or_refused_in_a_line(
    tmp_path: Path, data: st.DataObject
) -> None:
    recipe = tmp_path / "mine.toml"
    path = removals.path_of(recipe)
    path.unlink(missing_ok=True)
    video = {"video": "a" * 64, "span": [None, "3/2"]}
    facts = {"videos": {"a": video}, "samples": ["a-0000"], "shards": ["00000"]}
    for source in ("a", "b", "c"):
        removals.note(recipe, source, Removal("2026-01-01T00:00:00Z", "asked to"), facts)
    path.write_bytes(fuzz_lines(path.read_bytes(), data))
    check(lambda: removals.head_of(removals.read(recipe)), "mine.removed.jsonl")


@fuzzed(80)
@given(st.data())
def test_any_manifest_is_read_or_refused_in_a_line(
    small_dataset: Dataset, tmp_path: Path, data: st.DataObject
) -> None:
    stage = data.draw(st.sampled_from(sorted(KINDS)))
    whole = manifest_path(small_dataset.data / "small", stage)
    path = manifest_path(tmp_path / "small", stage)
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    path.write_bytes(fuzz_lines(whole.read_bytes(), data))
    store = Store(small_dataset.data / "store")
    check(lambda: manifest.read(path, KINDS[stage]), path.name)
    check(lambda: sweep.references_of([path.parent], store), path.name)


@fuzzed(50)
@given(st.data())
def test_any_index_is_read_or_refused_in_a_line(
    small_dataset: Dataset, tmp_path: Path, data: st.DataObject
) -> None:
    whole = (small_dataset.data / "small" / "shards" / "index.json").read_bytes()
    (tmp_path / "index.json").write_bytes(fuzz_lines(whole, data))
    check(lambda: open_index(tmp_path), "index.json")


@dataclass(frozen=True)
class Notes:
    """A data folder of which one file in the store is changed at a time."""

    dataset: Dataset
    folder: Path


@pytest.fixture(scope="module")
def notes(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Notes:
    folder = tmp_path_factory.mktemp("notes") / "data"
    shutil.copytree(small_dataset.data, folder)
    store = Store(folder / "store")
    for path in store.memos():
        store.note_failure(path.name, "network", "it was down", 3)
    return Notes(small_dataset, folder)


@fuzzed(50)
@given(st.data())
def test_a_memo_or_note_that_is_wrong_counts_as_not_there_and_stops_nothing(
    notes: Notes, data: st.DataObject
) -> None:
    store = Store(notes.folder / "store")
    paths = [*store.memos(), *sorted((store.root / "failures").glob("*/*"))]
    path = data.draw(st.sampled_from(paths))
    loaded = recipes.load(notes.dataset.recipe)
    whole = path.read_bytes()
    try:
        path.write_bytes(fuzz_lines(whole, data))
        steps = list(build.look(loaded, notes.folder, "cpu"))
        assert steps[0].manifest.records
        sweep.gc(notes.folder, dry=True)
    finally:
        path.write_bytes(whole)


@fuzzed(50)
@given(st.data())
def test_rates_that_are_wrong_are_none(tmp_path: Path, data: st.DataObject) -> None:
    store = Store(tmp_path)
    rates.path_of(store).unlink(missing_ok=True)
    rates.note(store, "cut", rates.Rate(80, 20))
    rates.path_of(store).write_bytes(fuzz_lines(rates.path_of(store).read_bytes(), data))
    for rate in rates.read(store).values():
        assert rate.worker_seconds(1) >= 0


RECIPE = """
name = "mine"
description = "some"
sources = "t.jsonl"
[columns]
uri = "file:{name}.mp4"
caption = "caption"
ranges = "ranges"
[[source]]
id = "a"
uri = "file:a.mp4"
caption = ["x", "y"]
start = "0:01:02.5"
end = 100
[filter]
trim_s = 0.5
min_frames = 5
[extract]
fps = "30000/1001"
size = 64
[encode]
preset = "tiny"
"""
VALUES = (
    "0x" + "f" * 9000, "9" * 4299, "1e400", "-1e308", "nan", "true", "[]", "{}", '""', '"1e99999"',
    "'9:9:9'", f"'{'9' * 4299}:1:1'", "[" * 500 + "]" * 500, "1979-05-27", "'1/0'", "'\x1b[31m'",
    '"\\u001b[31m"', f"'{'9' * 50}'", "1e-300", '"\\u202e"',
)  # fmt: skip
LINES = ("", "[[source]]", "[source]", "[x]", "[columns]", "." * 100 + "=1", "a." * 5000 + "a=1")


@fuzzed(80)
@given(st.data())
def test_any_recipe_is_read_or_refused_in_lines(tmp_path: Path, data: st.DataObject) -> None:
    rows = [{"name": "b", "caption": "x", "ranges": [[0, 1], ["0:01", 2.5]]}, {"name": "c"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    lines = RECIPE.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(lines) - 1))
        name = lines[number].partition("=")[0]
        values = [f"{name}= {value}" for value in VALUES]
        lines[number] = data.draw(st.sampled_from([*values, *LINES]))
    content = "\n".join(lines).encode()
    if data.draw(st.integers(0, 4)) == 0:
        content = damaged(content, data)
    (tmp_path / "mine.toml").write_bytes(content)
    check(lambda: recipes.load(tmp_path / "mine.toml").digest, tmp_path.name, 100)
    check(lambda: naming.name_of(tmp_path / "mine.toml"), "mine.toml")


@fuzzed(50)
@given(st.data())
def test_any_table_is_read_or_refused_in_a_line(tmp_path: Path, data: st.DataObject) -> None:
    row = {
        "uri": "file:b.mp4", "id": "b", "caption": "['x', 'y']", "sha256": "a" * 64,
        "ranges": [[0, 1], ["0:01", 2.5]], "license": "CC0-1.0", "n": 3,
    }  # fmt: skip
    value = changed([row], data)
    rows = value if isinstance(value, list) else [value]
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows]
    content = b"\n".join(lines) + b"\n"
    if data.draw(st.integers(0, 4)) == 0:
        content = damaged(content, data)
    (tmp_path / "t.jsonl").write_bytes(content)
    names = ("uri", "id", "caption", "sha256", "ranges", "license")
    columns = "\n".join(f'{name} = "{name}"' for name in names)
    (tmp_path / "mine.toml").write_text(f'sources = "t.jsonl"\n[columns]\n{columns}\n')
    check(lambda: recipes.load(tmp_path / "mine.toml").digest, "t.jsonl")


@fuzzed(50)
@given(st.data())
def test_any_head_is_read_or_refused_in_a_line(tmp_path: Path, data: st.DataObject) -> None:
    facts = changed({"activation": "sigmoid", "clip": "a" * 64}, data)
    arrays = {"weight": np.ones(4, np.float32), "bias": np.ones(1, np.float32)}
    content = save(arrays, metadata={"head": json.dumps(facts), "who": "x"})
    if data.draw(st.integers(0, 1)):
        content = damaged(content, data)
    (tmp_path / "a.safetensors").write_bytes(content)
    check(lambda: head.read(tmp_path / "a.safetensors"), "a.safetensors")


# What would take all memory, or hours


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process of its own made of every bomb, by the bomb's name."""
    folder = tmp_path_factory.mktemp("bombs")
    command = [sys.executable, "-m", "tests.making.bombs", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert said.returncode == 0, said.stderr
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    return {row["bomb"]: row for row in rows}


@pytest.mark.parametrize("name", [bomb.__name__ for bomb in BOMBS])
def test_a_bomb_is_refused_within_10_s_and_1_gb(
    outcomes: dict[str, dict[str, Any]], name: str
) -> None:
    outcome = outcomes[name]
    assert outcome["error"] in ("Damaged", "RecipeError", "ShardError"), outcome
    num_lines = 101 if name == "many_wrong_sources" else 1
    assert outcome["message"].count("\n") < num_lines
    assert outcome["seconds"] < MOST_S
    assert outcome["mib"] < 1000
