"""Make the tiny CLIP: `python -m pipeline.media.tiny.make_clip`. Random weights, fixed by a seed,
never trained.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent / "clip"
CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 64,
            "layers": 2,
            "width": 64,
            "head_width": 32,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
    "longtake": (
        "random weights, seed 0: tells captions and pictures apart, knows nothing about them"
    ),
}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    (OUT / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(CONFIG))
        clip: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(
        {name: value.half().contiguous() for name, value in clip.state_dict().items()},
        OUT / "open_clip_model.safetensors",
    )


if __name__ == "__main__":
    main()
