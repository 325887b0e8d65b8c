"""shard.pack: boundaries follow from the samples alone, so that one more or less changes little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.records import Blob, Clip, Crop, Pack, Sample, Scene
from pipeline.stages import shard
from pipeline.stages.shard import Params

NewScene = Callable[..., Scene]
Sizes = dict[str, int]  # bytes of a sample's latents, by the sample's key
Shards = dict[str, tuple[str, ...]]  # keys of the samples in a shard, by its name

SIZES = st.dictionaries(
    st.text("abcdefgh0123_-", min_size=1, max_size=12), st.integers(1, 40_000), max_size=40
)
LIMITS = st.builds(
    Params,
    seed=st.integers(0, 3),
    max_samples=st.integers(1, 12),
    max_bytes=st.integers(1_000, 120_000),
    validation=st.sampled_from([0.0, 0.3]),
)
with_fixtures = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
)


@pytest.fixture
def new_sample(new_scene: NewScene) -> Callable[[str, int], Sample]:
    """`new_sample(key, num_bytes)`: a sample of a video of its own, without files."""
    scene = new_scene(0, 3000)

    def make(key: str, num_bytes: int) -> Sample:
        video = replace(scene.video, key=key, blob=Blob(shard.order_of(key, 99), 1))
        clip = Clip(
            key,
            replace(scene, key=key, video=video),
            Blob("1" * 64, 1),
            5,
            Fraction(10),
            16,
            Crop(40, 0, 240, 240),
            "3" * 64,
        )
        latents, text = Blob("4" * 64, num_bytes), Blob("5" * 64, 100)
        return Sample(key, clip, latents, None, text, None, None, "cpu")

    return make


@pytest.fixture
def pack(new_sample: Callable[[str, int], Sample]) -> Callable[[Sizes, Params], list[Pack]]:
    def make(sizes: Sizes, params: Params) -> list[Pack]:
        return shard.pack([new_sample(key, size) for key, size in sizes.items()], params)

    return make


def shards_of(packs: Sequence[Pack]) -> Shards:
    return {pack.key: tuple(sample.key for sample in pack.samples) for pack in packs}


def num_bytes(pack: Pack) -> int:
    return shard.END + sum(map(shard.tar_bytes, pack.samples))


Packing = Callable[[Sizes, Params], list[Pack]]


@given(SIZES, LIMITS)
@with_fixtures
def test_every_sample_is_in_one_shard_and_the_limits_hold(
    pack: Packing, sizes: Sizes, params: Params
) -> None:
    packs = pack(sizes, params)
    assert sorted(key for keys in shards_of(packs).values() for key in keys) == sorted(sizes)
    assert len({pack.key for pack in packs}) == len(packs)
    for each in packs:
        assert 1 <= len(each.samples) <= params.max_samples
        assert num_bytes(each) <= params.max_bytes or len(each.samples) == 1


@given(SIZES, LIMITS)
@with_fixtures
def test_names_sort_as_the_samples_do(pack: Packing, sizes: Sizes, params: Params) -> None:
    packs = pack(sizes, params)
    assert [each.key for each in packs] == sorted(each.key for each in packs)
    for split in ("train", "validation"):
        keys = [sample.key for each in packs if each.split == split for sample in each.samples]
        assert keys == sorted(keys, key=lambda key: shard.order_of(key, params.seed))


@given(SIZES, LIMITS)
@with_fixtures
def test_the_order_in_which_samples_come_does_not_matter(
    pack: Packing, sizes: Sizes, params: Params
) -> None:
    backwards = dict(reversed(sizes.items()))
    assert pack(backwards, params) == pack(sizes, params)


@given(SIZES.filter(bool), LIMITS, st.data())
@with_fixtures
def test_one_sample_more_leaves_every_other_shard_its_name_and_its_samples(
    pack: Packing, sizes: Sizes, params: Params, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(sizes)))
    without = {other: size for other, size in sizes.items() if other != key}
    before, after = shards_of(pack(without, params)), shards_of(pack(sizes, params))
    gone = [keys for name, keys in before.items() if after.get(name) != keys]
    new = [keys for name, keys in after.items() if before.get(name) != keys]
    assert len(gone) <= 1
    assert sorted(other for keys in new for other in keys) == sorted([*sum(gone, ()), key])


def test_a_sample_more_changes_two_shards_at_most_where_shards_are_not_tiny(pack: Packing) -> None:
    params = Params(max_samples=20)
    sizes = {f"clip-{number:04d}": 1_000 for number in range(400)}
    before = shards_of(pack(sizes, params))
    num_new: list[int] = []
    for number in range(400, 600):
        sizes[f"clip-{number:04d}"] = 1_000
        after = shards_of(pack(sizes, params))
        num_new.append(sum(before.get(name) != keys for name, keys in after.items()))
        before = after
    assert max(num_new) == 2
    assert num_new.count(1) > 180, "nearly always one shard is written anew, and none divided"
    assert len(before) < 2 * 600 / 20, "shards are more than half full on average"


@given(SIZES, LIMITS)
@with_fixtures
def test_two_shards_that_are_halves_of_one_would_not_fit_into_it(
    new_sample: Callable[[str, int], Sample], sizes: Sizes, params: Params
) -> None:
    def prefixes_of(samples: list[Sample]) -> list[str]:
        items = sorted((shard._item(each, params) for each in samples), key=lambda item: item.order)
        return [prefix for prefix, _ in shard._buckets(items, "", params)]

    samples = [new_sample(key, size) for key, size in sizes.items()]
    for prefix in prefixes_of(samples):
        if prefix:
            whole = [
                item
                for item in (shard._item(sample, params) for sample in samples)
                if item.order.startswith(prefix[:-1])
            ]
            assert not shard._fits(whole, params)


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("", "00000"),
        ("0", "00000"),
        ("1", "32768"),
        ("01", "16384"),
        ("1" * 16, "65535"),
        ("1" * 17, "65535-1"),
        ("0" * 18, "00000-00"),
    ],
)
def test_a_shard_is_named_for_the_bits_its_samples_share(prefix: str, name: str) -> None:
    assert shard.shard_name("train", prefix) == name
    assert shard.shard_name("validation", prefix) == f"validation-{name}"


def test_a_few_samples_are_one_shard_called_00000(pack: Packing) -> None:
    assert list(shards_of(pack({"one": 5, "two": 6}, Params()))) == ["00000"]
