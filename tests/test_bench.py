"""The benchmark runs, its ratios are numbers, and its page keeps what others wrote. No claim about
time is made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.store import Store
from pipeline.media import reel
from pipeline.media.detectors import scdet
from pipeline.media.matching import pairs_of
from tests import bench, bench_duplicates, bench_scores
from tests.bench import Row
from tests.making import footage

SMALL = reel.Params(size=64)


@pytest.fixture
def two_takes(film: Callable[..., Path]) -> Path:
    return film(footage.joined, [10.4], seconds=20.8, fps=10, size="160x90")


def sound(rows: list[Row], count: int, repeats: int = 1) -> bool:
    ratios = [ratio for row in rows for ratio in row.ratios]
    return (
        len(rows) == count
        and len(ratios) == count * repeats
        and all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
    )


def test_cutting_and_extracting_is_measured_step_by_step(two_takes: Path, tmp_path: Path) -> None:
    rows = bench.cut_and_extract([two_takes], tmp_path, 1, SMALL)
    assert sound(rows, 2 + 4 * len(bench.DETECTORS))
    assert [row.promise for row in rows].count(("<=", 1.7)) == len(bench.DETECTORS)
    assert not list(tmp_path.iterdir())


def test_a_workers_first_video_is_not_counted(
    two_takes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "FILES", 2)
    copies = bench.copies(two_takes, 2)
    assert copies[0].read_bytes() != copies[1].read_bytes()
    assert bench.pace(bench.do_decode, copies, 1, tmp_path).cpu_s > 0


def test_encoding_is_measured_on_every_frame_of_the_clips(two_takes: Path, tmp_path: Path) -> None:
    rows = bench.encoding(two_takes, tmp_path, 1, size=64)
    assert sound(rows, 3)
    assert rows[-1].ratios[0] < 1  # the VAE's time is a part of the stage's


def test_shards_are_measured_against_both_writers(
    two_takes: Path, store: Store, tmp_path: Path
) -> None:
    clips, _ = bench.make_clips(bench.take_in(two_takes, store), store, scdet.Scdet(), SMALL)
    assert len(clips) == 2
    assert sound(
        bench.sharding(clips[0], tmp_path / "scratch", 2, num_bytes=7_000_000), 8, repeats=2
    )


def row(measured: float, floor: float, promise: Any = None) -> Row:
    return Row("something", "s", "the floor", promise, [measured], [floor])


def test_a_promise_holds_or_does_not() -> None:
    assert row(5, 2, ("<=", 2.5)).holds is True
    assert row(5.1, 2, ("<=", 2.5)).holds is False
    assert row(19, 20, (">=", 0.95)).holds is True
    assert row(18, 20, (">=", 0.95)).holds is False
    assert row(1, 1).holds is None
    assert row(18, 20, (">=", 0.95)).cells() == [
        "something",
        "18 s",
        "20, the floor",
        "0.90",
        ">= 0.95",
        "NO",
    ]


def test_only_the_text_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    cuts = "# Benchmarks\n\n## Cut detection\n\n<!-- cuts:begin -->\n| a |\n<!-- cuts:end -->\n"
    page.write_text(cuts)
    bench.write(page, "first\n")
    assert (
        page.read_text() == f"{cuts}\n## Speed\n\n<!-- speed:begin -->\nfirst\n<!-- speed:end -->\n"
    )
    page.write_text(page.read_text() + "\nafter\n")
    bench.write(page, "second\n")
    assert (
        page.read_text()
        == f"{cuts}\n## Speed\n\n<!-- speed:begin -->\nsecond\n<!-- speed:end -->\n\nafter\n"
    )


def test_a_page_that_is_not_there_is_begun(tmp_path: Path) -> None:
    bench.write(tmp_path / "new.md", "text\n")
    assert (
        tmp_path / "new.md"
    ).read_text() == "# Benchmarks\n\n## Speed\n\n<!-- speed:begin -->\ntext\n<!-- speed:end -->\n"


def test_the_table_names_the_machine_and_no_host(tmp_path: Path) -> None:
    import socket

    text = bench.as_markdown([row(1, 2)], bench.machine(), 1)
    assert "| something | 1 s | 2, the floor | 0.50 |" in text
    assert "cores" in text
    assert socket.gethostname() not in text


def test_scoring_is_measured_by_scorer_and_as_a_stage(two_takes: Path, tmp_path: Path) -> None:
    rows = bench.scoring(two_takes, tmp_path, 1, SMALL)
    assert sound(rows, len(bench_scores.installed()) + 1 + len(bench_scores.SETS))


def test_finding_near_duplicates_is_measured_and_finds_the_copies() -> None:
    row = bench.matching(100_000, 1)
    assert sound([row], 1)
    clips, num_copies = bench_duplicates.made_up(20_000)
    pairs = {(pair.first, pair.second) for pair in pairs_of(clips, bench_duplicates.LIMITS)}
    copies = {(number, len(clips) - num_copies + number) for number in range(num_copies)}
    assert pairs <= copies
    assert len(pairs) >= 0.9 * num_copies
