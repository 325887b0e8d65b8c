"""The language of `[keep]`: comparisons of scores, for one clip true, false or not known.

    motion > 0.05 or object_motion > 0.02
    0.1 < luma / 255 < 0.9 and not (text > 0.02 and faces == 0)

It is the grammar of Python, parsed by `ast` and checked against a white list, so nothing is ever
run: numbers, names of scores, + - * /, unary minus, comparisons and their chains, and, or, not.
A score that could not be measured (null) makes what is computed from it not known; so do a division
by zero and a number that is not finite. `and`, `or` and `not` treat what is not known as SQL does
(Kleene's logic): `x and false` is false whatever x is.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CHARACTERS = 500
MAX_NODES = 200
MAX_DEPTH = 30
MAX_NUMBER = 10**12
ALLOWED = (
    "allowed are numbers, scores, + - * /, comparisons (< <= > >= == !=), and, or, not, parentheses"
)

ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Expression:
    """A parsed rule: its text, and the scores it names, in the order it names them."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    def holds(self, values: Values) -> bool | None:
        """Whether it is true of these scores; None if that is not known. Raises KeyError for a
        score that is not there.
        """
        return _truth(self.tree, values)


def parse(text: str) -> Expression:
    """A rule, checked. Raises ValueError with what is wrong in it."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression has at most {MAX_CHARACTERS} characters, not {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice about what is refused below
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise ValueError(f"this is no expression ({why}); {ALLOWED}") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ValueError("an expression this long is refused: make several rules of it")
    names: dict[str, None] = {}
    if not _check(tree, text.strip(), names, 0):
        raise ValueError(
            "this is a number, and a rule is true or false: compare it, as in "
            f"{_quoted(text)} > 0.1"
        )
    if not names:
        raise ValueError("it names no score, so it says the same of every clip")
    return Expression(text.strip(), tuple(names), tree)


def _check(node: ast.expr, text: str, names: dict[str, None], depth: int) -> bool:
    """Whether a part is true or false (else it is a number). Raises ValueError for one that is not
    allowed.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep: make several rules of it")
    if isinstance(node, ast.Name):
        names.setdefault(node.id)
        return False
    if isinstance(node, ast.Constant):
        _check_number(node.value)
        return False
    if isinstance(node, ast.BoolOp):
        _want(node.values, True, text, names, depth)
        return True
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        is_truth = isinstance(node.op, ast.Not)
        _want([node.operand], is_truth, text, names, depth)
        return is_truth
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        _want([node.left, node.right], False, text, names, depth)
        return False
    if isinstance(node, ast.Compare) and all(type(op) in COMPARISONS for op in node.ops):
        _want([node.left, *node.comparators], False, text, names, depth)
        return True
    raise ValueError(f"{_source(node, text)} is not allowed; {ALLOWED}")


def _want(
    parts: list[ast.expr], is_truth: bool, text: str, names: dict[str, None], depth: int
) -> None:
    for part in parts:
        if _check(part, text, names, depth + 1) != is_truth:
            kinds = ("a number", "true or false")
            raise ValueError(
                f"{_source(part, text)} is {kinds[not is_truth]} where {kinds[is_truth]} is wanted"
            )


def _check_number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_quoted(repr(value))} is not allowed; {ALLOWED}")
    if not abs(value) <= MAX_NUMBER:
        raise ValueError("a number is at most 10^12")


def _source(node: ast.expr, text: str) -> str:
    return _quoted(ast.get_source_segment(text, node) or text)


def _quoted(text: str) -> str:
    short = text if len(text) <= 40 else f"{text[:37]}..."
    return f"'{short}'"


def _number(node: ast.expr, values: Values) -> float | None:
    """The value of a part that is a number; None if it is not known."""
    if isinstance(node, ast.Name):
        value = values[node.id]
        return None if value is None else float(value)
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        operand = _number(node.operand, values)
        return None if operand is None else -operand
    assert isinstance(node, ast.BinOp)
    left, right = _number(node.left, values), _number(node.right, values)
    if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
        return None
    result = ARITHMETIC[type(node.op)](left, right)
    return result if math.isfinite(result) else None


def _truth(node: ast.expr, values: Values) -> bool | None:
    """The value of a part that is true or false; None if it is not known."""
    if isinstance(node, ast.BoolOp):
        return _joined(node, values)
    if isinstance(node, ast.UnaryOp):
        operand = _truth(node.operand, values)
        return None if operand is None else not operand
    assert isinstance(node, ast.Compare)
    numbers = [_number(part, values) for part in (node.left, *node.comparators)]
    truths = [
        None if left is None or right is None else COMPARISONS[type(op)](left, right)
        for left, op, right in zip(numbers, node.ops, numbers[1:], strict=False)
    ]
    return _all(truths)


def _joined(node: ast.BoolOp, values: Values) -> bool | None:
    truths = [_truth(part, values) for part in node.values]
    if isinstance(node.op, ast.And):
        return _all(truths)
    negated = _all([None if truth is None else not truth for truth in truths])
    return None if negated is None else not negated


def _all(truths: list[bool | None]) -> bool | None:
    if False in truths:
        return False
    return None if None in truths else True
