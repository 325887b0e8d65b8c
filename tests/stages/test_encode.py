"""encode: each part of a sample has a memo of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core import canonical
from pipeline.core.errors import Damaged
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Sample, Scene, Video
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import encoders, reel, video
from pipeline.stages import encode, extract
from tests.making import footage

UNMEASURED = encode.Params(preset="tiny", psnr_share=0)
MEASURED = encode.Params(preset="tiny", psnr_share=1)


@pytest.fixture
def clip(store: Store, video_of: Callable[..., Video], film: Callable[..., Path]) -> Clip:
    """A real clip of 20 frames at 64 x 64."""
    record = video_of(film(footage.plain, 2, size="160x120"))
    scene = Scene(f"{record.key}-0000", record, 0, record.container.end_pts)
    return next(extract.process(scene, store, reel.Params(size=64)))


def encoded(clip: Clip, store: Store, params: encode.Params) -> Sample:
    stage = encode.stage(Setup((params,), device="cpu"))
    [sample] = run_stage(stage, [clip], store, Inline(), Progress())[0].records
    assert isinstance(sample, Sample)
    return sample


def test_another_psnr_share_encodes_nothing(
    clip: Clip, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something is encoded again")

    before = encoded(clip, store, UNMEASURED)
    for name in ("latents", "images", "text"):
        monkeypatch.setattr(encoders, name, never)
    after = encoded(clip, store, MEASURED)
    assert before.round_trip_psnr_db is None
    assert after.round_trip_psnr_db is not None
    assert (after.latents, after.image, after.text) == (before.latents, before.image, before.text)


def test_the_round_trip_is_measured_on_the_latents_that_are_stored(
    clip: Clip, store: Store
) -> None:
    sample = encoded(clip, store, MEASURED)
    latents = np.load(store.path(sample.latents.sha256))
    picks = [0, 6, 13, 19]
    vae = encoders.load_vae(encoders.TINY / "vae", "float32", "cpu")
    frames = video.read_clip(store.path(clip.blob.sha256))
    psnr_db = encoders.psnr_db(encoders.decode(vae, latents[picks]), frames[picks])
    assert sample.round_trip_psnr_db == round(psnr_db, 2)


def test_a_measured_round_trip_is_not_measured_again(
    clip: Clip, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the clip is decoded back again")

    first = encoded(clip, store, MEASURED)
    store.forget(encode.stage(Setup((MEASURED,), device="cpu")).task_key(clip))
    monkeypatch.setattr(encode, "round_trip", never)
    assert encoded(clip, store, MEASURED) == first


def test_the_null_prompt_s_memo_is_found_by_what_manifests_say_of_the_stage(
    clip: Clip, store: Store
) -> None:
    models = encode.find_encoders(UNMEASURED, Path())
    encoded(clip, store, UNMEASURED)
    memo = store.memo(encode.text_key(encode.facts(UNMEASURED, models), ""))
    assert memo is not None
    assert memo.outputs["sha256"] == encode.text("", store, UNMEASURED, models, "cpu").sha256


def test_the_presets_a_recipe_may_name_are_the_rows_of_the_table() -> None:
    allowed = encode.Params.model_json_schema()["properties"]["preset"]["enum"]
    assert allowed == list(encoders.PRESETS)


def test_models_are_read_once_in_a_process_to_know_their_digests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(encoders.TINY / "vae", tmp_path / "vae")
    read: list[str] = []
    digest = canonical.file_digest
    monkeypatch.setattr(
        canonical, "file_digest", lambda path: read.append(path.name) or digest(path)
    )
    params = encode.Params(preset="tiny", vae="vae")
    for offline in (False, True, False):
        encode.find_encoders(params, tmp_path, offline)
    assert read.count("diffusion_pytorch_model.safetensors") == 1


LONG = " ".join(["fish"] * 90)


def captioned(clip: Clip, *captions: str) -> Clip:
    scene, video = clip.scene, clip.scene.video
    source = replace(video.source, captions=captions)
    return replace(clip, scene=replace(scene, video=replace(video, source=source)))


def test_captions_are_one_array_with_a_row_for_each(clip: Clip, store: Store) -> None:
    models = encode.find_encoders(UNMEASURED, Path())
    each: list[tuple[str, ...]] = [("a fish",), ("a fish", "", "a street"), ()]
    for captions in each:
        sample = encoded(captioned(clip, *captions), store, UNMEASURED)
        text = np.load(store.path(sample.text.sha256))
        rows = [
            np.load(store.path(encode.text(caption, store, UNMEASURED, models, "cpu").sha256))
            for caption in captions or ("",)
        ]
        np.testing.assert_array_equal(text, np.stack(rows), strict=True)


def test_a_caption_s_embedding_that_is_damaged_is_in_no_sample(clip: Clip, store: Store) -> None:
    models = encode.find_encoders(UNMEASURED, Path())
    path = store.path(encode.text("a fish", store, UNMEASURED, models, "cpu").sha256)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=path.name):
        encoded(captioned(clip, "a fish"), store, UNMEASURED)


def test_a_caption_longer_than_clip_reads_is_cut_or_rejects_its_clip(
    clip: Clip, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = encoded(captioned(clip, "a fish", LONG), store, UNMEASURED)
    assert np.load(store.path(kept.text.sha256)).shape == (2, 77, 32)
    for name in ("latents", "images", "text"):
        monkeypatch.setattr(encoders, name, None)
    monkeypatch.setattr(video, "read_clip", None)
    strict = UNMEASURED.model_copy(update={"long_captions": "reject"})
    stage = encode.stage(Setup((strict,), device="cpu"))
    clips = [
        captioned(replace(clip, key="long"), "a fish", LONG),
        captioned(replace(clip, key="short"), "a fish"),
    ]
    manifest, _ = run_stage(stage, clips, store, Inline(), Progress())
    assert [record.key for record in manifest.records] == ["short"]
    [rejection] = manifest.rejections
    assert (rejection.key, rejection.fate, rejection.reason) == ("long", "bad", "long-caption")
    assert "caption 2 has more than the 77 tokens that CLIP reads: 'fish fish" in rejection.detail
