"""A run's folder: what must not change in it, and what is swept up when it is opened again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from tests.making.runs import UNET, run_of, train
from training import checkpoint, loop, unet
from training.errors import UsageError
from training.run import Run, load_run, open_run
from training.shards import Index


def test_another_preset_or_other_shards_are_refused_with_what_differs(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    train(run_of(tmp_path / "run", index, folder, steps=1), index)
    with pytest.raises(UsageError, match=r"preset\.learning_rate: 0\.\d+, now 0\.5"):
        train(run_of(tmp_path / "run", index, folder, learning_rate=0.5), index)
    other = run_of(tmp_path / "run", index, folder)
    with pytest.raises(UsageError, match=rf"dataset\.root_digest: '{index.root_digest}', now 'f+'"):
        open_run(replace(other, dataset={**other.dataset, "root_digest": "f" * 64}))
    with pytest.raises(UsageError, match=r"seed: 3, now 4[\s\S]*another name"):
        open_run(replace(other, seed=4))
    open_run(
        replace(other, preset=replace(other.preset, steps=50))
    )  # going on for longer is no other run


def test_a_run_does_not_go_on_from_other_2d_weights_of_the_same_name(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    flat = UNet2DConditionModel.from_config(UNET)
    flat.save_pretrained(tmp_path / "flat")

    def run() -> Run:
        begun = loop.begin("tiny-keyframe", index, tmp_path / "run", str(tmp_path / "flat"), 0, 1)
        return open_run(begun)

    run()
    assert run().unet_sha256 == unet.flat_digest(tmp_path / "flat")
    with torch.no_grad():
        flat.conv_out.weight += 1
    flat.save_pretrained(tmp_path / "flat")
    with pytest.raises(UsageError, match="unet_sha256: '"):
        run()


def test_what_a_killed_process_left_half_written_is_gone_at_the_next_start(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, steps=1)
    train(run, index)
    leftovers = [
        tmp_path / "run" / "checkpoints" / "partial-000002" / "model" / "config.json",
        tmp_path / "run" / "partial-1234-history.jsonl",
        tmp_path / "run" / "samples" / "partial-1234-step-000001.png",
    ]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    open_run(run)
    assert list((tmp_path / "run").rglob("partial-*")) == []
    assert [step for step, _ in checkpoint.checkpoints(run)] == [1]


def test_a_folder_that_is_no_run_names_the_runs_beside_it(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    train(run_of(tmp_path / "here", index, folder, steps=1), index)
    with pytest.raises(UsageError, match=r"not a run.*here.*make train-keyframe"):
        load_run(tmp_path / "there")
