"""The language of [keep]: what is allowed, what is refused and how, and what is not known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.expression import MAX_CHARACTERS, parse

VALUES = {"a": 0.5, "b": 2.0, "zero": 0.0, "huge": 1e300, "null": None}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a > 0.1", True),
        ("a > 0.1 and b < 1", False),
        ("a > 0.9 or b > 1", True),
        ("not a > 0.9", True),
        ("0.1 < a < 0.9 < b", True),
        ("0.1 < a < 0.4", False),
        ("-a + b * 2 - 1 / 4 == 3.25", True),
        ("(a + b) != 2.5", False),
        ("a <= 0.5 and b >= 2", True),
        ("  a > 0.1  ", True),
    ],
)
def test_rules_are_true_or_false(text: str, holds: bool) -> None:
    assert parse(text).holds(VALUES) is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("null > 1", None),
        ("null > 1 or a > 0.1", True),
        ("null > 1 or a > 0.9", None),
        ("null > 1 and a > 0.9", False),
        ("null > 1 and a > 0.1", None),
        ("not null > 1", None),
        ("a > 0.9 > null", False),
        ("a < 0.9 < null", None),
        ("null + a > 0", None),
        ("-null < 0", None),
        ("a / zero > 1", None),
        ("a / (b - 2) > 1 or b == 2", True),
        ("huge * huge > 1", None),
    ],
)
def test_what_cannot_be_measured_makes_a_rule_not_known(text: str, holds: bool | None) -> None:
    assert parse(text).holds(VALUES) is holds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a", "this is a number, and a rule is true or false"),
        ("a > ", "this is no expression"),
        ("", "this is no expression"),
        ("__import__('os').system('x') > a", "'__import__('os').system('x')' is not allowed"),
        ("abs(a) > 1", "'abs(a)' is not allowed"),
        ("a.real > 1", "'a.real' is not allowed"),
        ("a[0] > 1", "'a[0]' is not allowed"),
        ("a ** 9 ** 9 ** 9 > 1", "is not allowed"),
        ("a // 2 > 1", "is not allowed"),
        ("a % 2 > 1", "is not allowed"),
        ("a << 999 > 1", "is not allowed"),
        ("+a > 1", "'+a' is not allowed"),
        ("~a > 1", "'~a' is not allowed"),
        ("a == 'x'", "is not allowed"),
        ("a > True", "'True' is not allowed"),
        ("a > 1j", "'1j' is not allowed"),
        ("a is 1", "is not allowed"),
        ("a in (1, 2)", "is not allowed"),
        ("[a for a in b]", "is not allowed"),
        ("lambda: a", "is not allowed"),
        ("(a := 1) > 0", "is not allowed"),
        ("f'{a}' > 1", "is not allowed"),
        ("a if b > 1 else a", "is not allowed"),
        ("a > 1; b > 1", "this is no expression"),
        ("(a > 1) + 1 > 2", "'a > 1' is true or false where a number is wanted"),
        ("a and b > 1", "'a' is a number where true or false is wanted"),
        ("1 > 0", "it names no score"),
        ("a > 1e999", "a number is at most 10^12"),
        ("a > " + "9" * 400, "a number is at most 10^12"),
        ("a > " + "9" * 600, f"at most {MAX_CHARACTERS} characters, not 604"),
        ("(" * 300 + "a", "this is no expression"),
        ("-" * 490 + "a > 1", "refused"),
        ("not " * 40 + "a > 1", "nested more than 30 deep"),
        (" or ".join(["a>b"] * 60), "refused"),
        ("a > 1\0", "this is no expression"),
    ],
)
def test_all_else_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as raised:
        parse(text)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(alphabet="ab01.+-*/<>=!() \t\nnotrdx_'\"[]{}:,~%^&|@", max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        expression = parse(text)
    except ValueError:
        return
    values = dict.fromkeys(expression.names, 0.5)
    assert expression.holds(values) in (True, False, None)


def test_a_rule_knows_the_scores_it_names_in_order() -> None:
    assert parse("b > a or b + zero < a").names == ("b", "a", "zero")
