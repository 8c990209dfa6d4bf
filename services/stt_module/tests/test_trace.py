"""One trace for a session, from its first chunk to the calls of the transcription endpoint, as a collector gets it."""

from handler_core.testing import serving, until
from handler_core.testing_otlp import collector
from stt_module.service import service

from .conftest import SettingsFor, SpeakerFor

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_an_utterance_is_a_span_with_the_call_below_it(settings: SettingsFor, speaker: SpeakerFor) -> None:
    async with collector() as collected:
        own = settings(otel_exporter_otlp_endpoint=collected.endpoint, otel_bsp_schedule_delay=100)
        async with serving(service, own):
            alice = await speaker()
            await alice.send(type="start", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
            await alice.say(1)
            await alice.say(2)
            await alice.hears([1], [2])
            await alice.end()
            await alice.sees("ended")
        await until(lambda: collected.span("process ai.voice.session.*"), "the session is exported")
        session = collected.span("process ai.voice.session.*")
        assert session is not None
        assert session.trace_id == TRACE
        utterances = [span for span in collected.below(session) if span.name == "utterance"]
        assert [span.attributes["stt.sequence"] for span in utterances] == [1, 2]
        for utterance in utterances:
            assert collected.below(utterance)[0].name.startswith("transcribe")
