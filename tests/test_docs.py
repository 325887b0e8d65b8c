"""What the pages name exists: files, modules, links, make targets and commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from longtake import program as longtake_program
from pipeline.__main__ import app as pipeline_app
from training.__main__ import app as training_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE_FOLDERS = ("pipeline", "training", "tests", "benchmarks")
FOLDERS = (*SOURCE_FOLDERS, "docs", "manifests", ".ci")
EXAMPLES = ("mine", "NAME")  # datasets that pages invent, as in manifests/mine.toml

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
SUFFIX = r"(?:py|md|toml|jsonl|json|txt|png)"
PATH = re.compile(rf"[\w.-]+(?:/[\w.-]+)*\.{SUFFIX}\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"python -m ([\w.]+)(?: ([a-z][a-z-]*))?")
EXAMPLE = re.compile(r"^`([\w/.]+)`\n\n```python$", re.MULTILINE)  # a path, and all of its file
PROGRAM = re.compile(r"^longtake ([a-z][a-z-]*)", re.MULTILINE)


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(text: str) -> list[str]:
    """The code blocks of a page, fences included."""
    return FENCE.findall(text)


def snippets(text: str) -> Iterator[str]:
    """What a page shows as code: the lines of its blocks, and what stands in backticks."""
    for block in blocks(text):
        yield from block.splitlines()[1:-1]
    yield from CODE.findall(FENCE.sub("", text))


def repository_files() -> set[str]:
    """Files of the project as paths from its root: what stands in folders that are in git."""
    folders = [ROOT / folder for folder in FOLDERS]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    top = [path for path in ROOT.iterdir() if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in files + top}


def missing_paths(text: str, files: set[str]) -> set[str]:
    """Paths a page names that do not exist. A bare module (`test_fuzz.py`) may stand anywhere. A
    file whose content the page gives is one that readers write.
    """
    files = files | set(EXAMPLE.findall(text))
    modules = {path.rpartition("/")[2] for path in files if path.endswith(".py")}
    missing = set()
    for path in PATH.findall(text):
        folder, _, name = path.partition("/")
        if not name:
            exists = path in modules or not path.endswith(".py")
        else:
            is_example = any(f"/{example}." in path for example in EXAMPLES)
            exists = path in files or is_example or folder not in FOLDERS
        if not exists:
            missing.add(path)
    return missing


def targets_typed(text: str) -> set[str]:
    """The targets of every `make ...` a page shows."""
    targets = set()
    for line in snippets(text):
        if not line.startswith("make "):
            continue
        words = shlex.split(line, comments=True)[1:]
        targets |= {word for word in words if "=" not in word}
    return targets


def targets_of_the_makefile() -> set[str]:
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", text_of(ROOT / "Makefile"), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


def commands_of(program: typer.Typer) -> set[str]:
    group = typer.main.get_command(program)
    return set(getattr(group, "commands", {}))


def unknown_commands(text: str) -> set[str]:
    """Commands a page types that no program has, as `pipeline frobnicate` or `longtake oops`."""
    commands = {"pipeline": commands_of(pipeline_app), "training": commands_of(training_app)}
    commands["longtake"] = commands_of(longtake_program())
    typed = {pair for pair in MODULE.findall(text) if pair[0] in commands and pair[1]}
    for block in blocks(text):
        typed |= {("longtake", command) for command in PROGRAM.findall(block)}
    return {f"{program} {name}" for program, name in typed if name not in commands[program]}


def module_exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def link_leads_somewhere(page: Path, link: str) -> bool:
    if link.startswith("https://"):
        return True
    path, _, anchor = link.partition("#")
    linked = page.parent / path if path else page
    return linked.is_file() and (not anchor or anchor in anchors(linked))


def tree_of_the_readme() -> str:
    section = text_of(ROOT / "README.md").partition("\n## The tree\n")[2]
    return blocks(section)[0]


def files_of_the_tree(tree: str) -> set[str]:
    """Paths the tree draws: an indented module stands in the folder drawn above it."""
    paths = set()
    folders: dict[int, str] = {}  # by indentation
    for line in tree.splitlines()[1:-1]:
        indent = len(line) - len(line.lstrip())
        parent = "".join(folder for depth, folder in folders.items() if depth < indent)
        first = line.split()[0]
        folders = {depth: folder for depth, folder in folders.items() if depth < indent}
        if first.endswith("/"):
            folders[indent] = first
            parent += first
        names = re.findall(r"(?<![\w/])\w+\.py\b", line)
        paths |= {parent + name for name in names}
    return paths


def test_the_checks_see_what_is_missing() -> None:
    files = {"pipeline/core/store.py", "docs/lock.md"}
    text = (
        "`pipeline/store.py`, `docs/lock.md`, `store.py`, `gone.py`, `manifests/mine.toml`, a.json"
    )
    assert missing_paths(text, files) == {"pipeline/store.py", "gone.py"}
    example = "`pipeline/edges.py`\n\n```python\n```\n"
    assert missing_paths(example, files) == set()
    assert missing_paths(example.replace("python", "diff"), files) == {"pipeline/edges.py"}
    assert targets_typed("```\nmake a b X=1  # c\n```\nSay `make d`.") == {"a", "b", "d"}
    assert files_of_the_tree("```\na/  b\n  c/  d\n    e.py  f; g.py: h\n  i.py  j\n```") == {
        "a/c/e.py",
        "a/c/g.py",
        "a/i.py",
    }
    typed = "`python -m pipeline oops`, `python -m training train`\n```\nlongtake no\n```\n"
    assert unknown_commands(typed) == {"pipeline oops", "longtake no"}
    assert not link_leads_somewhere(ROOT / "README.md", "docs/nowhere.md")
    assert not link_leads_somewhere(ROOT / "README.md", "docs/lock.md#nowhere")


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_file_a_page_names_exists(page: Path) -> None:
    assert missing_paths(text_of(page), repository_files()) == set()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(FENCE.sub("", text_of(page)))
    assert [link for link in links if not link_leads_somewhere(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_make_target_a_page_names_exists(page: Path) -> None:
    assert targets_typed(text_of(page)) <= targets_of_the_makefile()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_module_a_page_runs_exists(page: Path) -> None:
    modules = {module for module, _ in MODULE.findall(text_of(page))}
    assert {module for module in modules if not module_exists(module)} == set()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_command_a_page_types_exists(page: Path) -> None:
    assert unknown_commands(text_of(page)) == set()


def test_every_module_in_the_tree_exists_where_it_is_drawn() -> None:
    assert files_of_the_tree(tree_of_the_readme()) - repository_files() == set()


def test_every_folder_of_the_pipeline_is_in_the_tree() -> None:
    folders = [path.parent for path in (ROOT / "pipeline").rglob("__init__.py")]
    drawn = tree_of_the_readme()
    assert {folder.name for folder in folders if f"{folder.name}/" not in drawn} == set()


def test_the_example_of_the_format_page_scales_latents_as_the_tiny_vae_does() -> None:
    config = json.loads((ROOT / "pipeline/media/tiny/vae/config.json").read_text("utf-8"))
    example = f'"scaling_factor": {config["scaling_factor"]}'
    assert example in text_of(ROOT / "docs" / "format.md")
