"""What the tables of a recipe share: frozen, unknown keys refused, and numbers that stay exact."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from pipeline.core.picks import Pick


class Table(BaseModel):
    """One table of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Setup:
    """What stages are made from: a recipe's tables, the folder it lies in, where models run, and
    whether they must be on this machine already (`offline`), and whether what was fetched stays
    when it has been used (`keep_raw`). `picks` gives the picks that count, by clip, as they were
    when they were first asked for: people go on picking while a build runs.
    """

    tables: tuple[Table, ...]
    folder: Path = Path()
    device: str = "auto"
    offline: bool = False
    keep_raw: bool = True
    picks: Callable[[], Mapping[str, Pick]] | None = None

    def find(self, kind: type[T]) -> T | None:
        """The table of that kind, or None if the recipe has none."""
        return next((table for table in self.tables if isinstance(table, kind)), None)

    def table(self, kind: type[T]) -> T:
        """The table of that kind. Raises LookupError if the recipe has none."""
        if (table := self.find(kind)) is not None:
            return table
        raise LookupError(f"no table of {kind.__module__}.{kind.__name__} in the recipe")


LONGEST = 60  # characters of a number that is written as text
LARGEST = 10**12  # of a number; its fraction's denominator may be the square of a square of it
NO_TIME = "a time is seconds or [H:]MM:SS, with decimals if need be"
TOO_LONG = "a number is smaller than 10^12, and written with at most 60 characters"


def _exact(value: object) -> object:
    """29.97 means the decimal that is written, not the nearest binary fraction. What is refused
    here would cost memory and hours as a fraction: 1e999999999.
    """
    if isinstance(value, bool):
        raise ValueError("wanted is a number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(TOO_LONG)
    if isinstance(value, str):
        exponent = value.lower().partition("e")[2]
        if len(value) > LONGEST or len(exponent) > 4:
            raise ValueError(TOO_LONG)
    return Fraction(str(value)) if isinstance(value, float) else value


def _small(value: Fraction) -> Fraction:
    if abs(value) > LARGEST or value.denominator > LARGEST**4:
        raise ValueError(TOO_LONG)
    return value


def _time(value: object) -> object:
    """Seconds, or the form [H:]M:S with decimals."""
    if isinstance(value, str) and ":" in value:
        if not re.fullmatch(r"([0-9]{1,9}:){1,2}[0-9]{1,9}(\.[0-9]{1,20})?", value):
            raise ValueError(NO_TIME)
        total = Fraction(0)
        for part in value.split(":"):
            total = total * 60 + Fraction(part)
        return total
    exact = _exact(value)
    if isinstance(exact, str):
        try:
            return Fraction(exact)
        except (ValueError, ZeroDivisionError):
            raise ValueError(NO_TIME) from None
    return exact


def _own_folder(name: str) -> str:
    """Datasets lie beside the store."""
    if name.lower() == "store":
        raise ValueError(
            "this is the folder of the store they share, so a dataset needs another name"
        )
    return name


_NUMBER = {
    "anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[0-9]+(/[0-9]+|\\.[0-9]+)?$"}]
}
_CLOCK = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": "^([0-9]+:){0,2}[0-9]+(\\.[0-9]+)?$"},
    ]
}

Exact = Annotated[
    Fraction, BeforeValidator(_exact), AfterValidator(_small), WithJsonSchema(_NUMBER)
]
Seconds = Annotated[
    Fraction, BeforeValidator(_time), AfterValidator(_small), WithJsonSchema(_CLOCK)
]
DatasetName = Annotated[str, AfterValidator(_own_folder)]
