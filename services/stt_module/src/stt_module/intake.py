"""What arrives of a session: its messages understood, its audio put in order and cut into utterances.

Called from the connection's parser for every chunk of every session, fifty times a second each: everything here is
synchronous, and a plain chunk passes without a model being made of it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from handler_core import codec
from handler_core.audio import PcmFormat, first_channel
from handler_core.contract.stt import MAX_CHUNK, MAX_SEQ, SessionConfig, State, StreamMessage
from handler_core.errors import HandlerError, Internal, InvalidRequest
from stt_module import turns
from stt_module.checkpoint import MAX_CONFIG, Checkpoint, Phase
from stt_module.meters import Meters
from stt_module.ordering import Ordering
from stt_module.partials import Schedule
from stt_module.segmenter import Event, Position, Segmenter
from stt_module.settings import Settings

log = structlog.get_logger("stt_module")

MAX_BODY = 100 * 1024
"""Bytes of a message: a chunk's audio as base64, with room to spare."""
MAX_PHASES = 1000
"""Changes of a session, with audio between them, that may await their transcripts."""
_START = b"\xa5start"
"""The word in MessagePack, which a `start` that is too long to be unpacked has in it."""
_CONFIG_FIELDS = tuple(SessionConfig.model_fields)


class Intake:
    """Listens to one session from a checkpoint on; `receive` is the reader's sink.

    Args:
        on_event: told what is heard.
        on_error: told why a message was not taken.
        on_end: told that the client has ended the session; nothing is listened to after it.
        on_due: told that the `schedule` asks for a partial transcript.
        on_hold: told that audio waits for a chunk that is missing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        meters: Meters,
        *,
        on_event: Callable[[Event], None],
        on_error: Callable[[HandlerError], None],
        on_end: Callable[[], None],
        on_due: Callable[[], None],
        on_hold: Callable[[], None],
    ) -> None:
        self.last_sequence = checkpoint.start_sequence - 1
        """Of the stream, up to which everything has been listened to."""
        self.heard_at = time.monotonic()
        """When the last message came."""
        self.stored_at = 0.0
        """When the stream got it, in Unix seconds."""
        self.closed = False
        self.schedule: Schedule | None = None
        """When the open utterance is due for a partial transcript."""
        self.interrupted = checkpoint.interrupted
        """The `sequence` of the phase whose interrupt has been told."""
        self._settings = settings
        self._meters = meters
        self._on_event = on_event
        self._on_error = on_error
        self._on_end = on_end
        self._on_due = on_due
        self._on_hold = on_hold
        self._phases = [checkpoint.phase]
        self._unused = False
        self._counted = 0
        self._set_up(checkpoint.phase, checkpoint.position)

    def _set_up(self, phase: Phase, at: Position) -> None:
        config = phase.config
        self._format = PcmFormat(config.sample_rate, channels=config.channels)
        self._ordering = Ordering(config.sample_rate)
        self._counted = 0
        rules = self._settings.rules(frame_ms=config.frame_ms, keep_short=config.keep_short)
        self.segmenter = Segmenter(rules, config.sample_rate, at)
        self._set_state(phase)

    def _set_state(self, phase: Phase) -> None:
        self.segmenter.responding = phase.state == "responding"
        if phase.sequence == self.interrupted:
            self.segmenter.disarm()  # told already, by an earlier worker or before a takeover

    # -- what is known

    @property
    def phase(self) -> Phase:
        """What holds now."""
        return self._phases[-1]

    def _enter(self, phase: Phase) -> None:
        """Have this hold from now on; what held before is needed again only if audio has come since it began."""
        if self._unused:
            self._phases[-1] = phase
        else:
            self._phases.append(phase)
        self._unused = True

    def phase_at(self, position: Position) -> Phase:
        """What held at a position no earlier than those that were asked for before."""
        while len(self._phases) > 1 and self._phases[1].sequence <= position.mark:
            del self._phases[0]
        return self._phases[0]

    @property
    def holding(self) -> bool:
        """Whether audio waits for a chunk that is missing."""
        return self._ordering.holding

    # -- what comes

    def receive(self, sequence: int, stored_at: float, data: bytes, _: bytes | None) -> None:
        """Take one message of the session."""
        if self.closed:
            return
        self.last_sequence = sequence
        self.stored_at = stored_at
        self.heard_at = time.monotonic()
        self._meters.lag.observe(time.time() - stored_at)
        body: dict[str, Any] = {}
        try:
            if len(data) > MAX_BODY:
                body = {"type": "start"} if _START in data else {}
                raise InvalidRequest(f"body: has {len(data)} bytes, {MAX_BODY} at most", stage="decode")
            body = codec.unpack(data)
            # The plain chunk; whatever is unusual about one is for the model to judge.
            if body.get("type") == "chunk" and type(audio := body.get("audio")) is bytes:
                seq = body.get("seq")
                if len(body) == 2 or (len(body) == 3 and type(seq) is int and 0 <= seq < MAX_SEQ):
                    self._chunk(sequence, audio, seq)
                    return
            self._message(sequence, codec.validate(body, StreamMessage))
        except HandlerError as error:
            self._refuse(sequence, body, error)
        except Exception:
            log.exception("message_not_understood", sequence=sequence)
            self._refuse(sequence, body, Internal("a fault of the worker: this message was not listened to"))

    def _refuse(self, sequence: int, body: dict[str, Any], error: HandlerError) -> None:
        self._meters.refused.value += 1
        if body.get("type") == "start":
            # Whoever takes 44.1 kHz for 16 makes words up: better none until the client says what it sends.
            self.flush()
            self._enter(replace(self.phase, sequence=sequence, deaf=True))
            error = InvalidRequest(f"{error.message}; audio is left out until a valid start", stage=error.stage)
        self._on_error(error)

    def _message(self, sequence: int, message: StreamMessage) -> None:
        match message.type:
            case "chunk":
                self._chunk(sequence, message.audio, message.seq)
            case "start":
                self._start(sequence, message)
            case "state_change":
                if message.state is None:
                    raise InvalidRequest("state: is missing", stage="decode")
                self._change(sequence, message.state)
            case "end":
                self._on_end()

    def _chunk(self, sequence: int, audio: bytes, seq: int | None) -> None:
        if self._phases[-1].deaf:
            return
        if len(audio) > MAX_CHUNK:
            raise InvalidRequest(f"audio: has {len(audio)} bytes, {MAX_CHUNK} at most", stage="decode")
        if len(audio) % self._format.frame_size:
            size = self._format.frame_size
            raise InvalidRequest(f"audio: {len(audio)} bytes are no whole samples of {size} bytes", stage="decode")
        if self._format.channels > 1:
            audio = first_channel(audio, self._format)
        self._unused = False
        self._feed(self._ordering.push(audio, sequence, seq))
        schedule = self.schedule
        if schedule is not None and schedule.due(self.segmenter.open_ms):
            self._on_due()
        if self._ordering.holding:
            self._on_hold()

    def _feed(self, pieces: Sequence[tuple[bytes, int]]) -> None:
        for pcm, mark in pieces:
            for event in self.segmenter.feed(pcm, mark):
                self._on_event(event)

    def _start(self, sequence: int, message: StreamMessage) -> None:
        if sequence <= self._phases[0].sequence:
            return  # read again after a takeover
        config = SessionConfig.model_construct(**{name: getattr(message, name) for name in _CONFIG_FIELDS})
        phase = Phase(sequence, config, message.state or "listening", self.segmenter.clock_ms)
        self._check(phase)
        self.flush()
        self._enter(phase)
        self._set_up(phase, Position(mark=sequence, ms=self.segmenter.clock_ms))

    def _check(self, phase: Phase) -> None:
        self._check_room()
        if phase.config.user_id is not None and not self._settings.session_users:
            raise InvalidRequest("user_id: is not taken from sessions here (SESSION_USERS)", stage="decode")
        turns.check(phase.config)
        try:
            self._settings.rules(frame_ms=phase.config.frame_ms)
        except ValueError as error:
            raise InvalidRequest(f"frame_ms: {error}", stage="decode") from None
        try:
            size = len(Checkpoint(1, phase=phase).header())
        except (TypeError, ValueError, RecursionError):
            raise InvalidRequest("turn: holds what JSON cannot", stage="decode") from None
        if size > MAX_CONFIG:
            raise InvalidRequest(f"turn: makes a start of {size} characters, {MAX_CONFIG} at most", stage="decode")

    def _check_room(self) -> None:
        if len(self._phases) - self._unused >= MAX_PHASES:
            raise InvalidRequest(f"type: more than {MAX_PHASES} changes await their transcripts", stage="decode")

    def _change(self, sequence: int, state: State) -> None:
        if sequence <= self._phases[0].sequence or state == self.phase.state:
            return
        self._check_room()
        phase = replace(self.phase, sequence=sequence, state=state, since_ms=self.segmenter.clock_ms)
        self._enter(phase)
        self._set_state(phase)

    # -- what is given up waiting for

    def release(self) -> None:
        """Wait for missing chunks no longer."""
        self._feed(self._ordering.flush())

    def flush(self) -> None:
        """End what is open: no audio comes at the moment."""
        self.release()
        for event in self.segmenter.flush():
            self._on_event(event)
        self.count_lost()

    def count_lost(self) -> None:
        """Add the chunks that never came to the worker's count."""
        self._meters.lost.value += self._ordering.lost - self._counted
        self._counted = self._ordering.lost
