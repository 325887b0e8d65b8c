"""Several processes are one run only if one launcher started them all: what the variables of a
launcher say is looked at before anybody waits for the others.
"""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Mapping

from training.errors import UsageError

WHO = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # which process of how many this is
WHERE = ("MASTER_ADDR", "MASTER_PORT")  # where they meet
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCH = "several processes are started by `accelerate launch --multi_gpu -m training train ...`"
PATIENCE_S = 5.0


def check(variables: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError for variables of `mpirun`, or of a `torchrun` that is over or left out
    some: with them accelerate ends in a traceback, or waits for processes that never come.
    """
    said = [name for name in WHO if variables.get(name)]
    size = next((name for name in MPI if variables.get(name, "1") not in ("", "1")), None)
    if size is not None and not said:
        raise UsageError(
            f"{size}={variables[size]} is a variable of mpirun: {LAUNCH}; if it is left over, "
            f"unset {size}"
        )
    is_alone = "LOCAL_RANK" not in said and variables.get("WORLD_SIZE", "1") == "1"
    if not said or (is_alone and variables.get("RANK", "0") == "0"):
        return
    values = ", ".join(f"{name}={variables[name]}" for name in said)
    advice = f"if they are left over, unset {' '.join(said)}; {LAUNCH}"
    missing = [name for name in (*WHO, *WHERE) if not variables.get(name)]
    if missing:
        raise UsageError(f"{values} without {', '.join(missing)}: {advice}")
    place = f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
    if not _is_one_of_several(variables):
        raise UsageError(f"{values} at {place} is no process of a launch: {advice}")
    # torchrun itself keeps the meeting place: nobody there means that it has ended
    if variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _listens(variables):
        raise UsageError(f"{values}, but no launcher listens at {place}: {advice}")


def _is_one_of_several(variables: Mapping[str, str]) -> bool:
    try:
        rank, local, size, port = (int(variables[name]) for name in (*WHO, "MASTER_PORT"))
    except ValueError:
        return False
    return 0 <= local <= rank < size and 0 < port < 65536


def _listens(variables: Mapping[str, str]) -> bool:
    where = (variables["MASTER_ADDR"], int(variables["MASTER_PORT"]))
    try:
        socket.create_connection(where, PATIENCE_S).close()
    except OSError:
        return False
    return True


def escape_what_a_terminal_cannot_show() -> None:
    """Have characters that standard output or error has no bytes for written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
