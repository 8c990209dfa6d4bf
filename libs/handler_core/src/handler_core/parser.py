"""The receiving side of the NATS protocol, for connections that receive much.

nats-py's parser matches regular expressions against a growing buffer and awaits a coroutine a message. This one finds
line ends in the bytes as they came and calls a sink directly; everything that is not a message for a sink goes the
old way. Source: the NATS client protocol (MSG, HMSG).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

if TYPE_CHECKING:
    from handler_core.connection import Connection

log = structlog.get_logger("handler_core.parser")

Sink = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes (subject, reply, data, raw headers) of a message."""

MAX_LINE = 4096
"""Bytes that a control line may have before the server counts as broken; its own limit."""


class DirectParser(Parser):
    """Parses what a connection reads; `sinks` maps subscription ids to where their messages go."""

    def __init__(self, nc: "Connection") -> None:
        super().__init__(nc)
        self.sinks: dict[int, Sink] = {}

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        """Take in what was read; an incomplete message at its end waits for the next read.

        Raises:
            ProtocolError: this is not the NATS protocol.
        """
        if self._rest:
            data = self._rest + data
        position, stats = 0, self.nc.stats
        while (line_end := data.find(b"\r\n", position)) >= 0:
            body = line_end + 2
            if data.startswith(b"HMSG ", position):
                arguments = data[position + 5 : line_end].split()
                header_size = int(arguments[-2])
                plain = 4
            elif data.startswith(b"MSG ", position):
                arguments = data[position + 4 : line_end].split()
                header_size = 0
                plain = 3
            else:
                self._rest = b""
                await super().parse(data[position:body])
                position = body
                continue
            if not plain <= len(arguments) <= plain + 1:
                raise ProtocolError("nats: malformed MSG")
            end = body + int(arguments[-1])
            if len(data) < end + 2:
                break
            reply = arguments[2] if len(arguments) > plain else b""
            headers = data[body : body + header_size] if header_size else None
            payload = data[body + header_size : end]
            position = end + 2
            sid = int(arguments[1])
            sink = self.sinks.get(sid)
            if sink is not None:
                stats["in_msgs"] += 1
                stats["in_bytes"] += len(payload)
                try:
                    sink(arguments[0], reply, payload, headers)
                except Exception:
                    # Nothing that arrives may end the reading; unsettled, the message comes again.
                    log.exception("pulled_message_failed", subject=arguments[0])
            else:
                await self.nc._process_msg(sid, arguments[0], reply, payload, headers)
        else:
            if len(data) - position > MAX_LINE:
                raise ProtocolError("nats: a control line without an end")
        self._rest = data[position:]
