"""`python -m training`: help at once, errors that say what to do, exit codes, and a run from the
command line.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.making.runs import wave_shards
from training import presets
from training.__main__ import app
from training.shards import open_index
from training.unet import flat_digest

ROOT = Path(__file__).parents[2]
OPTIONS = {  # frozen: an option is a promise
    "train": {
        "--preset",
        "--shards",
        "--run",
        "--steps",
        "--unet",
        "--adapter",
        "--settings",  # --set
        "--seed",
        "--workers",
        "--verify",
        "--vae",
        "--device",
    },
    "sample": {
        "--keyframe",
        "--interp",
        "--out",
        "--prompt",
        "--start",
        "--frames",
        "--seconds",
        "--steps",
        "--guidance",
        "--sampler",
        "--seed",
        "--unet",
    }
    | {"--vae", "--clip", "--device"},
    "evaluate": {
        "--run",
        "--shards",
        "--windows",
        "--steps",
        "--guidance",
        "--sampler",
        "--seed",
        "--unet",
        "--vae",
        "--clip",
        "--lpips",
        "--fid",
        "--fvd",
        "--device",
        "--as_json",  # --json
    },
    "plan": {"--preset", "--size", "--as_json"},
    "export": {"--run", "--out", "--unet"},  # the run without a name
    "losses": {"--run", "--shards", "--show", "--unet", "--device"},
    "ablate": {"--shards", "--out", "--preset", "--question", "--steps", "--seeds", "--device"},
}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    wave_shards(folder, 2, 70)
    return folder


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, training.__main__ as m; print(sorted({'torch', 'numpy', 'diffusers', "
        "'rich.progress', 'av'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_options_are_those_promised() -> None:
    for name, options in OPTIONS.items():
        command = next(
            command
            for command in app.registered_commands
            if command.callback is not None and command.callback.__name__ == name
        )
        assert command.callback is not None
        names = {f"--{parameter}" for parameter in inspect.signature(command.callback).parameters}
        assert names == options, name
    assert len(app.registered_commands) == len(OPTIONS)


def test_a_wrong_preset_names_the_nearest(shards: Path, tmp_path: Path) -> None:
    result = call(
        "train",
        "--preset",
        "tiny-interpolation",
        "--shards",
        shards,
        "--run",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    assert result.exit_code == 2
    assert "did you mean tiny-interp?" in result.stderr
    assert not (tmp_path / "run").exists()


def test_shards_that_are_not_there_say_how_to_build_them(tmp_path: Path) -> None:
    result = call(
        "train", "--preset", "tiny-interp", "--shards", tmp_path / "none", "--run", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert "make shards" in result.stderr
    assert str(tmp_path / "none") in result.stderr


def test_a_damaged_shard_stops_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tar = copy / "00000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    result = call(
        "train",
        "--preset",
        "tiny-interp",
        "--shards",
        copy,
        "--unet",
        copy / "small.json",
        "--run",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    assert result.exit_code == 4
    assert "00000.tar" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_none_names_the_command_that_makes_one(tmp_path: Path) -> None:
    result = call(
        "sample",
        "--keyframe",
        tmp_path / "a",
        "--interp",
        tmp_path / "b",
        "--prompt",
        "a fish",
        "--out",
        tmp_path / "out.mp4",
    )
    assert result.exit_code == 2
    assert "make train-keyframe" in result.stderr


def test_nothing_to_make_is_said_so(tmp_path: Path) -> None:
    result = call(
        "sample",
        "--keyframe",
        tmp_path / "a",
        "--interp",
        tmp_path / "b",
        "--out",
        tmp_path / "out.mp4",
    )
    assert result.exit_code == 2
    assert "--prompt" in result.stderr


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:1"])
def test_a_device_that_is_not_there_is_refused(shards: Path, tmp_path: Path, device: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 99:
        pytest.skip("there are that many")
    result = call(
        "train",
        "--preset",
        "tiny-interp",
        "--shards",
        shards,
        "--run",
        tmp_path / "run",
        "--device",
        device,
    )
    assert result.exit_code == (4 if device.startswith("cuda") else 2)
    assert device in result.stderr


def test_a_model_is_trained_and_gone_on_with_and_refused_as_another(
    shards: Path, tmp_path: Path
) -> None:
    command = [
        "train",
        "--preset",
        "tiny-interp",
        "--shards",
        shards,
        "--run",
        tmp_path / "run",
        "--unet",
        shards / "small.json",
    ]
    command += ["--device", "cpu"]
    first = call(*command, "--steps", 3)
    assert first.exit_code == 0, first.output
    assert "no sample pictures" in first.output  # its encoders are made up
    assert "samples" not in first.output.partition("validation loss, mean")[2]
    assert "3 of 3" in first.output
    again = call(*command, "--steps", 3)
    assert again.exit_code == 0
    assert "going on from step 3 of 3" in again.output
    other = call(*command, "--seed", 9)
    assert other.exit_code == 2
    assert "seed: 0, now 9" in other.stderr
    ledger = call("losses", tmp_path / "run", "--shards", shards, "--device", "cpu")
    assert ledger.exit_code == 0, ledger.output
    assert "Loss of 2 clips" in ledger.output
    assert (tmp_path / "run" / "losses.parquet").is_file()
    ended = call("evaluate", "--run", tmp_path / "run", "--shards", shards)
    assert ended.exit_code == 2
    assert "validation" in ended.stderr


def test_an_image_model_is_trained_exported_and_begun_with(shards: Path, tmp_path: Path) -> None:
    """Three commands: a step of single frames, its 2-D model, keyframes that begin with that."""
    where = ["--shards", shards, "--device", "cpu", "--steps", 1]
    image = ["train", "--preset", "tiny-image", "--run", tmp_path / "image", *where]
    trained = call(*image, "--unet", shards / "small.json")
    assert trained.exit_code == 0, trained.output
    assert "windows 1@1" in trained.output
    exported = call("export", tmp_path / "image", "--out", tmp_path / "flat")
    assert exported.exit_code == 0, exported.output
    written = {path.name for path in (tmp_path / "flat").iterdir()}
    assert written == {"config.json", "diffusion_pytorch_model.safetensors", "training.json"}
    facts = json.loads((tmp_path / "flat" / "training.json").read_text())
    assert facts["step"] == 1
    assert facts["samples_seen"] == 16
    assert facts["dataset"]["root_digest"] == open_index(shards).root_digest
    again = call("export", tmp_path / "image", "--out", tmp_path / "flat")
    assert again.exit_code == 2
    assert "is there already" in again.stderr

    keys = ["train", "--preset", "tiny-keyframe", "--run", tmp_path / "keys", *where]
    inflated = call(*keys, "--unet", tmp_path / "flat")
    assert inflated.exit_code == 0, inflated.output
    run = json.loads((tmp_path / "keys" / "run.json").read_text())
    assert run["unet_sha256"] == flat_digest(tmp_path / "flat")
    video = call("export", tmp_path / "keys", "--out", tmp_path / "other")
    assert video.exit_code == 0, video.output
    assert "adapter.safetensors" in video.output


def test_the_plan_of_a_preset_prints_its_totals() -> None:
    result = call("plan", "--preset", "seeds-interp")
    assert result.exit_code == 0
    assert "1,100,578,616" in result.output


def test_the_plan_can_be_read_by_a_program() -> None:
    result = call("plan", "--preset", "tiny-interp", "--json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert plan["subject"]["name"] == "tiny-interp"
    assert [step["num_frames"] for step in plan["steps"]] == [5, 17, 65]
    step = plan["steps"][0]
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    assert step["memory"] == sum(step[part] for part in parts)
    assert sum(plan["parameters"].values()) * 4 == step["weights"]


def test_what_evaluate_prints_for_programs_is_what_it_writes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import evaluate, run

    result = evaluate.Evaluation({"run": "a run", "steps": 1}, (), ("65@1 is left out",))
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments, **options: result)
    monkeypatch.setattr(run, "load_run", lambda folder, unets: None)
    printed = call("evaluate", "--run", tmp_path, "--shards", shards, "--json")
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["notes"] == ["65@1 is left out"]
    assert printed.stdout == (tmp_path / "evaluation.json").read_text()


def test_weights_of_something_else_end_evaluate_in_one_line_before_any_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    where = ["--run", tmp_path / "run", "--shards", tmp_path / "shards", "--device", "cpu"]
    for metric in ("lpips", "fid", "fvd"):
        ended = call("evaluate", *where, f"--{metric}", tmp_path / "page.pth")
        assert ended.exit_code == 2
        assert len(ended.stderr.splitlines()) == 1
        assert "page.pth has 15 bytes and sha256 c77e5168dffd; wanted is " in ended.stderr


def test_every_preset_can_be_planned() -> None:
    from training import plan

    for row in presets.PRESETS.values():
        assert plan.subject_of(row).name == row.name
