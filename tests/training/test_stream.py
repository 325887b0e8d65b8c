"""Batches are pure functions of (index, arguments, step), read only what they use, and refuse what
is not what it says.
"""

from __future__ import annotations

import io
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from tests.making import serving
from tests.making.shards import (
    SCALE,
    SHAPE,
    TEXT,
    Change,
    change_index,
    new_clip,
    new_latents,
    new_shards,
    npy,
)
from training import ranges, shards
from training import stream as streams
from training.errors import ShardError, Stopped, UsageError
from training.frames import Window
from training.shards import Index, check_identity, open_index, verify
from training.stream import Batch, Stream, fixed_windows

BIG = (4, 32, 32)  # large enough for headers not to matter


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Ten clips of 20 to 29 frames, each with three captions, in four shards. Not to be changed."""
    clips = {f"clip-{number}": new_clip(number, 20 + number, captions=3) for number in range(10)}
    return new_shards(tmp_path_factory.mktemp("ten") / "shards", clips)


def same(first: Batch, second: Batch) -> bool:
    tensors = all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("latents", "text", "fps")
    )
    return tensors and all(
        getattr(first, name) == getattr(second, name)
        for name in ("window", "keys", "starts", "sample_indices")
    )


# What is in a batch


@pytest.mark.parametrize(
    "window", [Window(5), Window(5, 3), Window(1), Window(20), Window(2, 19)], ids=str
)
def test_a_batch_holds_the_frames_it_says_scaled(ten: Index, window: Window) -> None:
    stream = Stream(ten, windows=[window], batch_size=4, seed=3)
    for step in range(10):
        batch = stream.batch(step)
        assert batch.latents.shape == (4, window.num_frames, *SHAPE)
        assert batch.latents.dtype == batch.text.dtype == batch.fps.dtype == torch.float32
        for row, (key, start) in enumerate(zip(batch.keys, batch.starts, strict=True)):
            number = int(key.removeprefix("clip-"))
            assert batch.latents[row, :, 0, 0, 0].tolist() == [
                SCALE * (64 * number + at) for at in window.indices(start)
            ]
            assert batch.latents[row].std(dim=(1, 2, 3)).eq(0).all()
            assert batch.text[row, 0, 0].item() in {
                10 * number + caption + 1 for caption in range(3)
            }
        assert batch.text.shape == (4, *TEXT)
        assert batch.fps.tolist() == [pytest.approx(10 / window.stride)] * 4
        assert batch.window == window
        assert batch.sample_indices == tuple(range(4 * step, 4 * step + 4))


def test_windows_begin_everywhere_a_window_fits(ten: Index) -> None:
    stream = Stream(ten, windows=[Window(6, 3)], batch_size=10)
    starts = {
        (key, start)
        for step in range(200)
        for batch in [stream.batch(step)]
        for key, start in zip(batch.keys, batch.starts, strict=True)
    }
    assert starts == {
        (f"clip-{number}", start) for number in range(10) for start in range(20 + number - 15)
    }


def test_one_window_can_be_read_by_its_key(ten: Index) -> None:
    stream = Stream(ten, windows=[Window(5, 2)], batch_size=2)
    window = stream.gather([("clip-4", 7)], Window(3, 5)).latents[0]
    assert torch.equal(window, torch.from_numpy(new_latents(4, 24)[7:20:5]).float() * SCALE)
    batch = stream.gather([("clip-4", 7), ("clip-0", 0)], Window(3, 5))
    assert torch.equal(batch.latents[0], window)
    assert batch.text[:, 0, 0].tolist() == [41, 1]
    assert batch.keys == ("clip-4", "clip-0")
    with pytest.raises(
        UsageError, match="clip-4 has 24 frames: a window of 11 cannot begin at frame 14"
    ):
        stream.gather([("clip-4", 14)], Window(3, 5)).latents[0]
    with pytest.raises(UsageError, match="no clip 'clip-99' in 'train'"):
        stream.gather([("clip-99", 0)], Window(3, 5)).latents[0]


def test_a_batch_moves_to_a_device_whole(ten: Index) -> None:
    batch = Stream(ten, windows=[Window(5)], batch_size=2).batch(0)
    moved = batch.to("meta")
    assert {moved.latents.device.type, moved.text.device.type, moved.fps.device.type} == {"meta"}
    assert moved.keys == batch.keys


# Order


def order(stream: Stream, steps: range) -> list[str]:
    return [key for step in steps for key in stream.batch(step).keys]


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(ten: Index) -> None:
    keys = order(Stream(ten, windows=[Window(2)], batch_size=5), range(40))
    epochs = [tuple(keys[at : at + 10]) for at in range(0, 200, 10)]
    assert all(sorted(epoch) == [f"clip-{number}" for number in range(10)] for epoch in epochs)
    assert len(set(epochs)) == 20


def test_a_seed_and_an_epoch_are_not_added_up(ten: Index) -> None:
    orders = {
        seed: order(Stream(ten, windows=[Window(2)], batch_size=10, seed=seed), range(3))
        for seed in range(3)
    }
    assert orders[0][10:20] != orders[1][:10]
    assert orders[0][20:] != orders[1][10:20] != orders[2][:10]


def test_what_is_drawn_is_the_same_on_every_machine_and_in_every_version(ten: Index) -> None:
    options: dict[str, Any] = {
        "windows": [Window(5), Window(5, 2)],
        "seed": 7,
        "text_dropout": 0.2,
        "stride_jitter": 1,
    }
    batch = Stream(ten, **options, batch_size=10).batch(1)
    assert [int(key.removeprefix("clip-")) for key in batch.keys] == [3, 0, 6, 5, 2, 4, 7, 8, 9, 1]
    assert batch.starts == (13, 12, 13, 17, 17, 18, 8, 22, 18, 8)
    assert batch.text[:, 0, 0].tolist() == [32, 1, 63, 51, 21, 0, 71, 81, 91, 12]
    assert batch.window == Window(5, 1)


def test_an_epoch_may_end_inside_a_batch(ten: Index) -> None:
    threes, tens = (Stream(ten, windows=[Window(2)], batch_size=size) for size in (3, 10))
    assert order(threes, range(10)) == order(tens, range(3))


def test_the_order_does_not_depend_on_workers_and_touches_no_global_generator(ten: Index) -> None:
    stream = Stream(
        ten, windows=[Window(5), Window(3, 4)], batch_size=4, text_dropout=0.3, stride_jitter=2
    )
    straight = [stream.batch(step) for step in range(2, 9)]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    for workers in (0, 1, 2):
        batches = list(stream.loader(2, 9, workers))
        assert len(batches) == 7
        assert all(same(*pair) for pair in zip(batches, straight, strict=True))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_worker_hands_an_error_over_as_it_is(tmp_path: Path) -> None:
    bad = new_latents(0, 9)
    bad[4] = np.nan
    stream = Stream(
        new_shards(tmp_path, {"bad": new_clip(0, 9) | {"latents.npy": npy(bad)}}),
        windows=[Window(9)],
    )
    with pytest.raises(
        ShardError, match=r"bad\.latents\.npy, frames 0 to 8: not all numbers are finite"
    ) as caught:
        list(stream.loader(0, 4, workers=1))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("at", [0, 1, 7, 12])
def test_a_stream_resumed_at_any_step_goes_on_as_if_nothing_had_happened(
    ten: Index, at: int
) -> None:
    options: dict[str, Any] = {
        "windows": [Window(5), Window(3, 4)],
        "batch_size": 4,
        "seed": 5,
        "text_dropout": 0.3,
        "stride_jitter": 2,
    }
    straight = list(Stream(ten, **options).loader(0, 13))
    resumed = list(Stream(open_index(ten.url), **options).loader(at, 13))
    assert all(same(*pair) for pair in zip(straight[at:], resumed, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_see_disjoint_samples_and_together_the_batch_of_one(ten: Index, world: int) -> None:
    options: dict[str, Any] = {
        "windows": [Window(5), Window(3, 4)],
        "batch_size": 8,
        "text_dropout": 0.3,
        "stride_jitter": 2,
    }
    alone = Stream(ten, **options)
    ranks = [Stream(ten, **options, rank=rank, world=world) for rank in range(world)]
    seen: list[int] = []
    for step in range(5):  # 40 samples, four epochs
        whole, parts = alone.batch(step), [rank.batch(step) for rank in ranks]
        assert {len(part.keys) for part in parts} == {8 // world}
        assert {part.window for part in parts} == {whole.window}
        for row, index in enumerate(whole.sample_indices):
            part, at = parts[row % world], row // world
            assert part.sample_indices[at] == index
            assert (part.keys[at], part.starts[at]) == (whole.keys[row], whole.starts[row])
            assert torch.equal(part.latents[at], whole.latents[row])
            assert torch.equal(part.text[at], whole.text[row])
        seen += [index for part in parts for index in part.sample_indices]
    assert sorted(seen) == list(range(40))


# What is drawn


def test_all_samples_of_a_batch_have_one_window_and_each_window_comes(ten: Index) -> None:
    windows = [Window(5), Window(3, 4), Window(2, 2)]
    stream = Stream(ten, windows=windows, batch_size=2)
    counts = Counter(stream.window(step) for step in range(600))
    assert set(counts) == set(windows)
    assert min(counts.values()) > 150
    assert stream.batch(11).window == stream.window(11)


@pytest.mark.parametrize(
    ("stride", "jitter", "strides"),
    [(4, 0, {4}), (4, 2, {2, 3, 4}), (4, 9, {1, 2, 3, 4}), (1, 3, {1})],
)
def test_jitter_only_shortens_the_stride_and_fps_follows(
    ten: Index, stride: int, jitter: int, strides: set[int]
) -> None:
    nominal = Window(5, stride)
    stream = Stream(ten, windows=[nominal], batch_size=2, stride_jitter=jitter)
    assert {stream.window(step).stride for step in range(200)} == strides
    for step in range(20):
        batch = stream.batch(step)
        assert batch.window.span <= nominal.span
        assert batch.fps.tolist() == [pytest.approx(10 / batch.window.stride)] * 2


def test_a_share_of_texts_is_the_null_text_always_the_same_share(ten: Index) -> None:
    def dropped(share: float, seed: int = 0) -> list[bool]:
        stream = Stream(ten, windows=[Window(1)], batch_size=50, seed=seed, text_dropout=share)
        return [bool(text.eq(0).all()) for step in range(40) for text in stream.batch(step).text]

    assert not any(dropped(0.0))
    assert all(dropped(1.0))
    some = dropped(0.1)
    assert 150 < sum(some) < 250  # of 2000; four standard deviations are 54
    assert some == dropped(0.1)
    assert some != dropped(0.1, seed=1)
    assert all(more for less, more in zip(some, dropped(0.3), strict=True) if less), (
        "a larger share drops the same texts and more"
    )


def test_shards_of_format_1_give_the_same_batches(ten: Index, tmp_path: Path) -> None:
    clips = {
        f"clip-{number}": new_clip(number, 20 + number, captions=3, version=1)
        for number in range(10)
    }
    old = new_shards(tmp_path, clips, version=1)
    assert "text2.npy" in old.shards[0].samples[0].members
    pairs = [("clip-3", 2), ("clip-0", 5)]
    for windows in ([Window(2)], [Window(3, 2), Window(9)]):
        before, now = (Stream(index, windows=windows, batch_size=7) for index in (old, ten))
        assert all(same(before.batch(step), now.batch(step)) for step in range(6))
        assert same(before.gather(pairs, windows[0]), now.gather(pairs, windows[0]))


def test_a_text_with_an_axis_more_is_refused_in_format_1(tmp_path: Path) -> None:
    index = new_shards(tmp_path, {"one": new_clip(1, 9)}, version=1)
    with pytest.raises(ShardError, match=r"text\.npy: .* shape \(1, 7, 3\), wanted \(7, 3\)"):
        Stream(index, windows=[Window(2)]).batch(0)


def test_captions_of_one_clip_are_read_with_one_request_and_kept_one_by_one(
    tmp_path: Path,
) -> None:
    index = new_shards(tmp_path, {"one": new_clip(1, 9, captions=4)})
    stream = Stream(index, windows=[Window(2)], batch_size=16)
    captions = {int(text[0, 0]) - 11 for text in stream.batch(0).text}
    assert captions == {0, 1, 2, 3}
    num_bytes = stream.bytes_read
    assert all(text.base is None for text in stream._texts.values())
    text = index.shards[0].samples[0].members["text.npy"][1]
    frames = 16 * 2 * 4 * 2 * 2 * 2
    assert num_bytes == text + frames + 128


def test_every_caption_of_a_clip_comes_about_equally_often(ten: Index) -> None:
    stream = Stream(ten, windows=[Window(1)], batch_size=100)
    counts = Counter(
        int(text[0, 0] - 1) % 10 for step in range(12) for text in stream.batch(step).text
    )
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 320  # of 1200


def test_a_caption_dropped_from_memory_is_read_again(
    ten: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [Stream(ten, windows=[Window(2)], batch_size=7).batch(step) for step in range(6)]
    monkeypatch.setattr(streams, "MAX_TEXTS", 2)
    stream = Stream(ten, windows=[Window(2)], batch_size=7)
    assert all(same(stream.batch(step), expected[step]) for step in range(6))
    assert len(stream._texts) == 2


def test_more_shards_than_files_may_be_open_are_read_all_the_same(
    ten: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [Stream(ten, windows=[Window(2)], batch_size=7).batch(step) for step in range(6)]
    monkeypatch.setattr(ranges, "MAX_OPEN", 1)
    stream = Stream(ten, windows=[Window(2)], batch_size=7)
    assert all(same(stream.batch(step), expected[step]) for step in range(6))
    assert len(stream._files._open) == 1


# Short clips, and what cannot be asked for


def test_a_clip_shorter_than_the_longest_window_is_skipped_and_counted(tmp_path: Path) -> None:
    index = new_shards(
        tmp_path,
        {f"clip-{num_frames}": new_clip(1, num_frames) for num_frames in (1, 8, 9, 10, 30)},
    )
    stream = Stream(index, windows=[Window(2), Window(3, 4)], batch_size=6, stride_jitter=3)
    assert (stream.num_samples, stream.num_skipped) == (3, 2)
    assert set(order(stream, range(4))) == {"clip-9", "clip-10", "clip-30"}
    with pytest.raises(
        UsageError,
        match="longest has 30 frames, a window spans 31; take fewer frames or a smaller stride",
    ):
        Stream(index, windows=[Window(31)])
    with pytest.raises(UsageError, match="no split 'validation', it has train"):
        Stream(index, "validation", windows=[Window(2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 3, "world": 2},
            "a batch of 3 cannot be shared by 2 ranks equally; take a multiple of 2",
        ),
        ({"windows": []}, "there must be a window"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"text_dropout": 1.5}, "text_dropout 1.5"),
        ({"stride_jitter": -1}, "stride_jitter -1"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
    ],
)
def test_options_that_make_no_sense_are_named(
    ten: Index, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Stream(ten, **{"windows": [Window(2)], **options})


@pytest.mark.parametrize(("path", "name"), [("data/birds/shards", "birds"), ("somewhere", "NAME")])
def test_a_folder_without_shards_says_how_to_make_them(
    tmp_path: Path, path: str, name: str
) -> None:
    with pytest.raises(
        UsageError, match=f"{path}: no shards there .*`make shards DATASET={name}` builds them"
    ):
        open_index(tmp_path / path)


@pytest.mark.parametrize("url", ["gopher://there/shards", "nothing://"])
def test_an_address_nothing_can_read_is_the_users_error(url: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be read|can be read"):
        open_index(url)


# Shards that are not what they say


def in_first(index: dict[str, Any], member: str = "latents.npy") -> list[Any]:
    place: list[Any] = index["shards"][0]["samples"][0]["members"][member]
    return place


def renamed(file: str) -> Change:
    return lambda index: index["shards"][0].update(file=file)


CHANGES: dict[str, tuple[Change, str]] = {
    "another format": (
        lambda index: index.update(format=3),
        r"format 3, this reader knows 1 and 2",
    ),
    "true for a format": (
        lambda index: index.update(format=True),
        r"format True, this reader knows 1 and 2",
    ),
    "no format": (lambda index: index.pop("format"), r"format None, this reader knows 1"),
    "a shard without samples": (
        lambda index: index["shards"][0].pop("samples"),
        r"shards\.0\.samples: Field required",
    ),
    "no encoder": (lambda index: index["encoders"].pop("vae"), r"encoders\.vae: Field required"),
    "a name that is a path": (renamed("../00000.tar"), r"shards\.0\.file: .*'\.\./00000\.tar'"),
    "an absolute path": (renamed("/etc/passwd"), r"shards\.0\.file: .*'/etc/passwd'"),
    "a Windows path": (renamed("C:\\00000.tar"), r"shards\.0\.file: "),
    "a hidden file": (renamed(".."), r"shards\.0\.file: "),
    "a URL's escapes": (renamed("%2e%2e%2f00000.tar"), r"shards\.0\.file: "),
    "a key with a dot": (
        lambda index: index["shards"][0]["samples"][0].update(key="a.b"),
        r"samples\.0\.key: .*'a\.b'",
    ),
    "a range past the end": (
        lambda index: in_first(index).__setitem__(1, 10**6),
        r"00000\.tar: one\.latents\.npy is outside its shard",
    ),
    "a range before the start": (
        lambda index: in_first(index).__setitem__(0, -512),
        r"latents\.npy\.0: .*'-512'",
    ),
    "no text": (
        lambda index: index["shards"][0]["samples"][0]["members"].pop("text.npy"),
        r"00000\.tar: one has no text\.npy",
    ),
    "a sample twice": (
        lambda index: index["shards"][0]["samples"].append(index["shards"][0]["samples"][0]),
        r"one is there twice",
    ),
    "another dtype": (
        lambda index: index["latents"].update(dtype="float32"),
        r"latents\.dtype: .*'float32'",
    ),
    "another order of axes": (
        lambda index: index["latents"].update(axes="c f h w"),
        r"latents\.axes: .*'c f h w'",
    ),
    "a factor that is none": (
        lambda index: index["latents"].update(scaling_factor=float("nan")),
        r"latents\.scaling_factor: ",
    ),
    "a frame beyond all bounds": (
        lambda index: index["latents"].update(shape=[2**40] * 3),
        r"latents\.shape\.0: .*'1099511627776'",
    ),
    "a rate of 5,000 digits": (lambda index: index.update(fps="1" * 5000 + "/1"), r"fps: "),
    "a null text cut short": (
        lambda index: index["null_text"].update(npy_base64="k05VTVBZ"),
        r"null_text: sha256 ",
    ),
    "a null text that is none": (
        lambda index: index["null_text"].update(npy_base64="&"),
        r"null_text: ",
    ),
    "a null text in Greek": (
        lambda index: index["null_text"].update(npy_base64="λλλλ"),
        r"null_text: ",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_index_that_does_not_hold_is_refused_with_what_and_where(
    tmp_path: Path, what: str
) -> None:
    change, message = CHANGES[what]
    new_shards(tmp_path, {"one": new_clip(1, 9), "two": new_clip(2, 9)})
    change_index(tmp_path, change)
    with pytest.raises(ShardError, match=rf"{tmp_path}: index\.json: .*{message}"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": 1}', b"[" * 200_000],
    ids=lambda content: content[:9],
)
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"index\.json"):
        open_index(tmp_path)


def test_an_index_of_other_shards_than_its_digest_says_is_refused(tmp_path: Path) -> None:
    new_shards(tmp_path, {"one": new_clip(1, 9)})
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "root_digest": "0" * 64}))
    with pytest.raises(ShardError, match="root_digest 0000"):
        open_index(tmp_path)


def test_fields_members_and_splits_nobody_knows_are_ignored(tmp_path: Path) -> None:
    new_shards(tmp_path, {"one": new_clip(1, 9)})
    change_index(
        tmp_path,
        lambda index: index.update(
            new=1, encoders={**index["encoders"], "depth": {"sha256": "c" * 64}}
        ),
    )
    change_index(tmp_path, lambda index: index["shards"][0]["samples"][0].update(new=[]))
    assert Stream(open_index(tmp_path), windows=[Window(2)]).batch(0).keys == ("one",)


IDENTITY: dict[str, tuple[Any, str]] = {
    "encoders.vae.sha256": ("c" * 64, "aaaa"),
    "encoders.clip.sha256": ("c" * 64, "bbbb"),
    "encoders.clip.text_layer": ("penultimate", "last"),
    "encoders.clip.pad_token": (0, "49407"),
    "latents.shape": ([4, 64, 64], r"\[4, 2, 2\]"),
    "latents.scaling_factor": (0.13025, "0.5"),
}


@pytest.mark.parametrize("field", IDENTITY)
def test_shards_of_another_encoder_are_refused_with_the_field_that_differs(
    ten: Index, field: str
) -> None:
    identity = json.loads(json.dumps(ten.identity()))
    check_identity(ten, identity)
    assert set(identity) == set(IDENTITY)
    other, value = IDENTITY[field]
    with pytest.raises(
        ShardError,
        match=f"{field}: {value}.* in the shards, .*{str(other)[:4].replace('[', '.')}.* wanted",
    ) as caught:
        check_identity(ten, {**identity, field: other})
    assert str(caught.value).count("in the shards") == 1
    with pytest.raises(ShardError, match=f"{field}: {value}.*, nothing wanted"):
        check_identity(ten, {name: value for name, value in identity.items() if name != field})


def test_every_field_that_differs_is_listed(ten: Index) -> None:
    with pytest.raises(ShardError, match="not the encoders the model was trained with") as caught:
        check_identity(ten, {field: other for field, (other, _) in IDENTITY.items()})
    assert all(field in str(caught.value) for field in IDENTITY)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: os.truncate(path, path.stat().st_size - 512),
            r"00000\.tar has \d+ bytes, \d+ in the index: truncated",
        ),
        (
            lambda path: os.truncate(path, path.stat().st_size + 512),
            r"00000\.tar has \d+ bytes, \d+ in the index: of another build",
        ),
        (lambda path: path.unlink(), r"00000\.tar is in the index, but not there"),
    ],
    ids=["truncated", "longer", "missing"],
)
def test_a_shard_of_another_length_is_an_error_never_fewer_samples(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    index = new_shards(tmp_path, {f"clip-{number}": new_clip(number, 9) for number in range(5)})
    spoil(tmp_path / "00000.tar")
    for act in (lambda: Stream(index, windows=[Window(2)]), lambda: verify(index)):
        with pytest.raises(ShardError, match=message):
            act()


def test_a_shard_of_the_other_split_is_not_looked_at(tmp_path: Path) -> None:
    new_shards(tmp_path, {"one": new_clip(1, 9), "two": new_clip(2, 9)}, per_shard=1)
    change_index(tmp_path, lambda index: index["shards"][1].update(split="validation"))
    (tmp_path / "00001.tar").unlink()
    assert Stream(open_index(tmp_path), windows=[Window(2)]).batch(0).keys == ("one",)


def test_verify_names_the_shard_whose_bytes_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = new_shards(tmp_path, {f"clip-{number}": new_clip(number, 9) for number in range(5)})
    monkeypatch.setattr(shards, "PIECE", 1000)
    read: list[int] = []
    verify(index, read.append)
    assert sum(read) == sum(shard.num_bytes for shard in index.shards)
    with (tmp_path / "00001.tar").open("r+b") as file:
        file.seek(2000)
        file.write(b"\1")
    with pytest.raises(
        ShardError, match=r"00001\.tar has sha256 [0-9a-f]{64}, [0-9a-f]{64} in the index: damaged"
    ):
        verify(index)


def test_a_text_whose_digest_differs_is_refused(tmp_path: Path) -> None:
    index = new_shards(tmp_path, {"one": new_clip(1, 9)})
    start, num_bytes, _ = in_first(json.loads((tmp_path / "index.json").read_text()), "text.npy")
    with (tmp_path / "00000.tar").open("r+b") as file:
        file.seek(start + num_bytes - 1)
        file.write(b"\1")
    with pytest.raises(
        ShardError,
        match=r"00000\.tar: one\.text\.npy: sha256 [0-9a-f]{64}, [0-9a-f]{64} in the index",
    ):
        Stream(index, windows=[Window(2)]).batch(0)


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


GOOD = new_latents(1, 9)
ARRAYS: dict[str, tuple[bytes, str]] = {
    "objects": (
        npy(np.array([Bomb()] * 9, object)).ljust(len(npy(GOOD)), b"\0"),
        "object in C order, wanted little-endian float16",
    ),
    "Fortran order": (
        npy(np.asfortranarray(np.random.default_rng(0).random(GOOD.shape).astype(np.float16))),
        "float16 in Fortran order",
    ),
    "float32": (npy(np.zeros((9, 4, 2, 1), np.float32)), "float32 in C order"),
    "bfloat16's bits": (npy(GOOD.view(np.uint16)), "uint16 in C order"),
    "big-endian": (npy(GOOD.astype(">f2")), ">f2 in C order"),
    "another shape": (
        npy(GOOD.reshape(9, 2, 4, 2)),
        r"shape \(9, 2, 4, 2\), the index says \(9, 4, 2, 2\)",
    ),
    "one axis less": (npy(GOOD.reshape(9, 16)), r"shape \(9, 16\), the index says"),
    "frames that are not there": (
        npy(GOOD).replace(b"(9, 4", b"(8, 4"),
        r"shape \(8, 4, 2, 2\), the index says \(9, 4, 2, 2\)",
    ),
    "version 2": (npy(GOOD, (2, 0)), r"\.npy version 2\.0, wanted 1\.0"),
    "a pickle": (b"\x80\x04c__main__\nBomb\n)R.".ljust(500, b"."), r"not a \.npy array"),
    "a header of code": (
        npy(GOOD).replace(b"'fortran_order': False", b"'fortran_order': quit()"),
        r"not a \.npy array",
    ),
    "an endless header": (b"\x93NUMPY\1\0\xff\xff".ljust(500, b" "), r"not a \.npy array"),
    "a NaN": (
        npy(np.where(np.arange(16).reshape(SHAPE) == 3, np.float16("nan"), GOOD)),
        "not all numbers are finite",
    ),
    "an infinity and its opposite": (
        npy(
            np.where(np.arange(9).reshape(-1, 1, 1, 1) % 2, np.float16("inf"), np.float16("-inf"))
            + 0 * GOOD
        ),
        "finite",
    ),
}


@pytest.mark.filterwarnings(
    "ignore:Reading `.npy` or `.npz` file required additional header parsing"
)
@pytest.mark.parametrize("what", ARRAYS)
def test_an_array_that_is_not_what_it_must_be_is_refused_with_its_name(
    tmp_path: Path, what: str
) -> None:
    content, message = ARRAYS[what]
    index = new_shards(tmp_path, {"one": new_clip(1, 9) | {"latents.npy": content}})
    with pytest.raises(
        ShardError, match=rf"{tmp_path}: 00000\.tar: one\.latents\.npy.*: .*{message}"
    ):
        Stream(index, windows=[Window(3)]).batch(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([[[Bomb()]]], object)), "object in C order"),
        (
            npy(np.zeros((0, 7, 3), np.float16)).replace(
                b"(0, 7, 3), }" + b" " * 20, b"(4294967296, 4294967296), }     "
            ),
            r"wanted \(0, 7, 3\)",
        ),
        (npy(np.zeros((0, 7, 3), np.float16)), "no caption in it, not even an empty one"),
        (npy(np.zeros((1, 8, 3), np.float16)), r"shape \(1, 8, 3\), wanted \(1, 7, 3\)"),
        (npy(np.zeros(TEXT, np.float16)), r"shape \(7, 3\), wanted \(1, 7, 3\)"),
        (npy(np.full((1, *TEXT), np.inf, np.float16)), "not all numbers are finite"),
        (
            npy(np.zeros((1, *TEXT), np.float16)) + b"more",
            r"shape \(1, 7, 3\), wanted \(1, 7, 3\)",
        ),
    ],
    ids=[
        "objects",
        "a shape beyond all bounds",
        "no caption",
        "another shape",
        "as in format 1",
        "an infinity",
        "a tail",
    ],
)
def test_a_text_that_is_not_what_it_must_be_is_refused_with_its_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    index = new_shards(tmp_path, {"one": new_clip(1, 9) | {"text.npy": content}})
    with pytest.raises(ShardError, match=rf"00000\.tar: one\.text\.npy: .*{message}"):
        Stream(index, windows=[Window(3)]).batch(0)


@pytest.mark.parametrize("length", [80, 96, 192, 1024])
def test_a_header_of_another_length_is_read_all_the_same(tmp_path: Path, length: int) -> None:
    array = new_latents(1, 9, BIG)
    plain = npy(array)
    fields = plain[10:128].rstrip()
    content = (
        plain[:8]
        + (length - 10).to_bytes(2, "little")
        + fields.ljust(length - 11)
        + b"\n"
        + plain[128:]
    )
    assert np.array_equal(np.load(io.BytesIO(content)), array)
    index = new_shards(tmp_path, {"one": new_clip(1, 9) | {"latents.npy": content}}, shape=BIG)
    stream = Stream(index, windows=[Window(3, 2)])
    for step in range(3):
        batch = stream.batch(step)
        assert batch.latents[0, :, 0, 0, 0].tolist() == [
            SCALE * (64 + at) for at in Window(3, 2).indices(batch.starts[0])
        ]


# Bytes


@pytest.mark.parametrize("window", [Window(5), Window(5, 16), Window(17, 4), Window(65)], ids=str)
def test_little_more_is_read_than_is_used(tmp_path: Path, window: Window) -> None:
    index = new_shards(
        tmp_path,
        {f"clip-{number}": new_clip(number, 90, shape=BIG) for number in range(4)},
        shape=BIG,
    )
    stream = Stream(index, windows=[window], batch_size=4)
    stream.batch(0)
    assert stream.bytes_used == 4 * (window.num_frames * 4 * 32 * 32 * 2 + 128 + 2 * 7 * 3)
    assert stream.bytes_read - stream.bytes_used == 4 * shards.HEADER
    assert stream.bytes_read / stream.bytes_used <= 1.2
    first = stream.bytes_read
    stream.batch(1)
    assert stream.bytes_read - first == 4 * window.num_frames * 4 * 32 * 32 * 2, (
        "headers and captions are read once"
    )


# Far away


def ranged(path: Path) -> serving.Answer:
    """A file from a server that knows ranges with both ends."""

    def answer(handler: serving.Handler) -> None:
        whole = path.read_bytes()
        first, _, last = (
            handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        )
        handler.send(whole[: int(last or len(whole)) + 1], "application/octet-stream", int(first))

    return answer


Served = tuple[str, dict[str, serving.Answer], list[tuple[str, str | None]]]


@pytest.fixture
def served(ten: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The ten clips behind an address, what answers for each path, and what was asked for."""
    monkeypatch.setattr(ranges, "WAIT_S", 0)
    answers = {f"/shards/{path.name}": ranged(path) for path in Path(ten.url).iterdir()}
    with serving.serving(answers) as (address, asked):
        yield f"{address}/shards", answers, asked


def test_over_http_the_same_batches_come_in_ranges(ten: Index, served: Served) -> None:
    url, _, asked = served
    options: dict[str, Any] = {
        "windows": [Window(5), Window(3, 4)],
        "batch_size": 4,
        "text_dropout": 0.3,
    }
    here, there = Stream(ten, **options), Stream(open_index(url), **options)
    assert all(same(here.batch(step), there.batch(step)) for step in range(5))
    assert (here.bytes_read, here.bytes_used) == (there.bytes_read, there.bytes_used)
    tars = [range_header for path, range_header in asked if path.endswith(".tar")]
    assert tars.count(None) == 4, "the lengths of four shards; no shard is fetched whole"
    verify(there.index)


def test_workers_read_over_http_too(ten: Index, served: Served) -> None:
    options: dict[str, Any] = {"windows": [Window(5)], "batch_size": 4}
    there = Stream(open_index(served[0]), **options)
    there.batch(0)
    batches = list(there.loader(0, 3, workers=2))
    assert all(
        same(*pair) for pair in zip(batches, Stream(ten, **options).loader(0, 3), strict=True)
    )


def test_a_server_that_fails_now_and_then_is_asked_again(ten: Index, served: Served) -> None:
    url, answers, _ = served
    for path, answer in list(answers.items()):
        answers[path] = serving.status(503, then=answer)
    batch = Stream(open_index(url), windows=[Window(5)], batch_size=8).batch(0)
    assert same(batch, Stream(ten, windows=[Window(5)], batch_size=8).batch(0))


@pytest.mark.parametrize("code", [403, 500])
def test_a_server_that_refuses_stops_the_work_with_its_address(served: Served, code: int) -> None:
    url, answers, asked = served
    answers["/shards/index.json"] = refused(code)
    with pytest.raises(Stopped, match=rf"{url}/index\.json: cannot be read: .*{code}"):
        open_index(url)
    assert len(asked) == {403: 1, 500: ranges.MAX_TRIES}[code]


def refused(code: int) -> serving.Answer:
    def answer(handler: serving.Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_a_server_that_is_not_there_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WAIT_S", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Stopped, match="type the same command again"):
        open_index(f"http://127.0.0.1:{port}/shards")


def test_what_a_server_does_not_have_is_told_apart(served: Served) -> None:
    url, answers, _ = served
    index = open_index(url)
    del answers["/shards/00001.tar"]
    with pytest.raises(ShardError, match=r"00001\.tar is in the index, but not there"):
        Stream(index, windows=[Window(5)])
    with pytest.raises(UsageError, match="no shards there"):
        open_index(f"{url}/elsewhere")


def test_a_truncated_shard_on_a_server_is_an_error(
    ten: Index, served: Served, tmp_path: Path
) -> None:
    url, answers, _ = served
    (tmp_path / "00001.tar").write_bytes((Path(ten.url) / "00001.tar").read_bytes()[:-512])
    answers["/shards/00001.tar"] = ranged(tmp_path / "00001.tar")
    with pytest.raises(ShardError, match=r"00001\.tar has \d+ bytes, \d+ in the index: truncated"):
        Stream(open_index(url), windows=[Window(5)])


def test_a_server_without_ranges_is_found_out(ten: Index, served: Served) -> None:
    url, answers, _ = served

    def all_of_it(handler: serving.Handler) -> None:
        handler.send((Path(ten.url) / "00001.tar").read_bytes(), "application/octet-stream")

    answers["/shards/00001.tar"] = all_of_it
    with pytest.raises(Stopped, match=r"the server sends all of 00001\.tar when asked for a range"):
        Stream(open_index(url), windows=[Window(5)], batch_size=10).batch(0)


def test_any_file_system_of_fsspec_will_do(ten: Index) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(ten.url, "/made", recursive=True)
    try:
        options: dict[str, Any] = {"windows": [Window(5), Window(3, 4)], "batch_size": 4}
        there = Stream(open_index("memory://made"), **options)
        assert all(
            same(*pair)
            for pair in zip(there.loader(0, 4), Stream(ten, **options).loader(0, 4), strict=True)
        )
        assert same(Stream(open_index(f"file://{ten.url}"), **options).batch(1), there.batch(1))
        verify(there.index)
        memory.pipe_file("/made/00000.tar", memory.cat_file("/made/00000.tar")[:-1])
        with pytest.raises(ShardError, match=r"00000\.tar has .* truncated"):
            verify(there.index)
    finally:
        memory.rm("/made", recursive=True)


# The same windows every time


def overlaps(places: list[tuple[str, int]], span: int) -> int:
    return sum(
        a_key == b_key and abs(a - b) < span
        for at, (a_key, a) in enumerate(places)
        for b_key, b in places[:at]
    )


def test_fixed_windows_are_evenly_spaced_and_do_not_overlap_while_there_is_room(
    tmp_path: Path,
) -> None:
    index = new_shards(
        tmp_path,
        {"short": new_clip(1, 10), "long": new_clip(2, 40), "tiny": new_clip(3, 4)},
        split="validation",
    )
    assert fixed_windows(index, "validation", Window(5), 1) == [("long", 17)]
    assert fixed_windows(index, "validation", Window(5), 5) == [
        ("long", 0),
        ("long", 11),
        ("long", 23),
        ("long", 35),
        ("short", 2),
    ]
    for count in range(1, 11):  # 8 fit into the long one, 2 into the short
        places = fixed_windows(index, "validation", Window(3, 2), count)
        assert len(set(places)) == count
        assert overlaps(places, 5) == 0
    assert overlaps(fixed_windows(index, "validation", Window(5), 11), 5) > 0
    everything = fixed_windows(index, "validation", Window(5), 1000)
    assert everything == sorted(
        [("short", start) for start in range(6)] + [("long", start) for start in range(36)]
    )
    with pytest.raises(UsageError, match="longest has 40 frames, a window spans 41"):
        fixed_windows(index, "validation", Window(41), 3)


def test_what_an_index_knows(ten: Index) -> None:
    assert (ten.name, ten.fps, ten.size, ten.scaling_factor, ten.frame_shape) == (
        "made",
        Fraction(10),
        16,
        SCALE,
        SHAPE,
    )
    assert ten.null_text.shape == TEXT
    assert [(entry.key, entry.num_frames) for entry in ten.entries["train"]] == [
        (f"clip-{number}", 20 + number) for number in range(10)
    ]
