"""A spoken question as it arrives, made the file that a speech-to-text endpoint takes."""

from dataclasses import dataclass

from handler_core.audio import BadAudio, PcmFormat, is_silence, read_wav, sniff, wav
from handler_core.contract.voice import VoiceRequest

_FILES = {
    "wav": ("audio.wav", "audio/wav"),
    "mp3": ("audio.mp3", "audio/mpeg"),
    "ogg": ("audio.ogg", "audio/ogg"),
    "webm": ("audio.webm", "audio/webm"),
    "flac": ("audio.flac", "audio/flac"),
    "mp4": ("audio.m4a", "audio/mp4"),
}
"""Name and content type by what `sniff` says: endpoints go by the one or the other."""
_NEVER_PCM = frozenset({"wav", "ogg", "webm", "flac"})
"""What no samples look like by accident."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file, and what it is called."""

    data: bytes
    filename: str
    content_type: str
    silent: bool = False
    """Known to hold no sound at all; never so for what is compressed."""


def recording(request: VoiceRequest, max_seconds: float) -> Recording:
    """The request's audio as a file. What its first bytes say counts before what `format` says.

    Args:
        max_seconds: how long it may be, as far as that can be told without decoding.

    Raises:
        BadAudio: it is broken, of no known kind, holds no samples, or is too long; the message names `audio`.
    """
    kind = sniff(request.audio)
    if request.format == "pcm" and kind not in _NEVER_PCM:
        return _samples(request, max_seconds)
    if kind == "wav" or (request.format == "wav" and not kind):
        return _wav(request.audio, max_seconds)
    if not kind:
        raise BadAudio(f"no {request.format} file, but unknown data")
    return Recording(request.audio, *_FILES[kind])


def _samples(request: VoiceRequest, max_seconds: float) -> Recording:
    format = PcmFormat(request.sample_rate, request.width, request.channels)
    pcm = memoryview(request.audio)[: len(request.audio) // format.frame_size * format.frame_size]
    return Recording(wav(format, pcm), *_FILES["wav"], silent=_checked(format, pcm, max_seconds))


def _wav(data: bytes, max_seconds: float) -> Recording:
    format, pcm, truncated = read_wav(data)
    silent = _checked(format, pcm, max_seconds)
    # Endpoints differ in what they make of a header that announces more than there is.
    return Recording(wav(format, pcm) if truncated else data, *_FILES["wav"], silent=silent)


def _checked(format: PcmFormat, pcm: memoryview, max_seconds: float) -> bool:
    """Whether the samples are silence."""
    if not pcm:
        raise BadAudio("holds no samples")
    if (seconds := format.seconds(len(pcm))) > max_seconds:
        raise BadAudio(f"is {seconds:.1f} s long, and {max_seconds:g} s are taken at most")
    return is_silence(pcm, format)
