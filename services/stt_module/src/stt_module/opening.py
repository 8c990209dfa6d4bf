"""Taking a session's ticket: where it stands, and whether there is anything to listen to."""

from dataclasses import dataclass, replace
from typing import Any

import structlog

from handler_core.connection import Connection
from handler_core.contract.stt import STREAM_SUBJECT
from handler_core.errors import Internal, Transient
from handler_core.jetstream import Api, JetStreamError
from stt_module.checkpoint import Checkpoint
from stt_module.events import Events
from stt_module.segmenter import Position
from stt_module.tickets import AUDIO

log = structlog.get_logger("stt_module")

MAX_TAKEOVERS = 5
"""Workers in a row that may get no further than the same audio; the next one leaves it out."""


@dataclass(frozen=True)
class Opening:
    """Where to begin, and the event with which the session is taken; none when there is nothing to listen to."""

    checkpoint: Checkpoint
    event: dict[str, Any] | None


async def opening(nc: Connection, events: Events) -> Opening:
    """How to go on with a session, by its last event.

    Raises:
        Transient: a stream does not answer.
    """
    known = await events.read()
    try:
        if known is not None and await _made_anew(Api(nc), events.session, known):
            at = Position(1, ms=known.position.ms)
            known = replace(known, position=at, phase=replace(known.phase, sequence=0), interrupted=0)
        if known is None or known.ended:
            return await _new(Api(nc), events.session, known.start_sequence if known else 1)
        if known.takeovers >= MAX_TAKEOVERS:
            return await _beyond(Api(nc), events.session, known)
    except JetStreamError as error:
        raise Transient(f"the session's audio cannot be read: {error.description}") from None
    again = replace(known, takeovers=known.takeovers + 1)
    return Opening(again, {"type": "status", "status": "resumed"})


async def _made_anew(api: Api, session: str, known: Checkpoint) -> bool:
    """Whether the session's audio ends before where it was heard already: the stream counts from one again."""
    newest = await api.last(AUDIO, STREAM_SUBJECT.format(session=session))
    return newest is not None and newest.sequence < known.start_sequence - 1


async def _new(api: Api, session: str, sequence: int) -> Opening:
    # Not where the ticket points to: a chunk whose own ticket got lost on the way may stand before that.
    first = await api.next(AUDIO, STREAM_SUBJECT.format(session=session), sequence)
    if first is None:
        return Opening(Checkpoint(sequence), None)
    return Opening(Checkpoint(first.sequence), {"type": "status", "status": "started"})


async def _beyond(api: Api, session: str, known: Checkpoint) -> Opening:
    """Leave out what worker after worker has died of."""
    newest = await api.last(AUDIO, STREAM_SUBJECT.format(session=session))
    sequence = max(newest.sequence if newest else 0, known.start_sequence)
    log.error("audio_left_out", session=session, first=known.start_sequence, last=sequence)
    error = Internal("workers have failed with this audio again and again; it is left out")
    checkpoint = replace(known, position=Position(sequence + 1, ms=known.position.ms), takeovers=0)
    return Opening(checkpoint, {"type": "error", "status": "resumed", "error": error.info()})
