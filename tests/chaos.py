"""Break builds on purpose and see what is lost: `python -m tests.chaos`, with the table written
into docs/reliability.md.

Every trial works on real footage with the commands people type, ends by building to the end, and
compares the root digest with that of a build nothing disturbed; no temporary file may be left.
`make test` runs the short form (tests/test_chaos.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import canonical, store
from pipeline.core.stage import Progress
from pipeline.dataset import recipe as recipes
from pipeline.publish import verify
from tests.making.dataset import Dataset, small

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


@dataclass(frozen=True)
class Row:
    """What was tried, how often, what was seen on the way, and what was lost (nothing, one
    hopes).
    """

    tried: str
    times: int
    seen: str
    lost: str = "nothing"


def start(dataset: Dataset, *options: str, workers: int = 2) -> subprocess.Popen[str]:
    """A build in a session of its own, as a shell starts it."""
    words = [
        "build",
        str(dataset.recipe),
        "--data",
        str(dataset.data),
        "--device",
        "cpu",
        "--workers",
        str(workers),
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where this runs in the background of a script
    )


def at_work(process: subprocess.Popen[str], dataset: Dataset, since: int) -> bool:
    """Wait until the build has begun: it empties store/tmp. False if it ended before."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if (dataset.data / "store" / "tmp").stat().st_mtime_ns > since:
                return True
        time.sleep(0.01)
    return False


def finish(dataset: Dataset, wanted: str) -> str:
    """Build to the end; what is lost, or "nothing": the same root digest, everything as the lock
    says, no temporary file.
    """
    dataset.build()
    if dataset.index["root_digest"] != wanted:
        return f"another root digest: {dataset.index['root_digest']}"
    left = [path.name for path in (dataset.data / "store" / "tmp").iterdir()] + [
        path.name for path in dataset.data.rglob("*.tmp")
    ]
    if left:
        return f"temporary files: {', '.join(left)}"
    found = verify.verify(recipes.load(dataset.recipe), dataset.data, "cpu", Progress()).findings
    return "; ".join(f"{one.kind} {one.name}: {one.problem}" for one in found) or "nothing"


def fresh(reference: Dataset, folder: Path) -> Dataset:
    """The same recipe and videos with nothing built."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return reference.published(folder)


def struck(
    reference: Dataset, folder: Path, times: int, seed: int, number: int, whole_group: bool
) -> Row:
    """Signals at random moments of builds that each go on from the one before; a finished dataset
    is begun anew.
    """
    drawn, wanted = random.Random(seed), str(reference.index["root_digest"])
    dataset, hits, ends = fresh(reference, folder / "0"), 0, 0
    while hits < times:
        since = time.time_ns()
        process = start(dataset)
        if at_work(process, dataset, since):
            time.sleep(drawn.uniform(0, 8))
        if process.poll() is None:
            hits += 1
            (os.killpg if whole_group else os.kill)(process.pid, number)
        process.communicate(timeout=120)
        if process.returncode == 0:
            ends += 1
            if (lost := finish(dataset, wanted)) != "nothing":
                return Row(
                    f"{signal.Signals(number).name} to a build",
                    hits,
                    f"{ends} datasets finished",
                    lost,
                )
            dataset = fresh(reference, folder / str(ends))
    lost = finish(dataset, wanted)
    return Row(
        f"{signal.Signals(number).name} to "
        f"{'the build and its workers' if whole_group else 'the build'} at a random moment",
        hits,
        f"what they left was finished, {ends + 1} "
        f"{'dataset' if not ends else 'datasets'} in all: the same root digest",
        lost,
    )


def killed(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    return struck(reference, folder, times, seed, signal.SIGKILL, whole_group=False)


def interrupted(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    return struck(reference, folder, times, seed, signal.SIGINT, whole_group=True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process numbers of a build's pool: its children that run Python's spawn."""
    found = []
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def segfaults(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    """Segmentation faults in random workers of a build: their tasks run again, and none is taken
    for bad data.
    """
    drawn, wanted, hits = random.Random(seed), str(reference.index["root_digest"]), 0
    while hits < times:
        dataset = fresh(reference, folder)
        since = time.time_ns()
        process = start(dataset)
        if at_work(process, dataset, since):
            while process.poll() is None and hits < times:
                time.sleep(drawn.uniform(0.5, 4))
                if (workers := workers_of(process)) and process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(drawn.choice(workers), signal.SIGSEGV)
                        hits += 1
                        # a task whose worker dies twice is bad by rule, so one strike a build
                        break
        _, complaint = process.communicate(timeout=600)
        if process.returncode:
            return Row(
                "a worker segfaults",
                hits,
                "",
                f"the build ended with {process.returncode}: {complaint[-200:]}",
            )
        if (lost := finish(dataset, wanted)) != "nothing":
            return Row("a worker segfaults", hits, "", lost)
    return Row(
        "a worker segfaults (SIGSEGV from outside, at a random moment)",
        hits,
        "its tasks ran again; no rejection",
    )


def damaged(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    """A random file of the store or the dataset truncated, or with one bit flipped: found, named,
    dropped, made again.
    """
    drawn, wanted = random.Random(seed), str(reference.index["root_digest"])
    dataset = reference.copy(folder)
    loaded = recipes.load(dataset.recipe)
    for number in range(times):
        files = sorted(
            path
            for kind in ("store/blobs", "store/memos", "small")
            for path in (dataset.data / kind).rglob("*")
            if path.is_file()
        )
        path = drawn.choice(
            [one for one in files if one.stat().st_size and one.name != "reproduce.json"]
        )
        content = bytearray(path.read_bytes())
        if drawn.random() < 0.5:
            content = content[: drawn.randrange(len(content))]
        else:
            content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        path.unlink()  # a blob may be a link to somebody's own video, which stays whole here
        path.write_bytes(content)
        found = verify.verify(loaded, dataset.data, "cpu", Progress())
        where = path.relative_to(dataset.data)
        if not found.findings:
            return Row(
                "a file truncated or a bit flipped", number + 1, "", f"nobody noticed {where}"
            )
        verify.drop(found)
        dataset.build()
        left = [
            f"{one.kind} {one.name}: {one.problem}"
            for one in verify.verify(loaded, dataset.data, "cpu", Progress()).findings
        ]
        if dataset.index["root_digest"] != wanted or left:
            return Row(
                "a file truncated or a bit flipped",
                number + 1,
                "",
                f"{where} was not made again; {'; '.join(left)}",
            )
    return Row(
        "a file truncated, or one bit flipped, at random",
        times,
        "`verify` named it, `verify --drop` and a build made it again",
    )


def half_written(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    """Memos cut short, as a machine that lost power may leave them: they count as not there."""
    drawn, wanted = random.Random(seed), str(reference.index["root_digest"])
    dataset = reference.copy(folder)
    for number in range(times):
        memo = drawn.choice(sorted((dataset.data / "store" / "memos").glob("*/*")))
        memo.write_bytes(memo.read_bytes()[: drawn.randrange(memo.stat().st_size)])
        dataset.build()
        if dataset.index["root_digest"] != wanted:
            return Row("a memo half written", number + 1, "", "another root digest")
    return Row("a memo half written", times, "it counts as not there; its task ran again")


def disk_full(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    """The disk fills at a random point; more room, the same command, the same bytes. Needs a file
    system of its own.
    """
    drawn, wanted, said = random.Random(seed), str(reference.index["root_digest"]), 0
    for number in range(times):
        dataset = fresh(reference, folder)
        dataset.data.mkdir()
        words = [sys.executable, "-m", "pipeline", "build", str(dataset.recipe)]
        words += ["--data", str(dataset.data), "--device", "cpu", "--executor", "inline"]
        command, data = shlex.join(words), shlex.quote(str(dataset.data))
        script = f"""
            mount -t tmpfs -o size={drawn.randrange(300, 3000)}k none {data} || exit 99
            {command}; first=$?
            mount -o remount,size=200m {data}
            {command} || exit 98
            cp -r {data} {data}.kept
            exit $first"""
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode == 99:
            raise OSError("no file system may be mounted here")
        said += "disk full: " in done.stderr
        kept = Dataset(dataset.recipe, dataset.data.with_name(f"{dataset.data.name}.kept"))
        if done.returncode not in (0, 4) or kept.index["root_digest"] != wanted:
            return Row(
                "the disk fills", number + 1, "", f"exit {done.returncode}: {done.stderr[-300:]}"
            )
        shutil.rmtree(kept.data)
    return Row(
        "the disk fills at a random point",
        times,
        f"{said} times `disk full`, exit 4; with more room the same command finished",
    )


def clock_set_back(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    """The clock jumps back a day at every look, and all files are from the future: time decides
    nothing.
    """
    del seed
    dataset, wanted = fresh(reference, folder), str(reference.index["root_digest"])
    clock = {"now": time.time()}

    def back() -> str:
        clock["now"] -= 86400
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock["now"]))

    real, store.now = store.now, back
    try:
        for _ in range(times):
            dataset.build()
            for path in dataset.data.rglob("*"):
                if path.stat().st_nlink == 1:  # a linked video would be an edited one
                    os.utime(path, (4e9, 4e9))
            steps = dataset.build()
            if any(step.num_run for step in steps) or dataset.index["root_digest"] != wanted:
                return Row(
                    "the clock is set back",
                    times,
                    "",
                    "work was done twice, or another root digest",
                )
    finally:
        store.now = real
    return Row(
        "the clock set back, files dated in the future", times, "the second build had nothing to do"
    )


def two_at_once(reference: Dataset, folder: Path, times: int, seed: int) -> Row:
    """Two builds of one dataset at the same moment: the second says so and leaves everything
    alone.
    """
    drawn, wanted, refused = random.Random(seed), str(reference.index["root_digest"]), 0
    for number in range(times):
        dataset = fresh(reference, folder)
        one = start(dataset)
        time.sleep(drawn.uniform(0, 3))
        two = start(dataset)
        ends = [(process.communicate(timeout=600)[1], process.returncode) for process in (one, two)]
        refused += sum(code == 4 and "another build is working" in said for said, code in ends)
        codes = [code for _, code in ends]
        lost = (
            finish(dataset, wanted) if sorted(codes) in ([0, 0], [0, 4]) else f"exit codes {codes}"
        )
        if lost != "nothing":
            return Row("two builds of one dataset at once", number + 1, "", lost)
    return Row(
        "two builds of one dataset at once",
        times,
        f"{refused} times the second one was told that another build is working",
    )


TRIALS: dict[str, tuple[Callable[[Dataset, Path, int, int], Row], int]] = {
    "killed": (killed, 50),
    "interrupted": (interrupted, 20),
    "segfaults": (segfaults, 10),
    "damaged": (damaged, 200),
    "half_written": (half_written, 50),
    "disk_full": (disk_full, 10),
    "clock_set_back": (clock_set_back, 3),
    "two_at_once": (two_at_once, 5),
}


def prepared(folder: Path) -> Dataset:
    """The dataset all trials work on, built without disturbance."""

    def film(make: Callable[..., Path], *args: object, **options: object) -> Path:
        return make(
            folder / f"{make.__name__}-{canonical.digest([args, options])[:12]}.mp4",
            *args,
            **options,
        )

    return small(folder, film)


def table(rows: list[Row]) -> str:
    lines = ["| what was tried | times | what was seen | what was lost |", "|---|--:|---|---|"]
    lines += [f"| {row.tried} | {row.times} | {row.seen} | {row.lost} |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=TRIALS,
        default=list(TRIALS),
        help="trials to run, by default all",
    )
    parser.add_argument(
        "--times",
        type=int,
        help="how often each, by default as in the table of docs/reliability.md",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/reliability.md"
    )
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        reference = prepared(Path(name))
        for trial in options.only:
            act, times = TRIALS[trial]
            begun = time.monotonic()
            rows.append(act(reference, Path(name) / trial, options.times or times, options.seed))
            print(f"{trial}: {rows[-1]} in {time.monotonic() - begun:.0f} s", flush=True)
    print(table(rows))
    if options.write:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", "utf-8")
    return int(any(row.lost != "nothing" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
