"""Variables of launchers: what is left over is named before anybody waits."""

from __future__ import annotations

import socket

import pytest

from training import launch
from training.errors import UsageError

WHOLE = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4 is a variable of mpirun"),
        ({"PMI_SIZE": "2"}, "unset PMI_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "0"}, "unset LOCAL_RANK;"),
        ({**WHOLE, "RANK": "2"}, "RANK=2, LOCAL_RANK=1, WORLD_SIZE=2 at 127.0.0.1:29500 is no"),
        ({**WHOLE, "MASTER_PORT": "x"}, "is no process of a launch"),
    ],
)
def test_variables_that_are_left_over_are_named_in_one_line(
    variables: dict[str, str], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        launch.check(variables)
    assert expected in str(caught.value)
    assert "accelerate launch" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_launcher_that_has_ended_is_noticed_and_a_living_one_is_not_disturbed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        variables = {**WHOLE, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        launch.check(variables)
    with pytest.raises(UsageError, match=f"no launcher listens at 127.0.0.1:{port}"):
        launch.check(variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MASTER_ADDR": "a"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_SIZE": ""},
        WHOLE,
    ],
)
def test_no_launcher_and_a_whole_launch_pass(variables: dict[str, str]) -> None:
    launch.check(variables)
