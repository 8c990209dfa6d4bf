"""A process in which nothing is encrypted does without OpenSSL; one in which something may be has it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from handler_core.config import ServiceSettings
from handler_core.connection import Connection
from handler_core.openssl import left_out


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WITHOUT_IT = """
import sys
from handler_core import openssl
openssl.leave_out()

import asyncio, hashlib, hmac
import aiohttp

async def main():
    async def answer(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
            print(await response.text())

asyncio.run(main())
print(hashlib.sha256(b"").hexdigest()[:8], hmac.new(b"k", b"m", "sha256").hexdigest()[:8])
print(openssl.left_out(), "_ssl" in sys.modules)
"""


def test_what_it_is_left_out_of_works_without_it() -> None:
    assert run(WITHOUT_IT).split() == ["ok", "e3b0c442", "b60090e3", "True", "False"]


def test_it_stays_where_it_has_been_imported() -> None:
    code = "import ssl; from handler_core import openssl; openssl.leave_out(); import ssl; print(openssl.left_out())"
    assert run(code) == "False"


@pytest.mark.parametrize(
    "settings",
    [
        {"nats_url": "tls://a:4222"},
        {"nats_url": "nats://a:4222,tls://b:4222"},
        {"nats_url": "wss://a"},
        {"nats_tls_ca": Path(__file__)},
        {"nats_tls_cert": Path(__file__)},
        {"otel_exporter_otlp_endpoint": "https://a"},
    ],
)
def test_settings_that_name_tls_say_so(settings: dict[str, Any]) -> None:
    assert ServiceSettings(**settings).encrypted


@pytest.mark.parametrize("name", ["https_proxy", "HTTP_PROXY", "grpc_proxy"])
def test_a_proxy_that_is_reached_by_tls_counts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://proxy:3128")
    assert not ServiceSettings().encrypted
    monkeypatch.setenv(name, "https://proxy:3128")
    assert ServiceSettings().encrypted


def test_settings_that_name_none_say_so() -> None:
    settings = ServiceSettings(
        nats_url="nats://a:4222,ws://b", nats_user="https", otel_exporter_otlp_endpoint="http://a"
    )
    assert not settings.encrypted


def test_a_server_that_asks_for_tls_after_all_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssl", None)
    assert left_out()
    with pytest.raises(nats.errors.Error, match="tls://"):
        _ = Connection().ssl_context
