"""The list of detectors: recipe, schema and messages follow from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.media import detectors, video
from tests.making import footage

NAMES = [options.model_fields["detector"].default for options in detectors.ALL]


def test_every_detector_has_a_name_of_its_own_by_which_it_is_found() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert [detectors.options_of(name) for name in NAMES] == list(detectors.ALL)
    assert detectors.options_of("contnt") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_table_that_names_a_detector_is_that_detector_s_options(
    film: Callable[..., Path], name: str
) -> None:
    options = TypeAdapter(detectors.CutTable).validate_python({"detector": name})
    assert type(options) is detectors.options_of(name)
    path = film(footage.plain, 1, size="64x64")
    facts = video.probe(path)
    detector = options.start(facts)
    for frame, pts, _ in video.frames(path, facts):
        detector.see(frame, float(pts * facts.time_base))
    assert detector.cuts() == []


def test_an_unknown_detector_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(detectors.CutTable).validate_python({"detector": "contnt"})
    assert all(f"'{name}'" in str(caught.value) for name in NAMES)


def test_every_detector_and_every_option_of_it_is_described() -> None:
    for options in detectors.ALL:
        schema = options.model_json_schema()
        assert schema["description"]
        fields = {name: each for name, each in schema["properties"].items() if name != "detector"}
        assert all(each["description"] for each in fields.values())
