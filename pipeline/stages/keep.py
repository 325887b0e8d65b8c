"""Clip -> Clip or Rejection: the recipe's rules over the scores, people's picks, near-duplicates.

A clip that was picked by hand stays or goes as it was picked. Any other stays unless a rule is
false of it; the first rule that is, in the recipe's order, is the class of its rejection. Where a
score could not be measured, a rule that depends on it is neither true nor false, and drops nothing.
Of clips that stay and show the same, the best one does if the recipe has [duplicates]
(media/duplicates.py); one that was picked stays.
Another rule, pick or option runs no scorer, no decoder and no encoder.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from pipeline.core import canonical, expression
from pipeline.core import picks as hand
from pipeline.core.errors import CAUSES, REASONS, BadData, RecipeError, Unchosen
from pipeline.core.expression import Expression
from pipeline.core.params import Setup, Table
from pipeline.core.picks import Pick
from pipeline.core.records import Clip
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import duplicates, scorers
from pipeline.media.duplicates import Overview

VERSION = 1
PICKED = "picked"  # the class of clips that were rejected by hand
DUPLICATES = "duplicates"  # what the manifest calls the options of near-duplicates
MAKES = Clip
RULE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
MAX_RULES = 100
# What is broken by anybody's taste. They are for recipes that have [score] and no [keep].
DEFAULT = {
    "black": "black < 0.9",
    "still": "motion > 0.001 or distinct > 0.5",
}


def _checked(text: str) -> str:
    expression.parse(text)
    return text


Rule = Annotated[str, AfterValidator(_checked)]


class Params(Table):
    """`[keep]`: rules by name, each a comparison of scores that is true of clips that stay, such as
    `still = "motion > 0.05 or object_motion > 0.02"`. Without the table, and with [score]: no
    clip that is black or still.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Rule]

    picks: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="A file beside the recipe with clips kept and rejected by hand, as `make "
        "browse` writes it: NAME.picks.jsonl. What was picked counts whatever the rules say.",
    )

    @model_validator(mode="before")
    @classmethod
    def _names(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if not RULE_NAME.fullmatch(str(name)):
                raise ValueError(
                    f"{name!r} is no name for a rule: up to 40 of a-z, 0-9, - and _, a letter first"
                )
            if name in REASONS | CAUSES | {PICKED, DUPLICATES}:
                raise ValueError(
                    f"a rule cannot be called '{name}': other rejections are; take another name"
                )
        if isinstance(values, dict) and len(values) > MAX_RULES:
            raise ValueError(f"at most {MAX_RULES} rules")
        return values

    def rules(self, measured: tuple[str, ...]) -> dict[str, Expression]:
        """The rules by name, parsed."""
        return {name: expression.parse(text) for name, text in self.__pydantic_extra__.items()}


class _Without(Params):
    """No [keep]: the rules nobody argues about, as far as their scores are measured."""

    def rules(self, measured: tuple[str, ...]) -> dict[str, Expression]:
        rules = {name: expression.parse(text) for name, text in DEFAULT.items()}
        return {name: rule for name, rule in rules.items() if set(rule.names) <= set(measured)}


WITHOUT = _Without.model_validate({})


def stage(setup: Setup) -> Stage:
    rules, picks = rules_of(setup), picks_of(setup)
    params: dict[str, Any] = {name: rule.text for name, rule in rules.items()}
    if picks_path(setup) is not None:
        params["picks"] = digest_of(picks)
    alike = setup.find(duplicates.Params)
    if alike is not None:
        params[DUPLICATES] = {"version": duplicates.VERSION, **alike.model_dump()}
    return Stage(
        name="keep",
        version=VERSION,
        params=params,
        makes=MAKES,
        process=partial(process, rules=rules, picks=picks),
        overview=partial(near_duplicates, setup=setup),
        pure=always,
        local=True,
    )


def rules_of(setup: Setup) -> dict[str, Expression]:
    """The rules of a recipe, by name, in its order."""
    measured = setup.table(scorers.Params).score_names
    return setup.table(Params).rules(measured)


def picks_path(setup: Setup) -> Path | None:
    """The file of picks that the recipe names."""
    name = setup.table(Params).picks
    return None if name is None else setup.folder / name


def picks_of(setup: Setup) -> Mapping[str, Pick]:
    """The picks that count, by the clip's digest: those that `setup` has, or as they are in the
    file now. Raises RecipeError with the line that is none.
    """
    if setup.picks is not None:
        return setup.picks()
    path = picks_path(setup)
    return {} if path is None else hand.last_of_each(hand.read(path))


def digest_of(picks: Mapping[str, Pick]) -> str:
    """Of what was picked, whoever did it when and wrote what beside it."""
    return canonical.digest({clip: pick.pick for clip, pick in picks.items()})


def check_picks(setup: Setup) -> None:
    """Raises RecipeError for a file of picks that is not there. (A rebuild needs none: what was
    picked is in the lock.)
    """
    path = picks_path(setup)
    if path is not None and not path.exists():
        raise RecipeError(
            f"keep.picks: there is no file {path}; put the picks there that the page gave you "
            "(`make browse` writes them there itself), or take the line out of the recipe"
        )


def problems(setup: Setup) -> Iterator[tuple[str, str]]:
    """Rules that name a score which is not measured: their names, and what to do about it."""
    table = setup.table(scorers.Params)
    for name, rule in rules_of(setup).items():
        for score in rule.names:
            if score not in table.score_names:
                yield name, _unknown(score, table)
                break


def _unknown(score: str, table: scorers.Choice) -> str:
    measured, givers = table.score_names, table.givers
    if score in givers:
        return f"'{score}' is not measured: add \"{givers[score]}\" to scorers under [score]"
    near = difflib.get_close_matches(score, givers, 1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    listed = ", ".join(measured) or 'nothing: write scorers = ["motion", ...] under [score]'
    return f"no score is called '{score}'; {hint}measured are {listed}"


def always(clip: Clip) -> bool:
    """Every clip is judged anew: the arithmetic takes less time than a memo."""
    return True


def near_duplicates(clips: Sequence[Clip], setup: Setup) -> Overview:
    """The near-duplicates among the clips that rules and picks let stay."""
    params = setup.find(duplicates.Params)
    if params is None:
        return duplicates.NOTHING
    rules, picks = rules_of(setup), picks_of(setup)
    staying = [clip for clip in clips if dropped(clip, rules, picks) is None]
    picked = {clip.key for clip in staying if clip.blob.sha256 in picks}
    return duplicates.overview_of(staying, picked, params)


def process(
    clip: Clip,
    store: Store,
    rules: Mapping[str, Expression],
    picks: Mapping[str, Pick],
    overview: Overview,
) -> Iterator[Clip | BadData]:
    """Judge one clip."""
    reason = dropped(clip, rules, picks)
    if reason is not None:
        yield reason
    elif clip.key in overview.losers:
        yield BadData("duplicate", str(overview.losers[clip.key]))
    else:
        group = overview.split_groups.get(clip.scene.video.blob.sha256)
        yield replace(clip, hashes="", split_group=group)


def dropped(
    clip: Clip, rules: Mapping[str, Expression], picks: Mapping[str, Pick]
) -> Unchosen | None:
    """Why rules or picks drop a clip; None if it stays."""
    pick = picks.get(clip.blob.sha256)
    if pick is not None:
        note = f": {pick.note}" if pick.note else ""
        return None if pick.pick == "keep" else Unchosen(PICKED, f"by hand, {pick.time}{note}")
    values = dict(clip.scores)
    name = first_broken(rules, values)
    if name is None:
        return None
    rule = rules[name]
    measured = ", ".join(f"{score} {shown(values[score])}" for score in rule.names)
    return Unchosen(name, f"{measured}; the rule: {rule.text}")


def first_broken(rules: Mapping[str, Expression], values: Mapping[str, float | None]) -> str | None:
    """The first rule that is false of these scores; None if all are true or not known."""
    return next((name for name, rule in rules.items() if rule.holds(values) is False), None)


def shown(value: float | None) -> str:
    """A score as people read it."""
    return "not measured" if value is None else f"{value:.4g}"
