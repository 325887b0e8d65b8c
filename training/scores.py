"""Numbers of an evaluation: by method, metric, window and film; as a table, as JSON, as pictures.

A number is a window's. Windows of one film are alike, so a method's number is the mean of its
films' means, and its spread, after the sign ±, the standard deviation over films. One film has no
spread: what it shows may be so of that film alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.table import Table

from training import media, writing
from training.frames import Window
from training.heldout import Place


@dataclass(frozen=True)
class Spread:
    """One number of each window, beside the window's film; None where it has none, as motion where
    nothing moves.
    """

    values: tuple[float | None, ...]
    films: tuple[str, ...]

    @property
    def by_film(self) -> dict[str, float]:
        """The mean of each film that has a number."""
        numbers: dict[str, list[float]] = {}
        for film, value in zip(self.films, self.values, strict=True):
            if value is not None:
                numbers.setdefault(film, []).append(value)
        return {film: statistics.fmean(values) for film, values in numbers.items()}

    @property
    def mean(self) -> float | None:
        means = list(self.by_film.values())
        return statistics.fmean(means) if means else None

    @property
    def std(self) -> float | None:
        """Over films; None of less than two."""
        means = list(self.by_film.values())
        return statistics.stdev(means) if len(means) > 1 else None

    def plain(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}


@dataclass(frozen=True)
class Score:
    """What one method's pictures measure."""

    method: str
    metrics: Mapping[str, Spread]


@dataclass(frozen=True)
class Column:
    """Of a table: a metric, its heading, its decimals, and those of its spread over films, if that
    is shown.
    """

    metric: str
    heading: str
    decimals: int
    spread: int | None = None

    def cell(self, spread: Spread) -> str:
        if spread.mean is None:
            return "-"
        mean = f"{spread.mean:.{self.decimals}f}"
        if self.spread is None or spread.std is None:
            return mean
        return f"{mean} ±{spread.std:.{self.spread}f}"


@dataclass(frozen=True, eq=False)
class Report:
    """All methods, over the windows of one shape. `facts` are what else is to be said of it, for
    programs; `lines` for people.
    """

    window: Window
    fps: Fraction
    places: tuple[Place, ...]
    scores: tuple[Score, ...]
    columns: tuple[Column, ...]
    sheet: Image.Image
    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    @property
    def films(self) -> list[str]:
        return list(dict.fromkeys(place.film for place in self.places))

    def spread(self, method: str, metric: str) -> Spread:
        """KeyError if there is no such row."""
        return {score.method: score for score in self.scores}[method].metrics[metric]

    def plain(self) -> dict[str, Any]:
        return {
            "window": str(self.window),
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "num_films": len(self.films),
            "films": self.films,
            "num_windows": len(self.places),
            "windows": [
                {"film": place.film, "key": place.key, "start": place.start}
                for place in self.places
            ],
            **self.facts,
            "scores": {
                score.method: {name: spread.plain() for name, spread in score.metrics.items()}
                for score in self.scores
            },
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that was measured; `facts` say of what, `notes` what could not be measured."""

    facts: dict[str, Any]
    reports: tuple[Report, ...]
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        return {
            **self.facts,
            "notes": list(self.notes),
            "reports": [report.plain() for report in self.reports],
        }


def scores(
    places: Sequence[Place], outcomes: Sequence[Mapping[str, Mapping[str, float | None]]]
) -> tuple[Score, ...]:
    """From each window's numbers by method and metric, each method's over all windows."""
    films = tuple(place.film for place in places)
    rows = []
    for method, metrics in outcomes[0].items():
        spreads = {}
        for name in metrics:
            values = [outcome[method][name] for outcome in outcomes]
            spreads[name] = Spread(tuple(values), films)
        rows.append(Score(method, spreads))
    return tuple(rows)


def table(report: Report) -> Table:
    """For a terminal of 80 columns: a row a method."""
    films = report.films
    names = ", ".join(films) if len(films) <= 3 else f"{films[0]} ... {films[-1]}"
    of_films = f"1 film ({names}), so no ±" if len(films) == 1 else f"{len(films)} films ({names})"
    number = len(report.places)
    windows = "1 window" if number == 1 else f"{number} windows"
    rows = Table(
        title=f"{report.window}: {float(report.fps):g} fps, {windows} of {of_films}",
        box=box.SIMPLE,
        padding=0,
        show_edge=False,
        pad_edge=False,
    )
    rows.add_column("", no_wrap=True)
    for column in report.columns:
        rows.add_column(column.heading, justify="right", no_wrap=True)
    for score in report.scores:
        cells = [column.cell(score.metrics[column.metric]) for column in report.columns]
        rows.add_row(score.method, *cells)
    return rows


def save(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write evaluation.json, and a comparison sheet of each shape of window, into a run's folder.
    Returns their paths.
    """
    paths = [folder / "evaluation.json"]
    writing.write_json(paths[0], evaluation.plain())
    for report in evaluation.reports:
        name = f"evaluation-{report.window.num_frames}-at-{report.window.stride}.png"
        paths.append(folder / name)
        media.write_image(paths[-1], report.sheet)
    return paths
