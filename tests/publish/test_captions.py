"""A dataset whose clips have captions of their own, from recipe to lock, rebuild and takedown."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import RecipeError, Stopped
from pipeline.core.executors import Inline, Processes
from pipeline.core.records import Sample
from pipeline.core.stage import Executor, Progress
from pipeline.core.store import Store
from pipeline.dataset import build, lock
from pipeline.dataset import recipe as recipes
from pipeline.dataset.build import Step
from pipeline.dataset.chain import read_manifest
from pipeline.plan import plan as planning
from pipeline.plan import text as plan_text
from pipeline.publish import card, compare, reproduce, sweep, takedown, verify
from pipeline.publish.page import contents
from pipeline.stages import encode
from tests.making import chatting
from tests.making.chatting import Chat
from tests.making.command import PLAIN, ROOT, longtake
from tests.making.dataset import Dataset

VARIABLE = "LONGTAKE_TEST_KEY"
TABLE = f"""
[caption]
base_url = "BASE"
model = "{chatting.MODEL}"
key_variable = "{VARIABLE}"
"""


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    with chatting.chatting(chatting.with_key(chatting.describes)) as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, chatting.KEY)


def captioned(small: Dataset, chat: Chat, folder: Path, more: str = "") -> Dataset:
    """The small dataset with a table [caption], not built yet."""
    dataset = small.copy(folder)
    table = TABLE.replace("BASE", chat.base_url)
    dataset.recipe.write_text(dataset.recipe.read_text() + table + more)
    return dataset


@pytest.fixture(scope="module")
def whole(small_dataset: Dataset, chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Built; not to be changed."""
    os.environ[VARIABLE] = chatting.KEY
    dataset = captioned(small_dataset, chat, tmp_path_factory.mktemp("captioned"))
    run(dataset)
    del os.environ[VARIABLE]
    return dataset


@pytest.fixture
def own(whole: Dataset, tmp_path: Path) -> Dataset:
    dataset = whole.copy(tmp_path / "own")
    run(dataset)  # the copied videos have other times, so they are looked at again
    return dataset


def run(
    dataset: Dataset, executor: Executor | None = None, progress: Progress | None = None
) -> dict[str, Step]:
    loaded = recipes.load(dataset.recipe)
    steps = build.build(
        loaded, dataset.data, executor or Inline(), "cpu", "shard", progress or Progress()
    )
    return {step.manifest.stage: step for step in steps}


def metadata(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """What the shards say of every sample."""
    said = {}
    for path in sorted((dataset.folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    facts = json.loads(file.read())
                    said[facts["key"]] = facts
    return said


def root_digest(dataset: Dataset) -> str:
    return str(dataset.index["root_digest"])


def rebuilt(clone: Dataset) -> dict[str, Any]:
    loaded, locked = recipes.load(clone.recipe), lock.read(clone.recipe)
    steps = list(reproduce.reproduce(loaded, locked, clone.data, Inline(), "cpu", Progress()))
    store = Store(clone.data.absolute() / "store")
    return compare.judge(locked, steps, reproduce.edits(loaded, locked), store)


def test_captions_are_in_samples_embeddings_manifest_and_lock(whole: Dataset, chat: Chat) -> None:
    assert chat.complaints == []
    samples = metadata(whole)
    locked = lock.read(whole.recipe)
    records = read_manifest(whole.folder, "encode").records
    store = Store(whole.data.absolute() / "store")
    assert len(samples) == len(records) >= 5
    for sample in records:
        assert isinstance(sample, Sample)
        said = samples[sample.key]
        assert said["caption"].startswith("a picture of #")
        assert said["captions"] == [said["caption"], f"the film {sample.key.partition('-')[0]}"]
        assert locked.clips[sample.key].captions == tuple(said["captions"])
        assert np.load(store.path(sample.text.sha256)).shape[0] == 2
    params = locked.params("caption")
    assert (params["model"], params["source_captions"]) == (chatting.MODEL, "last")
    for path in (whole.lock, *whole.folder.glob("*.jsonl"), *whole.folder.glob("shards/*")):
        content = path.read_bytes()
        assert chatting.KEY.encode() not in content
        assert chat.base_url.encode() not in content


def test_executors_and_the_number_at_once_give_one_root_digest(
    whole: Dataset, small_dataset: Dataset, chat: Chat, tmp_path: Path
) -> None:
    other = captioned(small_dataset, chat, tmp_path, "at_once = 1\n")
    assert run(other, Processes(2))["caption"].num_run == len(metadata(other))
    assert root_digest(other) == root_digest(whole)
    assert root_digest(other) != root_digest(small_dataset)


def test_a_second_build_asks_nobody_and_needs_no_key(
    own: Dataset, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    count = len(chat.asked)
    steps = run(own)
    assert steps["caption"].num_run == 0
    assert len(chat.asked) == count


def test_who_is_asked_is_no_part_of_the_dataset(own: Dataset, chat: Chat) -> None:
    digest, text = recipes.load(own.recipe).digest, own.recipe.read_text()
    elsewhere = text.replace(chat.base_url, "https://elsewhere/v1").replace(VARIABLE, "OTHER")
    own.recipe.write_text(elsewhere + "at_once = 9\nattempts = 1\ntimeout_s = 5\n")
    assert recipes.load(own.recipe).digest == digest
    own.recipe.write_text(elsewhere + "frames = 9\n")
    assert recipes.load(own.recipe).digest != digest


def test_without_the_key_a_build_that_has_to_ask_stops_before_any_work(
    small_dataset: Dataset, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    dataset = captioned(small_dataset, chat, tmp_path)
    done = longtake("build", dataset.recipe, "--data", dataset.data, "--executor", "inline")
    assert done.returncode == 4
    assert f"{VARIABLE}, which the recipe names for the key of 127.0.0.1" in done.stderr
    assert not (dataset.folder / "7-caption.jsonl").read_text().count("picture of")
    done = longtake(
        "build", dataset.recipe, "--data", dataset.data, "--executor", "inline", "--until", "keep"
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_key_stops_the_build_with_one_line_and_the_next_goes_on(
    small_dataset: Dataset, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = captioned(small_dataset, chat, tmp_path)
    monkeypatch.setenv(VARIABLE, "sk-wrong")
    done = longtake("build", dataset.recipe, "--data", dataset.data, "--executor", "inline")
    assert done.returncode == 4
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("stopped: caption: 127.0.0.1:")
    assert "answers 401: Incorrect API key provided: ***. (invalid_api_key)" in line
    assert f"with the key in {VARIABLE}" in line
    assert root_digest(dataset) == root_digest(small_dataset)  # what was there is there still
    monkeypatch.setenv(VARIABLE, chatting.KEY)
    done = longtake("build", dataset.recipe, "--data", dataset.data, "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert f"caption: asks {chatting.MODEL} at 127.0.0.1:" in done.stdout


def test_a_clip_that_is_not_answered_is_missing_until_it_is(
    whole: Dataset, small_dataset: Dataset, tmp_path: Path
) -> None:
    broken = chatting.refuse(500, "out of memory")
    with chatting.chatting(chatting.describes, broken, chatting.describes) as chat:
        dataset = captioned(small_dataset, chat, tmp_path, "at_once = 1\nattempts = 1\n")
        words = ("--data", dataset.data, "--executor", "inline")
        done = longtake("build", dataset.recipe, *words)
        assert done.returncode == 3
        assert "answers 500: out of memory" in done.stdout
        assert len(metadata(dataset)) == len(metadata(whole)) - 1
        assert longtake("build", dataset.recipe, *words).returncode == 0
        assert len(chat.asked) == len(metadata(whole)) + 1
    assert root_digest(dataset) == root_digest(whole)


def test_what_was_rejected_is_asked_about_again_when_one_says_so(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    refused = chatting.says(None, refusal="I would rather not.")
    with chatting.chatting(refused, chatting.describes) as chat:
        dataset = captioned(small_dataset, chat, tmp_path, "at_once = 1\n")
        words = ("--data", dataset.data, "--executor", "inline")
        done = longtake("build", dataset.recipe, *words)
        assert "1 caption-refused" in done.stdout
        listed = longtake("rejections", dataset.recipe, "--data", dataset.data).stdout
        assert "I would rather not." in listed
        count = len(chat.asked)
        longtake("build", dataset.recipe, *words)
        assert len(chat.asked) == count
        done = longtake("retry", dataset.recipe, "--class", "caption-refused", *words)
        assert done.returncode == 0, done.stderr
        assert len(chat.asked) == count + 1 == len(metadata(dataset)) + 1


def test_a_rebuild_needs_no_model_no_key_and_no_table(
    own: Dataset, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = sorted(metadata(own))
    line = {"clip": keys[0], "caption": "written by hand"}
    (own.recipe.parent / "mine.jsonl").write_text(json.dumps(line) + "\n")
    own.recipe.write_text(own.recipe.read_text() + 'captions = "mine.jsonl"\n')
    run(own)
    assert metadata(own)[keys[0]]["caption"] == "written by hand"
    clone = own.published(tmp_path)
    (clone.recipe.parent / "mine.jsonl").unlink()
    clone.recipe.write_text(
        clone.recipe.read_text().replace(chat.base_url, "http://gone.invalid/v1")
    )
    monkeypatch.delenv(VARIABLE)
    count = len(chat.asked)
    report = rebuilt(clone)
    assert report["verdict"] == "identical"
    assert len(chat.asked) == count
    assert root_digest(clone) == root_digest(own)
    checked = verify.verify(recipes.load(clone.recipe), clone.data, "cpu", Progress())
    assert (checked.findings, checked.grade) == ([], "identical")


def test_an_older_lock_without_captions_is_read_and_rebuilt(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    clone = small_dataset.published(tmp_path)
    text = clone.lock.read_text()
    assert '"captions":null' in text
    locked = lock.read(clone.recipe)
    del locked.header["stages"]["caption"]
    lock.write(locked, clone.recipe)
    assert rebuilt(clone)["verdict"] == "identical"


def test_verify_sees_captions_that_are_not_the_locks(own: Dataset) -> None:
    loaded = recipes.load(own.recipe)
    checked = verify.verify(loaded, own.data, "cpu", Progress())
    assert (checked.findings, checked.grade) == ([], "identical")
    locked = lock.read(own.recipe)
    key, clip = next(iter(locked.clips.items()))
    locked.clips[key] = replace(clip, captions=("another",))
    lock.write(locked, own.recipe)
    checked = verify.verify(loaded, own.data, "cpu", Progress())
    assert "not what the lock says: captions" in {finding.problem for finding in checked.findings}


def test_another_prompt_encodes_no_frame(
    own: Dataset, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.recipe.write_text(own.recipe.read_text() + 'prompt = "What is it? {captions}"\n')
    planned = planning.plan(recipes.load(own.recipe), own.data, "cpu")
    line = planned.lines["caption"]
    assert line.num_named == len(metadata(own))
    assert [key for key in line.reasons if "[caption] prompt" in key]
    assert any("asks tiny-vl at" in sentence for sentence in plan_text.sentences(planned))
    monkeypatch.setattr(encode, "pixels_of", None)
    monkeypatch.setattr(chat, "replies", [chatting.with_key(chatting.says("a film of a kind"))])
    count = len(chat.asked)
    steps = run(own)
    assert steps["encode"].num_run == len(metadata(own)) == len(chat.asked) - count
    assert "the film" in chat.asked[-1].prompt


def test_status_check_card_and_page_tell_of_captions(own: Dataset, chat: Chat) -> None:
    (own.recipe.parent / "mine.jsonl").write_text(
        '{"clip": "nobody-0000", "caption": "x"}\n{"clip": "a-0000", "caption": "a hand\'s work"}\n'
    )
    own.recipe.write_text(own.recipe.read_text() + 'captions = "mine.jsonl"\n')
    done = longtake("build", own.recipe, "--data", own.data, "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert "mine.jsonl: line 1 names no clip: 'nobody-0000'" in done.stdout
    status = longtake("status", own.recipe, "--data", own.data)
    assert "mine.jsonl: line 1 names no clip" in status.stdout
    assert " caption " in status.stdout
    said = longtake("check", own.recipe).stdout
    host = chat.base_url.removeprefix("http://").removesuffix("/v1")
    assert f"captions: 2 lines of mine.jsonl, else tiny-vl at {host}" in said
    text = card.markdown(recipes.load(own.recipe), lock.read(own.recipe))
    assert "a hand&#39;s work" in text or "a hand's work" in text
    loaded = recipes.load(own.recipe)
    steps = list(build.look(loaded, own.data, "cpu"))
    shown = contents.contents(contents.Survey(loaded, steps), (), {}, (), {})
    number = shown["clips"]["keys"].index("a-0000")
    assert shown["clips"]["captions"][str(number)] == ["a hand's work", "the film a"]
    assert "caption" in [stage["stage"] for stage in shown["stages"]]
    sheet = longtake("show", own.recipe, "a-0000", "--data", own.data, "--device", "cpu")
    assert sheet.returncode == 0, sheet.stderr


def test_of_a_source_that_is_taken_down_no_caption_is_left(
    own: Dataset, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: set(facts["captions"]) for key, facts in metadata(own).items()}
    own.recipe.write_text(own.recipe.read_text() + 'prompt = "What is it?"\n')
    monkeypatch.setattr(chat, "replies", [chatting.with_key(chatting.says("a film of a kind"))])
    run(own)  # what the first prompt gave is remembered still
    words = set[str]().union(*(captions for key, captions in before.items() if key[0] == "a"))
    words -= set[str]().union(*(captions for key, captions in before.items() if key[0] != "a"))
    assert len(words) >= 2
    num_texts = num_embedded(own)
    takedown.remove(recipes.load(own.recipe), own.data, "a", "", "cpu")
    left = [path.read_bytes() for path in own.data.rglob("*") if path.is_file()]
    for word in words:
        assert not any(word.encode() in content for content in left), word
    assert num_embedded(own) == num_texts - len(words)
    assert run(own)["encode"].num_run == 0


def num_embedded(dataset: Dataset) -> int:
    """How many captions the store has embeddings of."""
    memos = sweep.memos_of(Store(dataset.data.absolute() / "store"))
    return sum(isinstance(memo.of, list) and memo.of[0] == "text" for memo in memos)


def test_gc_keeps_what_captions_gave(own: Dataset, chat: Chat) -> None:
    sweep.gc(own.data, dry=False)
    count = len(chat.asked)
    steps = run(own)
    assert (steps["caption"].num_run, steps["encode"].num_run) == (0, 0)
    assert len(chat.asked) == count


def test_a_table_that_is_wrong_or_gone_stops_a_build_before_any_work(own: Dataset) -> None:
    own.recipe.write_text(own.recipe.read_text() + 'captions = "mine.jsonl"\n')
    with pytest.raises(RecipeError, match=r"there is no file .*mine\.jsonl"):
        run(own)
    (own.recipe.parent / "mine.jsonl").write_text('{"clip": "a-0000"}\n')
    with pytest.raises(RecipeError, match=r"mine\.jsonl: line 1: caption"):
        run(own)
    done = longtake("check", own.recipe)
    assert (done.returncode, "mine.jsonl: line 1: caption" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[caption]\n", "captions come from somewhere"),
        ('[caption]\nmodel = "m"\n', "base_url is missing"),
        ('[caption]\nbase_url = "http://h/v1"\nframes = 3\n', "model is missing"),
    ],
)
def test_a_table_that_gives_no_captions_is_an_error_with_its_line(
    tmp_path: Path, table: str, words: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[[source]]\nuri = "file:a.mp4"\n{table}')
    with pytest.raises(RecipeError, match=f"mine.toml:3: caption: .*{words}"):
        recipes.load(path)


def test_ctrl_c_does_not_wait_for_answers_and_what_was_answered_stays(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    asked_three = threading.Event()
    over = threading.Event()

    def third_hangs(handler: chatting.Handler, question: chatting.Question) -> None:
        if len(chat.asked) > 2:
            asked_three.set()
            over.wait(60)
        chatting.describes(handler, question)

    with chatting.chatting(third_hangs) as chat:
        dataset = captioned(small_dataset, chat, tmp_path, "at_once = 1\n")
        words = ("build", dataset.recipe, "--data", dataset.data, "--executor", "inline")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **PLAIN},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            # as from a terminal, however pytest was started
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert asked_three.wait(60)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - start < 10
        over.set()
        assert (process.returncode, "the same command goes on" in said) == (130, True)
        chat.replies = [chatting.describes]
        steps = run(dataset)
        assert steps["caption"].num_cached == 2
        count = len(metadata(dataset))
        assert len(chat.asked) == count + 1


def test_a_crash_while_asking_loses_no_answer(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chatting.chatting() as chat:
        dataset = captioned(small_dataset, chat, tmp_path, "at_once = 1\n")
        remember = Store.remember

        def failing(self: Store, key: str, outputs: Any, of: Any = None) -> None:
            if isinstance(of, list) and of[:1] == ["caption"]:
                remember(self, key, outputs, of)
                raise Stopped("the power is gone")
            remember(self, key, outputs, of)

        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            patch.setattr(Store, "remember", failing)
            run(dataset)
        assert len(chat.asked) == 1
        run(dataset)
        assert len(chat.asked) == len(metadata(dataset))
