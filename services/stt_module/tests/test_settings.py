"""The settings: names, defaults, and errors that name the variable."""

import pytest

from handler_core.config import SettingsError, load
from stt_module.settings import Settings


def test_the_defaults_fit_together() -> None:
    settings = load(Settings)
    rules = settings.rules()
    assert (rules.frame_ms, rules.mode, rules.start_ms, rules.end_ms) == (20, 2, 200, 600)
    assert (rules.pre_roll_ms, rules.min_ms, rules.max_ms, rules.interrupt_ms) == (500, 300, 30_000, 500)
    assert (settings.idle_timeout, settings.max_sessions, settings.stt_concurrency) == (30.0, 256, 8)


def test_a_session_may_ask_for_another_frame_and_for_what_is_short() -> None:
    rules = load(Settings).rules(frame_ms=30, keep_short=True)
    assert (rules.frame_ms, rules.keep_short) == (30, True)


def test_they_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAME_MS", "30")
    monkeypatch.setenv("WHISPER_URL", "http://whisper:9000/stt")
    monkeypatch.setenv("PARTIALS", "false")
    settings = load(Settings)
    assert (settings.frame_ms, settings.stt_url, settings.partials) == (30, "http://whisper:9000/stt", False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRAME_MS", "15"),
        ("VAD_MODE", "4"),
        ("NOISE_MS", "500"),
        ("SPEECH_START_MS", "5"),
        ("MAX_UTTERANCE_MS", "900"),
        ("MAX_UTTERANCE_MS", "60000"),
        ("MAX_SESSIONS", "0"),
        ("STT_CONCURRENCY", "0"),
        ("IDLE_TIMEOUT", "0"),
        ("PARTIAL_INTERVAL_MS", "20"),
    ],
)
def test_one_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load(Settings)


def test_a_long_utterance_still_fits_in_what_a_segmenter_keeps() -> None:
    settings = Settings(max_utterance_ms=43_000)
    assert settings.max_utterance_ms * 48 * 2 <= settings.rules().max_bytes
