"""Speech in chunks, from the request on NATS to what its caller hears and its endpoint is asked."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import msgpack
import pytest
from nats.aio.client import Client

from handler_core import streams
from handler_core.audio import read_wav
from handler_core.connection import Connection
from handler_core.contract.tts import MAX_TEXT, AudioChunk
from handler_core.jetstream import Api
from handler_core.speech import pieces
from handler_core.testing import connection, nats_server, serving, until
from handler_core.testing_otlp import collector
from tts_module.service import service

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def assert_whole(chunks: list[AudioChunk]) -> None:
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].total_chunks == len(chunks)
    assert [chunk.sentence for chunk in chunks] == sorted(chunk.sentence for chunk in chunks)


async def test_a_text_is_heard_whole_and_in_order(caller: Any, settings: Any, engine: Any) -> None:
    async with serving(service, settings()):
        request_id = await caller.ask({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
        end = await caller.end()
    assert caller.audio() == engine.spoken(caller.text)
    assert_whole(caller.chunks)
    assert {
        (chunk.request_id, chunk.sample_rate, chunk.width, chunk.channels, chunk.format, chunk.attempt)
        for chunk in caller.chunks
    } == {(request_id, 24_000, 2, 1, "pcm", 1)}
    assert [chunk.text for chunk in caller.chunks if chunk.text] == caller.sentences
    assert caller.order == ["started", *["chunk"] * len(caller.chunks), "completed"]
    assert (end.request_id, end.sentences, end.chunks, end.error) == (request_id, 3, len(caller.chunks), None)
    assert end.duration_ms == pytest.approx(1000 * len(caller.audio()) / 48_000, abs=0.001)
    assert end.timings.keys() == {"queue_ms", "tts_first_audio_ms", "tts_ms", "total_ms"}
    assert end.timings["tts_first_audio_ms"] <= end.timings["total_ms"]
    assert end.trace_id == TRACE
    assert {TRACE in headers["traceparent"] for headers in (*caller.headers, *engine.headers)} == {True}


async def test_the_first_audio_is_heard_before_the_engine_has_gone_on(caller: Any, settings: Any, engine: Any) -> None:
    gate = engine.gates[caller.sentences[0]] = asyncio.Event()
    async with serving(service, settings()):
        await caller.ask()
        await until(lambda: caller.chunks, "the first chunk")
        assert not caller.ends()
        gate.set()
        await caller.end()
    assert caller.audio() == engine.spoken(caller.text)


async def test_every_field_reaches_the_engine(caller: Any, settings: Any, engine: Any) -> None:
    async with serving(service, settings(tts_model="tts-1")):
        await caller.ask(text="Hello, hello.", speaker="alloy", language="de-AT", speed=1.5)
        await caller.end()
    [body] = engine.seen
    assert body == {"input": "Hello, hello.", "model": "tts-1", "voice": "alloy", "speed": 1.5,
                    "response_format": "pcm"}  # fmt: skip


async def test_what_cannot_be_read_aloud_is_left_out(caller: Any, settings: Any, engine: Any) -> None:
    async with serving(service, settings()):
        await caller.ask(text="**Hello**, see [the page](https://example.org/x) [1]. 🙂\n```\ncode\n```")
        await caller.end()
    assert engine.inputs() == ["Hello, see the page."]


@pytest.mark.parametrize("size", [1024, 4096, 1 << 20])
async def test_no_chunk_is_larger_than_configured(caller: Any, settings: Any, engine: Any, size: int) -> None:
    async with serving(service, settings(chunk_bytes=size)):
        await caller.ask()
        await caller.end()
    assert caller.audio() == engine.spoken(caller.text)
    assert max(len(chunk.audio) for chunk in caller.chunks) <= size
    assert {len(chunk.audio) % 2 for chunk in caller.chunks} == {0}
    assert_whole(caller.chunks)


async def test_chunks_fit_a_server_that_takes_small_messages_only(
    settings: Any, engine: Any, caller: Any, tmp_path: Path
) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 16KB\n")
    with nats_server("-c", str(config)) as small:
        async with connection(small.url) as nc:
            await streams.apply(Api(nc))
            there = type(caller)(nc)
            await there.listen()
            async with serving(service, settings(nats_url=small.url)):
                await there.ask()
                await there.end()
    assert there.audio() == engine.spoken(there.text)
    assert_whole(there.chunks)


async def test_wav_chunks_are_files_of_their_own(caller: Any, settings: Any, engine: Any) -> None:
    async with serving(service, settings(chunk_bytes=4096)):
        await caller.ask(format="wav")
        end = await caller.end()
    files = [read_wav(chunk.audio) for chunk in caller.chunks]
    assert b"".join(bytes(file.pcm) for file in files) == engine.spoken(caller.text)
    assert {(file.format.sample_rate, file.truncated) for file in files} == {(24_000, False)}
    assert {chunk.format for chunk in caller.chunks} == {"wav"}
    assert end.duration_ms == pytest.approx(1250, abs=1)


async def test_without_streaming_every_chunk_tells_how_many_there_are(caller: Any, settings: Any, engine: Any) -> None:
    gate = engine.gates[caller.sentences[-1]] = asyncio.Event()
    async with serving(service, settings(chunk_bytes=4096)):
        await caller.ask(stream=False)
        await until(lambda: len(engine.seen) == 3, "the last sentence is being made")
        assert caller.order == ["started"]
        gate.set()
        await caller.end()
    assert caller.audio() == engine.spoken(caller.text)
    assert {chunk.total_chunks for chunk in caller.chunks} == {len(caller.chunks)}
    assert_whole(caller.chunks)


async def test_requests_of_one_session_are_told_apart(caller: Any, settings: Any, engine: Any) -> None:
    texts = {await caller.ask(text=f"Number {n} begins here. Number {n} ends here."): n for n in range(12)}
    each = settings(chunk_bytes=2048, max_in_flight=4, tts_concurrency=4)
    async with serving(service, each), serving(service, each):
        await until(lambda: len(caller.ends()) == 12, "all ends are told")
    assert sorted(end.request_id for end in caller.ends()) == sorted(texts)
    assert {end.status for end in caller.ends()} == {"completed"}
    for request_id, number in texts.items():
        assert_whole(caller.of(request_id))
        assert caller.audio(request_id) == engine.spoken(f"Number {number} begins here. Number {number} ends here.")
    sequences = [int(headers["Nats-Sequence"]) for headers in caller.headers]
    assert sequences == sorted(sequences)


async def test_the_longest_text_is_spoken_to_its_end(caller: Any, settings: Any, engine: Any) -> None:
    text = " ".join(f"This is the sentence with the number {n:06}." for n in range(1000))[: MAX_TEXT - 1] + "."
    async with serving(service, settings(tts_concurrency=2)):
        await caller.ask(text=text)
        end = await caller.end()
    assert (end.status, end.sentences) == ("completed", len(pieces(text, limit=4096)))
    assert caller.audio() == engine.spoken(text)
    assert_whole(caller.chunks)


async def test_a_message_of_all_the_size_there_may_be_is_read(
    nc: Connection, caller: Any, settings: Any, engine: Any
) -> None:
    body: dict[str, Any] = {"text": "Hello, hello.", "request_id": uuid.uuid4().hex, "padding": b""}
    body["padding"] = bytes(nc.max_payload - len(msgpack.packb({**body, "padding": bytes(70_000)})) + 70_000)
    payload = msgpack.packb(body)
    assert len(payload) == nc.max_payload
    async with serving(service, settings()):
        await Client.publish(nc, f"ai.voice.tts.request.{caller.session}", payload)  # ours would keep a reserve
        end = await caller.end()
    assert (end.status, end.request_id) == ("completed", body["request_id"])


async def test_one_trace_tells_of_the_text_its_sentences_and_its_chunks(caller: Any, settings: Any) -> None:
    async with collector() as collected:
        exporting = {"otel_exporter_otlp_endpoint": collected.endpoint, "otel_bsp_schedule_delay": 50}
        async with serving(service, settings(**exporting)):
            await caller.ask({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
            end = await caller.end()
    [process] = [span for span in collected.spans if span.name.startswith("process ai.voice.tts.request.")]
    below = collected.below(process)
    assert {span.trace_id for span in (process, *below)} == {TRACE}
    assert [span.name for span in below].count("speak default") == 3
    [sent] = [span for span in below if span.name == "send evt.voice.tts.audio"]
    assert sent.attributes["messaging.batch.message_count"] == end.chunks
    assert [name for name, _ in sent.events] == ["first_audio"]
