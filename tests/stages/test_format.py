"""docs/format.md is true: its reader runs, other people's readers read the same, and shards are
packed as it says.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core import canonical
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Sample, source_of
from pipeline.core.store import Store
from pipeline.media import reel
from pipeline.stages import extract, shard
from pipeline.stages.shard import BLOCK, Params
from tests.making.samples import SIZE, WIDTH, Arrays, NewScene, arrays_of, pack, publish, sample_of

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def samples(store: Store, new_scene: NewScene) -> list[Sample]:
    scene = new_scene(0, 3000)
    return [
        sample_of(store, scene, "one", 7),
        sample_of(
            store, scene, "two-captions", 9, ("a street", "une rue", "eine Straße"), std=True
        ),
        sample_of(store, scene, "no-caption", 5, ()),
    ]


def assert_same(arrays: Arrays, expected: Arrays) -> None:
    assert arrays.keys() == expected.keys()
    for key in expected:
        assert arrays[key].keys() == expected[key].keys()
        for name in expected[key]:
            np.testing.assert_array_equal(arrays[key][name], expected[key][name], strict=True)


# Readers


def test_the_reader_in_the_docs_reads_windows_of_frames(
    store: Store, samples: list[Sample], tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "format.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 18
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    folder = tmp_path / "shards"
    publish(folder, store, samples, Params(max_samples=2))
    for key, arrays in arrays_of(samples, store).items():
        latents = arrays["latents.npy"]
        for first, count in ((0, len(latents)), (0, 1), (2, 3), (len(latents) - 1, 1)):
            window = namespace["read_window"](folder, key, first, count)
            np.testing.assert_array_equal(window, latents[first : first + count], strict=True)
        for number, text in enumerate(arrays["text.npy"]):
            (row,) = namespace["read_window"](folder, key, number, 1, "text.npy")
            np.testing.assert_array_equal(row, text, strict=True)
    with pytest.raises(AssertionError):
        namespace["read_window"](folder, "one", 5, 3)


PLAIN: dict[str, Any] = {"captions": (), "license": None, "psnr_db": None}
RICH: dict[str, Any] = {"captions": ("a street", "une rue", "eine Straße"), "license": "CC0-1.0"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "captions": ({"captions": ()}, {"captions": RICH["captions"]}),
    "one caption": ({"captions": ("a street",)}, {"captions": ()}),
    "an empty caption": ({"captions": ("",)}, {"captions": ("", "a street")}),
    "licence": ({"license": None}, {"license": "CC0-1.0"}),
    "round trip": ({"psnr_db": None}, {"psnr_db": 31.0}),
    "score": ({"scores": (("camera", None),)}, {"scores": (("camera", 0.25),)}),
    "whole score": ({"scores": (("camera", 1.0),)}, {"scores": (("camera", 1.5),)}),
    "all": (
        {**PLAIN, "scores": (("camera", None), ("motion", 0.0))},
        {**RICH, "scores": (("camera", 1e-05), ("motion", None))},
    ),
}
NUM_ALIKE = 7  # more than `datasets` looks at before it decides what a column is


@pytest.fixture(params=[(kind, order) for kind in KINDS for order in ("as is", "swapped")], ids=str)
def differing(
    request: pytest.FixtureRequest, store: Store, new_scene: NewScene, tmp_path: Path
) -> list[Sample]:
    """Samples in a shard's order, in a shard: many of one kind, then two that differ."""
    kind, order = request.param
    many, few = KINDS[kind] if order == "as is" else reversed(KINDS[kind])
    keys = sorted(
        (f"k{number}" for number in range(NUM_ALIKE + 2)), key=lambda key: shard.order_of(key, 0)
    )
    scene = new_scene(0, 3000)
    samples = [
        sample_of(store, scene, key, 3 + row % 2, **(many if row < NUM_ALIKE else few))
        for row, key in enumerate(keys)
    ]
    publish(tmp_path / "shards", store, samples, Params())
    return samples


def told(sample: Sample) -> dict[str, Any]:
    """A sample's metadata after JSON."""
    metadata: dict[str, Any] = json.loads(shard.metadata_bytes(sample))
    return metadata


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset leaves its file to the garbage collector
def test_webdataset_gives_every_field_of_samples_that_differ(
    store: Store, differing: list[Sample], tmp_path: Path
) -> None:
    import webdataset

    path = str(tmp_path / "shards" / "00000.tar")
    rows = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    gc.collect()
    assert [row["json"] for row in rows] == [told(sample) for sample in differing]
    arrays = {
        row["__key__"]: {name: row[name] for name in row if name.endswith("npy")} for row in rows
    }
    assert_same(arrays, arrays_of(differing, store))


def test_datasets_gives_every_field_of_samples_that_differ(
    store: Store, differing: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    datasets.disable_progress_bars()
    files = str(tmp_path / "shards" / "00000.tar")
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    rows: list[dict[str, Any]] = list(loaded)  # type: ignore[arg-type]
    assert [row["json"] for row in rows] == [told(sample) for sample in differing]
    arrays = {
        row["__key__"]: {
            name: np.asarray(row[name], np.float16) for name in row if name.endswith("npy")
        }
        for row in rows
    }
    assert_same(arrays, arrays_of(differing, store))


def shape_of(value: Any) -> Any:
    """Fields and types of a value of JSON, in which nothing may leave a type open."""
    if isinstance(value, dict) and value:
        return {name: shape_of(item) for name, item in value.items()}
    if isinstance(value, list) and value:
        (only,) = {shape_of(item) for item in value}
        return [only]
    assert type(value) in (str, int), value
    return type(value)


def test_metadata_has_the_same_fields_of_the_same_types_in_every_sample(
    differing: list[Sample],
) -> None:
    first, *others = (shape_of(told(sample)) for sample in differing)
    assert all(str(other) == str(first) for other in others)
    for sample in differing:
        captions = source_of(sample).captions
        scores = {**dict(sample.clip.scores), "round_trip_psnr_db": sample.round_trip_psnr_db}
        metadata = told(sample)
        assert tuple(metadata["captions"]) == captions or (captions, metadata["captions"]) == (
            (),
            [""],
        )
        assert metadata["caption"] == metadata["captions"][0]
        assert metadata["source"]["license"] == (source_of(sample).license or "")
        numbers = {name: float(text) if text else None for name, text in metadata["scores"].items()}
        assert numbers == scores


def test_every_sample_has_one_row_of_text_for_each_of_its_captions(
    store: Store, differing: list[Sample]
) -> None:
    for sample in differing:
        text = np.load(store.path(sample.text.sha256), allow_pickle=False)
        assert text.shape == (len(told(sample)["captions"]), 77, WIDTH)


# Tars


def tar_members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path, "r:") as tar:
        return tar.getmembers()


def test_a_tar_holds_fixed_members_in_a_fixed_order_and_no_trace_of_its_making(
    store: Store, samples: list[Sample], tmp_path: Path
) -> None:
    index = publish(tmp_path / "shards", store, samples, Params())
    members = tar_members(tmp_path / "shards" / "00000.tar")
    each = {
        "one": ["json", "latents.npy", "text.npy", "image.npy"],
        "two-captions": [
            "json",
            "latents.npy",
            "latents_std.npy",
            "text.npy",
            "image.npy",
        ],
        "no-caption": ["json", "latents.npy", "text.npy", "image.npy"],
    }
    order = sorted(each, key=lambda key: canonical.digest([0, key]))
    assert [member.name for member in members] == [
        f"{key}.{name}" for key in order for name in each[key]
    ]
    assert [sample["key"] for sample in index["shards"][0]["samples"]] == order
    assert {
        (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
        for member in members
    } == {(0, 0, 0, "", "", 0o644)}
    assert (tmp_path / "shards" / "00000.tar").read_bytes().endswith(bytes(2 * BLOCK))


def test_the_same_samples_make_the_same_bytes_in_any_order_and_another_store(
    store: Store, samples: list[Sample], tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    other.prepare()
    for path in (store.root / "blobs").glob("*/*"):
        other.put(path.read_bytes())
    for params in (Params(), Params(max_samples=1), Params(validation=0.5)):
        again = pack(other, samples[::-1], params)
        assert again == pack(store, samples, params)
        assert shard.root_digest(again) == shard.root_digest(again[::-1])
    assert (
        other.path(again[0].blob.sha256).read_bytes()
        == store.path(again[0].blob.sha256).read_bytes()
    )


def test_a_name_too_long_for_a_plain_header_is_found_all_the_same(
    store: Store, new_scene: NewScene, tmp_path: Path
) -> None:
    key = "k" * 120
    sample = sample_of(store, new_scene(0, 3000), key, 3)
    entry = publish(tmp_path / "shards", store, [sample], Params())["shards"][0]
    content = (tmp_path / "shards" / "00000.tar").read_bytes()
    for member in tar_members(tmp_path / "shards" / "00000.tar"):
        start, num_bytes, _ = entry["samples"][0]["members"][member.name.removeprefix(f"{key}.")]
        assert (start, num_bytes) == (member.offset_data, member.size)
    assert len(content) == entry["num_bytes"]


# The index


def test_the_index_says_what_is_where(store: Store, samples: list[Sample], tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    index = publish(folder, store, samples, Params(max_samples=2))
    assert [entry["file"] for entry in index["shards"]] == ["00000.tar", "32768.tar"]
    for entry in index["shards"]:
        content = (folder / entry["file"]).read_bytes()
        assert (entry["num_bytes"], entry["sha256"]) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
        for sample in entry["samples"]:
            for start, num_bytes, digest in sample["members"].values():
                assert hashlib.sha256(content[start : start + num_bytes]).hexdigest() == digest
    lines = "".join(entry["sha256"] + "\n" for entry in index["shards"])
    assert index["root_digest"] == hashlib.sha256(lines.encode()).hexdigest()
    assert index["num_samples"] == 3
    assert (index["format"], index["fps"], index["size"]) == (2, "10/1", SIZE)
    assert index["latents"] == {
        "axes": "f c h w",
        "dtype": "float16",
        "scaling_factor": 0.18215,
        "shape": [4, 2, 2],
    }


def named_in(section: str) -> set[str]:
    """The fields a table of docs/format.md names, under a heading."""
    text = (DOCS / "format.md").read_text("utf-8").partition(section + "\n")[2]
    text = re.split(r"\n##+ ", text, maxsplit=1)[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name.partition(".")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_docs_name_every_field_and_no_other(
    store: Store, samples: list[Sample], tmp_path: Path
) -> None:
    index = publish(tmp_path / "shards", store, samples, Params())
    assert named_in("## index.json") == set(index)
    assert named_in("### KEY.json") == set(shard.metadata(samples[0]))
    example = re.findall(r"```json\n(.*?)```", (DOCS / "format.md").read_text("utf-8"), re.DOTALL)
    metadata, shown = (json.loads(text) for text in example)
    assert set(metadata) == set(shard.metadata(samples[0]))
    assert set(metadata["source"]) == set(shard.metadata(samples[0])["source"])
    assert set(shown) == set(index) - {"built"}
    assert set(shown["shards"][0]) == set(index["shards"][0])
    assert shown["encoders"].keys() == index["encoders"].keys()
    assert all(
        shown["encoders"][name].keys() == index["encoders"][name].keys() for name in ("vae", "clip")
    )


def test_building_again_removes_the_shards_of_before_and_nothing_else(
    store: Store, samples: list[Sample], tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    publish(folder, store, samples, Params(max_samples=1))
    (folder / "notes.txt").write_text("mine")
    publish(folder, store, samples, Params())
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000.tar",
        "index.json",
        "notes.txt",
    ]


# Packing


@pytest.fixture
def many(store: Store, new_scene: NewScene) -> list[Sample]:
    """Forty samples, two to a video."""
    samples = [
        sample_of(store, new_scene(0, 3000), f"v{number:02d}", 2 + number % 5)
        for number in range(20)
    ]
    return [replace(sample, key=f"{sample.key}-{part}") for sample in samples for part in range(2)]


def kept(packs: Sequence[shard.Pack]) -> Iterator[str]:
    return (sample.key for pack in packs for sample in pack.samples)


@pytest.mark.parametrize(
    ("max_samples", "sizes"),
    [(1000, [40]), (40, [40]), (39, [15, 25]), (16, [15, 14, 11]), (1, [1] * 40)],
)
def test_no_shard_has_more_than_max_samples(
    many: list[Sample], max_samples: int, sizes: list[int]
) -> None:
    packs = shard.pack(many, Params(max_samples=max_samples))
    assert [len(pack.samples) for pack in packs] == sizes
    assert sorted(kept(packs)) == sorted(sample.key for sample in many)


@pytest.mark.parametrize("max_bytes", [12_000, 20_000, 64_000])
def test_no_shard_of_several_samples_has_more_than_max_bytes(
    store: Store, many: list[Sample], max_bytes: int
) -> None:
    shards = pack(store, many, Params(max_bytes=max_bytes))
    assert len(shards) > 1
    assert all(each.blob.num_bytes <= max_bytes for each in shards)
    num_bytes = sum(each.blob.num_bytes for each in shards)
    assert num_bytes > 0.4 * max_bytes * len(shards), "shards are about half full or more"


def test_a_shard_may_have_exactly_max_bytes_and_not_one_more(
    store: Store, many: list[Sample]
) -> None:
    pair = [many[0], replace(many[2], key="k" * 120)]  # whose names need longer headers
    (both,) = pack(store, pair, Params())
    assert len(pack(store, pair, Params(max_bytes=both.blob.num_bytes))) == 1
    assert len(pack(store, pair, Params(max_bytes=both.blob.num_bytes - 1))) == 2


def test_a_sample_larger_than_max_bytes_gets_a_shard_to_itself(
    store: Store, many: list[Sample]
) -> None:
    assert [len(each.samples) for each in pack(store, many[:4], Params(max_bytes=1000))] == [
        1,
        1,
        1,
        1,
    ]


def test_no_video_is_in_both_splits(many: list[Sample]) -> None:
    packs = shard.pack(many, Params(validation=0.3, max_samples=8))
    videos = {
        split: {
            sample.clip.scene.video.blob
            for pack in packs
            if pack.split == split
            for sample in pack.samples
        }
        for split in ("train", "validation")
    }
    assert videos["train"] | videos["validation"] == {
        sample.clip.scene.video.blob for sample in many
    }
    assert not videos["train"] & videos["validation"]
    assert 2 <= len(videos["validation"]) <= 10
    assert next(pack.key for pack in packs if pack.split == "validation") == "validation-00000"
    assert sorted(kept(packs)) == sorted(sample.key for sample in many)


def test_another_video_moves_none_from_one_split_to_the_other(many: list[Sample]) -> None:
    params = Params(validation=0.3)
    before = {sample.key: shard.split_of(sample, params) for sample in many[:20]}
    packs = shard.pack(many, params)
    assert all(
        pack.split == before[sample.key]
        for pack in packs
        for sample in pack.samples
        if sample.key in before
    )


def test_a_seed_changes_order_and_split_and_nothing_else(many: list[Sample]) -> None:
    first, second = (shard.pack(many, Params(seed=seed, validation=0.3)) for seed in (0, 1))
    assert list(kept(first)) != list(kept(second))
    assert sorted(kept(first)) == sorted(kept(second))
    assert not [pack for pack in shard.pack(many, Params()) if pack.split == "validation"]


# docs/determinism.md


def test_the_worked_example_of_a_task_key_is_true(new_scene: NewScene) -> None:
    text = (DOCS / "determinism.md").read_text("utf-8")
    (line,) = re.findall(r'^\["extract".*\]$', text, re.MULTILINE)
    scene = new_scene(0, 901, Fraction(1, 30))
    video = replace(
        scene.video,
        blob=Blob(json.loads(line)[3]["video"]["video"], 1),
        source=replace(scene.video.source, start_s=None),
    )
    key = extract.stage(Setup((reel.Params(fps=Fraction(10), size=256),))).task_key(
        replace(scene, video=video)
    )
    assert hashlib.sha256(line.encode()).hexdigest() == key
    assert f"`{key[:8]}...`, is the key" in text


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=6),
    st.builds(
        Params,
        seed=st.integers(0, 9),
        max_samples=st.integers(1, 4),
        max_bytes=st.integers(1_000, 9_000),
        validation=st.floats(0, 0.9),
    ),
)
def test_whatever_is_packed_the_index_finds_it_byte_for_byte(
    store: Store, tmp_path: Path, new_scene: NewScene, sizes: list[tuple[int, int]], params: Params
) -> None:
    samples = [
        sample_of(store, new_scene(0, 3000), f"k{n}-{'x' * 60}", frames, ("a",) * count)
        for n, (frames, count) in enumerate(sizes)
    ]
    index = publish(tmp_path / "shards", store, samples, params)
    expected = {
        sample.key: {name: blob.sha256 for name, blob in shard.members_of(sample)}
        for sample in samples
    }
    digests: dict[str, dict[str, str]] = {}
    for entry in index["shards"]:
        content = (tmp_path / "shards" / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            entry["num_bytes"],
            entry["sha256"],
        )
        assert len(entry["samples"]) <= params.max_samples
        for sample in entry["samples"]:
            assert sample["key"] not in digests
            parts = {
                name: content[start : start + size]
                for name, (start, size, _) in sample["members"].items()
            }
            assert all(
                hashlib.sha256(part).hexdigest() == sample["members"][name][2]
                for name, part in parts.items()
            )
            digests[sample["key"]] = {
                name: hashlib.sha256(part).hexdigest()
                for name, part in parts.items()
                if name != "json"
            }
    assert digests == expected
    assert index["num_samples"] == len(samples)
