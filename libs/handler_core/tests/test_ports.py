"""The ports that tests are given, whose servers start a moment later."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from handler_core import testing
from handler_core.testing import RESERVED, free_port

ASK = "from handler_core.testing import free_port; print(*[free_port() for _ in range(8)]); input()"


@pytest.mark.skipif(sys.platform != "linux", reason="names of sockets that are no files are Linux's")
def test_processes_side_by_side_are_given_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "PORTS", range(20_000, 20_100))
    few = f"import handler_core.testing as t; t.PORTS = range(20_000, 20_100); {ASK}"

    def start(_: int) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", few], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with ThreadPoolExecutor() as threads:
        asking = list(threads.map(start, range(3)))
    try:
        given = [port for each in asking if each.stdout for port in each.stdout.readline().split()]
        given += [str(free_port()) for _ in range(8)]
    finally:
        for each in asking:
            each.communicate("\n", timeout=20)
    assert len(given) == len(set(given)) == 32


def test_no_port_is_one_that_the_kernel_gives_to_connections() -> None:
    assert all(port < 32_768 for port in (free_port() for _ in range(RESERVED + 8)))
    assert len(testing._reserved) <= RESERVED
