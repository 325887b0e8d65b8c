"""What tests of training share: PyTorch on one thread, and shards of waves that travel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.making.runs import wave_shards
from training.shards import Index, open_index


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    wave_shards(folder, 4, 12)
    return folder


@pytest.fixture
def index(folder: Path) -> Index:
    return open_index(folder)
