"""What `pipeline` writes, `training` reads: each promise of docs/format.md that training relies on,
and webdataset as a witness.
"""

from __future__ import annotations

import gc
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.records import Sample
from pipeline.core.store import Store
from pipeline.stages.shard import Params
from tests.making.samples import SIZE, WIDTH, NewScene, arrays_of, publish, sample_of
from training import shards
from training.errors import ShardError
from training.frames import Window
from training.shards import Index, check_identity, open_index, verify
from training.stream import Stream

DOCS = Path(__file__).parents[2] / "docs"
SCALE = 0.18215


@pytest.fixture
def samples(store: Store, new_scene: NewScene) -> list[Sample]:
    """Samples with every member there may be: further captions, a standard deviation, a key too
    long for a plain tar header.
    """
    scene = new_scene(0, 3000)
    return [
        sample_of(store, scene, "one", 7),
        sample_of(
            store, scene, "two-captions", 9, ("a street", "une rue", "eine Straße"), std=True
        ),
        sample_of(store, scene, "no-caption", 5, ()),
        sample_of(store, scene, "k" * 120, 12),
        *(sample_of(store, scene, f"more-{number}", 5 + number) for number in range(6)),
    ]


@pytest.fixture
def index(store: Store, samples: list[Sample], tmp_path: Path) -> Index:
    publish(tmp_path / "shards", store, samples, Params(max_samples=4, validation=0.3))
    return open_index(tmp_path / "shards")


def keys(index: Index) -> list[str]:
    return [entry.key for entries in index.entries.values() for entry in entries]


def scaled(array: Any) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32)) * SCALE


def test_every_window_training_reads_is_what_the_pipeline_wrote(
    store: Store, samples: list[Sample], index: Index
) -> None:
    arrays = arrays_of(samples, store)
    assert sorted(keys(index)) == sorted(arrays)
    assert len(index.shards) >= 3
    for split, entries in index.entries.items():
        stream = Stream(index, split, windows=[Window(1)])
        for entry in entries:
            latents = arrays[entry.key]["latents.npy"]
            assert entry.num_frames == len(latents)
            for window in (Window(1), Window(3), Window(2, 3), Window(5), Window(len(latents))):
                for start in range(len(latents) - window.span + 1):
                    tensor = stream.gather([(entry.key, start)], window).latents[0]
                    assert torch.equal(
                        tensor, scaled(latents[start : start + window.span : window.stride])
                    )


def test_each_caption_training_draws_is_one_the_pipeline_wrote(
    store: Store, samples: list[Sample], index: Index
) -> None:
    arrays = arrays_of(samples, store)
    for split in index.entries:
        stream = Stream(index, split, windows=[Window(5)], batch_size=4)
        seen: dict[str, set[int]] = {}
        for step in range(60):
            batch = stream.batch(step)
            for key, text in zip(batch.keys, batch.text.numpy(), strict=True):
                seen.setdefault(key, set()).update(
                    row
                    for row, caption in enumerate(arrays[key]["text.npy"])
                    if np.array_equal(caption, text)
                )
        assert seen == {
            entry.key: set(range(len(arrays[entry.key]["text.npy"])))
            for entry in index.entries[split]
        }


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset leaves its file to the garbage collector
def test_webdataset_reads_the_same_arrays_as_training(index: Index) -> None:
    import webdataset

    seen: list[str] = []
    for shard in index.shards:
        stream = Stream(index, shard.split, windows=[Window(1)])
        for sample in webdataset.WebDataset(str(Path(index.url, shard.file)), shardshuffle=False):
            key = sample["__key__"]
            latents, text = (
                np.load(io.BytesIO(sample[name]), allow_pickle=False)
                for name in ("latents.npy", "text.npy")
            )
            batch = stream.gather([(key, 0)], Window(len(latents)))
            assert torch.equal(batch.latents[0], scaled(latents))
            assert np.array_equal(batch.text[0].numpy(), text[0])
            assert json.loads(sample["json"])["num_frames"] == len(latents)
            assert batch.fps.item() == pytest.approx(10)
            seen.append(key)
    gc.collect()
    assert seen == [sample.key for shard in index.shards for sample in shard.samples]
    assert sorted(seen) == sorted(keys(index))


def test_the_index_says_what_training_needs_to_know(index: Index) -> None:
    assert (index.name, index.fps, index.size, index.scaling_factor, index.frame_shape) == (
        "tiny",
        Fraction(10),
        SIZE,
        SCALE,
        (4, 2, 2),
    )
    assert index.null_text.shape == (77, WIDTH)
    assert not index.null_text.any()
    assert re.fullmatch("[0-9a-f]{64}", index.root_digest)
    assert index.identity() == {
        "encoders.vae.sha256": "a" * 64,
        "encoders.clip.sha256": "b" * 64,
        "encoders.clip.text_layer": "last",
        "encoders.clip.pad_token": 49407,
        "latents.shape": [4, 2, 2],
        "latents.scaling_factor": SCALE,
    }
    check_identity(index, json.loads(json.dumps(index.identity())))


def test_names_and_revisions_decide_nothing(index: Index, tmp_path: Path) -> None:
    plain = json.loads((tmp_path / "shards" / "index.json").read_text())
    for encoder in ("vae", "clip"):
        plain["encoders"][encoder].update(name="another", revision="another")
    (tmp_path / "shards" / "index.json").write_text(json.dumps(plain))
    check_identity(open_index(index.url), index.identity())


def test_headers_are_as_long_as_training_guesses(index: Index) -> None:
    for split in index.entries:
        stream = Stream(index, split, windows=[Window(1)], batch_size=1)
        for entry in index.entries[split]:
            stream.gather([(entry.key, 0)], Window(1)).latents[0]
            assert stream._first_frame[entry.key] == entry.latents.start + shards.HEADER, (
                "no sample costs a second read"
            )


def test_what_the_pipeline_wrote_passes_verification_and_a_changed_byte_does_not(
    index: Index, tmp_path: Path
) -> None:
    verify(index)
    shard = index.shards[1]
    path = tmp_path / "copy" / shard.file
    path.parent.mkdir()
    for other in Path(index.url).iterdir():
        (path.parent / other.name).write_bytes(other.read_bytes())
    with path.open("r+b") as file:
        file.seek(shard.num_bytes // 2)
        byte = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ShardError, match=re.escape(shard.file)):
        verify(open_index(path.parent))


def test_a_build_that_replaces_shards_is_told_from_the_index_of_before(
    store: Store, samples: list[Sample], index: Index, tmp_path: Path
) -> None:
    publish(tmp_path / "shards", store, samples[:5], Params(max_samples=4, validation=0.3))
    with pytest.raises(ShardError, match=r"of another build|truncated|not there"):
        verify(index)


def test_the_formats_number_is_the_one_the_page_tells_of() -> None:
    page = (DOCS / "format.md").read_text("utf-8")
    assert page.startswith(f"# Shard format v{shards.FORMAT}\n")
    assert f"| `format` | `{shards.FORMAT}` |" in page


def test_every_field_of_the_index_training_reads_is_on_the_page() -> None:
    page = (DOCS / "format.md").read_text("utf-8")
    for fields in (
        shards.IndexFields,
        shards.LatentsFields,
        shards.ClipFields,
        shards.NullTextFields,
        shards.Shard,
        shards.SampleFields,
    ):
        assert all(f"`{name}`" in page or f'"{name}"' in page for name in fields.model_fields), (
            fields.__name__
        )
