"""WAV files of every make, hostile ones too, and what bytes tell of themselves."""

import io
import math
import struct
import wave
from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler_core.audio import (
    BadAudio,
    PcmFormat,
    first_channel,
    is_silence,
    peak,
    read_wav,
    sniff,
    to_s16,
    wav,
    wav_header,
)
from handler_core.contract.errors import ErrorType

MONO = PcmFormat(16_000)
PCM = array("h", [0, 1, -1, 300, -300, 32767, -32768, 5]).tobytes()
formats = st.builds(PcmFormat, st.integers(1, 768_000), st.sampled_from([1, 2, 3, 4]), st.integers(1, 32))


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A RIFF file of these chunks, the last of which may claim another size."""
    body = b""
    for number, (kind, data) in enumerate(chunks):
        told = size if size is not None and number == len(chunks) - 1 else len(data)
        body += kind + struct.pack("<I", told) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def fmt(
    codec: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, extra: bytes = b""
) -> tuple[bytes, bytes]:
    frame = channels * bits // 8
    return b"fmt ", struct.pack(
        "<HHIIHH", codec, channels, rate & 0xFFFFFFFF, rate * frame & 0xFFFFFFFF, frame, bits
    ) + extra


EXTENSIBLE = struct.pack("<HHIH", 22, 16, 4, 1) + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"


# --- reading and writing


@given(formats, st.binary(max_size=200))
def test_what_is_written_is_read(format: PcmFormat, data: bytes) -> None:
    pcm = data[: len(data) - len(data) % format.frame_size]
    found = read_wav(wav(format, pcm))
    assert (found.format, bytes(found.pcm), found.truncated) == (format, pcm, False)


def test_the_standard_library_reads_what_is_written_and_the_other_way_round() -> None:
    with wave.open(io.BytesIO(wav(PcmFormat(24_000, 2, 2), PCM))) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (24_000, 2, 2)
        assert file.readframes(100) == PCM
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(PCM)
    assert bytes(read_wav(buffer.getvalue()).pcm) == PCM


@pytest.mark.parametrize(
    "data",
    [
        riff(fmt(), (b"LIST", b"INFOISFT\x03\0\0\0abc"), (b"data", PCM)),
        riff((b"JUNK", b"odd"), fmt(extra=b"\0\0"), (b"fact", b"\0" * 4), (b"data", PCM), (b"LIST", b"tail")),
        riff((b"data", PCM), fmt()),
        riff(fmt(0xFFFE, extra=EXTENSIBLE), (b"data", PCM)),
        riff(fmt(), (b"data", PCM), size=0),
        riff(fmt(), (b"data", PCM), size=0xFFFFFFFF),
        riff(fmt(), (b"data", PCM), size=0x7FFFFFFF),
        wav_header(MONO, None) + PCM,
        riff(fmt(), (b"data", PCM))[:4] + b"\xff\xff\xff\xff" + riff(fmt(), (b"data", PCM))[8:],
    ],
    ids=["LIST", "odd-and-more", "data-first", "extensible", "size-0", "size-max", "size-2g", "header", "riff-max"],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_files_of_many_makes_are_read(data: bytes, kind: type) -> None:
    found = read_wav(kind(data))
    assert (found.format, bytes(found.pcm), found.truncated) == (MONO, PCM, False)


def test_a_cut_off_file_gives_the_whole_frames_there_are() -> None:
    found = read_wav(wav(PcmFormat(8_000, 2, 2), PCM)[:-3])
    assert (bytes(found.pcm), found.truncated) == (PCM[:12], True)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "audio: empty"),
        (b"RIFF", "no WAV file, but unknown data"),
        (b"ID3\x04" + b"\0" * 60, "no WAV file, but mp3"),
        (b"OggS" + b"\0" * 60, "no WAV file, but ogg"),
        (riff(fmt(3, bits=32), (b"data", PCM)), "codec 0x0003 (floating point)"),
        (riff(fmt(7, bits=8), (b"data", PCM)), "codec 0x0007 (mu-law)"),
        (riff(fmt(0x1234), (b"data", PCM)), "codec 0x1234; only PCM"),
        (riff(fmt(0xFFFE, extra=struct.pack("<HHIH", 22, 16, 4, 3)), (b"data", PCM)), "codec 0x0003"),
        (riff(fmt(0xFFFE), (b"data", PCM)), "codec 0xfffe"),
        (riff(fmt(channels=0), (b"data", PCM)), "0 channels"),
        (riff(fmt(rate=0), (b"data", PCM)), "at 0 Hz"),
        (riff(fmt(bits=12), (b"data", PCM)), "12 bits"),
        (riff((b"fmt ", b"\1\0"), (b"data", PCM)), "format is cut off"),
        (riff(fmt()), "without samples"),
        (riff((b"data", PCM)), "without a format"),
        (riff((b"LIST", b""), size=0xFFFFFFFF), "without a format"),
    ],
)
def test_what_is_no_pcm_wav_is_a_clear_error(data: bytes, text: str) -> None:
    with pytest.raises(BadAudio) as caught:
        read_wav(data)
    assert text in caught.value.message
    assert (caught.value.type, caught.value.field, caught.value.retryable) == (
        ErrorType.VALIDATION_ERROR,
        "audio",
        False,
    )


def test_an_error_names_the_field_that_held_the_audio() -> None:
    with pytest.raises(BadAudio, match=r"^speaker_wav: empty$"):
        read_wav(b"", field="speaker_wav")


chunks = st.tuples(st.sampled_from([b"fmt ", b"data", b"LIST", b"abcd"]), st.binary(max_size=60))


@given(st.one_of(st.binary(max_size=200), st.lists(chunks, max_size=5).map(lambda found: riff(*found))))
def test_no_bytes_raise_anything_but_bad_audio(data: bytes) -> None:
    with suppress(BadAudio):
        found = read_wav(data)
        assert len(found.pcm) % found.format.frame_size == 0


@given(st.integers(0, 60), st.binary(max_size=30))
def test_a_spoilt_header_raises_nothing_but_bad_audio(place: int, noise: bytes) -> None:
    data = riff(fmt(), (b"data", PCM))
    with suppress(BadAudio):
        read_wav(data[:place] + noise + data[place + len(noise) :])


def test_a_file_of_nothing_but_tiny_chunks_takes_no_time() -> None:
    with pytest.raises(BadAudio):
        read_wav(b"RIFF\0\0\0\0WAVE" + b"abcd\0\0\0\0" * 500_000)


def test_a_format_knows_its_sizes() -> None:
    format = PcmFormat(24_000, 2, 2)
    assert (format.frame_size, format.bytes_per_second, format.seconds(48_000)) == (4, 96_000, 0.5)


# --- kinds of files


MP3_FRAME = b"\xff\xfb\x90\x00" + b"\0" * 413  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (wav(MONO, PCM), "wav"),
        (b"ID3\x03\0\0\0\0\0\0", "mp3"),
        (MP3_FRAME * 2, "mp3"),
        (MP3_FRAME[:100], "mp3"),
        (b"\xff\xf3\x84\xc4" + b"\0" * 100, "mp3"),
        (b"OggS\0\x02", "ogg"),
        (b"fLaC\0\0\0\x22", "flac"),
        (b"\x1a\x45\xdf\xa3\x9f", "webm"),
        (b"\0\0\0\x1cftypM4A ", "mp4"),
        (b"", ""),
        (b"RIFF\0\0\0\0AVI ", ""),
        (b"<html>", ""),
        (PCM, ""),
    ],
)
def test_files_are_told_by_their_first_bytes(data: bytes, kind: str) -> None:
    assert sniff(data) == kind


def test_samples_that_look_like_the_begin_of_an_mp3_frame_do_not_pass_for_one() -> None:
    assert sniff(struct.pack("<2h", -1025, 144) + b"\1\0" * 1000) == ""


@given(st.binary(max_size=2000))
def test_no_bytes_confuse_the_sniffer(data: bytes) -> None:
    assert sniff(data) in {"wav", "mp3", "ogg", "flac", "webm", "mp4", ""}


# --- samples


@given(st.lists(st.integers(-32768, 32767), max_size=50))
def test_the_peak_is_the_loudest_sample(samples: list[int]) -> None:
    exact = max((abs(sample) for sample in samples), default=0) / 32768
    assert math.isclose(peak(array("h", samples).tobytes()), exact, abs_tol=1 / 128)
    if exact < 256 / 32768:
        assert math.isclose(peak(array("h", samples).tobytes()), exact, abs_tol=2 / 32768)


@pytest.mark.parametrize(("width", "quiet", "loud"), [
    (1, b"\x80", b"\xff"), (2, b"\x10\0", b"\0\x40"), (3, b"\xff\xff\xff", b"\0\0\x80"),
    (4, b"\0\0\x01\0", b"\0\0\0\x40"),
])  # fmt: skip
def test_silence_is_told_in_every_width(width: int, quiet: bytes, loud: bytes) -> None:
    format = PcmFormat(16_000, width)
    assert is_silence(quiet * 100, format)
    assert not is_silence(quiet * 50 + loud + quiet * 50, format)
    assert is_silence(b"", format)


def test_samples_of_other_widths_become_16_bit_ones() -> None:
    assert to_s16(bytes([128, 255, 0]), 1) == array("h", [0, 127 * 256, -32768]).tobytes()
    assert to_s16(b"\x99\x34\x12\x01\xff\xff", 3) == array("h", [0x1234, -1]).tobytes()
    assert to_s16(b"\x99\x99\x34\x12\0\0\0\x80", 4) == array("h", [0x1234, -32768]).tobytes()
    assert to_s16(PCM + b"\1", 2) == PCM


@given(formats, st.integers(0, 20))
def test_the_first_channel_is_every_frames_first_sample(format: PcmFormat, frames: int) -> None:
    samples = [bytes([number] * format.width) for number in range(frames)]
    pcm = b"".join(sample + b"\xee" * (format.frame_size - format.width) for sample in samples)
    assert first_channel(pcm, format) == b"".join(samples)
