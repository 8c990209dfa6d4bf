"""A few pages over HTTP, as probes, scrapers and clients that misbehave ask for them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from handler_core import pages as pages_module
from handler_core.pages import MAX_HEAD, Page, Pages
from handler_core.testing import until

TEXT = "Grüße\n"


def broken() -> Page:
    raise ZeroDivisionError


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    pages = Pages(
        {
            "/text": lambda: Page(200, "text/plain; version=0.0.4", TEXT),
            "/large": lambda: Page(200, "text/plain", "x" * 20_000_000),
            "/broken": broken,
        }
    )
    yield pages
    await pages.stop()


@pytest.fixture
async def port(pages: Pages) -> int:
    return await pages.start("127.0.0.1", 0)


async def answered(port: int, request: bytes) -> bytes:
    """All that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_a_page_is_sent_whole_and_the_connection_closed(port: int) -> None:
    assert await answered(port, b"GET /text?x=/livez HTTP/1.1\r\nHost: a\r\n\r\n") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        b"Content-Length: 8\r\nConnection: close\r\n\r\n" + TEXT.encode()
    )


async def test_clients_that_would_go_on_with_the_connection_take_another(port: int) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(f"http://127.0.0.1:{port}/text") as answer:
                assert (answer.status, await answer.text()) == (200, TEXT)


async def test_a_head_has_the_length_and_no_body(port: int) -> None:
    head = await answered(port, b"HEAD /text HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 8\r\n" in head
    assert head.endswith(b"\r\n\r\n")


async def test_a_large_page_arrives(port: int) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/large") as answer:
        assert len(await answer.read()) == 20_000_000


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /text HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
        (b"GET /text\r\n\r\n", b"400"),
        (b"\xff\x00 \r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"400"),
        (b"GET /" + b"a" * (MAX_HEAD + 1) + b" HTTP/1.1\r\n\r\n", b"431"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_a_status(port: int, request_: bytes, status: bytes) -> None:
    assert (await answered(port, request_)).startswith(b"HTTP/1.1 " + status + b" ")


async def test_a_client_that_goes_away_or_says_half_gets_nothing(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /te")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.sendall(b"GET /large HTTP/1.1\r\n\r\n")
    assert (await answered(port, b"GET /text HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_client_that_says_nothing_or_does_not_read_is_dropped(
    pages: Pages, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "TIMEOUT", 0.05)
    assert await answered(port, b"") == b""
    with socket.create_connection(("127.0.0.1", port)) as deaf:
        deaf.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        await until(lambda: bool(pages._open), "the connection is accepted")
        await until(lambda: not pages._open, "the connection is dropped")


async def test_stopping_drops_who_is_connected(pages: Pages, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await until(lambda: bool(pages._open), "the connection is accepted")
    await pages.stop()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
