"""Models that do not fit are refused in one line, before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import RecipeError
from pipeline.core.params import Setup
from pipeline.core.store import Store
from pipeline.media import encoders
from pipeline.stages import encode

Edit = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Copies of the shipped models that a test may spoil."""
    for kind in ("vae", "clip"):
        shutil.copytree(encoders.TINY / kind, tmp_path / kind)
    return tmp_path


def edit_config(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, edit: Edit) -> None:
    from safetensors.torch import load_file, save_file

    save_file(edit(load_file(path)), path)


def check(own: Path, store: Store, **options: Any) -> None:
    params = encode.Params(preset="tiny", vae="vae", clip="clip", **options)
    encode.find_encoders.cache_clear()
    encode.check_models(Setup((params,), folder=own, device="cpu"), store)


def refusal(own: Path, store: Store, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        check(own, store, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_shipped_models_fit_and_are_tried_once(
    own: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(own, store)
    monkeypatch.setattr(encoders, "check_fit", pytest.fail)
    check(own, store)


def test_a_config_that_leaves_weights_out_is_refused(own: Path, store: Store) -> None:
    edit_config(own / "vae" / "config.json", use_quant_conv=False)
    assert "'quant_conv.bias' and 1 more unexpected" in refusal(own, store)


@pytest.mark.parametrize(
    "edit",
    [
        lambda weights: {f"vae.{name}": value for name, value in weights.items()},
        lambda weights: {name: weights[name] for name in list(weights)[:-1]},
        lambda weights: {name.replace("resnets", "block"): weights[name] for name in weights},
        lambda weights: {name: value[:1].clone() for name, value in weights.items()},
    ],
)
def test_weights_under_other_names_are_refused(own: Path, store: Store, edit: Edit) -> None:
    edit_weights(own / "vae" / encoders.VAE_LAYOUTS[0][1], edit)
    assert "take the config and the weights of one model" in refusal(own, store)


@pytest.mark.parametrize(
    "edit",
    [
        lambda weights: {f"clip.{name}": value for name, value in weights.items()},
        lambda weights: {name: weights[name] for name in list(weights)[:-1]},
    ],
)
def test_a_clip_of_other_names_is_refused(own: Path, store: Store, edit: Edit) -> None:
    edit_weights(own / "clip" / encoders.OPEN_CLIP[1], edit)
    assert "take the config and the weights of one model" in refusal(own, store)


@pytest.mark.parametrize(
    "change",
    [
        {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1, 1, 1, 1]},
        {"_class_name": "AutoencoderKLWan"},
    ],
)
def test_a_vae_of_another_kind_is_refused(own: Path, store: Store, change: Any) -> None:
    edit_config(own / "vae" / "config.json", **change)
    assert next(iter(change)) in refusal(own, store)


@pytest.mark.parametrize(
    "change",
    [
        {"hf_tokenizer_name": "xlm-roberta-base"},
        {"vocab_size": 250002},
        {"no_causal_mask": True},
        {"tokenizer_kwargs": {"clean": "canonicalize"}},
    ],
)
def test_a_clip_with_words_of_its_own_is_refused(own: Path, store: Store, change: Any) -> None:
    path = own / "clip" / encoders.OPEN_CLIP[0]
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= change
    path.write_text(json.dumps(config))
    assert f"{next(iter(change))} is" in refusal(own, store)


def test_a_clip_that_sees_pictures_otherwise_is_refused(own: Path, store: Store) -> None:
    edit_config(own / "clip" / encoders.OPEN_CLIP[0], preprocess_cfg={"interpolation": "bilinear"})
    assert "interpolation is 'bilinear'" in refusal(own, store)


def test_a_vae_that_says_float16_is_too_narrow_is_not_run_in_it(own: Path, store: Store) -> None:
    edit_config(own / "vae" / "config.json", force_upcast=True)
    assert 'write precision = "float32" or "bfloat16"' in refusal(own, store, precision="float16")
    edit_config(own / "vae" / "config.json", force_upcast=False)
    check(own, store, precision="float16")
