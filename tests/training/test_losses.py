"""The table of losses: a line a clip, the same twice, high where a clip is unlike the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from tests.making.models import SHAPE
from tests.making.runs import TEXT, moving_clip, run_of, train, wave_shards
from tests.making.shards import new_shards, npy
from training import losses
from training.errors import ShardError, UsageError


def test_every_clip_has_a_line_and_the_odd_one_is_first(tmp_path: Path) -> None:
    wave_shards(tmp_path / "shards", 1, 12)
    clips = {f"k{number}": moving_clip(number, 12) for number in range(3)}
    noise = np.random.default_rng(9).normal(size=(12, *SHAPE)).astype(np.float16) * 8
    clips["odd"] = {**clips["k0"], "latents.npy": npy(noise)}
    clips["short"] = moving_clip(5, 6)
    index = new_shards(tmp_path / "shards", clips, shape=SHAPE, text_shape=TEXT)
    run = run_of(tmp_path / "run", index, tmp_path / "shards", steps=5)
    train(run, index)

    rows = losses.measure(run, index)
    assert rows[0].key == "odd"
    assert {row.key for row in rows} == {"k0", "k1", "k2", "odd"}
    assert [row.mean for row in rows] == sorted((row.mean for row in rows), reverse=True)
    digests = {entry.key: entry.latents.sha256 for entry in index.entries["train"]}
    assert all(row.sha256 == digests[row.key] for row in rows)

    first = losses.save(rows, tmp_path / "run").read_bytes()
    assert losses.save(losses.measure(run, index), tmp_path / "run").read_bytes() == first
    table = parquet.read_table(tmp_path / "run" / "losses.parquet").to_pylist()
    assert [line["key"] for line in table] == [row.key for row in rows]
    assert table[0].keys() == {
        *("key", "sha256", "split", "start", "loss"),
        *(f"loss_{t}" for t in losses.TIMESTEPS),
    }
    # a clip's number does not depend on which others there are
    alone = new_shards(tmp_path / "few", {"k1": clips["k1"]}, shape=SHAPE, text_shape=TEXT)
    [row] = losses.measure(run, alone)
    assert row == next(other for other in rows if other.key == "k1")


def test_clips_that_cannot_be_measured_are_said_so(tmp_path: Path) -> None:
    index = wave_shards(tmp_path / "shards", 2, 12)
    run = run_of(tmp_path / "run", index, tmp_path / "shards", steps=1)
    train(run, index)
    with pytest.raises(UsageError, match="no clip is as long as a window, 9 frames"):
        losses.measure(run, wave_shards(tmp_path / "short", 1, 5))
    identity = {**run.dataset["identity"], "encoders.vae.sha256": "f" * 64}
    with pytest.raises(ShardError, match="not the encoders"):
        losses.measure(replace(run, dataset={**run.dataset, "identity": identity}), index)
