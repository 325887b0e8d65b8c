"""What the scores of a dataset's clips say: how they are spread, what each rule drops."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import RecipeError
from pipeline.core.expression import Expression
from pipeline.core.files import replace_file
from pipeline.core.records import Clip, source_of
from pipeline.dataset.chain import read_manifest
from pipeline.dataset.recipe import Loaded
from pipeline.media import scorers
from pipeline.stages import keep

QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}
QUANTILES |= {"most": 1.0}


def clips_of(loaded: Loaded, data: Path) -> list[Clip]:
    """Every clip that was scored, those that rules drop too. Raises RecipeError where there is
    none.
    """
    records = read_manifest(data / loaded.recipe.name, "score").records
    clips = [record for record in records if isinstance(record, Clip)]
    if not any(clip.scores for clip in clips):
        measured = loaded.setup("auto", offline=True).table(scorers.Params).score_names
        hint = "build it again" if measured else "write a [score] table into the recipe and build"
        raise RecipeError(f"{loaded.path}: no clip has scores: {hint}")
    return clips


def described(loaded: Loaded) -> dict[str, scorers.Score]:
    """What each score means that the recipe could ask for, by name."""
    table = loaded.setup("auto", offline=True).table(scorers.Params)
    return table.described(loaded.folder)


def summary(loaded: Loaded, clips: Sequence[Clip]) -> dict[str, Any]:
    """Quantiles by score, and what the recipe's rules drop, as plain JSON. Raises RecipeError for a
    rule whose score the clips do not have yet.
    """
    names = list(dict.fromkeys(name for clip in clips for name, _ in clip.scores))
    rules = keep.rules_of(loaded.setup("auto", offline=True))
    for name, rule in rules.items():
        if missing := set(rule.names) - set(names):
            raise RecipeError(
                f"{loaded.path}: keep.{name}: '{min(missing)}' was not measured yet: "
                "build as far as 'score'"
            )
    units = {name: score.unit for name, score in described(loaded).items()}
    spreads = [_spread(name, units.get(name, ""), clips) for name in names]
    return {"scores": spreads, **_choice(rules, clips)}


def _spread(name: str, unit: str, clips: Sequence[Clip]) -> dict[str, Any]:
    """How the values of one score are spread."""
    values = [dict(clip.scores)[name] for clip in clips]
    numbers = sorted(value for value in values if value is not None)
    return {
        "score": name,
        "unit": unit,
        "nulls": len(values) - len(numbers),
        "quantiles": {
            words: quantile(numbers, share) if numbers else None
            for words, share in QUANTILES.items()
        },
    }


def quantile(numbers: Sequence[float], share: float) -> float:
    """The number at this share of the way from the least to the most."""
    import numpy as np

    return float(np.quantile(numbers, share))


def _choice(rules: Mapping[str, Expression], clips: Sequence[Clip]) -> dict[str, Any]:
    """What each rule drops, and what all of them do."""
    drops: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    num_dropped = 0
    for clip in clips:
        values = dict(clip.scores)
        verdicts = {name: rule.holds(values) for name, rule in rules.items()}
        broken = [name for name, verdict in verdicts.items() if verdict is False]
        drops.update(broken)
        unknown.update(name for name, verdict in verdicts.items() if verdict is None)
        alone.update(broken if len(broken) == 1 else ())
        num_dropped += bool(broken)
    rows = [
        {
            "rule": name,
            "text": rule.text,
            "drops": drops[name],
            "drops_alone": alone[name],
            "unknown": unknown[name],
        }
        for name, rule in rules.items()
    ]
    return {"rules": rows, "dropped": num_dropped, "kept": len(clips) - num_dropped}


def rows_of(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """A row a clip: its key, source, place and length, and its scores."""
    return [
        {
            "key": clip.key,
            "source": source_of(clip).key,
            "start_s": float(clip.scene.start_pts * clip.scene.time_base),
            "duration_s": float(clip.duration_s),
            **dict(clip.scores),
        }
        for clip in clips
    ]


def write_csv(clips: Sequence[Clip], path: Path) -> None:
    """A comma-separated table; what was not measured is empty."""
    rows = rows_of(clips)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def write_parquet(clips: Sequence[Clip], path: Path) -> None:
    """A parquet table; what was not measured is null."""
    import pyarrow
    from pyarrow import parquet

    content = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows_of(clips)), content)
    replace_file(path, content.getvalue().to_pybytes())
