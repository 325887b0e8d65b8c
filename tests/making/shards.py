"""Shards written by hand, so that they may be wrong: nothing of `pipeline` writes them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.shards import FORMAT, Index, open_index

SHAPE = (4, 2, 2)
TEXT = (7, 3)
SCALE = 0.5
Members = dict[str, bytes]
Change = Callable[[dict[str, Any]], object]


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=True)
    return file.getvalue()


def new_latents(
    number: int, num_frames: int, shape: tuple[int, ...] = SHAPE
) -> np.ndarray[Any, Any]:
    """Every number of a frame says which clip and which frame it is of: 64 * clip + frame % 64 is
    exact in float16.
    """
    frames = np.arange(num_frames).reshape(-1, 1, 1, 1) % 64 + 64 * number
    return np.broadcast_to(frames, (num_frames, *shape)).astype(np.float16)


def new_text(number: int, caption: int = 0) -> np.ndarray[Any, Any]:
    return np.full(TEXT, 10 * number + caption + 1, np.float16)


def new_clip(
    number: int,
    num_frames: int,
    captions: int = 1,
    shape: tuple[int, ...] = SHAPE,
    version: int = FORMAT,
) -> Members:
    rows = [new_text(number, caption) for caption in range(captions)]
    texts = {"text.npy": npy(np.stack(rows))}
    if version == 1:
        texts = {f"text{caption or ''}.npy": npy(row) for caption, row in enumerate(rows)}
    return {
        "json": b"{}",
        "latents.npy": npy(new_latents(number, num_frames, shape)),
        **texts,
        "later.npy": b"what no reader knows yet",
    }


def new_shards(
    folder: Path,
    clips: Mapping[str, Members],
    per_shard: int = 3,
    split: str = "train",
    shape: tuple[int, ...] = SHAPE,
    text_shape: tuple[int, int] = TEXT,
    version: int = FORMAT,
) -> Index:
    """A folder of shards with these clips, opened."""
    folder.mkdir(exist_ok=True)
    keys = list(clips)
    parts = [keys[at : at + per_shard] for at in range(0, len(keys), per_shard)]
    entries = [
        write_tar(folder / f"{number:05d}.tar", {key: clips[key] for key in part}, split)
        for number, part in enumerate(parts)
    ]
    null = npy(np.zeros(text_shape, np.float16))
    index = {
        "format": version,
        "name": "made",
        "fps": "10/1",
        "size": 16,
        "latents": {
            "axes": "f c h w",
            "dtype": "float16",
            "scaling_factor": SCALE,
            "shape": list(shape),
        },
        "encoders": {
            "vae": {"name": "vae", "revision": None, "sha256": "a" * 64},
            "clip": {
                "name": "clip",
                "revision": None,
                "sha256": "b" * 64,
                "text_layer": "last",
                "pad_token": 49407,
            },
            "precision": "float32",
            "chunk_frames": 8,
        },
        "null_text": {
            "npy_base64": base64.b64encode(null).decode(),
            "sha256": hashlib.sha256(null).hexdigest(),
        },
        "num_samples": len(keys),
        "shards": entries,
        "built": {},
    }
    seal(folder, index)
    return open_index(folder)


def write_tar(path: Path, clips: Mapping[str, Members], split: str) -> dict[str, Any]:
    with tarfile.open(path, "w:") as file:
        for key, members in clips.items():
            for name, content in members.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    with tarfile.open(path, "r:") as file:
        where = {member.name: member.offset_data for member in file.getmembers()}
    samples = [
        {
            "key": key,
            "members": {
                name: [where[f"{key}.{name}"], len(content), hashlib.sha256(content).hexdigest()]
                for name, content in members.items()
            },
        }
        for key, members in clips.items()
    ]
    content = path.read_bytes()
    return {
        "file": path.name,
        "split": split,
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "samples": samples,
    }


def seal(folder: Path, index: dict[str, Any]) -> None:
    index["root_digest"] = hashlib.sha256(
        "".join(f"{entry['sha256']}\n" for entry in index["shards"]).encode()
    ).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def change_index(folder: Path, change: Change) -> None:
    """Change the index as `change` does."""
    index = json.loads((folder / "index.json").read_text())
    change(index)
    seal(folder, index)
