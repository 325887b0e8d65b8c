"""The command line: what there is to type, how fast it answers, and how it says no."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from pipeline.__main__ import app
from pipeline.commands.command import ExecutorName
from pipeline.core import executors
from pipeline.media import scorers
from tests.making.command import ROOT, Output, longtake, longtake_process

DEMO = "manifests/demo.toml"
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "av",
    "pydantic",
    "open_clip",
    "scenedetect",
    "decord",
    "numpy",
    "yt_dlp",
    "ray",
)

# People's scripts know these: an option may be added, here too; none goes or changes its meaning
# without a word in the CHANGELOG.
WORK = ["--data", "--executor", "--workers", "--device"]
COMMANDS = {
    "build": ["recipe", "--until", *WORK, "--keep-raw", "--relock", "--json"],
    "retry": ["recipe", "--class", "--until", *WORK, "--json"],
    "status": ["recipe", "--data", "--device", "--json"],
    "plan": ["recipe", "--data", "--device", "--json"],
    "rejections": ["recipe", "--data", "--device", "--json"],
    "scores": ["recipe", "--data", "--csv", "--parquet", "--json"],
    "show": ["recipe", "key", "--data", "--out", "--frames", "--device"],
    "check": ["recipe", "--json"],
    "name": ["recipe"],
    "schema": [],
    "refresh": ["recipe", "source", "--data", "--json"],
    "remove": ["recipe", "source", "--why", "--data", "--device", "--json"],
    "gc": ["--data", "--dry-run", "--json"],
    "clean": ["recipe", "--data", "--json"],
    "reproduce": ["recipe", *WORK, "--json"],
    "verify": ["recipe", "--data", "--device", "--drop", "--json"],
    "card": ["recipe", "--out", "--with-shards"],
    "report": ["recipe", "--data", "--decode", "--source", "--device", "--json"],
    "browse": ["recipe", "--data", "--host", "--port", "--source", "--device"],
    "merge-picks": ["files", "--out", "--latest"],
    "taste": ["recipe", "--data", "--device", "--json"],
}


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.toml"
    path.write_text('[[source]]\nuri = "file:a.mp4"\n[filter]\nmin_frame = 5\n')
    return path


def test_the_commands_and_options_are_those_on_the_list() -> None:
    group = typer.main.get_command(app)
    options = {
        name: [option.opts[0] for option in command.params]
        for name, command in group.commands.items()
    }  # type: ignore[attr-defined]
    assert options == COMMANDS


def test_choices_and_defaults_are_those_the_makefile_relies_on() -> None:
    said = " ".join(longtake("build", "--help").stdout.split())
    assert "<expand|download|cut|filter|extract|score|keep|caption|encode|shard>" in said
    assert "<inline|processes|ray>" in said
    assert tuple(ExecutorName) == executors.NAMES
    assert re.findall(r"\[default: (\w+)\]", said)[:3] == ["shard", "data", "processes"]


def test_help_names_every_command_and_every_exit_code() -> None:
    said = longtake("--help")
    assert said.returncode == 0
    assert all(re.search(rf"\b{name}\b", said.stdout) for name in COMMANDS)
    assert re.findall(
        r"\b(\d+) (?=done|bug|wrong|something|stopped|nothing|reproduced|not|interrupted)",
        " ".join(said.stdout.split()),
    ) == [
        *"01234567",
        "130",
    ]


def test_help_takes_less_than_a_second_and_imports_nothing_heavy() -> None:
    probe = (
        "import resource, runpy, sys\n"
        "sys.argv = ['pipeline', '--help']\n"
        "try: runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"print([used.ru_utime + used.ru_stime, sorted(set({HEAVY}) & "
        "set(sys.modules))], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seconds, heavy = re.fullmatch(r"\[([0-9.]+), \[(.*)\]\]", done.stderr.strip()).groups()  # type: ignore[union-attr]
    assert not heavy
    assert float(seconds) < 1.0


def test_check_says_what_the_demo_is() -> None:
    said = longtake("check", DEMO)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [
        "manifests/demo.toml is fine: 5 sources (5 pypi:)",
        "cuts by 'adaptive', at least 100 frames at 10 fps, 256 x 256, encoders of "
        "'tiny' in float64",
        f"scores: {', '.join(scorers.DEFAULT)}",
        "keeps: black: black < 0.9; still: motion > 0.001 or distinct > 0.5",
    ]


def test_schema_prints_the_file_beside_the_recipes() -> None:
    said = longtake("schema")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == (ROOT / "manifests" / "recipe.schema.json").read_text("utf-8")


UNKNOWN_KEY = (
    ":4: filter.min_frame: unknown key; did you mean 'min_frames'? allowed are "
    "interlaced, max_frames, min_distinct, min_frames, trim_s\n"
)


@pytest.mark.parametrize("command", ["build", "status", "rejections", "check", "show"])
def test_a_wrong_recipe_exits_2_with_file_line_and_field(command: str, wrong: Path) -> None:
    said = longtake(command, wrong, *(["some-key"] if command == "show" else []))
    assert said == Output(2, "", f"recipe: {wrong}{UNKNOWN_KEY}")


def test_a_command_run_in_another_program_leaves_its_ctrl_c_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    longtake("check", DEMO)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_wrong_recipe_typed_for_real_is_no_traceback(wrong: Path) -> None:
    assert longtake_process("build", wrong) == Output(2, "", f"recipe: {wrong}{UNKNOWN_KEY}")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (
            ["check", "manifests/dmo.toml"],
            r"there is no recipe manifests/dmo\.toml; beside it: .*demo",
        ),
        (["check", "manifests"], "cannot read manifests"),
        (["check"], "Missing argument"),
        (["biuld", DEMO], "No such command"),
        (["build", DEMO, "--wrokers", "2"], "No such option: --wrokers"),
        (["build", DEMO, "--workers", "0"], "Invalid value"),
        (["build", DEMO, "--until", "tea"], r"Invalid value.*'tea'"),
        (["build", DEMO, "--executor", "threads"], r"Invalid value.*'threads'"),
        (["show", DEMO, "world-0000", "--frames", "0"], "Invalid value"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_exits_2_and_says_what_is_wrong(words: list[str], pattern: str) -> None:
    said = longtake(*words)
    assert said.returncode == 2
    assert re.search(pattern, said.stderr)
    assert "Traceback" not in said.stderr + said.stdout


def test_no_words_at_all_is_a_plea_for_help() -> None:
    said = longtake()
    assert said.returncode == 2
    assert "Usage" in said.stdout + said.stderr


def test_show_before_any_build_says_to_build(tmp_path: Path) -> None:
    said = longtake("show", DEMO, "world-0000", "--data", tmp_path)
    assert said.returncode == 2
    assert said.stderr == f"recipe: no clips in {tmp_path}/demo yet: build the dataset first\n"
    assert list(tmp_path.iterdir()) == []


def test_rejections_before_any_build_says_so(tmp_path: Path) -> None:
    said = longtake("rejections", DEMO, "--data", tmp_path)
    assert (said.returncode, said.stdout, said.stderr) == (
        0,
        f"nothing is built in {tmp_path}/demo yet\n",
        "",
    )


@pytest.mark.parametrize("command", ["check", "rejections"])
def test_brackets_and_long_names_are_shown_as_they_are(command: str, tmp_path: Path) -> None:
    folder = tmp_path / f"[red]{'long' * 50}"
    folder.mkdir()
    recipe = folder / "sea.toml"
    recipe.write_text('[[source]]\nuri = "file:a.mp4"\n')
    (folder / "a.mp4").touch()
    said = longtake(command, recipe, *(["--data", folder] if command == "rejections" else []))
    assert said.returncode == 0
    assert str(folder) in said.stdout


def test_a_strangers_words_in_an_error_cannot_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\x1b[2J\x1b]0;mine\x07,[red]\nfile:a.mp4,b\n")
    (tmp_path / "mine.toml").write_text('sources = "t.csv"\n')
    said = longtake("check", tmp_path / "mine.toml")
    assert said.returncode == 2
    assert "[red]" in said.stderr
    assert not {"\x1b", "\x07"} & set(said.stderr)
    assert "\N{REPLACEMENT CHARACTER}[2J" in said.stderr
