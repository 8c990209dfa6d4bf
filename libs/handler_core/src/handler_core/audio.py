"""Audio as bytes: PCM formats, WAV files read and written, and what a file's first bytes tell.

Everything works on whole buffers at the speed of slices and searches, so that megabytes pass in milliseconds and no
event loop waits for them; numpy would cost the images more than all of this.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from handler_core.errors import InvalidRequest

Buffer = bytes | bytearray | memoryview
UNKNOWN_SIZE = 0xFFFFFFFF
"""The size that a WAV header gives where the end was not known when it was written."""
SILENCE = 0.001
"""The peak up to which audio counts as silence: -60 dB."""
_UNKNOWN_FROM = 0x7FFF0000
"""Sizes from here on are what streaming servers write for want of a better."""
_PCM, _EXTENSIBLE = 0x0001, 0xFFFE
_CODECS = {0x0002: "ADPCM", 0x0003: "floating point", 0x0006: "A-law", 0x0007: "mu-law", 0x0011: "IMA ADPCM",
           0x0055: "MP3"}  # fmt: skip
_MAX_CHUNKS = 1000
MP3_CERTAIN = 2885
"""Bytes with which `sniff` knows an MP3 without a tag from samples: the longest frame, and the header of the next."""
_MP4_BOXES = (b"ftyp", b"moov", b"mdat")


class BadAudio(InvalidRequest):
    """Bytes that are no audio we can read; the message names the field."""

    def __init__(self, text: str, field: str = "audio") -> None:
        super().__init__(f"{field}: {text}")
        self.field = field


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """Interleaved little-endian samples: `width` bytes each, signed, but unsigned where `width` is 1, as in WAV."""

    sample_rate: int
    width: int = 2
    channels: int = 1

    @property
    def frame_size(self) -> int:
        """Bytes of one sample of every channel."""
        return self.width * self.channels

    @property
    def bytes_per_second(self) -> int:
        return self.sample_rate * self.frame_size

    def seconds(self, n_bytes: int) -> float:
        """How long that many bytes play."""
        return n_bytes / self.bytes_per_second


class Wav(NamedTuple):
    """What a WAV file holds; `pcm` is a view of whole frames, `truncated` tells that the header announced more."""

    format: PcmFormat
    pcm: memoryview
    truncated: bool


class WavHead(NamedTuple):
    """What stands before a WAV file's samples: their format, where they start, and their size in bytes, None for to
    the end of the file."""

    format: PcmFormat
    start: int
    size: int | None


def read_wav(data: Buffer, *, field: str = "audio") -> Wav:
    """The samples of a RIFF WAVE file with integer PCM.

    Chunks may stand in any order with any others between. Samples whose announced size is more than there is, or none
    that could be (0 and the largest numbers, as streams have), reach to the end.

    Raises:
        BadAudio: it is no such file; nothing else is ever raised.
    """
    view = memoryview(data).cast("B")
    format, start, size = wav_head(view, field=field)
    there = len(view) - start
    length = there if size is None else min(size, there)
    whole = length - length % format.frame_size
    return Wav(format, view[start : start + whole], size is not None and size > there)


def wav_head(data: Buffer, *, field: str = "audio") -> WavHead:
    """The head of a WAV file, of which no more than that need be there; raises as `read_wav`."""
    view = memoryview(data).cast("B")
    if bytes(view[:4]) != b"RIFF" or bytes(view[8:12]) != b"WAVE":
        raise BadAudio(f"no WAV file, but {sniff(view) or 'unknown data'}" if view else "empty", field)
    format: PcmFormat | None = None
    place = 12
    for _ in range(_MAX_CHUNKS):
        if place + 8 > len(view):
            break
        kind, size = bytes(view[place : place + 4]), struct.unpack_from("<I", view, place + 4)[0]
        place += 8
        if kind == b"fmt ":
            format = _format(bytes(view[place : place + size]), field)
        elif kind == b"data":
            if format is None:
                format = _format_after(view, place + size + size % 2, field)
            return WavHead(format, place, size if 0 < size < _UNKNOWN_FROM else None)
        place += size + size % 2  # chunks begin at even places
    raise BadAudio("a WAV file without " + ("a format" if format is None else "samples"), field)


def _format_after(view: memoryview, place: int, field: str) -> PcmFormat:
    """The format where it stands behind the samples."""
    for _ in range(_MAX_CHUNKS):
        if place + 8 > len(view):
            break
        size = struct.unpack_from("<I", view, place + 4)[0]
        if bytes(view[place : place + 4]) == b"fmt ":
            return _format(bytes(view[place + 8 : place + 8 + size]), field)
        place += 8 + size + size % 2
    raise BadAudio("a WAV file without a format", field)


def _format(chunk: bytes, field: str) -> PcmFormat:
    if len(chunk) < 16:
        raise BadAudio("a WAV file whose format is cut off", field)
    codec, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if codec == _EXTENSIBLE and len(chunk) >= 26:
        codec = struct.unpack_from("<H", chunk, 24)[0]  # the sub-format's GUID begins with the codec
    if codec != _PCM:
        name = f" ({_CODECS[codec]})" if codec in _CODECS else ""
        raise BadAudio(f"a WAV file with codec {codec:#06x}{name}; only PCM is read", field)
    if bits not in {8, 16, 24, 32} or not 1 <= channels <= 32 or not 1 <= rate <= 768_000:
        raise BadAudio(f"a WAV file of {channels} channels at {rate} Hz, {bits} bits", field)
    return PcmFormat(rate, bits // 8, channels)


def wav_header(format: PcmFormat, size: int | None) -> bytes:
    """The 44 bytes before `size` bytes of samples; None where the size is not known yet."""
    known = size is not None and size + 36 < UNKNOWN_SIZE
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", (size or 0) + 36 if known else UNKNOWN_SIZE, b"WAVE", b"fmt ", 16, _PCM, format.channels,
        format.sample_rate, format.bytes_per_second, format.frame_size, format.width * 8, b"data",
        (size or 0) if known else UNKNOWN_SIZE,
    )  # fmt: skip


def wav(format: PcmFormat, pcm: Buffer) -> bytes:
    """A WAV file of these samples."""
    return b"".join((wav_header(format, len(pcm)), pcm, b"\0" * (len(pcm) % 2)))


def sniff(data: Buffer) -> str:
    """The kind of a file, by its first bytes: wav, mp3, ogg, flac, webm, mp4; empty for all else, raw PCM too."""
    head = bytes(data[:64])
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return "wav"
    if head.startswith(b"OggS"):
        return "ogg"
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    if head.startswith(b"ID3") or _is_mp3(data):
        return "mp3"
    return ""


_BIT_RATES = {  # kbit/s by (MPEG 1?, layer), from ISO 11172-3 and 13818-3
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _is_mp3(data: Buffer) -> bool:
    """Whether a frame of MPEG audio begins here, and a second where it ends, as far as there is data: two loud samples
    can look like the begin of a frame, but hardly twice."""
    length = _mp3_frame(bytes(data[:4]))
    return length > 0 and (len(data) < length + 4 or _mp3_frame(bytes(data[length : length + 4])) > 0)


def _mp3_frame(head: bytes) -> int:
    """Bytes of the frame that this header begins; 0 where it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bits in {0, 15} or rate == 3:
        return 0
    first = version == 3
    hertz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    per_second = _BIT_RATES[first, layer][bits - 1] * 1000
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * per_second // hertz + padding) * 4
    return (144 if first or layer == 2 else 72) * per_second // hertz + padding


def peak(pcm: Buffer, width: int = 2) -> float:
    """The loudest sample, from 0 (silence, or no samples) to 1 (the most there is), rounded up to a step of 1/128 where
    it is above the first."""
    pcm = to_s16(pcm, width)
    low, high = pcm[0::2], pcm[1::2]
    # `find` of one byte passes megabytes in microseconds; `max` would make an int of every sample.
    if loudest := _largest(high.translate(_MAGNITUDE)):
        return (loudest * 256 + 255) / 32767
    # All upper bytes are 0, or 255 where the sample is negative: then inverted, the lower one is the magnitude.
    flipped = int.from_bytes(low, "little") ^ int.from_bytes(high, "little")
    return _largest(flipped.to_bytes(len(low), "little")) / 32767


def _largest(data: bytes) -> int:
    return next((value for value in range(255, 0, -1) if data.find(value) >= 0), 0)


def is_silence(pcm: Buffer, format: PcmFormat, threshold: float = SILENCE) -> bool:
    """Whether no sample is louder than `threshold`, a part of the loudest possible; true for no samples."""
    return peak(pcm, format.width) <= threshold


def to_s16(pcm: Buffer, width: int) -> bytes:
    """Samples of any width as 16 bit ones, cut to their upper half where they are wider."""
    if width == 2:
        return bytes(pcm[: len(pcm) - len(pcm) % 2])
    if width == 1:
        high = bytes(pcm).translate(_SIGNED)
        result = bytearray(2 * len(high))
        result[1::2] = high
        return bytes(result)
    count = len(pcm) // width
    result = bytearray(2 * count)
    source = bytes(pcm[: count * width])
    result[0::2] = source[width - 2 :: width]
    result[1::2] = source[width - 1 :: width]
    return bytes(result)


_SIGNED = bytes((value - 128) % 256 for value in range(256))
_MAGNITUDE = bytes(min(value, 255 - value) for value in range(256))


def first_channel(pcm: Buffer, format: PcmFormat) -> bytes:
    """The first channel alone, in the same width."""
    if format.channels == 1:
        return bytes(pcm)
    count, source = len(pcm) // format.frame_size, bytes(pcm)
    result = bytearray(count * format.width)
    for byte in range(format.width):
        result[byte :: format.width] = source[byte : count * format.frame_size : format.frame_size]
    return bytes(result)
