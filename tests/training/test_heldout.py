"""heldout: which films may be scored, and how windows are shared out among them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from rich.console import Console

from tests.making.models import SMALL_UNET
from tests.making.runs import run_of, wave_shards
from tests.making.shards import change_index, new_clip, new_shards
from training import heldout, loop
from training.errors import ShardError, UsageError
from training.frames import Window
from training.heldout import Film, Place
from training.run import Run, load_run, open_run
from training.shards import Index, open_index


def sha256_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def shards_of(folder: Path, films: Mapping[str, str | None], train: int = 0) -> Index:
    """Shards with a sample of 20 frames each, `films` says of which film; the first `train` of them
    are to train on, the others held out.
    """
    clips = {}
    for number, (key, film) in enumerate(films.items()):
        source = {"key": film, "sha256": sha256_of(film)} if film else {}
        facts = {"key": key, "source": source} if film else {"key": key}
        clips[key] = {**new_clip(number, 20), "json": json.dumps(facts).encode()}
    new_shards(folder, clips, per_shard=1, split="validation")

    def share_out(index: dict[str, Any]) -> None:
        for shard in index["shards"][:train]:
            shard["split"] = "train"

    change_index(folder, share_out)
    return open_index(folder)


def run_on(index: Index, **facts: Any) -> Run:
    """A run on these shards, by an older version unless `facts` say more."""
    dataset = {"root_digest": index.root_digest, **facts}
    return Run(Path("runs/a"), loop.presets.find("tiny-interp"), dataset, "tiny", 0)


def names(films: list[Film]) -> list[str]:
    return [film.name for film in films]


def test_the_clips_of_a_video_are_one_film(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"a-0": "a", "b-0": "b", "a-1": "a", "c-0": None})
    films = heldout.films(index)
    assert names(films) == ["a", "b", "c-0"]
    assert [film.sha256 for film in films] == [sha256_of("a"), sha256_of("b"), None]
    assert [entry.key for entry in films[0].entries] == ["a-0", "a-1"]
    assert heldout.films(index, "train") == []


def test_samples_are_read_in_parts_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = shards_of(tmp_path, {f"k{number}": f"film{number}" for number in range(7)})
    monkeypatch.setattr(heldout, "READ_AT_ONCE", 3)
    assert names(heldout.films(index)) == [f"film{number}" for number in range(7)]


def test_a_damaged_key_json_is_refused(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"a-0": "a"})
    path = tmp_path / "00000.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(sha256_of("a").encode(), sha256_of("b").encode()))
    with pytest.raises(ShardError, match=r"00000\.tar: a-0\.json: sha256"):
        heldout.films(index)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"source": 3}',
        b'{"source": {"key": 4, "sha256": "../x"}}',
        b'{"source": {"key": "[red]\\u001b[2J", "sha256": ["a"]}}',
    ],
)
def test_a_key_json_that_names_no_video_leaves_the_sample_a_film_of_its_own(
    tmp_path: Path, content: bytes
) -> None:
    index = new_shards(tmp_path, {"a": {**new_clip(0, 5), "json": content}}, split="validation")
    assert [(film.name, film.sha256) for film in heldout.films(index)] == [("a", None)]


def test_a_key_json_that_cannot_be_parsed_is_refused(tmp_path: Path) -> None:
    index = new_shards(tmp_path, {"a": {**new_clip(0, 5), "json": b"{"}}, split="validation")
    with pytest.raises(ShardError, match="cannot be parsed"):
        heldout.films(index)


def test_a_key_json_that_is_no_such_thing_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = shards_of(tmp_path, {"a-0": "a"})
    monkeypatch.setattr(heldout, "MAX_BYTES", 50)
    with pytest.raises(ShardError, match=r"a-0\.json is too long"):
        heldout.films(index)


def test_what_a_run_was_trained_on_is_never_scored(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"t": "t", "a-0": "a", "a-1": "a", "b": "b"}, train=1)
    notes: list[str] = []
    run = run_on(index, root_digest="0" * 64, videos=[sha256_of("a")])
    assert names(heldout.unseen(run, index, notes)) == ["b"]
    assert notes == ["a is not scored: the run was trained on that video"]
    with pytest.raises(UsageError, match="trained on every film that is held out here"):
        heldout.unseen(run_on(index, videos=[sha256_of("a"), sha256_of("b")]), index, [])


def test_of_an_old_run_on_the_same_shards_the_shards_say_what_it_was_trained_on(
    tmp_path: Path,
) -> None:
    index = shards_of(tmp_path, {"t": "t", "a": "a"}, train=1)
    notes: list[str] = []
    assert names(heldout.unseen(run_on(index), index, notes)) == ["a"]
    assert notes == []
    old = run_on(index, root_digest="0" * 64)
    assert names(heldout.unseen(old, index, notes)) == ["a"]
    assert "does not say which videos it was trained on" in notes[0]


def test_a_held_out_sample_of_no_named_video_is_noted(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"t": "t", "a": None}, train=1)
    notes: list[str] = []
    heldout.unseen(run_on(index, videos=[]), index, notes)
    assert "do not say which video a is" in notes[0]


def test_without_a_held_out_part_the_line_to_add_is_said(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"t": "t", "u": "u", "v": "v", "w": "w"}, train=4)
    with pytest.raises(UsageError, match=r"set `validation = 0\.25` in \[shard\]"):
        heldout.unseen(run_on(index), index, [])


def test_windows_are_shared_out_among_as_many_films_as_there_can_be(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"a-0": "a", "b-0": "b", "a-1": "a", "c-0": "c"})
    films = heldout.films(index)

    def shared(num_windows: int) -> list[str]:
        return [place.film for place in heldout.places(index, films, Window(5, 2), num_windows)]

    assert shared(3) == ["a", "b", "c"]
    assert sorted(shared(5)) == ["a", "b", "b", "c", "c"]
    assert shared(2) == ["a", "b"]
    assert heldout.places(index, films[1:2], Window(5, 2), 1) == [Place("b", "b-0", 5)]
    with pytest.raises(UsageError, match="a window spans 21"):
        heldout.places(index, films, Window(21, 1), 3)


def test_a_film_too_short_for_a_window_takes_none_away_from_the_others(tmp_path: Path) -> None:
    index = shards_of(tmp_path, {"a": "a", "b": "b"})
    films = heldout.films(index)
    short = replace(films[0], entries=(replace(films[0].entries[0], num_frames=3),))
    places = heldout.places(index, [short, films[1]], Window(5, 1), 2)
    assert [place.film for place in places] == ["b", "b"]


def test_a_run_remembers_its_videos_and_those_of_the_model_it_began_with(tmp_path: Path) -> None:
    index = shards_of(tmp_path / "shards", {"t": "t", "u": "u", "a": "a"}, train=2)
    base = tmp_path / "base"
    UNet2DConditionModel.from_config(SMALL_UNET).save_pretrained(base)
    assert heldout.training_videos(index, str(base)) == sorted(map(sha256_of, "tu"))
    facts = {"dataset": {"videos": [sha256_of("a"), sha256_of("t")]}}
    (base / "training.json").write_text(json.dumps(facts))
    run = loop.begin("tiny-interp", index, tmp_path / "run", str(base), 0, 5)
    assert run.dataset["videos"] == sorted(map(sha256_of, "atu"))
    assert loop.begin("tiny-interp", index, tmp_path / "run", None, 0, 5).dataset[
        "videos"
    ] == sorted(map(sha256_of, "tu"))
    for strange in ("[]", '{"dataset": {"videos": ["../x"]}}', '{"dataset": {"videos": [1]}}'):
        (base / "training.json").write_text(strange)
        with pytest.raises(UsageError, match="which videos the model was trained on"):
            heldout.training_videos(index, str(base))


def test_an_old_run_that_does_not_name_its_videos_goes_on_and_does_from_then_on(
    tmp_path: Path,
) -> None:
    index = wave_shards(tmp_path / "shards", 2, 20)
    run = run_of(tmp_path / "run", index, tmp_path / "shards")
    old = replace(run, dataset={**run.dataset})
    del old.dataset["videos"]
    open_run(old)
    assert "videos" not in load_run(run.folder).dataset
    open_run(run)
    assert load_run(run.folder).dataset["videos"] == []


def test_training_says_before_its_first_step_that_nothing_is_held_out(tmp_path: Path) -> None:
    index = wave_shards(tmp_path / "shards", 2, 20)
    run = run_of(tmp_path / "run", index, tmp_path / "shards", steps=1)
    output = io.StringIO()
    trainer = loop.Trainer(
        run, index, "cpu", console=Console(file=output, width=200), pictures=False
    )
    assert "NOTHING IS HELD OUT of made" in output.getvalue()
    assert "validation = 0.5" in output.getvalue()
    trainer.train()
    assert output.getvalue().index("NOTHING") < output.getvalue().index("clips")
