"""The cut detectors that a recipe may name, in one list.

A new one is a file in this folder and its name in MODULES: the recipe's keys, their help, the JSON
schema and error messages follow from there. Which one is the default was decided by measured F1 on
a truth set, then by cost: docs/benchmarks.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from pipeline.media.detectors.adaptive import Adaptive
from pipeline.media.detectors.detector import Detector as Detector
from pipeline.media.detectors.detector import Options as Options

MODULES = (
    "adaptive",
    "pyscenedetect",
    "scdet",
    "whole",
)
ALL: tuple[type[Options], ...] = tuple(
    options for name in MODULES for options in import_module(f"{__name__}.{name}").DETECTORS
)
DEFAULT = Adaptive()

# The [cut] table of a recipe: its key `detector` says which of them it is.
if TYPE_CHECKING:
    CutTable = Options
else:
    CutTable = Annotated[Union[ALL], Field(discriminator="detector")]  # noqa: UP007 (a tuple)


def options_of(name: str) -> type[Options] | None:
    """The table of the detector that recipes call `name`; None if there is no such detector."""
    return next((kind for kind in ALL if kind.model_fields["detector"].default == name), None)
