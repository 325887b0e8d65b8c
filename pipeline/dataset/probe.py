"""The few values of an array that a lock keeps, to tell a last bit from another film.

Digests cannot do that: a rebuild on another processor differs in last bits. The places are drawn
from the array's size alone, so that whoever has the array finds the same values (docs/lock.md).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROBES = 32  # values kept of every array


def places_of(size: int) -> NDArray[np.int64]:
    """The flat positions of the kept values in an array of `size` values: `PROBES` int64."""
    seed = f"longtake probe {size}".encode()
    numbers = np.frombuffer(hashlib.shake_256(seed).digest(8 * PROBES), "<u8")
    return (numbers % max(1, size)).astype(np.int64)


def probe_of(path: Path) -> str:
    """The kept values of a .npy file: float16, little-endian, base64."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    values = array.reshape(-1)[places_of(array.size)].astype("<f2")
    return base64.b64encode(values.tobytes()).decode()


def values_of(probe: str) -> NDArray[np.float32]:
    """The values that `probe_of` kept: `PROBES` float32."""
    return np.frombuffer(base64.b64decode(probe), "<f2").astype(np.float32)
