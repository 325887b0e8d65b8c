"""One build of everything that can be wrong with a file: each a counted rejection or a clip, and
the build goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.making import footage
from tests.making.command import longtake_process

GOOD = {
    "odd-size": (footage.odd_size, ".mp4", {}),
    "portrait": (footage.rotated, ".mp4", {}),
    "variable": (footage.variable_frame_rate, ".mp4", {}),
    "av1": (footage.av1, ".mp4", {}),
    "hevc-10-bit": (footage.hevc_10_bit, ".mp4", {}),
    "mpegts": (footage.mpegts, ".ts", {}),
    "negative-start": (footage.negative_start, ".ts", {}),
}
BAD = {
    "empty": "unreadable",
    "text": "unreadable",
    "truncated": "truncated",
    "header-only": "unreadable",
    "audio-only": "no-video-stream",
    "one-frame": "too-few-frames",
    "hls": "unreadable",
    "concat": "unreadable",
}


@dataclass(frozen=True)
class Built:
    """What a build said and wrote."""

    code: int
    said: str
    folder: Path

    def lines(self, stage: str) -> list[dict[str, dict[str, object]]]:
        return [
            json.loads(line)
            for line in (self.folder / f"{stage}.jsonl").read_text().splitlines()[1:]
        ]


@pytest.fixture(scope="module")
def built(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("bad")
    for name, (make, suffix, options) in GOOD.items():
        (folder / f"{name}{suffix}").write_bytes(film(make, suffix=suffix, **options).read_bytes())
    whole = film(footage.plain, 2, size="160x120")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video, " * 1000)
    (folder / "truncated.mp4").write_bytes(film(footage.truncated).read_bytes())
    (folder / "header-only.mp4").write_bytes(whole.read_bytes()[:100])
    (folder / "audio-only.mp4").write_bytes(film(footage.audio_only).read_bytes())
    (folder / "one-frame.mp4").write_bytes(film(footage.plain, 0.04).read_bytes())
    (folder / "secret.mp4").write_bytes(whole.read_bytes())
    secret = folder / "secret.mp4"
    (folder / "hls.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"
    )
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    files = sorted(path for path in folder.iterdir() if path != secret)
    sources = "\n".join(
        f'[[source]]\nid = "{path.stem}"\nuri = "file:{path.name}"' for path in files
    )
    options = '[filter]\nmin_frames = 5\n[extract]\nsize = 64\n[encode]\npreset = "tiny"\n'
    (folder / "bad.toml").write_text(f"{sources}\n{options}")
    done = longtake_process(
        "build",
        folder / "bad.toml",
        "--data",
        folder / "data",
        "--until",
        "extract",
        "--workers",
        "2",
    )
    return Built(done.returncode, done.stdout + done.stderr, folder / "data" / "bad")


def test_the_build_goes_on_and_says_so(built: Built) -> None:
    assert built.code == 0, built.said
    assert "Traceback" not in built.said


@pytest.mark.parametrize("name", GOOD)
def test_unusual_video_becomes_a_clip(built: Built, name: str) -> None:
    keys = [line["record"]["key"] for line in built.lines("4-extract") if "record" in line]
    assert any(str(key).startswith(f"{name}-") for key in keys)
    assert any((built.folder / "clips").glob(f"{name}-*.mp4"))


@pytest.mark.parametrize(("name", "reason"), BAD.items())
def test_a_bad_file_is_a_rejection_with_its_reason(built: Built, name: str, reason: str) -> None:
    reasons = [
        line["rejection"]["reason"]
        for stage in ("1-download", "2-cut", "3-filter", "4-extract")
        for line in built.lines(stage)
        if "rejection" in line and str(line["rejection"]["key"]).split("-0")[0] == name
    ]
    assert reasons == [reason]


def test_no_source_is_lost_between_clips_and_rejections(built: Built) -> None:
    accounted = set()
    for stage in ("1-download", "2-cut", "3-filter", "4-extract"):
        accounted |= {
            str(line["rejection"]["key"]).split("-0")[0]
            for line in built.lines(stage)
            if "rejection" in line
        }
    accounted |= {
        str(line["record"]["key"]).rsplit("-", 1)[0]
        for line in built.lines("4-extract")
        if "record" in line
    }
    assert accounted == GOOD.keys() | BAD.keys()


def test_a_second_build_remembers_what_was_bad(built: Built) -> None:
    recipe = built.folder.parent.parent / "bad.toml"
    done = longtake_process("build", recipe, "--data", recipe.parent / "data", "--until", "extract")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_rejections_are_listed_with_their_reason(built: Built) -> None:
    recipe = built.folder.parent.parent / "bad.toml"
    listed = longtake_process("rejections", recipe, "--data", recipe.parent / "data").stdout
    assert all(name in listed for name in BAD)
    assert "truncated" in listed
