"""When a build writes the lock beside its recipe, when it leaves it, and what it says of both."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.executors import Inline
from pipeline.core.stage import Progress
from pipeline.dataset import build, lock, probe, relock
from pipeline.dataset import recipe as recipes
from pipeline.dataset.likeness import compare_locks, sentence_of
from pipeline.dataset.lock import Lock, LockedMember
from tests.making.dataset import Dataset


@pytest.fixture
def locked(small_dataset: Dataset) -> Lock:
    return lock.read(small_dataset.recipe)


@pytest.fixture
def built(small_dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset, with the lock that its own folder wrote."""
    return small_dataset.copy(tmp_path)


def with_noise(lock: Lock, scale: float) -> Lock:
    """The lock of a machine that rounds otherwise: every array differs by that much of its values'
    deviation.
    """
    samples = {}
    for key, sample in lock.samples.items():
        members = {name: noisy(member, scale) for name, member in sample.members.items()}
        samples[key] = replace(sample, members=members)
    shards = {key: replace(shard, sha256="1" * 64) for key, shard in lock.shards.items()}
    header = {**lock.header, "root_digest": locked_root(shards)}
    return Lock(header, lock.videos, lock.clips, samples, shards)


def locked_root(shards: dict[str, lock.LockedShard]) -> str:
    return lock.root_of(shards.values())


def noisy(member: LockedMember, scale: float) -> LockedMember:
    if member.probe is None:
        return member
    values = probe.values_of(member.probe)
    noise = np.random.default_rng(0).normal(scale=scale * values.std(), size=values.shape)
    return LockedMember("2" * 64, text_of(values + noise))


def text_of(values: object) -> str:
    return base64.b64encode(np.asarray(values).astype("<f2").tobytes()).decode()


def without(lock: Lock, key: str) -> Lock:
    samples = {name: sample for name, sample in lock.samples.items() if name != key}
    return replace(lock, samples=samples)


def edited(lock: Lock, change: Callable[[dict[str, object]], object]) -> Lock:
    header = copy.deepcopy(lock.header)
    change(header)
    return replace(lock, header=header)


def decided(
    locked: Lock | None, new: Lock, removed: Collection[str] = (), **how: bool
) -> relock.Why:
    options = {"is_own": False, "force": False, **how}
    return relock.decide(locked, new, removed=removed, **options)


def test_a_lock_is_written_where_there_is_none_or_it_was_told(locked: Lock) -> None:
    assert decided(None, locked) == "none"
    assert decided(locked, with_noise(locked, 1.0), force=True) == "forced"
    assert {"none", "forced"} <= relock.WRITES


def test_another_folder_s_lock_stays_however_alike_the_build_is(locked: Lock) -> None:
    for new in (locked, with_noise(locked, 0.002), with_noise(locked, 1.0)):
        assert decided(locked, new) == "published"
    assert "published" not in relock.WRITES


def test_its_own_lock_follows_what_is_built(locked: Lock) -> None:
    assert decided(locked, with_noise(locked, 1.0), is_own=True) == "own"
    assert decided(without(locked, "c-0000"), locked, is_own=True) == "own"  # gains a sample
    assert "own" in relock.WRITES


def test_an_edited_recipe_and_another_version_of_a_stage_write_a_lock(locked: Lock) -> None:
    other = edited(locked, lambda header: header.update(recipe="0" * 64))
    assert decided(locked, other) == "recipe"
    newer = edited(locked, lambda header: header["stages"]["shard"].update(version=99))  # type: ignore[index]
    assert decided(locked, newer) == "stages"
    models = edited(locked, lambda header: header["stages"]["encode"]["params"].update(vae="0"))  # type: ignore[index]
    assert decided(locked, models) == "stages"


def test_a_stage_that_only_one_of_two_locks_knows_makes_no_difference(locked: Lock) -> None:
    more = edited(locked, lambda header: header["stages"].update(later={"version": 1}))  # type: ignore[attr-defined]
    assert decided(locked, more) == "published"


def test_a_build_with_fewer_samples_leaves_a_lock_that_has_them(locked: Lock) -> None:
    fewer = without(locked, "c-0000")
    for is_own in (True, False):
        assert decided(locked, fewer, is_own=is_own) == "fewer"
    assert decided(locked, locked, is_own=True) == "own"
    assert decided(locked, fewer, is_own=True, force=True) == "forced"
    assert "fewer" not in relock.WRITES


def test_a_removal_and_an_edited_recipe_may_take_samples_away(locked: Lock) -> None:
    fewer = without(locked, "c-0000")
    assert decided(locked, fewer, {"c"}, is_own=True) == "own"
    assert decided(locked, fewer, {"a"}, is_own=True) == "fewer"
    other = edited(fewer, lambda header: header.update(recipe="0" * 64))
    assert decided(locked, other, is_own=True) == "recipe"


def test_two_locks_are_identical_equivalent_or_different_by_their_samples(locked: Lock) -> None:
    same = compare_locks(locked, copy.deepcopy(locked))
    assert (same.grade, same.num_identical) == ("identical", len(locked.samples))
    near = compare_locks(locked, with_noise(locked, 0.002))
    assert (near.grade, near.equivalent) == ("equivalent", sorted(locked.samples))
    assert 0.001 < near.largest_mean < 0.004
    far = compare_locks(locked, with_noise(locked, 1.0))
    assert (far.grade, far.different) == ("different", sorted(locked.samples))
    fewer = compare_locks(locked, without(locked, "c-0000"))
    assert (fewer.grade, fewer.lost) == ("different", ["c-0000"])
    more = compare_locks(without(locked, "c-0000"), locked)
    assert (more.grade, more.more) == ("different", ["c-0000"])


def test_a_comparison_is_said_in_one_line(locked: Lock) -> None:
    count = len(locked.samples)
    assert sentence_of(compare_locks(locked, locked)) == f"identical ({count} identical)"
    near = sentence_of(compare_locks(locked, with_noise(locked, 0.002)))
    assert near.startswith(f"equivalent ({count} within tolerance; arrays differ by up to 0.")
    assert near.endswith("% of their deviation)")
    fewer = sentence_of(compare_locks(locked, without(locked, "c-0000")))
    assert fewer == f"different ({count - 1} identical, 1 missing)"


def test_another_measured_psnr_alone_is_equivalent_and_another_caption_is_not(locked: Lock) -> None:
    rescored = {
        key: replace(
            sample,
            round_trip_psnr_db=(sample.round_trip_psnr_db or 0) + 0.01,
            members={**sample.members, "json": LockedMember("3" * 64, None)},
        )
        for key, sample in locked.samples.items()
    }
    new = replace(locked, samples=rescored)
    assert compare_locks(locked, new).equivalent == sorted(locked.samples)
    videos = {key: replace(video, captions=("other",)) for key, video in locked.videos.items()}
    assert compare_locks(locked, replace(new, videos=videos)).different == sorted(locked.samples)


def rebuilt(dataset: Dataset, force: bool = False) -> None:
    loaded = recipes.load(dataset.recipe)
    how = (Inline(), "cpu", "shard", Progress())
    for _ in build.build(loaded, dataset.data, *how, relock=force):
        pass


def publish(dataset: Dataset, content: Lock) -> bytes:
    """Put somebody else's lock beside the recipe."""
    lock.write(content, dataset.recipe)
    return dataset.lock.read_bytes()


def said(dataset: Dataset) -> str:
    root_digest = dataset.index["root_digest"]
    return relock.sentence(dataset.recipe, dataset.folder, root_digest)


def test_a_build_leaves_a_published_lock_until_it_is_told(built: Dataset, locked: Lock) -> None:
    published = publish(built, with_noise(locked, 0.002))
    rebuilt(built)
    assert built.lock.read_bytes() == published
    assert f"stays: it was not written from {built.folder}, whose samples are equiv" in said(built)
    assert said(built).endswith("; --relock replaces it")
    rebuilt(built, force=True)
    assert lock.read(built.recipe) == locked
    assert said(built) == f"lock: {built.lock}"


def test_a_fresh_clone_leaves_the_published_lock_and_then_keeps_to_it(
    small_dataset: Dataset, locked: Lock, tmp_path: Path
) -> None:
    clone = small_dataset.published(tmp_path)
    published = publish(clone, with_noise(locked, 0.002))
    for _ in range(2):
        rebuilt(clone)
        assert clone.lock.read_bytes() == published


def test_a_source_that_could_not_be_had_before_is_added_to_its_own_lock(built: Dataset) -> None:
    film = built.recipe.parent / "c.mp4"
    content = film.read_bytes()
    film.unlink()
    built.lock.unlink()
    rebuilt(built)
    assert "c-0000" not in lock.read(built.recipe).samples
    film.write_bytes(content)
    rebuilt(built)
    assert "c-0000" in lock.read(built.recipe).samples
    whole = built.lock.read_bytes()
    film.unlink()
    rebuilt(built)  # and it does not lose it again
    assert built.lock.read_bytes() == whole
    assert "stays as it was: it has samples that this build does not have" in said(built)
    loaded = recipes.load(built.recipe)
    steps = build.look(loaded, built.data, "cpu")
    lost = relock.losses(loaded, [step.manifest for step in steps])
    assert lost == {"c-0000": "download: not-found"}


def test_a_build_broken_off_between_its_two_locks_keeps_its_own(
    built: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.recipe.write_text(built.recipe.read_text().replace("the film c", "another caption"))
    with monkeypatch.context() as patched:
        patched.setattr(lock, "write_file", broken_off(built.folder))
        with pytest.raises(RuntimeError, match="the plug was pulled"):
            rebuilt(built)
    rebuilt(built)
    assert said(built) == f"lock: {built.lock}"


def broken_off(folder: Path) -> Callable[[Lock, Path], tuple[Path, bool]]:
    """`lock.write_file`, which the plug is pulled on in a dataset's folder."""
    write = lock.write_file

    def write_or_stop(content: Lock, plain: Path) -> tuple[Path, bool]:
        if plain.parent == folder:
            raise RuntimeError("the plug was pulled")
        return write(content, plain)

    return write_or_stop


def test_an_idle_build_opens_no_array_for_its_lock(
    built: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilt(built)
    monkeypatch.setattr(lock, "probe_of", lambda path: pytest.fail(f"{path} was opened"))
    before = built.lock.read_bytes()
    rebuilt(built)
    assert built.lock.read_bytes() == before
