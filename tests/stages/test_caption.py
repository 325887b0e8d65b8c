"""caption: what is asked, what is remembered, and what each way to fail means; against a server on
the loopback that holds requests to the documented form.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tenacity

from pipeline.core import caption_table
from pipeline.core.errors import RecipeError, Stopped
from pipeline.core.executors import Threads
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.records import Clip, Scene, Video
from pipeline.core.stage import Progress, run_stage, survey
from pipeline.core.store import Store
from pipeline.media import chat as chat_module
from pipeline.media import reel
from pipeline.stages import caption, encode, extract
from tests.making import chatting, footage
from tests.making.chatting import MODEL, Chat, Reply, refuse, says, sends

OF_SOURCE = "a test card"


@pytest.fixture
def clips(store: Store, video_of: Callable[..., Video], film: Callable[..., Path]) -> list[Clip]:
    """Four real clips of 10 frames at 64 x 64, of a source with a caption."""
    record = video_of(film(footage.plain, 4, size="160x120"))
    record = replace(record, source=replace(record.source, captions=(OF_SOURCE,)))
    quarter = record.container.end_pts // 4
    spans = [(index * quarter, (index + 1) * quarter) for index in range(4)]
    scenes = [Scene(f"film-{index:04d}", record, *span) for index, span in enumerate(spans)]
    return [next(extract.process(scene, store, reel.Params(size=64))) for scene in scenes]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    asked: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", asked.append)
    return asked


def stage_of(chat: Chat | None, folder: Path = Path(), **options: Any) -> Any:
    asked = {"base_url": chat.base_url, "model": MODEL} if chat else {}
    params = caption.Params.model_validate({**asked, **options})
    return caption.stage(Setup((params,), folder))


def captioned(
    clips: Sequence[Clip], store: Store, chat: Chat | None, folder: Path = Path(), **options: Any
) -> Manifest:
    stage = stage_of(chat, folder, **options)
    return run_stage(stage, clips, store, Threads(stage.num_threads or 1), Progress())[0]


def captions(manifest: Manifest) -> dict[str, tuple[str, ...] | None]:
    return {clip.key: clip.captions for clip in manifest.records if isinstance(clip, Clip)}


def test_every_clip_gets_what_the_model_says_of_it(clips: list[Clip], store: Store) -> None:
    with chatting.chatting() as chat:
        manifest = captioned(clips, store, chat, size=64, frames=3)
    assert chat.complaints == []
    texts = captions(manifest)
    assert list(texts) == [clip.key for clip in clips]
    for own, of_source in texts.values():
        assert own.startswith("a picture of #")
        assert of_source == OF_SOURCE
    assert len({own for own, _ in texts.values()}) == 4
    assert {len(question.pictures) for question in chat.asked} == {3}
    assert {picture.size for question in chat.asked for picture in question.pictures} == {(64, 64)}


def test_colours_are_those_of_the_clip(clips: list[Clip], store: Store) -> None:
    with chatting.chatting() as chat:
        captioned(clips[:1], store, chat, format="png", frames=2)
    frames = encode.pixels_of(clips[0], store, "float64")
    for picture, index in zip(chat.asked[0].pictures, (2, 7), strict=True):
        shown = [channel / (64 * 64) for channel in _sums(picture)]
        assert shown == pytest.approx(frames[index].mean(axis=(0, 1)), abs=1.0)


def _sums(picture: Any) -> list[int]:
    return [sum(channel.tobytes()) for channel in picture.split()]


def test_nothing_is_asked_twice(clips: list[Clip], store: Store) -> None:
    with chatting.chatting() as chat:
        first = captioned(clips, store, chat)
        assert captioned(clips, store, chat) == first
        assert len(chat.asked) == 4
        with chatting.chatting() as elsewhere:
            assert captioned(clips, store, elsewhere, at_once=1, attempts=1) == first
            captioned(clips, store, elsewhere, source_captions="replace", max_tokens=400)
        assert elsewhere.asked == []
        for number, option in enumerate(
            (
                {"prompt": "What is it?"},
                {"frames": 2},
                {"size": 64},
                {"temperature": 0.5},
                {"seed": 1},
            )
        ):
            captioned(clips, store, chat, **option)
            assert len(chat.asked) == 8 + 4 * number, option
    assert chat.asked[-1].body["seed"] == 1


def test_a_higher_limit_asks_again_only_for_what_was_cut(clips: list[Clip], store: Store) -> None:
    with chatting.chatting(says("a long", "length"), chatting.describes) as chat:
        manifest = captioned(clips, store, chat, max_tokens=20, at_once=1)
        [rejection] = manifest.rejections
        assert rejection.reason == "caption-cut"
        assert captioned(clips, store, chat, max_tokens=20) == manifest
        assert len(chat.asked) == 4
        assert len(captioned(clips, store, chat, max_tokens=40).records) == 4
        assert len(chat.asked) == 5
        captioned(clips, store, chat, max_tokens=10)  # may cut what was whole
    assert len(chat.asked) == 9


def test_clips_of_equal_bytes_are_asked_about_once(clips: list[Clip], store: Store) -> None:
    def twin(number: int) -> Clip:
        film = clips[0].scene.video
        source = replace(film.source, key=f"twin{number}", captions=(f"twin {number}",))
        video = replace(film, key=source.key, source=source)
        scene = replace(clips[0].scene, key=f"twin{number}-0000", video=video)
        return replace(clips[0], key=scene.key, scene=scene)

    with chatting.chatting() as chat:
        manifest = captioned([twin(number) for number in range(5)], store, chat)
        assert len(chat.asked) == 1
    assert len({texts and texts[0] for texts in captions(manifest).values()}) == 1
    assert {texts and texts[1] for texts in captions(manifest).values()} == {
        f"twin {number}" for number in range(5)
    }


@pytest.mark.parametrize("reply", [says("I", "length"), says(""), says(None, refusal="no")])
def test_a_model_that_gives_no_caption_at_all_stops_the_build_before_all_clips_are_rejected(
    clips: list[Clip], store: Store, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setattr(chat_module, "MAX_USELESS", 3)
    with chatting.chatting(reply) as chat:
        with pytest.raises(Stopped, match=r"none of the first 3 answers of .* is a caption"):
            captioned(clips, store, chat, at_once=1)
        assert len(chat.asked) == 3
        chat.replies = [chatting.describes, reply]
        manifest = captioned(clips, store, chat, at_once=1, prompt="What is it?")
    assert (len(manifest.records), len(manifest.rejections)) == (1, 3)


def test_source_captions_come_first_last_or_not_at_all(clips: list[Clip], store: Store) -> None:
    with chatting.chatting(says("waves")) as chat:
        for choice, expected in (
            ("first", (OF_SOURCE, "waves")),
            ("last", ("waves", OF_SOURCE)),
            ("replace", ("waves",)),
        ):
            manifest = captioned(clips, store, chat, source_captions=choice)
            assert set(captions(manifest).values()) == {expected}
            [clip, *_] = manifest.records
            assert isinstance(clip, Clip)
            assert encode.captions(clip) == expected
    assert len(chat.asked) == 4


def test_the_prompt_may_quote_the_sources_captions_and_then_depends_on_them(
    clips: list[Clip], store: Store
) -> None:
    def with_captions(*texts: str) -> list[Clip]:
        video = clips[0].scene.video
        video = replace(video, source=replace(video.source, captions=texts))
        return [replace(clips[0], scene=replace(clips[0].scene, video=video))]

    with chatting.chatting() as chat:
        captioned(with_captions("a\x1b[2J", "b"), store, chat, prompt="{{Known}}: {captions}.")
        assert chat.asked[0].prompt == "{Known}: a [2J\nb."
        captioned(with_captions("c"), store, chat, prompt="{{Known}}: {captions}.")
        assert len(chat.asked) == 2
        captioned(with_captions("a"), store, chat)
        manifest = captioned(with_captions("b"), store, chat)
    assert len(chat.asked) == 3
    assert next(iter(captions(manifest).values()))[1] == "b"  # type: ignore[index]


@pytest.mark.parametrize(
    ("reply", "reason", "detail"),
    [
        (says("I", "length"), "caption-cut", "more tokens than max_tokens allows: 'I'"),
        (
            says(None, refusal="I can't help with that."),
            "caption-refused",
            "I can't help with that",
        ),
        (says(None, "content_filter"), "caption-refused", "filter held back"),
        (
            refuse(400, "Your image was flagged by our moderation", "moderation_blocked"),
            "caption-refused",
            "flagged",
        ),
        (refuse(400, "The prompt was filtered", "content_filter"), "caption-refused", "filtered"),
        (says(""), "caption-empty", "''"),
        (says(None), "caption-empty", "''"),
        (says(" \n\u202e\x00 "), "caption-empty", ""),
        (says("x" * 20_000), "caption-cut", "20000 characters"),
    ],
)
def test_what_an_answer_says_of_a_clip_is_a_rejection_of_it(
    clips: list[Clip], store: Store, reply: Reply, reason: str, detail: str
) -> None:
    with chatting.chatting(reply, chatting.describes) as chat:
        manifest = captioned(clips, store, chat, at_once=1)
        [rejection] = manifest.rejections
        assert (rejection.fate, rejection.reason) == ("bad", reason)
        assert detail in rejection.detail
        assert len(manifest.records) == 3
        assert captioned(clips, store, chat) == manifest
    assert len(chat.asked) == 4  # a rejection is remembered


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (refuse(429, "Rate limit reached"), "rate-limited"),
        (refuse(500, "oops"), "network"),
        (refuse(503, "Loading model"), "network"),
        (refuse(408, "too slow"), "timeout"),
        (sends(b"<html>a proxy</html>", "text/html"), "network"),
        (sends(b"[]"), "network"),
        (sends(b'{"choices": []}'), "network"),
        (sends(b'{"choices": [{"message": null}]}'), "network"),
        (sends(b"[" * 100_000), "network"),
        (chatting.hangs_up, "network"),
    ],
)
def test_what_passes_is_tried_again_and_never_remembered(
    clips: list[Clip], store: Store, reply: Reply, cause: str
) -> None:
    with chatting.chatting(reply, reply, reply, reply, chatting.describes) as chat:
        manifest = captioned(clips, store, chat, at_once=1, attempts=3)
        [rejection] = manifest.rejections
        assert (rejection.fate, rejection.reason) == ("unavailable", cause)
        assert len(manifest.records) == 3
        assert len(captioned(clips, store, chat).records) == 4
    assert len(chat.asked) == 4 + 4


def test_the_limit_of_tokens_is_renamed_for_models_that_want_that(
    clips: list[Clip], store: Store
) -> None:
    two = threading.Barrier(2)

    def asked_by_two(handler: chatting.Handler, question: chatting.Question) -> None:
        if "max_tokens" in question.body:
            two.wait(10)  # neither knows yet what the other is about to learn
        chatting.with_the_new_limit(chatting.describes)(handler, question)

    with chatting.chatting(asked_by_two) as chat:
        assert len(captioned(clips, store, chat, at_once=2, max_tokens=77).records) == 4
    limits = [question.body.get("max_completion_tokens") for question in chat.asked]
    assert limits == [None, None, 77, 77, 77, 77]


def test_retry_after_is_waited_for(clips: list[Clip], store: Store, pauses: list[float]) -> None:
    slow = refuse(429, "Rate limit reached", Retry_After="17")
    with chatting.chatting(slow, chatting.describes) as chat:
        assert len(captioned(clips[:1], store, chat).records) == 1
    assert max(pauses) >= 17


def test_an_answer_without_end_is_given_up(
    clips: list[Clip], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chatting.chatting(chatting.endless, chatting.describes) as chat:
        [rejection] = captioned(clips, store, chat, at_once=1).rejections
    assert (rejection.fate, rejection.reason) == ("unavailable", "unsupported")
    assert "more than 4 MiB" in rejection.detail


def test_an_answer_that_is_a_bomb_is_given_up(clips: list[Clip], store: Store) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    packed = sends(bomb, Content_Encoding="gzip")
    with chatting.chatting(packed, chatting.describes) as chat:
        [rejection] = captioned(clips, store, chat, at_once=1).rejections
    assert "more than 4 MiB" in rejection.detail


@pytest.mark.parametrize("reply", [chatting.silent, chatting.dripping])
def test_an_answer_that_does_not_come_in_time_is_a_time_out(
    clips: list[Clip], store: Store, reply: Reply
) -> None:
    with chatting.chatting(reply, chatting.describes) as chat:
        options = {"at_once": 1, "attempts": 1, "timeout_s": 0.4}
        [rejection] = captioned(clips, store, chat, **options).rejections
    assert (rejection.fate, rejection.reason) == ("unavailable", "timeout")


def test_no_credentials_but_the_recipes_are_sent(
    clips: list[Clip], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", chatting.KEY)
    with chatting.chatting() as chat:
        captioned(clips[:1], store, chat, base_url=f"{chat.base_url}/")
    assert "Authorization" not in chat.asked[0].headers


def test_an_endpoint_that_never_answers_stops_the_build(clips: list[Clip], store: Store) -> None:
    with chatting.chatting() as chat:
        pass  # its port is free again
    with pytest.raises(Stopped, match=r"no answer to 3 clips .* Connection refused. Once it runs"):
        captioned(clips, store, chat, attempts=2)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refuse(401, "Unauthorized"), r"answers 401: Unauthorized.* without a key: .*key_variable"),
        (refuse(403, "No access"), "answers 403: No access"),
        (
            chatting.of_model(chatting.describes),
            r"`tiny` does not exist. \(model_not_found\).*'tiny'",
        ),
        (refuse(404, "page not found"), r"page not found.*most often in /v1; it is http"),
        (refuse(429, "You exceeded your quota", "insufficient_quota"), "wants to be paid"),
        (refuse(402, "no credit"), "wants to be paid"),
        (
            refuse(400, "At most 1 image(s) may be provided"),
            "At most 1 image.*look at model, frames",
        ),
        (sends(b"", status=302, Location="https://elsewhere/v1"), "sends us to https://elsewhere"),
    ],
)
def test_what_every_clip_would_meet_stops_the_build_and_loses_nothing(
    clips: list[Clip], store: Store, reply: Reply, words: str
) -> None:
    with chatting.chatting(chatting.describes) as chat:
        captioned(clips[:2], store, chat, model="tiny")
        chat.replies = [reply]
        with pytest.raises(Stopped, match=words) as stopped:
            captioned(clips, store, chat, model="tiny", at_once=1)
        assert "\n" not in str(stopped.value)
        assert len(chat.asked) == 3
        chat.replies = [chatting.describes]
        assert len(captioned(clips, store, chat, model="tiny").records) == 4
    assert len(chat.asked) == 5


def test_the_key_is_sent_and_said_nowhere(
    clips: list[Clip], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chatting.chatting(chatting.with_key(chatting.describes)) as chat:
        stage = stage_of(chat, key_variable="TINY_KEY")
        monkeypatch.delenv("TINY_KEY", raising=False)
        with pytest.raises(Stopped, match=r"TINY_KEY, which the recipe names .* is not set"):
            captioned(clips, store, chat, key_variable="TINY_KEY")
        for wrong in ("sk-wrong", "two words"):
            monkeypatch.setenv("TINY_KEY", wrong)
            with pytest.raises(Stopped, match="TINY_KEY") as stopped:
                captioned(clips, store, chat, key_variable="TINY_KEY", at_once=1)
            assert wrong not in str(stopped.value)
        monkeypatch.setenv("TINY_KEY", chatting.KEY)
        assert len(captioned(clips, store, chat, key_variable="TINY_KEY").records) == 4
    assert "TINY_KEY" not in json.dumps(stage.params)
    for path in store.root.rglob("*"):
        assert not path.is_file() or chatting.KEY.encode() not in path.read_bytes()
    with chatting.chatting(says(f"the key is {chatting.KEY}")) as chat:
        manifest = captioned(clips[:1], store, chat, key_variable="TINY_KEY", seed=5)
        assert captions(manifest)[clips[0].key] == ("the key is ***", OF_SOURCE)
    monkeypatch.delenv("TINY_KEY")
    assert len(captioned(clips, store, chat, key_variable="TINY_KEY").records) == 4


def test_no_more_are_asked_at_once_than_the_recipe_allows(clips: list[Clip], store: Store) -> None:
    def slowly(handler: chatting.Handler, question: chatting.Question) -> None:
        threading.Event().wait(0.15)
        chatting.describes(handler, question)

    for count in (1, 3):
        with chatting.chatting(slowly) as chat:
            captioned(clips, store, chat, at_once=count, seed=count)
        assert chat.most_at_once == count


def test_captions_of_models_are_cleaned(clips: list[Clip], store: Store) -> None:
    hostile = "a\u202egnihton\x1b[31m\nbeach\x00 \u2066at   dusk\ud83d"
    with chatting.chatting(says(hostile)) as chat:
        manifest = captioned(clips[:1], store, chat, source_captions="replace")
    assert captions(manifest) == {clips[0].key: ("a gnihton [31m beach at dusk",)}


def test_without_the_table_clips_pass_as_they_are(clips: list[Clip], store: Store) -> None:
    memos = list(store.memos())
    stage = caption.stage(Setup((caption.Params(),)))
    manifest, _ = run_stage(stage, clips, store, Threads(1), Progress())
    assert (manifest.params, list(manifest.records)) == ({}, clips)
    assert list(store.memos()) == memos
    assert encode.captions(clips[0]) == (OF_SOURCE,)


def test_answers_that_are_remembered_count_as_no_work(clips: list[Clip], store: Store) -> None:
    with chatting.chatting() as chat:
        captioned(clips, store, chat)
        stage = stage_of(chat, source_captions="replace")
        assert survey(stage, clips, store).missing == clips
        assert all(stage.light(clip, store) for clip in clips)


def test_what_it_takes_is_said_before_it_begins(clips: list[Clip], store: Store) -> None:
    lines: list[str] = []
    with chatting.chatting(says("x", "length"), chatting.describes) as chat:
        stage = stage_of(chat, max_tokens=100, at_once=1)
        for _ in range(2):
            run_stage(stage, clips, store, Threads(1), Progress(announce=lines.append))
    [line] = lines
    host = chat.base_url.removeprefix("http://").removesuffix("/v1")
    assert line == (
        f"caption: asks tiny-vl at {host} about 4 clips, 4 frames of 64 pixels each, 1 at once: "
        "about 260 tokens in, at most 400 out"
    )


# ---------------------------------------------------------------------------------- the table


def new_table(folder: Path, *lines: object) -> str:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "mine.jsonl").write_text(text)
    return "mine.jsonl"


def test_a_table_names_clips_by_key_or_digest(
    clips: list[Clip], store: Store, tmp_path: Path
) -> None:
    name = new_table(
        tmp_path,
        {"clip": clips[0].key, "caption": "by key", "who": "me"},
        "\n",
        {"clip": clips[1].blob.sha256, "caption": ["by digest", "again\u202e", "by digest"]},
        {"clip": clips[1].key, "caption": "less than the digest"},
        {"clip": "nobody", "caption": "none"},
    )
    manifest = captioned(clips, store, None, tmp_path, captions=name)
    assert captions(manifest) == {
        clips[0].key: ("by key", OF_SOURCE),
        clips[1].key: ("by digest", "again", OF_SOURCE),
        clips[2].key: None,
        clips[3].key: None,
    }
    assert encode.captions(clips[2]) == (OF_SOURCE,)
    setup = Setup((caption.Params(captions=name),), tmp_path)
    assert caption.unmatched(setup, clips) == ["mine.jsonl: line 5 names no clip: 'nobody'"]


def test_a_clip_in_the_table_is_not_asked_about(
    clips: list[Clip], store: Store, tmp_path: Path
) -> None:
    name = new_table(tmp_path, {"clip": clips[0].key, "caption": "mine"})
    with chatting.chatting() as chat:
        manifest = captioned(clips, store, chat, tmp_path, captions=name)
        assert len(chat.asked) == 3
        assert captions(manifest)[clips[0].key] == ("mine", OF_SOURCE)
        name = new_table(tmp_path, {"clip": clips[1].key, "caption": "mine"})
        again = captioned(clips, store, chat, tmp_path, captions=name)
    assert len(chat.asked) == 4
    assert captions(again)[clips[1].key] == ("mine", OF_SOURCE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2: .*a line looks like"),
        ('{"clip": "a"}', "line 2: caption"),
        ('{"clip": "", "caption": "b"}', "line 2: clip"),
        ('{"clip": "a", "caption": 7}', "line 2: caption"),
        ('{"clip": "a", "caption": []}', "line 2: caption"),
        ('{"clip": "a", "caption": " \\u202e"}', "line 2: a caption is empty"),
        (json.dumps({"clip": "a", "caption": "x" * 10_001}), "line 2: a caption has 10001 char"),
        ('{"clip": "first", "caption": "b"}', "line 2: 'first' has line 1 already"),
        ('{"clip": "\\ud800", "caption": "b"}', "line 2 is no JSON"),
        ("x" * (1 << 20) + "x", "line 2 is longer than 1 MiB"),
    ],
)
def test_a_wrong_line_of_the_table_is_an_error_with_its_number(
    tmp_path: Path, line: str, words: str
) -> None:
    name = new_table(tmp_path, {"clip": "first", "caption": "a"}, f"{line}\n")
    with pytest.raises(RecipeError, match=words) as error:
        stage_of(None, tmp_path, captions=name)
    assert len(str(error.value)) < 1000


def test_order_of_lines_and_other_columns_are_no_change(tmp_path: Path) -> None:
    lines = [{"clip": "a", "caption": "one"}, {"clip": "b", "caption": ["two"]}]
    first = stage_of(None, tmp_path, captions=new_table(tmp_path, *lines)).params
    lines = [{**line, "note": "x"} for line in reversed(lines)]
    assert stage_of(None, tmp_path, captions=new_table(tmp_path, *lines)).params == first
    lines[0]["caption"] = "three"
    assert stage_of(None, tmp_path, captions=new_table(tmp_path, *lines)).params != first


def test_a_table_that_is_not_there_is_an_error_of_a_build_alone(tmp_path: Path) -> None:
    setup = Setup((caption.Params(captions="gone.jsonl"),), tmp_path)
    with pytest.raises(RecipeError, match="there is no file"):
        caption.check_table(setup)
    assert caption.stage(setup).name == "caption"  # a rebuild needs none
    assert caption_table.read(tmp_path / "gone.jsonl") == caption_table.NONE


# ---------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "localhost:8000", "model": "m"}, "an endpoint's address is http"),
        ({"base_url": "https://me:sk-1@host/v1", "model": "m"}, "without user, password"),
        ({"base_url": "http://[::1/v1", "model": "m"}, "an endpoint's address is http"),
        ({"base_url": "http://host:0x1/v1", "model": "m"}, "an endpoint's address is http"),
        ({"base_url": "https://host/v1?key=sk-1", "model": "m"}, "key_variable"),
        ({"base_url": "http://h/v1", "model": "m", "prompt": "{title}"}, "got {title}"),
        ({"base_url": "http://h/v1", "model": "m", "prompt": "{captions.x}"}, "got {captions.x}"),
        ({"base_url": "http://h/v1", "model": "m", "prompt": "a { b"}, "written twice"),
        ({"base_url": "http://h/v1", "model": "m", "key_variable": "sk-1"}, "key_variable"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        caption.Params.model_validate(options)
