"""The corpus of damaged videos is the same for the same seed, and its figures add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import salvage


def test_a_corpus_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    outcomes, again = (list(salvage.corpus(tmp_path, 4, seed)) for seed in (3, 3))
    assert outcomes == again
    assert {outcome.damage for outcome in outcomes} == {"cut"}
    assert all(outcome.num_frames == 200 for outcome in outcomes)
    assert all(0 <= outcome.num_wrong <= outcome.num_used <= 200 for outcome in outcomes)
    assert salvage.table(outcomes).splitlines()[-1].startswith("| all | 4 | ")


def test_a_frame_is_like_the_one_it_is_most_like() -> None:
    filmed = np.stack([np.full(64, level, np.float32) for level in (0, 100, 200)])
    levels = salvage.psnr(filmed[[2, 0]] + np.array([[1], [50]], np.float32), filmed)
    assert levels[0] > salvage.LIKE_DB > levels[1]
