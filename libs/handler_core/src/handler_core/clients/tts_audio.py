"""Reading speech as it is made: bytes cut anywhere in, whole samples of a known format out, no I/O."""

import re
from typing import NamedTuple, NoReturn

from handler_core.audio import MP3_CERTAIN, BadAudio, PcmFormat, is_silence, sniff, to_s16, wav_head
from handler_core.clients.failures import Failures, message_of

MAX_SPEECH = 64 * 2**20
"""Bytes that one utterance may have: twenty minutes at 24 kHz."""
_MAX_HEADER = 64 * 2**10
_OTHER = re.compile(
    r"audio/(x-)?(mpeg|mp3|ogg|opus|aac|mp4|m4a|flac|webm)\b|text/|application/(json|xml|problem)|video/"
)
_NO_AUDIO = (b'{"', b"<!", b"<html", b"<?xml")
_RATE = re.compile(r";\s*rate\s*=\s*\"?([1-9]\d{3,5})\b")
_CHANNELS = re.compile(r";\s*channels\s*=\s*\"?([1-9])\b")


class AudioChunk(NamedTuple):
    """A piece of speech: whole frames of 16 bit little-endian samples, never empty."""

    pcm: bytes
    format: PcmFormat


class SpeechReader:
    """Takes the body of one utterance in chunks cut anywhere.

    Bare samples, or a WAV file whatever was asked for; samples of other widths are made 16 bit. Silence at the begin is
    held back until sound comes: a listener misses nothing, and an answer that is silent to its end proves so before
    anything of it was given out.

    Args:
        failures: makes the errors.
        sample_rate: of bare samples, where `content_type` does not tell.
        content_type: the answer's.
    """

    def __init__(self, failures: Failures, sample_rate: int, content_type: str) -> None:
        self._failures = failures
        self._content_type = content_type = content_type.lower()
        rate, channels = _RATE.search(content_type), _CHANNELS.search(content_type)
        self._bare = PcmFormat(int(rate[1]) if rate else sample_rate, 2, int(channels[1]) if channels else 1)
        self._format: PcmFormat | None = None
        self._pending = bytearray()
        self._left: int | None = None
        """Bytes of samples that are still to come, where a header told."""
        self._size = 0
        self._silent = 0
        """Bytes at the begin that are known to be silence."""
        self._heard = False

    def feed(self, data: bytes) -> AudioChunk | None:
        """What can be given out now that `data` has come.

        Raises:
            UpstreamError: it is no audio, another format than can be read, or too much.
        """
        self._size += len(data)
        if self._size > MAX_SPEECH:
            raise self._failures.problem(f"answered with more than {MAX_SPEECH} bytes", retryable=False)
        self._pending += data
        if self._format is None and not self._recognised(at_end=False):
            return None
        return self._taken()

    def end(self) -> AudioChunk | None:
        """What remains at the end of the body.

        Raises:
            UpstreamError: as `feed`; or nothing came, nothing but silence, or less than was announced.
        """
        if not self._size:
            self._fail("nothing")
        if self._format is None:
            self._recognised(at_end=True)
        chunk = self._taken()
        if self._left is not None and self._left > len(self._pending):
            raise self._failures.problem("the audio ended in the middle (truncated)", outcome="broken")
        if not self._heard:
            self._fail("silence" if self._silent else "no samples")
        return chunk

    def _recognised(self, *, at_end: bool) -> bool:
        """Whether enough has come to tell the format, which is then set and its header taken away."""
        data = bytes(self._pending)
        if len(data) < 12 and not at_end:
            return False
        kind = sniff(data)
        if kind == "wav":
            return self._wav(data, at_end)
        if kind == "mp3" and not data.startswith(b"ID3") and len(data) < MP3_CERTAIN and not at_end:
            return False  # it may still be two samples that look like the begin of a frame
        if kind or _OTHER.match(self._content_type) or data.lstrip()[:5].lower().startswith(_NO_AUDIO):
            shown = message_of(data[:4096]) if not kind else ""
            self._fail(f"{kind or self._content_type or 'text'} instead of PCM or WAV{shown and ': '}{shown[:200]}")
        self._format = self._bare
        return True

    def _wav(self, data: bytes, at_end: bool) -> bool:
        try:
            self._format, start, self._left = wav_head(data)
        except BadAudio as error:
            if not at_end and len(data) < _MAX_HEADER:
                return False  # the header is not whole yet
            self._fail(error.message.removeprefix("audio: "))
        del self._pending[:start]
        return True

    def _taken(self) -> AudioChunk | None:
        """What has come of the samples, once there is sound among them."""
        format = self._format
        if format is None:
            return None
        length = len(self._pending) if self._left is None else min(len(self._pending), self._left)
        length -= length % format.frame_size
        if not self._heard:
            self._heard = not is_silence(self._pending[self._silent : length], format)
            self._silent = length
        if not length or not self._heard:
            return None
        pcm = bytes(self._pending[:length])
        del self._pending[:length]
        if self._left is not None:
            self._left -= length
        return AudioChunk(to_s16(pcm, format.width), PcmFormat(format.sample_rate, 2, format.channels))

    def _fail(self, what: str) -> NoReturn:
        raise self._failures.problem(f"answered with {what}")
