"""A dataset of any number of clips that are nowhere: what a page of 100,000 costs.

`python -m tests.making.many FOLDER 100000` writes its page, with pictures to scroll through.
"""

from __future__ import annotations

import random
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.ledger import Failure
from pipeline.core.manifest import Manifest
from pipeline.core.records import Blob, Clip, Crop, Rejection, Scene, Source, Video
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import Step
from pipeline.dataset.recipe import Loaded
from pipeline.publish.page import bundle
from pipeline.publish.page.contents import Survey, contents
from pipeline.publish.page.pictures import NUM_PICTURES, SIDE
from pipeline.publish.page.report import PLACES
from tests.making.records import container

NUM_SCORES = 20
CLIPS_A_SOURCE = 50
NUM_PICTURES_MADE = 200
FILM = container(1200 * 25, 1200 * 1000, width=1920, height=1080)
WORDS = [
    "a",
    "street",
    "at",
    "night",
    "people",
    "walking",
    "sea",
    "waves",
    "from",
    "above",
    "snow",
    "on",
    "hills",
    "city",
    "lights",
]


def survey(folder: Path, num_clips: int, num_scores: int = NUM_SCORES) -> Survey:
    """Clips with scores, of sources with 50 clips each; every fifth scene was too short."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "many.toml"
    path.write_text('[[source]]\nuri = "file:nowhere.mp4"\n')
    return Survey(recipes.load(path), list(_steps(recipes.load(path), num_clips, num_scores)))


def _steps(loaded: Loaded, num_clips: int, num_scores: int) -> list[Step]:
    draw = random.Random(1)
    sources: list[Source] = []
    videos: list[Video] = []
    scenes: list[Scene] = []
    clips: list[Clip] = []
    short: list[Scene] = []
    for number in range(num_clips):
        if number % CLIPS_A_SOURCE == 0:
            key = f"walk-{number // CLIPS_A_SOURCE:05d}"
            caption = " ".join(draw.choices(WORDS, k=8))
            sources.append(Source(key, f"https://example.org/watch/{key}", (caption,), "CC-BY-4.0"))
            videos.append(Video(key, sources[-1], Blob(_hex(draw), 10**8), "22", FILM))
        start = number % CLIPS_A_SOURCE * 24_000
        frames = draw.randrange(100, 200)
        key = f"{videos[-1].key}-{number % CLIPS_A_SOURCE:04d}"
        scene = Scene(key, videos[-1], start, start + frames * 100)
        scenes.append(scene)
        if number % 5 == 0:
            short.append(Scene(f"{key}s", videos[-1], start + frames * 100, start + 24_000))
        scores = tuple((f"score_{n}", _score(draw, n)) for n in range(num_scores))
        digest = f"{number % NUM_PICTURES_MADE:064x}"
        blob = Blob(digest, draw.randrange(10**6, 3 * 10**6))
        clips.append(Clip(key, scene, blob, frames, Fraction(10), 512, CROP, digest, scores))
    rejections = [
        Rejection(
            s.key, "filter", "bad", "too-few-frames", f"{n % 99} frames at 10 fps, 100 wanted"
        )
        for n, s in enumerate(short)
    ]
    failures = tuple(
        Failure(r, "2026-11-29T16:40:12Z", "2026-11-29T16:40:12Z", 1) for r in rejections
    )
    made: list[tuple[str, Any, Any]] = [
        ("expand", sources, ()),
        ("download", videos, ()),
        ("cut", [*scenes, *short], ()),
        ("filter", scenes, rejections),
        ("extract", clips, ()),
    ]
    return [
        Step(
            Manifest(name, 1, {}, len(records) + len(dropped), 0, tuple(records), tuple(dropped)),
            0,
            0,
            failures=failures if dropped else (),
        )
        for name, records, dropped in made
    ]


CROP = Crop(420, 0, 1080, 1080)


def _hex(draw: random.Random) -> str:
    return f"{draw.getrandbits(256):064x}"


def _score(draw: random.Random, number: int) -> float | None:
    if number == 3 and draw.random() < 0.1:
        return None  # not measured
    value = draw.lognormvariate(-2, 0.8) if number % 2 else draw.random()
    return float(f"{value:.4g}")


def write(folder: Path, num_clips: int) -> Path:
    """The page, and pictures for it."""
    from PIL import Image

    report = folder / "many" / "report"
    (report / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES_MADE):
        strip = Image.effect_noise((SIDE * NUM_PICTURES // 8, SIDE // 8), 60)
        strip = strip.resize((SIDE * NUM_PICTURES, SIDE)).convert("RGB")
        strip.save(report / "pictures" / f"{number:064x}.webp", quality=72)
    seen = survey(folder, num_clips)
    pictures = {clip.key: clip.blob.sha256 for clip in seen.clips}
    data = contents(seen, [], pictures, [], {})
    data |= {"places": PLACES, "picks_file": "many.picks.jsonl", "served": None}
    path = report / "index.html"
    path.write_text(bundle.page(data), "utf-8")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), int(sys.argv[2])))
