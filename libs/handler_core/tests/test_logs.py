"""What a process writes to its log: in a container, and on a terminal."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import asyncio, logging, sys
import structlog
log = structlog.get_logger("made.before.configure")
from handler_core import logs
from handler_core.config import LogSettings, load
logs.configure(load(LogSettings), "sample")

log.debug("detail")
log.info("one", request_id="q1", trace_id="0af7", n=3, text="two\\nlines", odd=object, raw=b"\\xff")
with structlog.contextvars.bound_contextvars(request_id="q2"):
    log.warning("bound")
try:
    {}["key"]
except KeyError:
    log.exception("failed", request_id="q3")
    logging.getLogger("nats.aio.client").exception("nats: %s", "encountered error")
logging.getLogger("aiohttp.server").error("Error handling request\\nfrom %s", "127.0.0.1")
logging.getLogger("asyncio").warning("returning true from eof_received() has no effect when using ssl")
logging.getLogger("asyncio").warning("another warning")
logging.getLogger("aiohttp.access").info("GET /livez")

async def forgotten():
    async def fail():
        raise RuntimeError("nobody awaited")
    task = asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task

asyncio.run(forgotten())
"""


def run(**settings: str) -> list[str]:
    """The lines that the program logs where there is no terminal."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**settings}, capture_output=True, text=True, timeout=50, check=True
    )
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def on_terminal(**settings: str) -> str:
    """What the program writes to a terminal."""
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env={"TERM": "xterm", **settings}, stderr=follower, stdout=subprocess.DEVNULL
    )
    os.close(follower)
    written = b""
    while chunk := _read(leader):
        written += chunk
    os.close(leader)
    assert running.wait(50) == 0
    return written.decode()


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


@pytest.fixture(scope="module")
def entries() -> dict[str, dict[str, Any]]:
    return {entry["event"]: entry for entry in map(json.loads, run())}


def test_every_line_is_one_json_object_of_the_same_form(entries: dict[str, dict[str, Any]]) -> None:
    for entry in entries.values():
        assert entry["service"] == "sample"
        assert entry["level"] in {"info", "warning", "error"}
        assert entry["timestamp"].endswith("Z")


def test_a_line_carries_what_was_given_with_it(entries: dict[str, dict[str, Any]]) -> None:
    one = entries["one"]
    assert (one["request_id"], one["trace_id"], one["n"], one["text"]) == ("q1", "0af7", 3, "two\nlines")
    assert one["level"] == "info"
    assert entries["bound"]["request_id"] == "q2"


def test_exceptions_stand_in_the_line(entries: dict[str, dict[str, Any]]) -> None:
    for event in ("failed", "nats: encountered error"):
        assert entries[event]["level"] == "error"
        assert entries[event]["exception"].startswith("Traceback (most recent call last):")
        assert entries[event]["exception"].endswith("KeyError: 'key'")


def test_the_packages_beneath_come_out_in_the_same_form(entries: dict[str, dict[str, Any]]) -> None:
    assert entries["Error handling request\nfrom 127.0.0.1"]["level"] == "error"
    (forgotten,) = (entry for event, entry in entries.items() if event.startswith("Task exception was never retrieved"))
    assert forgotten["exception"].endswith("RuntimeError: nobody awaited")


def test_detail_and_access_lines_are_left_out_unless_asked_for(entries: dict[str, dict[str, Any]]) -> None:
    assert "detail" not in entries
    assert "GET /livez" not in entries
    assert any('"detail"' in line for line in run(LOG_LEVEL="debug"))


def test_what_asyncio_says_at_the_end_of_every_tls_stream_is_left_out(entries: dict[str, dict[str, Any]]) -> None:
    assert "another warning" in entries
    assert not any("eof_received" in event for event in entries)


def test_the_level_is_a_threshold() -> None:
    levels = {json.loads(line)["level"] for line in run(LOG_LEVEL="error")}
    assert levels == {"error"}


def test_the_console_form_without_a_terminal_has_no_colours() -> None:
    text = "\n".join(run(LOG_FORMAT="console"))
    assert "\x1b" not in text
    assert "request_id=q1" in text
    assert "KeyError: 'key'" in text
    assert "nats: encountered error" in text


def test_a_terminal_gets_colours() -> None:
    text = on_terminal()
    assert "\x1b[" in text
    assert "q1" in text


def test_a_terminal_gets_json_when_asked() -> None:
    lines = on_terminal(LOG_FORMAT="json").splitlines()
    assert json.loads(lines[0])["event"] == "one"
    assert "\x1b" not in "".join(lines)
