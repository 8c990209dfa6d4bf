"""`python -m handler_core.provision`: as a Job runs it, against real servers."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handler_core import streams
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, free_port, nats_server


def provision(url: str, *arguments: str, **settings: str) -> tuple[int, list[dict[str, Any]]]:
    """Its exit code, and what it logged."""
    environment = {**os.environ, "NATS_URL": url, "LOG_FORMAT": "json", **settings}
    command = [sys.executable, "-m", "handler_core.provision", *arguments]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=30)
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


async def differences(url: str) -> list[streams.Difference]:
    async with connection(url) as nc:
        return await streams.diff(Api(nc))


def test_streams_and_consumers_are_made_once_and_then_found_as_declared() -> None:
    with nats_server() as server:
        first, second = provision(server.url), provision(server.url)
        assert asyncio.run(differences(server.url)) == []
    made = len(streams.STREAMS) + len(streams.CONSUMERS)
    assert (first[0], first[1][-1]["event"], first[1][-1]["changed"]) == (0, "as_declared", made)
    assert (second[0], second[1][-1]["changed"]) == (0, 0)


def test_a_server_that_is_not_there_is_named_in_the_end() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    code, logged = provision(url, "--wait", "0.5")
    assert (code, logged[-1]["event"], logged[-1]["url"]) == (1, "nats_not_reached", url)


def test_a_file_that_holds_no_certificate_is_told_of_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    code, logged = provision(f"nats://127.0.0.1:{free_port()}", NATS_TLS_CA=str(file))
    assert (code, [line["event"] for line in logged]) == (1, ["provisioning_failed"])
    assert logged[0]["error"].startswith("NATS_TLS_CA: cannot be used")


def test_what_cannot_be_changed_in_place_is_named_and_left() -> None:
    async def other(url: str) -> None:
        async with connection(url) as nc:
            await Api(nc).request("STREAM.CREATE.DLQ", {"name": "DLQ", "subjects": ["dlq.>"], "storage": "memory"})

    with nats_server() as server:
        asyncio.run(other(server.url))
        code, logged = provision(server.url)
    assert code == 1
    assert [line["difference"] for line in logged if line["event"] == "cannot_be_changed"] == [
        "stream DLQ: storage is 'memory', declared 'file' (cannot be changed in place: delete and apply)"
    ]


@pytest.mark.parametrize("replicas", ["0", "many"])
def test_a_wrong_number_of_replicas_is_refused(nats: NatsServer, replicas: str) -> None:
    assert provision(nats.url, "--replicas", replicas)[0] != 0
