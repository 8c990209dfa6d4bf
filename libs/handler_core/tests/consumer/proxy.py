"""A TCP proxy that can break connections in the ways that networks do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class _Line:
    """One proxied connection."""

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.deaf = False
        self.writers: list[asyncio.StreamWriter] = []


class Proxy:
    """Passes bytes to a server until told otherwise; each trouble strikes the connections that are open then."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        self._lines: set[_Line] = set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset them."""
        for line in self._lines:
            for writer in line.writers:
                writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing more, either way, and tell nobody."""
        for line in self._lines:
            line.flowing.clear()

    def resume(self) -> None:
        for line in self._lines:
            line.flowing.set()

    def swallow(self) -> None:
        """Lose what the server sends; what the client sends still arrives."""
        for line in self._lines:
            line.deaf = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        line = _Line()
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        line.writers = [writer, to_writer]
        self._lines.add(line)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(line, reader, to_writer, False))
                tasks.create_task(self._pass(line, to_reader, writer, True))
        finally:
            self._lines.discard(line)

    async def _pass(self, line: _Line, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await line.flowing.wait()
                if not (back and line.deaf):
                    sink.write(data)
                    await sink.drain()
        for writer in line.writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied(target: int) -> AsyncIterator[Proxy]:
    """A proxy before the server on port `target`."""
    proxy = Proxy(target)
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await proxy.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            connections.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.resume()
        proxy.cut()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
