"""Commands for what is built: rebuild it from its lock, verify it, take a source down, sweep the store, describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.command import CORES, PROCESSES, Data, Device, ExecutorOption, RecipePath, Workers, app, guarded
