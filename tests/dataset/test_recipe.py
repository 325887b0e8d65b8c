"""Recipes: the ones we ship are right, and wrong ones say file, line, field, what was found, what
is allowed.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.core import canonical
from pipeline.core.columns import Columns
from pipeline.core.errors import RecipeError
from pipeline.core.executors import Inline
from pipeline.core.params import Setup, Table
from pipeline.core.records import Source
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.dataset import recipe
from pipeline.dataset.recipe import FullRecipe as Recipe
from pipeline.dataset.recipe import SourceEntry
from pipeline.media import detectors, fetch
from pipeline.media.duplicates import Params as Duplicates
from pipeline.stages import NAMES, download, expand

MANIFESTS = Path(__file__).parents[2] / "manifests"
TEMPLATE = MANIFESTS / "template.toml"
SOURCE = '[[source]]\nuri = "file:a.mp4"\n'  # two lines
TABLES: dict[str, type[Table]] = {
    "source": SourceEntry,
    "columns": Columns,
    **{
        name: type(Recipe.model_fields[name].default)
        for name in NAMES
        if name in Recipe.model_fields
    },
    "duplicates": Duplicates,
}


def recipe_at(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def sources(folder: Path, text: str) -> tuple[Source, ...]:
    return recipe.load(recipe_at(folder, text)).sources


def complaint(folder: Path, text: str) -> str:
    """What a wrong recipe is told, its folder left out."""
    with pytest.raises(RecipeError) as caught:
        recipe.load(recipe_at(folder, text))
    return str(caught.value).replace(f"{folder}/", "")


# The recipes we ship


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    loaded = recipe.load(path)
    assert loaded.recipe.name == path.stem
    assert loaded.sources
    assert path.read_text("utf-8").startswith("#:schema ./recipe.schema.json\n")


def test_the_schema_for_editors_is_up_to_date() -> None:
    assert (MANIFESTS / "recipe.schema.json").read_text("utf-8") == recipe.schema(), (
        "run `make schema`"
    )


def test_the_demo_is_five_packaged_videos_at_256_with_the_tiny_encoders() -> None:
    loaded = recipe.load(MANIFESTS / "demo.toml")
    options = loaded.recipe
    assert [source.key for source in loaded.sources] == [
        "bigbuckbunny",
        "bikes",
        "fish-a",
        "fish-b",
        "world",
    ]
    assert all(source.uri.startswith("pypi:") for source in loaded.sources)
    assert [len(source.captions) for source in loaded.sources] == [2, 2, 2, 2, 2]
    assert (options.cut.detector, options.filter.min_frames, options.filter.max_frames) == (
        "adaptive",
        100,
        1000,
    )
    assert (options.extract.fps, options.extract.size) == (Fraction(10), 256)
    assert (options.encode.preset, options.encode.psnr_share, options.encode.precision) == (
        "tiny",
        1.0,
        "float64",
    )
    assert (options.shard.seed, options.shard.validation) == (4, 0.34)


def test_the_seeds_recipes_are_10_fps_512_and_100_frames() -> None:
    for name in ("scenic-drive", "fashion-walk"):
        options = recipe.load(MANIFESTS / f"{name}.toml").recipe
        assert (
            options.extract.fps,
            options.extract.size,
            options.filter.min_frames,
            options.encode.preset,
        ) == (10, 512, 100, "sd15")


# The template: every option, none that is gone, each with its default


def uncommented(lines: list[str]) -> str:
    """Commented options and table headers as TOML; prose stays a comment."""
    return "\n".join(re.sub(r"^# (?=\[+\w+\]+$|\w+ = )", "", line) for line in lines)


def template() -> tuple[list[str], list[str]]:
    """Lines of the template proper, and of the published tables at its end."""
    lines = TEMPLATE.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("# --- "))
    return lines[:start], lines[start:]


def template_blocks() -> list[tuple[str, dict[str, Any], set[str]]]:
    """(table, its options with the values shown, those marked as having no default) for every table
    of the template.
    """
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in uncommented(template()[0]).splitlines():
        if header := re.match(r"\[+(\w+)\]+$", line):
            blocks.append((header[1], []))
        elif re.match(r"\w+ = ", line):
            blocks[-1][1].append(line)
    return [
        (
            table,
            tomllib.loads("\n".join(lines)),
            {line.partition(" =")[0] for line in lines if "# (none) " in line},
        )
        for table, lines in blocks
    ]


def model_of(table: str, shown: dict[str, Any]) -> type[Table]:
    if table == "cut":
        options = detectors.options_of(shown["detector"])
        assert options is not None
        return options
    return TABLES[table] if table else Recipe


def test_the_template_has_every_option_and_no_other() -> None:
    blocks = [(model_of(table, shown), set(shown)) for table, shown, _ in template_blocks()]
    assert blocks[0] == (Recipe, set(Recipe.model_fields) - TABLES.keys())
    models: list[type[Table]] = [SourceEntry]
    for name in NAMES:
        if name in TABLES:
            models += detectors.ALL if name == "cut" else [TABLES[name]]
        if name == "keep":
            models.append(Duplicates)
    assert [model for model, _ in blocks[1:]] == [*models, Columns]
    for model, keys in blocks[1:]:
        assert keys == set(model.model_fields), model


def test_the_template_shows_the_defaults_and_marks_what_has_none() -> None:
    for table, shown, marked in template_blocks():
        if not table:
            continue
        model = model_of(table, shown)
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        unset = {
            name
            for name, field in model.model_fields.items()
            if field.default in (None, ()) and name not in required
        }
        assert marked == unset, model
        plainly = model.model_validate(
            {key: value for key, value in shown.items() if key not in marked}
        )
        assert plainly == model.model_validate({key: shown[key] for key in required}), model
        model.model_validate(shown)


def test_the_template_with_everything_uncommented_loads() -> None:
    lines, seen = [], 0
    for line in uncommented(template()[0]).splitlines():
        seen += line == "[cut]"
        if line.startswith("sources = ") or (seen > 1 and not line.startswith("[filter]")):
            continue  # one [cut] of seven, and no table
        seen = 0 if line.startswith("[filter]") else seen
        lines.append(line)
    options = Recipe.model_validate({"name": "template", **tomllib.loads("\n".join(lines))})
    assert options.cut == detectors.DEFAULT
    assert options.filter.max_frames == 1000


def test_an_option_written_out_with_its_default_changes_no_task_key() -> None:
    for table, shown, marked in template_blocks():
        if table in ("", "source", "columns"):
            continue
        model = model_of(table, shown)
        written_out = model.model_validate(
            {key: value for key, value in shown.items() if key not in marked}
        )
        assert canonical.encode(written_out.model_dump()) == canonical.encode(
            model().model_dump()
        ), model


# Published tables, by the template's own advice


PANDA = {
    "videoID": "--4tfbSyYDE",
    "url": "https://www.youtube.com/watch?v=--4tfbSyYDE",
    "timestamp": "[['0:00:13.580', '0:00:16.916'], ['0:10:00.000', '1:00:00.001']]",
    "caption": "['A man is riding a bike.', \"It's a dog.\"]",
    "matching_score": "[0.44, 0.39]",
}
INTERNVID = [
    {
        "YoutubeID": "FbzKbGyLEdQ",
        "Start_timestamp": "00:07:33.689",
        "End_timestamp": "00:07:51.085",
        "Caption": "a woman cooking",
    },
    {
        "YoutubeID": "FbzKbGyLEdQ",
        "Start_timestamp": "00:08:00.000",
        "End_timestamp": "00:08:04.500",
        "Caption": "[music] a pan",
    },
    {
        "YoutubeID": "FbzKbGyLEdQ",
        "Start_timestamp": "00:07:33.689",
        "End_timestamp": "00:07:51.085",
        "Caption": "a kitchen",
    },
]
OPENVID = {
    "video": "0_0_Nq.mp4",
    "caption": "A hill, at dusk.",
    "aesthetic score": 5.2,
    "motion score": 1.1,
    "fps": 30.0,
    "seconds": 4.1,
}


FIRST_ROW = {".csv": 2, ".jsonl": 1, ".parquet": 1}  # a spreadsheet counts the header


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in the form the suffix says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)


def published(folder: Path, title: str, rows: list[dict[str, Any]], suffix: str) -> list[Source]:
    """The sources that the template's recipe for a published table makes of these rows, in the
    order of time.
    """
    lines = template()[1]
    start = next(i for i, line in enumerate(lines) if line.startswith(f"# --- {title}"))
    end = next(
        (i for i in range(start + 1, len(lines)) if lines[i].startswith("# --- ")), len(lines)
    )
    text = re.sub(
        r'^sources = "(.*)\.\w+"$',
        rf'sources = "\1{suffix}"',
        uncommented(lines[start:end]),
        flags=re.MULTILINE,
    )
    values = tomllib.loads(text)
    write_table(folder / values["sources"], rows)
    loaded = recipe.load(recipe_at(folder, text))
    assert loaded.recipe.cut.detector == "none"
    return sorted(loaded.sources, key=lambda source: source.start_s or 0)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_panda_70m_gives_a_source_and_a_caption_for_each_time_range(
    tmp_path: Path, suffix: str
) -> None:
    row: dict[str, Any] = dict(PANDA)
    if suffix == ".parquet":  # which can hold lists as lists
        row |= {
            "timestamp": [["0:00:13.580", "0:00:16.916"], ["0:10:00.000", "1:00:00.001"]],
            "caption": ["A man is riding a bike.", "It's a dog."],
        }
    uri = PANDA["url"]
    assert published(tmp_path, "Panda-70M", [row], suffix) == [
        Source(
            "yt---4tfbSyYDE-000",
            uri,
            ("A man is riding a bike.",),
            start_s=Fraction(1358, 100),
            end_s=Fraction(16916, 1000),
        ),
        Source(
            "yt---4tfbSyYDE-001",
            uri,
            ("It's a dog.",),
            start_s=Fraction(600),
            end_s=Fraction(3600001, 1000),
        ),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_internvid_gives_a_source_for_each_row_and_unites_the_captions_of_equal_ones(
    tmp_path: Path, suffix: str
) -> None:
    listed = published(tmp_path, "InternVid", INTERNVID, suffix)
    assert [(source.start_s, source.end_s) for source in listed] == [
        (Fraction(453689, 1000), Fraction(471085, 1000)),
        (Fraction(480), Fraction(4845, 10)),
    ]
    assert [source.captions for source in listed] == [
        ("a woman cooking", "a kitchen"),
        ("[music] a pan",),
    ]
    assert {source.uri for source in listed} == {"https://www.youtube.com/watch?v=FbzKbGyLEdQ"}
    assert all(re.fullmatch("[0-9a-f]{12}", source.key) for source in listed)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_openvid_gives_a_local_file_for_each_row(tmp_path: Path, suffix: str) -> None:
    (source,) = published(tmp_path, "OpenVid-1M", [OPENVID], suffix)
    assert (source.uri, source.captions, source.start_s, source.end_s) == (
        "file:OpenVid-1M/0_0_Nq.mp4",
        ("A hill, at dusk.",),
        None,
        None,
    )


def test_one_caption_serves_all_time_ranges_of_a_row(tmp_path: Path) -> None:
    write_table(
        tmp_path / "t.jsonl", [{"uri": "file:a.mp4", "at": [[0, 1.5], [2, "3.1"]], "says": "waves"}]
    )
    listed = sources(tmp_path, 'sources = "t.jsonl"\n[columns]\nranges = "at"\ncaption = "says"\n')
    assert sorted((source.start_s, source.end_s, source.captions) for source in listed) == [
        (Fraction(0), Fraction(3, 2), ("waves",)),
        (Fraction(2), Fraction(31, 10), ("waves",)),
    ]


def test_sources_stand_in_key_order_whatever_order_they_are_written_in(tmp_path: Path) -> None:
    entries = [f'[[source]]\nuri = "file:{name}.mp4"\nid = "{name}"\n' for name in "cab"]
    assert [source.key for source in sources(tmp_path, "".join(entries))] == ["a", "b", "c"]


def test_the_same_source_twice_unites_captions(tmp_path: Path) -> None:
    text = "".join(
        f'[[source]]\nuri = "file:a.mp4"\ncaption = {caption}\n'
        for caption in ('"sea"', '["waves", "sea"]')
    )
    (source,) = sources(tmp_path, text)
    assert source.captions == ("sea", "waves")


def test_time_ranges_and_captions_stay_with_their_source_when_videos_are_expanded(
    tmp_path: Path, store: Store
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not looked into")

    def expanded(first: str) -> list[Source]:
        spans = [("x", first, 0, 1), ("y", "dog", 2, 3)]
        text = "".join(
            f'[[source]]\nid="{i}"\nuri="file:a.mp4"\ncaption="{c}"\nstart={a}\nend={b}\n'
            for i, c, a, b in spans
        )
        loaded = recipe.load(recipe_at(tmp_path, text))
        stage = expand.stage(loaded.setup("cpu"))
        manifest, _ = run_stage(stage, loaded.sources, store, Inline(), Progress())
        assert manifest.records == loaded.sources
        return list(loaded.sources)

    assert [source.captions for source in expanded("cat")] == [("cat",), ("dog",)]
    assert [source.captions for source in expanded("kitten")] == [("kitten",), ("dog",)]


# Wrong recipes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            SOURCE + "[filter]\nmin_frame = 5",
            "mine.toml:4: filter.min_frame: unknown key; did you mean 'min_frames'? "
            "allowed are interlaced, ",
        ),
        (
            SOURCE + "[filtr]\nmin_frames = 5",
            "mine.toml:3: filtr: unknown key; did you mean 'filter'? allowed are caption, ",
        ),
        ("sorces = 5\n" + SOURCE, "mine.toml:1: sorces: unknown key; did you mean 'sources'?"),
        (
            SOURCE + 'adress = "x"',
            "mine.toml:3: source[0].adress: unknown key; allowed are caption, end, "
            "id, license, sha256, start, uri",
        ),
        (
            SOURCE + SOURCE + "captoin = 5",
            "mine.toml:5: source[1].captoin: unknown key; did you mean 'caption'?",
        ),
        (
            SOURCE + "[cut]\nthreshold = 3",
            "mine.toml:4: cut.threshold: unknown key; did you mean 'adaptive_threshold'?",
        ),
        (
            SOURCE + '[filter]\nmin_frames = "many"',
            "mine.toml:4: filter.min_frames: got 'many', input should be a valid integer",
        ),
        (
            SOURCE + "[filter]\nmin_frames = 0",
            "mine.toml:4: filter.min_frames: got 0, input should be greater than or equal to 1",
        ),
        (
            SOURCE + "[extract]\nsize = 513",
            "mine.toml:4: extract.size: got 513, input should be a multiple of 8",
        ),
        (
            SOURCE + "[extract]\nfps = 0",
            "mine.toml:4: extract.fps: got 0, input should be greater than 0",
        ),
        (
            SOURCE + '[extract]\nfps = "1/0"',
            "mine.toml:4: extract.fps: got '1/0', input is not a valid fraction",
        ),
        (
            SOURCE + "[cut]\nmin_scene_s = inf",
            "mine.toml:4: cut.min_scene_s: got inf, input should be a finite number",
        ),
        (
            SOURCE + '[cut]\ndetector = "contnt"',
            "mine.toml:4: cut.detector: got 'contnt', allowed are 'adaptive', "
            "'content', 'histogram', 'hash', 'threshold', 'scdet', 'none'",
        ),
        (
            SOURCE + '[cut]\ndetector = "content"\nthreshold = 300',
            "mine.toml:5: cut.threshold: got 300, input should be less than or equal",
        ),
        (
            SOURCE + '[encode]\npreset = "sdxl"',
            "mine.toml:4: encode.preset: got 'sdxl', input should be 'sd15', 'sd21' or 'tiny'",
        ),
        (
            SOURCE + "\n[filter]\nmin_frames = 10\nmax_frames = 5",
            "max_frames must be at least 19: equal parts of a longer scene would fall "
            "below min_frames",
        ),
        (SOURCE + "\n[filter]\nmin_frames = 10\nmax_frames = 5", "mine.toml:4: filter: got"),
        (SOURCE + 'start = "0:01:00"\nend = 59.5', "mine.toml:1: source[0]: got"),
        (SOURCE + 'start = "0:01:00"\nend = 59.5', "end (59.5 s) must lie after start (60.0 s)"),
        (SOURCE + 'start = "soon"', "mine.toml:3: source[0].start: got 'soon', "),
        (
            SOURCE + 'start = "1/0:3"',
            "mine.toml:3: source[0].start: got '1/0:3', a time is seconds or [H:]MM:SS",
        ),
        (
            SOURCE + "caption = 5",
            "mine.toml:3: source[0].caption: got 5, wanted is a string or a list of strings",
        ),
        (
            SOURCE + 'id = "a b"',
            "mine.toml:3: source[0].id: got 'a b', string should match pattern",
        ),
        (
            SOURCE + 'sha256 = "12"',
            "mine.toml:3: source[0].sha256: got '12', string should match pattern '^[0-9a-f]{64}$'",
        ),
        ('[[source]]\nid = "a"', "mine.toml:1: source[0].uri: is missing"),
        (
            '[[source]]\nuri = "a.mp4"',
            "mine.toml:2: source[0].uri: got 'a.mp4', an address begins with its "
            "kind: https:, http:, file:, tar: and zip: (archives), pypi:",
        ),
        (
            '[[source]]\nuri = "pypi:gradio/world.mp4"',
            "got 'pypi:gradio/world.mp4', a pypi: address has the form pypi:NAME==VERSION/path/in/",
        ),
        (
            SOURCE + "[download]\nlicenses = []",
            "mine.toml:4: download.licenses: got [], licences are a list of at least one, such as ",
        ),
        (
            SOURCE + '[download]\nlicenses = "CC0-1.0"',
            "mine.toml:4: download.licenses: got 'CC0-1.0', licences are a list of",
        ),
        (
            SOURCE + '[download]\nlicenses = ["CC0-1.0", " "]',
            "mine.toml:4: download.licenses: got ['CC0-1.0', ' '], licences are a list of",
        ),
        ('name = "a/b"\n' + SOURCE, "mine.toml:1: name: got 'a/b', string should match pattern"),
        (
            'name = "Store"\n' + SOURCE,
            "mine.toml:1: name: got 'Store', this is the folder of the store they share",
        ),
        (
            'name = "empty"',
            'mine.toml: no sources: write [[source]] tables or sources = "FILE.csv"',
        ),
        ("[[source]\n", "mine.toml is not TOML: "),
        ("a = [" + "[" * 3000, "mine.toml is not TOML: "),
    ],
)
def test_a_wrong_recipe_is_told_where_what_and_what_is_allowed(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in complaint(tmp_path, text)


def test_a_wrong_value_is_complained_of_once(tmp_path: Path) -> None:
    assert len(complaint(tmp_path, SOURCE + "caption = 5").splitlines()) == 1


def test_every_wrong_field_is_named_at_once(tmp_path: Path) -> None:
    said = complaint(
        tmp_path, SOURCE + "[filter]\nmin_frames = 0\n[extract]\nsize = 5"
    ).splitlines()
    assert [line.partition(": got")[0] for line in said] == [
        "mine.toml:4: filter.min_frames",
        "mine.toml:6: extract.size",
    ]


def test_two_sources_with_one_id_are_both_named(tmp_path: Path) -> None:
    text = (
        '[[source]]\nuri = "file:a.mp4"\nid = "sea"\n[[source]]\nuri = "file:b.mp4"\nid = "sea"\n'
    )
    expected = (
        "mine.toml:4: source[1]: the id 'sea' is taken by mine.toml:1: source[0]: ids must differ"
    )
    assert complaint(tmp_path, text) == expected


def test_a_recipe_that_is_not_there_names_those_beside_it(tmp_path: Path) -> None:
    recipe_at(tmp_path, SOURCE)
    with pytest.raises(RecipeError, match=r"there is no recipe .*yours\.toml; beside it: mine"):
        recipe.load(tmp_path / "yours.toml")
    with pytest.raises(RecipeError, match="cannot read"):
        recipe.load(tmp_path)


def test_a_recipe_in_another_encoding_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("name = 'é'".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"mine\.toml is not TOML: 'utf-8' codec"):
        recipe.load(path)


# Licences


ONLY = '[download]\nlicenses = ["CC0-1.0", "CC-BY-4.0"]\n'  # two lines


def test_without_a_list_of_licences_any_will_do(tmp_path: Path) -> None:
    assert [source.license for source in sources(tmp_path, SOURCE + 'license = "mine"\n')] == [
        "mine"
    ]


def test_sources_with_a_licence_of_the_list_are_let_in(tmp_path: Path) -> None:
    text = (
        f'{ONLY}[[source]]\nuri = "file:a.mp4"\nlicense = " CC0-1.0 "\n[[source]]\n'
        'uri = "file:b.mp4"\nlicense = "CC-BY-4.0"\n'
    )
    assert len(sources(tmp_path, text)) == 2


def test_every_source_with_another_licence_or_none_is_named_with_its_line_and_what_is_allowed(
    tmp_path: Path,
) -> None:
    entries = [
        ("a", ""),
        ("b", 'license = "CC0-1.0"'),
        ("c", 'license = "cc-by-4.0"'),
        ("d", 'license = "CC-BY"'),
        ("e", 'license = " "'),
    ]
    text = ONLY + "".join(
        f'\n[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\n{license}\n'
        for key, license in entries
    )
    assert complaint(tmp_path, text).splitlines() == [
        "mine.toml:4: source[0]: 'a' has no licence",
        "mine.toml:14: source[2]: 'c' has the licence 'cc-by-4.0'; did you mean 'CC-BY-4.0'?",
        "mine.toml:19: source[3]: 'd' has the licence 'CC-BY'",
        "mine.toml:24: source[4]: 'e' has no licence",
        "mine.toml:2: download.licenses allows 'CC0-1.0', 'CC-BY-4.0'",
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_with_another_licence_are_named_up_to_ten_and_then_counted(
    tmp_path: Path, suffix: str
) -> None:
    rows = [
        {
            "uri": f"file:{n}.mp4",
            "name": f"n{n}",
            "terms": "CC0-1.0" if n == 3 else "all rights reserved",
        }
        for n in range(14)
    ]
    write_table(tmp_path / f"t{suffix}", rows)
    said = complaint(
        tmp_path, f'sources = "t{suffix}"\n{ONLY}[columns]\nid = "name"\nlicense = "terms"\n'
    ).splitlines()
    first = FIRST_ROW[suffix]
    assert said[0] == f"t{suffix}: row {first}: 'n0' has the licence 'all rights reserved'"
    assert said[3:] == [
        *(
            f"t{suffix}: row {n + first}: 'n{n}' has the licence 'all rights reserved'"
            for n in range(4, 11)
        ),
        "and 3 more",
        "mine.toml:3: download.licenses allows 'CC0-1.0', 'CC-BY-4.0'",
    ]


def test_sources_in_one_array_are_named_by_the_line_it_begins_at(tmp_path: Path) -> None:
    text = (
        'source = [\n  {uri = "file:a.mp4", id = "a", license = "CC0-1.0"},\n'
        '  {uri = "file:b.mp4", id = "b"},\n]\n' + ONLY
    )
    assert complaint(tmp_path, text).splitlines()[0] == "mine.toml:1: source[1]: 'b' has no licence"


def test_the_list_of_licences_changes_no_task_key(tmp_path: Path) -> None:
    source = Source("a", "https://example.org/a.mp4", license="CC0-1.0")
    plain, strict = fetch.Params(), fetch.Params(licenses=("CC0-1.0",))
    for stage in (download.stage, expand.stage):
        assert stage(Setup((plain,), tmp_path)).task_key(source) == stage(
            Setup((strict,), tmp_path)
        ).task_key(source)


# Wrong tables


@pytest.mark.parametrize("table", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_table_that_is_not_there_is_named(tmp_path: Path, table: str) -> None:
    assert complaint(tmp_path, f'sources = "{table}"') == f"there is no sources table {table}"


def test_a_table_of_another_kind_is_told_the_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("x")
    assert (
        complaint(tmp_path, 'sources = "t.xlsx"')
        == "t.xlsx: a sources table ends in .csv, .tsv, .jsonl or .parquet"
    )


GOOD = {"uri": "file:a.mp4", "from": "1", "to": "2"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("columns", "bad", "expected"),
    [
        (
            'start = "from"',
            {"from": "soon"},
            "start (column 'from'): got 'soon', a time is seconds or [H:]MM:SS",
        ),
        ('start = "from"\nend = "to"', {"from": "3"}, "end (2.0 s) must lie after start (3.0 s)"),
        ("", {"uri": "a.mp4"}, "uri: got 'a.mp4', an address begins with its kind: https:"),
        (
            'ranges = "from"',
            {"from": "[[1, 2, 3]]"},
            "from: got '1', a time range is [start, end]",
        ),
    ],
)
def test_a_bad_row_is_named_by_its_number(
    tmp_path: Path, suffix: str, columns: str, bad: dict[str, str], expected: str
) -> None:
    write_table(tmp_path / f"t{suffix}", [GOOD, {**GOOD, "uri": "file:b.mp4", **bad}])
    said = complaint(tmp_path, f'sources = "t{suffix}"\n[columns]\n{columns}\n')
    assert expected in said
    number = FIRST_ROW[suffix] + (0 if "ranges" in columns else 1)
    assert said.startswith(f"t{suffix}: row {number}: ")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["address", "file:{address}"])
def test_a_missing_column_is_named_with_those_there_are(
    tmp_path: Path, suffix: str, column: str
) -> None:
    write_table(tmp_path / f"t{suffix}", [GOOD])
    said = complaint(tmp_path, f'sources = "t{suffix}"\n[columns]\nuri = "{column}"\n')
    assert said == f"t{suffix}: row 1: no column 'address'; there are uri, from, to"


@pytest.mark.parametrize("template", ["file:{", "file:{0}", "file:{uri.x}"])
def test_a_template_that_cannot_be_filled_is_an_error_of_the_recipe(
    tmp_path: Path, template: str
) -> None:
    write_table(tmp_path / "t.csv", [GOOD])
    assert complaint(tmp_path, f'sources = "t.csv"\n[columns]\nuri = "{template}"\n').startswith(
        "t.csv: row "
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.jsonl", b'{"uri": "file:a.mp4"}\n{"uri"\n', "t.jsonl: row 2: not JSON: "),
        ("t.jsonl", b"[1]\n", "t.jsonl: row 1: got [1], a row is an object of columns"),
        ("t.jsonl", b"\xff", "t.jsonl: line 1 is not UTF-8; in cp1252 it would be '\xff': if that"),
        (
            "t.csv",
            b"uri\nfile:\xff\n",
            "t.csv: line 2 is not UTF-8; in cp1252 it would be 'file:\xff'",
        ),
        ("t.csv", b"uri,from\n", "mine.toml: no sources: t.csv has no rows"),
        ("t.parquet", b"PAR1", "t.parquet cannot be read: "),
    ],
)
def test_a_table_that_cannot_be_read_says_so(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert complaint(tmp_path, f'sources = "{name}"').startswith(expected)


def table_sources(folder: Path, name: str, content: str | bytes, columns: str) -> list[Source]:
    """The sources of a table, in key order."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(sources(folder, f'sources = "{name}"\n[columns]\n{columns}\n'))


def table_complaint(folder: Path, name: str, content: str | bytes, columns: str) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return complaint(folder, f'sources = "{name}"\n[columns]\n{columns}\n')


CAPTION = 'caption = "caption"'


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('a,"the end\nfile:b,a dog\n', "t.csv: row 3: a cell begins with a quote"),
        ('a,"the end\nfile:b,a dog"\n', "t.csv: row 3: the column 'caption' holds whole rows"),
        ('a,"the end\nfile:b,"a dog"\n', "t.csv: row 3: text follows the closing quote"),
        ("a\n", "t.csv: row 3: ends after 1 of 2 cells, before the column 'caption'; it holds"),
        ("a,a dog, brown\n", "t.csv: row 3: has 3 cells, the header names 2 columns; too much is "),
    ],
)
def test_a_row_that_is_cut_or_runs_on_is_refused_with_its_number(
    tmp_path: Path, rows: str, expected: str
) -> None:
    content = 'uri,caption\nfile:0,"two\nlines"\nfile:' + rows
    assert table_complaint(tmp_path, "t.csv", content, CAPTION).startswith(expected)


def test_a_row_without_content_is_none(tmp_path: Path) -> None:
    content = "uri,caption\nfile:a,x\n\n,\nfile:b,y,\n,,,\n"
    listed = table_sources(tmp_path, "t.csv", content, CAPTION)
    assert sorted(source.uri for source in listed) == ["file:a", "file:b"]


def test_equal_rows_with_an_id_unite_their_captions(tmp_path: Path) -> None:
    content = "uri,id,caption\nfile:a,sea,waves\nfile:a,sea,foam\nfile:a,sea,waves\n"
    (source,) = table_sources(tmp_path, "t.csv", content, f'id = "id"\n{CAPTION}')
    assert source == Source("sea", "file:a", ("waves", "foam"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "uri\tcaption\nfile:a\tred, green\n"),
        ("t.csv", "uri\tcaption\nfile:a\tred, green\n"),
        ("t.csv", "uri;caption\nfile:a;red, green\n"),
        ("t.csv", "sep=;\r\nuri;caption\r\nfile:a;red, green\r\n"),
        ("t.csv", 'uri|caption\nfile:a|"red, green"\n'),
        ("t.csv", 'uri,caption\rfile:a,"red, green"\r'),
        ("T.CSV", 'uri,caption\nfile:a,"red, green"\n'.encode("utf-8-sig")),
        ("t.csv", "uri\tcaption\r\nfile:a\tred, green\r\n".encode("utf-16")),
        ("t.csv", b"\xfe\xff" + 'uri,caption\nfile:a,"red, green"\n'.encode("utf-16-be")),
    ],
)
def test_delimiters_and_marked_encodings_are_recognised(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    (source,) = table_sources(tmp_path, name, content, CAPTION)
    assert (source.uri, source.captions) == ("file:a", ("red, green",))


def test_an_encoding_that_says_nothing_is_refused_with_what_helps(tmp_path: Path) -> None:
    said = table_complaint(tmp_path, "t.csv", "uri,caption\nfile:a,é\n".encode("cp1252"), CAPTION)
    assert said == (
        "t.csv: line 2 is not UTF-8; in cp1252 it would be 'file:a,é': if that is right, save it "
        "as UTF-8 (a spreadsheet calls that 'CSV UTF-8'), or convert it: iconv -f CP1252 -t UTF-8"
    )
    said = table_complaint(tmp_path, "t.csv", "uri,caption\n".encode("utf-16-le"), CAPTION)
    assert "iconv -f UTF-16 -t UTF-8" in said


@pytest.mark.parametrize(
    "columns", ['uri = "{long}"', 'uri = "file:{{{long}}}"', 'caption = "{long}"', "license = 'x'"]
)
@pytest.mark.parametrize("table", ["uri,{long},{long}\nfile:a,1\n", "uri,{long}\nfile:a\n"])
def test_a_column_of_a_very_long_name_makes_no_long_line(
    tmp_path: Path, table: str, columns: str
) -> None:
    long = "7" * 3000
    said = table_complaint(tmp_path, "t.csv", table.format(long=long), columns.format(long=long))
    assert said.startswith("t.csv: row ")
    assert len(said) < 800


def test_a_column_is_named_once_and_a_near_one_is_suggested(tmp_path: Path) -> None:
    said = table_complaint(tmp_path, "t.csv", "uri, Caption\nfile:a,x\n", CAPTION)
    assert said.endswith("no column 'caption'; there are uri,  Caption; did you mean ' Caption'?")
    said = table_complaint(tmp_path, "t.csv", "uri,caption,caption\nfile:a,x,y\n", CAPTION)
    assert said == "t.csv: row 1: the column 'caption' stands there twice: rename one"
    said = table_complaint(tmp_path, "t.jsonl", '{"uri": "file:a", "uri": "file:b"}\n', "")
    assert said == "t.jsonl: row 1: not JSON: 'uri' stands there twice"


def test_local_files_that_are_not_there_are_named_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    rows = [{"uri": f"file:{name}.mp4", "id": name} for name in "abc"]
    write_table(tmp_path / "t.csv", rows)
    text = 'sources = "t.csv"\n[columns]\nid = "id"\n[[source]]\nuri = "file:x/*.mp4"\n'
    path = recipe_at(tmp_path, text + '[[source]]\nuri = "https://example.org/a.mp4"\n')
    with pytest.raises(RecipeError) as caught:
        recipe.check_files(path, {"c"})
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "mine.toml:4: source[0]: uri: there is no file file:x/*.mp4",
        "t.csv: row 3: uri: there is no file file:b.mp4",
    ]


# Lists


SPANS = "[['0:00:01','0:00:05'],['0:00:05','0:00:09']]"


@pytest.mark.parametrize(
    ("spans", "captions", "expected"),
    [
        (SPANS, "['a man',\n 'it\\'s a dog']", ["a man", "it's a dog"]),
        (SPANS, '["a man", "a dog"]', ["a man", "a dog"]),
        (SPANS, "array(['a man', 'a dog'], dtype=object)", ["a man", "a dog"]),
        (SPANS, "[np.str_('a man'), np.str_('a dog')]", ["a man", "a dog"]),
        (SPANS, '["a man", null]', ["a man", None]),
        (SPANS, "['a man', nan]", ["a man", None]),
        (SPANS, "[1 2]", ["1", "2"]),
        (SPANS, "a man", ["a man", "a man"]),
        (SPANS, "[music]", ["[music]", "[music]"]),
        ("[[1.  5.]\n [5.  9.]]", "a man", ["a man", "a man"]),
        ("[[1, 5], [5, 9.0]]", "a man", ["a man", "a man"]),
        ("[list(['1', '5']) list(['5', '9'])]", "a man", ["a man", "a man"]),
        ("[array([1., 5.]) array([5., 9.])]", "a man", ["a man", "a man"]),
    ],
)
def test_lists_as_others_write_them(
    tmp_path: Path, spans: str, captions: str, expected: list[str | None]
) -> None:
    write_table(tmp_path / "t.csv", [{"uri": "file:a", "at": spans, "caption": captions}])
    columns = f'[columns]\nranges = "at"\n{CAPTION}\n'
    listed = sources(tmp_path, f'sources = "t.csv"\n{columns}')
    by_start = sorted(listed, key=lambda source: source.start_s or 0)
    assert [(source.start_s, source.end_s) for source in by_start] == [(1, 5), (5, 9)]
    assert [source.captions for source in by_start] == [
        (each,) if each else () for each in expected
    ]


@pytest.mark.parametrize(
    ("spans", "captions", "expected"),
    [
        (
            "[[1, 2], [2, 3], [3, 4]]",
            "['a man', 'a dog']",
            "caption: got 2 captions, wanted is one",
        ),
        (
            "[[1, 2], [2, 3]]",
            '["a man"]',
            "caption: got 1 captions, wanted is one for each of the 2",
        ),
        ("[[1, 2], [2, 3]]", "['a man' 'a dog']", "side by side without a comma: numpy means two"),
        ("[[1, 2]]", "['a man'\n 'a dog']", "side by side without a comma"),
        ("[[1, 2]]", "['a man' 'a dog', 'a cat']", "side by side without a comma"),
        ("[[1 2, 3]]", "x", "parted by commas, others by blanks"),
        ("[[1, 2]]", "['a man' 'a d", "which is no list"),
        ("[[1, 2]]", "['a man' ... 'a dog']", "which is no list"),
        ("[[1, 2]]", "[a man, a dog]", "which is no list"),
        ("[[1, 2]]", "[{'a': 1}]", "which is no list"),
        ("[[1, 2]]", '[["a"]]', "caption: got ['a'], wanted is a text"),
        ("[]", "x", "at: is empty, wanted is a list of [start, end]"),
        ("", "x", "at: is empty, wanted is a list of [start, end]"),
        ("[[1, null]]", "x", "at: got ['1', None], a time range is [start, end]"),
        ("[[1, 'soon']]", "x", "end (column 'at'): got 'soon', a time is seconds or [H:]MM:SS"),
    ],
)
def test_lists_that_are_half_or_do_not_agree_are_refused(
    tmp_path: Path, spans: str, captions: str, expected: str
) -> None:
    write_table(tmp_path / "t.csv", [{"uri": "file:a", "at": spans, "caption": captions}])
    said = complaint(tmp_path, f'sources = "t.csv"\n[columns]\nranges = "at"\n{CAPTION}\n')
    assert said.startswith("t.csv: row 2: ")
    assert expected in said


def test_a_list_without_ranges_is_several_captions(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"uri": "file:a", "caption": "['a man', 'a dog']"}])
    (source,) = sources(tmp_path, f'sources = "t.csv"\n[columns]\n{CAPTION}\n')
    assert source.captions == ("a man", "a dog")


def test_ranges_and_a_start_exclude_each_other(tmp_path: Path) -> None:
    said = table_complaint(tmp_path, "t.csv", "uri,x\n", 'ranges = "x"\nend = "x"')
    assert said.startswith("mine.toml:3: columns.ranges: a row has ranges, or a start and an end")


# Types of columns


def arrow(folder: Path, columns: dict[str, pa.Array], mapping: str) -> list[Source]:
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return list(sources(folder, f'sources = "t.parquet"\n[columns]\n{mapping}\n'))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([13.58], pa.float32()),
        pa.array([13.58], pa.float64()),
        pa.array(["13.580"]),
        pa.array(["0:13.58"]),
        pa.array([13580], pa.duration("ms")),
        pa.array([13580000000], pa.duration("ns")),
        pa.array([13580], pa.time32("ms")),
        pa.array([13580000000], pa.time64("ns")),
        pa.array([Decimal("13.58")], pa.decimal128(9, 4)),
        pa.array(["13.58"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_a_time_is_what_was_meant_whatever_the_column_s_type(tmp_path: Path, column: Any) -> None:
    uris = pa.array(["file:a"])
    (source,) = arrow(tmp_path, {"uri": uris, "to": column}, 'end = "to"')
    assert source.end_s == Fraction(1358, 100)
    (source,) = arrow(
        tmp_path, {"uri": uris, "at": pa.array([[[0.5, 13.58]]], RANGES)}, 'ranges = "at"'
    )
    assert (source.start_s, source.end_s) == (Fraction(1, 2), Fraction(1358, 100))


RANGES = pa.list_(pa.list_(pa.float32()))


def test_half_floats_and_nanoseconds_are_exact(tmp_path: Path) -> None:
    columns = {
        "uri": pa.array(["file:a"]),
        "from": pa.array([np.float16(1.1)], pa.float16()),
        "to": pa.array([3_000_000_001], pa.duration("ns")),
    }
    (source,) = arrow(tmp_path, columns, 'start = "from"\nend = "to"')
    assert (source.start_s, source.end_s) == (Fraction(11, 10), Fraction(3_000_000_001, 10**9))


def test_numbers_are_texts_where_texts_are_due(tmp_path: Path) -> None:
    columns = {
        "n": pa.array([7], pa.int64()),
        "x": pa.array([5.0], pa.float64()),  # a column of whole numbers with gaps
        "label": pa.array([12], pa.int8()),
        "empty": pa.array([float("nan")]),
    }
    mapping = 'uri = "file:{n}-{x}"\nid = "x"\ncaption = "label"\nend = "empty"'
    (source,) = arrow(tmp_path, columns, mapping)
    assert source == Source("5", "file:7-5", ("12",))


@pytest.mark.parametrize(
    ("column", "mapping", "expected"),
    [
        (pa.array([0], pa.timestamp("s")), 'start = "x"', "start (column 'x'): got '1970-01-01"),
        (pa.array([True]), 'start = "x"', "x: got True, wanted is seconds or [H:]MM:SS"),
        (pa.array([True]), 'id = "x"', "x: got True, wanted is a text"),
        (pa.array([1e20]), 'id = "x"', "x: got 1e+20, a number whose last digits are lost"),
        (pa.array([None], pa.string()), 'id = "{uri}{x}"', "x: is empty, and '{uri}{x}' needs it"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_column(
    tmp_path: Path, column: Any, mapping: str, expected: str
) -> None:
    parquet.write_table(pa.table({"uri": ["file:a"], "x": column}), tmp_path / "t.parquet")
    said = complaint(tmp_path, f'sources = "t.parquet"\n[columns]\n{mapping}\n')
    assert said.startswith(f"t.parquet: row 1: {expected}")


def test_two_rows_with_one_id_are_both_named(tmp_path: Path) -> None:
    write_table(
        tmp_path / "t.csv",
        [{"uri": "file:a.mp4", "name": "sea"}, {"uri": "file:b.mp4", "name": "sea"}],
    )
    said = complaint(tmp_path, 'sources = "t.csv"\n[columns]\nid = "name"\n')
    assert said == "t.csv: row 3: the id 'sea' is taken by t.csv: row 2: ids must differ"


# Anything at all


WORDS = [
    "[[source]]",
    "[cut]",
    "[filter]",
    "uri",
    "start",
    "end",
    "caption",
    "detector",
    "min_frames",
    "=",
    '"file:a"',
    '"1:2:x"',
    "1e999",
]
LIKE_A_RECIPE = st.lists(
    st.sampled_from(
        [*WORDS, "nan", "true", "[]", "{}", "\n", "\n", "-1", "07:32:00", "[", '"none"', "sources"]
    )
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text()
    | LIKE_A_RECIPE.map(" ".join)
    | LIKE_A_RECIPE.map(lambda words: SOURCE + " ".join(words))
)
def test_any_text_is_a_recipe_or_a_recipe_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    said = ""
    try:
        assert recipe.load(path).sources
    except RecipeError as error:
        said = str(error)
    assert not said or "mine.toml" in said or "sources table" in said


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary() | st.text().map(str.encode),
    suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]),
)
def test_any_table_is_sources_or_a_recipe_error(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises(RecipeError, match="t" + suffix):
        sources(tmp_path, f'sources = "t{suffix}"')
