"""The rules of `[keep]` as the page evaluates and draws them.

A rule is a tree of lists: `["and", a, b]`, `["or", ...]`, `["not", a]`, `["compare", [operators],
[parts]]`; numbers are `["+", a, b]` and so on, `["negative", a]`, a name or a number. One that only
says between which values a score must lie is a threshold too, which can be dragged.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.core.expression import Expression
from pipeline.publish.page.columns import DIGITS

OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
Threshold = dict[str, Any]  # measure, low, high, strictLow, strictHigh


def rules_of(rules: Mapping[str, Expression], measured: Collection[str]) -> list[dict[str, Any]]:
    """The rules in their order. Of scores that no clip has yet, and of those that several rules
    limit, none is a threshold.
    """
    thresholds = {name: threshold_of(rule) for name, rule in rules.items()}
    limits = Counter(t["measure"] for t in thresholds.values() if t is not None)
    rows = []
    for name, rule in rules.items():
        threshold = thresholds[name]
        if threshold and (limits[threshold["measure"]] > 1 or threshold["measure"] not in measured):
            threshold = None
        row = {"name": name, "text": rule.text, "names": list(rule.names)}
        rows.append({**row, "tree": tree_of(rule.tree), "threshold": threshold})
    return rows


def tree_of(node: ast.expr) -> Any:
    """A part of an expression as plain JSON. Raises TypeError for what the language has not."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BoolOp):
        return ["and" if isinstance(node.op, ast.And) else "or", *map(tree_of, node.values)]
    if isinstance(node, ast.UnaryOp):
        return ["not" if isinstance(node.op, ast.Not) else "negative", tree_of(node.operand)]
    if isinstance(node, ast.BinOp):
        return [OPERATORS[type(node.op)], tree_of(node.left), tree_of(node.right)]
    if isinstance(node, ast.Compare):
        operators = [OPERATORS[type(op)] for op in node.ops]
        return ["compare", operators, [tree_of(part) for part in (node.left, *node.comparators)]]
    raise TypeError(f"{type(node).__name__} is no part of a rule")


def threshold_of(rule: Expression) -> Threshold | None:
    """Between which values a rule holds a score; None for a rule that says anything else."""
    tree = tree_of(rule.tree)
    if tree[0] != "compare" or len(rule.names) != 1:
        return None
    operators, parts = tree[1:]
    name = rule.names[0]
    if parts[:1] == [name] and len(parts) == 2:  # motion > 0.1
        sides = [(operators[0], parts[1])]
    elif parts[1:2] == [name] and len(parts) in (2, 3):  # 0.1 < motion, 0.1 < motion < 0.9
        sides = [
            (MIRRORED.get(operators[0], ""), parts[0]),
            *zip(operators[1:], parts[2:], strict=True),
        ]
    else:
        return None
    limits: Threshold = {"measure": name, "low": None, "high": None}
    limits |= {"strictLow": False, "strictHigh": False}
    for operator, value in sides:
        side = "low" if operator[:1] == ">" else "high"
        if operator not in MIRRORED or not _fits(value) or limits[side] is not None:
            return None
        limits |= {side: value, f"strict{side.title()}": len(operator) == 1}
    return limits


def _fits(value: Any) -> bool:
    """Whether it is a number that compares exactly with a column of 32-bit floats."""
    return isinstance(value, int | float) and float(f"{value:.{DIGITS}g}") == value
