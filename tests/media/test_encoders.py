"""encoders and encode: the numbers are those of the models' own libraries, and repeat whatever runs
beside them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import BadData, RecipeError, Stopped
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Crop, Scene, Video
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import encoders, reel, video
from pipeline.stages import encode
from tests.making import footage

TINY = encode.Params(preset="tiny", psnr_share=1)
FOUND = encode.find_encoders(TINY, Path())


@pytest.fixture(scope="module")
def vae() -> Any:
    return encoders.load_vae(encoders.TINY / "vae", "float32", "cpu")


@pytest.fixture(scope="module")
def clip_model() -> Any:
    return encoders.load_clip(encoders.TINY / "clip", "float32", "cpu")


@pytest.fixture(scope="module")
def frames() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def clip(store: Store, video_of: Callable[..., Video], film: Callable[..., Path]) -> Clip:
    """A real clip of 20 frames at 64 x 64."""
    video = video_of(film(footage.plain, 2, size="160x120"))
    params = reel.Params(size=64)
    memo = reel.reel_of(video, params, store)
    with store.scratch(".mp4") as path:
        assert reel.cut_clip(store.path(memo["reel"]["sha256"]), params.fps, 0, 20, path)[0] == 20
        blob = store.adopt(path)
    scene = Scene(f"{video.key}-0000", video, 0, video.container.end_pts)
    return Clip(scene.key, scene, blob, 20, Fraction(10), 64, Crop(**memo["crop"]), "3" * 64)


def encoded(clip: Clip, store: Store, params: encode.Params = TINY) -> Any:
    stage = encode.stage(Setup((params,), device="cpu"))
    return run_stage(stage, [clip], store, Inline(), Progress())[0]


def test_latents_are_the_vae_s_posterior_mean_unscaled(vae: Any, frames: Any) -> None:
    import torch

    mean, std = encoders.latents(vae, frames, 4, with_std=True)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    posterior = vae.encode(pixels).latent_dist
    assert mean.shape == (11, 4, 8, 8)
    assert mean.dtype == np.float16
    np.testing.assert_allclose(mean, posterior.mean.numpy(), atol=2e-2)
    assert std is not None
    np.testing.assert_allclose(std, posterior.std.numpy(), atol=2e-2)


def test_a_frame_s_latents_do_not_depend_on_how_many_follow(vae: Any, frames: Any) -> None:
    whole, _ = encoders.latents(vae, frames, 4, with_std=False)
    part, _ = encoders.latents(vae, frames[:9], 4, with_std=False)
    np.testing.assert_array_equal(whole[:9], part)


def test_latents_are_the_same_on_every_number_of_threads(vae: Any, frames: Any) -> None:
    import torch

    torch.set_num_threads(2)
    encoders.load_vae.cache_clear()
    again = encoders.load_vae(encoders.TINY / "vae", "float32", "cpu")
    assert torch.get_num_threads() == 1
    np.testing.assert_array_equal(
        encoders.latents(again, frames, 4, False)[0], encoders.latents(vae, frames, 4, False)[0]
    )


def test_values_that_are_not_finite_are_bad_data(frames: Any) -> None:
    encoders.load_vae.cache_clear()
    broken = encoders.load_vae(encoders.TINY / "vae", "float32", "cpu")
    broken.quant_conv.bias.data[0] = float("nan")
    with pytest.raises(BadData, match=r"non-finite: \d+ of \d+ values of the latents"):
        encoders.latents(broken, frames, 4, with_std=False)
    encoders.load_vae.cache_clear()


@pytest.mark.parametrize("layer", ["last", "penultimate"])
@pytest.mark.parametrize("pad_token", [0, 49407])
def test_text_is_what_transformers_computes_with_the_same_weights(
    clip_model: Any, layer: encoders.Layer, pad_token: int
) -> None:
    import open_clip
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    size = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    other = CLIPTextModel(
        CLIPTextConfig(**size, hidden_act="gelu", attn_implementation="eager")
    ).eval()
    other.load_state_dict(as_transformers(clip_model.state_dict(), other.state_dict().keys()))
    tokens = open_clip.SimpleTokenizer()("a fish")
    tokens[0, int(tokens[0].argmax()) + 1 :] = pad_token
    with torch.no_grad():
        outputs = other(input_ids=tokens, output_hidden_states=True)
        text = getattr(other, "text_model", other)
        hidden = (
            outputs.last_hidden_state
            if layer == "last"
            else text.final_layer_norm(outputs.hidden_states[-2])
        )
    np.testing.assert_allclose(
        encoders.text(clip_model, "a fish", layer, pad_token), hidden[0].numpy(), atol=5e-3
    )


@pytest.fixture
def openai_like(tmp_path: Path) -> dict[str, Path]:
    """One CLIP of random weights in three folders: open_clip's, whose config is silent on
    QuickGELU (`whole`); one that says it (`quick`); and transformers' text encoder (`text`).
    """
    import open_clip
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    config = json.loads((encoders.TINY / "clip" / "open_clip_config.json").read_text())
    for name in ("whole", "quick"):
        (tmp_path / name).mkdir()
        config["model_cfg"]["quick_gelu"] = name == "quick"
        (tmp_path / name / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{tmp_path / 'quick'}", load_weights=False)
    for parameter in clip.parameters():
        parameter.data = torch.randn(parameter.shape)  # so that the activation matters
    for name in ("whole", "quick"):
        save_file(clip.state_dict(), tmp_path / name / "open_clip_model.safetensors")
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="quick_gelu",
        )
    )
    text.load_state_dict(as_transformers(clip.state_dict(), text.state_dict().keys()))
    text.save_pretrained(tmp_path / "sd" / "text_encoder")
    return {"whole": tmp_path / "whole", "quick": tmp_path / "quick", "text": tmp_path / "sd"}


def caption(folder: Path, force_quick_gelu: bool = False) -> Any:
    clip = encoders.new_clip(folder, "float32", "cpu", force_quick_gelu)
    return encoders.text(clip, "a fish", "last", 49407)


def transformers_caption(folder: Path) -> Any:
    import open_clip
    import torch
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(folder).eval()
    tokens = open_clip.SimpleTokenizer()("a fish")
    tokens[0, int(tokens[0].argmax()) + 1 :] = 49407
    with torch.no_grad():
        return model(input_ids=tokens).last_hidden_state[0].numpy()


def test_openai_s_clip_is_quick_gelu_whatever_its_config_says(
    openai_like: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = transformers_caption(openai_like["text"] / "text_encoder")
    np.testing.assert_allclose(caption(openai_like["quick"]), theirs, atol=5e-3)
    assert np.abs(caption(openai_like["whole"]) - theirs).max() > 0.02
    np.testing.assert_allclose(caption(openai_like["whole"], True), theirs, atol=5e-3)
    sd15 = replace(encoders.PRESETS["sd15"], clip=str(openai_like["whole"]))
    monkeypatch.setitem(encoders.PRESETS, "sd15", sd15)
    params = encode.Params(preset="sd15", vae=str(encoders.TINY / "vae"))
    models = encode.find_encoders(params, Path())
    assert models.force_quick_gelu
    embedding = encoders.load_clip(models.clip_folder, "float32", "cpu", models.force_quick_gelu)
    ours = encoders.text(embedding, "a fish", models.text_layer, models.pad_token)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_a_clip_that_the_recipe_names_is_what_its_config_says(
    openai_like: dict[str, Path],
) -> None:
    tiny_vae = str(encoders.TINY / "vae")
    params = encode.Params(preset="sd15", vae=tiny_vae, clip=str(openai_like["whole"]))
    assert not encode.find_encoders(params, Path()).force_quick_gelu


def test_stable_diffusion_s_text_encoder_folder_gives_the_whole_clip_s_numbers(
    openai_like: dict[str, Path],
) -> None:
    params = encode.Params(preset="tiny", clip=str(openai_like["text"]), image_frames=0)
    models = encode.find_encoders(params, Path())
    assert models.clip_folder.name == "text_encoder"
    assert not encoders.has_images(models.clip_folder)
    np.testing.assert_array_equal(caption(models.clip_folder), caption(openai_like["quick"]))


def test_a_text_encoder_reads_its_own_last_layer(openai_like: dict[str, Path]) -> None:
    """Stable Diffusion 2's was published without the block that `penultimate` would leave out."""
    params = encode.Params(
        preset="sd21", vae=str(encoders.TINY / "vae"), clip=str(openai_like["text"]), image_frames=0
    )
    assert encode.find_encoders(params, Path()).text_layer == "last"


def test_a_text_encoder_cannot_embed_pictures(openai_like: dict[str, Path]) -> None:
    params = encode.Params(preset="tiny", clip=str(openai_like["text"]))
    with pytest.raises(RecipeError, match="write image_frames = 0"):
        encode.find_encoders(params, Path())


def test_a_model_of_another_kind_is_no_text_encoder(openai_like: dict[str, Path]) -> None:
    path = openai_like["text"] / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "bert"}))
    params = encode.Params(preset="tiny", clip=str(openai_like["text"]), image_frames=0)
    with pytest.raises(RecipeError, match=r"is no CLIP: .* has model_type 'bert'"):
        encode.find_encoders(params, Path())


def test_a_vae_of_half_precision_is_read_where_there_is_no_other(
    tmp_path: Path, frames: Any
) -> None:
    from diffusers import AutoencoderKL

    vae = encoders.new_vae(encoders.TINY / "vae", "float32", "cpu")
    vae.half().save_pretrained(tmp_path / "vae", variant="fp16")
    assert not (tmp_path / "vae" / encoders.VAE_LAYOUTS[0][1]).exists()
    params = encode.Params(preset="tiny", vae=str(tmp_path), vae_subfolder="vae")
    half = encoders.new_vae(encode.find_encoders(params, Path()).vae_folder, "float32", "cpu")
    assert isinstance(half, AutoencoderKL)
    ours, _ = encoders.latents(half, frames[:2], 2, with_std=False)
    whole = encoders.new_vae(encoders.TINY / "vae", "float32", "cpu")
    theirs, _ = encoders.latents(whole, frames[:2], 2, with_std=False)
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def as_transformers(state: dict[str, Any], names: Any) -> dict[str, Any]:
    """open_clip's text weights under transformers' names."""
    import torch

    prefix = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    renamed = {
        f"{prefix}embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{prefix}embeddings.position_embedding.weight": state["positional_embedding"],
        f"{prefix}final_layer_norm.weight": state["ln_final.weight"],
        f"{prefix}final_layer_norm.bias": state["ln_final.bias"],
    }
    pairs = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for layer in range(2):
        ours, theirs = f"transformer.resblocks.{layer}.", f"{prefix}encoder.layers.{layer}."
        for end in ("weight", "bias"):
            renamed.update(
                {f"{theirs}{b}.{end}": state[f"{ours}{a}.{end}"] for a, b in pairs.items()}
            )
            for name, value in zip(
                "qkv", torch.chunk(state[f"{ours}attn.in_proj_{end}"], 3), strict=True
            ):
                renamed[f"{theirs}self_attn.{name}_proj.{end}"] = value
    extra = {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}
    return renamed | {name: value for name, value in extra.items() if name in names}


def test_captions_differ_and_the_empty_one_is_a_caption(clip_model: Any) -> None:
    texts = [
        encoders.text(clip_model, caption, "last", 49407).astype(np.float32)
        for caption in ("", "a fish", "a road")
    ]
    assert all(text.shape == (77, 32) for text in texts)
    assert (
        min(np.abs(a - b).mean() for a, b in zip(texts, texts[1:] + texts[:1], strict=True)) > 0.05
    )


@pytest.mark.parametrize("word", encoders.SPECIAL)
def test_a_word_that_looks_like_a_special_token_is_text(clip_model: Any, word: str) -> None:
    words = encoders.tokenizer(77)
    tokens = words(f"a fish {word.upper()} in a bowl")[0].tolist()
    assert (tokens.count(49406), tokens.count(49407)) == (1, 1)
    assert tokens[:3] == words("a fish")[0].tolist()[:3]
    first, second = (
        encoders.text(clip_model, f"a fish {word} {end}", "last", 49407) for end in ("one", "two")
    )
    assert not np.array_equal(first, second)


def test_ordinary_captions_have_open_clip_s_tokens() -> None:
    import open_clip

    for caption in ("a fish", "It's the 2nd of <May>, l'été 東京!", "", "word " * 90):
        theirs = open_clip.SimpleTokenizer()(caption).tolist()
        assert encoders.tokenizer(77)(caption).tolist() == theirs


def test_images_are_close_to_open_clip_s_own_preprocessing(
    clip_model: Any, film: Callable[..., Path]
) -> None:
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    pictures = video.read_clip(film(footage.plain, 1, size="256x256"))[[0, 20]]
    transform = image_transform_v2(PreprocessCfg(size=64, interpolation="bicubic"), is_train=False)
    with torch.no_grad():
        expected = clip_model.encode_image(
            torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
        ).numpy()
    ours = encoders.images(clip_model, pictures).astype(np.float32)
    assert ours.shape == (2, 32)
    alike = (
        (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    )
    assert alike.min() > 0.999


def test_psnr_is_that_of_the_textbook() -> None:
    black = np.zeros((1, 2, 2, 3), np.uint8)
    assert encoders.psnr_db(black, black) == 99
    assert encoders.psnr_db(black, black + 255) == 0
    assert encoders.psnr_db(black, black + 1) == pytest.approx(48.1308, abs=1e-4)


def test_a_folder_without_safetensors_is_a_recipe_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(
        RecipeError,
        match=r"'model' has no diffusion_pytorch_model.safetensors, nor "
        r"diffusion_pytorch_model.fp16.safetensors .*safetensors only",
    ):
        encode.find_encoders(encode.Params(preset="tiny", vae="model"), tmp_path)


def test_a_model_the_hub_does_not_give_stops_the_build_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        Stopped,
        match=r"cannot get the model 'nobody/nothing' from the hub: .*name a folder that holds",
    ):
        encoders.find_weights("nobody/nothing", None, "vae", encoders.VAE_LAYOUTS, tmp_path)
    with pytest.raises(RecipeError, match="neither a folder nor a hub id"):
        encoders.find_weights("no/such/place", None, "", encoders.VAE_LAYOUTS, tmp_path)


def test_a_model_is_what_its_bytes_are_not_where_it_lies(tmp_path: Path) -> None:
    shutil.copytree(encoders.TINY / "vae", tmp_path / "copy")
    copied = encode.find_encoders(encode.Params(preset="tiny", vae="copy"), tmp_path)
    assert copied.vae.sha256 == FOUND.vae.sha256
    assert (copied.vae.name, FOUND.vae.name) == ("copy", "longtake/tiny-vae")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())

    def identity(**changes: object) -> str:
        path.write_text(json.dumps(config | changes, indent=4, sort_keys=True))
        encode.find_encoders.cache_clear()
        params = encode.Params(preset="tiny", vae="copy")
        return encode.find_encoders(params, tmp_path).vae.sha256

    words = {"_diffusers_version": "0.1", "_name_or_path": "/home/me/vae", "sample_size": 512}
    assert identity(**words) == FOUND.vae.sha256
    assert identity(norm_num_groups=2) != FOUND.vae.sha256


def test_precision_enters_the_key_and_the_device_does_not(clip: Clip) -> None:
    stage = encode.stage(Setup((TINY,), device="cpu"))
    assert stage.task_key(clip) == encode.stage(Setup((TINY,), device="cuda:3")).task_key(clip)
    coarse = TINY.model_copy(update={"precision": "bfloat16"})
    assert stage.task_key(clip) != encode.stage(Setup((coarse,), device="cpu")).task_key(clip)


def test_a_clip_becomes_a_sample_with_every_part(clip: Clip, store: Store) -> None:
    [sample] = encoded(clip, store, TINY.model_copy(update={"latents_std": True})).records
    arrays = [
        np.load(store.path(blob.sha256))
        for blob in (sample.latents, sample.latents_std, sample.text, sample.image)
    ]
    assert [array.shape for array in arrays] == [(20, 4, 8, 8), (20, 4, 8, 8), (1, 77, 32), (3, 32)]
    assert all(array.dtype == np.float16 for array in arrays)
    picks = [0, 6, 13, 19]
    decoded = encoders.decode(
        encoders.load_vae(encoders.TINY / "vae", "float32", "cpu"), arrays[0][picks]
    )
    frames = video.read_clip(store.path(clip.blob.sha256))[picks]
    assert sample.round_trip_psnr_db == round(encoders.psnr_db(decoded, frames), 2)
    assert re.fullmatch(r"cpu \w+, .*onednn [\d.]+|cpu \w+(, .+)?", sample.device)


def test_what_is_remembered_is_not_decoded_again(clip: Clip, store: Store) -> None:
    assert encode.prepare(clip, store, TINY, FOUND) is not None
    encoded(clip, store)
    assert encode.prepare(clip, store, TINY, FOUND) is None


def test_a_clip_with_fewer_frames_than_promised_is_rejected(clip: Clip, store: Store) -> None:
    [rejection] = encoded(replace(clip, num_frames=25), store).rejections
    assert (rejection.reason, rejection.detail) == (
        "too-few-frames",
        "the clip promises 25 frames and decodes to 20",
    )


def test_without_image_frames_there_is_no_image_embedding(clip: Clip, store: Store) -> None:
    [sample] = encoded(
        clip, store, TINY.model_copy(update={"image_frames": 0, "psnr_share": 0.0})
    ).records
    assert sample.image is None
    assert sample.round_trip_psnr_db is None


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_give_nearly_the_same_numbers(
    clip: Clip, store: Store, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "cannot_be_half", lambda _: False)  # the tiny VAE can
    exact, rough = (
        np.load(
            store.path(
                encoded(clip, store, TINY.model_copy(update={"precision": name}))
                .records[0]
                .latents.sha256
            )
        ).astype(np.float32)
        for name in ("float32", precision)
    )
    assert 0 < np.abs(exact - rough).mean() < 0.1 * np.abs(exact).mean() + 0.02


def test_the_presets_differ_where_the_models_do() -> None:
    sd15, sd21 = encoders.PRESETS["sd15"], encoders.PRESETS["sd21"]
    assert (sd15.text_layer, sd15.pad_token) == ("last", 49407)
    assert (sd21.text_layer, sd21.pad_token) == ("penultimate", 0)


def test_asking_for_a_gpu_that_is_not_there_stops_with_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(Stopped, match="use --device cpu or auto"):
        encoders.choose_device("cuda")
    assert encoders.num_gpus("auto") == 0
