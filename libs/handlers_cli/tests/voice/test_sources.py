"""Where audio comes from and what is made of it: files, pipes, other rates and widths, the microphone."""

import asyncio
import itertools
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from handler_core.audio import PcmFormat, peak, read_wav, wav, wav_header
from handler_core.errors import InvalidRequest
from handlers_cli.record import Ear, record
from handlers_cli.resample import Converter, for_speech
from handlers_cli.sound import NoSound, Player, Silence, Speaker, microphone
from handlers_cli.sound import sounddevice as import_sounddevice
from handlers_cli.source import opened
from handlers_cli.wav_file import WavFile

RAW = PcmFormat(16_000)


async def read(place: str, rate: int | None = None, channels: int | None = None) -> tuple[PcmFormat, bytes]:
    async with opened(place, rate, channels) as pcm:
        return pcm.format, b"".join([piece async for piece in pcm.pieces])


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pipe as stdin; gives the end to write to."""
    out, into = os.pipe()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(os.fdopen(out, "rb")))
    yield into


def trickle(into: int, *parts: bytes) -> Callable[[], None]:
    """Write each part and close, as another process would."""

    def write() -> None:
        for part in parts:
            os.write(into, part)
        os.close(into)

    return write


# -- files and pipes


async def test_a_wav_file_is_read_whole(tmp_path: Path, lib: Any) -> None:
    format = PcmFormat(44_100, 3, 2)
    (tmp_path / "a.wav").write_bytes(wav(format, lib.tone(0.5, format)))
    assert await read(str(tmp_path / "a.wav")) == (format, lib.tone(0.5, format))


async def test_raw_samples_in_a_file_need_a_rate(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"\1\2" * 9)
    assert await read(str(tmp_path / "a.raw"), 8000, 1) == (PcmFormat(8000), b"\1\2" * 9)
    with pytest.raises(InvalidRequest, match=r"a\.raw: no WAV file, but unknown data"):
        await read(str(tmp_path / "a.raw"))


async def test_what_is_compressed_is_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(b"OggS" + bytes(60))
    with pytest.raises(InvalidRequest, match=r"a\.ogg: no WAV file, but ogg; convert it: ffmpeg -i"):
        await read(str(tmp_path / "a.ogg"))


async def test_a_file_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        await read("/nowhere.wav")


@pytest.mark.parametrize("size", [None, 6], ids=["streamed", "with a size and something behind"])
async def test_a_piped_wav_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    header = wav_header(PcmFormat(8000, 2, 1), size)
    header = header[:12] + b"LIST\x03\0\0\0abc\0" + header[12:]  # a chunk of an odd length before the format
    behind = b"LIST" + bytes(8) if size else b""
    with piped(monkeypatch) as into:
        parts = [header[:7], header[7:30], header[30:] + b"\1\2\3", b"\4\5\6" + behind]
        read_it, _ = await asyncio.gather(read("-"), asyncio.to_thread(trickle(into, *parts)))
    assert read_it == (PcmFormat(8000), b"\1\2\3\4\5\6")


async def test_raw_samples_may_be_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as into:
        read_it, _ = await asyncio.gather(read("-", 48_000, 2), asyncio.to_thread(trickle(into, b"\1\2\3\4", b"\5\6")))
    assert read_it == (PcmFormat(48_000, 2, 2), b"\1\2\3\4\5\6")


@pytest.mark.parametrize("data", [b"", b"OggS" + bytes(60), b"RIFF\0\0\0\0WAVE"])
async def test_a_pipe_of_anything_else_is_said(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    with piped(monkeypatch) as into:
        trickle(into, data)()
        with pytest.raises(InvalidRequest, match="stdin: "):
            await read("-")


async def test_a_file_as_stdin_is_read_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(RAW, b"\1\2" * 3))
    with (tmp_path / "a.wav").open("rb") as file:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(file))
        assert await read("-") == (RAW, b"\1\2" * 3)


# -- conversion


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (16_000, 1), (22_050, 1), (48_000, 2), (11_025, 1)])
def test_any_format_becomes_what_speech_needs(lib: Any, rate: int, channels: int, width: int) -> None:
    format = PcmFormat(rate, width, channels)
    source = lib.tone(0.5, format)
    whole = for_speech(format).feed(source, last=True)
    assert abs(len(whole) / 32_000 - 0.5) < 0.01
    assert abs(peak(whole) - 0.5) < 0.03
    samples = struct.unpack(f"<{len(whole) // 2}h", whole)
    crossings = sum(a < 0 <= b for a, b in itertools.pairwise(samples))
    assert abs(crossings - 220) <= 2, "it is 440 Hz still"
    converter = for_speech(format)
    pieces = [converter.feed(source[place : place + 1001]) for place in range(0, len(source), 1001)]
    again = b"".join([*pieces, converter.feed(b"", last=True)])
    other = struct.unpack(f"<{len(again) // 2}h", again)
    assert max(abs(a - b) for a, b in zip(samples, other, strict=True)) <= 2, "however it is cut up, but for dither"


def test_channels_are_averaged() -> None:
    stereo = struct.pack("<4h", 1000, 3000, -1000, 1000)
    assert struct.unpack("<2h", Converter(PcmFormat(16_000, 2, 2)).feed(stereo)) == (2000, 0)


def test_telephone_audio_stays_as_it_is() -> None:
    assert for_speech(PcmFormat(8000)).format.sample_rate == 8000


# -- writing


def test_a_second_format_is_converted_to_the_first(tmp_path: Path, lib: Any) -> None:
    place = tmp_path / "a.wav"
    with WavFile(str(place)) as file:
        file.write(lib.tone(0.5), lib.SPEECH)
        file.write(lib.tone(0.5, PcmFormat(48_000, 2, 2)), PcmFormat(48_000, 2, 2))
    format, pcm, _ = read_wav(place.read_bytes())
    assert format == lib.SPEECH
    assert abs(format.seconds(len(pcm)) - 1) < 0.02


def test_an_odd_number_of_bytes_is_padded_and_reads_back(tmp_path: Path) -> None:
    place = tmp_path / "a.wav"
    with WavFile(str(place)) as file:
        file.write(b"\1\2\3", PcmFormat(8000, 1))
    assert (len(place.read_bytes()), bytes(read_wav(place.read_bytes()).pcm)) == (48, b"\1\2\3")


def test_what_fails_leaves_the_older_file(tmp_path: Path) -> None:
    place = tmp_path / "a.wav"
    place.write_bytes(b"older")
    file = WavFile(str(place))
    file.write(b"\1\2", RAW)
    file.__exit__(RuntimeError, RuntimeError(), None)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.wav", b"older")]


# -- the sound card


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(NoSound, match=r"pip install 'handlers-cli\[audio\]'"):
        import_sounddevice()


def test_without_portaudio_it_says_how_to_install_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NoSound, match=r"PortAudio library not found; install PortAudio: apt install libportaudio2"):
        import_sounddevice()


async def test_pieces_play_one_after_the_other_and_a_later_one_replaces_what_waits(sounddevice: Any) -> None:
    changes: list[bool] = []
    player = Player(Speaker(), changes.append)
    for number, value in ((0, b"a"), (1, b"b"), (2, b"c"), (1, b"B")):
        player.put("one", number, value * 4, RAW)
    player.end("one")
    player.put("two", 0, b"d" * 4, PcmFormat(24_000))
    player.end("two")
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(player.run())
        await player.finished()
        task.cancel()
    assert bytes(sounddevice.played) == b"aaaaBBBBdddd"
    assert changes == [True, False]
    assert [options["samplerate"] for options in sounddevice.opened] == [16_000, 24_000]


async def test_what_is_stopped_is_quiet_at_once_and_stays_so(sounddevice: Any) -> None:
    changes: list[bool] = []
    player = Player(Speaker(), changes.append)
    sounddevice.writing = player.stop
    player.put("one", 0, bytes(32_000), RAW)
    player.put("one", 1, bytes(32_000), RAW)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(player.run())
        await player.finished()
        player.put("one", 2, bytes(32_000), RAW)
        await player.finished()
        task.cancel()
    assert len(sounddevice.played) == 3200, "a slice of a tenth of a second"
    assert sounddevice.aborted == 1
    assert changes == [True, False]


async def test_without_a_speaker_playing_takes_its_time() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await Silence().play(bytes(3200), RAW)
    assert loop.time() - began >= 0.099


async def test_the_microphone_gives_what_it_hears(sounddevice: Any, lib: Any) -> None:
    sounddevice.speech = lib.tone(0.1, RAW)
    heard = b""
    async with microphone(0.02) as pcm:
        assert (pcm.format, pcm.paced) == (RAW, True)
        async for piece in pcm.pieces:
            heard += piece
            if len(heard) == 3200:
                break
    assert heard == sounddevice.speech


async def test_a_microphone_that_cannot_do_16_khz_is_taken_as_it_is(sounddevice: Any) -> None:
    sounddevice.rates = {44_100}
    async with microphone(0.02) as pcm:
        assert pcm.format.sample_rate == 44_100


async def test_a_recording_ends_with_silence_after_speech(
    sounddevice: Any, lib: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))
    quiet = lib.tone(0.6, RAW, 0.005)
    sounddevice.speech = quiet + lib.tone(0.5, RAW) + lib.tone(3, RAW, 0.005)
    pcm, format = await record()
    assert format == RAW
    assert 0.6 + 0.5 + 1.2 <= format.seconds(len(pcm)) <= 0.6 + 0.5 + 1.3


def test_noise_is_no_speech_and_a_recording_without_any_ends_too(lib: Any) -> None:
    noise, ear = lib.tone(0.03, RAW, 0.04), Ear()
    results = [ear.done(noise, RAW) for _ in range(2100)]
    assert abs(results.index(True) * 0.03 - 60) < 0.1
