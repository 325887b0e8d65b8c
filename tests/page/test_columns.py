"""Columns of numbers: exact, and small where they can be."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.publish.page import columns

KINDS = {"f4": "<f4", "f8": "<f8", "u1": "u1", "u2": "<u2", "u4": "<u4", "i4": "<i4"}


def read(column: columns.Column) -> list[float]:
    """As the page reads it."""
    values = np.frombuffer(base64.b64decode(column["data"]), KINDS[column["type"]]).tolist()
    if column["type"] != "f4":
        return values
    return [float(f"{value:.{columns.DIGITS}g}") for value in values]


@given(st.lists(st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.4g}"))))
def test_scores_of_four_digits_go_as_32_bits_and_come_back_as_they_were(
    values: list[float],
) -> None:
    column = columns.numbers(values)
    assert read(column) == values
    if all(abs(value) > 1e-30 or value == 0 for value in values):
        assert column["type"] == "f4"


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_any_number_comes_back_and_what_is_not_measured_is_nan(
    values: list[float | None],
) -> None:
    numbers = read(columns.numbers(values))
    assert [None if math.isnan(number) else number for number in numbers] == values


def test_a_number_that_has_no_place_is_refused() -> None:
    with pytest.raises(OverflowError, match="u2"):
        columns.whole_numbers([70_000], "u2")
    assert read(columns.whole_numbers([-1, 5], "i4")) == [-1, 5]


def test_digests_are_32_bytes_each() -> None:
    column = columns.digests(["00" * 32, "ff" * 32])
    assert len(base64.b64decode(column["data"])) == 64
