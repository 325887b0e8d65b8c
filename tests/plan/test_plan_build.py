"""`plan`: what it promises, and that a build then does exactly that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import canonical, manifest
from pipeline.core.errors import Damaged
from pipeline.core.executors import Inline
from pipeline.core.records import Clip, Record
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, rates, recipe
from pipeline.dataset.chain import KINDS, blobs_of, manifest_path, stage_of
from pipeline.dataset.rates import Rate
from pipeline.plan import text
from pipeline.plan.plan import Line, Plan, differences, plan
from pipeline.plan.sizes import Sizes
from pipeline.stages import NAMES, cut
from tests.making import footage
from tests.making.command import PLAIN, longtake
from tests.making.steps import step_of

OPTIONS = """
[filter]
min_frames = 20
max_frames = 60
min_distinct = 0
[extract]
size = 64
[encode]
preset = "tiny"
psnr_share = 0.5
[shard]
max_samples = 3
"""
SOURCES = {"a": '["a test card"]', "b": '["a fractal", "a picture"]', "twin": '["the same again"]'}


@pytest.fixture(scope="module")
def folder(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes' folder: three videos, one of them at two addresses, and a fourth that no recipe
    names yet.
    """
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "a.mp4").write_bytes(film(footage.joined, (4.0, 5.0), 12).read_bytes())
    (folder / "b.mp4").write_bytes(film(footage.plain, 8, size="240x320").read_bytes())
    (folder / "twin.mp4").write_bytes((folder / "b.mp4").read_bytes())
    (folder / "late.mp4").write_bytes(film(footage.plain, 4, size="160x120").read_bytes())
    return folder


def new_recipe(
    folder: Path, stem: str, sources: dict[str, str] = SOURCES, options: str = OPTIONS
) -> recipe.Loaded:
    """A recipe of the dataset `tiny`, beside the others."""
    text = "\n".join(
        f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = {caption}'
        for key, caption in sources.items()
    )
    (folder / f"{stem}.toml").write_text(f'name = "tiny"\n{text}\n{options}')
    return recipe.load(folder / f"{stem}.toml")


def run_build(loaded: recipe.Loaded, data: Path) -> dict[str, int]:
    """Build; how many tasks each stage really ran."""
    started: dict[str, int] = {}
    progress = Progress(start=lambda stage, count, cost: started.update({stage: count}))
    list(build.build(loaded, data, Inline(), "cpu", "shard", progress))
    return started


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("reference")
    run_build(new_recipe(folder, "reference"), data)
    return data


@pytest.fixture
def data(reference: Path, tmp_path: Path) -> Path:
    """A copy of the data folder after a whole build."""
    return Path(shutil.copytree(reference, tmp_path / "data"))


def record_of(data: Path, stage: str, key: str) -> Record:
    """A record of the dataset's manifest of a stage."""
    records = manifest.read(manifest_path(data / "tiny", stage), KINDS[stage]).records
    return next(record for record in records if record.key == key)


def lines_of(loaded: recipe.Loaded, data: Path) -> dict[str, Line]:
    """The plan's lines that have something to do."""
    lines = plan(loaded, data, "cpu").lines
    return {name: line for name, line in lines.items() if not line.is_idle}


def reasons(lines: dict[str, Line]) -> dict[str, dict[str, int]]:
    """Why tasks that can be named are to be done, and how many."""
    return {
        name: {reason: len(keys) for reason, keys in line.reasons.items()}
        for name, line in lines.items()
        if line.reasons
    }


def promise(lines: dict[str, Line]) -> dict[str, int]:
    """What is promised exactly."""
    return {name: line.num_named for name, line in lines.items() if line.is_exact}


def words(planned: Plan) -> str:
    return "\n".join(text.sentences(planned))


def test_of_what_is_built_nothing_is_to_do_and_nothing_is_touched(folder: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    planned = plan(new_recipe(folder, "same"), data, "cpu")
    assert planned.is_idle
    assert words(planned) == "nothing to do: everything was built before"
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    done = {name: line.num_done for name, line in planned.lines.items()}
    assert done | {"shard": 0} == {
        "expand": 3,
        "download": 3,
        "cut": 2,  # the twin is cut with b
        "filter": 4,
        "extract": 5,
        "score": 5,
        "keep": 5,
        "caption": 5,
        "encode": 7,
        "shard": 0,
    }
    assert done["shard"] >= 3
    assert run_build(new_recipe(folder, "same"), data) == {}


def test_an_empty_folder_is_said_to_be_known_stage_by_stage_and_stays_empty(
    folder: Path, tmp_path: Path
) -> None:
    planned = plan(new_recipe(folder, "fresh"), tmp_path / "none", "cpu")
    assert list(tmp_path.iterdir()) == []
    assert reasons({"download": planned.lines["download"]}) == {"download": {"never built": 3}}
    assert planned.lines["cut"].to_do == 3
    later = ("filter", "extract", "score", "keep", "caption", "encode", "shard")
    assert {planned.lines[name].waits_for for name in later} == {"cut"}
    names = ", ".join(later)
    assert f"{names}: known once `cut` has run" in words(planned)
    assert "no estimate: nothing has been timed here yet" in words(planned)
    ran = run_build(new_recipe(folder, "fresh"), tmp_path / "none")
    assert promise(planned.lines)["download"] == ran["download"] == 3


def test_a_new_source_is_named_and_what_follows_is_judged_by_the_last_build(
    folder: Path, data: Path
) -> None:
    loaded = new_recipe(folder, "new", {**SOURCES, "late": '["a late one"]'})
    lines = lines_of(loaded, data)
    assert reasons(lines) == {"download": {"new source": 1}}
    assert lines["download"].reasons == {"new source": ["late"]}
    assert lines["cut"].expected.count == 1
    assert lines["cut"].expected.video_s == pytest.approx((12 + 8 + 8) / 3, abs=0.1)
    # Five scenes of three videos, and seven clips of these five scenes.
    assert lines["extract"].expected.count == pytest.approx(7 / 3, abs=0.01)
    assert lines["encode"].expected.count == pytest.approx(7 / 3, abs=0.01)
    assert 0 < (lines["shard"].expected.count or 0) <= 7 / 3
    assert not any(line.is_exact for name, line in lines.items() if name != "download")
    assert run_build(loaded, data)["download"] == promise(lines)["download"] == 1


def test_another_min_frames_runs_no_filter_and_names_the_clips(folder: Path, data: Path) -> None:
    options = OPTIONS.replace("min_frames = 20", "min_frames = 10")
    loaded = new_recipe(folder, "short", options=options)
    planned = plan(loaded, data, "cpu")
    lines = lines_of(loaded, data)
    assert "filter: changed parameter: [filter] min_frames 20 -> 10" in words(planned)
    assert lines["extract"].reasons == {"changed input": ["a-0001"]}
    assert promise(lines) == {"extract": 1}
    assert lines["encode"].expected.count == pytest.approx(1)
    ran = run_build(loaded, data)
    assert (ran["extract"], ran["encode"]) == (1, 1)
    assert "filter" not in ran


def test_an_edited_caption_embeds_text_and_decodes_nothing(folder: Path, data: Path) -> None:
    loaded = new_recipe(folder, "caption", {**SOURCES, "a": '["another card"]'})
    lines = lines_of(loaded, data)
    assert reasons(lines)["encode"] == {"changed input": 3}
    encode = lines["encode"]
    assert (encode.num_light, encode.video_s, encode.seconds) == (3, 0, 0)
    assert promise(lines) == {"encode": 3}
    assert "3 of them find their latents remembered" in words(plan(loaded, data, "cpu"))
    assert run_build(loaded, data)["encode"] == 3


@pytest.mark.parametrize(
    ("stage", "name"), [("download", "blob"), ("extract", "blob"), ("encode", "latents")]
)
def test_a_deleted_blob_costs_its_own_task(folder: Path, data: Path, stage: str, name: str) -> None:
    record = record_of(data, stage, "a" if stage == "download" else "a-0000")
    Store(data / "store").path(getattr(record, name).sha256).unlink()
    loaded = new_recipe(folder, "deleted")
    lines = lines_of(loaded, data)
    missing = "missing blob: it was made before, and the store no longer has it whole"
    assert reasons(lines)[stage] == {missing: 1}
    assert run_build(loaded, data)[stage] == promise(lines)[stage] == 1


def test_status_counts_a_deleted_raw_video_as_pending(folder: Path, data: Path) -> None:
    video = record_of(data, "download", "a")
    Store(data / "store").path(video.blob.sha256).unlink()  # type: ignore[union-attr]
    steps = build.look(new_recipe(folder, "deleted"), data, "cpu")
    assert step_of("download", steps).num_pending == 1


def test_a_stage_version_is_told_old_and_new(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = new_recipe(folder, "version")
    monkeypatch.setattr(cut, "VERSION", cut.VERSION + 1)
    lines = lines_of(loaded, data)
    assert reasons(lines)["cut"] == {f"stage version: {cut.VERSION - 1} -> {cut.VERSION}": 2}
    assert lines["cut"].video_s == pytest.approx(20, abs=0.1)
    assert lines["extract"].expected.count == pytest.approx(5, rel=0.3)
    assert promise(lines) == {"cut": 2}
    assert run_build(loaded, data)["cut"] == 2


def test_a_missing_file_is_tried_and_then_tried_again(folder: Path, data: Path) -> None:
    loaded = new_recipe(folder, "missing")
    (folder / "a.mp4").rename(folder / "away.mp4")
    try:
        lines = lines_of(loaded, data)
        assert reasons(lines) == {"download": {"changed input": 1}}
        assert run_build(loaded, data)["download"] == promise(lines)["download"] == 1
        assert reasons(lines_of(loaded, data)) == {"download": {"tried again: not-found": 1}}
    finally:
        (folder / "away.mp4").rename(folder / "a.mp4")


@pytest.mark.parametrize(
    ("old", "new", "stage", "change"),
    [
        ("max_samples = 3", "max_samples = 4", "shard", "[shard] max_samples 3 -> 4"),
        ("size = 64", "size = 64\nfps = 8", "filter", "[extract] fps 10 -> 8"),
        ("size = 64", "size = 72", "extract", "[extract] size 64 -> 72"),
        (
            "[filter]",
            '[cut]\ndetector = "none"\n[filter]',
            "cut",
            "[cut] detector adaptive -> none",
        ),
        ('"tiny"', '"tiny"\nchunk_frames = 4', "encode", "[encode] chunk_frames 8 -> 4"),
    ],
)
def test_a_changed_parameter_is_named_with_its_table(
    folder: Path, reference: Path, old: str, new: str, stage: str, change: str
) -> None:
    # Beside the lock of the reference, which says how it was packed.
    loaded = new_recipe(folder, "reference", options=OPTIONS.replace(old, new))
    try:
        planned = plan(loaded, reference, "cpu")
        assert f"changed parameter: {change}" in planned.lines[stage].changes
        assert f"changed parameter: {change}" in words(planned)
    finally:
        new_recipe(folder, "reference")


@pytest.mark.parametrize(
    ("stage", "old", "new", "change"),
    [
        ("keep", {}, {"motion": "motion > 0.1"}, "[keep] motion is new: motion > 0.1"),
        ("keep", {"motion": "motion > 0.1"}, {}, "[keep] motion is gone"),
        ("keep", {}, {"picks": "7" * 64}, "[keep] picks is new"),
        ("keep", {}, {"duplicates": {"max_bits": 8}}, "[duplicates] is new"),
        (
            "keep",
            {"duplicates": {"max_bits": 8}},
            {"duplicates": {"max_bits": 9}},
            "[duplicates] max_bits 8 -> 9",
        ),
        ("score", {}, {"hashes": {"version": 1}}, "[duplicates] is new"),
        ("extract", {}, {"faces": {"do": "blur"}}, "[extract] faces is new"),
        (
            "extract",
            {"faces": {"do": "blur"}},
            {"faces": {"do": "reject"}},
            "[extract] faces do blur -> reject",
        ),
        ("caption", {}, {"source_captions": "last"}, "[caption] source_captions is new: last"),
        ("filter", {"max_frames": None}, {"max_frames": 10}, "[filter] max_frames none -> 10"),
    ],
)
def test_a_change_is_said_in_the_words_of_the_recipe(
    stage: str, old: dict[str, Any], new: dict[str, Any], change: str
) -> None:
    assert differences(stage, old, new) == [f"changed parameter: {change}"]


def test_a_file_that_was_written_again_is_a_changed_input(folder: Path, data: Path) -> None:
    shutil.copy(folder / "a.mp4", folder / "edited.mp4")
    loaded = new_recipe(folder, "first", {**SOURCES, "edited": '["x"]'})
    run_build(loaded, data)
    shutil.copy(folder / "late.mp4", folder / "edited.mp4")
    lines = lines_of(loaded, data)
    assert reasons(lines) == {"download": {"changed input": 1}}
    assert run_build(loaded, data)["cut"] == lines["cut"].to_do == 1


def test_a_time_range_is_another_part_of_the_video(folder: Path, data: Path) -> None:
    loaded = new_recipe(folder, "part", {**SOURCES, "a": '["a test card"]\nend = 6'})
    lines = lines_of(loaded, data)
    assert reasons(lines)["cut"] == {"changed input": 1}
    assert (lines["cut"].video_s, promise(lines)) == (6, {"cut": 1})


def test_a_list_on_the_web_is_one_download_at_least_and_is_not_asked(
    folder: Path, tmp_path: Path
) -> None:
    source = '[[source]]\nid = "list"\nuri = "https://longtake.invalid/list"\nend = 90\n'
    (folder / "web.toml").write_text(source + '[encode]\npreset = "tiny"\n')
    lines = plan(recipe.load(folder / "web.toml"), tmp_path, "cpu").lines
    assert (lines["expand"].num_named, lines["expand"].is_exact) == (1, True)
    assert (lines["download"].num_named, lines["download"].expected.count) == (0, 1)
    assert lines["cut"].expected.count == 1


def test_stages_behind_a_model_that_is_not_here_are_not_known(folder: Path, data: Path) -> None:
    options = OPTIONS.replace('preset = "tiny"', 'preset = "tiny"\nvae = "longtake/nowhere"')
    planned = plan(new_recipe(folder, "hub", options=options), data, "cpu")
    assert list(planned.lines) == list(NAMES[: NAMES.index("encode")])
    assert "later stages are not known: cannot get the model 'longtake/nowhere'" in words(planned)
    assert not planned.is_idle


def test_a_damaged_manifest_is_as_good_as_none(folder: Path, data: Path) -> None:
    path = manifest_path(data / "tiny", "cut")
    damaged = path.read_bytes().replace(b"testsrc", b"tastsrc").replace(b'"h264"', b'"h265"')
    path.write_bytes(damaged)
    with pytest.raises(Damaged):
        record_of(data, "cut", "a-0000")
    assert plan(new_recipe(folder, "same"), data, "cpu").is_idle


def test_latents_are_counted_to_the_byte(folder: Path, data: Path) -> None:
    loaded = new_recipe(folder, "same")
    sample = record_of(data, "encode", "a-0000")
    clip = sample.clip  # type: ignore[union-attr]
    stage = stage_of("encode", loaded.setup("cpu"))
    num_bytes = sum(blob.num_bytes for blob in blobs_of(sample))
    num_bytes += sample.text.num_bytes  # type: ignore[union-attr]  # the caption by itself
    sizes = Sizes(loaded, {}).of_task(stage, clip, light=False, store=Store(data / "store"))
    assert sizes == {"latents and embeddings": num_bytes}


def test_clips_and_reels_are_counted_by_those_that_are_there(folder: Path, data: Path) -> None:
    options = OPTIONS.replace("min_frames = 20", "min_frames = 10")
    loaded = new_recipe(folder, "short", options=options)
    num_bytes = lines_of(loaded, data)["extract"].num_bytes
    run_build(loaded, data)
    clip = record_of(data, "extract", "a-0001")
    assert isinstance(clip, Clip)
    assert num_bytes == {"clips": pytest.approx(clip.blob.num_bytes, rel=0.5)}  # the reel is there


def test_reels_that_are_not_there_are_counted_by_the_second(folder: Path, reference: Path) -> None:
    loaded = new_recipe(folder, "large", options=OPTIONS.replace("size = 64", "size = 128"))
    planned = plan(loaded, reference, "cpu")
    clips = manifest.read(manifest_path(reference / "tiny", "extract"), Clip).records
    pixels = sum(clip.num_frames * clip.size**2 for clip in clips if isinstance(clip, Clip))
    per_frame = 128**2 * sum(blob.num_bytes for c in clips for blob in blobs_of(c)) / pixels
    seconds = 12 + 8
    assert planned.num_bytes["reels"] == pytest.approx(per_frame * 10 * seconds, rel=0.01)
    assert Sizes(loaded, {}).frame == pytest.approx(56_500 / 16)  # 512 x 512, where none is there


def test_a_build_notes_what_each_stage_took_and_the_plan_divides_by_it(
    folder: Path, data: Path
) -> None:
    store = Store(data / "store")
    timed = rates.read(store)
    assert {name.split()[0] for name in timed} == {"download", "cut", "extract", "encode", "shard"}
    assert timed["cut"].video_s == pytest.approx(20, abs=0.1)
    rates.path_of(store).unlink()
    rates.note(store, "cut", Rate(10, 40))
    options = '[cut]\nthreshold = 0.4\ndetector = "hash"\n' + OPTIONS
    lines = lines_of(new_recipe(folder, "cuts", options=options), data)
    assert lines["cut"].worker_s == pytest.approx(80, abs=1)
    assert lines["encode"].worker_s is None


def test_an_edited_caption_does_not_make_encoding_look_fast(folder: Path, data: Path) -> None:
    store = Store(data / "store")
    before = rates.read(store)
    run_build(new_recipe(folder, "caption", {**SOURCES, "a": '["another card"]'}), data)
    [encode] = [name for name in before if name.startswith("encode")]
    assert rates.read(store)[encode] == before[encode]
    assert rates.read(store)["shard"] != before["shard"]


def test_rates_remember_an_hour_and_no_more(store: Store) -> None:
    rates.note(store, "cut", Rate(100_000, 7200))
    rates.note(store, "cut", Rate(1, 3600))
    assert rates.read(store) == {"cut": Rate(50_001, 7200)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"not json",
        canonical.seal({"rates": {"cut": 3}}),
        canonical.seal({"rates": [1]}),
    ],
)
def test_damaged_rates_are_no_rates(store: Store, content: bytes) -> None:
    rates.path_of(store).write_bytes(content)
    assert rates.read(store) == {}
    rates.note(store, "cut", Rate(1, 2))
    assert rates.read(store) == {"cut": Rate(1, 2)}


def test_the_command_prints_a_table_of_80_columns_with_reasons_under_it(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_recipe(folder, "short", options=OPTIONS.replace("min_frames = 20", "min_frames = 10"))
    monkeypatch.setitem(PLAIN, "COLUMNS", "80")
    output = longtake("plan", folder / "short.toml", "--data", data)
    assert (output.returncode, output.stderr) == (0, "")
    rows = [line.split()[:4] for line in output.stdout.splitlines() if line.startswith(" ")]
    rows = [row for row in rows if row and row[0] in NAMES]
    assert [row[0] for row in rows] == list(NAMES)
    assert rows[NAMES.index("filter")] == ["filter", "4", "0"]
    assert rows[NAMES.index("extract")][:3] == ["extract", "5", "1"]
    assert rows[NAMES.index("encode")] == ["encode", "7", "about", "1"]
    assert "extract: 1 changed input (a-0001)" in output.stdout
    assert "time: " in output.stdout
    assert "disk: about " in output.stdout
