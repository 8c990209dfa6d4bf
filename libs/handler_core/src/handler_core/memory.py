"""What was said in a session, in a key-value bucket that forgets a session some days after its last turn.

A session's key holds its user, so that another user's request for it finds nothing. Every turn is kept by its
`request_id`: when a message is redelivered, the later attempt's answer takes the place of the earlier one's, and an
earlier attempt that wakes up again does not touch it. Writes are conditional on what was read; on a conflict the
session is read again. Source of the bucket's layout: ADR-8.
"""

import time
from collections.abc import Sequence
from typing import TypeVar

import structlog
from pydantic import Field

from handler_core import prompt, streams
from handler_core.citations import without_markers
from handler_core.codec import decode, encode
from handler_core.connection import Connection, MessageTooLarge
from handler_core.contract.base import Message
from handler_core.contract.chat import ChatRequest, ChatResponse, Question
from handler_core.contract.session import SessionTurn
from handler_core.contract.voice import VoiceResponse
from handler_core.errors import HandlerError, Transient
from handler_core.jetstream import EXPECTED_LAST, WRONG_LAST_SEQUENCE, Api, JetStreamError
from handler_core.timings import Timings

log = structlog.get_logger("handler_core.memory")

TRIES = 50
"""Each conflict is another turn of the session written: as many as may end at once get there in as many tries."""
A = TypeVar("A", ChatResponse, VoiceResponse)

_PREFIX = "$KV.AI_SESSIONS."
_OPERATION = "KV-Operation"


class _Stored(Message):
    """A session's value in the bucket."""

    turns: list[SessionTurn] = Field(default_factory=list)


class Memory:
    """The sessions of all users.

    Args:
        tokens: what a session keeps, and gives to a prompt: its last turns that have so many tokens together.
    """

    def __init__(self, nc: Connection, *, tokens: int = 1500) -> None:
        self._api = Api(nc)
        self._tokens = tokens

    async def recall(self, user: str | None, session: str) -> list[SessionTurn]:
        """The turns that are kept, the oldest first.

        Raises:
            Transient: the bucket, or what it holds of the session, cannot be read.
        """
        turns, _ = await self._read(user, session)
        if turns is None:
            raise Transient("what is kept of the session cannot be read")
        return prompt.recent(turns, self._tokens)

    async def remember(self, user: str | None, session: str, turn: SessionTurn) -> None:
        """Add a turn, in place of what an earlier attempt said; citations, whose sources are not kept, are left out.

        Raises:
            Transient: the bucket cannot be written, or others write the session all the time.
        """
        turn = turn.model_copy(update={"response": without_markers(turn.response)})
        for _ in range(TRIES):
            turns, revision = await self._read(user, session)
            earlier = next((kept for kept in turns or () if kept.request_id == turn.request_id), None)
            if earlier is not None and earlier.attempt >= turn.attempt:
                return
            others = [kept for kept in turns or () if kept.request_id != turn.request_id]
            value = encode(_Stored(turns=prompt.recent([*others, turn], self._tokens)))
            if await self._write(user, session, value, {}, revision):
                return
        raise Transient("the session is being written by others")

    async def amend(self, user: str | None, session: str, turn: SessionTurn) -> bool:
        """Let a turn that this attempt has remembered say `turn.response` instead, in its place; returns whether it was
        there.

        Raises:
            Transient: the bucket cannot be read or written.
        """
        for _ in range(TRIES):
            turns, revision = await self._read(user, session)
            amended = [
                kept.model_copy(update={"response": without_markers(turn.response)}) if _same(kept, turn) else kept
                for kept in turns or ()
            ]
            if not any(_same(kept, turn) for kept in amended):
                return False
            if await self._write(user, session, encode(_Stored(turns=amended)), {}, revision):
                return True
        raise Transient("the session is being written by others")

    async def forget(self, user: str | None, session: str) -> bool:
        """Delete a session; returns whether there was one.

        Raises:
            Transient: the bucket cannot be read or written.
        """
        for _ in range(TRIES):
            turns, revision = await self._read(user, session)
            if turns is not None and not turns:
                return False
            if await self._write(user, session, b"", {_OPERATION: "PURGE", "Nats-Rollup": "sub"}, revision):
                return True
        raise Transient("the session is being written by others")

    async def _read(self, user: str | None, session: str) -> tuple[Sequence[SessionTurn] | None, int]:
        """The turns, None where what is stored cannot be read, and the revision to write upon."""
        try:
            stored = await self._api.last(streams.AI_SESSIONS.name, _key(user, session))
        except JetStreamError as error:
            raise Transient(f"sessions cannot be read: {error.description}") from None
        if stored is None:
            return (), 0
        if _OPERATION in stored.headers:  # a marker of what was deleted
            return (), stored.sequence
        try:
            return decode(stored.data, _Stored).turns, stored.sequence
        except HandlerError as error:
            log.warning("session_unreadable", error=error.message)
            return None, stored.sequence

    async def _write(
        self, user: str | None, session: str, value: bytes, headers: dict[str, str], revision: int
    ) -> bool:
        """Write upon a revision; returns False when it is no longer the last."""
        try:
            await self._api.publish(_key(user, session), value, {**headers, EXPECTED_LAST: str(revision)})
        except JetStreamError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                return False
            raise Transient(f"sessions cannot be written: {error.description}") from None
        except MessageTooLarge as error:  # more tokens are kept than the server takes
            raise Transient(f"sessions cannot be written: {error.message}") from None
        return True


class Conversation:
    """What a request's session held before it, and where its own turn is added; empty for one without a session.

    An answer that cannot be remembered, or was given without what was said before, names `memory` in `degraded`.
    """

    def __init__(self, memory: Memory, request: Question, request_id: str, timings: Timings) -> None:
        self._request_id = request_id
        self.turns: list[SessionTurn] = []
        self._memory = memory
        self._request = request
        self._query = request.query if isinstance(request, ChatRequest) else ""
        self._timings = timings
        self._degraded = False

    @classmethod
    async def of(cls, request: Question, request_id: str, memory: Memory, timings: Timings) -> "Conversation":
        """Recall what was said before this request, which `request_id` names even if it came without an id."""
        conversation = cls(memory, request, request_id, timings)
        if request.session_id is not None:
            try:
                with timings.stage("recall"):
                    turns = await memory.recall(request.user_id, request.session_id)
                # An earlier attempt at this very request may have got as far as to be remembered.
                conversation.turns = [turn for turn in turns if turn.request_id != request_id]
            except Transient as error:
                conversation._degrade(error)
        return conversation

    async def add(self, response: A, attempt: int) -> A:
        """Remember this turn, before its answer is sent: whoever asks on at once is understood. One in which nothing
        was asked is none."""
        session, turn = self._request.session_id, self._turn(response, attempt)
        if session is not None and turn.query:
            try:
                with self._timings.stage("remember"):
                    await self._memory.remember(self._request.user_id, session, turn)
            except Transient as error:
                self._degrade(error)
        if not self._degraded:
            return response
        return response.model_copy(update={"degraded": [*response.degraded, "memory"]})

    async def amend(self, response: A, heard: str, attempt: int) -> None:
        """Let the answer that was added be remembered as no more than what was `heard` of it; it may have been
        forgotten since."""
        if (session := self._request.session_id) is not None:
            turn = self._turn(response.model_copy(update={"response": heard}), attempt)
            try:
                await self._memory.amend(self._request.user_id, session, turn)
            except Transient as error:
                log.warning("amend_failed", error=error.message)

    def _turn(self, response: A, attempt: int) -> SessionTurn:
        # What a spoken question said is known with its answer only.
        query = response.transcription if isinstance(response, VoiceResponse) else self._query
        return SessionTurn(
            request_id=self._request_id,
            attempt=attempt,
            query=query,
            response=response.response,
            timestamp=time.time(),
        )

    def _degrade(self, error: Transient) -> None:
        log.warning("degraded", without="memory", error=error.message)
        self._degraded = True


def _same(kept: SessionTurn, turn: SessionTurn) -> bool:
    return (kept.request_id, kept.attempt) == (turn.request_id, turn.attempt)


def _key(user: str | None, session: str) -> str:
    # Two forms, so that no user's name can be that of nobody.
    return f"{_PREFIX}user.{user}.{session}" if user is not None else f"{_PREFIX}anonymous.{session}"
