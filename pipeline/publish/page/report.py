"""`report`: the page as a folder, `data/NAME/report`: `index.html` to open, and beside it pictures
and decoded clips. Clips are not copied: the page plays those in `data/NAME/clips`.

Nothing of it enters a key, a manifest or a digest. Pictures and decoded clips are remembered in the
store, so a second report makes only what is new; files here are further names of those blobs.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core import picks
from pipeline.core.cores import num_cores
from pipeline.core.errors import LongtakeError, RecipeError
from pipeline.core.files import make_folder, replace_file
from pipeline.core.records import Blob, Sample, Source
from pipeline.core.stage import Progress
from pipeline.core.store import Store, link_or_copy
from pipeline.dataset.build import known
from pipeline.dataset.recipe import Loaded
from pipeline.media import encoders
from pipeline.publish.page import bundle
from pipeline.publish.page.contents import Survey, contents
from pipeline.publish.page.decoding import Decoder
from pipeline.publish.page.likeness import likes_of
from pipeline.publish.page.pictures import strip_of_clip, strip_of_scene
from pipeline.publish.reproduce import look
from pipeline.stages import encode, keep

MOST_CLIPS = 250_000  # of one page: 60 MB, and 6 s until it is there
PLACES = {
    "clip": "../clips/{key}.mp4",
    "picture": "pictures/{digest}.webp",
    "decoded": "decoded/{digest}.mp4",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What was written. `too_slow` is how long a frame takes to decode, where that ended it."""

    path: Path
    num_clips: int
    num_rejected: int
    num_decoded: int
    num_to_decode: int  # clips with latents
    seconds_a_frame: float | None


def survey_of(loaded: Loaded, data: Path, device: str, source: str = "") -> Survey:
    """A dataset as it stands, or what of it came from one source. Raises RecipeError for more clips
    than a page holds.
    """
    steps, unknown = known(look(loaded, data, device))
    survey = Survey(loaded, steps, unknown, source)
    if source and not survey.records("expand", Source):
        near = difflib.get_close_matches(source, loaded.by_key, 3, cutoff=0.3)
        near = near or sorted(loaded.by_key)[:3]
        raise RecipeError(f"no source is called '{source}'; near it: {', '.join(near)}")
    num_clips = len(survey.clips)
    if num_clips > MOST_CLIPS:
        raise RecipeError(
            f"{num_clips:,} clips are more than one page holds ({MOST_CLIPS:,}): --source KEY "
            "takes those of one source, or of one channel or folder"
        )
    return survey


def write(
    loaded: Loaded,
    data: Path,
    device: str,
    decode_s: float,
    progress: Progress,
    source: str = "",
) -> Report:
    """Make the folder, or bring it up to date. At most `decode_s` seconds go into decoding latents.
    Raises RecipeError.
    """
    store = Store(data.absolute() / "store")
    folder = data / loaded.recipe.name / "report"
    survey = survey_of(loaded, data, device, source)
    strips = strips_of(survey, store, progress)
    samples = survey.records("encode", Sample)
    decoder = decoder_of(loaded, device)
    decoded = _decode(samples, decoder, store, decode_s, progress)
    names = _names(survey, strips)
    page_data = {
        **contents(
            survey,
            picks.read(picks_path(loaded)),
            names,
            decoded,
            likes_of(samples, store),
        ),
        "places": PLACES,
        "picks_file": picks_name(loaded),
        "served": None,
    }
    _link(folder / "pictures", {names[key]: strips[key] for key in strips}, ".webp", store)
    by_digest = {sample.clip.blob.sha256: decoded.get(sample.key) for sample in samples}
    _link(folder / "decoded", by_digest, ".mp4", store)
    replace_file(folder / "index.html", bundle.page(page_data).encode())
    return Report(
        folder / "index.html",
        len(survey.clips),
        len(survey.dropped),
        len(decoded),
        len(samples),
        decoder.seconds_a_frame if decoder else None,
    )


def picks_path(loaded: Loaded) -> Path:
    """The file that holds, or will hold, the picks of a dataset."""
    named = keep.picks_path(loaded.setup("auto", offline=True))
    return named or picks.path_of(loaded.path)


def picks_name(loaded: Loaded) -> str:
    """What the recipe calls that file, or would call it: a path from the recipe's folder."""
    named = loaded.setup("auto", offline=True).table(keep.Params).picks
    return named or picks.path_of(loaded.path).name


def decoder_of(loaded: Loaded, device: str) -> Decoder | None:
    """What decodes the dataset's latents; None where its models are not on this machine."""
    params = loaded.recipe.encode
    try:
        models = encode.find_encoders(params, loaded.folder, offline=True)
        return Decoder(
            models.vae_folder,
            models.vae.sha256,
            params.chunk_frames,
            encoders.choose_device(device),
        )
    except LongtakeError:
        return None


def strips_of(survey: Survey, store: Store, progress: Progress) -> dict[str, Blob]:
    """The strip of every clip and of every rejected scene that has a reel, by key."""
    params = survey.loaded.recipe.extract
    jobs: list[tuple[str, Callable[[], Blob | None]]] = []
    for clip in survey.clips:
        jobs.append((clip.key, _job(strip_of_clip, clip, store)))
    keys = {key for key, _ in jobs}
    for dropped in survey.dropped:
        if dropped.scene is not None and dropped.rejection.key not in keys:
            job = _job(strip_of_scene, dropped.scene, params, store)
            jobs.append((dropped.rejection.key, job))
    progress.start("pictures", len(jobs), float(len(jobs)))
    strips: dict[str, Blob] = {}
    with ThreadPoolExecutor(num_cores()) as pool:  # decoders let go of Python's lock
        results = pool.map(lambda job: job[1](), jobs)
        for (key, _), strip in zip(jobs, results, strict=True):
            progress.advance("pictures", 1, 1.0)
            if strip is not None:
                strips[key] = strip
    return strips


def _job(make: Callable[..., Blob | None], *args: Any) -> Callable[[], Blob | None]:
    return lambda: make(*args)


def _decode(
    samples: Sequence[Sample],
    decoder: Decoder | None,
    store: Store,
    seconds: float,
    progress: Progress,
) -> dict[str, Blob]:
    """Decoded clips by key: those that were made before, and as many more as there is time for."""
    if decoder is None:
        return {}
    deadline = time.monotonic() + seconds
    decoded: dict[str, Blob] = {}
    progress.start("decoding", len(samples), float(len(samples)))
    for sample in samples:
        blob = decoder.decoded_of(sample, store, deadline - time.monotonic())
        progress.advance("decoding", 1, 1.0)
        if blob is not None:
            decoded[sample.key] = blob
    return decoded


def _names(survey: Survey, strips: Mapping[str, Blob]) -> dict[str, str]:
    """What the page calls a strip, by key: the digest of its clip, or where there is none its
    own.
    """
    digests = {clip.key: clip.blob.sha256 for clip in survey.clips}
    return {key: digests.get(key, blob.sha256) for key, blob in strips.items()}


def _link(folder: Path, blobs: Mapping[str, Blob | None], suffix: str, store: Store) -> None:
    """Give blobs names in a folder; names that are no more go."""
    make_folder(folder)
    names = {f"{name}{suffix}": blob for name, blob in blobs.items() if blob is not None}
    for path in folder.iterdir():
        blob = names.get(path.name)
        if blob is None or not os.path.samefile(path, store.path(blob.sha256)):
            path.unlink()
    for name, blob in names.items():
        if blob is not None and not (folder / name).exists():
            link_or_copy(store.path(blob.sha256), folder / name)
