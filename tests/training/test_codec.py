"""codec: the same numbers as the shards were made with, and no other model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.media import encoders
from training import codec
from training.codec import Codec
from training.errors import ShardError, Stopped, UsageError

TINY = encoders.PRESETS["tiny"]
SCALE = encoders.vae_facts(Path(TINY.vae))["scaling_factor"]


def said(kind: str) -> dict[str, Any]:
    """What an index says of a shipped model."""
    name, files = (
        (TINY.vae, encoders.VAE_LAYOUTS) if kind == "vae" else (TINY.clip, encoders.CLIP_LAYOUTS)
    )
    _, weights = encoders.find_weights(name, None, "", files, Path())
    return {"name": weights.name, "revision": weights.revision, "sha256": weights.sha256}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    clip = {**said("clip"), "text_layer": "last", "pad_token": 49407}
    return {"vae": said("vae"), "clip": clip, "precision": "float32", "chunk_frames": 4}


@pytest.fixture(scope="module")
def ours(described: dict[str, Any]) -> Codec:
    torch.set_num_threads(1)
    return Codec(described, SCALE)


@pytest.fixture(scope="module")
def frames() -> Any:
    smooth = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return smooth.repeat(8, 1).repeat(8, 2)


def test_latents_are_those_the_pipeline_stores_times_the_scaling_factor(
    ours: Codec, frames: Any
) -> None:
    vae = encoders.load_vae(Path(TINY.vae), "float32", "cpu")
    stored, _ = encoders.latents(vae, frames, 4, with_std=False)
    assert torch.equal(ours.encode(frames), torch.from_numpy(stored).float() * SCALE)


def test_pictures_are_those_the_pipeline_decodes(ours: Codec, frames: Any) -> None:
    vae = encoders.load_vae(Path(TINY.vae), "float32", "cpu")
    stored, _ = encoders.latents(vae, frames, 4, with_std=False)
    theirs, shown = (
        encoders.decode(vae, stored),
        ours.decode(torch.from_numpy(stored).float() * SCALE),
    )
    assert shown.shape == theirs.shape
    assert shown.dtype == np.uint8
    off = np.abs(shown.astype(int) - theirs.astype(int))  # x * s / s is not always x
    assert off.max() <= 1
    assert np.mean(off > 0) < 1e-3


def test_a_picture_does_not_depend_on_those_decoded_with_it(ours: Codec) -> None:
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    together = ours.decode(latents)
    assert all(
        np.array_equal(together[index], ours.decode(latents[index : index + 1])[0])
        for index in range(5)
    )
    assert np.array_equal(together[1:4], ours.decode(latents[1:4]))


@pytest.mark.parametrize(
    "prompt", ["", "zebrafish swimming in a dish, seen from above", "une rue " * 60]
)
@pytest.mark.parametrize(("layer", "pad_token"), [("last", 49407), ("penultimate", 0)])
def test_words_become_the_pipeline_s_numbers(
    described: dict[str, Any], prompt: str, layer: encoders.Layer, pad_token: int
) -> None:
    theirs = encoders.text(
        encoders.load_clip(Path(TINY.clip), "float32", "cpu"), prompt, layer, pad_token
    )
    clip = {**described["clip"], "text_layer": layer, "pad_token": pad_token}
    embedded = Codec({**described, "clip": clip}, SCALE).embed(prompt)
    assert embedded.dtype == torch.float32
    assert torch.equal(embedded, torch.from_numpy(theirs).float())


def test_a_run_that_names_no_encoders_is_tried_with_those_shipped(
    described: dict[str, Any],
) -> None:
    clip = described["clip"]
    identity = {
        "encoders.vae.sha256": described["vae"]["sha256"],
        **{
            f"encoders.clip.{field}": clip[field] for field in ("sha256", "text_layer", "pad_token")
        },
        "latents.scaling_factor": SCALE,
    }
    Codec.of_run({"identity": identity}).check()
    identity["encoders.vae.sha256"] = "0" * 64
    with pytest.raises(ShardError, match="--vae"):
        Codec.of_run({"identity": identity}).check()


def test_another_vae_is_refused_with_both_digests(
    tmp_path: Path, described: dict[str, Any]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(TINY.vae, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    _, weights = encoders.find_weights(str(other), None, "", encoders.VAE_LAYOUTS, Path())
    with pytest.raises(UsageError, match=rf"{weights.sha256}, {described['vae']['sha256']}.*--vae"):
        Codec(described, SCALE, vae=other).check()
    with pytest.raises(ShardError, match=rf"{described['vae']['sha256']}, {'0' * 64}"):
        codec.find_folder("vae", {**described["vae"], "sha256": "0" * 64})


def test_the_same_weights_elsewhere_are_the_same_model(
    tmp_path: Path, described: dict[str, Any]
) -> None:
    shutil.copytree(TINY.clip, tmp_path / "models" / "clip")
    assert (
        codec.find_folder("clip", {**described["clip"], "name": "mine"}, tmp_path / "models")
        == tmp_path / "models" / "clip"
    )


def test_a_folder_without_safetensors_is_said_so(tmp_path: Path, described: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model\.safetensors"):
        codec.find_folder("vae", described["vae"], tmp_path)


def test_a_model_known_by_its_folder_s_name_alone_is_asked_for(described: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError,
        match=r"'my-vae', a folder of the machine that built them; give a folder .* with --vae",
    ):
        codec.find_folder("vae", {**described["vae"], "name": "my-vae"})


def test_a_hub_that_cannot_be_reached_is_no_fault_of_the_user(
    monkeypatch: pytest.MonkeyPatch, described: dict[str, Any]
) -> None:
    import huggingface_hub

    def unreachable(*args: Any, **options: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        Stopped, match=r"no route to host - go online, .*give the folder of the CLIP with --clip"
    ):
        codec.find_folder("clip", {**described["clip"], "name": "owner/name"})


@pytest.mark.parametrize(
    ("tower", "key", "other"),
    [("text_cfg", "hf_model_name", "a/b"), ("vision_cfg", "timm_model_name", "hf-hub:a/b")],
)
def test_a_clip_that_leads_to_another_model_is_refused_as_the_pipeline_refuses_it(
    tmp_path: Path, described: dict[str, Any], tower: str, key: str, other: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(TINY.clip, folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"].setdefault(tower, {})[key] = other
    path.write_text(json.dumps(config))
    clip = {**described["clip"], "sha256": "0" * 64}  # it is refused before digests are compared
    with pytest.raises(UsageError, match=f"is made of another one, '{other}'"):
        Codec({**described, "clip": clip}, SCALE, clip=folder).embed("a fish")


def test_a_damaged_model_is_refused_before_any_work(
    tmp_path: Path, described: dict[str, Any]
) -> None:
    shutil.copytree(TINY.vae, tmp_path / "vae")
    (tmp_path / "vae" / encoders.VAE_LAYOUTS[0][1]).write_bytes(
        b"\x80\x04cos\nsystem\n"
    )  # a pickle
    with pytest.raises(UsageError, match="is damaged"):
        Codec(described, SCALE, vae=tmp_path / "vae").check()


def test_shards_that_were_made_before_a_config_s_words_were_left_out_are_still_trained_on(
    described: dict[str, Any],
) -> None:
    before = {
        kind: {**described[kind], "sha256": encoders.former_digest(Path(folder), layouts)}
        for kind, folder, layouts in (
            ("vae", TINY.vae, encoders.VAE_LAYOUTS),
            ("clip", TINY.clip, encoders.CLIP_LAYOUTS),
        )
    }
    Codec({**described, **before}, SCALE).check()


def test_a_folder_that_is_not_there_is_never_looked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, described: dict[str, Any]
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(UsageError, match="--vae my/vae: there is no such folder"):
        codec.find_folder("vae", described["vae"], Path("my/vae"))
