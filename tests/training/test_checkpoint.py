"""Checkpoints: what is kept and what is found again, which are dropped, which are looked at."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file

from tests.making.models import NARROW_UNET
from tests.making.runs import run_of, save_flat_model, temporal_run, train
from training import checkpoint, loop, sampling, validation
from training.errors import Stopped, UsageError
from training.run import load_run
from training.shards import Index
from training.unet import VideoUNet, flat_digest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_frozen_is_not_kept_and_found_again(tmp_path: Path, index: Index) -> None:
    unet = save_flat_model(tmp_path / "flat")
    run = temporal_run(tmp_path / "run", index, unet, steps=4, checkpoint_every=2)
    train(run, index)
    _, last = checkpoint.newest(run)
    model = checkpoint.load_model(run)
    state = checkpoint.load_state(run, last)
    trained = {name for name, _ in model.named_parameters() if name in state.weights}
    assert set(load_file(last / "average.safetensors")) == set(state.weights) == trained
    assert len(trained) < len(dict(model.named_parameters())) / 2
    begun = VideoUNet.inflate(unet, **run.preset.inflation).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state.average.get(name, begun[name])), name

    halted = replace(run, folder=tmp_path / "halted")
    shutil.copytree(run.folder, halted.folder)
    shutil.rmtree(halted.folder / "checkpoints" / "step-000004")
    train(halted, index)
    again = contents(checkpoint.newest(halted)[1])
    assert [name for name, content in contents(last).items() if again[name] != content] == []


def test_a_2d_model_that_is_gone_or_another_is_named_and_found_elsewhere(
    tmp_path: Path, index: Index
) -> None:
    unet = save_flat_model(tmp_path / "flat")
    run = temporal_run(tmp_path / "run", index, unet, steps=1)
    train(run, index)
    digest = str(flat_digest(unet))[:12]
    shutil.move(unet, tmp_path / "moved")
    with pytest.raises(UsageError, match=rf"flat, which is not there[\s\S]*{digest} with --unet"):
        checkpoint.load_model(load_run(run.folder))
    save_flat_model(tmp_path / "flat", seed=1)
    with pytest.raises(UsageError, match=rf"now another[\s\S]*{digest} with --unet"):
        checkpoint.load_model(load_run(run.folder))
    places = [unet, str(tmp_path / "moved")]
    assert checkpoint.load_model(load_run(run.folder, places)) is not None

    moved = temporal_run(run.folder, index, places[1], steps=2)
    assert train(moved, index).step == 2
    assert load_run(run.folder).unet == places[1]


def test_a_hub_that_cannot_be_reached_is_no_damaged_checkpoint(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = temporal_run(tmp_path / "run", index, save_flat_model(tmp_path / "flat"), steps=1)
    train(run, index)

    def offline(source: str, from_hub: bool = False) -> str:
        raise Stopped(f"{source}: no connection")

    monkeypatch.setattr(checkpoint, "flat_digest", offline)
    with pytest.raises(Stopped, match=r"a/b, which is not there: a/b: no connection[\s\S]*--unet"):
        checkpoint.load_model(replace(run, unet="a/b"))


def test_frozen_weights_that_were_random_are_kept(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, trainable="temporal+conv", steps=2)
    train(run, index)
    model = checkpoint.load_model(run)
    stored = load_file(checkpoint.newest(run)[1] / "average.safetensors")
    assert stored.keys() == dict(model.named_parameters()).keys()


def test_a_checkpoint_of_an_older_version_is_read_and_gone_on_with(
    tmp_path: Path, index: Index
) -> None:
    """It held the whole model as a folder; what stands in run.json and state.json was less."""
    unet = save_flat_model(tmp_path / "flat")
    run = temporal_run(tmp_path / "run", index, unet, steps=2)
    train(run, index)
    before = checkpoint.load_model(run).state_dict()
    _, last = checkpoint.newest(run)
    model: Any = checkpoint.load_model(run)
    model.save_pretrained(last / "model")
    (last / "config.json").unlink()
    for path in (last / "state.json", run.folder / "run.json"):
        values = json.loads(path.read_text())
        for field in ("base", "validation", "adapter_sha256"):
            values.pop(field, None)
        for field in ("keep_every", "offload"):
            values["preset"].pop(field)
        path.write_text(json.dumps(values))
    shutil.rmtree(unet)  # it is not needed to look at the model
    loaded = checkpoint.load_model(load_run(run.folder)).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in before.items())
    longer = replace(run, preset=replace(run.preset, steps=3))
    assert train(longer, index).step == 3
    kept = load_file(checkpoint.newest(longer)[1] / "average.safetensors")
    assert kept.keys() == dict(model.named_parameters()).keys()


def test_milestones_and_the_best_by_validation_are_never_dropped(
    tmp_path: Path, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])

    def fall_and_rise(self: Any, model: Any, schedule: Any) -> dict[str, float]:
        return {"0-999": 0.0, "mean": next(losses)}

    monkeypatch.setattr(validation.Validation, "losses", fall_and_rise)
    every = {"steps": 8, "checkpoint_every": 1, "validate_every": 1, "keep_every": 4}
    run = run_of(tmp_path / "run", index, folder, **every)
    train(run, index)
    assert [step for step, _ in checkpoint.checkpoints(run)] == [2, 4, 7, 8]

    best = load_run(run.folder / "checkpoints" / "step-000002")
    assert checkpoint.newest(best)[0] == 2
    average = load_file(run.folder / "checkpoints" / "step-000002" / "average.safetensors")
    model = checkpoint.load_model(best).state_dict()
    assert all(torch.equal(model[name], weight) for name, weight in average.items())
    with pytest.raises(UsageError, match="is not a run"):
        load_run(tmp_path / "step-000002")


def test_frozen_layers_in_bf16_are_what_autocast_makes_of_them() -> None:
    torch.manual_seed(0)
    model = VideoUNet.inflate(NARROW_UNET)
    model.select_trainable("temporal")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = (torch.randn(1, 3, 9, 8, 8), torch.tensor([5]), torch.randn(1, 7, 8), torch.ones(1))

    def outcome() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(*inputs)
        predicted.float().square().mean().backward()
        return predicted, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before, gradients = outcome()
    model.round_frozen()
    after, again = outcome()
    kinds = {parameter.dtype for parameter in model.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert torch.equal(before, after)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_a_run_in_bf16_is_trained_saved_and_sampled(tmp_path: Path, index: Index) -> None:
    unet = save_flat_model(tmp_path / "flat")
    held_out = [shard.model_copy(update={"split": "validation"}) for shard in index.shards]
    index = replace(
        index,
        entries={**index.entries, "validation": index.entries["train"]},
        shards=(*index.shards, *held_out),
    )
    changes = {"steps": 2, "precision": "bf16", "validate_every": 1}
    run = temporal_run(tmp_path / "run", index, unet, **changes)
    AcceleratorState._reset_state(reset_partial_state=True)  # of one precision in a process
    try:
        trainer = loop.Trainer(run, index, "cpu", console=Console(file=io.StringIO()))
        trainer.train()
        assert {w.dtype for w in trainer.raw.parameters()} == {torch.float32, torch.bfloat16}
        [batch] = [batch for batch in trainer.validation.batches if batch.window.num_frames == 5]
        sampled = sampling.sample_window(
            trainer.raw,
            run.preset.objective,
            batch.latents[:1],
            torch.tensor([True, False, False, False, True]),
            batch.text[:1],
            batch.text[0],
            batch.fps[:1],
            steps=2,
        )
        assert sampled.isfinite().all()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    stored = load_file(checkpoint.newest(run)[1] / "average.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert {w.dtype for w in checkpoint.load_model(run).parameters()} == {torch.float32}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_that_wait_elsewhere_change_no_bit(
    tmp_path: Path, index: Index, folder: Path, checkpointing: bool
) -> None:
    for offload in (False, True):
        changes = {"steps": 2, "offload": offload, "checkpointing": checkpointing}
        train(run_of(tmp_path / str(offload), index, folder, **changes), index)
    names = ["weights.safetensors", "average.safetensors", "optimizer.safetensors"]
    here, there = (tmp_path / name / "checkpoints" / "step-000002" for name in ("False", "True"))
    assert [(here / name).read_bytes() for name in names] == [
        (there / name).read_bytes() for name in names
    ]
