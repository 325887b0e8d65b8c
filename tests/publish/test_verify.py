"""verify: one flipped byte in any kind of file is found and named, and what is damaged can be made
again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import canonical
from pipeline.core.errors import RecipeError
from pipeline.core.manifest import Manifest, read
from pipeline.core.records import Blob, Clip, Sample, Video
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, lock
from pipeline.dataset import recipe as recipes
from pipeline.media import reel
from pipeline.publish import sweep, verify
from tests.making.command import longtake
from tests.making.dataset import Dataset


def checked(dataset: Dataset) -> verify.Checked:
    return verify.verify(recipes.load(dataset.recipe), dataset.data, "cpu", Progress())


@pytest.fixture
def built(small_dataset: Dataset, tmp_path: Path) -> Dataset:
    return small_dataset.copy(tmp_path)


def flip(path: Path, at: float = 0.5) -> Path:
    """Change one bit of one byte, in place, at that share of the file."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)
    return path


def records(dataset: Dataset, stage: str) -> Manifest:
    return read(next(dataset.folder.glob(f"?-{stage}.jsonl")), verify.KINDS[stage])


def stored(dataset: Dataset, blob: Blob) -> Path:
    return Store(dataset.data / "store").path(blob.sha256)


def first(dataset: Dataset) -> Sample:
    sample = records(dataset, "encode").records[0]
    assert isinstance(sample, Sample)
    return sample


def reel_of(dataset: Dataset) -> Path:
    video = records(dataset, "download").records[0]
    assert isinstance(video, Video)
    task = reel.task(video, recipes.load(dataset.recipe).recipe.extract)
    return stored(
        dataset, Blob(**Store(dataset.data / "store").recall(canonical.digest(task))["reel"])
    )


def text_of(dataset: Dataset, caption: str) -> Blob:
    """A caption's embedding, alone."""
    task = [*records(dataset, "encode").params["text"], caption]
    return Blob(**Store(dataset.data / "store").recall(canonical.digest(task)))


@dataclass(frozen=True)
class Kind:
    """A kind of file: where one is, what `verify` calls it, and whether the next build makes it
    again.
    """

    path: Callable[[Dataset], Path]
    named: str
    again: bool = True


KINDS = {
    "lock": Kind(lambda d: d.lock, "small.lock.jsonl", again=False),
    **{
        f"manifest-{stage}": Kind(
            lambda d, stage=stage: next(d.folder.glob(f"?-{stage}.jsonl")), f"-{stage}.jsonl: line "
        )  # type: ignore[misc]
        for stage in verify.KINDS
    },
    "memo": Kind(
        lambda d: sorted((d.data / "store" / "memos").glob("*/*"))[0], "counts as not there"
    ),
    "video": Kind(
        lambda d: stored(d, first(d).clip.scene.video.blob), "video 'a': its bytes have changed"
    ),
    "reel": Kind(reel_of, "reel of 'a': its bytes have changed"),
    "clip": Kind(lambda d: stored(d, first(d).clip.blob), "clip 'a-0000': its bytes have changed"),
    "latents": Kind(
        lambda d: stored(d, first(d).latents), "a-0000.latents.npy: its bytes have changed"
    ),
    "null-text": Kind(
        lambda d: stored(d, text_of(d, "")), "the empty caption's text.npy: its bytes have changed"
    ),
    "caption": Kind(
        lambda d: stored(d, text_of(d, "the film b")),
        "a caption of b-0000-000.text.npy: its bytes have changed",
    ),
    "text": Kind(lambda d: stored(d, first(d).text), ".text.npy"),
    "image": Kind(lambda d: stored(d, first(d).image or Blob("", 0)), ".image.npy"),
    "shard-blob": Kind(
        lambda d: stored(d, records(d, "shard").records[0].blob),
        "shard '00000': its bytes have changed",
    ),  # type: ignore[union-attr]
    "clip-file": Kind(
        lambda d: d.folder / "clips" / "b-0000-000.mp4", "b-0000-000.mp4 is not what was built"
    ),
    "shard-file": Kind(
        lambda d: d.folder / "shards" / "00000.tar", "latents.npy in 00000.tar has changed"
    ),
    "index": Kind(lambda d: d.folder / "shards" / "index.json", "index: index.json: "),
    "own-lock": Kind(lambda d: d.folder / "lock.jsonl", "lock: small/lock.jsonl: "),
}


def test_a_whole_dataset_is_as_the_lock_says(small_dataset: Dataset) -> None:
    result = checked(small_dataset)
    assert (result.findings, result.notes) == ([], [])
    assert (result.manifests, len(result.decoded)) == (10, 4)
    assert set(result.decoded) <= {
        sample.round_trip_psnr_db
        for sample in records(small_dataset, "encode").records
        if isinstance(sample, Sample)
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_flipped_byte_in_each_kind_of_file_is_found_and_named(built: Dataset, kind: Kind) -> None:
    path = flip(kind.path(built))
    result = checked(built)
    lines = [f"{finding.kind}: {finding.name}: {finding.problem}" for finding in result.findings]
    assert any(kind.named in line for line in lines), lines
    root = built.index["root_digest"] if path.name != "index.json" else None
    if kind.again:
        assert verify.drop(result) >= 1
        assert not path.exists()
    built.build()
    assert checked(built).findings == []
    assert root is None or built.index["root_digest"] == root


def test_the_command_says_so_by_its_exit_code_and_drops_what_is_damaged(built: Dataset) -> None:
    path = flip(KINDS["latents"].path(built))
    done = longtake("verify", built.recipe, "--data", built.data, "--device", "cpu", "--drop")
    assert done.returncode == 7, done.stdout + done.stderr
    assert "a-0000.latents.npy" in done.stdout
    assert "1 damaged files removed" in done.stdout
    assert not path.exists()
    again = longtake("verify", built.recipe, "--data", built.data, "--device", "cpu", "--drop")
    assert again.returncode == 7
    assert "there is nothing to drop: `plan` says" in again.stdout
    assert not [line for line in again.stdout.splitlines() if "removed" in line]


@pytest.mark.parametrize("options", [(), ("--drop",)], ids=["look", "drop"])
def test_nothing_is_judged_while_a_build_is_at_work(
    built: Dataset, options: tuple[str, ...]
) -> None:
    path = flip(KINDS["latents"].path(built))
    with build.opened(built.data):
        done = longtake("verify", built.recipe, "--data", built.data, *options)
    assert done.returncode == 4
    assert "another build is working" in done.stderr
    assert done.stdout == ""
    assert path.exists()


def test_a_folder_where_nothing_was_built_stays_empty(built: Dataset, tmp_path: Path) -> None:
    done = longtake("verify", built.recipe, "--data", tmp_path / "none")
    assert done.returncode == 2
    assert not (tmp_path / "none").exists()


def test_a_deleted_file_and_a_shortened_one_are_found(built: Dataset) -> None:
    clip, latents = stored(built, first(built).clip.blob), stored(built, first(built).latents)
    clip.unlink()
    latents.write_bytes(latents.read_bytes()[:-1])
    (built.folder / "shards" / "16384.tar").unlink()
    problems = {
        finding.name.partition(",")[0]: finding.problem for finding in checked(built).findings
    }
    assert problems["clip 'a-0000'"] == "is missing"
    assert "instead of" in problems["a-0000.latents.npy"]
    assert problems["shard '16384'"] == "16384.tar is missing"


def test_nan_in_an_array_is_found_even_where_every_digest_agrees(built: Dataset) -> None:
    store, manifest = Store(built.data / "store"), records(built, "encode")
    sample = first(built)
    values = np.load(store.path(sample.latents.sha256))
    values[3] = np.nan
    with store.scratch() as path:
        with path.open("wb") as file:
            np.save(file, values)
        bad = store.adopt(path)
    path = next(built.folder.glob("?-encode.jsonl"))
    path.write_bytes(
        b"".join(
            canonical.seal(_renamed(line, sample.latents, bad)) + b"\n"
            for line in path.read_bytes().splitlines()
        )
    )
    assert manifest.records != records(built, "encode").records
    problems = {finding.name: finding.problem for finding in checked(built).findings}
    assert problems["a-0000.latents.npy"] == "holds NaN or infinity"


def _renamed(line: bytes, old: Blob, new: Blob) -> dict[str, object]:
    content: dict[str, object] = canonical.unseal(line)
    changed: dict[str, object] = json.loads(
        json.dumps(content)
        .replace(old.sha256, new.sha256)
        .replace(f": {old.num_bytes}}}", f": {new.num_bytes}}}")
    )
    return changed


def test_records_lost_between_two_stages_are_found(built: Dataset) -> None:
    path = next(built.folder.glob("?-extract.jsonl"))
    header, *lines = [canonical.unseal(line) for line in path.read_bytes().splitlines()]
    header |= {"in": header["in"] - 1, "out": header["out"] - 1}
    path.write_bytes(b"\n".join(canonical.seal(line) for line in [header, *lines[1:]]))
    problems = [f"{finding.name}: {finding.problem}" for finding in checked(built).findings]
    assert any("'filter' gave" in line and "'extract' took" in line for line in problems), problems
    clip = canonical.plain(lines[0]["record"])["key"]
    assert f"{clip}: is in the lock and not here" in problems


def test_a_dataset_of_another_lock_is_not_as_the_lock_says(built: Dataset) -> None:
    key = next(iter(lock.read(built.recipe).clips))
    lines = [canonical.unseal(line) for line in built.lock.read_bytes().splitlines()]
    clip = next(line["clip"] for line in lines if line.get("clip", {}).get("key") == key)
    clip |= {"start_pts": clip["start_pts"] + 1, "pictures": "0" * 64}
    built.lock.write_bytes(b"\n".join(canonical.seal(line) for line in lines))
    problems = [
        f"{finding.kind} {finding.name}: {finding.problem}" for finding in checked(built).findings
    ]
    assert problems == [f"clip {key}: not what the lock says: cut or crop, pictures"]


def test_within_tolerance_of_another_machine_s_lock_is_said_and_has_its_exit_code(
    built: Dataset,
) -> None:
    lines = [canonical.unseal(line) for line in built.lock.read_bytes().splitlines()]
    samples = [line["sample"] for line in lines if "sample" in line]
    for sample in samples:  # the values are as they were: only a last bit elsewhere differed
        sample["members"]["latents.npy"]["sha256"] = "0" * 64
    built.lock.write_bytes(b"\n".join(canonical.seal(line) for line in lines))
    done = longtake("verify", built.recipe, "--data", built.data, "--device", "cpu")
    assert done.returncode == 6, done.stdout + done.stderr
    count = len(samples)
    assert done.stdout.count("is not bit-identical to the lock's, but within tolerance") == count
    assert f"within tolerance of the lock: {count} things are not bit-identical" in done.stdout
    assert "all is as the lock says" not in done.stdout


def test_raw_videos_that_were_let_go_are_not_missing(built: Dataset) -> None:
    store, clip = Store(built.data / "store"), first(built).clip
    assert isinstance(clip, Clip)
    store.release(clip.scene.video.blob)
    result = checked(built)
    assert result.findings == []
    assert result.notes == ["1 raw videos were let go (--keep-raw no)"]


def test_an_edited_recipe_is_noted_and_nothing_built_says_what_to_do(
    built: Dataset, tmp_path: Path
) -> None:
    built.recipe.write_text(built.recipe.read_text().replace("the film c", "another caption"))
    result = checked(built)
    assert "the recipe was edited since the lock was written" in result.notes[0]
    with pytest.raises(RecipeError, match="nothing is built in"):
        checked(Dataset(built.recipe, tmp_path / "nowhere"))


@pytest.mark.parametrize("stage", ["download", "extract", "encode", "shard"])
def test_a_manifest_that_is_gone_leaves_its_records_missing(built: Dataset, stage: str) -> None:
    next(built.folder.glob(f"?-{stage}.jsonl")).unlink()
    assert any(
        finding.problem == "is in the lock and not here" for finding in checked(built).findings
    )


@pytest.mark.parametrize("line", [b'{"check":"0","x":NaN}', b"[" * 100_000, b"{}", b"3", b""])
def test_nonsense_in_a_manifest_is_damage_and_no_traceback(built: Dataset, line: bytes) -> None:
    path = next(built.folder.glob("?-extract.jsonl"))
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert any(finding.name == "4-extract.jsonl" for finding in checked(built).findings)
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[2:]))
    assert any(finding.name == "4-extract.jsonl" for finding in checked(built).findings)


def test_a_shortened_reel_is_found_dropped_and_not_missed(built: Dataset) -> None:
    path = reel_of(built)
    path.write_bytes(path.read_bytes()[:-5])
    assert verify.drop(checked(built)) == 1
    assert checked(built).findings == []


def test_a_damaged_blob_that_nothing_names_any_more_is_found_too(built: Dataset) -> None:
    path = reel_of(built)
    store = Store(built.data / "store")
    [key] = [
        memo.key
        for memo in sweep.memos_of(store)
        if path.name in {sha256 for sha256, _ in sweep.kinds_in(memo)}
    ]
    store.memo_path(key).write_bytes(b"damaged")
    assert verify.drop(checked(built)) == 1
    built.build()  # its clips are remembered, so nobody makes the reel again
    assert not store.remembers(key)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    [finding] = checked(built).findings
    assert (finding.name, finding.path) == (f"{path.name[:12]}, left over", path)
    assert verify.drop(checked(built)) == 1
    assert checked(built).findings == []


def test_latents_of_another_vae_than_the_recipe_s_are_not_decoded(built: Dataset) -> None:
    shutil.copytree(Path(verify.encoders.TINY) / "vae", built.recipe.parent / "vae")
    config = built.recipe.parent / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_eps": 1e-5}))
    built.recipe.write_text(
        built.recipe.read_text().replace('preset = "tiny"', 'preset = "tiny"\nvae = "vae"')
    )
    result = checked(built)
    assert (result.findings, result.decoded) == ([], [])
    assert any("another VAE" in note for note in result.notes)
