"""Bytes of what is not there yet: videos, reels and clips by what earlier ones took, latents and
embeddings by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core.manifest import Manifest
from pipeline.core.records import Clip, Pack, Record, Scene, Source, Video
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.dataset.recipe import Loaded
from pipeline.media import encoders
from pipeline.media.addresses import scheme
from pipeline.stages import encode, shard

# Of a reel or clip, per pixel of a frame, where none is there to be measured: docs/decisions.md 2.
BYTES_PER_PIXEL = 56_500 / 512**2
NPY_HEADER = 128  # bytes

Bytes = dict[str, float | None]  # by kind; None is not known


class Sizes:
    """What the tasks of a dataset write, by the recipe and the manifests of its last build."""

    def __init__(self, loaded: Loaded, last: Mapping[str, Manifest]) -> None:
        self._loaded = loaded
        self._fps = float(loaded.recipe.extract.fps)
        self._reels: set[str] = set()  # digests of the videos whose reel is counted already
        download, extract = last.get("download"), last.get("extract")
        videos = [r for r in (download.records if download else ()) if isinstance(r, Video)]
        clips = [r for r in (extract.records if extract else ()) if isinstance(r, Clip)]
        pixels = sum(clip.num_frames * clip.size**2 for clip in clips)
        per_pixel = sum(clip.blob.num_bytes for clip in clips) / pixels if pixels else 0
        self.frame = (per_pixel or BYTES_PER_PIXEL) * loaded.recipe.extract.size**2
        self._video: float | None = None
        if videos:
            self._video = sum(video.blob.num_bytes for video in videos) / len(videos)

    def of_task(self, stage: Stage, record: Record, light: bool, store: Store) -> Bytes:
        """What a task writes. A `light` one embeds text alone."""
        if isinstance(record, Source) and stage.name != "expand":
            # A local file is linked, or copied to where no link can lead.
            return {"raw videos": 0 if scheme(record.uri) == "file" else self._video}
        if isinstance(record, Video):
            return {"reels": self._reel(record)}
        if isinstance(record, Scene):
            video = stage.opens(record, store)
            clip = record.num_frames(self._loaded.recipe.extract.fps) * self.frame
            return {"reels": self._reel(video) if video else 0, "clips": clip}
        if isinstance(record, Clip) and stage.name == "encode":
            num_captions = len(encode.captions(record))
            num_frames = 0 if light else record.num_frames
            return {"latents and embeddings": self.sample(num_frames, num_captions)}
        if isinstance(record, Pack):
            blobs = [blob for sample in record.samples for _, blob in shard.members_of(sample)]
            return {"shards": sum(blob.num_bytes for blob in blobs)}
        return {}

    def of_amount(self, name: str, count: float | None, video_s: float | None) -> Bytes:
        """What a stage writes for records nobody can name yet."""
        frames = None if video_s is None else video_s * self._fps
        if name == "download":
            return {"raw videos": None}
        if name in ("cut", "extract"):
            kind = "reels" if name == "cut" else "clips"
            return {kind: None if frames is None else frames * self.frame}
        if name in ("encode", "shard"):
            kind = "shards" if name == "shard" else "latents and embeddings"
            known = frames is not None and count is not None
            return {kind: self.sample(frames or 0, max(1, count or 0)) if known else None}
        return {}

    def _reel(self, video: Video) -> float:
        """Bytes of a video's reel, 0 if it is counted already."""
        if video.blob.sha256 in self._reels:
            return 0
        self._reels.add(video.blob.sha256)
        return float(video.duration_s) * self._fps * self.frame

    def sample(self, num_frames: float, num_captions: float) -> float:
        """The arrays of a clip: latents `f c h w`, text `n 77 d` and `77 d` of each caption, images
        `k d`; all float16. Without frames, the text alone.
        """
        params = self._loaded.recipe.encode
        models = encode.find_encoders(params, self._loaded.folder, True)
        vae = encoders.vae_facts(models.vae_folder)
        clip = encoders.clip_facts(models.clip_folder)
        side = self._loaded.recipe.extract.size // int(vae["factor"])
        text = clip["tokens"] * clip["text_width"]
        # each caption by itself, and all of them in one array
        num_bytes = NPY_HEADER + num_captions * (NPY_HEADER + 2 * 2 * text)
        if num_frames:
            latents = NPY_HEADER + 2 * num_frames * int(vae["latent_channels"]) * side * side
            num_bytes += latents * (1 + params.latents_std)
            if params.image_frames:
                num_bytes += NPY_HEADER + 2 * params.image_frames * clip["image_width"]
        return num_bytes
