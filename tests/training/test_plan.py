"""What is said of a training step before it is run is what running it keeps and computes."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from tests.making.models import NARROW_UNET
from training import presets
from training.errors import UsageError
from training.frames import Window
from training.plan import (
    GIB,
    GPUS,
    SHARE,
    Plan,
    Subject,
    days,
    plan,
    render,
    subject_of,
    time_table,
)
from training.presets import SD15_UNET
from training.unet import VideoUNet

PLAIN = Subject(
    "small",
    NARROW_UNET,
    (3,),
    size=8,
    batch=2,
    precision="float32",
    checkpointing=False,
    trainable="all",
    text_tokens=7,
)


@pytest.fixture(scope="module")
def small_plan() -> Plan:
    return plan(replace(PLAIN, frames=(3, 6)))


def run_for_real(subject: Subject) -> tuple[int, int, int]:
    """Parameters, bytes kept for the backward, and FLOPs of one real step."""
    torch.manual_seed(0)
    model = VideoUNet.inflate(subject.flat_config)
    model.select_trainable(subject.trainable)
    model.set_temporal_backend("sdpa")
    storages: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x
        return x

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            noisy = torch.randn(
                subject.batch, subject.frames[0], subject.in_channels, subject.size, subject.size
            )
            predicted = model(
                noisy,
                torch.tensor([1, 2]),
                torch.randn(subject.batch, subject.text_tokens, 8),
                torch.ones(2),
            )
        predicted.square().mean().backward()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = sum(x.untyped_storage().nbytes() for key, x in storages.items() if key not in weights)
    return sum(p.numel() for p in model.parameters()), kept, counter.get_total_flops()


@pytest.mark.parametrize("trainable", ["all", "temporal"])
def test_the_plan_is_what_a_real_step_keeps_and_computes(trainable: Any) -> None:
    subject = replace(PLAIN, trainable=trainable)
    (step,), (parameters, kept, flops) = plan(subject).steps, run_for_real(subject)
    assert step.weights == 4 * parameters
    assert step.activations == pytest.approx(kept, rel=0.02)
    assert sum(step.flops.values()) == flops


def test_frozen_layers_weigh_half_in_bf16() -> None:
    whole = replace(PLAIN, trainable="temporal")
    (before,), (after,) = plan(whole).steps, plan(replace(whole, precision="bf16")).steps
    model = VideoUNet.inflate(whole.flat_config)
    model.select_trainable("temporal")
    model.round_frozen()
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    assert after.weights == own < before.weights
    assert after.gradients == before.gradients


def test_parts_add_up(small_plan: Plan) -> None:
    assert (
        sum(small_plan.parameters.values())
        == sum(small_plan.trainable.values())
        == small_plan.steps[0].weights // 4
    )
    step = small_plan.steps[0]
    assert (
        step.memory
        == step.weights + step.gradients + step.optimizer + step.average + step.activations
    )
    assert (step.gradients, step.optimizer, step.average) == (
        step.weights,
        2 * step.weights,
        step.weights,
    )
    assert all(small_plan.parameters.values())
    assert all(step.flops.values())


def test_twice_the_frames_are_twice_the_work_and_more_than_twice_the_temporal_attention(
    small_plan: Plan,
) -> None:
    short, long = (step.flops for step in small_plan.steps)
    for part in ("spatial convolutions", "spatial attention", "temporal convolutions"):
        assert long[part] == 2 * short[part]  # type: ignore[index]
    assert long["temporal attention"] > 2 * short["temporal attention"]


def test_checkpointing_keeps_less_and_computes_more(small_plan: Plan) -> None:
    (saving,) = plan(replace(PLAIN, checkpointing=True)).steps
    assert saving.activations < small_plan.steps[0].activations / 2
    for part, flops in small_plan.steps[0].flops.items():
        assert (
            1.2 * flops < saving.flops[part] < 1.4 * flops
        )  # four passes in place of three, more or less


def test_half_precision_keeps_less_than_single_and_eight_bits_less_still(small_plan: Plan) -> None:
    (half,) = plan(replace(PLAIN, precision="bf16", optimizer="adamw8bit")).steps
    assert (
        0.4 * small_plan.steps[0].activations
        < half.activations
        < 0.9 * small_plan.steps[0].activations
    )
    assert half.flops == small_plan.steps[0].flops
    assert half.optimizer * 4 == small_plan.steps[0].optimizer


def test_a_clip_in_a_shard_is_its_latents_and_its_text(small_plan: Plan) -> None:
    assert small_plan.clip_bytes == 2 * (100 * 4 * 8 * 8 + 7 * 8)


def test_sixty_five_frames_of_stable_diffusion_fit_at_home() -> None:
    small_plan = plan(Subject("sd15-interp", SD15_UNET, (65,)))
    assert sum(small_plan.parameters.values()) == 976_227_844
    assert sum(small_plan.trainable.values()) == 116_718_720
    assert 12 * GIB < small_plan.steps[0].memory < 22 * GIB


def test_the_tables_say_totals_and_lengths(small_plan: Plan) -> None:
    output = StringIO()
    Console(width=120, file=output).print(render(small_plan))
    text = output.getvalue()
    for said in (
        "small: parameters, training all",
        "3 frames",
        "6 frames",
        f"{sum(small_plan.parameters.values()):,}",
        "64 x 64 pixels",
        "0.05 MB",
    ):
        assert said in text


def test_an_image_preset_is_planned_for_single_frames() -> None:
    image_plan = plan(subject_of(presets.find("tiny-image")))
    assert [step.num_frames for step in image_plan.steps] == [1]
    output = StringIO()
    Console(file=output, width=120).print(render(image_plan))
    assert "1 frame " in output.getvalue()


def test_what_cannot_be_a_model_is_no_plan() -> None:
    with pytest.raises(UsageError, match="window of 2"):
        plan(replace(PLAIN, window=2))


def test_the_benchmark_of_cuda_devices_runs_its_whole_path_on_a_cpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gpu.main(["--small", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    for row in (
        "VAE encode, 64 px",
        "5 frames, window 7 + first, plain",
        "keyframe, 3 frames, batch 1, checkpointing",
    ):
        assert f"| {row} | " in said
    assert "no measurement" in said
    assert "65 frames with batch 1 and checkpointing were not measured" in said


def test_a_case_that_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu.Training, "step", full)
    bench = gpu.Bench("cpu", NARROW_UNET, {}, (3,), (1,), 1, 8, 64, 1, 8, "temporal", (1, 1, 2))
    rows = [row for row, _ in gpu.Training(bench).rows(1.0)]
    assert [row[:2] for row in rows] == [
        ["keyframe, 3 frames, batch 1, checkpointing", "out of memory"],
        ["keyframe, 3 frames, batch 1", "out of memory"],
    ]


def test_room_on_a_home_card_is_said_in_both_directions() -> None:
    assert "17.5 GiB reserved at the peak, 4.5 GiB below the 22 GiB" in gpu.at_home(17.5)
    assert "2.0 GiB ABOVE the 22 GiB" in gpu.at_home(24.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_benchmark_stops_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gpu.main([]) == 4
    assert "No CUDA device" in capsys.readouterr().err


def test_the_benchmark_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_module"))
    assert gpu.main([]) == 4
    assert "-m pip install no_such_module" in capsys.readouterr().err


def test_the_days_of_a_preset_follow_from_its_windows_and_a_gpu_s_rate() -> None:
    subject = Subject("small", NARROW_UNET, (5, 17), size=8, batch=2)
    small_plan = plan(subject)
    short, long = (sum(step.flops.values()) / 2 for step in small_plan.steps)  # of a window
    row = replace(
        presets.find("sd15-interp"),
        windows=(Window(5, 1), Window(5, 4), Window(17, 4), Window(65, 1)),
        batch_size=8,
        steps=1000,
    )
    flops = (2 * short + 2 * long) / 4 * 8 * 1000  # 65 was not measured: as 17
    result = days(small_plan, row)
    assert result["A100"] == pytest.approx(flops / (GPUS["A100"] * 1e12 * SHARE) / 86_400)
    output = StringIO()
    Console(file=output, width=120).print(time_table(small_plan, row))
    assert "Time of 1,000 steps of 8 windows" in output.getvalue()
    assert "not measured" in output.getvalue()
