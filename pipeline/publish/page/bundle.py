"""The page as one file: HTML, style, script and data.

The script is plain ES modules in `source/`. They are laid one after the other, each after those it
imports, in one scope. The rule that makes this right, and that is checked here: a module imports
only by lines `import { a, b } from "./other.js";`, exports only by the word `export` before a
declaration, renames nothing, and no two modules have a top-level name in common. So there is no
bundler to install, and what runs is what one reads.

The page may run its own script and style and nothing else: the policy in its head names their
digests. Data cannot end the element it stands in: `<`, `>` and `&` are written as escapes of JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "source"
IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";\n', re.MULTILINE)
DECLARATION = re.compile(
    r"^(?:export )?(?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE
)
EXPORTED = re.compile(r"^export (?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE)
STRANGE = re.compile(r"^(import|export (?!async |function|class|const|let)).*", re.MULTILINE)
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(data: dict[str, Any]) -> str:
    """The whole file. Raises ValueError for data with numbers that are not finite."""
    style, code = stylesheet(), script()
    policy = (
        f"default-src 'none'; script-src '{_digest(code)}'; style-src '{_digest(style)}'; "
        "img-src 'self' file: data:; media-src 'self' file: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": style, "data": embedded(data), "script": code}
    html = (SOURCE / "index.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], html)


def embedded(data: dict[str, Any]) -> str:
    """JSON that can stand inside an HTML script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda mark: UNSAFE[mark[0]], text)


def stylesheet() -> str:
    return (SOURCE / "style.css").read_text("utf-8")


def script() -> str:
    """All modules in one scope, in the order of their imports. Raises ValueError where the rule is
    broken.
    """
    modules = {path.stem: path.read_text("utf-8") for path in sorted(SOURCE.glob("*.js"))}
    ordered: list[str] = []
    _follow("main", modules, ordered, ())
    _check(modules, ordered)
    parts = []
    for name in ordered:
        code = IMPORT.sub("", modules[name])
        parts.append(f"// {name}.js\n{re.sub('^export ', '', code, flags=re.MULTILINE)}")
    return "\n".join(parts)


def _follow(name: str, modules: dict[str, str], ordered: list[str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules import each other: {' -> '.join((*above, name))}")
    if name in ordered:
        return
    for _, imported in IMPORT.findall(modules[name]):
        if imported not in modules:
            raise ValueError(f"{name}.js imports {imported}.js, which is not there")
        _follow(imported, modules, ordered, (*above, name))
    ordered.append(name)


def _check(modules: dict[str, str], ordered: list[str]) -> None:
    owners: dict[str, str] = {}
    for name in ordered:
        left = IMPORT.sub("", modules[name])
        if strange := STRANGE.search(left):
            raise ValueError(f"{name}.js: {strange[0]!r} is no import or export the bundle knows")
        for declared in DECLARATION.findall(modules[name]):
            if declared in owners:
                raise ValueError(f"{owners[declared]}.js and {name}.js both declare {declared}")
            owners[declared] = name
        for names, imported in IMPORT.findall(modules[name]):
            missing = set(names.split(", ")) - set(EXPORTED.findall(modules[imported]))
            if missing:
                raise ValueError(f"{imported}.js does not export {', '.join(sorted(missing))}")
    if unused := modules.keys() - set(ordered):
        raise ValueError(f"nothing imports {', '.join(sorted(unused))}")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
