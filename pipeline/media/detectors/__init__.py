"""The cut detectors that a recipe may name, in one list.

A new one is a file in this folder, with its options and what they start, and its name in the list:
the recipe's keys, their help, the JSON schema and error messages follow from there. Which one is
the default was decided by measured F1 on a truth set, then by cost: docs/benchmarks.md.
"""

from typing import Annotated, get_args

from pydantic import Field

from pipeline.media.detectors.detector import Detector as Detector
from pipeline.media.detectors.detector import Options as Options
from pipeline.media.detectors.pyscenedetect import Adaptive, Content, Hash, Histogram, Threshold
from pipeline.media.detectors.scdet import Scdet
from pipeline.media.detectors.whole import Whole

AnyOptions = Adaptive | Content | Histogram | Hash | Threshold | Scdet | Whole
ALL: tuple[type[Options], ...] = get_args(AnyOptions)
DEFAULT = Adaptive()

# the [cut] table of a recipe: its key `detector` says which of them it is
CutTable = Annotated[AnyOptions, Field(discriminator="detector")]


def options_of(name: str) -> type[Options] | None:
    """The table of the detector that recipes call `name`; None if there is no such detector."""
    return next((kind for kind in ALL if kind.model_fields["detector"].default == name), None)
