"""A real Milvus Lite server for tests and development. Needs `milvus-lite`, which no image carries."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handler_core.testing import free_port

START_TIMEOUT = 60.0
"""Seconds. A start takes about 2 s, nearly all of it imports; much longer when every core is busy."""


@contextmanager
def milvus_lite_server(data_dir: Path | str, *, port: int | None = None) -> Iterator[str]:
    """Run a server on 127.0.0.1 for the length of the block, and give its URI.

    Args:
        data_dir: where it keeps its data, made if absent; one server at a time. Data outlive the server.
        port: a free one when absent.

    Raises:
        RuntimeError: it ended, or did not listen within `START_TIMEOUT`; with what it had to say.
    """
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log = Path(data_dir) / "server.log"
    command = ["server", "--data-dir", str(data_dir), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "milvus_lite.cmdline", *command], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_listening(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)  # on which it closes its files; it has no handler for SIGTERM
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    said = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"Milvus Lite did not start on port {port} (exit code {process.poll()}):\n{said}")
