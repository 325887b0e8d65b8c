"""Training: stopped and resumed to the same bits, shared by ranks, refused where it must be, and
learning.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from tests.making.models import SHAPE, encoder_identity
from tests.making.runs import UNET, damaged_shards, run_of, short_preset, train, wave_shards
from tests.making.shards import new_clip, new_shards, npy
from training import ablate, checkpoint, journal, loop, models, presets, shards
from training.errors import NonFinite, ShardError, UsageError
from training.frames import Window, known_frames
from training.presets import Objective
from training.run import load_run, open_run
from training.shards import Index, open_index
from training.stream import Stream

ROOT = Path(__file__).parents[2]


def newest(folder: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint."""
    newest_folder = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {
        str(path.relative_to(newest_folder)): path.read_bytes()
        for path in sorted(newest_folder.rglob("*"))
        if path.is_file()
    }


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in journal.read_history(folder) if "loss" in line]


def test_stopped_and_resumed_ends_with_the_same_bits_as_straight_through(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    straight = train(
        run_of(tmp_path / "straight", index, folder, steps=20, checkpoint_every=10), index
    )
    assert straight.step == 20
    assert not straight.interrupted
    killed = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed"), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(tmp_path / "killed" / "checkpoints" / "step-000010" / "state.json", killed)
    killed.kill()  # wherever it is by now
    killed.wait()
    resumed = train(
        run_of(tmp_path / "killed", index, folder, steps=20, checkpoint_every=10), index
    )
    assert resumed.step == 20
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert len(losses(tmp_path / "straight")) == 20
    assert newest(tmp_path / "killed") == newest(tmp_path / "straight")


def test_a_relative_loss_learns_otherwise_and_its_curve_is_the_plain_one(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    runs = {
        relative: run_of(tmp_path / str(relative), index, folder, steps=3, relative_loss=relative)
        for relative in (False, True)
    }
    for run in runs.values():
        train(run, index)
    plain, relative = (losses(run.folder) for run in runs.values())
    assert relative[0] == plain[0]
    assert relative[1:] != plain[1:]


CHILD = """
import sys, time
from pathlib import Path
import torch
from tests.making.models import SHAPE
from tests.making.runs import run_of, train
from training.shards import open_index
from training.stream import Stream
torch.set_num_threads(1)
shards = Path(sys.argv[2])
index = open_index(shards)
batch = Stream.batch
def slowly(self, step):  # so that the kill falls between the two checkpoints
    time.sleep(0.2 if step > 10 else 0)
    return batch(self, step)
Stream.batch = slowly
train(run_of(Path(sys.argv[1]), index, shards, steps=20, checkpoint_every=10), index)
"""


def wait_for(path: Path, process: subprocess.Popen[Any], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def test_ctrl_c_writes_a_checkpoint_of_the_step_under_way_and_the_run_goes_on(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, steps=400)
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    before = signal.getsignal(signal.SIGINT)
    timer.start()
    stopped = train(run, index)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.interrupted
    assert 0 < stopped.step < 400
    assert [step for step, _ in checkpoint.checkpoints(run)] == [stopped.step]
    shorter = replace(run, preset=replace(run.preset, steps=stopped.step + 2))
    assert train(shorter, index).step == stopped.step + 2


def test_two_ranks_give_the_loss_curve_of_one_with_the_doubled_batch(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    alone = run_of(tmp_path / "alone", index, folder, batch_size=4, micro_batch=4)
    train(alone, index)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "two"), str(folder)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    reports = [json.loads((tmp_path / f"two-rank-{rank}.json").read_text()) for rank in range(2)]
    samples = [report["samples"] for report in reports]
    assert not set(samples[0]) & set(samples[1])
    assert sorted(samples[0] + samples[1]) == list(range(8 * 4))
    # the first rank reads the shards, and the other learns of it what is wrong with them
    assert [report["verified"] for report in reports] == [["00000.tar", "00001.tar"], []]
    assert [report["damaged"] for report in reports] == ["ShardError", "Stopped"]


RANK = """
import io, json, os, sys
from pathlib import Path
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from rich.console import Console
from tests.making.models import SHAPE
from tests.making.runs import damaged_shards, run_of
from training import loop
from training.shards import open_index
from training.errors import LongtakeError
torch.set_num_threads(1)
shards, out = Path(sys.argv[2]), Path(sys.argv[1])
index = open_index(shards)
run = run_of(out, index, shards, batch_size=4, micro_batch=2)
verified, verify_shard = [], loop.shards.verify_shard
def verify_and_tell(files, shard, progress):
    verified.append(shard.file)
    verify_shard(files, shard, progress)
loop.shards.verify_shard = verify_and_tell
def trainer_of(index):
    console = Console(file=io.StringIO())
    return loop.Trainer(run, index, "cpu", console=console, pictures=False, verify=print)
trainer = trainer_of(index)
assert trainer.accelerator.num_processes == 2
trainer.train()
samples = [i for step in range(8) for i in trainer.stream.batch(step).sample_indices]
report = {"samples": samples, "verified": list(verified)}
rank = os.environ["RANK"]
try:
    trainer_of(damaged_shards(shards, out.with_name(f"damaged-{rank}")))
except LongtakeError as error:
    report["damaged"] = type(error).__name__
out.with_name(f"two-rank-{rank}.json").write_text(json.dumps(report))
torch.distributed.destroy_process_group()
"""


def test_the_2d_model_that_comes_along_was_trained_with_the_encoders_that_come_along() -> None:
    facts = json.loads((models.TINY_IMAGE_FOLDER / "training.json").read_text("utf-8"))
    assert facts["preset"]["name"] == "tiny-image"
    identity = {name: facts["dataset"]["identity"][name] for name in encoder_identity()}
    assert identity == {**encoder_identity(), "latents.shape": [4, 32, 32]}


def test_the_2d_model_that_comes_along_is_small_and_keyframes_begin_with_it() -> None:
    weights = models.TINY_IMAGE_FOLDER / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    row = presets.find("tiny-keyframe")
    model = models.new_model(row, row.unet, 0)
    stored = load_file(weights)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    bottom = "mid_block.resnets.0.conv1.weight"
    inflated = model.unet.get_submodule("mid_block.resnets.0").spatial.conv1.weight
    assert torch.equal(inflated, stored[bottom].float())
    trained = model.select_trainable(row.trainable)
    assert not any(parameter is inflated for parameter in trained)


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, index: Index) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "config.json").write_text(json.dumps({**UNET, "_class_name": "Other"}))
    run = replace(run_of(tmp_path / "run", index, tmp_path), unet=str(tmp_path / "flat"))
    with pytest.raises(UsageError, match="describes a Other"):
        train(run, index)
    assert not (tmp_path / "run").exists()


def test_shards_of_other_encoders_are_named_before_the_hub_is_asked(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", pytest.fail)
    settings = ["precision=float32"]  # of one process, as accelerate wants it
    run = loop.begin("sd15-keyframe", index, tmp_path / "run", None, 0, 1, settings)
    with pytest.raises(UsageError, match=r"text of width 768; the shards of .* have 4 and 8"):
        train(run, index)
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_are_done_train_nothing_and_say_so(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    train(run_of(tmp_path / "run", index, folder, steps=3), index)
    console = Console(file=io.StringIO(), width=200)
    run = run_of(tmp_path / "run", index, folder, steps=2)
    outcome = loop.Trainer(run, index, "cpu", console=console, pictures=False).train()
    assert outcome.step == 3
    assert "nothing to train: 3 steps are done, 2 were asked for" in console.file.getvalue()


def test_any_field_of_a_preset_can_be_set_and_is_recorded(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    settings = [
        "learning_rate=5e-5",
        "optimizer=adamw8bit",
        "objective.hint=zeros",
        'windows=[{"num_frames": 9, "stride": 2}]',
    ]
    unet = str(folder / "small.json")
    run = loop.begin("tiny-interp", index, tmp_path / "run", unet, 0, 1, settings)
    assert (run.preset.learning_rate, run.preset.optimizer) == (5e-5, "adamw8bit")
    assert (run.preset.objective.hint, run.preset.windows) == ("zeros", (Window(9, 2),))
    open_run(run)
    assert load_run(tmp_path / "run").preset == run.preset


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("learning_rat=1", r"did you mean learning_rate\?"),
        ("learning_rate", "wanted is FIELD=VALUE"),
        ("learning_rate=fast", "--set learning_rate: .* got 'fast'"),
        ("learning_rate=-1", "--set learning_rate: .* got -1"),
        ("objective.hint=right", "--set objective.hint: .* got 'right'"),
        ("objective.hints=left", r"did you mean objective.hint\?"),
        ("kernel=4", "--set kernel: .*odd number"),
        ("windows=[]", "--set windows"),
        ("steps=0", "--set steps"),
        ("name=mine", "wanted is FIELD=VALUE"),
        ("objective=1", "--set objective"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_what_is_wrong(
    tmp_path: Path, index: Index, setting: str, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        loop.begin("tiny-interp", index, tmp_path / "run", None, 0, 1, [setting])


def test_a_preset_may_be_a_file_that_names_a_base(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'base = "sd15-interp"\nframe_window = "null"\nlearning_rate = 5e-5\n'
        'windows = [{num_frames = 9, stride = 2}]\n[objective]\nhint = "zeros"\n'
    )
    unet = str(folder / "small.json")
    run = loop.begin(str(file), index, tmp_path / "run", unet, 0, 1, ["learning_rate=1e-5"])
    assert run.preset.name == "sd15-interp"
    assert (run.preset.frame_window, run.preset.learning_rate) == (None, 1e-5)
    assert (run.preset.objective.hint, run.preset.windows) == ("zeros", (Window(9, 2),))
    open_run(run)
    assert load_run(tmp_path / "run").preset == run.preset


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("learning_rate = 1", r'mine\.toml: wanted is a line such as base = "sd15-interp"'),
        ('base = "tiny-interpp"', r"did you mean tiny-interp\?"),
        ('base = "tiny-interp"\nlearning_rat = 1', r"mine\.toml learning_rat.*learning_rate\?"),
        ('base = "tiny-interp"\nsteps = "many"', r"mine\.toml steps: .*got 'many'"),
        ('base = "tiny-interp"\nkernel = 4', r"mine\.toml kernel: .*odd number"),
        ('base = "tiny-interp"\n[objective]\nhint = "x"', r"mine\.toml objective.hint: .*got 'x'"),
        ("base = ", r"mine\.toml: cannot be read"),
    ],
)
def test_a_wrong_preset_file_is_refused_with_the_field(
    tmp_path: Path, index: Index, text: str, problem: str
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=problem):
        loop.begin(str(tmp_path / "mine.toml"), index, tmp_path / "run", None, 0, 1)
    with pytest.raises(UsageError, match="cannot be read"):
        presets.find(str(tmp_path / "nothing.toml"))


def test_a_2d_model_made_for_another_prediction_begins_no_run(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    flat = tmp_path / "model" / "unet"
    UNet2DConditionModel.from_config(UNET).save_pretrained(flat)
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (tmp_path / "model" / "scheduler").mkdir()
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(noise))
    advice = "add --set objective.prediction=epsilon --set objective.zero_snr=false"
    settings = ["objective.prediction=epsilon", "objective.zero_snr=false"]
    for unet_folder in (flat, flat.parent):
        arguments = ("tiny-keyframe", index, tmp_path / "run", str(unet_folder), 0, 1)
        with pytest.raises(UsageError, match=advice):
            loop.begin(*arguments)
        assert loop.begin(*arguments, settings).preset.objective.prediction == "epsilon"


def test_a_2d_model_of_the_hub_made_for_another_prediction_begins_no_run(
    tmp_path: Path, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = replace(run_of(tmp_path / "run", index, folder, steps=1), unet="owner/flat")
    objective = run.preset.objective
    other = "epsilon" if objective.prediction == "v_prediction" else "v_prediction"
    for prediction in (other, objective.prediction):
        noise = {"prediction_type": prediction, "rescale_betas_zero_snr": objective.zero_snr}
        hub = hub_of(tmp_path / prediction, "owner/flat", noise)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
        if prediction == other:
            with pytest.raises(UsageError, match=rf"add --set objective\.prediction={other}"):
                train(run, index)
            assert not run.folder.exists()
        else:
            assert train(run, index).step == 1


def test_a_2d_model_that_does_not_say_what_it_was_made_for_is_named(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    UNet2DConditionModel.from_config(UNET).save_pretrained(tmp_path / "flat")
    run = replace(run_of(tmp_path / "run", index, folder, steps=1), unet=str(tmp_path / "flat"))
    console = Console(file=io.StringIO(), width=400)
    loop.Trainer(run, index, "cpu", console=console, pictures=False).train()
    assert "flat does not say what it was trained for" in console.file.getvalue()


def hub_of(cache: Path, name: str, noise: dict[str, Any]) -> Path:
    """A cache of the hub with one repository, as huggingface_hub lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    snapshot = repository / "snapshots" / commit
    UNet2DConditionModel.from_config(UNET).save_pretrained(snapshot / "unet")
    stable = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (snapshot / "scheduler").mkdir()
    (snapshot / "scheduler" / "scheduler_config.json").write_text(json.dumps(stable | noise))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return cache


def test_a_loss_that_is_no_number_stops_with_the_samples(
    tmp_path: Path, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Stream.batch

    def poisoned(self: Stream, step: int) -> Any:
        clean = batch(self, step)
        return replace(clean, latents=clean.latents * (math.nan if step == 2 else 1))

    monkeypatch.setattr(Stream, "batch", poisoned)
    with pytest.raises(NonFinite, match=r"step 3: the loss is nan.*k\d at frame \d"):
        train(run_of(tmp_path / "run", index, folder), index)


def test_a_gradient_that_stays_exactly_zero_stops_the_run_with_a_sentence(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    """Temporal layers in front of a last layer of zeros, which is frozen: nothing can be learnt."""
    run = run_of(tmp_path / "run", index, folder, trainable="temporal", steps=30)
    with pytest.raises(UsageError, match=r"exactly 0 in 10 steps, up to step 10.*'temporal'"):
        train(run, index)


@pytest.mark.parametrize("preset", ["sd15-keyframe", "seeds-interp"])
def test_a_preset_of_stable_diffusion_learns_from_random_weights_too(
    tmp_path: Path, preset: str
) -> None:
    """They train temporal layers alone; behind random frozen weights these would learn nothing."""
    index = wave_shards(tmp_path, 1, 70)
    run = loop.begin(preset, index, tmp_path / "run", str(tmp_path / "small.json"), 0, 2)
    assert run.preset.trainable == "all"
    changes = {"precision": "float32", "windows": (Window(5, 2),), "batch_size": 1}
    run = replace(run, preset=replace(run.preset, **changes))
    console = Console(file=io.StringIO(), width=200)
    loop.Trainer(run, index, "cpu", console=console, pictures=False).train()
    assert "random weights, so all of them are trained" in console.file.getvalue()
    history = journal.read_history(tmp_path / "run")
    assert all(line["grad_norm"] > 0 for line in history if "loss" in line)


@pytest.mark.skipif(
    "LONGTAKE_SLOW" not in os.environ, reason="10 GB and minutes: LONGTAKE_SLOW=1, before a release"
)
def test_stable_diffusion_s_interpolation_model_is_trained_saved_loaded_and_sampled_at_full_size(
    tmp_path: Path,
) -> None:
    clip = {**new_clip(0, 70, shape=SHAPE), "text.npy": npy(np.zeros((1, 77, 768), np.float16))}
    index = new_shards(tmp_path / "shards", {"k": clip}, shape=SHAPE, text_shape=(77, 768))
    flat = UNet2DConditionModel.from_config(presets.UNETS[presets.SD15_FILL])
    flat.half().save_pretrained(tmp_path / "unet", variant="fp16")
    del flat
    run = loop.begin("sd15-interp", index, tmp_path / "run", str(tmp_path / "unet"), 0, 1)
    changes = {"windows": (Window(17, 4),), "batch_size": 1}
    run = replace(run, preset=replace(run.preset, **changes))
    train(run, index)
    [line] = [line for line in journal.read_history(tmp_path / "run") if "loss" in line]
    assert line["grad_norm"] > 0
    model = checkpoint.load_model(load_run(tmp_path / "run"))
    assert sum(weight.numel() for weight in model.parameters()) > 859_520_964
    noisy = torch.zeros(1, 5, 9, *SHAPE[1:])
    with torch.no_grad():
        made = model(noisy, torch.tensor([9]), torch.zeros(1, 77, 768), torch.tensor([10.0]))
    assert made.shape == (1, 5, *SHAPE)


def test_one_clip_is_learnt_by_heart(tmp_path: Path) -> None:
    index = wave_shards(tmp_path, 1, 9)
    changes = {
        "windows": (Window(9, 1),),
        "steps": 150,
        "learning_rate": 5e-3,
        "batch_size": 2,
        "micro_batch": 2,
        "terminal": 0.0,
    }
    train(run_of(tmp_path / "run", index, tmp_path, **changes), index)
    curve = losses(tmp_path / "run")
    assert np.mean(curve[-20:]) < np.mean(curve[:5]) / 3


def test_micro_batches_add_up_to_the_batch(tmp_path: Path, index: Index, folder: Path) -> None:
    for size in (1, 2, 4):
        train(
            run_of(tmp_path / str(size), index, folder, batch_size=4, micro_batch=size, steps=4),
            index,
        )
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), rel=1e-4)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "4"), rel=1e-4)


def rates(folder: Path) -> list[float]:
    return [line["lr"] for line in journal.read_history(folder) if "lr" in line]


def test_a_cosine_that_is_given_more_steps_goes_over_to_the_new_plan_and_says_so(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    changes = {"schedule": "cosine", "warmup": 4, "learning_rate": 1e-3, "checkpoint_every": 10}
    train(run_of(tmp_path / "run", index, folder, steps=10, **changes), index)
    console = Console(file=io.StringIO(), width=500)
    longer = run_of(tmp_path / "run", index, folder, steps=20, **changes)
    loop.Trainer(longer, index, "cpu", console=console, pictures=False).train()
    assert "was planned for 10 steps and is planned anew for 20" in console.file.getvalue()  # type: ignore[attr-defined]
    train(run_of(tmp_path / "long", index, folder, steps=20, **changes), index)
    changed, planned = rates(tmp_path / "run"), rates(tmp_path / "long")
    assert changed[9] == 0
    jumps = [abs(after - before) for before, after in itertools.pairwise(changed)]
    assert max(jumps[9:]) <= 1e-3 / 4  # never steeper than a warm-up
    assert changed[14:] == pytest.approx(planned[14:])
    assert changed[10] < planned[10]


def test_a_changed_plan_is_kept_to_the_bit_by_the_next_resume(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    changes = {"schedule": "cosine", "warmup": 4, "checkpoint_every": 3}
    train(run_of(tmp_path / "straight", index, folder, steps=3, **changes), index)
    shutil.copytree(tmp_path / "straight", tmp_path / "stopped")
    longer = run_of(tmp_path / "straight", index, folder, steps=9, **changes)
    train(longer, index)
    stopped = replace(longer, folder=tmp_path / "stopped")
    trainer = loop.Trainer(stopped, index, "cpu", console=Console(file=io.StringIO()))
    save = trainer._save

    def save_and_die() -> None:
        save()
        raise KeyboardInterrupt

    trainer._save = save_and_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [step for step, _ in checkpoint.checkpoints(stopped)] == [3, 6]
    train(stopped, index)
    assert rates(tmp_path / "stopped") == rates(tmp_path / "straight")
    assert newest(tmp_path / "stopped") == newest(tmp_path / "straight")


def test_the_history_is_never_rewritten_in_place(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, steps=2)
    train(run, index)
    history = tmp_path / "run" / "history.jsonl"
    before = history.read_bytes()
    (tmp_path / "witness").hardlink_to(history)  # sees what is written into the same file
    journal.Journal(run, 1, Console(file=io.StringIO())).end()
    assert [line["step"] for line in journal.read_history(tmp_path / "run")] == [1]
    assert (tmp_path / "witness").read_bytes() == before


def test_shards_are_verified_once_for_a_run_and_again_where_they_lie_elsewhere(
    tmp_path: Path, index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []
    verify_shard = shards.verify_shard

    def verify_and_count(files: Any, shard: Any, progress: Any) -> None:
        verified.append(shard.file)
        verify_shard(files, shard, progress)

    monkeypatch.setattr(shards, "verify_shard", verify_and_count)
    run = run_of(tmp_path / "run", index, folder, steps=1)

    def start(index: Index) -> None:
        loop.Trainer(run, index, "cpu", verify=lambda num_bytes: None)

    start(index)
    start(index)
    assert verified == ["00000.tar", "00001.tar"]
    with pytest.raises(ShardError, match=r"00000\.tar has sha256"):
        start(damaged_shards(folder, tmp_path / "copy"))
    shutil.rmtree(tmp_path / "copy")
    shutil.copytree(folder, tmp_path / "copy")
    start(open_index(tmp_path / "copy"))
    assert verified == ["00000.tar", "00001.tar", "00000.tar", "00000.tar", "00001.tar"]


def test_the_gpu_that_is_asked_for_is_torch_s_current_one_when_accelerate_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
    monkeypatch.setattr(loop, "Accelerator", lambda **options: calls.append(("new", options)))
    loop.new_accelerator(short_preset(), "cuda:1")
    loop.new_accelerator(short_preset(), "cpu")
    assert calls == [
        ("device", "cuda:1"),
        ("new", {"mixed_precision": "no", "cpu": False}),
        ("new", {"mixed_precision": "no", "cpu": True}),
    ]


def test_what_is_drawn_depends_on_the_sample_alone(index: Index) -> None:
    row = short_preset(batch_size=4, terminal=0.5)
    whole = Stream(index, "train", row.windows, 4, 3).batch(5)
    halves = [
        Stream(index, "train", row.windows, 4, 3, rank=rank, world=2).batch(5) for rank in range(2)
    ]
    together = loop.draw_task(row, whole, 3, 1000)
    apart = [loop.draw_task(row, half, 3, 1000) for half in halves]
    for rank in range(2):
        assert all(torch.equal(a[rank::2], b) for a, b in zip(together, apart[rank], strict=True))
    assert not torch.equal(together[1], loop.draw_task(row, whole, 4, 1000)[1])


def test_noise_of_known_frames_depends_on_the_sample_alone_and_stays_below_the_preset_s_most(
    index: Index,
) -> None:
    objective = Objective("v_prediction", "flow", hint_noise=0.3)
    row = short_preset(batch_size=4, objective=objective)
    whole = Stream(index, "train", row.windows, 4, 3).batch(5)
    half = Stream(index, "train", row.windows, 4, 3, rank=1, world=2).batch(5)
    known = torch.tensor(known_frames("every", whole.window.num_frames)).expand(4, -1)
    together, levels = loop.noisy_known(row, whole, known, 3)
    apart, half_levels = loop.noisy_known(row, half, known[1::2], 3)
    assert torch.equal(together[1::2], apart)
    assert torch.equal(levels[1::2], half_levels)
    assert len(levels.unique()) == 4
    assert (levels >= 0).all()
    assert (levels < 0.3).all()
    assert torch.equal(together[~known], whole.latents[~known])
    off = (together - whole.latents)[known].std()
    assert 0.5 * levels.mean() < off < 2 * levels.mean()


def test_a_run_with_noisy_hints_goes_on_to_the_same_bits(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    objective = Objective("v_prediction", "flow", target="residual", hint_noise=0.3)
    row = {"steps": 4, "checkpoint_every": 2, "objective": objective}
    straight = tmp_path / "straight"
    train(run_of(straight, index, folder, **row), index)
    halted = tmp_path / "halted"
    shutil.copytree(straight, halted)
    shutil.rmtree(halted / "checkpoints" / "step-000004")
    train(run_of(halted, index, folder, **row), index)
    assert newest(halted) == newest(straight)
    without = {**row, "objective": replace(objective, hint_noise=0.0)}
    train(run_of(tmp_path / "without", index, folder, **without), index)
    assert losses(tmp_path / "without") != losses(straight)


def test_the_share_of_terminal_timesteps_is_what_was_asked_for(index: Index) -> None:
    row = short_preset(batch_size=4, terminal=0.5)
    stream = Stream(index, "train", row.windows, 4, 3)
    drawn = torch.cat([loop.draw_task(row, stream.batch(step), 3, 1000)[2] for step in range(50)])
    assert 0.4 < (drawn == 999).float().mean() < 0.6
    assert len(drawn.unique()) > 50


def test_a_run_folder_holds_a_curve_a_history_and_scalars(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    train(run_of(tmp_path / "run", index, folder), index)
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert [line["step"] for line in journal.read_history(tmp_path / "run")] == list(range(1, 9))


def test_only_the_newest_checkpoints_are_kept_and_each_is_whole(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, checkpoint_every=2)
    train(run, index)
    assert [step for step, _ in checkpoint.checkpoints(run)] == [6, 8]
    whole = {"average.safetensors", "optimizer.safetensors", "state.json", "weights.safetensors"}
    assert set(newest(run.folder)) == {
        *whole,
        "config.json",
    }


def test_the_saved_model_is_the_average_not_the_last_weights(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder)
    train(run, index)
    state = checkpoint.load_state(run, checkpoint.checkpoints(run)[-1][1])
    model = dict(checkpoint.load_model(run).named_parameters())
    assert all(torch.equal(model[name], value) for name, value in state.average.items())
    assert any(not torch.equal(model[name], value) for name, value in state.weights.items())


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean tiny-interp\?"):
        presets.find("tiny-interpp")


def test_presets_come_back_from_json() -> None:
    for row in presets.PRESETS.values():
        assert presets.from_plain(json.loads(json.dumps(row.plain()))) == row


def test_a_model_for_other_encoders_is_refused(tmp_path: Path, index: Index, folder: Path) -> None:
    (tmp_path / "wide.json").write_text(json.dumps({**UNET, "cross_attention_dim": 16}))
    run = replace(run_of(tmp_path / "run", index, folder), unet=str(tmp_path / "wide.json"))
    with pytest.raises(UsageError, match=r"text of width 16.*have 4 and 8"):
        train(run, index)


def test_variants_are_trained_once_measured_and_tabulated(tmp_path: Path) -> None:
    opened = wave_shards(tmp_path, 2, 70)
    index = replace(
        opened,
        entries={**opened.entries, "validation": opened.entries["train"]},
        shards=(*opened.shards, *held_out(opened)),
    )
    base = short_preset(unet=str(tmp_path / "small.json"))
    console = Console(file=io.StringIO(), width=120)
    asked: dict[str, Any] = {
        "questions": ["mask"],
        "steps": 2,
        "num_seeds": 2,
        "device": "cpu",
        "console": console,
    }
    results = ablate.ablate(base, index, tmp_path / "runs", **asked)
    assert [result.variant.answer for result in results] == ["1 = unknown", "0 everywhere"]
    assert all(
        len(gains) == 2 and all(map(math.isfinite, gains))
        for result in results
        for gains in result.values.values()
    )
    console.print(ablate.table(results, 2))
    ablate.draw(results, tmp_path / "ablation.png")
    with Image.open(tmp_path / "ablation.png") as picture:
        assert picture.width == 800
    assert "0 everywhere" in console.file.getvalue()  # type: ignore[attr-defined]
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "runs").glob("*/checkpoints/*/state.json")
    }
    assert len(before) == 4
    assert ablate.ablate(base, index, tmp_path / "runs", **asked) == results
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_keyframe_model_is_asked_for_more_frames_than_it_was_trained_on(tmp_path: Path) -> None:
    opened = wave_shards(tmp_path, 2, 70)
    index = replace(
        opened,
        entries={**opened.entries, "validation": opened.entries["train"]},
        shards=(*opened.shards, *held_out(opened)),
    )
    base = replace(
        presets.find("tiny-keyframe"),
        unet=str(tmp_path / "small.json"),
        windows=(Window(5, 16),),
        batch_size=1,
        sampler_steps=2,
    )
    console = Console(file=io.StringIO(), width=120)
    results = ablate.ablate(
        base,
        index,
        tmp_path / "runs",
        questions=["asked"],
        steps=1,
        num_seeds=1,
        device="cpu",
        console=console,
    )
    assert [result.variant.answer for result in results] == [
        "5 keyframes",
        "6 keyframes",
        "7 keyframes",
        "9 keyframes",
    ]
    ratios = [result.values["change, 5@16"][0] for result in results]
    assert len(set(ratios)) == 4
    assert min(ratios) > 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["asked-0"]  # trained once
    assert all("change_ratio" in line for line in ablate.plain(results, 1))


def test_a_setting_names_another_2d_model(tmp_path: Path) -> None:
    index = wave_shards(tmp_path, 1, 70)
    asked = ("tiny-keyframe", index, tmp_path / "run")
    run = loop.begin(*asked, None, 0, None, ["unet=tiny-untrained"])
    assert (run.unet, run.preset.trainable) == ("tiny-untrained", "all")
    settings = ["unet=tiny-untrained", "trainable=temporal"]
    assert loop.begin(*asked, None, 0, None, settings).preset.trainable == "temporal"
    with pytest.raises(UsageError, match="the model tiny-image was trained with other encoders"):
        loop.begin(*asked, None, 0, None, [])


def held_out(index: Index) -> list[Any]:
    return [shard.model_copy(update={"split": "validation"}) for shard in index.shards]


def test_a_question_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="window, first-frame, hint, mask"):
        ablate.variants(presets.find("tiny-interp"), ["colour"])
    with pytest.raises(UsageError, match="mask: no question for tiny-keyframe; there are asked"):
        ablate.variants(presets.find("tiny-keyframe"), ["mask"])
    with pytest.raises(UsageError, match="start: asked of our own small models alone"):
        ablate.variants(presets.find("sd15-interp"), ["start"])
    answers = [
        (variant.question, variant.answer)
        for variant in ablate.variants(presets.find("tiny-interp"), ablate.QUESTIONS)
    ]
    assert len(set(answers)) == 5 + 2 + 4 + 2 + 3 + 2
