"""Ctrl-C at moments when Python itself handles it badly. During a build's stages:
test_end_to_end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import interrupts

ROOT = Path(__file__).parents[2]
LINE = "interrupted: what was finished is kept, the same command goes on\n"
HEAD = "import os, signal, sys\nfrom pipeline.core import interrupts\n"
STRIKE = "os.kill(os.getpid(), signal.SIGINT)"


def started(*words: str) -> subprocess.Popen[str]:
    """Python with SIGINT as from a terminal, however pytest was started."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def outcome(script: str) -> tuple[int, str]:
    process = started("-c", HEAD + script)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


MODULES = ["", "typer", "pydantic", "rich.console", "numpy", "pipeline.dataset.recipe"]


@pytest.mark.parametrize(
    ("program", "module"),
    [*[("-m pipeline", module) for module in MODULES], ("longtake.py", "typer")],
)
def test_ctrl_c_while_python_still_imports_is_one_line_and_130(program: str, module: str) -> None:
    """Python tells of each import it has done; the first to strike at is whichever comes after
    ours.
    """
    process = started("-X", "importtime", *program.split(), "check", "manifests/demo.toml")
    assert process.stderr is not None
    ours = False
    for line in process.stderr:
        if ours and line.endswith(f" {module}\n" if module else "\n"):
            break
        ours = ours or line.endswith(" pipeline.core.interrupts\n")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        "".join(
            line for line in said.splitlines(keepends=True) if not line.startswith("import time:")
        )
        == LINE
    )


def test_ctrl_c_amid_an_import_of_a_build_is_not_raised_into_it(tmp_path: Path) -> None:
    """Torch would end with SIGABRT; this module makes something else of the exception."""
    (tmp_path / "touchy.py").write_text(
        f"import os, signal\ntry: {STRIKE}\nexcept BaseException: raise "
        "ImportError('half a module')\n"
    )
    assert outcome(
        f"sys.path.append({str(tmp_path)!r})\nwith interrupts.raised(): import touchy"
    ) == (130, LINE)


def test_ctrl_c_amid_the_work_unwinds_it_and_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    script = (
        f"try:\n  with interrupts.raised():\n    {STRIKE}\nexcept KeyboardInterrupt: "
        "sys.exit('caught')"
    )
    assert outcome(script) == (1, "caught\n")
    assert outcome(script.replace("SIGINT", "SIGTERM")) == (1, "caught\n")


def test_ctrl_c_that_passes_through_an_exec_still_gives_python_m_its_exit_code(
    tmp_path: Path,
) -> None:
    (tmp_path / "script.py").write_text(
        f"{HEAD}try:\n  with interrupts.raised(): exec('{STRIKE}')\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    process = started(
        "-c",
        f"import os, sys\nos.chdir({str(tmp_path)!r})\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'script'])",
    )
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


def test_ctrl_c_after_the_work_is_ignored() -> None:
    assert outcome(f"interrupts.ignore()\n{STRIKE}") == (0, "")


def test_a_signal_that_is_ignored_from_outside_stays_ignored() -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert outcome(
        f"{ignored}\ninterrupts.leave_at_once()\nwith interrupts.raised():\n  {STRIKE}"
    ) == (0, "")


def test_afterwards_signals_do_what_they_did_before() -> None:
    handler = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a script's background job is started with it ignored
    try:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with interrupts.raised():
            assert signal.getsignal(signal.SIGINT) != before[0]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    finally:
        signal.signal(signal.SIGINT, handler)
