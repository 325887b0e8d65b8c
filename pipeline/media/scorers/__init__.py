"""The scorers that a recipe may name, in one list.

A new one is a file in this folder and its name in MODULES: the recipe's keys, their help, the JSON
schema and error messages follow from there. What each means and how it was checked is in
docs/scores.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator

from pipeline.core.params import Table
from pipeline.media.scorers.scorer import Score as Score
from pipeline.media.scorers.scorer import Scorer as Scorer

MODULES = (
    "motion",
    "camera",
    "distinct",
    "exposure",
    "sharpness",
    "inner_cut",
    "compression",
    "text",
    "faces",
    "nsfw",
)
SCORERS: Mapping[str, type[Scorer]] = {
    scorer.name: scorer
    for name in MODULES
    for scorer in import_module(f"{__name__}.{name}").SCORERS
}
# those that need no package, cost little, and offend nobody
DEFAULT = ("motion", "camera", "distinct", "exposure", "sharpness", "inner_cut", "compression")
SCORES: Mapping[str, Score] = {
    score.name: score for scorer in SCORERS.values() for score in scorer.scores
}


if TYPE_CHECKING:
    ScorerName = str
else:
    ScorerName = Literal[tuple(SCORERS)]


class Choice(Table):
    """`[score]`: what is measured of every clip. Options of a scorer are a table `[score.NAME]`."""

    scorers: tuple[ScorerName, ...] = Field(
        default=DEFAULT,
        description="What is measured of every clip; without a [score] table, nothing.",
    )

    @field_validator("scorers")
    @classmethod
    def _differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a scorer is there twice")
        return names

    @property
    def chosen(self) -> tuple[Scorer, ...]:
        """The scorers with their options, in the order of MODULES."""
        return tuple(
            getattr(self, name, None) or kind()
            for name, kind in SCORERS.items()
            if name in self.scorers
        )

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that a clip gets, in order."""
        return tuple(score.name for scorer in self.chosen for score in scorer.scores)


def _tables_of_scorers() -> dict[str, Any]:
    """The table of each scorer that has options."""
    return {name: (kind, kind()) for name, kind in SCORERS.items() if kind.model_fields}


Params: type[Choice] = create_model("Params", __base__=Choice, **_tables_of_scorers())


def scorer_of(score: str) -> str:
    """The scorer that gives a score. Raises KeyError."""
    names = {score.name: name for name, kind in SCORERS.items() for score in kind.scores}
    return names[score]
