"""How far a session has come: what was heard, and what of it is out.

Every event takes along where the session stands as of the audio whose transcripts are out, so that the next worker
begins with the first utterance that nobody has seen the end of.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stt_module.checkpoint import Checkpoint, Phase
from stt_module.events import Events
from stt_module.intake import Intake
from stt_module.segmenter import Position, Utterance
from stt_module.worker import Worker


@dataclass(frozen=True, eq=False)
class Pending:
    """An utterance that has ended, and whose final transcript is not out yet."""

    number: int
    utterance: Utterance
    phase: Phase
    """As it ended."""
    stored_at: float
    """When the stream got the chunk that ended it, in Unix seconds."""


class Progress:
    """Counts a session's utterances, and publishes what comes of them, one event after the other."""

    def __init__(self, worker: Worker, events: Events, intake: Intake, start: Checkpoint) -> None:
        self.first = start.first
        """The stream sequence of the session's first message."""
        self.number = start.utterance
        """Of the utterance that is being spoken, or the next."""
        self.pending: deque[Pending] = deque()
        self.shown = set(start.shown)
        """Utterances of which partial transcripts are out, but no final one."""
        self.request_id = start.request_id
        """The last turn that was asked for."""
        self.published_at = time.monotonic()
        self.takeovers = start.takeovers
        """Workers in a row, this one included, that got no further than this one began; 0 once that is not so."""
        self._began_at = (start.start_sequence, start.position.offset)
        self._worker = worker
        self._events = events
        self._intake = intake
        self._held = 0
        self._publishing = asyncio.Lock()

    # -- what waits for its transcript

    @property
    def too_much(self) -> bool:
        """Whether so much waits that no more should be read."""
        return self._worker.too_much(self._held)

    def add(self, utterance: Utterance) -> None:
        """The utterance that was being spoken has ended."""
        self.pending.append(Pending(self.number, utterance, self._intake.phase, self._intake.stored_at))
        self.number += 1
        self._hold(len(utterance.pcm))

    def done(self, pending: Pending) -> None:
        """All that there is to say of an utterance is out."""
        self.pending.remove(pending)
        self.shown.discard(pending.number)
        self._hold(-len(pending.utterance.pcm))

    def give_up(self) -> None:
        """Hold nothing any more."""
        self.pending.clear()
        self._hold(-self._held)

    def _hold(self, size: int) -> None:
        self._held += size
        self._worker.held += size

    # -- publishing

    async def publish(
        self, done: Pending | None = None, *, only_if: Callable[[], bool] | None = None, **event: Any
    ) -> None:
        """Store an event and where the session stands.

        Args:
            done: the utterance that is over with it.
            only_if: asked when its turn has come; it is not published otherwise.

        Raises:
            Abandoned: another worker has the session.
        """
        async with self._publishing:
            if only_if is not None and not only_if():
                return
            intake = self._intake
            now = {"state": intake.phase.state, "has_voice_activity": intake.segmenter.voice_activity}
            await self._events.publish(self._checkpoint(done, ended=event.get("status") == "ended"), **(now | event))
            self.published_at = time.monotonic()
            if done is not None:
                self.done(done)

    def _checkpoint(self, done: Pending | None, *, ended: bool) -> Checkpoint:
        intake = self._intake
        first = next((pending for pending in self.pending if pending is not done), None)
        position = first.utterance.begin if first else intake.segmenter.position
        known = Checkpoint(
            self.first,
            position,
            intake.phase_at(position),
            interrupted=intake.interrupted,
            utterance=first.number if first else self.number,
            shown=tuple(sorted(number for number in self.shown if done is None or number != done.number)),
            request_id=self.request_id,
            takeovers=self.takeovers,
        )
        # Other events are no progress: a session may well tell of something each time before its worker dies of it.
        if (known.start_sequence, position.offset) != self._began_at:
            self.takeovers = 0
            known = replace(known, takeovers=0)
        if ended:
            return replace(known, position=Position(intake.last_sequence + 1), shown=(), ended=True)
        return known
