"""Scene -> Clip: a range of the reel's packets, as a file a person can play. A scene with black
bars is written anew, from inside them; so is a clip with faces, if they are to be blurred.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Cover, Crop, Scene, Video, grid_index
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import faces, reel

VERSION = 2
MAKES = Clip


def stage(setup: Setup) -> Stage:
    """Raises Stopped where faces are looked for and the package of the detector is missing."""
    params = setup.table(reel.Params)
    facts: dict[str, Any] = reel.stage_params(params)
    if params.faces != "keep":
        facts["faces"] = {"do": params.faces, **faces.facts()}
    return Stage(
        name="extract",
        version=VERSION,
        params=facts,
        makes=MAKES,
        process=partial(process, params=params),
        group=same_video,
        cost=seconds,
        reach=whole_video,
        opens=partial(video_without_reel, params=params),
    )


def same_video(scene: Scene) -> str:
    return canonical.digest(scene.video.identity())


def seconds(scene: Scene) -> float:
    return float(scene.duration_s)


def whole_video(scene: Scene) -> float:
    """The reel is made of all of the video if it is not there."""
    return float(scene.video.duration_s)


def video_without_reel(scene: Scene, store: Store, params: reel.Params) -> Video | None:
    """The scene's video, if it has to be decoded: for its reel, or for a scene with bars."""
    if has_own_square(scene, params):
        return scene.video
    task_key = canonical.digest(reel.task(scene.video, params))
    return scene.video if store.recall(task_key) is None else None


def has_own_square(scene: Scene, params: reel.Params) -> bool:
    """Whether the square inside the scene's bars is another than the reel's."""
    if params.bars != "crop" or scene.picture is None:
        return False
    facts = scene.video.container
    return reel.crop_of(facts, scene.picture) != reel.crop_of(facts)


def process(scene: Scene, store: Store, params: reel.Params) -> Iterator[Clip]:
    """Cut the scene's frames out of its video's reel, or out of one of its own if it has bars.
    Raises BadData: 'too-few-frames' if some are not there, 'black-bars' if they are not wanted.
    """
    if params.bars == "reject" and scene.picture is not None:
        facts, inside = scene.video.container, scene.picture
        raise BadData(
            "black-bars",
            f"the picture is {inside.width}x{inside.height} of {facts.width}x{facts.height} pixels",
        )
    with store.scratch(".mp4") as path:
        crop, pictures = _write(scene, store, params, path)
        covers: tuple[Cover, ...] = ()
        if params.faces != "keep":
            covers = _covers(scene, params, path)
        if not covers:
            yield _clip(scene, params, store.adopt(path), crop, pictures, ())
            return
        if params.faces == "reject":
            raise BadData("faces", faces.sentence(covers, params.size, params.fps))
        with store.scratch(".mp4") as blurred, store.scratch(".mp4") as out:
            num_frames = scene.num_frames(params.fps)
            reel.write_covered(path, params, range(num_frames), faces.cover_with(covers), blurred)
            pictures = _cut(blurred, params, 0, num_frames, out)
            blob = store.adopt(out)
    yield _clip(scene, params, blob, crop, pictures, covers)


def _write(scene: Scene, store: Store, params: reel.Params, path: Path) -> tuple[Crop, str]:
    """Write the scene's frames; gives the square they show and the digest of their pictures."""
    promised = scene.num_frames(params.fps)
    if has_own_square(scene, params):
        with store.scratch(".mp4") as own_reel:
            crop = reel.write_inside(scene, params, store, own_reel)
            return crop, _cut(own_reel, params, 0, promised, path)
    whole = reel.reel_of(scene.video, params, store)
    start = grid_index(scene.start_pts, scene.time_base, params.fps) - whole["first_index"]
    try:
        pictures = _cut(store.path(whole["reel"]["sha256"]), params, start, promised, path)
    except BadData:
        store.check(Blob(**whole["reel"]))  # the video's fault, or the disk's?
        raise
    return Crop(**whole["crop"]), pictures


def _covers(scene: Scene, params: reel.Params, clip: Path) -> tuple[Cover, ...]:
    """What covers the faces of a clip: of a rebuild, what the lock says."""
    if scene.covers is not None:
        return scene.covers
    return faces.covers_of(clip, params.size, scene.num_frames(params.fps), params.fps)


def _cut(source: Path, params: reel.Params, start: int, promised: int, out: Path) -> str:
    """Copy the scene's frames; gives the digest of their pictures."""
    copied, pictures = reel.cut_clip(source, params.fps, start, promised, out)
    if copied < promised:
        raise BadData(
            "too-few-frames", f"{promised} frames promised by the time stamps, {copied} decoded"
        )
    return pictures


def _clip(
    scene: Scene,
    params: reel.Params,
    blob: Blob,
    crop: Crop,
    pictures: str,
    covers: tuple[Cover, ...],
) -> Clip:
    return Clip(
        key=scene.key,
        scene=scene,
        blob=blob,
        num_frames=scene.num_frames(params.fps),
        fps=params.fps,
        size=params.size,
        crop=crop,
        pictures=pictures,
        covers=covers,
    )
