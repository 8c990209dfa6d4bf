"""Asking voice_assistant what was said, for sessions that want an answer."""

import asyncio
from typing import Any

from handler_core.client import publish
from handler_core.codec import validate
from handler_core.connection import Connection
from handler_core.contract.stt import SessionConfig
from handler_core.contract.voice import REQUEST_SUBJECT, USER_SUBJECT, VoiceRequest
from handler_core.errors import Abandoned, Busy, HandlerError, InvalidRequest, Transient
from handler_core.jetstream import Api, JetStreamError
from stt_module.events import Events

TRIES = 6
"""Of a queue that takes nothing, while the server is there."""
UNREACHABLE_RETRY = 1.0
"""Seconds between two looks whether the server is there."""
RETRY_AFTER = 0.25
"""Seconds; doubled with each further try: a full queue gets about eight."""

_OURS = frozenset({"text", "audio", "request_id", "session_id", "user_id"})
"""What the session itself says of a turn, and a client's `turn` cannot."""


def request(
    config: SessionConfig, session: str, request_id: str, text: str, language: str | None
) -> tuple[str, VoiceRequest]:
    """Where to ask for a session's turn, and what.

    Raises:
        InvalidRequest: the session's `turn` is no part of a `VoiceRequest`; the message names the field.
    """
    fields: dict[str, Any] = {name: value for name, value in (config.turn or {}).items() if name not in _OURS}
    fields |= {"text": text, "request_id": request_id, "session_id": session, "user_id": config.user_id}
    if language := fields.get("language") or config.language or language:
        fields["language"] = language
    subject = REQUEST_SUBJECT if config.user_id is None else USER_SUBJECT.format(user=config.user_id)
    return subject, validate(fields, VoiceRequest)


def check(config: SessionConfig) -> None:
    """Raise unless turns can be asked for as a `start` wants them.

    Raises:
        InvalidRequest: its message names the field of `turn`.
    """
    if config.turn is None:
        return
    if ours := _OURS & config.turn.keys():
        raise InvalidRequest(f"turn.{min(ours)}: is the session's own", stage="decode")
    try:
        request(config, "session", "turn", "text", None)
    except InvalidRequest as error:
        raise InvalidRequest(f"turn.{error.message}", stage="decode") from None


async def ask(
    nc: Connection, events: Events, config: SessionConfig, request_id: str, text: str, language: str | None
) -> HandlerError | None:
    """Queue the turn, once only however often it is tried; returns why it could not be.

    Without NATS it waits, as the transcript has to: only what the queue itself refuses is given up.

    Raises:
        Abandoned: another worker has the session, and asks for its turns.
    """
    refused: HandlerError | None = None
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(RETRY_AFTER * 2.0 ** (attempt - 1))
        try:
            if not await _own(events):
                raise Abandoned(f"another worker listens to the session {events.session}")
            subject, wanted = request(config, events.session, request_id, text, language)
            await publish(Api(nc), subject, wanted, dict(events.trace_headers()))
            return None
        except (Busy, Transient) as error:
            refused = error
        except JetStreamError as error:
            refused = Transient(error.description, stage="queue")
        except InvalidRequest as error:
            return error
    return refused


async def _own(events: Events) -> bool:
    """Whether the session is still ours, found out for as long as it takes."""
    while True:
        try:
            return await events.own()
        except Transient:
            await asyncio.sleep(UNREACHABLE_RETRY)
