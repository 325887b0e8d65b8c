"""Scores by heads over CLIP's image embeddings: read from files, measured, and remembered once for
`score` and `encode`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.core.errors import BadData, RecipeError
from pipeline.core.executors import Processes
from pipeline.core.records import Clip
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.media import encoders
from pipeline.media.scorers import head
from pipeline.publish import scores as scored
from pipeline.publish import sweep
from tests.making import footage
from tests.making.command import longtake
from tests.making.dataset import OPTIONS, Dataset

WIDTH = encoders.clip_facts(encoders.TINY / "clip")["image_width"]
HEADED = """
[score]
scorers = ["distinct", "head"]
[score.head]
pretty = "pretty.safetensors"
liked = "liked.safetensors"
[keep]
nice = "pretty > -1000 and liked > 0.0001"
"""


def save(path: Path, metadata: dict[str, str] | None = None, **arrays: Any) -> Path:
    save_file({name: np.asarray(array) for name, array in arrays.items()}, path, metadata)
    return path


def weights(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


@pytest.fixture
def plain(film: Callable[..., Path], tmp_path: Path) -> Dataset:
    """A recipe of two films and two heads beside it, built without scores."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    films = {"a": film(footage.plain, 3, size="160x120"), "b": film(footage.joined, (), 3)}
    text = ""
    for key, path in films.items():
        shutil.copyfile(path, folder / f"{key}.mp4")
        text += f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\n'
    (folder / "heads.toml").write_text(text + '[cut]\ndetector = "none"\n' + OPTIONS)
    save(folder / "pretty.safetensors", weight=weights(1)[None], bias=np.float32([0.5]))
    clip = encoders.find_weights(
        str(encoders.TINY / "clip"), None, "", encoders.CLIP_LAYOUTS, folder
    )
    (folder / "liked.safetensors").write_bytes(head.encoded(weights(2), -0.25, clip[1].sha256))
    return Dataset(folder / "heads.toml", tmp_path / "data")


def add(dataset: Dataset, text: str) -> None:
    dataset.recipe.write_text(dataset.recipe.read_text() + text)


def edit(dataset: Dataset, old: str, new: str) -> None:
    text = dataset.recipe.read_text()
    assert old in text
    dataset.recipe.write_text(text.replace(old, new))


def scores_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    [step] = [step for step in dataset.build() if step.manifest.stage == "score"]
    return {clip.key: dict(clip.scores) for clip in step.manifest.records if isinstance(clip, Clip)}


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The frames of every clip that CLIP looked at."""
    frames: list[int] = []
    images = encoders.images

    def counting(clip: Any, pictures: Any) -> Any:
        frames.append(len(pictures))
        return images(clip, pictures)

    monkeypatch.setattr(encoders, "images", counting)
    return frames


def test_a_head_scores_the_mean_of_the_embeddings_that_encode_stores(plain: Dataset) -> None:
    add(plain, HEADED)
    scores = scores_of(plain)
    store = Store(plain.data / "store")
    loaded = recipes.load(plain.recipe)
    steps = {step.manifest.stage: step for step in build.look(loaded, plain.data, "cpu")}
    assert len(scores) == len(steps["encode"].manifest.records) == 2
    for sample in steps["encode"].manifest.records:
        rows = np.load(store.path(sample.image.sha256)).astype(np.float64)  # type: ignore[union-attr]
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
        pretty, logit = mean @ weights(1) + 0.5, mean @ weights(2) - 0.25
        assert scores[sample.key]["pretty"] == pytest.approx(pretty, rel=1e-3)
        assert scores[sample.key]["liked"] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-3)
        assert list(scores[sample.key]) == ["distinct", "liked", "pretty"]


def test_embeddings_are_computed_once_for_score_and_encode(
    plain: Dataset, embedded: list[int]
) -> None:
    plain.build()
    assert embedded == [3, 3]
    without = plain.index["root_digest"]
    add(plain, HEADED)
    scores = scores_of(plain)
    assert embedded == [3, 3]  # encode has them
    assert plain.index["root_digest"] != without  # scores are in a sample's metadata
    shutil.rmtree(plain.data)
    assert scores_of(plain) == scores
    assert embedded == [3, 3, 3, 3]  # score has them, and encode asks no more


def test_another_head_is_measured_without_any_model(
    plain: Dataset, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(plain, HEADED)
    before = scores_of(plain)
    embedded.clear()
    monkeypatch.setattr(encoders, "new_clip", None)
    save(plain.recipe.parent / "pretty.safetensors", weight=weights(3))
    after = scores_of(plain)
    assert not embedded
    assert [row["liked"] for row in after.values()] == [row["liked"] for row in before.values()]
    assert [row["pretty"] for row in after.values()] != [row["pretty"] for row in before.values()]


def test_gc_keeps_the_embeddings_of_clips_that_were_dropped_for_the_next_head(
    plain: Dataset, embedded: list[int]
) -> None:
    add(plain, HEADED.replace("liked > 0.0001", "liked < 0"))
    assert len(scores_of(plain)) == 2  # and nothing is kept
    embedded.clear()
    swept, _ = sweep.gc(plain.data, dry=False)
    assert swept.counts["image embeddings"] == 0
    save(plain.recipe.parent / "pretty.safetensors", weight=weights(3))
    scores_of(plain)
    assert not embedded
    edit(plain, '"distinct", "head"', '"distinct"')
    edit(plain, "pretty > -1000 and liked < 0", "distinct < 0")
    scores_of(plain)
    swept, _ = sweep.gc(plain.data, dry=False)
    assert swept.counts["image embeddings"] == 2  # of no use to a recipe without heads


def test_a_rebuild_with_another_head_is_refused_by_its_name(plain: Dataset, tmp_path: Path) -> None:
    add(plain, HEADED)
    plain.build()
    clone = plain.published(tmp_path)
    save(clone.recipe.parent / "pretty.safetensors", weight=weights(3))
    done = longtake("reproduce", clone.recipe, "--data", clone.data, "--executor", "inline")
    assert done.returncode == 2
    assert "[score] head.heads.pretty: the recipe gives " in done.stderr


def test_where_encode_embeds_no_frame_score_embeds_three(
    plain: Dataset, embedded: list[int]
) -> None:
    add(plain, HEADED)
    edit(plain, "[encode]\n", "[encode]\nimage_frames = 0\n")
    assert len(scores_of(plain)) == 2
    assert embedded == [3, 3]


def test_executors_give_the_same_scores_and_root_digest(plain: Dataset) -> None:
    add(plain, HEADED)
    plain.build()
    digest = plain.index["root_digest"]
    shutil.rmtree(plain.data)
    loaded = recipes.load(plain.recipe)
    list(build.build(loaded, plain.data, Processes(1), "cpu", "shard", Progress()))
    assert plain.index["root_digest"] == digest


def test_rules_tables_and_the_lock_know_heads_by_their_names(plain: Dataset) -> None:
    add(plain, HEADED.replace("liked > 0.0001", "liked < 0"))
    steps = {step.manifest.stage: step for step in plain.build()}
    assert steps["keep"].manifest.reasons == {"nice": 2}
    assert "liked 0." in steps["keep"].manifest.rejections[0].detail
    loaded = recipes.load(plain.recipe)
    table = scored.summary(loaded, scored.clips_of(loaded, plain.data))
    units = {row["score"]: row["unit"] for row in table["scores"]}
    assert units == {"distinct": "share", "liked": "probability", "pretty": ""}
    params = steps["score"].manifest.params["head"]
    assert params["heads"].keys() == {"pretty", "liked"}
    assert params["image_frames"] == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "header too small"),
        (b"{" * 400, "header too large"),
        ({"other": np.ones(4)}, "it holds 'other' [4]; wanted is"),
        ({"weight": np.ones(4), "layers.0.bias": np.ones(4)}, "'layers.0.bias' [4], 'weight' [4]"),
        ({"weight": np.ones((2, 4))}, "'weight' [2, 4]"),
        ({"weight": np.ones(4), "bias": np.ones(2)}, "'bias' [2]"),
        ({"weight": np.ones(4, np.int32)}, "its numbers are int32"),
        ({"weight": np.array([1, np.nan])}, "it holds NaN or infinity"),
        ({"weight": np.ones(4), "bias": np.array([np.inf])}, "it holds NaN or infinity"),
        ({"weight": np.ones(1 << 21)}, "longer than 8 MiB"),
    ],
    ids=str,
)
def test_a_file_that_is_no_head_is_one_clear_line(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "a.safetensors"
    if isinstance(content, dict):
        save(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        head.read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("no JSON", "Expecting value"),
        ("[]", "its metadata 'head' is []"),
        (json.dumps({"activation": "tanh"}), "its activation is 'tanh', not none or sigmoid"),
        (json.dumps({"clip": 3}), "its clip is 3"),
    ],
)
def test_metadata_that_says_something_else_is_refused(
    tmp_path: Path, facts: str, words: str
) -> None:
    path = save(tmp_path / "a.safetensors", {"head": facts}, weight=np.ones(4))
    with pytest.raises(RecipeError) as caught:
        head.read(path)
    assert words in str(caught.value)


def test_a_head_keeps_its_numbers_and_needs_no_bias(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", weight=np.float16([[0.5, 2]]))
    assert head.read(path).value([1, 2]) == 4.5
    content = head.encoded(np.array([0.5, 2]), 0.25, "c" * 64)
    path.write_bytes(content)
    assert (head.read(path).weight, head.read(path).bias) == ((0.5, 2), 0.25)
    assert head.read(path).value([1000, 0]) == 1 > head.read(path).value([-10, 0]) > 0
    assert head.read(path).value([-4000, 0]) == 0
    assert head.encoded(np.array([0.5, 2]), 0.25, "c" * 64) == content


def test_an_embedding_without_a_direction_is_bad_data() -> None:
    with pytest.raises(BadData, match="no direction"):
        head.mean_of(np.zeros((2, 4), np.float16))
    assert head.mean_of(np.float16([[3, 4], [0, 2]])) == [0.3, 0.9]


def test_a_head_that_does_not_fit_stops_the_build_before_any_work(plain: Dataset) -> None:
    add(plain, HEADED)
    path = plain.recipe.parent / "pretty.safetensors"
    save(path, weight=np.ones(WIDTH + 1))
    with pytest.raises(RecipeError, match=rf"has {WIDTH + 1} numbers, and .* have {WIDTH}"):
        plain.build()
    path.write_bytes(head.encoded(weights(1), 0, "d" * 64))
    with pytest.raises(RecipeError, match=r"score\.head\.pretty: .*fitted to another CLIP"):
        plain.build()
    path.unlink()
    with pytest.raises(RecipeError, match=r"pretty\.safetensors cannot be read"):
        plain.build()
    assert not (plain.folder / "0-expand.jsonl").exists()
    output = longtake("check", plain.recipe)
    assert output.returncode == 2
    assert "score.head.pretty: the head" in output.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[score]\nscorers = ["head"]\n', "the scorer 'head': no head is named: write NAME ="),
        ('[score.head]\nmotion = "a"\n', "a head cannot be called 'motion': that is a score"),
        ('[score.head]\nframes = "a"\n', "a head cannot be called 'frames'"),
        ('[score.head]\nnot = "a"\n', "'not' is no name for a score"),
        ('[score.head]\n"a-b" = "a"\n', "'a-b' is no name for a score"),
        ("[score.head]\na = 3\n", "a.toml:4: score.head.a: got 3"),
        (
            '[score]\n[score.head]\nmine = "a"\n[keep]\nx = "mine > 0"\n',
            "'mine' is not measured: add \"head\" to scorers",
        ),
        (
            '[score]\nscorers = ["head"]\n[score.head]\nmine = "a"\n[keep]\nx = "mime > 0"\n',
            "no score is called 'mime'; did you mean 'mine'?",
        ),
    ],
)
def test_a_recipe_with_wrong_heads_is_told_what_to_write(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[[source]]\nuri = "file:a.mp4"\n' + text)
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    assert words in str(caught.value)
