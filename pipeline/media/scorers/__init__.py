"""The scorers that a recipe may name, in one list.

A new one is a file in this folder and its name in MODULES: the recipe's keys, their help, the JSON
schema and error messages follow from there. What each means and how it was checked is in
docs/scores.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

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
    "head",
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

    @model_validator(mode="after")
    def _are_whole(self) -> Choice:
        for scorer in self.chosen:
            if problem := scorer.problem():
                raise ValueError(f"the scorer '{scorer.name}': {problem}")
        for name in self._options("head").score_names:
            if name in SCORES:
                raise ValueError(f"a head cannot be called '{name}': that is a score already")
        return self

    def _options(self, name: str) -> Scorer:
        options: Scorer = getattr(self, name, None) or SCORERS[name]()
        return options

    @property
    def chosen(self) -> tuple[Scorer, ...]:
        """The scorers with their options, in the order of MODULES."""
        return tuple(self._options(name) for name in SCORERS if name in self.scorers)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that a clip gets, in order."""
        return tuple(name for scorer in self.chosen for name in scorer.score_names)

    @property
    def givers(self) -> dict[str, str]:
        """The scorer of every score that this recipe could ask for, by the score's name."""
        tables = {name: self._options(name).score_names for name in SCORERS}
        return {score: name for name, scores in tables.items() for score in scores}

    def described(self, folder: Path) -> dict[str, Score]:
        """What each score means, by name: those of every scorer, and the heads that this recipe,
        which lies in `folder`, names.
        """
        heads = self._options("head").described(folder)
        return {**SCORES, **{score.name: score for score in heads}}


def _tables_of_scorers() -> dict[str, Any]:
    """The table of each scorer that has options; of one whose options the recipe names, None."""
    options = {name: (kind, kind()) for name, kind in SCORERS.items() if kind.model_fields}
    named = {
        name: (kind | None, None)
        for name, kind in SCORERS.items()
        if kind.model_config.get("extra") == "allow"
    }
    return {**options, **named}


Params: type[Choice] = create_model("Params", __base__=Choice, **_tables_of_scorers())
