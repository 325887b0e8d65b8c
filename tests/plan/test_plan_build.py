"""`plan`: what it promises, and that a build then does exactly that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import canonical
from pipeline.core.executors import Inline
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, rates, recipe
from pipeline.dataset.rates import Rate
from pipeline.plan import plan
from pipeline.plan.forecast import Line
from pipeline.plan.past import Past
from pipeline.stages import cut
from tests.making import footage
from tests.making.command import PLAIN, longtake

OPTIONS = """
[filter]
min_frames = 20
max_frames = 60
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


def written(
    folder: Path, stem: str, sources: dict[str, str] = SOURCES, options: str = OPTIONS
) -> recipe.Loaded:
    """A recipe of the dataset `tiny`, beside the others."""
    text = "\n".join(
        f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = {caption}'
        for key, caption in sources.items()
    )
    (folder / f"{stem}.toml").write_text(f'name = "tiny"\n{text}\n{options}')
    return recipe.load(folder / f"{stem}.toml")


def built(loaded: recipe.Loaded, data: Path) -> dict[str, int]:
    """Build; how many tasks each stage really ran."""
    started: dict[str, int] = {}
    progress = Progress(start=lambda stage, count, cost: started.update({stage: count}))
    list(build.build(loaded, data, Inline(), "cpu", "shard", progress))
    return {stage: count for stage, count in started.items() if stage != "expand"}


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("reference")
    built(written(folder, "reference"), data)
    return data


@pytest.fixture
def data(reference: Path, tmp_path: Path) -> Path:
    """A copy of the data folder after a whole build."""
    return Path(shutil.copytree(reference, tmp_path / "data"))


def planned(loaded: recipe.Loaded, data: Path) -> dict[str, Line]:
    """The plan's lines that have something to do."""
    return {
        name: line for name, line in plan.of(loaded, data, "cpu").lines.items() if not line.is_idle
    }


def reasons(lines: dict[str, Line]) -> dict[str, dict[str, int]]:
    return {
        name: {reason: len(keys) for reason, keys in line.reasons.items()}
        for name, line in lines.items()
    }


def promise(lines: dict[str, Line]) -> dict[str, int]:
    """What is promised exactly."""
    return {name: line.num_named for name, line in lines.items() if line.is_exact}


def said(made: plan.Plan) -> str:
    return "\n".join(plan.sentences(made))


def test_of_what_is_built_nothing_is_to_do_and_nothing_is_touched(folder: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    made = plan.of(written(folder, "same"), data, "cpu")
    assert made.is_idle
    assert said(made) == "nothing to do: everything was built before"
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert {name: line.num_done for name, line in made.lines.items()} == {
        "download": 3,
        "cut": 2,  # the twin is cut with b
        "filter": 4,
        "extract": 5,
        "encode": 7,
        "shard": 3,
    }
    assert built(written(folder, "same"), data) == {}


def test_an_empty_folder_is_said_to_be_known_stage_by_stage_and_stays_empty(
    folder: Path, tmp_path: Path
) -> None:
    made = plan.of(written(folder, "fresh"), tmp_path / "none", "cpu")
    assert list(tmp_path.iterdir()) == []
    assert reasons({"download": made.lines["download"]}) == {"download": {"never built": 3}}
    assert made.lines["cut"].to_do == 3
    assert {made.lines[name].waits_for for name in ("filter", "extract", "encode", "shard")} == {
        "cut"
    }
    assert "filter, extract, encode, shard: known once `cut` has run" in said(made)
    assert "no estimate: nothing has been timed here yet" in said(made)
    assert (
        promise(made.lines)["download"]
        == built(written(folder, "fresh"), tmp_path / "none")["download"]
        == 3
    )


def test_a_new_source_is_named_and_what_follows_is_judged_by_the_last_build(
    folder: Path, data: Path
) -> None:
    loaded = written(folder, "new", {**SOURCES, "late": '["a late one"]'})
    lines = planned(loaded, data)
    assert reasons({"download": lines["download"]}) == {"download": {"new source": 1}}
    assert lines["download"].reasons == {"new source": ["late"]}
    past = Past.read(data / "tiny")
    assert lines["cut"].about.count == 1
    assert lines["cut"].about.video_s == pytest.approx((12 + 8 + 8) / 3, abs=0.1)
    assert lines["filter"].about.count == pytest.approx(5 / 3)  # five scenes of three videos
    new = len(past.records["encode"]) / 3
    assert lines["encode"].about.count == pytest.approx(new)
    shards = len(past.records["shard"])
    assert lines["shard"].about.count == pytest.approx(
        shards / 3 + shards * new / (new + 1)
    )  # one of its own, and those that move
    assert not any(line.is_exact for name, line in lines.items() if name != "download")
    ran = built(loaded, data)
    assert ran["download"] == promise(lines)["download"] == 1


def test_another_min_frames_is_told_old_and_new_and_foreseen_as_far_as_clips(
    folder: Path, data: Path
) -> None:
    loaded = written(folder, "short", options=OPTIONS.replace("min_frames = 20", "min_frames = 10"))
    lines = planned(loaded, data)
    assert reasons(lines)["filter"] == {"changed parameter: [filter] min_frames 20 -> 10": 4}
    assert reasons(lines)["extract"] == {"changed input: no such scene before": 1}
    assert lines["extract"].reasons["changed input: no such scene before"] == ["a-0001"]
    assert promise(lines) == {"filter": 4, "extract": 1}
    assert reasons(lines)["encode"] == {"on what `extract` will make": 1}
    assert built(loaded, data) == {name: line.to_do for name, line in lines.items()}


def test_an_edited_caption_embeds_text_and_decodes_nothing(folder: Path, data: Path) -> None:
    loaded = written(folder, "caption", {**SOURCES, "a": '["another card"]'})
    lines = planned(loaded, data)
    assert reasons(lines)["encode"] == {"edited caption": 3}
    assert (lines["encode"].num_light, lines["encode"].video_s, lines["encode"].seconds) == (
        3,
        0,
        0,
    )
    assert set(reasons(lines)["shard"]) <= {"edited caption", "on what `encode` will make"}
    assert promise(lines)["encode"] == 3
    assert built(loaded, data) == {name: line.to_do for name, line in lines.items()}


@pytest.mark.parametrize(
    ("stage", "what"), [("download", "blob"), ("extract", "blob"), ("encode", "latents")]
)
def test_a_deleted_blob_costs_its_own_task_alone(
    folder: Path, data: Path, stage: str, what: str
) -> None:
    record = Past.read(data / "tiny").records[stage]["a" if stage == "download" else "a-0000"]
    Store(data / "store").path(getattr(record, what).sha256).unlink()
    loaded = written(folder, "deleted")
    lines = planned(loaded, data)
    assert reasons(lines) == {
        stage: {"missing blob: it was made before, and the store no longer has it whole": 1}
    }
    assert built(loaded, data) == promise(lines) == {stage: 1}


def test_status_counts_a_deleted_raw_video_as_pending(folder: Path, data: Path) -> None:
    Store(data / "store").path(
        Past.read(data / "tiny").records["download"]["a"].blob.sha256
    ).unlink()  # type: ignore[union-attr]
    assert next(build.look(written(folder, "deleted"), data, "cpu")).num_pending == 1


def test_a_stage_version_is_told_old_and_new(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = written(folder, "version")
    monkeypatch.setattr(cut, "VERSION", cut.VERSION + 1)
    lines = planned(loaded, data)
    assert reasons(lines)["cut"] == {f"stage version: {cut.VERSION - 1} -> {cut.VERSION}": 2}
    assert lines["cut"].video_s == pytest.approx(20, abs=0.1)
    assert lines["filter"].about.count == pytest.approx(5, rel=0.3)
    assert promise(lines) == {"cut": 2}
    assert built(loaded, data)["cut"] == 2


def test_a_missing_file_is_said_to_be_missing_and_then_to_be_tried_again(
    folder: Path, data: Path
) -> None:
    loaded = written(folder, "missing")
    (folder / "a.mp4").rename(folder / "away.mp4")
    try:
        lines = planned(loaded, data)
        assert reasons({"download": lines["download"]}) == {
            "download": {"no such file: file:a.mp4": 1}
        }
        assert promise(lines)["download"] == 1
        assert built(loaded, data) == {name: line.to_do for name, line in lines.items()}
        assert reasons(planned(loaded, data)) == {"download": {"tried again: not-found": 1}}
    finally:
        (folder / "away.mp4").rename(folder / "a.mp4")


@pytest.mark.parametrize(
    ("old", "new", "stage", "reason", "count"),
    [
        (
            "max_samples = 3",
            "max_samples = 4",
            "shard",
            "changed parameter: [shard] max_samples 3 -> 4",
            2,
        ),
        (
            "psnr_share = 0.5",
            "psnr_share = 1",
            "encode",
            "changed parameter: [encode] psnr_share",
            None,
        ),
        (
            "size = 64",
            "size = 64\nfps = 8",
            "filter",
            "changed parameter: [extract] fps 10 -> 8",
            None,
        ),
        ("size = 64", "size = 72", "extract", "changed parameter: [extract] size 64 -> 72", 5),
        (
            "[filter]",
            '[cut]\ndetector = "none"\n[filter]',
            "cut",
            "changed parameter: [cut] detector adaptive -> none",
            2,
        ),
        (
            '"tiny"',
            '"tiny"\npad_token = 0',
            "encode",
            "changed parameter: [encode] pad_token 49407 -> 0",
            5,
        ),
    ],
)
def test_a_changed_parameter_is_named_with_its_table(
    folder: Path, reference: Path, old: str, new: str, stage: str, reason: str, count: int | None
) -> None:
    loaded = written(
        folder, "reference", options=OPTIONS.replace(old, new)
    )  # beside the lock of the reference
    try:
        found = reasons(planned(loaded, reference))[stage]
    finally:
        written(folder, "reference")
    assert found.keys() == {reason}
    assert count is None or found[reason] >= count


def test_a_stage_of_which_no_task_can_be_named_still_says_what_has_changed(
    folder: Path, data: Path
) -> None:
    made = plan.of(
        written(
            folder,
            "two",
            options='[cut]\ndetector = "none"\n'
            + OPTIONS.replace("min_frames = 20", "min_frames = 10"),
        ),
        data,
        "cpu",
    )
    assert "; changed parameter: [filter] min_frames 20 -> 10\n" in said(made)


def test_a_file_that_was_written_again_is_a_changed_input(folder: Path, data: Path) -> None:
    shutil.copy(folder / "a.mp4", folder / "edited.mp4")
    loaded = written(folder, "first", {**SOURCES, "edited": '["x"]'})
    built(loaded, data)
    shutil.copy(folder / "late.mp4", folder / "edited.mp4")
    lines = planned(loaded, data)
    assert reasons({"download": lines["download"]}) == {
        "download": {
            "changed input: the file was moved, copied or edited; the same bytes cost "
            "nothing more": 1
        }
    }
    assert built(loaded, data)["cut"] == lines["cut"].to_do == 1


def test_a_time_range_is_another_part_of_the_video(folder: Path, data: Path) -> None:
    loaded = written(folder, "part", {**SOURCES, "a": '["a test card"]\nend = 6'})
    lines = planned(loaded, data)
    assert reasons({"cut": lines["cut"]}) == {
        "cut": {"changed input: another part of the video": 1}
    }
    assert (lines["cut"].video_s, promise(lines)) == (6, {"cut": 1})


def test_a_list_on_the_web_is_one_download_at_least_and_is_not_asked(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "web.toml").write_text(
        '[[source]]\nid = "list"\nuri = "https://longtake.invalid/list"\nend = 90\n'
        '[encode]\npreset = "tiny"\n'
    )
    lines = plan.of(recipe.load(folder / "web.toml"), tmp_path, "cpu").lines
    assert (lines["download"].num_named, lines["download"].is_exact) == (1, False)
    assert (lines["cut"].about.count, lines["cut"].about.video_s) == (1, 90)


def test_stages_behind_a_model_that_is_not_here_are_not_known(folder: Path, data: Path) -> None:
    loaded = written(
        folder,
        "hub",
        options=OPTIONS.replace('preset = "tiny"', 'preset = "tiny"\nvae = "longtake/nowhere"'),
    )
    made = plan.of(loaded, data, "cpu")
    assert list(made.lines) == ["download", "cut", "filter", "extract"]
    assert "later stages are not known: cannot get the model 'longtake/nowhere'" in said(made)
    assert not made.is_idle


def test_a_damaged_manifest_is_as_good_as_none(folder: Path, data: Path) -> None:
    path = data / "tiny" / "2-cut.jsonl"
    path.write_bytes(
        path.read_bytes().replace(b"testsrc", b"tastsrc").replace(b'"h264"', b'"h265"')
    )
    assert "cut" not in Past.read(data / "tiny").manifests
    assert plan.of(written(folder, "same"), data, "cpu").is_idle


def test_latents_are_counted_to_the_byte_and_reels_by_the_clips_that_are_there(
    folder: Path, data: Path
) -> None:
    loaded = written(folder, "short", options=OPTIONS.replace("min_frames = 20", "min_frames = 10"))
    lines = planned(loaded, data)
    built(loaded, data)
    past = Past.read(data / "tiny")
    clip, sample = past.records["extract"]["a-0001"], past.records["encode"]["a-0001"]
    wanted = sum(blob.num_bytes for blob in build.blobs_of(sample))
    assert lines["encode"].num_bytes == {"latents and embeddings": wanted}
    assert lines["extract"].num_bytes["clips"] == pytest.approx(clip.blob.num_bytes, rel=0.5)  # type: ignore[union-attr]
    assert "reels" not in lines["extract"].num_bytes  # they are there


def test_reels_that_are_not_there_are_counted_by_the_second(folder: Path, reference: Path) -> None:
    lines = planned(
        written(folder, "large", options=OPTIONS.replace("size = 64", "size = 128")), reference
    )
    per_frame = Past.read(reference / "tiny").frame_bytes(128)
    assert lines["extract"].num_bytes["reels"] == pytest.approx(
        per_frame * 10 * 20, rel=0.01
    )  # 12 s and 8 s
    assert Past({}).frame_bytes(512) == 56_500


def test_a_build_notes_what_each_stage_took_and_the_plan_divides_by_it(
    folder: Path, data: Path
) -> None:
    store = Store(data / "store")
    found = rates.read(store)
    assert {name.split()[0] for name in found} == {
        "download",
        "cut",
        "filter",
        "extract",
        "encode",
        "shard",
    }
    assert found["cut"].video_s == pytest.approx(20, abs=0.1)
    rates.path_of(store).unlink()
    rates.note(store, "cut", Rate(10, 40))
    lines = planned(
        written(
            folder,
            "cuts",
            options='[cut]\nthreshold = 3\ndetector = "hash"\n'.replace("3", "0.4") + OPTIONS,
        ),
        data,
    )
    assert lines["cut"].worker_s == pytest.approx(80, abs=1)
    assert lines["encode"].worker_s is None


def test_an_edited_caption_does_not_make_encoding_look_fast(folder: Path, data: Path) -> None:
    store = Store(data / "store")
    before = rates.read(store)
    built(written(folder, "caption", {**SOURCES, "a": '["another card"]'}), data)
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
    written(folder, "short", options=OPTIONS.replace("min_frames = 20", "min_frames = 10"))
    monkeypatch.setitem(PLAIN, "COLUMNS", "80")
    told = longtake("plan", folder / "short.toml", "--data", data)
    assert (told.returncode, told.stderr) == (0, "")
    rows = [line.split()[:4] for line in told.stdout.splitlines() if line.startswith(" ")]
    assert [row for row in rows if row and row[0] in build.NAMES] == [
        ["download", "3", "0"],
        ["cut", "2", "0"],
        ["filter", "0", "4", "20"],
        ["extract", "5", "1", "1"],
        ["encode", "7", "about", "1"],
        ["shard", "0", "about", "3"],
    ]
    assert (
        "filter: 4 changed parameter: [filter] min_frames 20 -> 10 (a-0000, a-0001, a-0002, ...)"
        in told.stdout
    )
    assert "time: " in told.stdout
    assert "disk: about " in told.stdout
