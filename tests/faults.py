"""Fail every system call once, and cut the power at every moment: `python -m tests.faults --write`
writes the tables into docs/reliability.md.

Each command works on two videos of two seconds, in a process of its own that was forked from this
one, with a shim in front of the C library (tests/making/faults.c). First the n-th open, read,
write, fsync, rename, link, unlink, mkdir or rmdir of a file below the recipe's and the data folder
fails, for every n; then the command runs to its end and the power is cut after each of its changes
(tests/making/power.py). Afterwards the same command without a fault must end as it always does,
and leave the very same files. `make test` runs a sample (tests/whole/test_faults.py).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "making" / "faults.c"
PAGE = ROOT / "docs" / "reliability.md"
ERRORS = ("EIO", "ENOSPC", "ENOMEM", "EACCES")
UNTOLD = ("data/store/rates.json",)  # what the next `plan` estimates by
LIMIT_S = 600  # one run of a command takes a second or two, the first one imports torch
HEADS = {
    "faults": (
        "| command | calls | faults tried | stopped with a line | went on | lost |",
        "|---|--:|--:|--:|--:|--:|",
    ),
    "cuts": (
        "| command | changes | power cuts tried | lost |",
        "|---|--:|--:|--:|",
    ),
}

OPTIONS = """
[filter]
min_frames = 20
max_frames = 60
[extract]
size = 64
[encode]
preset = "tiny"
psnr_share = 1.0
image_frames = 1
[shard]
max_samples = 1
"""


@dataclass(frozen=True)
class Run:
    """How a command ended: its exit code, what it printed, how many calls it did, which failed."""

    code: int
    said: str
    calls: int
    failed: str


@dataclass(frozen=True)
class Trial:
    """A command, the folder it begins in (a copy), and how it ends undisturbed."""

    name: str
    words: tuple[str, ...]
    before: Path
    code: int = 0
    calls: int = 0
    after: dict[str, str] | None = None


def compile_shim(folder: Path) -> Path:
    """The shim as a library. Raises OSError without a C compiler."""
    library = folder / "faults.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True, capture_output=True)
    return library


class Place:
    """The folder in which commands run: `recipe/` with the videos, `data/`."""

    def __init__(self, folder: Path, shim: ctypes.CDLL) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.shim = shim
        shim.faults_watch(str(self.work).encode())

    def words(self, *words: str) -> tuple[str, ...]:
        recipe, data = self.work / "recipe" / "small.toml", self.work / "data"
        names = {"RECIPE": str(recipe), "DATA": str(data)}
        return tuple(names.get(word, word) for word in words)

    def run(self, words: tuple[str, ...], number: int = 0, error: int = 0, record: str = "") -> Run:
        """Run a command in a fork of this process; the `number`-th call fails with `error`."""
        said, facts = self.folder / "said", self.folder / "facts"
        child = os.fork()
        if child == 0:
            self._run_here(words, number, error, record, said, facts)
        deadline = time.monotonic() + LIMIT_S
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Run(-1, f"no end within {LIMIT_S} s", 0, "")
            time.sleep(0.005)
        calls, _, failed = facts.read_text().partition(" ")
        return Run(os.waitstatus_to_exitcode(status), said.read_text(), int(calls), failed)

    def _run_here(
        self,
        words: tuple[str, ...],
        number: int,
        error: int,
        record: str,
        said: Path,
        facts: Path,
    ) -> None:
        from pipeline.__main__ import app

        code = 99
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        self.shim.faults_record(record.encode())
        self.shim.faults_arm(number, error)
        try:
            app(list(words))
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        except BaseException:
            traceback.print_exc()
        calls = self.shim.faults_calls()
        failed = self.shim.faults_failed().decode()
        self.shim.faults_arm(0, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        facts.write_text(f"{calls} {failed}")
        facts.with_name("modules").write_text("\n".join(sys.modules))
        os._exit(code)

    def restore(self, before: Path) -> None:
        """Make the folder what it was before a trial. Videos keep their inode: it is a part of what
        a build remembers of them.
        """
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(before, self.work, copy_function=_copy)

    def keep(self, name: str) -> Path:
        """A copy of the folder as it is now, to go back to."""
        copy = self.folder / f"before-{name}"
        shutil.copytree(self.work, copy, copy_function=_copy)
        return copy

    def print_of(self) -> dict[str, str]:
        """What is there: the digest of every file by its path, "" where the content has times in
        it. Raises AssertionError for a blob whose bytes are not those of its name.
        """
        files: dict[str, str] = {}
        for path in sorted(self.work.rglob("*")):
            name = str(path.relative_to(self.work))
            if path.is_dir() or name.endswith("lock") or name in UNTOLD:
                continue
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if name.startswith("data/store/blobs/"):
                assert files[name] == path.name, f"{name} is not what its name says"
            if "/memos/" in name or "/unfinished/" in name or path.name == "reproduce.json":
                files[name] = ""
            if path.name.endswith("lock.jsonl"):
                files[name] = _without_times(path.read_bytes())
            if path.name.endswith(".removed.jsonl"):
                lines = [json.loads(line) for line in path.read_bytes().splitlines()]
                files[name] = ", ".join(line["source"] for line in lines)
        return files


def _without_times(lock: bytes) -> str:
    """The digest of a lock, but for the end of its removals file, whose lines have times."""
    first, _, lines = lock.partition(b"\n")
    header = json.loads(first)
    header["lock"].pop("removals", None)
    header.pop("check")
    return hashlib.sha256(json.dumps(header).encode() + lines).hexdigest()


def _copy(source: str, target: str) -> None:
    if "/recipe/" in source and source.endswith(".mp4"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def trials(place: Place) -> Iterator[Trial]:
    """The commands, each with the folder it begins in: one video to build, two to take one down."""
    recipe = place.work / "recipe"
    recipe.mkdir(parents=True)
    for key, size in (("a", "96x64"), ("b", "64x96")):
        _film(recipe / f"{key}.mp4", size)
    options = ("--data", "DATA", "--device", "cpu")
    inline = ("--executor", "inline")
    build = place.words("build", "RECIPE", *options, *inline)
    _write_recipe(recipe, "a")
    nothing = place.keep("build")
    yield Trial("build", build, nothing)
    yield Trial("build --keep-raw no", (*build, "--keep-raw", "no"), nothing)
    _done(place, build)
    shutil.rmtree(place.work / "data")
    yield Trial("reproduce", place.words("reproduce", "RECIPE", *options, *inline), place.keep("r"))
    _write_recipe(recipe, "a", "b")
    _done(place, build)
    built = place.keep("built")
    yield Trial("remove", place.words("remove", "RECIPE", "b", *options), built)
    yield Trial("clean", place.words("clean", "RECIPE", "--data", "DATA"), built)
    path = recipe / "small.toml"
    path.write_text(path.read_text().replace("size = 64", "size = 128"))
    _done(place, build)
    yield Trial("gc", place.words("gc", "--data", "DATA"), place.keep("gc"))


def _film(path: Path, size: str) -> None:
    """Make a video in a process of its own: this one must not use FFmpeg before it forks."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.making import footage\n"
        f"footage.plain(Path(sys.argv[1]), 2.2, 25, {size!r})"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=True)


def _write_recipe(folder: Path, *keys: str) -> None:
    text = ""
    for key in keys:
        text += f'[[source]]\nid = "{key}"\nuri = "file:{key}.mp4"\ncaption = "film {key}"\n'
    (folder / "small.toml").write_text(text + OPTIONS)


def _done(place: Place, words: tuple[str, ...]) -> None:
    run = place.run(words)
    if run.code:
        raise AssertionError(f"{' '.join(words)} ended with {run.code}: {run.said}")


def undisturbed(place: Place, trial: Trial) -> Trial:
    """The trial with how it ends when nothing fails."""
    place.restore(trial.before)
    run = place.run(trial.words)
    if run.code:
        raise AssertionError(f"{trial.name} ended with {run.code}: {run.said}")
    return Trial(trial.name, trial.words, trial.before, run.code, run.calls, place.print_of())


def differences(place: Place, trial: Trial) -> list[str]:
    """How the files differ from those the trial leaves undisturbed."""
    try:
        here = place.print_of()
    except AssertionError as error:
        return [str(error)]
    assert trial.after is not None
    names = sorted(here.keys() | trial.after.keys())
    changed = [name for name in names if here.get(name) != trial.after.get(name)]
    return [f"{name}: {'changed' if name in here else 'missing'}" for name in changed]


def goes_on(place: Place, trial: Trial) -> list[str]:
    """Run the command again without a fault; what is wrong then."""
    run = place.run(trial.words)
    if run.code != trial.code:
        return [f"the command without a fault ends with {run.code}: {run.said[-300:]}"]
    return differences(place, trial)


def fault(place: Place, trial: Trial, number: int, name: str) -> tuple[Run, list[str]]:
    """Fail one call of a trial; how it ended, and what was wrong with that or with what came
    after.
    """
    place.restore(trial.before)
    run = place.run(trial.words, number, getattr(errno, name))
    problems = []
    if "Traceback" in run.said or run.code not in (0, 2, 3, 4):
        problems.append(f"ends with {run.code}: {run.said[-600:]}")
    if run.code == 0 and run.failed:
        problems += [f"ends with 0, but {line}" for line in differences(place, trial)]
    if run.code:
        problems += goes_on(place, trial)
    return run, problems


def sweep_faults(
    place: Place, trial: Trial, pick: Callable[[int, int], bool], report: Callable[[str], None]
) -> dict[str, int]:
    """Fail the calls of a trial that `pick(number, index of the error)` names, one at a time."""
    counts = {"calls": trial.calls, "tried": 0, "stopped": 0, "harmless": 0, "lost": 0}
    for number in range(1, trial.calls + 1):
        for index, name in enumerate(ERRORS):
            if not pick(number, index):
                continue
            run, problems = fault(place, trial, number, name)
            if not run.failed:
                continue
            counts["tried"] += 1
            counts["stopped" if run.code else "harmless"] += 1
            if problems:
                counts["lost"] += 1
                report(f"{trial.name}, call {number} ({run.failed}) {name}: {'; '.join(problems)}")
    return counts


def sweep_cuts(
    place: Place, trial: Trial, pick: Callable[[int, int], bool], report: Callable[[str], None]
) -> dict[str, int]:
    """Cut the power after the changes of a trial that `pick` names, in each of the modes."""
    from tests.making import power

    counts = {"changes": 0, "tried": 0, "lost": 0}
    place.restore(trial.before)
    record = place.folder / f"record-{trial.name.replace(' ', '-')}"
    shutil.rmtree(record, ignore_errors=True)
    record.mkdir()
    disk = power.disk_of([place.work], record / "before")
    run = place.run(trial.words, record=str(record))
    assert run.code == trial.code, run.said
    kept = {str(place.work / "recipe" / p.name): p for p in trial.before.glob("recipe/*.mp4")}
    num_lines = len((record / "log").read_text("utf-8").splitlines())
    counts["changes"] = num_lines
    for number in power.replay(disk, record):
        for index, mode in enumerate(power.MODES):
            if not (number == num_lines or pick(number, index)):
                continue
            shutil.rmtree(place.work, ignore_errors=True)
            power.cut(disk, mode, random.Random(f"{number}"), kept)
            problems = []
            if number == num_lines:
                # the command has said that it is done: that must be on disk
                problems += [f"after the end, {line}" for line in differences(place, trial)]
            problems += goes_on(place, trial)
            counts["tried"] += 1
            if problems:
                counts["lost"] += 1
                report(f"{trial.name}, cut after {number} ({mode}): {'; '.join(problems[:4])}")
    return counts


def picker(sample: int, all_errors: bool) -> Callable[[int, int], bool]:
    """Which calls are tried: every `sample`-th, with one of the errors in turn or with each."""

    def pick(number: int, index: int) -> bool:
        is_its_turn = all_errors or index == (number // sample) % len(ERRORS)
        return number % sample == 0 and is_its_turn

    return pick


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="commands to try, by default all")
    parser.add_argument("--sample", type=int, default=1, help="try every n-th call only")
    parser.add_argument("--all", action="store_true", help="each call with each of the errors")
    parser.add_argument("--kinds", nargs="*", choices=HEADS, default=list(HEADS))
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        if "LONGTAKE_SHIM" not in os.environ:
            library = str(compile_shim(Path(name)))
            shim = {"LD_PRELOAD": library, "LONGTAKE_SHIM": library, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
            return subprocess.run(command, env={**os.environ, **shim}, check=False).returncode
        return swept(Path(name), options)


def swept(folder: Path, options: argparse.Namespace) -> int:
    """Sweep the commands, print the tables; 1 if anything was lost."""
    shim = ctypes.CDLL(os.environ["LONGTAKE_SHIM"])
    shim.faults_failed.restype = ctypes.c_char_p
    shim.faults_calls.restype = ctypes.c_long
    shim.faults_arm.argtypes = [ctypes.c_long, ctypes.c_int]
    place = Place(folder, shim)
    warm(place)
    pick = picker(options.sample, options.all)
    chosen = [trial for trial in trials(place) if not options.only or trial.name in options.only]
    rows: dict[str, list[str]] = {"faults": [], "cuts": []}
    num_lost = 0
    for trial in chosen:
        trial = undisturbed(place, trial)
        for kind, sweep in (("faults", sweep_faults), ("cuts", sweep_cuts)):
            if kind not in options.kinds:
                continue
            begun = time.monotonic()
            counts = sweep(place, trial, pick, say)
            num_lost += counts["lost"]
            rows[kind].append(f"| `{trial.name}` | {' | '.join(map(str, counts.values()))} |")
            say(f"{kind} {rows[kind][-1]} in {time.monotonic() - begun:.0f} s")
    if options.write:
        write(rows)
    return int(num_lost > 0)


def say(line: str) -> None:
    print(line, flush=True)


def write(rows: dict[str, list[str]]) -> None:
    """Put the tables into docs/reliability.md."""
    page = PAGE.read_text("utf-8")
    for kind, lines in rows.items():
        begin, end = (f"<!-- {kind}: {word} -->" for word in ("begin", "end"))
        before, _, rest = page.partition(begin)
        after = rest.partition(end)[2]
        table = "\n".join([*HEADS[kind], *lines])
        page = f"{before}{begin}\n{table}\n{end}{after}"
    PAGE.write_text(page, "utf-8")


def warm(place: Place) -> None:
    """Import what commands use, so that a fork need not. A fork says what that is: this process
    itself must not start FFmpeg or torch before it forks.
    """
    recipe = place.work / "recipe"
    recipe.mkdir(parents=True)
    _film(recipe / "a.mp4", "96x64")
    _write_recipe(recipe, "a")
    options = ("--data", "DATA", "--device", "cpu", "--executor", "inline")
    _done(place, place.words("build", "RECIPE", *options))
    shutil.rmtree(place.work)
    import torch

    torch.set_num_threads(1)
    for name in (place.folder / "modules").read_text().split():
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
