"""One file of the page's sources: in order, with nothing that data could break out of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.publish.page import bundle

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>",
    "&lt;b&gt;",
    "\u2028\u2029",
    "{{script}} {{data}}",
    "\\u003c",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_data_cannot_end_the_element_it_stands_in(text: str) -> None:
    embedded = bundle.embedded({"caption": text})
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == {"caption": text}
    html = bundle.page({"caption": text})
    assert html.count("</script>") == 2
    assert html.count("<script") == 2


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        bundle.embedded({"score": float("nan")})


def test_the_script_names_nothing_twice_and_imports_nothing() -> None:
    script = bundle.script()
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert script.index("// dom.js") < script.index("// main.js")


def test_the_page_is_small() -> None:
    assert len(bundle.page({})) < 140_000


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ({"main": 'import { a } from "./a.js";\n'}, "a.js, which is not there"),
        (
            {"main": 'import { a } from "./a.js";\n', "a": 'import { m } from "./main.js";\n'},
            "main",
        ),
        (
            {
                "main": 'import { a } from "./a.js";\nconst b = 1;\n',
                "a": "export const a = 1;\nfunction b() {}\n",
            },
            "both declare b",
        ),
        ({"main": 'import { b } from "./a.js";\n', "a": "const b = 1;\n"}, "does not export b"),
        (
            {"main": 'import a from "./a.js";\n', "a": "export const a = 1;\n"},
            "no import or export",
        ),
        ({"main": "export default 1;\n"}, "no import or export"),
        ({"main": "", "a": ""}, "nothing imports a"),
    ],
)
def test_a_module_that_breaks_the_rule_is_named(
    modules: dict[str, str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in modules.items():
        (tmp_path / f"{name}.js").write_text(text)
    monkeypatch.setattr(bundle, "SOURCE", tmp_path)
    with pytest.raises(ValueError, match=re.escape(problem)):
        bundle.script()


def test_the_sources_never_make_markup_of_text() -> None:
    code = "\n".join(path.read_text("utf-8") for path in bundle.SOURCE.glob("*.js"))
    code = re.sub(r"//.*", "", code)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in code


def luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2.2 defines it: 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(theme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", bundle.stylesheet(), re.DOTALL)
    block = light if theme == "light" else dark
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    for ground in ("page", "surface", "sunken"):
        for text in ("text", "muted", "accent", "danger"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert contrast(colors["on-accent"], colors["accent"]) >= 4.5
    assert contrast(colors["accent"], colors["tint"]) >= 4.5
    assert contrast(colors["page"], colors["danger"]) >= 4.5
    assert contrast(colors["strong-line"], colors["surface"]) >= 3  # edges of controls
