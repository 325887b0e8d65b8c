"""Numbers of many clips as text: base64 of a typed array, which a page reads in milliseconds.

A column of 32-bit floats is read back by rounding to six significant digits; where that would not
give the very numbers again, they go as 64-bit floats. So the page compares what Python compares.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGITS = 6  # significant, of a number that goes as a 32-bit float; columns.js has it too
Column = dict[str, str]  # "type": u1, u2, u4, i4, f4 or f8, little-endian; "data": base64


def whole_numbers(values: Sequence[int] | NDArray[Any], kind: str = "u4") -> Column:
    """Integers as `u1`, `u2`, `u4` or `i4`. Raises OverflowError for one that has no place."""
    array = np.asarray(values, np.int64)
    limits = np.iinfo(kind)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise OverflowError(f"a number of a column goes beyond {kind}")
    return _column(array.astype(f"<{kind}"), kind)


def numbers(values: Sequence[float | None]) -> Column:
    """Floats, None as NaN: exact, in 32 bits where that can be."""
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    with np.errstate(over="ignore"):
        single = array.astype("<f4")
    short = [float(f"{value:.{DIGITS}g}") for value in single.tolist()]
    if np.array_equal(np.array(short), array, equal_nan=True):
        return _column(single, "f4")
    return _column(array.astype("<f8"), "f8")


def digests(values: Sequence[str]) -> Column:
    """sha256 digests, 32 bytes each."""
    return _column(np.frombuffer(bytes.fromhex("".join(values)), np.uint8), "u1")


def _column(array: NDArray[Any], kind: str) -> Column:
    return {"type": kind, "data": base64.b64encode(array.tobytes()).decode()}
