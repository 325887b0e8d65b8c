"""The demo, built by the command a new user types."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.store import Store
from pipeline.dataset import lock
from pipeline.dataset.likeness import grade_members
from pipeline.publish import compare
from tests.making.command import longtake_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("demo")
    recipe = shutil.copy(ROOT / "manifests" / "demo.toml", data)
    done = longtake_process("build", recipe, "--data", data, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return data


def test_the_demo_s_published_lock_is_that_of_a_build_here(demo: Path) -> None:
    here, published = lock.read(demo / "demo.toml"), lock.read(ROOT / "manifests" / "demo.toml")
    assert here.videos == published.videos
    assert here.header["recipe"] == published.header["recipe"]
    assert [replace(clip, sha256="", pictures="") for clip in here.clips.values()] == [
        replace(clip, sha256="", pictures="") for clip in published.clips.values()
    ]
    store = Store(demo / "store")
    for key, sample in published.samples.items():
        digests = {name: member.sha256 for name, member in here.samples[key].members.items()}
        grades, _ = grade_members(sample.members, digests, compare.probes_in(store, digests))
        assert set(grades.values()) <= {"identical", "equivalent"}


def test_the_demo_keeps_three_clips_and_counts_every_other_scene(demo: Path) -> None:
    lines = [
        json.loads(line) for line in (demo / "demo" / "3-filter.jsonl").read_text().splitlines()[1:]
    ]
    assert [line["record"]["key"] for line in lines if "record" in line] == [
        "fish-a-0000",
        "fish-b-0000",
        "world-0000",
    ]
    rejected = [line["rejection"] for line in lines if "rejection" in line]
    assert [rejection["key"] for rejection in rejected] == [
        "bigbuckbunny-0000",
        *(f"bikes-{scene:04d}" for scene in range(6)),
    ]
    assert {rejection["reason"] for rejection in rejected} == {"too-few-frames"}


def test_the_demo_s_latents_decode_to_recognisable_pictures(demo: Path) -> None:
    lines = [
        json.loads(line)["record"]
        for line in (demo / "demo" / "8-encode.jsonl").read_text().splitlines()[1:]
    ]
    scores = {line["key"]: line["round_trip_psnr_db"] for line in lines}
    assert scores.keys() == {"fish-a-0000", "fish-b-0000", "world-0000"}
    assert min(scores.values()) > 25


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset leaves its file to the garbage collector
def test_the_demo_s_shards_are_read_by_plain_webdataset_and_datasets(
    demo: Path, tmp_path: Path
) -> None:
    import datasets
    import webdataset

    datasets.disable_progress_bars()
    shards = demo / "demo" / "shards"
    assert [path.name for path in sorted(shards.iterdir())] == [
        "00000.tar",
        "index.json",
        "validation-00000.tar",
    ]
    [train] = shards.glob("0*.tar")
    samples = list(webdataset.WebDataset(str(train), shardshuffle=False).decode())
    assert {sample["__key__"] for sample in samples} == {"fish-a-0000", "world-0000"}
    assert len({frozenset(sample) - {"__key__"} for sample in samples}) == 1
    assert all(
        sample["latents.npy"].dtype == np.float16 and sample["text.npy"].shape[1:] == (77, 32)
        for sample in samples
    )
    rows = datasets.load_dataset(
        "webdataset", data_files={"train": str(train)}, split="train", cache_dir=str(tmp_path)
    )
    assert {row["__key__"] for row in rows} == {"fish-a-0000", "world-0000"}
