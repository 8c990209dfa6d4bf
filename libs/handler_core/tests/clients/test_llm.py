import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler_core.clients.breaker import CircuitBreaker
from handler_core.clients.completion import CompletionReader, Delta
from handler_core.clients.failures import Failures, UpstreamError
from handler_core.clients.http import Upstream
from handler_core.clients.llm import LLM, Completion, PromptMessage
from handler_core.contract.chat import Usage
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable

PATH = "/v1/chat/completions"
ASK = [PromptMessage("system", "Be brief."), PromptMessage("user", "Hé?")]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: Any = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finish_reason}]}


def framed(data: Any) -> bytes:
    line = b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


ANSWER = [chunk("", role="assistant"), chunk("Hel"), chunk("lo"), chunk(None, "stop"), {"choices": [], "usage": USAGE}]


@pytest.fixture
def llm(upstream: Upstream) -> LLM:
    return LLM(upstream, "qwen")


async def collect(llm: LLM, **options: Any) -> list[Delta]:
    options.setdefault("deadline", Deadline.after(30))
    return [delta async for delta in llm.stream(ASK, **options)]


async def failure(llm: LLM, **options: Any) -> DownstreamUnavailable:
    with pytest.raises(DownstreamUnavailable) as caught:
        await collect(llm, **options)
    return caught.value


async def until_error(llm: LLM, seen: Callable[[], Any] = str) -> tuple[str, UpstreamError]:
    """The text that came before the stream failed, and the failure; `seen` is called at each delta."""
    text = ""
    try:
        async for delta in llm.stream(ASK, deadline=Deadline.after(30)):
            text += delta.text
            seen()
    except UpstreamError as error:
        return text, error
    raise AssertionError("the stream did not fail")


async def test_an_answer_is_streamed_and_ends_in_one_delta_with_reason_and_usage(server, llm):
    server.on(PATH, server.sse(*ANSWER, "[DONE]"))
    assert await collect(llm) == [
        Delta("Hel"),
        Delta("lo"),
        Delta(finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)),
    ]


async def test_the_request_holds_what_was_asked_and_nothing_else(server, llm):
    server.on(PATH, server.sse(*ANSWER, "[DONE]"))
    await collect(llm)
    await collect(llm, model="other", temperature=0.0, max_tokens=7, stop=["\n"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé?"}]
    common = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    assert server.seen[0].body == {"model": "qwen", **common}
    assert server.seen[1].body == {"model": "other", "temperature": 0.0, "max_tokens": 7, "stop": ["\n"], **common}


async def test_complete_gives_the_whole_answer(server, llm):
    server.on(PATH, server.sse(*ANSWER, "[DONE]"))
    usage = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    assert await llm.complete(ASK, deadline=Deadline.after(30)) == Completion("Hello", usage, "stop")


async def test_the_connection_is_used_again_after_a_stream(server, llm):
    server.on(PATH, server.sse(*ANSWER, "[DONE]"))
    for _ in range(3):
        await collect(llm)
    assert len(server.connections) == 1


# --- tolerance


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([b": ping\r\n\r\n", b'data: {"choices":[]}\r\n\r\n', chunk("a"), chunk("b", "stop"), "[DONE]"], "ab"),
        ([b'data: {"choices":\ndata: [{"delta":\ndata: {"content":"a"}}]}\n\n', chunk("", "stop"), "[DONE]"], "a"),
        ([chunk("a"), chunk(None, "stop")], "a"),
        ([b"\n\n", chunk("a", "stop"), b"data: [DONE]"], "a"),
        ([chunk("a"), b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}'], "ab"),
        ([b"data:\n\n", chunk("a", "stop"), b"data: [DONE]\n\ndata: junk\n\n"], "a"),
        ([{"choices": None}, {"choices": [{"delta": None}]}, {"id": 1}, chunk("a", "stop")], "a"),
        ([{"choices": [{"index": 1, "delta": {"content": "no"}}]}, chunk("a", "stop")], "a"),
        ([chunk([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "stop")], "ab"),
        ([{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "error": None}], "a"),
        ([chunk("é".encode().decode() + "😀", "stop")], "é😀"),
        ([chunk("\ud83d"), chunk("\ude00!"), chunk("\ud83d"), chunk("x\udc00", "stop")], "😀!\ufffdx\ufffd"),
    ],
)
async def test_streams_of_many_kinds_are_understood(server, llm, chunks, text):
    server.on(PATH, server.sse(*chunks))
    completion = await llm.complete(ASK, deadline=Deadline.after(30))
    assert (completion.text, completion.finish_reason, completion.usage) == (text, "stop", Usage())
    completion.text.encode()


async def test_reasoning_is_kept_apart(server, llm):
    thoughts = [chunk("", reasoning_content="Hm"), chunk(None, reasoning="…"), chunk("Yes"), chunk(None, "stop")]
    server.on(PATH, server.sse(*thoughts, "[DONE]"))
    assert await collect(llm) == [
        Delta(reasoning="Hm"),
        Delta(reasoning="…"),
        Delta("Yes"),
        Delta(finish_reason="stop"),
    ]


async def test_a_server_that_does_not_stream_works(server, llm):
    whole = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "length"}], "usage": USAGE}
    server.on(PATH, server.json(whole), server.body(b"\xef\xbb\xbf\n " + json.dumps(whole).encode()))
    for _ in range(2):
        completion = await llm.complete(ASK, deadline=Deadline.after(30))
        assert (completion.text, completion.finish_reason, completion.usage.total_tokens) == ("Hello", "length", 5)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_refuses_stream_options_is_asked_without_from_then_on(server, llm, status):
    server.on(PATH, server.json({"detail": "extra field"}, status), server.sse(*ANSWER, "[DONE]"))
    await collect(llm)
    await collect(llm)
    assert ["stream_options" in request.body for request in server.seen] == [True, False, False]


async def test_a_refused_prompt_is_the_error_and_says_nothing_about_stream_options(server, llm):
    server.on(PATH, server.json({"error": {"message": "prompt too long"}}, 400))
    error = await failure(llm)
    assert (error.message, error.retryable) == ("model: HTTP 400: prompt too long", False)
    await failure(llm)
    assert ["stream_options" in request.body for request in server.seen] == [True, False] * 2


@pytest.mark.parametrize(
    "usage",
    [None, 7, {}, {"prompt_tokens": "3"}, {"prompt_tokens": -1, "completion_tokens": True, "total_tokens": 1e99}],
)
async def test_odd_usage_is_no_error(server, llm, usage):
    server.on(PATH, server.sse({**chunk("a", "stop"), "usage": usage}))
    assert (await collect(llm))[-1].finish_reason == "stop"


# --- endings


@pytest.mark.parametrize("ending", [[], ["[DONE]"], [b'data: {"choices": [{"delta": {"cont']])
async def test_an_end_without_a_reason_is_a_truncated_answer(server, llm, ending):
    server.on(PATH, server.sse(chunk("Hel"), *ending))
    assert await collect(llm) == [Delta("Hel"), Delta(finish_reason="truncated")]


@pytest.mark.parametrize(
    "chunks", [[], ["[DONE]"], [b": ping\n\n"], [chunk("")], [b"<html>hello</html>"], [b" \n" * 9000]]
)
async def test_an_end_without_any_answer_is_a_retryable_error(server, llm, chunks):
    server.on(PATH, server.sse(*chunks))
    error = await failure(llm)
    assert (error.message, error.retryable) == ("model: the stream ended without an answer", True)


async def test_an_empty_answer_with_a_reason_is_an_answer(server, llm):
    server.on(PATH, server.sse(chunk(None, "stop"), "[DONE]"))
    assert await collect(llm) == [Delta(finish_reason="stop")]


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_lost_inside_the_answer_is_a_retryable_error_after_the_text(server, llm, reset):
    gate = asyncio.Event()

    async def answer(request):
        request.transport.write(HEAD + framed(chunk("Hel")))
        await gate.wait()
        return await server.raw(reset=reset)(request)

    server.on(PATH, answer)
    text, error = await until_error(llm, gate.set)
    assert (text, error.outcome, error.retryable, len(server.seen)) == ("Hel", "broken", True, 1)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_lost_before_the_first_byte_is_tried_again(server, llm, reset):
    server.on(PATH, server.raw(HEAD, reset=reset), server.sse(*ANSWER, "[DONE]"))
    assert (await llm.complete(ASK, deadline=Deadline.after(30))).text == "Hello"


@pytest.mark.parametrize("tail", [[b""], [b"5\r\n"], [framed({"error": "too late"})], [framed(b"{")]])
async def test_what_goes_wrong_after_the_finish_reason_does_no_harm(server, llm, tail):
    server.on(PATH, server.raw(HEAD + framed(chunk("Hello", "stop")), *tail))
    completion = await llm.complete(ASK, deadline=Deadline.after(30))
    assert (completion.text, completion.finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize(
    ("error", "message", "retryable"),
    [
        ({"error": {"message": "CUDA out of memory", "code": 500}}, "model: HTTP 500: CUDA out of memory", True),
        ({"error": {"message": "too long", "code": 400}}, "model: HTTP 400: too long", False),
        ({"error": "engine died"}, "model: reported an error: engine died", True),
        ({"error": {"message": "odd", "code": "invalid_x"}}, "model: reported an error: odd", True),
        ({"object": "error", "message": "flat", "code": 503}, "model: HTTP 503: flat", True),
        ({"detail": "FastAPI"}, "model: reported an error: FastAPI", True),
        (b"event: error\ndata: plain words\n\n", "model: reported an error: plain words", True),
        (b"data: {oops\n\n", "model: sent what is no JSON: {oops", True),
        (b"data: [1]\n\n", "model: sent what is no completion: [1]", True),
        (b'data: {"choices": 7}\n\n', 'model: sent what is no completion: {"choices": 7}', True),
        (b'data: {"choices": [7]}\n\n', 'model: sent what is no completion: {"choices": [7]}', True),
        (chunk({"a": 1}), None, True),
        (chunk(7), None, True),
    ],
)
async def test_errors_inside_a_stream_are_errors(server, llm, error, message, retryable):
    server.on(PATH, server.sse(chunk("Hel"), error, "[DONE]"))
    text, caught = await until_error(llm)
    assert (text, caught.retryable, len(server.seen)) == ("Hel", retryable, 1)
    assert caught.message == (message or caught.message)


async def test_an_endless_line_is_an_error_and_aborts_the_request(server, llm):
    server.on(PATH, server.hang(HEAD, framed(b"x" * 5_000_000)))
    text, error = await until_error(llm)
    assert (text, error.message) == ("", "model: sent a line of more than 4194304 bytes")
    await server.aborted.wait()


async def test_an_error_in_a_whole_json_answer_is_an_error(server, llm):
    server.on(PATH, server.json({"error": {"message": "no", "code": 404}}), server.body(b'{"choices": [{"mess'))
    assert (await failure(llm)).message == "model: HTTP 404: no"
    assert (await failure(llm)).message.startswith("model: sent what is no JSON")


# --- time and aborts


async def test_silence_between_chunks_ends_at_the_idle_timeout(server, upstream):
    server.on(PATH, server.hang(HEAD, framed(chunk("Hel"))))
    text, error = await until_error(LLM(upstream, "qwen", idle_timeout=0.2))
    assert (text, error.message, error.retryable) == ("Hel", "model: timed out after 0.2 s", True)
    await server.aborted.wait()


async def test_silence_before_the_first_byte_ends_at_the_idle_timeout(server, upstream):
    server.on(PATH, server.hang(HEAD))
    assert "timed out" in (await failure(LLM(upstream, "qwen", idle_timeout=0.2))).message
    await server.aborted.wait()


async def test_the_deadline_ends_a_stream(server, llm):
    server.on(PATH, server.hang(HEAD, framed(chunk("Hel"))))
    with pytest.raises(DeadlineExceeded):
        await collect(llm, deadline=Deadline.after(0.2))
    await server.aborted.wait()


async def test_a_tail_that_never_comes_does_not_hold_up_an_answer(server, llm, monkeypatch):
    monkeypatch.setattr("handler_core.clients.llm._TAIL_TIMEOUT", 0.05)
    monkeypatch.setattr("handler_core.clients.response._DRAIN_TIMEOUT", 0.05)
    whole = framed(chunk("Hello", "stop"))
    server.on(PATH, server.hang(HEAD, whole), server.hang(HEAD, whole, framed(b"[DONE]")))
    for _ in range(2):
        assert (await llm.complete(ASK, deadline=Deadline.after(30))).text == "Hello"
        await server.aborted.wait()
        server.aborted.clear()


async def test_leaving_the_loop_early_aborts_the_request(server, llm):
    server.on(PATH, server.hang(HEAD, framed(chunk("Hel"))))
    async for _ in llm.stream(ASK, deadline=Deadline.never()):
        break
    await server.aborted.wait()


async def test_closing_the_iterator_early_aborts_the_request(server, llm):
    server.on(PATH, server.hang(HEAD, framed(chunk("Hel"))))
    async with aclosing(llm.stream(ASK, deadline=Deadline.never())) as stream:
        assert await anext(stream) == Delta("Hel")
    await server.aborted.wait()


@pytest.mark.parametrize("start", [b"", HEAD, HEAD + framed(chunk("Hel"))])
async def test_cancelling_the_reader_aborts_the_request(server, llm, start):
    arrived = asyncio.Event()

    async def answer(request):
        arrived.set()
        return await server.hang(start)(request)

    server.on(PATH, answer)
    task = asyncio.create_task(collect(llm, deadline=Deadline.never()))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.aborted.wait()


# --- circuit breaker and metrics


async def test_a_stream_is_observed_once_when_it_ends(server, session):
    outcomes: list[str] = []
    upstream = Upstream(session, "m", server.url, observe=lambda name, seconds, outcome: outcomes.append(outcome))
    llm = LLM(upstream, "qwen")
    server.on(PATH, server.sse(*ANSWER, "[DONE]"), server.sse({"error": "no"}), server.hang(HEAD, framed(chunk("Hel"))))
    await collect(llm)
    await failure(llm)
    async with aclosing(llm.stream(ASK, deadline=Deadline.never())) as stream:
        await anext(stream)
        assert outcomes == ["ok", "invalid"]
    assert outcomes == ["ok", "invalid", "canceled"]


async def test_the_first_bytes_of_a_stream_close_the_circuit(server, session):
    upstream = Upstream(session, "m", server.url, breaker=CircuitBreaker(failures=1, cool_down=0))
    upstream.breaker.failed("down")
    server.on(PATH, server.hang(HEAD, framed(chunk("Hel"))))
    async with aclosing(LLM(upstream, "qwen").stream(ASK, deadline=Deadline.never())) as stream:
        await anext(stream)
        assert not upstream.breaker.is_open


# --- any partition


SAMPLE = b"".join(
    b"data: " + json.dumps(item, ensure_ascii=False).encode() + ending
    for item, ending in zip(
        [chunk("Hé"), chunk("", reasoning="h😀"), chunk("😀!"), chunk(None, "stop"), {"choices": [], "usage": USAGE}],
        [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\n", b"\n\n"],
        strict=True,
    )
)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, len(SAMPLE)), max_size=20), whole=st.booleans())
def test_an_answer_cut_anywhere_reads_the_same(cuts, whole):
    body = SAMPLE + b"data: [DONE]\n\n"
    if whole:
        body = json.dumps(
            {
                "choices": [{"message": {"content": "Hé😀!", "reasoning": "h😀"}, "finish_reason": "stop"}],
                "usage": USAGE,
            }
        ).encode()
    borders = [0, *sorted(cuts), len(body)]
    reader = CompletionReader(Failures("model", []))
    deltas = [d for a, b in pairwise(borders) if b > a for d in reader.feed(body[a:b])]
    if not reader.done:
        deltas += reader.end()
    assert "".join(delta.text for delta in deltas) == "Hé😀!"
    assert "".join(delta.reasoning for delta in deltas) == "h😀"
    assert reader.last() == Delta(finish_reason="stop", usage=Usage(**USAGE))
