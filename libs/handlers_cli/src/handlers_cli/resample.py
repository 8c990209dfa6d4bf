"""PCM of any format as 16 bit mono at another rate, piece by piece.

What is 16 bit mono at the right rate passes as it is; only what is not loads numpy and soxr.
"""

from collections.abc import Callable
from typing import Any

from handler_core.audio import PcmFormat, to_s16

SPEECH_RATE = 16_000
"""Hertz: what speech-to-text works at; more costs bandwidth and storage, and tells it nothing."""


class Converter:
    """Converts a stream of PCM to 16 bit mono.

    Args:
        format: what comes in; its channels are averaged.
        rate: hertz of what comes out; that of `format` when absent.
    """

    def __init__(self, format: PcmFormat, rate: int | None = None) -> None:
        self.format = PcmFormat(rate or format.sample_rate)
        self._from = format
        self._rest = b""
        self._resample = None if self.format.sample_rate == format.sample_rate else _resampler(format, self.format)

    def feed(self, pcm: bytes | memoryview, *, last: bool = False) -> bytes:
        """What can be given out by now; the `last` call gives out all that was held back."""
        data = self._rest + pcm if self._rest else pcm
        whole = len(data) - len(data) % self._from.frame_size
        self._rest = bytes(data[whole:])
        samples = _mono(to_s16(data[:whole], self._from.width), self._from.channels)
        return samples if self._resample is None else self._resample(samples, last)


def _mono(samples: bytes, channels: int) -> bytes:
    if channels == 1 or not samples:
        return samples
    import numpy

    frames = numpy.frombuffer(samples, dtype="<i2").reshape(-1, channels)
    return bytes(frames.mean(axis=1).astype("<i2").tobytes())


def _resampler(format: PcmFormat, to: PcmFormat) -> Callable[[bytes, bool], bytes]:
    import numpy
    import soxr

    stream: Any = soxr.ResampleStream(format.sample_rate, to.sample_rate, 1, dtype="int16")

    def resample(samples: bytes, last: bool) -> bytes:
        return bytes(stream.resample_chunk(numpy.frombuffer(samples, dtype="<i2"), last).astype("<i2").tobytes())

    return resample


def for_speech(format: PcmFormat) -> Converter:
    """To what a live session is sent: 16 kHz, or 8 kHz where there is no more, mono."""
    return Converter(format, format.sample_rate if format.sample_rate == SPEECH_RATE // 2 else SPEECH_RATE)
