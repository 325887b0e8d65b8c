"""Sources downloaded as a build downloads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.core.executors import Inline
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.records import Source
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import fetch
from pipeline.stages import download, expand

PARAMS = fetch.Params(attempts=3)


def download_all(sources: list[Source], store: Store, folder: Path) -> Manifest:
    """Expand the sources and download them; one manifest of both. Addresses of files are relative
    to the folder.
    """
    expanded, _ = run_stage(
        expand.stage(Setup((PARAMS,), folder)), sources, store, Inline(), Progress()
    )
    manifest, _ = run_stage(
        download.stage(Setup((PARAMS,), folder)), expanded.records, store, Inline(), Progress()
    )
    return replace(
        manifest,
        num_in=expanded.num_in,
        num_split=expanded.num_split + manifest.num_split,
        rejections=expanded.rejections + manifest.rejections,
    )
