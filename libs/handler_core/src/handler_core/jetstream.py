"""The few JetStream API calls that the library makes, as plain JSON requests.

Written against the API itself rather than nats-py's data classes, so that a field the client does not know yet is
neither dropped nor reset. Source: the server's `$JS.API` (ADR-1, ADR-31) and its `errors.json`.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors

from handler_core.connection import Connection, header_block, parse_headers
from handler_core.errors import Transient

WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
NO_MESSAGE_FOUND = 10037

EXPECTED_LAST = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_LAST_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
MSG_ID = "Nats-Msg-Id"


class JetStreamError(Exception):
    """The server refused an API call or a message; `err_code` is the number in the server's own `errors.json`."""

    def __init__(self, operation: str, code: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream refused {operation}: {description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


@dataclass(frozen=True)
class Stored:
    """A stored message as read back."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Acknowledgement:
    """The stream's answer to a publish."""

    stream: str
    sequence: int
    duplicate: bool
    """It was stored before, under the same `Nats-Msg-Id`."""


class Api:
    """JetStream API calls over a connection; `timeout` seconds each."""

    def __init__(self, nc: Connection, *, timeout: float = 5.0) -> None:
        self._nc = nc
        self._timeout = timeout

    async def request(self, operation: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call `$JS.API.{operation}`.

        Raises:
            JetStreamError: the server answered with an error.
            Transient: JetStream did not answer in time or is not there.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        return await self._call(f"$JS.API.{operation}", payload, None)

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        """Publish and wait until it is stored; returns its stream sequence.

        Raises:
            JetStreamError: not stored; `err_code` in `WRONG_LAST_SEQUENCE` when an expectation in `headers` failed.
            Transient: no acknowledgement; it may or may not have been stored.
        """
        return (await self.store(subject, payload, headers)).sequence

    async def store(self, subject: str, payload: bytes, headers: dict[str, str]) -> Acknowledgement:
        """`publish`, with all that the stream says of it."""
        answer = await self._call(subject, payload, headers)
        if not isinstance(answer.get("seq"), int):
            raise Transient(f"what answers on {subject} is no stream")
        return Acknowledgement(str(answer.get("stream")), answer["seq"], answer.get("duplicate") is True)

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The newest message of a subject, read from the stream's leader; None when there is none."""
        return await self._get(stream, {"last_by_subj": subject})

    async def next(self, stream: str, subject: str, sequence: int) -> Stored | None:
        """The first message of a subject (wildcards allowed) at `sequence` or after; None when there is none."""
        return await self._get(stream, {"seq": sequence, "next_by_subj": subject})

    async def _get(self, stream: str, what: Mapping[str, Any]) -> Stored | None:
        try:
            reply = await self.request(f"STREAM.MSG.GET.{stream}", what)
        except JetStreamError as error:
            if error.err_code == NO_MESSAGE_FOUND:
                return None
            raise
        message = reply.get("message")
        if not isinstance(message, dict):
            raise Transient(f"what answers for the stream {stream} is not JetStream")
        return Stored(
            subject=message["subject"],
            sequence=message["seq"],
            data=base64.b64decode(message.get("data") or ""),
            headers=parse_headers(base64.b64decode(message.get("hdrs") or "")),
        )

    async def _call(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> dict[str, Any]:
        try:
            block = header_block(headers) if headers else b""
            reply = await self._nc.ask(subject, payload, headers=block, timeout=self._timeout)
        except nats.errors.NoRespondersError:
            raise Transient(f"no stream or API answers on {subject}") from None
        except (nats.errors.TimeoutError, TimeoutError):
            raise Transient(f"no answer on {subject} within {self._timeout:g} s") from None
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            raise Transient(f"not connected to NATS: {error}") from None
        try:
            answer: dict[str, Any] = json.loads(reply)
            error_body = answer.get("error")
        except (ValueError, AttributeError):
            raise Transient(f"what answers on {subject} is not JetStream") from None
        if error_body is not None:
            raise JetStreamError(
                subject.removeprefix("$JS.API."),
                error_body.get("code", 500),
                error_body.get("err_code", 0),
                error_body.get("description", "unknown error"),
            )
        return answer
