"""What training did not make: models, runs, latents and clips of strangers. One sentence each, and
exit code 2.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.core import canonical
from pipeline.media import encoders
from tests.making import footage
from training import checkpoint, media, models, presets, pretraining, shards, unet
from training.codec import Codec
from training.errors import ShardError, Stopped, UsageError
from training.run import load_run

Film = Callable[..., Path]
TINY = encoders.PRESETS["tiny"]
HUGE = "9" * 4000


def encoder_facts() -> dict[str, Any]:
    """What an index says of the shipped encoders."""
    facts: dict[str, Any] = {"precision": "float32", "chunk_frames": 4}
    for kind, folder, files in (
        ("vae", TINY.vae, encoders.VAE_LAYOUTS),
        ("clip", TINY.clip, encoders.CLIP_LAYOUTS),
    ):
        _, weights = encoders.find_weights(folder, None, "", files, Path())
        facts[kind] = {"name": weights.name, "revision": None, "sha256": weights.sha256}
    facts["clip"] |= {"text_layer": "last", "pad_token": 49407}
    return facts


def digest_of(folder: Path, files: tuple[str, ...]) -> str:
    return canonical.digest(
        [[file, canonical.file_digest(folder / file)] for file in sorted(files)]
    )


# What is said of the encoders


@pytest.mark.parametrize("factor", [0, 0.0, -1.0, float("inf"), float("nan"), True, "1", None])
def test_a_scale_that_is_no_number_above_nought_is_refused(factor: Any) -> None:
    with pytest.raises(UsageError, match=r"^what made the shards is not understood: .*[^\n]$"):
        Codec(encoder_facts(), factor)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("chunk_frames", 0),
        ("chunk_frames", -1),
        ("chunk_frames", True),
        ("chunk_frames", 10**12),
        ("precision", "int8"),
        ("precision", "float8_e4m3fn"),
        ("precision", "load"),
        ("precision", None),
        ("vae", None),
        ("vae", {}),
        ("clip.pad_token", -1),
        ("clip.pad_token", True),
        ("clip.pad_token", 10**15),
        ("clip.text_layer", "first"),
        ("clip.sha256", "../../etc"),
        ("clip.name", ["a"]),
        ("vae.revision", 3),
    ],
)
def test_wild_facts_of_the_encoders_are_refused(place: str, value: Any) -> None:
    facts = encoder_facts()
    kind, _, field = place.rpartition(".")
    (facts[kind] if kind else facts)[field] = value
    with pytest.raises(UsageError, match=r"^what made the shards is not understood: ") as caught:
        Codec(facts, 0.4)
    assert "\n" not in str(caught.value)


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    facts = encoder_facts()
    facts["clip"]["pad_token"] = 49408
    with pytest.raises(UsageError, match=r"the CLIP knows tokens from 0 to 49407; .* 49408"):
        Codec(facts, 0.4).embed("a fish")


@pytest.mark.parametrize("wild", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_are_not_decoded(wild: float) -> None:
    latents = torch.zeros(1, 4, 4, 4)
    latents[0, 0, 0, 0] = wild
    with pytest.raises(UsageError, match="not all finite numbers"):
        Codec(encoder_facts(), 0.4).decode(latents)


# Models


def vae_at(folder: Path) -> Path:
    shutil.copytree(TINY.vae, folder)
    return folder


def codec_of(folder: Path, kind: str) -> Codec:
    """A codec of shards that say they were made with the model in a folder."""
    files = encoders.VAE_LAYOUTS[0] if kind == "vae" else encoders.OPEN_CLIP
    facts = encoder_facts()
    facts[kind]["sha256"] = digest_of(folder, files)
    return Codec(facts, 0.4, **{kind: folder})


def use(codec: Codec) -> None:
    codec.check()
    codec.embed("a fish")
    codec.encode(np.zeros((1, 32, 32, 3), np.uint8))
    codec.decode(torch.zeros(1, 4, 4, 4))


def one_line(act: Callable[[], object]) -> str:
    """The sentence with which something is refused, soon."""
    begin = time.monotonic()
    with pytest.raises(UsageError) as caught:
        act()
    assert time.monotonic() - begin < 10
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
@pytest.mark.parametrize("kind", ["vae", "clip"])
def test_truncated_weights_are_refused(tmp_path: Path, kind: str, kept: int) -> None:
    folder = tmp_path / kind
    shutil.copytree(getattr(TINY, kind), folder)
    name = (encoders.VAE_LAYOUTS[0] if kind == "vae" else encoders.OPEN_CLIP)[1]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:kept])
    assert "is damaged" in one_line(lambda: use(codec_of(folder, kind)))


def with_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of a safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


ODD = [torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.int64, torch.complex64]


@pytest.mark.parametrize("precision", ODD)
def test_weights_of_an_odd_precision_are_refused(tmp_path: Path, precision: torch.dtype) -> None:
    folder = vae_at(tmp_path / "vae")
    path = folder / encoders.VAE_LAYOUTS[0][1]
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name].to(precision)}, path)
    assert "not of BF16, F16, F32" in one_line(lambda: use(codec_of(folder, "vae")))


@pytest.mark.parametrize("shape", [[-1, 3, 3, 3], [True], [10**18, 10**18], "x", [1.5]])
def test_weights_of_a_wild_shape_are_refused(tmp_path: Path, shape: Any) -> None:
    folder = vae_at(tmp_path / "vae")

    def change(header: dict[str, Any]) -> None:
        header[sorted(header)[-1]]["shape"] = shape

    with_header(folder / encoders.VAE_LAYOUTS[0][1], change)
    one_line(lambda: use(codec_of(folder, "vae")))


VAE_CONFIGS: list[dict[str, Any]] = [
    {"layers_per_block": 10**9},
    {"layers_per_block": True},
    {"layers_per_block": 0},
    {"latent_channels": -4},
    {"block_out_channels": [16, 32, 64, 10**15]},
    {"block_out_channels": [16] * 100_000},
    {"block_out_channels": [16, 32, True, 96]},
    {"block_out_channels": []},
    {"in_channels": 1},
    {"norm_num_groups": 7},
    {"sample_size": "large"},
    {"scaling_factor": 0},
    {"scaling_factor": None},
    {"act_fn": "__import__"},
]


@pytest.mark.parametrize("change", VAE_CONFIGS, ids=str)
def test_a_vae_with_a_wild_config_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = vae_at(tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    refused(lambda: use(codec_of(folder, "vae")))


def refused(act: Callable[[], object]) -> None:
    """One line and exit code 2; or 4, where a loader says that it cannot make the model."""
    begin = time.monotonic()
    with pytest.raises((UsageError, Stopped)) as caught:
        act()
    assert time.monotonic() - begin < 10
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"scaling_factor": Infinity}',
        '{"scaling_factor": NaN}',
        '{"scaling_factor": 1e999}',
        f'{{"latent_channels": {HUGE}}}',
        f'{{"latent_channels": {"9" * 5000}}}',
        "[" * 100_000,
        '{"a": ' * 50_000,
        "null",
        "[1]",
        " " * 2_000_000,
        "\xff",
    ],
    ids=range(11),
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = vae_at(tmp_path / "vae")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "is damaged" in one_line(lambda: use(codec_of(folder, "vae")))


CLIP_CONFIGS: list[tuple[str, str, Any]] = [
    ("text_cfg", "context_length", 1_000_000),
    ("text_cfg", "context_length", 10**12),
    ("text_cfg", "vocab_size", 1_000_000),
    ("text_cfg", "vocab_size", 100),
    ("text_cfg", "vocab_size", True),
    ("text_cfg", "layers", 10**9),
    ("text_cfg", "layers", -1),
    ("text_cfg", "width", 1_000_000),
    ("text_cfg", "heads", 0),
    ("vision_cfg", "image_size", 1_000_000),
    ("vision_cfg", "layers", 64),
    ("vision_cfg", "patch_size", -16),
]


@pytest.mark.parametrize(("tower", "field", "value"), CLIP_CONFIGS)
def test_a_clip_whose_config_is_not_that_of_its_weights_takes_no_memory(
    tmp_path: Path, tower: str, field: str, value: Any
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(TINY.clip, folder)
    path = folder / encoders.OPEN_CLIP[0]
    config = json.loads(path.read_text())
    config["model_cfg"][tower][field] = value
    path.write_text(json.dumps(config))
    refused(lambda: use(codec_of(folder, "clip")))


@pytest.mark.parametrize("damage", ["truncated", "odd", "layers", "no config"])
def test_a_unet_of_a_stranger_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "unet"
    model = unet.UNet2DConditionModel.from_config(presets.TINY_UNET)
    model.save_pretrained(folder, safe_serialization=True)
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "odd":
        tensors = load_file(weights)
        save_file({name: tensor.double() for name, tensor in tensors.items()}, weights)
    elif damage == "layers":
        plain = json.loads(config.read_text())
        config.write_text(json.dumps({**plain, "layers_per_block": 10**8}))
    else:
        config.write_text("[" * 100_000)
    one_line(lambda: unet.load_flat(folder))


@pytest.mark.parametrize("change", ["missing", "unexpected", "prefixed"])
def test_a_unet_whose_weights_are_not_those_of_its_config_is_refused(
    tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "unet"
    unet.UNet2DConditionModel.from_config(presets.TINY_UNET).save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors["conv_out.bias"]
    elif change == "unexpected":
        tensors["conv_out.scale"] = tensors["conv_out.bias"].clone()
    else:
        tensors = {f"unet.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    said = one_line(lambda: unet.load_flat(folder))
    assert "the weights are not those of the config" in said


SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("scheduler", "preset", "expected"),
    [
        (SD_NOISE, "sd15-keyframe", ""),
        ({**SD_NOISE, "prediction_type": "v_prediction"}, "sd21-keyframe", ""),
        (SD_NOISE, "sd21-keyframe", "add --set objective.prediction=epsilon"),
        (
            {**SD_NOISE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            "sd15-keyframe",
            "add --set objective.prediction=v_prediction --set objective.zero_snr=true",
        ),
        ({**SD_NOISE, "prediction_type": "sample"}, "sd15-keyframe", "give another --unet"),
        ({}, "sd15-keyframe", "trained with beta_start 0.0001, beta_end 0.02, "),
        ({**SD_NOISE, "num_train_timesteps": 50}, "sd15-keyframe", "num_train_timesteps 50"),
        ({**SD_NOISE, "trained_betas": [0.1]}, "sd15-keyframe", "another kind of noise"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "sd15-keyframe", "FlowMatch"),
        ([], "sd15-keyframe", "cannot be read: not a JSON object"),
    ],
)
@pytest.mark.parametrize("place", ["", "unet"])
def test_a_2d_model_trained_for_other_noise_than_the_preset_s_is_refused(
    tmp_path: Path, scheduler: Any, preset: str, expected: str, place: str
) -> None:
    path = tmp_path / pretraining.SCHEDULER
    path.parent.mkdir()
    path.write_text(json.dumps(scheduler))
    (tmp_path / "unet").mkdir()

    def check() -> None:
        pretraining.check(presets.find(preset), str(tmp_path / place))

    if expected:
        assert expected in one_line(check)
    else:
        check()


def test_an_exported_model_says_what_it_was_trained_for(tmp_path: Path) -> None:
    shutil.copy(models.TINY_IMAGE_FOLDER / "training.json", tmp_path)
    pretraining.check(presets.find("tiny-keyframe"), str(tmp_path))
    pretraining.check(presets.find("tiny-keyframe"), presets.TINY_IMAGE)
    said = one_line(lambda: pretraining.check(presets.find("sd15-keyframe"), str(tmp_path)))
    assert "--set objective.prediction=v_prediction --set objective.zero_snr=true" in said
    (tmp_path / "training.json").write_text('{"preset": 1}')
    one_line(lambda: pretraining.check(presets.find("tiny-keyframe"), str(tmp_path)))


LOAD = """
import json, sys, time
from pathlib import Path
import numpy, torch, diffusers, open_clip
from training.codec import Codec
from training.errors import LongtakeError
facts = json.loads(sys.argv[1])
begin = time.monotonic()
for kind, folder, digest in json.loads(sys.argv[2]):
    facts[kind]["sha256"] = digest
    try:
        codec = Codec(facts, 0.4, **{kind: Path(folder)})
        codec.check()
        codec.decode(torch.zeros(1, 4, 4, 4)) if kind == "vae" else codec.embed("a fish")
    except LongtakeError as error:
        print(error)
seconds = time.monotonic() - begin
status = Path("/proc/self/status").read_text()  # ru_maxrss counts the process that forked, too
print(seconds, status.partition("VmHWM:")[2].split()[0])
"""


def test_a_hostile_model_ends_in_one_line_within_ten_seconds_and_a_gigabyte(
    tmp_path: Path,
) -> None:
    models = []
    for kind, field, value in (
        ("vae", "layers_per_block", 10**9),
        ("vae", "layers_per_block", 64),
        ("vae", "block_out_channels", [1 << 20] * 4),
        ("vae", "block_out_channels", [1 << 20] * 200),
        ("clip", "context_length", 1 << 20),
        ("clip", "width", 1 << 20),
        ("clip", "layers", 64),
    ):
        folder = tmp_path / str(len(models))
        shutil.copytree(getattr(TINY, kind), folder)
        files = encoders.VAE_LAYOUTS[0] if kind == "vae" else encoders.OPEN_CLIP
        config = json.loads((folder / files[0]).read_text())
        (config if kind == "vae" else config["model_cfg"]["text_cfg"])[field] = value
        (folder / files[0]).write_text(json.dumps(config))
        models.append((kind, str(folder), digest_of(folder, files)))
    command = [sys.executable, "-c", LOAD, json.dumps(encoder_facts()), json.dumps(models)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, figures = process.stdout.splitlines()
    seconds, kilobytes = map(float, figures.split())
    assert len(lines) == len(models), lines
    assert seconds < 10 * len(models)
    assert kilobytes < 1_000_000


# Runs


def run_values() -> dict[str, Any]:
    facts = encoder_facts()
    identity = {
        "encoders.vae.sha256": facts["vae"]["sha256"],
        "encoders.clip.sha256": facts["clip"]["sha256"],
        "encoders.clip.text_layer": "last",
        "encoders.clip.pad_token": 49407,
        "latents.shape": [4, 8, 8],
        "latents.scaling_factor": 0.4,
    }
    dataset = {
        "name": "demo",
        "root_digest": "0" * 64,
        "identity": identity,
        "fps": "10/1",
        "size": 64,
    }
    preset = json.loads(json.dumps(presets.find("tiny-keyframe").plain()))
    return {"format": 1, "preset": preset, "dataset": dataset, "unet": "tiny", "seed": 0}


WILD_RUNS: list[tuple[str, Any]] = [
    ("dataset", None),
    ("dataset.fps", "0/1"),
    ("dataset.fps", "1/0"),
    ("dataset.size", True),
    ("dataset.size", -64),
    ("dataset.size", 10**12),
    ("dataset.root_digest", 3),
    ("dataset.identity", []),
    ("dataset.identity.latents~shape", [4, -8, -8]),
    ("dataset.identity.latents~shape", [4, True, 8]),
    ("dataset.identity.latents~shape", [4]),
    ("dataset.identity.latents~scaling_factor", 0),
    ("dataset.identity.encoders~clip~pad_token", -1),
    ("preset", []),
    ("preset.windows", []),
    ("preset.windows", [{"num_frames": -5, "stride": 1}]),
    ("preset.batch_size", 0),
    ("preset.sampler_steps", 10**12),
    ("preset.objective", {"prediction": "epsilon"}),
    ("preset.steps", "many"),
    ("seed", "0"),
    ("unet", None),
    ("format", True),
]


@pytest.mark.parametrize(("place", "value"), WILD_RUNS)
def test_a_run_of_a_stranger_is_read_by_type(tmp_path: Path, place: str, value: Any) -> None:
    values = run_values()
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert load_run(tmp_path).seed == 0
    *parents, field = [part.replace("~", ".") for part in place.split(".")]
    parent = values
    for name in parents:
        parent = parent[name]
    parent[field] = value
    (tmp_path / "run.json").write_text(json.dumps(values))
    one_line(lambda: load_run(tmp_path))


def test_a_damaged_model_of_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run_values()))
    run = load_run(tmp_path)
    folder = tmp_path / "checkpoints" / "step-000001"
    model: Any = unet.VideoUNet.inflate(presets.TINY_UNET, **run.preset.inflation)
    model.save_pretrained(folder / "model")
    assert checkpoint.load_model(run) is not None
    weights = folder / "model" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    assert "is no checkpoint that can be read" in one_line(lambda: checkpoint.load_model(run))
    weights.write_bytes(content)
    config = folder / "model" / "config.json"
    config.write_text(config.read_text().replace('"window"', '"widow"'))
    (folder / "state.json").write_text('{"root_digest": 3}')
    assert "trained on shards 3" in one_line(lambda: checkpoint.load_state(run, folder))
    for text in ("[" * 50_000, "null", '{"root_digest": "%s"}' % ("0" * 64)):
        (folder / "state.json").write_text(text)
        one_line(lambda: checkpoint.load_state(run, folder))


# Arrays


@pytest.mark.parametrize(
    "shape", ["(-3, -5)", "(True, 15)", "(False, 0)", "(15, -1)", "(-15, -1)", f"(1{'0' * 400}, 1)"]
)
def test_a_shape_that_no_array_has_is_refused(shape: str) -> None:
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".ljust(501) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(30)
    with pytest.raises(ShardError) as caught:
        shards.parse(content, hashlib.sha256(content).hexdigest(), "a.npy")
    assert "\n" not in str(caught.value)


# What a video starts from


def test_a_playlist_that_calls_itself_a_clip_reads_no_neighbour(film: Film, tmp_path: Path) -> None:
    neighbour = film(footage.mpegts, suffix=".ts")
    for name, text in (
        ("hls.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{neighbour}\n#EXT-X-ENDLIST\n"),
        ("concat.mp4", f"ffconcat version 1.0\nfile '{neighbour}'\n"),
    ):
        (tmp_path / name).write_text(text)
        message = one_line(lambda name=name: media.read_start(tmp_path / name, 64, Fraction(10)))
        assert "neither a picture nor a video" in message


def test_a_gap_in_the_time_stamps_ends_at_once(film: Film) -> None:
    gap = film(footage.numbered, setpts="N*25*3601", fps_mode="passthrough", bf=0)
    assert "hours" in one_line(lambda: media.read_start(gap, 64, Fraction(10)))


def test_a_long_still_and_a_wild_rate_take_no_time(film: Film) -> None:
    still = film(footage.numbered, setpts="N+gte(N,30)*25*3500", fps_mode="passthrough", bf=0)
    begin = time.monotonic()
    assert media.read_start(still, 64, Fraction(999_999_999), 17).shape == (17, 64, 64, 3)
    assert time.monotonic() - begin < 10


def test_a_link_to_a_clip_is_followed(film: Film, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(film(footage.plain, 1, size="64x64"))
    assert media.read_start(tmp_path / "link.mp4", 64, Fraction(10)).shape == (1, 64, 64, 3)


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9000, 9000), (20_000, 10), (10, 2**31 - 1), (50_000, 50_000)])
def test_a_picture_that_is_larger_than_any_is_refused(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size))
    one_line(lambda: media.read_start(tmp_path / "bomb.png", 64, Fraction(10)))


def test_no_picture_starts_another_program(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    message = one_line(lambda: media.read_start(tmp_path / "a.eps", 32, Fraction(10)))
    assert "neither a picture nor a video" in message
