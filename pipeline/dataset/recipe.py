"""`manifests/NAME.toml`: what people write, checked before any work.

Sources stand inline as `[[source]]`, or in a table beside the recipe (see source_table.py). Every
error names file, line or row, field, what it got and what is allowed (see complaint.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model, model_validator

from pipeline.core import canonical
from pipeline.core.columns import CellError, Columns
from pipeline.core.errors import RecipeError, printable
from pipeline.core.params import DatasetName, Setup, Table
from pipeline.core.picks import Pick
from pipeline.core.reading import shown, shown_value
from pipeline.core.records import Source
from pipeline.dataset import removals
from pipeline.dataset.complaint import complaint_of, header_lines, line_of, value_complaint
from pipeline.dataset.naming import NAME, toml_of
from pipeline.dataset.rows import KINDS, label, no_column, rows_of
from pipeline.dataset.source_table import SourceEntry, values_of_row
from pipeline.media import addresses, archives, detectors, scorers
from pipeline.media.duplicates import Params as Duplicates
from pipeline.media.fetch import Params as Download
from pipeline.media.reel import Params as Extract
from pipeline.media.scorers import head
from pipeline.stages import NAMES, caption, keep
from pipeline.stages.encode import Params as Encode
from pipeline.stages.filter import Params as Filter
from pipeline.stages.shard import Params as Shard

MAX_NAMED = 10  # of what is wrong in the same way
MAX_COMPLAINTS = 100  # of wrong fields


class Recipe(Table):
    """A dataset, as people write it."""

    name: DatasetName = Field(
        pattern=NAME, max_length=60, description="Name of the dataset: its folder under data/."
    )
    description: str = Field(default="", description="What the dataset is, in a sentence or two.")
    sources: str | None = Field(
        default=None, description=f"A table of sources beside the recipe: {KINDS}."
    )
    columns: Columns = Field(
        default=Columns(), description="Which column of that table holds what."
    )
    source: tuple[SourceEntry, ...] = Field(default=(), description="Sources written here.")
    download: Download = Download()
    cut: detectors.CutTable = detectors.DEFAULT
    filter: Filter = Filter()
    extract: Extract = Extract()
    duplicates: Duplicates | None = None
    encode: Encode = Encode()
    shard: Shard = Shard()

    @model_validator(mode="before")
    @classmethod
    def _default_detector(cls, values: Any) -> Any:
        """A [cut] table that names no detector is about the default one."""
        table = values.get("cut") if isinstance(values, dict) else None
        if isinstance(table, dict) and "detector" not in table:
            return {**values, "cut": {"detector": detectors.DEFAULT.detector, **table}}
        return values


def _tables_of_other_stages() -> dict[str, Any]:
    """The table of each stage of the chain that has one and is not named in Recipe."""
    modules = {
        name: import_module(f"pipeline.stages.{name}")
        for name in NAMES
        if name not in Recipe.model_fields
    }
    return {
        name: (module.Params, getattr(module, "WITHOUT", None) or module.Params())
        for name, module in modules.items()
        if hasattr(module, "Params")
    }


FullRecipe: type[Recipe] = create_model("Recipe", __base__=Recipe, **_tables_of_other_stages())


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, its sources in key order, where it was read from, and the sources that were
    taken down, by key.
    """

    recipe: Recipe
    sources: tuple[Source, ...]
    path: Path
    removed: Mapping[str, removals.Removal] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where relative addresses begin."""
        return self.path.parent

    @cached_property
    def by_key(self) -> dict[str, Source]:
        """The sources, by key."""
        return {source.key: source for source in self.sources}

    @cached_property
    def footage(self) -> removals.Footage:
        """What was taken down, by its bytes."""
        return removals.footage_of(self.removed)

    @cached_property
    def picks(self) -> Mapping[str, Pick]:
        """The picks that count, by the clip's digest, read once: what a build uses is what its lock
        names, whoever picks meanwhile.
        """
        return keep.picks_of(replace(self.setup("auto", offline=True), picks=None))

    def setup(self, device: str, offline: bool = False) -> Setup:
        """What the stages of this dataset are made from."""
        tables = tuple(value for _, value in self.recipe if isinstance(value, Table))
        return Setup(tables, self.folder, device, offline, picks=lambda: self.picks)

    @property
    def digest(self) -> str:
        """What the recipe and its table say, whatever their layout, comments and spelt-out
        defaults.
        """
        # what they give is in `sources`; and who is asked for captions is no part of a dataset
        left_out: dict[str, Any] = {
            "source": True,
            "sources": True,
            "columns": True,
            "caption": caption.PLACES,
        }
        options = self.recipe.model_dump(exclude=left_out, exclude_defaults=True)
        if any(addresses.scheme(source.uri) in addresses.ARCHIVES for source in self.sources):
            # what stands beside a video in an archive is read by them
            columns = self.recipe.columns
            options["columns"] = {"caption": columns.caption, "license": columns.license}
        setup = self.setup("auto", offline=True)
        if keep.picks_path(setup) is not None:
            options["picks"] = keep.digest_of(self.picks)
        if (table := caption.digest_of_table(setup)) is not None:
            options["captions"] = table
        return canonical.digest([canonical.plain(options), self.sources])


def load(path: Path) -> Loaded:
    """Read and check a recipe and its table. Raises RecipeError."""
    recipe, text = _recipe_at(path)
    sources = _sources_of(recipe, path, text)
    if not sources:
        if recipe.sources is not None:
            table = label(path.parent / recipe.sources)
            raise RecipeError(f"{path}: no sources: {table} has no rows")
        raise RecipeError(f'{path}: no sources: write [[source]] tables or sources = "FILE.csv"')
    loaded = Loaded(recipe, sources, path, removals.read(path))
    _check_rules(loaded, text)
    _check_captions(loaded, text)
    return loaded


def _check_rules(loaded: Loaded, text: str) -> None:
    """Raises RecipeError where a rule of [keep] names a score that is not measured."""
    complaints = [
        f"{loaded.path}:{line_of(text, ['keep', name])}: keep.{name}: {problem}"
        for name, problem in keep.problems(loaded.setup("auto", offline=True))
    ]
    if complaints:
        raise RecipeError("\n".join(complaints))


def _check_captions(loaded: Loaded, text: str) -> None:
    """Raises RecipeError where a table [caption] is written that gives no captions."""
    if "caption" not in loaded.recipe.model_fields_set:
        return
    if problem := caption.problem(loaded.setup("auto", offline=True)):
        raise RecipeError(f"{loaded.path}:{line_of(text, ['caption'])}: caption: {problem}")


def check_files(path: Path, removed: Collection[str]) -> None:
    """Look whether the local files that a recipe names are there, but those of `removed` sources.
    Raises RecipeError with those that are not.
    """
    recipe, text = _recipe_at(path)
    complaints = []
    for place, entry in _entries(recipe, path, text):
        source = entry.source()
        if source.key not in removed and not archives.is_there(source.uri, path.parent):
            complaints.append(f"{place}: uri: there is no file {printable(source.uri)}")
    complaints += _complaints_of_heads(recipe, path, text)
    if complaints:
        raise RecipeError("\n".join(_first(complaints)))


def _complaints_of_heads(recipe: Recipe, path: Path, text: str) -> Iterator[str]:
    """What is wrong with the files of heads that clips are scored by."""
    table = next(value for _, value in recipe if isinstance(value, scorers.Choice))
    for scorer in table.chosen:
        for name, file in scorer.files(path.parent).items():
            try:
                head.read(file)
            except RecipeError as error:
                line = line_of(text, ["score", scorer.name, name])
                yield f"{path}:{line}: score.{scorer.name}.{name}: {error}"


def _recipe_at(path: Path) -> tuple[Recipe, str]:
    """A recipe without its sources, and its text."""
    text, values = toml_of(path)
    try:
        return FullRecipe.model_validate({"name": path.stem, **values}), text
    except ValidationError as error:
        # each takes a search through the text
        problems = error.errors(include_url=False)[:MAX_COMPLAINTS]
        complaints = [complaint_of(problem, path, text, FullRecipe) for problem in problems]
        if error.error_count() > MAX_COMPLAINTS:
            complaints.append(f"and {error.error_count() - MAX_COMPLAINTS} more")
        raise RecipeError("\n".join(dict.fromkeys(complaints))) from error


def schema() -> str:
    """The JSON schema of a recipe, for editors."""
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **FullRecipe.model_json_schema(),
        "required": [],
    }
    return json.dumps(content, indent=1) + "\n"


def _sources_of(recipe: Recipe, path: Path, text: str) -> tuple[Source, ...]:
    """Inline sources and the table's, in key order. An id that is taken is an error; of
    equal sources the captions are united.
    """
    places: dict[str, str] = {}
    sources: dict[str, Source] = {}
    for place, entry in _entries(recipe, path, text):
        source = entry.source()
        first = sources.get(source.key)
        if first is not None:
            if replace(source, captions=()) != replace(first, captions=()):
                raise RecipeError(
                    f"{place}: the id '{source.key}' is taken by {places[source.key]}: ids must "
                    "differ"
                )
            captions = tuple(dict.fromkeys(first.captions + source.captions))
            source = replace(source, captions=captions)
        sources[source.key] = source
        places.setdefault(source.key, place)
    if recipe.download.licenses is not None:
        line = line_of(text, ["download", "licenses"])
        rule = f"{path}:{line}: download.licenses"
        _check_licenses(sources, places, recipe.download.licenses, rule)
    return tuple(sources[key] for key in sorted(sources))


def _check_licenses(
    sources: Mapping[str, Source], places: Mapping[str, str], allowed: tuple[str, ...], rule: str
) -> None:
    near = {name.lower(): f"; did you mean {name!r}?" for name in allowed}
    complaints = []
    for key, source in sources.items():
        name = (source.license or "").strip()
        if name not in allowed:
            has = f"the licence {name!r}" if name else "no licence"
            complaints.append(f"{places[key]}: '{key}' has {has}{near.get(name.lower(), '')}")
    if not complaints:
        return
    raise RecipeError(
        "\n".join([*_first(complaints), f"{rule} allows {', '.join(map(repr, allowed))}"])
    )


def _first(complaints: Sequence[str]) -> list[str]:
    """The first complaints of one kind, and how many there are besides."""
    num_more = len(complaints) - MAX_NAMED
    return [*complaints[:MAX_NAMED], *([f"and {num_more} more"] if num_more > 0 else [])]


def _entries(recipe: Recipe, path: Path, text: str) -> Iterator[tuple[str, SourceEntry]]:
    """Every source as it is written, and the place where."""
    headers = header_lines(text, "source")
    is_array = len(headers) == len(recipe.source)
    line_of_all = 0 if is_array else line_of(text, ["source"])
    for index, entry in enumerate(recipe.source):
        line = headers[index] + 1 if is_array else line_of_all
        yield f"{path}:{line}: source[{index}]", entry
    if recipe.sources is None:
        return
    table, columns = path.parent / recipe.sources, recipe.columns
    if columns.ranges is not None and (columns.start is not None or columns.end is not None):
        line = line_of(text, ["columns", "ranges"])
        raise RecipeError(
            f"{path}:{line}: columns.ranges: a row has ranges, or a start and an end: name one"
        )
    try:
        for number, row in rows_of(table, columns.names, columns.uri):
            place = f"{label(table)}: row {number}"
            for entry in _entries_of_row(place, row, columns):
                yield place, entry
    except (OSError, ValueError) as error:  # not parquet, a folder, ...
        raise RecipeError(f"{label(table)} cannot be read: {shown(str(error))}") from error


def _entries_of_row(place: str, row: Any, columns: Columns) -> list[SourceEntry]:
    if not isinstance(row, dict):
        got = shown_value(row)
        raise RecipeError(f"{place}: got {got}, a row is an object of columns")
    try:
        return [SourceEntry.model_validate(values) for values in values_of_row(row, columns)]
    except ValidationError as error:
        problem: Any = error.errors()[0]
        field_name = ".".join(str(part) for part in problem["loc"][:1])
        column = getattr(columns, field_name, None) or columns.ranges
        name = field_name or "the row"
        if column not in (None, field_name):
            name = f"{name} (column {shown_value(column)})"
        raise RecipeError(f"{place}: {name}: {value_complaint(problem)}") from error
    except KeyError as error:
        raise no_column(place, str(error.args[0]), list(row)) from error
    except CellError as error:
        raise RecipeError(f"{place}: {printable(str(error))}") from error
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise RecipeError(f"{place}: {shown(str(error))}") from error
