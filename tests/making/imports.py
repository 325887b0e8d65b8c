"""What a file of Python imports."""

import ast
import contextlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules_of(tree: ast.AST, name: str = "a script") -> set[str]:
    """Every module that a piece of code imports: `pipeline.core.store`, ...

    `from folder import module` counts as `folder.module`. `name` is for the message about a
    relative import, which is an AssertionError.
    """
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            module = str(node.module)
            is_folder = (ROOT / module.replace(".", "/")).is_dir()
            names = {f"{module}.{alias.name}" for alias in node.names}
            modules |= names if is_folder else {module}
    return modules


def imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    return modules_of(ast.parse(path.read_text("utf-8")), path.name)


def roots(path: Path) -> set[str]:
    """The top-level packages a file imports."""
    return {module.partition(".")[0] for module in imports(path)}


def scripts(path: Path) -> list[ast.AST]:
    """The programs that a file holds in its strings: those that parse."""
    trees: list[ast.AST] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            with contextlib.suppress(SyntaxError, ValueError):
                trees.append(ast.parse(node.value))
    return trees
