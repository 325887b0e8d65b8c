"""What the tables of a recipe share: frozen, unknown keys refused, and numbers that stay exact."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema


class Table(BaseModel):
    """One table of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


def _exact(value: object) -> object:
    """29.97 means the decimal that is written, not the nearest binary fraction."""
    return Fraction(str(value)) if isinstance(value, float) else value


def _time(value: object) -> object:
    """Seconds, or the form [H:]M:S with decimals."""
    if isinstance(value, str) and ":" in value:
        if not re.fullmatch(r"([0-9]+:){1,2}[0-9]+(\.[0-9]+)?", value):
            raise ValueError("a time is seconds or [H:]MM:SS, with decimals if need be")
        total = Fraction(0)
        for part in value.split(":"):
            total = total * 60 + Fraction(part)
        return total
    return _exact(value)


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

Exact = Annotated[Fraction, BeforeValidator(_exact), WithJsonSchema(_NUMBER)]
Seconds = Annotated[Fraction, BeforeValidator(_time), WithJsonSchema(_CLOCK)]
DatasetName = Annotated[str, AfterValidator(_own_folder)]
