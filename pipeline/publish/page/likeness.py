"""Which clips look alike, by the CLIP embeddings of their frames that are stored anyway.

Every clip is compared with every other one: 20,000 clips take 10 s of a core, and beyond that it is
left out. With a CLIP of random weights (`preset = "tiny"`) alike means alike in colour and layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import Sample
from pipeline.core.store import Store

MOST_CLIPS = 20_000
NUM_LIKES = 4  # of each clip
BLOCK = 1024


def likes_of(samples: Sequence[Sample], store: Store) -> dict[str, list[tuple[str, float]]]:
    """For each clip the ones that are nearest, with the cosine: 1 is equal."""
    with_images = [s for s in samples if s.image is not None and store.has(s.image)]
    if not 1 < len(with_images) <= MOST_CLIPS:
        return {}
    vectors = np.stack([_vector(sample, store) for sample in with_images])
    keys = [sample.key for sample in with_images]
    likes: dict[str, list[tuple[str, float]]] = {}
    for start in range(0, len(keys), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        for row, cosine in enumerate(cosines):
            cosine[start + row] = -np.inf
            nearest = np.argsort(-cosine, kind="stable")[:NUM_LIKES]
            likes[keys[start + row]] = [
                (keys[other], float(cosine[other])) for other in nearest if other != start + row
            ]
    return likes


def _vector(sample: Sample, store: Store) -> NDArray[np.float32]:
    """The mean of a clip's embeddings, of length 1."""
    assert sample.image is not None
    path = store.path(sample.image.sha256)
    embeddings = np.load(path, allow_pickle=False).astype(np.float32)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-6)
    mean: NDArray[np.float32] = embeddings.mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-6)
