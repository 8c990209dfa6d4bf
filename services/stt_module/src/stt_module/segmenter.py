"""Utterances out of a session's audio: who speaks when, and what of the stream is still needed.

Pure and synchronous: audio in, events out, and the time is the audio's own. Frames of a few milliseconds are judged by
voice activity detection (webrtcvad); what is judged so is kept as the bits of one integer, newest lowest, so that the
rules count bits.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import webrtcvad

from handler_core.audio import Buffer, peak
from stt_module.noise import Noise
from stt_module.rules import Rules as Rules

WIDTH = 2
"""Bytes of a sample: signed 16-bit little-endian, one channel."""


class Position(NamedTuple):
    """A place in a session's stream at which another segmenter can go on; all of it can stand in JSON.

    `offset` counts the bytes of audio that came with `mark`, to be left out.
    """

    mark: int = 0
    offset: int = 0
    ms: float = 0.0
    """The session's audio clock there."""
    onset_ms: float | None = None
    """Where the speech begins of the utterance that is open from here on; None in silence."""
    continued: bool = False
    """Whether that utterance goes on with one that was cut."""
    noise: float = 0.0
    """What was known of noise taken for voice (`Noise.threshold`); with it an end found again may differ by frames."""


class Started(NamedTuple):
    """Somebody speaks, since `start_ms`."""

    start_ms: float


class Utterance(NamedTuple):
    """Speech that has ended: from `start_ms` to `end_ms`, of which `voiced_ms` had voice; `pcm` has some more around.

    `cut`: it was too long; the next one is open already, without another `Started`, and begins where `pcm` ends.
    A segmenter that goes on at `begin` gives this utterance again, one that goes on at `after` all later ones.
    """

    pcm: bytes
    start_ms: float
    end_ms: float
    voiced_ms: float
    cut: bool
    begin: Position
    after: Position


class Dropped(NamedTuple):
    """What had started was too short."""

    start_ms: float
    end_ms: float
    voiced_ms: float


class Interrupt(NamedTuple):
    """Somebody speaks, since `start_ms`, into what the client plays."""

    start_ms: float


Event = Started | Utterance | Dropped | Interrupt
NOTHING: tuple[Event, ...] = ()
_PAUSE = 6
"""Frames of a pause between words."""


class Segmenter:
    """One session's audio, cut into utterances.

    Args:
        rules: the same in all segmenters of a session.
        sample_rate: 8000, 16000, 32000 or 48000.
        at: where to go on; the session's begin when absent.
        is_speech: judges one frame (its bytes, the sample rate); webrtcvad when absent.

    Raises:
        ValueError: the rules' `max_bytes` are too few at this sample rate.
    """

    def __init__(
        self,
        rules: Rules,
        sample_rate: int,
        at: Position | None = None,
        is_speech: Callable[[Buffer, int], bool] | None = None,
    ) -> None:
        at = at or Position()
        self._rules, self._rate = rules, sample_rate
        self._is_speech = is_speech or webrtcvad.Vad(rules.mode).is_speech
        self._noise = Noise(rules, sample_rate, at.noise) if rules.noise_ms else None
        self._measure(rules)
        # Bytes are counted from `at` on: those before, which are left out, have negative numbers.
        self._audio = bytearray()
        self._base = 0  # of the first byte in `_audio`
        self._cursor = 0  # in `_audio`: where the next frame begins
        self._end = -at.offset
        self._mark = at.mark
        self._starts, self._marks = [-at.offset], [at.mark]
        self._origin_ms = at.ms
        self._open, self._continued = at.onset_ms is not None, at.continued
        self._onset_ms = at.ms if at.onset_ms is None else at.onset_ms
        self._lead = round((self._onset_ms - at.ms) / rules.frame_ms)  # frames of the pre-roll still to come
        self._history = self._full if self._open else 0
        self._voiced = 0  # frames, of the open utterance
        self._responding = self._armed = False
        self._heard = 0  # voiced frames in the speech that goes on, while armed

    def _measure(self, rules: Rules) -> None:
        """The rules in frames, bytes, and masks of bits."""
        self._per_ms = self._rate * WIDTH // 1000
        self._frame = rules.frame_ms * self._per_ms
        self._pre = rules.frames(rules.pre_roll_ms) * self._frame
        self._tail = rules.frames(rules.tail_ms) * self._frame
        self._start, self._silent = rules.frames(rules.start_ms), rules.frames(rules.end_ms)
        window, silence = rules.frames(rules.start_ms / rules.start_share), rules.frames(rules.end_ms / rules.end_share)
        self._window, self._silence = (1 << window) - 1, (1 << silence) - 1
        self._late = rules.frames(rules.late_ms)
        self._limit = min(rules.max_ms * self._per_ms, rules.max_bytes) // self._frame * self._frame
        if self._limit < (rules.least_ms - rules.frame_ms) * self._per_ms:
            raise ValueError(f"max_bytes is {rules.max_bytes}: too few at {self._rate} Hz")
        self._full = (1 << self._late + silence + window) - 1

    @property
    def clock_ms(self) -> float:
        """How much audio the session has had."""
        return self._ms(max(0, self._end))

    @property
    def voice_activity(self) -> bool:
        """Whether somebody is speaking."""
        return self._open

    @property
    def open_ms(self) -> float:
        """How much audio the open utterance has so far; 0 when there is none."""
        return len(self._audio) / self._per_ms if self._open else 0.0

    def growing(self) -> bytes:
        """A copy of the open utterance's audio so far; empty when there is none."""
        return bytes(self._audio[: len(self._audio) // WIDTH * WIDTH]) if self._open else b""

    @property
    def responding(self) -> bool:
        """Whether the client plays an answer: one `Interrupt` is given each time this has become true."""
        return self._responding

    @responding.setter
    def responding(self, responding: bool) -> None:
        if responding != self._responding:
            self._responding = self._armed = responding
            self._heard = 0

    def disarm(self) -> None:
        """Give no `Interrupt` until the client responds anew: an earlier worker gave it."""
        self._armed = False

    @property
    def position(self) -> Position:
        """Where another segmenter must begin to find all that this one has not given out; it never moves back.

        The begin of what is open or may be starting, with its pre-roll; in silence the pre-roll's of what starts now.
        """
        return self._position(0 if self._open else self._needed())

    def feed(self, pcm: Buffer, mark: int) -> Sequence[Event]:
        """Take audio of any length, and give what has come of it.

        Args:
            pcm: samples; half a sample at the end waits for its other half.
            mark: the message of the stream that it came with, never lower than the one before.
        """
        if mark != self._mark:
            self._end = max(self._end, 0)  # what was to be left out is no longer in the stream
            self._starts.append(self._end)
            self._marks.append(mark)
            self._mark = mark
        # Hundreds of sessions are fed fifty times a second: nothing is made here but the frame.
        audio, end = self._audio, self._end
        self._end = end + len(pcm)
        audio += pcm if end >= 0 else memoryview(pcm)[-end:]
        events: tuple[Event, ...] = NOTHING
        frame, cursor = self._frame, self._cursor
        while len(audio) - cursor >= frame:
            piece = audio[cursor : cursor + frame]
            voiced = self._is_speech(piece, self._rate)
            if self._noise is not None:
                voiced = self._noise.passes(piece, voiced, self._open)
            self._cursor = cursor = cursor + frame
            self._history = history = (self._history << 1 | voiced) & self._full
            if not self._open:
                if voiced and (history & self._window).bit_count() >= self._start:
                    events = (*events, self._begin())
            elif self._lead > 0:
                self._lead -= 1
                self._history |= 1  # as if voiced: the silence before the onset does not end an utterance
            elif voiced:
                self._voiced += 1
            elif (~history & self._silence).bit_count() >= self._silent:
                events = (*events, self._finish(self._cursor))
            if self._open and self._cursor >= self._limit:
                events = (*events, self._cut())
            if self._armed and self._interrupts(voiced):
                events = (*events, Interrupt(self._onset_ms))
            cursor = self._cursor
        if cursor > 2 * self._pre + frame * 50 and not self._open:
            self._forget(self._needed())
        return events

    def flush(self) -> Sequence[Event]:
        """End what is open, by the same rules; audio may still follow."""
        return (self._finish(len(self._audio) // WIDTH * WIDTH),) if self._open else NOTHING

    def _needed(self) -> int:
        """In silence: where in `_audio` the pre-roll begins of what may be starting."""
        return max(0, self._cursor - (self._history & self._window).bit_length() * self._frame - self._pre)

    def _begin(self) -> Started:
        """Open an utterance, at the first voiced frame in the window and with the pre-roll before it."""
        speech = self._history & self._window
        length = speech.bit_length()
        self._onset_ms = self._ms(self._base + self._cursor - length * self._frame)
        self._forget(self._needed())
        self._open, self._continued = True, False
        self._voiced = speech.bit_count()
        self._history = self._full >> length << length | speech
        return Started(self._onset_ms)

    def _finish(self, limit: int) -> Utterance | Dropped:
        """End the open utterance a little after its last voiced frame, and no later than `limit`."""
        voiced = self._cursor - _zeros(self._history) * self._frame
        return self._give(min(voiced + self._tail, limit), cut=False)

    def _cut(self) -> Utterance | Dropped:
        """End the open utterance where it was quietest of late: between two words, also in noise taken for voice."""
        first = self._cursor - self._late * self._frame
        loud = [peak(self._audio[at : at + self._frame]) for at in range(first, self._cursor, self._frame)]
        quietest = min(range(self._late - _PAUSE + 1), key=lambda at: sum(loud[at : at + _PAUSE]))
        return self._give(first + (quietest + _PAUSE // 2) * self._frame, cut=True)

    def _give(self, end: int, *, cut: bool) -> Utterance | Dropped:
        """Give out the open utterance up to byte `end` of `_audio`; the rest is silence, or the next one's begin."""
        begin, start_ms, continued = self.position, self._onset_ms, self._continued
        frames = max(0, self._cursor - end) // self._frame
        later = self._history & (1 << frames) - 1
        quiet = _zeros(self._history >> frames) * self._frame
        end_ms = max(start_ms, self._ms(self._base + min(end, self._cursor) - quiet))
        voiced = self._voiced - later.bit_count()
        pcm = bytes(memoryview(self._audio)[:end])
        self._forget(end)
        self._open = self._continued = cut
        self._onset_ms = self._ms(self._base)
        self._history = self._full >> frames << frames | later if cut else 0
        self._voiced, self._lead = later.bit_count(), 0
        if not cut:
            self._heard = 0
        voiced_ms = float(voiced * self._rules.frame_ms)
        if end_ms - start_ms >= self._rules.min_ms or (voiced and (continued or self._rules.keep_short)):
            return Utterance(pcm, start_ms, end_ms, voiced_ms, cut, begin, self.position)
        return Dropped(start_ms, end_ms, voiced_ms)

    def _interrupts(self, voiced: bool) -> bool:
        """Whether this frame makes the speech long enough to interrupt."""
        if voiced:
            self._heard += 1
        elif not self._open and not self._history & self._window:
            self._heard = 0
        if not self._open or self._heard * self._rules.frame_ms < self._rules.interrupt_ms:
            return False
        self._armed = False
        return True

    def _forget(self, size: int) -> None:
        """Drop the first bytes of `_audio`, and marks that ended in them."""
        del self._audio[:size]
        self._base += size
        self._cursor = max(0, self._cursor - size)
        passed = bisect_right(self._starts, self._base) - 1
        del self._starts[:passed], self._marks[:passed]

    def _position(self, place: int) -> Position:
        place += self._base
        chunk = bisect_right(self._starts, place) - 1
        onset_ms = self._onset_ms if self._open else None
        noise = self._noise.threshold if self._noise is not None else 0.0
        offset = place - self._starts[chunk]
        return Position(self._marks[chunk], offset, self._ms(place), onset_ms, self._continued, noise)

    def _ms(self, place: int) -> float:
        return self._origin_ms + place / self._per_ms


def _zeros(bits: int) -> int:
    """How many of the lowest bits are 0."""
    return (bits & -bits).bit_length() - 1
