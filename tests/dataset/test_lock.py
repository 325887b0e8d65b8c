"""lock: stable bytes, no path, no footage; one changed byte is seen and named."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import canonical, reading
from pipeline.core.errors import Damaged, RecipeError
from pipeline.core.records import Container
from pipeline.dataset import lock, probe
from pipeline.dataset import recipe as recipes
from tests.making.dataset import Dataset

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
KEYS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,20}\Z")
FRACTIONS = st.fractions(min_value=0, max_value=10**6)
CONTAINER = Container(
    "mov,mp4", "h264", "yuv420p", 320, 240, False, 0, Fraction(1), "bt709", "tv", "bt709", "bt709",
    Fraction(1, 25), Fraction(25), 100, 0, 100,
)  # fmt: skip


def test_the_same_build_writes_the_same_lock(small_dataset: Dataset, tmp_path: Path) -> None:
    other = small_dataset.published(tmp_path)
    other.lock.unlink()
    other.build()
    assert other.lock.read_bytes() == small_dataset.lock.read_bytes()
    modified_ns = other.lock.stat().st_mtime_ns
    other.build()
    assert other.lock.stat().st_mtime_ns == modified_ns


def test_a_lock_tells_of_every_video_clip_sample_and_shard_and_of_no_folder(
    small_dataset: Dataset,
) -> None:
    locked = lock.read(small_dataset.recipe)
    assert list(locked.videos) == ["a", "b", "c", "d", "short"]
    assert {clip.video for clip in locked.clips.values()} == {"a", "b", "c", "d"}
    assert locked.samples.keys() == locked.clips.keys()
    assert locked.root_digest == small_dataset.index["root_digest"]
    text = small_dataset.lock.read_text()
    assert not re.search(r'"(file:)?/', text)
    assert str(small_dataset.data) not in text
    assert text.splitlines() == [text.splitlines()[0], *sorted(text.splitlines()[1:], key=order)]


def order(line: str) -> tuple[int, str]:
    [kind] = json.loads(line).keys() - {"check"}
    return list(lock.KINDS).index(kind), json.loads(line)[kind]["key"]


def test_it_is_small_beside_what_it_pins(small_dataset: Dataset) -> None:
    samples = len(lock.read(small_dataset.recipe).samples)
    assert small_dataset.lock.stat().st_size < 4000 + 2000 * samples


def test_a_lock_comes_back_as_it_was_written(small_dataset: Dataset) -> None:
    assert lock.read(small_dataset.recipe).encode() == small_dataset.lock.read_bytes()


def test_a_large_lock_is_compressed_and_the_other_one_goes(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, recipe = lock.read(small_dataset.recipe), tmp_path / "small.toml"
    assert lock.write(locked, recipe) == (tmp_path / "small.lock.jsonl", True)
    monkeypatch.setattr(lock, "LARGE", 1000)
    packed, changed = lock.write(locked, recipe)
    assert (packed.name, changed) == ("small.lock.jsonl.zst", True)
    assert [path.name for path in tmp_path.iterdir()] == ["small.lock.jsonl.zst"]
    assert lock.read(recipe) == locked
    assert lock.write(locked, recipe) == (packed, False)
    with monkeypatch.context() as bomb:
        bomb.setattr(lock, "MOST", len(locked.encode()) - 1)
        with pytest.raises(
            Damaged, match=r"small\.lock\.jsonl\.zst unpacks to more than 0 MiB: that is no lock"
        ):
            lock.read(recipe)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(Damaged, match=r"small\.lock\.jsonl\.zst"):
        lock.read(recipe)
    monkeypatch.setattr(lock, "LARGE", 10**9)
    assert lock.write(locked, recipe)[0].name == "small.lock.jsonl"
    assert [path.name for path in tmp_path.iterdir()] == ["small.lock.jsonl"]


def test_the_old_form_of_a_lock_goes_only_when_the_new_one_is_there(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, recipe = lock.read(small_dataset.recipe), tmp_path / "small.toml"
    lock.write(locked, recipe)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "LARGE", 1000)
    monkeypatch.setattr(lock, "replace_file", full)
    with pytest.raises(OSError, match="No space left"):
        lock.write(locked, recipe)
    assert lock.read(recipe) == locked


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_anywhere_is_seen_and_its_line_named(
    small_dataset: Dataset, tmp_path: Path, seed: int
) -> None:
    content = bytearray(small_dataset.lock.read_bytes())
    at = random.Random(seed).randrange(len(content))
    content[at] ^= 1 << seed % 8
    (tmp_path / "small.lock.jsonl").write_bytes(content)
    with pytest.raises(
        Damaged,
        match=rf"small\.lock\.jsonl: line ({bytes(content[:at]).count(10) + 1}|\d+) .*is damaged",
    ):
        lock.read(tmp_path / "small.toml")


@pytest.mark.parametrize("line", [1, 5, 8, 14, -1])
def test_a_lost_line_is_seen(small_dataset: Dataset, tmp_path: Path, line: int) -> None:
    lines = small_dataset.lock.read_bytes().splitlines()
    del lines[line]
    (tmp_path / "small.lock.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(
        Damaged, match=r"header tells of \d+ records|is not there|exactly the samples|root digest"
    ):
        lock.read(tmp_path / "small.toml")


def test_a_line_that_stands_there_twice_is_seen(small_dataset: Dataset, tmp_path: Path) -> None:
    lines = small_dataset.lock.read_bytes().splitlines()
    (tmp_path / "small.lock.jsonl").write_bytes(b"\n".join([*lines, lines[1]]))
    with pytest.raises(Damaged, match="the video 'a' stands there twice"):
        lock.read(tmp_path / "small.toml")


def test_counts_that_do_not_add_up_are_seen(small_dataset: Dataset, tmp_path: Path) -> None:
    locked = lock.read(small_dataset.recipe)
    locked.header["stages"]["filter"]["out"] += 1
    (tmp_path / "small.lock.jsonl").write_bytes(locked.encode())
    with pytest.raises(Damaged, match="counts of stage 'filter' do not add up"):
        lock.read(tmp_path / "small.toml")


@pytest.mark.parametrize(
    ("kind", "field", "value", "problem"),
    [
        ("clip", "key", "../../etc/passwd", "clip.key: String should match pattern"),
        ("video", "key", "/etc/passwd", "video.key: String should match pattern"),
        ("sample", "device", None, "sample.device: Input should be a valid string"),
        ("shard", "split", "test", "shard.split: Input should be 'train' or 'validation'"),
        ("clip", "sha256", "x", "clip.sha256: String should match pattern"),
        ("clip", "time_base", "1/0", "clip.time_base: Input is not a valid fraction"),
        (
            "sample",
            "members",
            {"latents.npy": {"sha256": "0" * 64, "probe": "?"}},
            "sample.members.latents.npy.probe: String should match",
        ),
        ("lock", "stages", {}, "lock.stages: Value error, the stage 'download' is missing"),
        ("lock", "environment", None, "lock.environment: Input should be a valid dictionary"),
        (
            "lock",
            "hours",
            {"download": "many"},
            "lock.hours.download: Input should be a valid number",
        ),
    ],
)
def test_a_forged_line_is_refused_by_field(
    small_dataset: Dataset, tmp_path: Path, kind: str, field: str, value: object, problem: str
) -> None:
    lines = [json.loads(line) for line in small_dataset.lock.read_bytes().splitlines()]
    next(line for line in lines if kind in line)[kind][field] = value
    sealed = [
        canonical.seal({name: item for name, item in line.items() if name != "check"})
        for line in lines
    ]
    (tmp_path / "small.lock.jsonl").write_bytes(b"\n".join(sealed))
    with pytest.raises(Damaged, match=re.escape(problem)):
        lock.read(tmp_path / "small.toml")


def test_no_lock_and_another_format_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"there is no lock .*small\.lock\.jsonl: a finished build writes it"
    ):
        lock.read(tmp_path / "small.toml")
    (tmp_path / "small.lock.jsonl").write_bytes(canonical.seal({"lock": {"format": 2}}))
    with pytest.raises(
        RecipeError, match="is no lock of format 1 but of 2: take the longtake that wrote it"
    ):
        lock.read(tmp_path / "small.toml")


def test_a_lock_of_before_with_a_field_that_has_gone_is_read(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tmp_path / "small.toml"
    header, *lines = map(canonical.unseal, small_dataset.lock.read_bytes().splitlines())
    for line in lines:
        if "video" in line:
            line["video"]["container"]["variable_fps"] = False
    content = b"".join(canonical.seal(line) + b"\n" for line in (header, *lines))
    recipe.with_suffix(".lock.jsonl").write_bytes(content)
    assert lock.read(recipe) == lock.read(small_dataset.recipe)


@given(
    KEYS,
    KEYS,
    st.text(),
    st.tuples(DIGESTS, DIGESTS),
    st.lists(st.text(), max_size=3),
    FRACTIONS,
    st.integers(0, 10**12),
)
def test_any_video_and_clip_come_back(
    key: str,
    video: str,
    uri: str,
    digests: tuple[str, str],
    captions: list[str],
    span: Fraction,
    pts: int,
) -> None:
    locked = lock.Lock(
        {"stages": {}},
        {
            video: lock.LockedVideo(
                video, uri, tuple(captions), None, span, None, digests[0], pts, "22", CONTAINER
            )
        },
        {
            key: lock.LockedClip(
                key,
                video,
                pts,
                pts + 1,
                Fraction(1, 90000),
                lock.Crop(0, 0, 2, 2),
                1,
                digests[1],
                digests[0],
            )
        },
        {},
        {},
    )
    _, *lines = reading.unsealed("x", io.BytesIO(locked.encode()))
    parsed = dict(lock.parsed(f"x: line {number}", line) for number, line in lines)
    assert parsed == {"video": locked.videos[video], "clip": locked.clips[key]}


def test_probes_are_values_of_the_array_itself(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 4, 8, 8)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    kept = probe.values_of(probe.probe_of(tmp_path / "a.npy"))
    assert kept.shape == (probe.PROBES,)
    assert set(kept) <= set(values.reshape(-1).astype(np.float32))
    assert len(base64.b64decode(probe.probe_of(tmp_path / "a.npy"))) == 2 * probe.PROBES
    assert len(set(probe.places_of(values.size))) > probe.PROBES * 0.9


def test_the_digest_of_a_recipe_knows_what_it_says_and_not_how(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    recipe = small_dataset.published(tmp_path).recipe
    before = recipes.load(recipe).digest
    recipe.write_text(
        "# a comment\n"
        + recipe.read_text().replace("[extract]\n", "[extract]\nfps = 10   # the default\n")
    )
    assert recipes.load(recipe).digest == before
    recipe.write_text(recipe.read_text().replace("the film c", "another caption"))
    assert recipes.load(recipe).digest != before
    assert replace(recipes.load(recipe), sources=()).digest != before
