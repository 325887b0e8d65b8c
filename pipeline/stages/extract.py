"""Scene -> Clip: a range of the reel's packets, as a file a person can play."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pipeline.core import canonical
from pipeline.core.errors import BadData
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Crop, Scene, Video, grid_index
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import reel

VERSION = 2
MAKES = Clip


def stage(setup: Setup) -> Stage:
    params = setup.table(reel.Params)
    return Stage(
        name="extract",
        version=VERSION,
        params=reel.stage_params(params),
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
    """The scene's video, if its reel has to be made first."""
    task_key = canonical.digest(reel.task(scene.video, params))
    return scene.video if store.recall(task_key) is None else None


def process(scene: Scene, store: Store, params: reel.Params) -> Iterator[Clip]:
    """Cut the scene's frames out of its video's reel. Raises BadData('too-few-frames') if some are
    not there.
    """
    promised = scene.num_frames(params.fps)
    whole = reel.reel_of(scene.video, params, store)
    start = grid_index(scene.start_pts, scene.time_base, params.fps) - whole["first_index"]
    with store.scratch(".mp4") as path:
        try:
            copied, pictures = reel.cut_clip(
                store.path(whole["reel"]["sha256"]), params.fps, start, promised, path
            )
            if copied < promised:
                raise BadData(
                    "too-few-frames",
                    f"{promised} frames promised by the time stamps, {copied} decoded",
                )
        except BadData:
            store.check(Blob(**whole["reel"]))  # the video's fault, or the disk's?
            raise
        blob = store.adopt(path)
    yield Clip(
        key=scene.key,
        scene=scene,
        blob=blob,
        num_frames=promised,
        fps=params.fps,
        size=params.size,
        crop=Crop(**whole["crop"]),
        pictures=pictures,
    )
