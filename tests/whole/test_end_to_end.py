"""Whole builds: one root digest from every executor and after every interruption, and the demo as
users build it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset import lock
from tests.making import footage
from tests.making.command import longtake, longtake_process
from tests.making.dataset import Dataset

ROOT = Path(__file__).parents[2]
OPTIONS = """
[filter]
min_frames = 20
max_frames = 60
[extract]
size = 64
[encode]
preset = "tiny"
psnr_share = 0.5
[shard]
max_samples = 3
validation = 0.4
"""


@pytest.fixture(scope="module")
def recipe(film: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short videos with cuts; one of them twice, under two addresses and captions."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "a.mp4").write_bytes(film(footage.joined, (4.0, 5.0), 12).read_bytes())
    (folder / "b.mp4").write_bytes(film(footage.plain, 8, size="240x320").read_bytes())
    (folder / "twin.mp4").write_bytes((folder / "b.mp4").read_bytes())
    sources = [
        ("a", '"a test card"'),
        ("b", '["a fractal", "a picture"]'),
        ("twin", '"the same again"'),
    ]
    text = "\n".join(
        f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = {caption}'
        for key, caption in sources
    )
    (folder / "tiny.toml").write_text(text + OPTIONS)
    return folder / "tiny.toml"


def index(data: Path, name: str = "tiny") -> dict[str, object]:
    found: dict[str, object] = json.loads((data / name / "shards" / "index.json").read_text())
    return found


@pytest.fixture(scope="module")
def reference(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that nothing disturbed."""
    data = tmp_path_factory.mktemp("reference")
    done = longtake("build", recipe, "--data", data, "--executor", "inline", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return data


def test_ray_gives_the_same_bytes(recipe: Path, reference: Path, tmp_path: Path) -> None:
    done = longtake_process(
        "build",
        recipe,
        "--data",
        tmp_path,
        "--executor",
        "ray",
        "--workers",
        "2",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert index(tmp_path) == index(reference)
    for path in (reference / "tiny").glob("*.jsonl"):
        assert (tmp_path / "tiny" / path.name).read_bytes() == path.read_bytes()


SIGNS = (
    "store/tmp",
    "tiny/1-*",
    "tiny/4-*",
)  # what there is early in downloading, cutting and encoding


def interrupted(recipe: Path, data: Path, sign: str, number: int) -> tuple[int, str]:
    """Start a build, send a signal once it is at work and the sign is there; the exit code and what
    it complained of.

    Signs may be left from an earlier build, but `store/tmp` is made anew by each. Ctrl-C reaches
    the workers too, as from a terminal.
    """
    words = ["build", str(recipe), "--data", str(data), "--workers", "2", "--device", "cpu"]
    start = time.time_ns()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where pytest runs in the background of a script
    )
    deadline = time.monotonic() + 120
    while (
        not (fresh(data / "store" / "tmp", start) and any(data.glob(sign)))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    if process.poll() is None:
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def fresh(path: Path, since: int) -> bool:
    try:
        return path.stat().st_mtime_ns > since
    except FileNotFoundError:
        return False


def test_a_build_interrupted_in_every_long_stage_ends_with_the_same_bytes(
    recipe: Path, reference: Path, tmp_path: Path
) -> None:
    for sign in SIGNS:
        code, said = interrupted(recipe, tmp_path, sign, signal.SIGINT)
        assert code == 130 or (code == 0 and sign == SIGNS[-1]), said
        assert said == (
            "interrupted: what was finished is kept, the same command goes on\n" if code else ""
        )
    done = longtake_process("build", recipe, "--data", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert index(tmp_path) == index(reference)
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_workers_die_with_a_killed_build(recipe: Path, tmp_path: Path) -> None:
    interrupted(recipe, tmp_path, "tiny/1-*", signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (left := workers_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def workers_of(folder: Path) -> list[int]:
    """Processes that have a file of the folder open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd).startswith(str(folder)) for fd in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_one_video_behind_two_addresses_is_encoded_once_and_captioned_twice(
    reference: Path,
) -> None:
    lines = [
        json.loads(line)["record"]
        for line in (reference / "tiny" / "8-encode.jsonl").read_text().splitlines()[1:]
    ]
    by_key = {line["key"]: line for line in lines}
    assert by_key["b-0000-000"]["latents"] == by_key["twin-0000-000"]["latents"]
    assert by_key["b-0000-000"]["text"] != by_key["twin-0000-000"]["text"]


def test_an_edited_caption_decodes_and_encodes_no_picture(recipe: Path, reference: Path) -> None:
    edited = recipe.with_name("edited.toml")
    edited.write_text(
        'name = "tiny2"\n' + recipe.read_text().replace("a test card", "another caption")
    )
    before = {path: path.stat().st_mtime_ns for path in (reference / "store" / "memos").glob("*/*")}
    done = longtake("build", edited, "--data", reference, "--executor", "inline", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = [
        json.loads(path.read_text())["outputs"]
        for path in (reference / "store" / "memos").glob("*/*")
        if path not in before
    ]
    assert not any("mean" in memo or "reel" in memo for memo in fresh if isinstance(memo, dict))
    texts = [
        memo for memo in fresh if isinstance(memo, dict) and memo.keys() == {"sha256", "num_bytes"}
    ]
    assert len(texts) == 1
    assert index(reference, "tiny2")["root_digest"] != index(reference)["root_digest"]


def test_another_min_frames_decodes_nothing(recipe: Path, reference: Path) -> None:
    changed = recipe.with_name("changed.toml")
    changed.write_text(
        'name = "tiny3"\n' + recipe.read_text().replace("min_frames = 20", "min_frames = 10")
    )
    before = set((reference / "store" / "memos").glob("*/*"))
    done = longtake(
        "build", changed, "--data", reference, "--until", "extract", "--executor", "inline"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = [
        json.loads(path.read_text())["outputs"]
        for path in set((reference / "store" / "memos").glob("*/*")) - before
    ]
    assert not any("reel" in memo for memo in fresh if isinstance(memo, dict))
    was, now = (
        len((reference / name / "4-extract.jsonl").read_text().splitlines())
        for name in ("tiny", "tiny3")
    )
    assert now > was


def test_a_deleted_blob_is_rebuilt(recipe: Path, reference: Path) -> None:
    root = index(reference)["root_digest"]
    line = json.loads((reference / "tiny" / "8-encode.jsonl").read_text().splitlines()[1])
    digest = line["record"]["latents"]["sha256"]
    blob = reference / "store" / "blobs" / digest[:2] / digest
    blob.unlink()
    assert (
        longtake(
            "build", recipe, "--data", reference, "--executor", "inline", "--device", "cpu"
        ).returncode
        == 0
    )
    assert blob.exists()
    assert index(reference)["root_digest"] == root


def test_status_and_show_tell_what_was_built(recipe: Path, reference: Path) -> None:
    funnel = longtake("status", recipe, "--data", reference)
    assert funnel.returncode == 0
    assert "shard" in funnel.stdout
    shown = longtake("show", recipe, "a-0000", "--data", reference, "--frames", "3")
    assert shown.returncode == 0, shown.stderr
    assert "dB PSNR" in shown.stdout
    assert (reference / "tiny" / "show" / "a-0000.png").stat().st_size > 1000


def test_status_before_any_build_shows_everything_pending(recipe: Path, tmp_path: Path) -> None:
    funnel = longtake("status", recipe, "--data", tmp_path)
    assert funnel.returncode == 0
    assert "next: 3 to download" in funnel.stdout


def test_nothing_left_has_an_exit_code_of_its_own(recipe: Path, tmp_path: Path) -> None:
    strict = recipe.with_name("strict.toml")
    strict.write_text(
        recipe.read_text().replace(
            "min_frames = 20\nmax_frames = 60", "min_frames = 2000\nmax_frames = 4000"
        )
    )
    assert longtake("build", strict, "--data", tmp_path, "--executor", "inline").returncode == 5
    assert not (tmp_path / "tiny" / "shards" / "index.json").exists()


def test_a_second_build_of_a_glob_says_there_was_nothing_to_do(
    recipe: Path, tmp_path: Path
) -> None:
    globbed = recipe.with_name("globbed.toml")
    globbed.write_text(
        '[[source]]\nid = "g"\nuri = "file:*.mp4"\n[extract]\nsize = 64\n[filter]\n'
        "min_frames = 20\n"
    )
    words = ("build", globbed, "--data", tmp_path, "--until", "extract", "--executor", "inline")
    assert "nothing to do" not in longtake(*words).stdout
    assert "nothing to do" in longtake(*words).stdout


@pytest.mark.parametrize("data", ["README.md", "/proc/nowhere"])
def test_a_data_folder_that_cannot_be_one_is_no_traceback(recipe: Path, data: str) -> None:
    done = longtake_process("build", recipe, "--data", ROOT / data)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_an_unknown_device_is_refused_before_any_work(
    recipe: Path, tmp_path: Path, device: str
) -> None:
    done = longtake_process("build", recipe, "--data", tmp_path, "--device", device)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_new_source_leaves_the_latents_of_all_others_alone(
    small_dataset: Dataset, tmp_path: Path, film: Callable[..., Path]
) -> None:
    built = small_dataset.copy(tmp_path)
    built.build()  # for it knows local files by their inode
    memos = {path: path.stat().st_mtime_ns for path in (built.data / "store" / "memos").glob("*/*")}
    blobs = {path: path.stat().st_mtime_ns for path in (built.data / "store" / "blobs").glob("*/*")}
    shutil.copy(film(footage.plain, 4, size="320x240"), built.recipe.parent / "new.mp4")
    built.recipe.write_text(
        '[[source]]\nid = "new"\nuri = "file:new.mp4"\ncaption = "the film new"\n'
        + built.recipe.read_text()
    )
    steps = {step.manifest.stage: step for step in built.build()}
    num_run = {stage: step.num_run for stage, step in steps.items() if stage != "shard"}
    ran = dict.fromkeys(("download", "cut", "extract", "encode"), 1)
    # these are computed each time, or have nothing to do
    assert num_run == {"expand": 0, "filter": 0, "score": 0, "keep": 0, "caption": 0} | ran
    assert steps["shard"].num_run in (1, 2)  # one that is larger now, or two halves of it
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in {**memos, **blobs}.items())
    fresh = [
        json.loads(path.read_text())["outputs"]
        for path in (built.data / "store" / "memos").glob("*/*")
        if path not in memos
    ]
    assert len([memo for memo in fresh if isinstance(memo, dict) and "mean" in memo]) == 1


def test_a_build_that_cannot_have_everything_takes_no_sample_out_of_its_lock(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    built = small_dataset.copy(tmp_path)
    before, away = built.lock.read_bytes(), built.recipe.parent / "c.mp4"
    content = away.read_bytes()

    def build(*more: str) -> str:
        said = longtake(
            "build",
            built.recipe,
            "--data",
            built.data,
            "--executor",
            "inline",
            "--device",
            "cpu",
            *more,
        )
        assert said.returncode == (0 if away.exists() else 3)
        return said.stdout

    away.unlink()
    assert (
        "small.lock.jsonl stays as it was: it has samples that this build does not have; "
        "--relock replaces it\n" in build()
    )
    assert built.lock.read_bytes() == before
    said = longtake(
        "retry",
        built.recipe,
        "--class",
        "rate-limited",
        "--data",
        built.data,
        "--executor",
        "inline",
        "--device",
        "cpu",
    )
    assert (
        "1 unavailable in all: `build` tries all of them again\n"
        "nothing to do: nothing had failed as rate-limited\n" in said.stdout
    )
    built.recipe.write_text(built.recipe.read_text().replace("the film a", "another film"))
    assert build().endswith(
        "small.lock.jsonl\n"
    )  # of another recipe: the old lock says nothing about it
    assert {clip.video for clip in lock.read(built.recipe).clips.values()} == {"a", "b", "d"}
    away.write_bytes(content)
    build()
    assert {clip.video for clip in lock.read(built.recipe).clips.values()} == {"a", "b", "c", "d"}
