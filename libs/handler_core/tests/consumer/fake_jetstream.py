"""A NATS server of a few dozen lines that says what a real one cannot be made to say.

It speaks just enough of the protocol for one durable pull consumer: the handshake, subscriptions, a lookup of the
consumer, pull requests and acknowledgements. A test takes the pull requests one by one and answers them as it likes.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from handler_core.streams import Consumer

ACK_TOKENS = b"$JS.ACK.FAKE.worker.%d.%d.%d.1700000000000000000.0"
LONG_ACK_TOKENS = b"$JS.ACK.hub.ACCHASH.FAKE.worker.%d.%d.%d.1700000000000000000.0.rndm"


class _Client:
    """One client's connection: its subscriptions, and a way to send it messages."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.subscriptions: dict[str, str] = {}
        self.inboxes: set[str] = set()

    def message(
        self, subject: bytes, inbox: str, data: bytes, reply: bytes = b"", headers: bytes | None = None
    ) -> None:
        sid = self.subscriptions.get(inbox) or self.subscriptions.get(inbox.rpartition(".")[0] + ".*")
        if sid is None:
            return
        reply = reply + b" " if reply else b""
        if headers is None:
            self.writer.write(b"MSG %b %b %b%d\r\n%b\r\n" % (subject, sid.encode(), reply, len(data), data))
        else:
            sizes = b"%d %d" % (len(headers), len(headers) + len(data))
            self.writer.write(b"HMSG %b %b %b%b\r\n%b%b\r\n" % (subject, sid.encode(), reply, sizes, headers, data))


@dataclass
class Pull:
    """A pull request, and what a server may answer to it."""

    batch: int
    expires: float
    idle_heartbeat: float
    inbox: str
    _client: _Client
    _server: "FakeJetStream"

    def status(self, line: str, **headers: int | str) -> None:
        """Send a status such as `409 Consumer Deleted`; `Nats_Pending_Messages=3` becomes that header."""
        fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.raw(f"NATS/1.0 {line}\r\n{fields}\r\n".encode())

    def raw(self, headers: bytes) -> None:
        self._client.message(self.inbox.encode(), self.inbox, b"", headers=headers)

    def deliver(self, *bodies: bytes, attempt: int = 1, ack: bytes = ACK_TOKENS, headers: bytes | None = None) -> None:
        for body in bodies:
            self._server.sequence += 1
            reply = ack % (attempt, self._server.sequence, self._server.sequence)
            self._client.message(b"fake.in", self.inbox, body, reply, headers)

    def redeliver(self, body: bytes, attempt: int) -> None:
        """The last message once more."""
        self._server.sequence -= 1
        self.deliver(body, attempt=attempt)

    @property
    def listened_to(self) -> bool:
        return self.inbox in self._client.subscriptions


@dataclass
class FakeJetStream:
    """See the module's text; `config` is what a lookup of the consumer answers, None that there is none."""

    config: dict[str, Any] | None
    port: int = 0
    lookups: int = 0
    connections: int = 0
    sequence: int = 0
    pulls: "asyncio.Queue[Pull]" = field(default_factory=asyncio.Queue)
    asked: list[Pull] = field(default_factory=list)
    settled: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(reply subject, payload) of what clients acknowledged, in-progress left out."""
    clients: list[_Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def pull(self) -> Pull:
        """The next pull request of a connection that was not dropped."""
        async with asyncio.timeout(20):
            while True:
                pull = await self.pulls.get()
                if not pull._client.writer.transport.is_closing():
                    return pull

    def drop(self) -> None:
        for client in self.clients:
            client.writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        self.clients.append(client)
        self.connections += 1
        info = {"server_id": "fake", "version": "2.15.0", "headers": True, "max_payload": 1 << 20, "proto": 1}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                verb, *words = line.decode().split()
                if verb == "PING":
                    writer.write(b"PONG\r\n")
                elif verb == "SUB":
                    client.subscriptions[words[0]] = words[-1]
                elif verb == "UNSUB":
                    client.subscriptions = {k: v for k, v in client.subscriptions.items() if v != words[0]}
                elif verb in ("PUB", "HPUB"):
                    payload = (await reader.readexactly(int(words[-1]) + 2))[:-2]
                    reply = words[1] if len(words) == (3 if verb == "PUB" else 4) else ""
                    self._published(client, words[0], reply, payload)
        writer.transport.abort()

    def _published(self, client: _Client, subject: str, reply: str, payload: bytes) -> None:
        if subject.startswith("$JS.API.CONSUMER.INFO."):
            self.lookups += 1
            missing = {"error": {"code": 404, "err_code": 10014, "description": "consumer not found"}}
            answer = missing if self.config is None else {"config": self.config}
            client.message(reply.encode(), reply, json.dumps(answer).encode())
        elif subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            asked = json.loads(payload)
            seconds = (asked["expires"] / 1e9, asked["idle_heartbeat"] / 1e9)
            pull = Pull(asked["batch"], *seconds, reply, client, self)
            self.asked.append(pull)
            self.pulls.put_nowait(pull)
        elif subject.startswith("$JS.ACK.") and payload != b"+WPI":
            self.settled.append((subject.encode(), payload))


FAKE = Consumer("FAKE", "worker")


@contextlib.asynccontextmanager
async def fake_jetstream() -> AsyncIterator[FakeJetStream]:
    """A fake server with the consumer `FAKE`."""
    fake = FakeJetStream(FAKE.config())
    sessions: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        sessions.add(task)
        try:
            await fake.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
