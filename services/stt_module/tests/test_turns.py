import pytest

from handler_core.connection import Connection
from handler_core.contract.stt import SessionConfig
from handler_core.errors import Transient
from handler_core.testing import stored
from stt_module import turns
from stt_module.events import Events


class Unreachable(Events):
    """Events of a stream that does not answer for a while."""

    tries = 0

    async def own(self) -> bool:
        self.tries += 1
        if self.tries <= 3 * turns.TRIES:
            raise Transient("no answer")
        return await super().own()


async def test_a_turn_waits_for_as_long_as_nats_is_away(nc: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "UNREACHABLE_RETRY", 0.001)
    monkeypatch.setattr(turns, "RETRY_AFTER", 0.0)
    events = Unreachable(nc, "s1", attempt=1, trace_id="", trace_headers=dict)
    assert await turns.ask(nc, events, SessionConfig(turn={}), "s1-1-1", "w1", None) is None
    assert len(await stored(nc, "AI_VOICE", "ai.voice.request")) == 1
