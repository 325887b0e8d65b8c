"""A contact sheet: frames of a clip, and under them what the stored latents decode to."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.core.errors import RecipeError
from pipeline.core.records import Clip, Sample, captions_of
from pipeline.core.store import Store
from pipeline.dataset.chain import manifest_path, read_manifest
from pipeline.dataset.recipe import Loaded
from pipeline.media import encoders
from pipeline.stages import encode, keep

TEXT, GAP = 28, 4  # pixels: height of the line of text, space between pictures


def find(folder: Path, key: str) -> Sample | Clip:
    """The sample, or else the clip, of that key. Raises RecipeError with the nearest keys."""
    known: dict[str, None] = {}
    for name in ("encode", "caption", "keep", "score", "extract"):
        if not manifest_path(folder, name).is_file():
            continue
        for record in read_manifest(folder, name).records:
            if record.key == key and isinstance(record, Sample | Clip):
                return record
            known.setdefault(record.key)
    near = difflib.get_close_matches(key, known, 3, cutoff=0.3) or list(known)[:3]
    if not known:
        raise RecipeError(f"no clips in {folder} yet: build the dataset first")
    raise RecipeError(f"no clip is called '{key}'; near it: {', '.join(near)}")


def alike(loaded: Loaded, data: Path, clip: Clip) -> list[str]:
    """The near-duplicates of a clip, a line each, the best first."""
    folder = data / loaded.recipe.name
    if loaded.recipe.duplicates is None or not manifest_path(folder, "score").is_file():
        return []
    records = read_manifest(folder, "score").records
    clips = [record for record in records if isinstance(record, Clip)]
    overview = keep.near_duplicates(clips, loaded.setup("auto", offline=True))
    goes = " and stays; this one goes"
    return [
        f"{like}{goes if like == overview.losers.get(clip.key) else ''}"
        for like in overview.likes.get(clip.key, ())
    ]


def contact_sheet(
    loaded: Loaded, data: Path, key: str, out: Path | None, count: int, device: str
) -> tuple[Path, str]:
    """Write the sheet; returns its path and a line about what it shows."""
    store = Store(data.absolute() / "store")
    record = find(data / loaded.recipe.name, key)
    clip = record.clip if isinstance(record, Sample) else record
    if not store.has(clip.blob):
        raise RecipeError(f"the clip of '{key}' is not in the store any more: build again")
    picks = np.linspace(0, clip.num_frames - 1, count).round().astype(int)
    frames = encode.pixels_of(clip, store, loaded.recipe.encode.precision)[picks]
    rows = [frames]
    line = f"{key}  {clip.num_frames} frames at {float(clip.fps):g} fps"
    if isinstance(record, Sample):
        models = encode.find_encoders(loaded.recipe.encode, loaded.folder)
        vae = encoders.load_vae(models.vae_folder, "float32", encoders.choose_device(device))
        stored = np.load(store.path(record.latents.sha256), allow_pickle=False)
        decoded = encoders.decode(vae, stored[picks])
        rows.append(decoded)
        psnr_db = encoders.psnr_db(decoded, frames)
        line += f"   above: the clip, below: its latents decoded, {psnr_db:.1f} dB PSNR"
    line += "".join(f"\n{words}" for words in alike(loaded, data, clip))
    if clip.scores:
        line += "\n" + ", ".join(f"{name} {keep.shown(value)}" for name, value in clip.scores)
    path = out or data / loaded.recipe.name / "show" / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    caption = next(iter(captions_of(clip)), "")
    head, *more = line.split("\n")
    _draw(rows, "\n".join([f"{head}   {caption}", *more])).save(path, optimize=True)
    return path, line


def _draw(rows: list[np.ndarray], line: str) -> Image.Image:
    """A picture of rows of frames (`f h w c`, uint8), all of one size, under a line of text."""
    count, height, width = rows[0].shape[:3]
    column, row = width + GAP, height + GAP
    top = TEXT * (1 + line.count("\n"))
    sheet = Image.new("RGB", (count * column + GAP, top + len(rows) * row), "white")
    ImageDraw.Draw(sheet).text((GAP, 6), line, fill="black", font_size=16)
    for r, pictures in enumerate(rows):
        for c, picture in enumerate(pictures):
            place = (GAP + c * column, top + r * row)
            sheet.paste(Image.fromarray(picture), place)
    return sheet
