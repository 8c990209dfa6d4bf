"""Services as real processes, for tests that kill them."""

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp

from handler_core.testing import free_port, process


class Worker:
    """A service's process, and what its health port tells."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of its answer; 0 and nothing where it does not answer."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self._url + path) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectionError:
            return 0, ""

    async def metric(self, name: str, labels: str = "") -> int:
        """A whole number of its metrics; 0 where there is none."""
        pattern = rf"^{name}(?:{{[^}}]*{labels}[^}}]*}})? (\d+)$"
        found = re.search(pattern, (await self.get("/metrics"))[1], re.MULTILINE)
        return int(found[1]) if found else 0

    async def ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200

    async def busy(self) -> bool:
        return await self.metric("handler_in_flight") > 0

    async def idle(self) -> bool:
        return not await self.busy()

    @property
    def resident(self) -> float:
        """The memory that it occupies, in MiB (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0


@contextlib.contextmanager
def service_process(module: str, environment: Mapping[str, str]) -> Iterator[Worker]:
    """A service's process with this environment added, killed afterwards; it is not ready yet."""
    port = free_port()
    own = {"LOG_FORMAT": "json", "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(port)}
    with process(module, {**own, **environment}) as running:
        yield Worker(running, port)
