"""Recognition itself, in this process."""

import io
import json
import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from local_inference.recognizer import Recognizer, serve

AUDIO = Path(__file__).parents[3] / "tests" / "audio"
TEXTS = json.loads((AUDIO / "texts.json").read_text())


@pytest.fixture(scope="session")
def recognizer() -> Recognizer:
    return Recognizer()


def pcm(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
        return file.readframes(file.getnframes())


def heard(recognizer: Recognizer, audio: bytes) -> list[str]:
    return [" ".join(word[0] for word in utterance["words"]) for utterance in recognizer.utterances(audio)]


@pytest.mark.parametrize("name", TEXTS)
def test_sample_audio_is_recognised_exactly(recognizer: Recognizer, name: str) -> None:
    text = TEXTS[name]["text"]
    words = "".join(letter for letter in text.lower() if letter.isalpha() or letter in "' ")
    assert " ".join(heard(recognizer, pcm(AUDIO / name))) == TEXTS[name]["recognised"] == words


def test_sample_audio_is_all_described_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in AUDIO.glob("*.wav")}
    assert set(sizes) == set(TEXTS)
    assert max(sizes.values()) < 110 * 1024
    assert {entry["voice"] for entry in TEXTS.values()} == {"slt", "rms"}


def test_what_was_heard_before_has_no_bearing(recognizer: Recognizer) -> None:
    first = recognizer.utterances(pcm(AUDIO / "yes.wav"))
    recognizer.utterances(pcm(AUDIO / "stop.wav"))
    assert recognizer.utterances(pcm(AUDIO / "yes.wav")) == first


def test_a_pause_makes_two_utterances_with_their_times(recognizer: Recognizer) -> None:
    first, second = recognizer.utterances(pcm(AUDIO / "two_sentences.wav"))
    assert [word[0] for word in first["words"]] == ["what", "is", "a", "dead", "letter"]
    assert [word[0] for word in second["words"]] == ["stop"]
    assert second["words"][0][1] - first["words"][-1][2] > 1
    times = [time for word in [*first["words"], *second["words"]] for time in word[1:3]]
    assert times == sorted(times)
    assert all(0 < word[3] <= 1 for word in first["words"])


@pytest.mark.parametrize("level", [0, 5, 30, 300])
def test_silence_and_steady_noise_hold_no_word(recognizer: Recognizer, level: int) -> None:
    noise = np.random.default_rng(7).normal(0, level, 16_000 * 4).round().astype("<i2")
    assert heard(recognizer, noise.tobytes()) == []


@pytest.mark.parametrize("size", [0, 2, 958, 960, 962, 4800])
def test_the_shortest_audio_holds_no_word(recognizer: Recognizer, size: int) -> None:
    assert recognizer.utterances(bytes(size)) == []


def test_it_answers_a_line_for_each_request_until_its_input_ends() -> None:
    requests = [bytes(1000), pcm(AUDIO / "stop.wav")]
    sink = io.BytesIO()
    serve(io.BytesIO(b"".join(struct.pack("<I", len(request)) + request for request in requests)), sink)
    silent, spoken = map(json.loads, sink.getvalue().splitlines())
    assert silent == []
    assert spoken[0]["words"][0][0] == "stop"
