"""The closed list of what can go wrong: every class of it is reached, by what goes wrong in the
world.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tenacity
from rich.console import Console
from typer.testing import CliRunner
from yt_dlp.extractor.generic import GenericIE
from yt_dlp.utils import ExtractorError

from pipeline.__main__ import app
from pipeline.commands import facts, report
from pipeline.core import ledger
from pipeline.core import store as store_module
from pipeline.core.columns import Columns
from pipeline.core.errors import CAUSES, REASONS, BadData
from pipeline.core.executors import Executor, Inline, Processes
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Cover, Crop, Record, Rejection, Scene, Source, Video
from pipeline.core.stage import MAX_SUSPICIONS, Progress, Stage, run_stage
from pipeline.core.store import Store
from pipeline.dataset import build, removals
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import Step, runner, surveyor
from pipeline.media import duplicates, encoders, fetch, reel, scorers
from pipeline.media.detectors import whole
from pipeline.stages import caption, cut, download, encode, expand, extract, keep, score
from pipeline.stages import filter as filtering
from tests.making import behave, broken, chatting, footage
from tests.making.deadly import Deadly
from tests.making.downloads import download_all
from tests.making.serving import Answer, content, endless, page, serving, silent, status
from tests.making.steps import step_of


@dataclass(frozen=True)
class World:
    """Where a class is provoked. What provokes it returns the (fate, class) that was counted."""

    store: Store
    folder: Path
    film: Callable[..., Path]
    video_of: Callable[..., Video]
    new_scene: Callable[..., Record]
    monkeypatch: pytest.MonkeyPatch

    def staged(
        self, stage: Stage, record: Record, executor: Executor | None = None
    ) -> tuple[str, str]:
        manifest, _ = run_stage(stage, [record], self.store, executor or Inline(), Progress())
        [one] = manifest.rejections
        return one.fate, one.reason

    def downloaded(self, uri: str, sha256: str | None = None) -> tuple[str, str]:
        [one] = download_all([Source("a", uri, sha256=sha256)], self.store, self.folder).rejections
        return one.fate, one.reason

    def file(self, path: Path, sha256: str | None = None) -> tuple[str, str]:
        return self.downloaded(f"file:{path}", sha256)

    def answered(self, answer: Answer) -> tuple[str, str]:
        with serving({"/film.mp4": answer}) as (address, _):
            return self.downloaded(f"{address}/film.mp4")

    def said(self, words: str) -> tuple[str, str]:
        def refuse(self: object, url: str) -> None:
            raise ExtractorError(words, expected=True)

        self.monkeypatch.setattr(GenericIE, "_real_extract", refuse)
        return self.downloaded("https://example.org/film")


@pytest.fixture
def world(
    store: Store,
    tmp_path: Path,
    film: Callable[..., Path],
    video_of: Callable[..., Video],
    new_scene: Callable[..., Record],
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())
    return World(store, tmp_path, film, video_of, new_scene, monkeypatch)


def blank_pictures(world: World) -> tuple[str, str]:
    whole = world.film(footage.plain, 1, size="160x120", movflags="faststart").read_bytes()
    start = whole.index(b"mdat") + 4
    path = world.folder / "blank.mp4"
    path.write_bytes(whole[:start] + bytes(len(whole) - start))
    return world.file(path)


def past_the_end(world: World) -> tuple[str, str]:
    return world.staged(
        cut.stage(Setup((whole.Whole(), reel.Params()))),
        world.video_of(world.film(footage.plain, 1, size="160x120"), Fraction(9)),
    )


def in_part(world: World, make: Callable[..., Path], *args: float) -> tuple[str, str]:
    return world.staged(
        cut.stage(Setup((whole.Whole(), reel.Params(size=64)))),
        world.video_of(world.film(make, *args, suffix=".ts")),
    )


def unwanted_bars(world: World) -> tuple[str, str]:
    video = world.video_of(world.film(footage.plain, 1, size="160x120"))
    scene = replace(world.new_scene(0, 400), video=video, picture=Crop(0, 20, 160, 80))
    return world.staged(extract.stage(Setup((reel.Params(bars="reject"),))), scene)


def unwanted_faces(world: World) -> tuple[str, str]:
    video = world.video_of(world.film(footage.plain, 1, size="160x120"))
    scene = replace(world.new_scene(0, 400), video=video, covers=(Cover(0, 5, 0, 0, 16, 16),))
    return world.staged(extract.stage(Setup((reel.Params(faces="reject"),))), scene)


def a_field_nobody_has(world: World) -> tuple[str, str]:
    with zipfile.ZipFile(world.folder / "a.zip", "w") as archive:
        archive.writestr("a.mp4", b"film")
    columns = Columns(caption="txt")
    return world.staged(
        expand.stage(Setup((fetch.Params(), columns), world.folder)), Source("a", "zip:a.zip")
    )


def unwanted_fields(world: World) -> tuple[str, str]:
    scene = world.new_scene(0, 400)
    facts = replace(scene.video.container, scan="top")
    params = filtering.Params(interlaced="reject")
    return world.staged(
        filtering.stage(Setup((params, reel.Params()))),
        replace(scene, video=replace(scene.video, container=facts)),
    )


def without_end(world: World) -> tuple[str, str]:
    world.monkeypatch.setattr(fetch, "MAX_BYTES", 100_000)
    return world.answered(endless(b"", "video/mp4"))


def not_a_number(world: World) -> tuple[str, str]:
    import torch

    broken = torch.full((2, 4, 8, 8), torch.nan)
    posterior = SimpleNamespace(latent_dist=SimpleNamespace(mean=broken, std=broken))
    vae = SimpleNamespace(encode=lambda pixels: posterior, dtype=torch.float32, device="cpu")
    with pytest.raises(BadData) as caught:
        encoders.latents(vae, np.zeros((2, 64, 64, 3), np.uint8), 2, with_std=False)
    return "bad", caught.value.reason


def a_scorer_that_fails(world: World) -> tuple[str, str]:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    scorer = scorers.SCORERS["compression"]()
    world.monkeypatch.setattr(type(scorer), "measure", fail)
    with pytest.raises(BadData) as caught:
        score.values_of(scorer, None, None)  # type: ignore[arg-type]
    return "bad", caught.value.reason


def clip_of(scene: Scene, key: str = "a") -> Clip:
    return Clip(
        key=key,
        scene=scene,
        blob=Blob("1" * 64, 1),
        num_frames=5,
        fps=Fraction(10),
        size=64,
        crop=Crop(0, 0, 64, 64),
        pictures="3" * 64,
    )


def a_copy(world: World) -> tuple[str, str]:
    tables = (scorers.Params(scorers=()), keep.Params(), duplicates.Params())
    clips = [clip_of(world.new_scene(0, 400), key) for key in ("a", "b")]
    manifest, _ = run_stage(keep.stage(Setup(tables)), clips, world.store, Inline(), Progress())
    [rejection] = manifest.rejections
    return rejection.fate, rejection.reason


def a_caption_beyond_clip(world: World) -> tuple[str, str]:
    params = encode.Params(preset="tiny", long_captions="reject")
    models = encode.find_encoders(params, world.folder)
    scene = world.new_scene(0, 400)
    source = replace(scene.video.source, captions=("fish " * 76,))
    video = replace(scene.video, source=source)
    clip = clip_of(replace(scene, video=video))
    with pytest.raises(BadData) as caught:
        next(encode.process(clip, world.store, None, params, models, "cpu"))
    return "bad", caught.value.reason


def an_answer(reply: chatting.Reply) -> Callable[[World], tuple[str, str]]:
    """A model that is asked for a caption and answers so."""

    def provoke(world: World) -> tuple[str, str]:
        video = world.video_of(world.film(footage.plain, 1, size="160x120"))
        scene = replace(world.new_scene(0, video.container.end_pts), video=video)
        [clip] = extract.process(scene, world.store, reel.Params(size=64))
        with chatting.chatting(reply) as chat:
            params = caption.Params(base_url=chat.base_url, model=chatting.MODEL)
            return world.staged(caption.stage(Setup((params,))), clip)

    return provoke


def no_answer(world: World) -> tuple[str, str]:
    world.monkeypatch.setattr(fetch, "SILENCE_S", 0.3)
    return world.answered(silent)


def missing_member(world: World) -> tuple[str, str]:
    with zipfile.ZipFile(world.folder / "some.whl", "w") as wheel:
        wheel.writestr("some/film.mp4", b"film")
    world.store.once(["wheel", "some==1.0"], lambda: world.store.link(world.folder / "some.whl"))
    return world.downloaded("pypi:some==1.0/some/other.mp4")


def taken_down(world: World) -> tuple[str, str]:
    recipe = world.folder / "small.toml"
    recipe.write_text('[[source]]\nid = "a"\nuri = "https://example.org/never-asked"\n')
    removals.note(recipe, "a", removals.Removal("2026-01-01T00:00:00Z", "asked to"), {})
    [one] = step_of(
        "expand", build.look(recipes.load(recipe), world.folder, "cpu")
    ).manifest.rejections
    return one.fate, one.reason


PROVOKED: dict[str, Callable[[World], tuple[str, str]]] = {
    "unreadable": lambda world: world.answered(
        page("<html><body>Please log in</body></html>", "video/mp4")
    ),
    "no-video-stream": lambda world: world.file(world.film(footage.audio_only)),
    "no-timestamps": lambda world: world.file(
        world.film(footage.plain, 1, size="160x120", suffix=".h264")
    ),
    "truncated": lambda world: world.file(world.film(footage.truncated)),
    "decode-error": blank_pictures,
    "damaged": lambda world: in_part(world, broken.resized),
    "gap": lambda world: in_part(world, broken.joined_files, 0, 20),
    "outside-span": past_the_end,
    "too-few-frames": lambda world: world.staged(
        filtering.stage(Setup((filtering.Params(), reel.Params()))), world.new_scene(0, 400)
    ),
    "too-few-distinct": lambda world: world.staged(
        filtering.stage(Setup((filtering.Params(min_frames=1), reel.Params()))),
        replace(world.new_scene(0, 400), distinct=0.0),
    ),
    "unknown-colours": lambda world: world.file(world.film(footage.coloured, colorspace="ycgco")),
    "missing-field": a_field_nobody_has,
    "interlaced": unwanted_fields,
    "black-bars": unwanted_bars,
    "duplicate": a_copy,
    "faces": unwanted_faces,
    "too-large": without_end,
    "non-finite": not_a_number,
    "score-failed": a_scorer_that_fails,
    "caption-refused": an_answer(chatting.says(None, refusal="I would rather not.")),
    "caption-cut": an_answer(chatting.says("a street in", "length")),
    "caption-empty": an_answer(chatting.says(" ")),
    "long-caption": a_caption_beyond_clip,
    "crashed": lambda world: world.staged(behave.STAGE, Source("a", "crash:a"), Processes(1)),
    "timed-out": lambda world: world.staged(
        replace(behave.STAGE, timeout=lambda cost: 0.5), Source("a", "sleep:a"), Processes(1)
    ),
    "removed": taken_down,
    "gone": lambda world: world.answered(status(404)),
    "forbidden": lambda world: world.answered(status(403)),
    "private": lambda world: world.said(
        "Private video. Sign in if you've been granted access to this video"
    ),
    "geo-blocked": lambda world: world.answered(status(451)),
    "bot-check": lambda world: world.said(
        "Sign in to confirm you\u2019re not a bot. This helps protect our community."
    ),
    "rate-limited": lambda world: world.answered(status(429)),
    "http-status": lambda world: world.answered(status(418)),
    "network": lambda world: world.answered(lambda handler: None),
    "timeout": no_answer,
    "checksum": lambda world: world.file(
        world.film(footage.plain, 1, size="160x120"), sha256="0" * 64
    ),
    "not-found": missing_member,
    "unsupported": lambda world: world.downloaded("gopher://example.org/film.mp4"),
}


def test_the_table_has_every_class_there_is_and_no_other() -> None:
    assert PROVOKED.keys() == REASONS | CAUSES


@pytest.mark.parametrize("name", PROVOKED)
def test_every_class_is_reached_by_what_goes_wrong(world: World, name: str) -> None:
    assert PROVOKED[name](world) == ("bad" if name in REASONS else "unavailable", name)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], recipes.Loaded]:
    """`recipe(address)`: two videos on a server and one file that is none."""
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())
    (tmp_path / "text.mp4").write_text("no video")

    def write(address: str) -> recipes.Loaded:
        path = tmp_path / "small.toml"
        sources = {"a": f"{address}/a.mp4", "b": f"{address}/b.mp4", "c": "file:text.mp4"}
        text = "".join(f'[[source]]\nid = "{key}"\nuri = "{uri}"\n' for key, uri in sources.items())
        path.write_text(f"{text}[download]\nattempts = 3\n")
        return recipes.load(path)

    return write


def built(loaded: recipes.Loaded, classes: set[str] | None = None) -> Step:
    data = loaded.folder / "data"
    steps = build.build(loaded, data, Inline(), "cpu", "download", Progress(), classes)
    return step_of("download", steps)


def told(loaded: recipes.Loaded) -> dict[str, tuple[str, int]]:
    """By source: class and number of tries, as `rejections` shows them."""
    step = step_of("download", build.look(loaded, loaded.folder / "data", "cpu"))
    return {one.rejection.key: (one.rejection.reason, one.tries) for one in step.failures}


def test_the_ledger_counts_tries_and_keeps_first_and_last(
    recipe: Callable[[str], recipes.Loaded],
    film: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, times = (
        film(footage.plain, 1, size="160x120"),
        iter(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]),
    )
    answers = {"/a.mp4": status(429), "/b.mp4": content(small)}
    with serving(answers) as (address, _):
        loaded = recipe(address)
        built(loaded)
        assert told(loaded) == {"a": ("rate-limited", 3), "c": ("unreadable", 1)}
        monkeypatch.setattr(store_module, "now", lambda: next(times))
        built(loaded)
        built(loaded)
        assert told(loaded)["a"] == ("rate-limited", 9)
        [failed] = [
            one
            for one in step_of(
                "download", build.look(loaded, loaded.folder / "data", "cpu")
            ).failures
            if one.rejection.key == "a"
        ]
        assert (
            failed.first > failed.last == "2026-01-02T00:00:00Z"
        )  # the clock was set back, and nobody minds
        answers["/a.mp4"] = content(small)
        built(loaded)
        assert told(loaded) == {"c": ("unreadable", 1)}


def test_a_retry_of_one_class_asks_nobody_else(
    recipe: Callable[[str], recipes.Loaded], film: Callable[..., Path]
) -> None:
    answers = {"/a.mp4": status(429), "/b.mp4": status(404)}
    with serving(answers) as (address, asked):
        loaded = recipe(address)
        built(loaded)
        answers["/a.mp4"] = content(film(footage.plain, 1, size="160x120"))
        asked.clear()
        step = built(loaded, {"rate-limited"})
    assert {path for path, _ in asked} == {"/a.mp4"}
    assert [record.key for record in step.manifest.records] == ["a"]
    assert {one.key: one.reason for one in step.manifest.rejections} == {
        "b": "gone",
        "c": "unreadable",
    }
    assert told(loaded) == {"b": ("gone", 1), "c": ("unreadable", 1)}


def test_what_is_remembered_as_bad_is_tried_again_if_its_class_is_named(
    recipe: Callable[[str], recipes.Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = download.video.probe
    monkeypatch.setattr(
        download.video, "probe", lambda path: (seen.append(path.name), real(path))[1]
    )
    with serving({}) as (address, _):
        loaded = recipe(address)
        for classes, number in [(None, 1), (None, 1), ({"truncated"}, 1), ({"unreadable"}, 2)]:
            built(loaded, classes)
            assert len(seen) == number


SUSPECT = [Source("a", "pass:a")]


def visited(store: Store, executor: Executor, classes: set[str] | None = None) -> list[str]:
    """Take a good record through a stage, as a build does; the classes of its rejections."""
    visit = runner(store, executor, Progress(), behave.STAGE, classes)
    return [rejection.reason for rejection in visit(behave.STAGE, SUSPECT).manifest.rejections]


def test_a_survey_tells_a_suspicion_with_its_tries_and_as_nothing_pending(store: Store) -> None:
    deadly = Deadly("timed-out")
    for number in range(1, MAX_SUSPICIONS + 2):
        visited(store, deadly)
        step = surveyor(store)(behave.STAGE, SUSPECT)
        [failed] = step.failures
        assert (failed.rejection.fate, failed.rejection.reason) == ("bad", "timed-out")
        assert failed.tries == 2 * min(number, MAX_SUSPICIONS)
        assert (step.num_pending, len(step.manifest.rejections)) == (0, 1)


def test_retry_tries_a_suspicion_that_stands_and_then_counts_anew(store: Store) -> None:
    deadly = Deadly("crashed")
    for _ in range(MAX_SUSPICIONS + 1):
        visited(store, deadly)
    assert deadly.num_tried == 2 * MAX_SUSPICIONS
    assert visited(store, deadly, {"timed-out"}) == ["crashed"]
    assert deadly.num_tried == 2 * MAX_SUSPICIONS
    assert visited(store, deadly, {"crashed"}) == ["crashed"]
    [failed] = surveyor(store)(behave.STAGE, SUSPECT).failures
    assert failed.tries == 2
    deadly.is_out_of_order = False
    assert visited(store, deadly, {"timed-out"}) == ["crashed"]  # another class: it stands
    assert visited(store, deadly, {"crashed"}) == []


def test_a_build_in_this_process_does_not_try_what_may_kill_it(store: Store) -> None:
    visited(store, Deadly("crashed"))
    assert visited(store, Inline()) == ["crashed"]
    assert visited(store, Inline(), {"crashed"}) == []  # somebody looks for the fault


def test_words_in_brackets_are_shown_as_they_are() -> None:
    failed = ledger.Failure(
        Rejection("a", "download", "unavailable", "gone", "[generic] a: [/b] is gone"), "", "", 1
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report.rejections(facts.rejections([failed])))
        report.show(console, "a, in [/data]", report.funnel([]))
    assert "[generic] a: [/b] is gone" in shown.get()
    assert "a, in [/data]" in shown.get()


def test_a_funnel_of_many_records_fits_a_narrow_screen() -> None:
    many = Manifest(
        "download",
        1,
        {},
        30_000,
        0,
        (),
        tuple(Rejection(str(n), "download", "bad", "too-large", "") for n in range(30_000)),
    )
    console = Console(width=76)
    with console.capture() as shown:
        report.show(
            console,
            f"films, built in /{'folder/' * 20}films",
            report.funnel(facts.stages([Step(many, 0, 0)])),
        )
    title, _, header, *_ = shown.get().splitlines()
    assert title.endswith("/folder/films")
    assert header.split() == [
        "stage",
        "in",
        "out",
        "rejected",
        "why",
        "cached",
        "pending",
        "size",
        "hours",
    ]


@pytest.mark.parametrize("count", [3, 30_000, 300_000])
def test_a_funnel_of_80_columns_breaks_no_reason_and_no_number_in_two(count: int) -> None:
    rejected = {"no-video-stream": count, "too-few-frames": count}
    counts = {"in": 2 * count, "out": 0, "cached": count, "pending": count}
    row = {"stage": "download", **counts, "rejected": rejected, "bytes": 999_900_000_000}
    console = Console(width=80)
    with console.capture() as shown:
        report.show(console, "films", report.funnel([{**row, "hours": 1234.5}]))
    words = shown.get().split()
    assert {*map(str, (count, 2 * count)), "999.9", "1234.50"} <= set(words)
    assert {"no-video-stream,", "too-few-frames"} <= set(words)
    assert all(len(line.rstrip()) <= 80 for line in shown.get().splitlines())


def test_retry_refuses_a_class_that_is_none() -> None:
    said = CliRunner().invoke(app, ["retry", "manifests/demo.toml", "--class", "tired"])
    assert said.exit_code == 2
    assert "got 'tired', allowed are black-bars, bot-check, caption-cut," in " ".join(
        said.output.replace("│", " ").split()
    )
