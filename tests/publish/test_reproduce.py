"""reproduce: from recipe and lock alone the same bytes; and every difference by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import Damaged, Stopped
from pipeline.core.executors import Inline
from pipeline.core.records import Crop, Rejection, Source
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import lock, removals
from pipeline.dataset import recipe as recipes
from pipeline.dataset.build import known, look
from pipeline.dataset.chain import Step
from pipeline.dataset.lock import Lock
from pipeline.dataset.removals import Removal
from pipeline.media import encoders
from pipeline.publish import compare, reproduce, verify
from pipeline.stages import cut, encode, extract
from tests.making import footage
from tests.making.command import longtake, longtake_process
from tests.making.dataset import Dataset

FUNNEL = [
    "1-download.jsonl",
    "4-extract.jsonl",
    "5-score.jsonl",
    "8-encode.jsonl",
    "9-shard.jsonl",
]


def rebuilt(clone: Dataset, data: Path | None = None) -> dict[str, Any]:
    """The report of a rebuild in this process, as `reproduce.json` would hold it."""
    data = data or clone.data
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    edits = reproduce.edits(loaded, locked)
    steps = list(reproduce.reproduce(loaded, locked, data, Inline(), "cpu", Progress()))
    return compare.judge(locked, steps, edits, Store(data.absolute() / "store"))


@pytest.fixture
def clone(small_dataset: Dataset, tmp_path: Path) -> Dataset:
    return small_dataset.published(tmp_path)


@pytest.fixture(scope="module")
def rebuilt_once(
    small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lock, list[Step], Store]:
    """A lock, and what was rebuilt of it: to be judged again and again."""
    clone = small_dataset.published(tmp_path_factory.mktemp("once"))
    locked = lock.read(clone.recipe)
    steps = list(
        reproduce.reproduce(
            recipes.load(clone.recipe), locked, clone.data, Inline(), "cpu", Progress()
        )
    )
    return locked, steps, Store(clone.data / "store")


@pytest.fixture
def no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "watch", lambda *_: pytest.fail("a cut was looked for"))


def test_a_second_clone_with_other_workers_is_bit_identical(
    small_dataset: Dataset, clone: Dataset
) -> None:
    done = longtake_process(
        "reproduce",
        clone.recipe,
        "--data",
        clone.data,
        "--executor",
        "processes",
        "--workers",
        "2",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"bit-identical: root digest {small_dataset.index['root_digest']}" in done.stdout
    assert "1 source gave no clip and is not fetched" in done.stdout
    assert clone.lock.read_bytes() == small_dataset.lock.read_bytes()
    assert sorted(path.name for path in clone.folder.glob("*.jsonl")) == FUNNEL
    shards = sorted(path.name for path in (small_dataset.folder / "shards").iterdir())
    for name in shards:
        assert (clone.folder / "shards" / name).read_bytes() == (
            small_dataset.folder / "shards" / name
        ).read_bytes()
    report = json.loads((clone.folder / "reproduce.json").read_text())
    assert (report["verdict"], report["obtainable"]["share_of_frames"]) == ("identical", 1)
    assert report["sources"] == {"identical": 4, "changed": [], "gone": [], "not_needed": 1}


@pytest.mark.usefixtures("no_detector")
def test_recorded_cuts_are_used_and_none_is_looked_for(
    small_dataset: Dataset, clone: Dataset
) -> None:
    changed = (
        clone.recipe.read_text()
        .replace("[extract]", '[cut]\ndetector = "content"\n[extract]')
        .replace("min_frames = 20", "min_frames = 5")
    )
    clone.recipe.write_text(changed)
    assert rebuilt(clone)["root"] == {
        "locked": small_dataset.index["root_digest"],
        "found": small_dataset.index["root_digest"],
    }


def test_a_changed_a_missing_and_an_edited_source_are_named_and_nothing_else_is(
    small_dataset: Dataset, clone: Dataset, film: Callable[..., Path]
) -> None:
    (clone.recipe.parent / "a.mp4").write_bytes(film(footage.plain, 9, size="320x240").read_bytes())
    (clone.recipe.parent / "b.mp4").unlink()
    clone.recipe.write_text(clone.recipe.read_text().replace("the film c", "another caption"))
    done = longtake(
        "reproduce", clone.recipe, "--data", clone.data, "--executor", "inline", "--device", "cpu"
    )
    assert done.returncode == 7, done.stdout + done.stderr
    report = json.loads((clone.folder / "reproduce.json").read_text())
    samples = videos_of(small_dataset)
    assert [line["source"] for line in report["sources"]["changed"]] == ["a"]
    assert [(line["source"], line["class"]) for line in report["sources"]["gone"]] == [
        ("b", "not-found")
    ]
    assert [(edit["source"], edit["field"]) for edit in report["edits"]] == [("c", "captions")]
    assert (
        report["samples"]["lost"]
        == report["clips"]["lost"]
        == [key for key, video in samples.items() if video in "ab"]
    )
    assert report["samples"]["edited"] == [{"sample": "c-0000", "members": ["json", "text.npy"]}]
    assert report["samples"]["identical"] == sum(video == "d" for video in samples.values())
    assert report["samples"]["different"] == report["samples"]["equivalent"] == []
    assert report["samples"]["apart"] == {}  # two captions apart are no two machines apart
    assert report["verdict"] == "different"
    locked = lock.read(clone.recipe).videos["a"].sha256
    edited = 'edited: c: captions: the recipe says ["another caption"], the lock ["the film c"]'
    for words in (
        "changed: a: ",
        f"wanted is {locked}",
        "gone (not-found, 1): b: ",
        edited,
        "obtainable: ",
    ):
        assert words in done.stdout


def videos_of(dataset: Dataset) -> dict[str, str]:
    return {key: clip.video for key, clip in sorted(lock.read(dataset.recipe).clips.items())}


def test_a_recipe_that_would_give_other_clips_is_refused_field_by_field(clone: Dataset) -> None:
    text = (
        clone.recipe.read_text()
        .replace("size = 64", "size = 72")
        .replace("max_samples = 2", "max_samples = 3\nseed = 9")
    )
    clone.recipe.write_text(text.replace('preset = "tiny"', 'preset = "tiny"\nimage_frames = 2'))
    done = longtake("reproduce", clone.recipe, "--data", clone.data)
    assert done.returncode == 2
    for words in (
        "[extract] size: the recipe gives 72, the lock has 64",
        "[encode] image_frames: the recipe gives 2, the lock has 3",
        "[shard] max_samples: the recipe gives 3, the lock has 2",
        "[shard] seed: the recipe gives 9, the lock has 0",
    ):
        assert words in done.stderr
    assert not clone.data.exists()


def test_another_measured_psnr_alone_is_equivalent_and_verify_agrees(
    clone: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = encode.round_trip
    monkeypatch.setattr(encode, "round_trip", lambda *args: exact(*args) + 0.01)
    text = clone.recipe.read_text().replace(
        'the film short"\nlicense = "CC0-1.0"', 'the film short"\nlicense = "MIT"'
    )
    clone.recipe.write_text(
        text
    )  # gives no clip: whatever is edited about it, every sample is there
    report = rebuilt(clone)
    assert (report["verdict"], report["samples"]["different"]) == ("equivalent", [])
    assert report["edits"] == [
        {"source": "short", "field": "license", "locked": '"CC0-1.0"', "found": '"MIT"'}
    ]
    assert report["samples"]["rescored"] == report["samples"]["equivalent"]
    assert (
        "another PSNR of the round trip, or none, in the metadata of "
        f"{report['obtainable']['of']} samples" in "\n".join(compare.lines(report))
    )
    assert len(report["samples"]["equivalent"]) == report["obtainable"]["of"]
    checked = verify.verify(recipes.load(clone.recipe), clone.data, "cpu", Progress())
    assert (checked.findings, checked.grade) == ([], "equivalent")


def test_status_knows_a_rebuild_from_a_build(clone: Dataset) -> None:
    rebuilt(clone)
    steps, unknown = known(reproduce.look(recipes.load(clone.recipe), clone.data, "cpu"))
    assert unknown == ""
    assert {step.manifest.stage: step.num_pending for step in steps} == {
        "download": 0,
        "extract": 0,
        "score": 0,
        "encode": 0,
        "shard": 0,
    }


def test_a_folder_that_holds_a_build_is_not_rebuilt_over(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    built = small_dataset.copy(tmp_path)
    with pytest.raises(Stopped, match="holds a build of its own"):
        rebuilt(built)
    assert (built.folder / "shards" / "index.json").is_file()


def test_a_shard_that_was_damaged_since_is_not_called_identical(clone: Dataset) -> None:
    rebuilt(clone)
    tar = next((clone.folder / "shards").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(Damaged, match="is not on disk as it was written"):
        rebuilt(clone)


def test_a_source_that_was_taken_down_is_counted_as_removed(clone: Dataset) -> None:
    removals.note(clone.recipe, "a", Removal("2026-01-01T00:00:00Z", "asked to"), {})
    removals.note(clone.recipe, "c", Removal("2026-01-02T00:00:00Z", ""), {})
    report = rebuilt(clone)
    assert report["sources"]["gone"] == [
        {"source": "a", "class": "removed", "detail": "asked to"},
        {"source": "c", "class": "removed", "detail": "taken down on 2026-01-02T00:00:00Z"},
    ]


@pytest.mark.parametrize(("noise", "verdict"), [(0.002, "equivalent"), (1.0, "different")])
def test_other_last_bits_are_equivalent_and_more_is_not(
    clone: Dataset, monkeypatch: pytest.MonkeyPatch, noise: float, verdict: str
) -> None:
    exact = encoders.latents

    def near(*args: Any, **options: Any) -> Any:
        mean, std = exact(*args, **options)
        return (mean + np.random.default_rng(0).normal(scale=noise, size=mean.shape)).astype(
            np.float16
        ), std

    monkeypatch.setattr(encoders, "latents", near)
    report = rebuilt(clone)
    assert report["verdict"] == verdict
    kind = "equivalent" if verdict == "equivalent" else "different"
    assert len(report["samples"][kind]) == report["obtainable"]["of"]
    apart = report["samples"]["apart"]["latents.npy"]
    assert apart["mean_abs"] == pytest.approx(0.8 * noise, rel=0.3)
    assert noise < apart["max_abs"] < 6 * noise
    psnr = report["samples"]["round_trip_psnr_db"]
    assert (psnr["locked"] - psnr["found"] < 0.05) == (verdict == "equivalent")
    words = "\n".join(compare.lines(report))
    assert (
        "equivalent within tolerance" if verdict == "equivalent" else "not what the lock says"
    ) in words
    assert "dB PSNR after decoding" in words


def test_clips_of_the_same_pictures_in_another_container_are_told_from_other_clips(
    small_dataset: Dataset, clone: Dataset
) -> None:
    locked = lock.read(clone.recipe)
    loaded = recipes.load(clone.recipe)
    steps = list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))
    keys = list(locked.clips)
    locked.clips[keys[0]] = replace(locked.clips[keys[0]], sha256="0" * 64)
    locked.clips[keys[1]] = replace(locked.clips[keys[1]], sha256="0" * 64, pictures="0" * 64)
    clips = compare.judge(locked, steps, [], Store(clone.data / "store"))["clips"]
    assert clips == {
        "identical": len(keys) - 2,
        "same_frames": [keys[0]],
        "different": [keys[1]],
        "lost": [],
    }


@pytest.mark.parametrize(
    ("table", "key", "facts", "claim"),
    [
        ("clips", "a-0000", {"num_frames": 7}, "clip a-0000: num_frames is 7 in the lock"),
        (
            "clips",
            "a-0000",
            {"crop": Crop(0, 0, 2, 2)},
            "clip a-0000: crop is Crop(x=0, y=0, width=2, height=2) in the lock",
        ),
        ("videos", "b", {"num_bytes": 7}, "video b: num_bytes is 7 in the lock"),
        (
            "samples",
            "c-0000",
            {"round_trip_psnr_db": 99.0},
            "sample c-0000: round_trip_psnr_db is 99.0 in the lock",
        ),
        (
            "shards",
            "00000",
            {"split": "validation"},
            "shard 00000: split is validation in the lock",
        ),
        ("shards", "16384", {"num_bytes": 7}, "shard 16384: num_bytes is 7 in the lock"),
    ],
)
def test_a_lock_that_says_otherwise_than_the_bytes_it_names_is_not_reproduced(
    rebuilt_once: tuple[Lock, list[Step], Store],
    table: str,
    key: str,
    facts: dict[str, Any],
    claim: str,
) -> None:
    locked, steps, store = rebuilt_once
    assert compare.judge(locked, steps, [], store)["contradictions"] == []
    lines = getattr(locked, table)
    report = compare.judge(
        replace(locked, **{table: {**lines, key: replace(lines[key], **facts)}}), steps, [], store
    )
    assert (report["verdict"], len(report["contradictions"])) == ("different", 1)
    words = compare.lines(report)
    assert any(line.startswith(f"the lock contradicts itself: {claim}") for line in words)
    assert words[-1] == f"not what the lock says, though the root digest is: {locked.root_digest}"


def test_a_source_that_may_come_back_and_a_sample_too_many_are_told(
    rebuilt_once: tuple[Lock, list[Step], Store],
) -> None:
    locked, steps, store = rebuilt_once
    fewer = {key: sample for key, sample in locked.samples.items() if key != "c-0000"}
    report = compare.judge(replace(locked, samples=fewer), steps, [], store)
    assert report["samples"]["more"] == ["c-0000"]
    report["sources"]["gone"] = [
        {"source": "b", "class": "rate-limited", "detail": "429"},
        {"source": "d", "class": "gone", "detail": ""},
    ]
    words = compare.lines(report)
    assert "sample the lock does not have: c-0000" in words
    assert "what was rate-limited may come back: the same command tries it again" in words


def test_a_clip_that_is_rejected_is_named_with_its_class(clone: Dataset) -> None:
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    locked.clips["c-0000"] = replace(locked.clips["c-0000"], start_pts=10**8, end_pts=10**8 + 12800)
    steps = list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))
    report = compare.judge(locked, steps, [], Store(clone.data / "store"))
    assert [(line["key"], line["stage"]) for line in report["rejected"]] == [("c-0000", "extract")]
    assert any(
        line.startswith(f"rejected: c-0000 (extract, {report['rejected'][0]['class']}): ")
        for line in compare.lines(report)
    )


def test_a_source_that_was_taken_down_or_renamed_costs_its_own_samples(
    small_dataset: Dataset, clone: Dataset
) -> None:
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    gone = replace(loaded, removed={"a": Removal("2026-01-01T00:00:00Z", "asked to")})
    assert isinstance(reproduce.source_of(locked.videos["a"], gone), Rejection)
    assert isinstance(reproduce.source_of(locked.videos["b"], gone), Source)
    renamed = replace(
        loaded, sources=tuple(source for source in loaded.sources if source.key != "b")
    )
    assert reproduce.edits(renamed, locked) == [reproduce.Edit("b", "missing")]
    more = replace(loaded, sources=(*loaded.sources, Source("new", "file:new.mp4")))
    assert reproduce.edits(more, locked) == [reproduce.Edit("new", "added")]
    locked.header["stages"]["download"]["rejected"] = {
        "removed": 1
    }  # taken down before the lock was written
    assert reproduce.edits(more, locked) == [reproduce.Edit("new", "added")]
    assert (
        reproduce.edits(replace(more, removed={"new": Removal("2026-01-01T00:00:00Z", "")}), locked)
        == []
    )


def test_a_source_that_went_from_the_recipe_is_not_fetched_as_part_of_one_with_a_like_name(
    clone: Dataset,
) -> None:
    loaded, video = recipes.load(clone.recipe), lock.read(clone.recipe).videos["a"]
    listed = replace(video, key="a-2", uri="https://example.org/v2")
    page = replace(loaded, sources=(Source("a", "https://example.org/v1"),))
    assert isinstance(reproduce.source_of(listed, page, {"a-2"}), Source)
    gone = reproduce.source_of(listed, page, {"a", "a-2"})
    assert isinstance(gone, Rejection)
    assert gone.detail == "the recipe does not name it any more"


def test_options_and_digests_that_a_rebuild_does_not_ask_for_are_told(clone: Dataset) -> None:
    text = (
        clone.recipe.read_text()
        .replace("min_frames = 20", "min_frames = 5")
        .replace('id = "a"', f'id = "a"\nsha256 = "{"0" * 64}"')
    )
    clone.recipe.write_text(text)
    locked = lock.read(clone.recipe)
    edits = reproduce.edits(recipes.load(clone.recipe), locked)
    assert edits == [
        reproduce.Edit("[filter]", "min_frames", "20", "5"),
        reproduce.Edit("a", "sha256", f'"{locked.videos["a"].sha256}"', f'"{"0" * 64}"'),
    ]


def test_an_edited_option_is_told_in_words(rebuilt_once: tuple[Lock, list[Step], Store]) -> None:
    locked, steps, store = rebuilt_once
    report = compare.judge(
        locked, steps, [reproduce.Edit("[filter]", "min_frames", "20", "5")], store
    )
    assert report["verdict"] == "identical"
    assert (
        "edited: [filter] min_frames: the recipe says 5, the lock 20, which is what was used"
        in compare.lines(report)
    )


@pytest.mark.parametrize(
    ("entry", "address", "expected"),
    [
        ("https://example.org/playlist", "https://example.org/v1", "https://example.org/v1"),
        ("https://example.org/playlist", "file:/etc/passwd", None),
        ("https://example.org/playlist", "s3://bucket/film.mp4", None),
        ("s3://bucket/*.mp4", "https://example.org/v1", None),
    ],
)
def test_a_lock_may_not_lead_elsewhere_than_the_recipe(
    clone: Dataset, entry: str, address: str, expected: str | None
) -> None:
    loaded = replace(recipes.load(clone.recipe), sources=(Source("show", entry),))
    video = replace(
        lock.read(clone.recipe).videos["a"], key="show-v1", uri=address, fetched_as="137+140"
    )
    if expected is None:
        with pytest.raises(Damaged, match="is of another kind"):
            reproduce.source_of(video, loaded)
        return
    source = reproduce.source_of(video, loaded)
    assert isinstance(source, Source)
    assert (source.uri, source.format, source.sha256) == (expected, "137+140", video.sha256)


def test_a_file_of_a_glob_is_found_under_the_recipe_s_folder_and_nowhere_else(
    clone: Dataset,
) -> None:
    loaded = replace(recipes.load(clone.recipe), sources=(Source("all", "file:*.mp4"),))
    video = replace(lock.read(clone.recipe).videos["a"], key="all-a")
    source = reproduce.source_of(replace(video, uri="file:a.mp4"), loaded)
    assert isinstance(source, Source)
    assert (source.uri, source.format) == ("file:a.mp4", None)
    for address in ("file:/etc/passwd", "file:../x.mp4", "file:gone.mp4"):
        gone = reproduce.source_of(replace(video, uri=address), loaded)
        assert isinstance(gone, Rejection)
        assert gone.detail == f"file:*.mp4 does not match {address.removeprefix('file:')} any more"


def test_of_two_files_of_one_name_the_one_with_the_bytes_is_taken(
    clone: Dataset, tmp_path: Path
) -> None:
    for folder, name in (("p", "a"), ("q", "b")):
        (tmp_path / "films" / folder).mkdir(parents=True)
        (tmp_path / "films" / folder / "film.mp4").write_bytes(
            (clone.recipe.parent / f"{name}.mp4").read_bytes()
        )
    loaded = replace(
        recipes.load(clone.recipe), sources=(Source("all", f"file:{tmp_path}/films/*/film.mp4"),)
    )
    for folder, name in (("p", "a"), ("q", "b")):
        video = replace(
            lock.read(clone.recipe).videos[name], key=f"all-{name}", uri="file:film.mp4"
        )
        source = reproduce.source_of(video, loaded)
        assert isinstance(source, Source)
        assert source.uri == f"file:{tmp_path}/films/{folder}/film.mp4"


def test_a_forged_time_base_is_damage_and_no_wrong_clip(clone: Dataset) -> None:
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    key = next(iter(locked.clips))
    locked.clips[key] = replace(locked.clips[key], time_base=Fraction(1, 3))
    with pytest.raises(Damaged, match=f"counts '{key}' in 1/3 s"):
        list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))


def test_without_a_lock_nothing_is_rebuilt(clone: Dataset) -> None:
    clone.lock.unlink()
    done = longtake("reproduce", clone.recipe, "--data", clone.data)
    assert done.returncode == 2
    assert "there is no lock" in done.stderr


def test_another_version_of_a_stage_is_said(
    clone: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock.read(clone.recipe)
    monkeypatch.setattr(extract, "VERSION", extract.VERSION + 1)
    loaded = recipes.load(clone.recipe)
    steps = [
        step
        for step in look(loaded, clone.data, "cpu")
        if step.manifest.stage in ("extract", "encode")
    ]
    lines = reproduce.versions(locked, steps)
    assert lines == [
        f"stage 'extract' is version {extract.VERSION} here and {extract.VERSION - 1} "
        "in the lock: its bytes may differ"
    ]


def test_a_build_where_the_lock_cannot_be_written_stops_before_any_work(
    clone: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(Exception, match="cannot write a lock beside"):
        clone.build()
    assert not clone.data.exists()


def test_an_edited_caption_leaves_one_text_embedding_pending_and_its_shard(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    built = small_dataset.copy(tmp_path)
    built.build()  # for it knows local files by their inode
    built.recipe.write_text(built.recipe.read_text().replace("the film c", "another caption"))
    steps = {
        step.manifest.stage: step for step in look(recipes.load(built.recipe), built.data, "cpu")
    }
    assert {stage: step.num_pending for stage, step in steps.items() if step.num_pending} == {
        "encode": 1,
        "shard": 1,
    }


def test_the_report_quotes_both_machines() -> None:
    versions = {"torch": "2.15.0"}
    here = {
        "versions": versions,
        "machine": "x86_64",
        "devices": ["cpu AVX512, AMD EPYC, mkl 2024.2"],
        "cpu": {"vendor": "AuthenticAMD", "model": "AMD EPYC"},
        "restrictions": {"MKL_CBWR": "COMPATIBLE"},
        "threads": 1,
    }
    old = {"versions": versions, "machine": "x86_64", "devices": ["cpu AVX512"], "threads": 1}
    theirs = {**here, "cpu": {"vendor": "GenuineIntel", "model": "Xeon"}, "restrictions": {}}
    assert compare.other_machine({"locked": here, "found": here}) == []
    assert compare.other_machine({"locked": theirs, "found": here}) == [
        "the lock was made with cpu vendor GenuineIntel; cpu model Xeon; MKL_CBWR not set",
        "here is cpu vendor AuthenticAMD; cpu model AMD EPYC; MKL_CBWR COMPATIBLE",
    ]
    assert compare.other_machine({"locked": old, "found": here}) == [
        "the lock was made with device cpu AVX512",
        "here is device cpu AVX512, AMD EPYC, mkl 2024.2",
    ]
