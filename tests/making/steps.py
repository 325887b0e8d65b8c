"""The step of one stage among those of a build or a survey."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.dataset.chain import Step


def step_of(name: str, steps: Iterable[Step]) -> Step:
    """The step of the stage of that name; nothing after it is asked for."""
    return next(step for step in steps if step.manifest.stage == name)
