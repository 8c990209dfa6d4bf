"""One trace from the client's publish to the last event of the answer, although the first worker dies on the way.

Two real `python -m chat_handler` processes export to a real OTLP/HTTP receiver, as does the client.
"""

import contextlib
import dataclasses
import uuid

import pytest
from aiohttp.test_utils import TestServer

from handler_core import streams
from handler_core.client import follow
from handler_core.config import OtelSettings
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import CHAT, REQUEST_SUBJECT, ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.otlp import exporting
from handler_core.telemetry import Metrics
from handler_core.testing import connection, nats_server, process, until
from handler_core.testing_otlp import CollectedSpan, Collector, collector
from handler_core.tracing import Within
from local_inference.accounting import STATS
from local_inference.app import create_app
from local_inference.echo import Echo
from local_inference.faults import Fault, Faults
from local_inference.settings import Settings

SOON = dataclasses.replace(streams.CHAT_HANDLER, ack_wait=2.0)
SLOWLY = Faults(chat=Fault(token_delay_ms=50))

pytestmark = pytest.mark.timeout(120)


async def test_one_trace_spans_a_turn_through_the_death_of_its_worker() -> None:
    app = create_app(Settings(log_level="error", faults=SLOWLY), Echo(dimensions=8, tokens=60))
    async with contextlib.AsyncExitStack() as stack:
        nats = stack.enter_context(nats_server())
        nc = await stack.enter_async_context(connection(nats.url))
        await streams.apply(Api(nc), consumers=[SOON])
        collected = await stack.enter_async_context(collector())
        models = await stack.enter_async_context(TestServer(app))
        environment = {
            "NATS_URL": nats.url, "LLM_URL": str(models.make_url("")), "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": "0",
            "EMBEDDINGS_URL": str(models.make_url("")), "MILVUS_URI": "http://127.0.0.1:9", "MILVUS_TIMEOUT": "0.3",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collected.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }  # fmt: skip
        first = stack.enter_context(process("chat_handler", environment))
        own = OtelSettings(otel_exporter_otlp_endpoint=collected.endpoint, otel_metrics_exporter="none")
        telemetry = await stack.enter_async_context(exporting(own, "client", Metrics()))
        assert telemetry.tracer is not None
        request = ChatRequest(query="Why?", request_id=uuid.uuid4().hex, enable_streaming=True, session_id="s")

        items: list[StreamEvent | ChatResponse] = []
        with Within(telemetry.tracer.begin("turn")):
            async for item in follow(nc, CHAT, REQUEST_SUBJECT, request):
                items.append(item)
                if len(items) == 3:
                    await collected.until(lambda: embedded(collected), "the first worker's spans are exported")
                    first.kill()
                    stack.enter_context(process("chat_handler", environment))
        await collected.until(lambda: len(named(collected, "process ai.chat.request")) == 1, "the turn is exported")
        await collected.until(lambda: named(collected, "turn"), "the client's span is exported")

        [turn] = named(collected, "turn")
        [sent] = named(collected, "send ai.chat.request")
        [processed] = named(collected, "process ai.chat.request")
        attempts = named(collected, "receive ai.chat.request")
        assert {span.trace_id for span in collected.spans} == {turn.trace_id}
        assert (turn.parent_id, sent.parent_id, processed.parent_id) == ("", turn.span_id, sent.span_id)
        assert (sent.kind, processed.kind, turn.service, processed.service) == (
            "producer", "consumer", "client", "chat_handler"
        )  # fmt: skip
        # The first worker's own span died with it; what it had finished tells that it was there.
        assert [span.attributes["messaging.nats.delivery.attempt"] for span in attempts] == [1, 2]
        assert {span.parent_id for span in attempts} == {sent.span_id}
        assert attempts[0].resource["service.instance.id"] != attempts[1].resource["service.instance.id"]
        below = {span.name for span in collected.below(processed)}
        assert below == {
            "embeddings default", "search documents", "chat default",
            "send evt.chat.response.stream", "send evt.chat.response",
        }  # fmt: skip
        [events] = [span for span in named(collected, "send evt.chat.response.stream") if span in
                    collected.below(processed)]  # fmt: skip
        assert [name for name, _ in events.events] == ["restart", "done"]
        last = items[-1]
        assert isinstance(last, ChatResponse)
        assert last.trace_id == turn.trace_id
        [chat] = [span for span in named(collected, "chat default") if span.parent_id == processed.span_id]
        assert chat.attributes["gen_ai.operation.name"] == "chat"
        assert chat.attributes["gen_ai.usage.output_tokens"] == last.usage.completion_tokens > 0
        assert chat.attributes["gen_ai.response.finish_reasons"] == ["stop"]
        [post] = collected.below(chat)
        assert (post.name, post.attributes["http.response.status_code"]) == ("POST", 200)
        assert app[STATS].chat.requests == 2
        await until(lambda: redelivered(collected) == 1, "metrics are pushed as well")


def named(collected: Collector, name: str) -> list[CollectedSpan]:
    return sorted((span for span in collected.spans if span.name == name), key=lambda span: span.start)


def embedded(collected: Collector) -> bool:
    """Whether what the first worker had done before the LLM has been exported."""
    return {"receive ai.chat.request", "embeddings default", "search documents"} <= {s.name for s in collected.spans}


def redelivered(collected: Collector) -> float:
    point = collected.last("handler_redeliveries_total", stream="AI_CHAT")
    return point.value if point is not None else 0
