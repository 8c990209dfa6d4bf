import asyncio
import gzip
import json
import socket
import time
from email.utils import formatdate
from typing import Any

import aiohttp
import pytest

from handler_core.clients.breaker import CircuitBreaker
from handler_core.clients.failures import UpstreamError, retry_after
from handler_core.clients.http import Backoff, Upstream
from handler_core.deadline import Deadline
from handler_core.errors import DeadlineExceeded, DownstreamUnavailable, HandlerError

SOON = Backoff(initial=0.001, maximum=0.01, jitter=0.001)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n"


def deadline() -> Deadline:
    return Deadline.after(30)


async def post(upstream: Upstream, **options: Any) -> Any:
    return await upstream.post_json("/v1/x", {"a": 1}, deadline=options.pop("deadline", deadline()), **options)


async def failure(upstream: Upstream, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await post(upstream, **options)
    return caught.value


# --- addresses and headers


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/x"),
        ("/", "/v1/x"),
        ("/v1", "/v1/x"),
        ("/v1/", "/v1/x"),
        ("/llm", "/llm/v1/x"),
        ("/llm/", "/llm/v1/x"),
        ("/a/llm/v1/", "/a/llm/v1/x"),
    ],
)
async def test_base_url_may_have_a_prefix_and_may_end_in_v1(server, session, base, path):
    server.on(path, server.json({"ok": True}))
    assert await post(Upstream(session, "model", server.url + base)) == {"ok": True}


async def test_a_closing_v1_is_left_out_for_paths_that_have_none(server, session):
    server.on("/tei/embed", server.json([]))
    assert await Upstream(session, "model", server.url + "/tei/v1").get_json("/embed", deadline=deadline()) == []


async def test_the_query_of_the_base_url_is_kept(server, session):
    server.on("/v1/x", server.json(1))
    await post(Upstream(session, "model", server.url + "/v1?api-version=2024-10-21"))
    assert server.seen[0].query == "api-version=2024-10-21"


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/", "http://", "//host", "http://host:port", "http://[host"]
)
async def test_a_url_that_is_not_absolute_http_is_refused(session, url):
    with pytest.raises(ValueError, match="embeddings: "):
        Upstream(session, "embeddings", url)


async def test_key_and_trace_headers_are_sent_with_each_attempt(server, session):
    server.on("/v1/x", server.json({}, 503), server.json({}))
    spans = iter(["00-a", "00-b"])
    upstream = Upstream(
        session, "m", server.url, api_key=" sk-1\n", backoff=SOON, headers=lambda: {"traceparent": next(spans)}
    )
    await post(upstream)
    assert [request.headers["traceparent"] for request in server.seen] == ["00-a", "00-b"]
    assert {request.headers["Authorization"] for request in server.seen} == {"Bearer sk-1"}


async def test_a_key_that_would_forge_a_header_is_refused(session):
    with pytest.raises(ValueError, match="API key") as caught:
        Upstream(session, "m", "http://host", api_key="sk-1\r\nX-Evil: 1")
    assert "sk-1" not in str(caught.value)


async def test_user_and_password_in_the_url_become_basic_authorization(server, session):
    server.on("/v1/x", server.json({}))
    await post(Upstream(session, "m", server.url.replace("//", "//ann:pw@")))
    assert server.seen[0].headers["Authorization"] == aiohttp.encode_basic_auth("ann", "pw")


async def test_connections_are_reused(server, upstream):
    server.on("/v1/x", server.json({}))
    for _ in range(3):
        await post(upstream)
    assert len(server.connections) == 1


# --- retries


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_passing_status_is_tried_again(server, upstream, status):
    server.on("/v1/x", server.json({}, status), server.json({}, status), server.json({"ok": 1}))
    assert await post(upstream) == {"ok": 1}
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
async def test_a_refusal_is_final(server, upstream, status):
    server.on("/v1/x", server.json({}, status))
    error = await failure(upstream)
    assert (error.retryable, error.status, len(server.seen)) == (False, status, 1)
    assert f"model: HTTP {status}: " in error.message


async def test_the_last_attempts_error_is_raised(server, upstream):
    server.on("/v1/x", server.json({"detail": "starting"}, 503), server.json({"detail": "still starting"}, 500))
    error = await failure(upstream)
    assert (error.message, error.retryable, len(server.seen)) == ("model: HTTP 500: still starting", True, 3)


@pytest.mark.parametrize("answer", [[], [OK], [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_lost_before_the_body_is_tried_again(server, upstream, answer, reset):
    server.on("/v1/x", server.raw(*answer, reset=reset), server.json({"ok": 1}))
    assert await post(upstream) == {"ok": 1}


@pytest.mark.parametrize(
    "start", [OK + b'{"ok"', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ok"\r\n']
)
async def test_half_a_body_is_a_retryable_error_and_not_tried_again_here(server, upstream, start):
    server.on("/v1/x", server.raw(start))
    error = await failure(upstream)
    assert (error.retryable, error.outcome) == (True, "broken")
    assert len(server.seen) == 1


async def test_a_refused_connection_is_tried_again_then_retryable(session):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcomes: list[str] = []
    upstream = Upstream(
        session,
        "model",
        f"http://127.0.0.1:{port}",
        backoff=SOON,
        observe=lambda name, seconds, outcome: outcomes.append(outcome),
    )
    error = await failure(upstream)
    assert (error.retryable, outcomes) == (True, ["unreachable"] * 3)
    assert str(port) in error.message


async def test_a_host_that_does_not_speak_tls_is_unreachable(server, session):
    error = await failure(Upstream(session, "model", server.url.replace("http:", "https:"), backoff=SOON))
    assert (error.retryable, error.outcome) == (True, "unreachable")


async def test_retry_after_replaces_the_backoff(server, session):
    server.on("/v1/x", server.json({}, 429, Retry_After="0"), server.json({"ok": 1}))
    upstream = Upstream(session, "model", server.url, backoff=Backoff(initial=3600, maximum=3600, jitter=0))
    assert await post(upstream) == {"ok": 1}


@pytest.mark.parametrize("seconds", [20, 3600])
async def test_a_retry_after_that_does_not_fit_is_raised_at_once(server, upstream, seconds):
    server.on("/v1/x", server.json({}, 429, Retry_After=str(seconds)))
    error = await failure(upstream, deadline=Deadline.after(10))
    assert (error.retry_after, len(server.seen)) == (seconds, 1)


async def test_a_retry_after_may_be_a_date(server, upstream):
    server.on("/v1/x", server.json({}, 503, Retry_After=formatdate(time.time() + 3600, usegmt=True)))
    error = await failure(upstream)
    assert error.retry_after == pytest.approx(3600, abs=300)


async def test_a_long_retry_after_is_not_waited_for_without_a_deadline_either(server, upstream):
    server.on("/v1/x", server.json({}, 503, Retry_After="3600"))
    assert (await failure(upstream, deadline=Deadline.never())).retry_after == 3600


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("1e999", None),
        ("-5", 0),
        ("1.5", 1.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after_takes_numbers_and_dates(header, seconds):
    assert retry_after(header) == seconds


async def test_no_wait_goes_past_the_deadline(server, session):
    server.on("/v1/x", server.json({}, 503))
    upstream = Upstream(session, "model", server.url, backoff=Backoff(initial=60, maximum=60))
    error = await failure(upstream)
    assert (error.status, len(server.seen)) == (503, 1)


# --- time


async def test_a_deadline_gone_by_makes_no_request(server, upstream):
    with pytest.raises(DeadlineExceeded):
        await post(upstream, deadline=Deadline.after(-1))
    assert server.seen == []


@pytest.mark.parametrize("start", [b"", OK, OK + b'{"ok"'])
async def test_deadline_and_own_timeout_are_told_apart(server, upstream, start):
    server.on("/v1/x", server.hang(start))
    with pytest.raises(DeadlineExceeded):
        await post(upstream, deadline=Deadline.after(0.2))
    await server.aborted.wait()
    server.aborted.clear()
    error = await failure(upstream, timeout=0.2)
    assert (error.message, error.retryable) == ("model: timed out after 0.2 s", True)
    await server.aborted.wait()
    assert len(server.seen) == 2


async def test_a_body_that_drips_is_bounded_by_the_attempts_timeout(server, upstream):
    async def drip(request):
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while True:
                request.transport.write(b" ")
                await asyncio.sleep(0.005)
        finally:
            server.aborted.set()

    server.on("/v1/x", drip)
    assert (await failure(upstream, timeout=0.2)).outcome == "timeout"
    await server.aborted.wait()


@pytest.mark.parametrize("start", [b"", OK, OK + b'{"ok"', b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n"])
async def test_cancelling_a_call_closes_its_connection(server, upstream, start):
    arrived = asyncio.Event()

    async def answer(request):
        arrived.set()
        return await server.hang(start)(request)

    server.on("/v1/x", answer)
    task = asyncio.create_task(post(upstream))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.aborted.wait()
    assert len(server.seen) == 1


async def test_cancelling_between_attempts_makes_no_more(server, session):
    answered = asyncio.Event()

    def observe(name: str, seconds: float, outcome: str) -> None:
        answered.set()

    server.on("/v1/x", server.json({}, 503))
    upstream = Upstream(session, "m", server.url, backoff=Backoff(initial=20, maximum=20), observe=observe)
    task = asyncio.create_task(post(upstream, deadline=Deadline.never()))
    await answered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(server.seen) == 1


# --- what errors say


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no such model", "type": "x", "param": None, "code": "y"}}, "no such model"),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "too long"),
        ({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, "too long"),
        ({"error": "Model is overloaded", "error_type": "overloaded"}, "Model is overloaded"),
        ({"message": "Input validation error", "code": 422, "type": "Validation"}, "Input validation error"),
        ({"detail": "Not Found"}, "Not Found"),
        (
            {"detail": [{"loc": ["body", "messages", 0], "msg": "Field required", "type": "missing", "input": "x"}]},
            "body.messages.0: Field required",
        ),
        ({"detail": {"error": {"message": "deep"}}}, "deep"),
        ([{"error": {"code": 400, "message": "listed"}}], "listed"),
        ("just text", "just text"),
        ({"error": {}, "message": 7, "detail": None}, "Bad Request"),
        (None, "Bad Request"),
        (7, "Bad Request"),
    ],
)
async def test_the_upstreams_own_message_is_found(server, upstream, body, message):
    server.on("/v1/x", server.json(body, 400))
    assert (await failure(upstream)).message == f"model: HTTP 400: {message}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Bad Request"),
        (b"plain\n words\x00\x1b[31m", "plain words [31m"),
        (
            b"<!doctype html><html><title>500 Oops</title><style>p{}</style><script>x<y</script><p>Sorry&excl;</p>",
            "500 Oops Sorry!",
        ),
        (b"\xff\xfe\x00\xff", "�� �"),
        (b"[" * 100_000, "[" * 299 + "…"),
        (b"<" * 1_000_000, "<" * 299 + "…"),
        (b'{"error": {"message": "\\ud83d half"}}', "half"),
    ],
)
async def test_error_bodies_of_any_kind_become_one_bounded_line(server, upstream, body, message):
    server.on("/v1/x", server.body(body, 400))
    assert (await failure(upstream)).message == f"model: HTTP 400: {message}"


async def test_unknown_statuses_have_no_phrase(server, upstream):
    server.on("/v1/x", server.raw(b"HTTP/1.1 499 \r\nContent-Length: 0\r\n\r\n"))
    assert (await failure(upstream)).message == "model: HTTP 499: no message"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 400 Bad\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\ngarbage",
    ],
)
async def test_a_broken_error_body_does_not_hide_the_status(server, upstream, answer):
    server.on("/v1/x", server.raw(answer))
    assert (await failure(upstream)).status == 400


async def test_an_error_body_that_never_ends_does_not_hide_the_status(server, upstream, monkeypatch):
    monkeypatch.setattr("handler_core.clients.response._ERROR_BODY_TIMEOUT", 0.05)
    server.on("/v1/x", server.hang(b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nWrong\r\n"))
    assert (await failure(upstream)).message == "model: HTTP 400: Wrong"
    await server.aborted.wait()


async def test_a_redirect_is_reported_and_not_followed(server, upstream):
    server.on("/v1/x", server.json({}, 307, Location="/v1/y"))
    error = await failure(upstream)
    assert (error.message, error.retryable) == ("model: HTTP 307: redirects to /v1/y", False)
    assert server.paths() == ["/v1/x"]


@pytest.mark.parametrize("status", [401, 500])
async def test_secrets_that_an_upstream_echoes_are_masked(server, session, status):
    key = "sk-" + "s3cret" * 60
    server.on("/v1/x", server.json({"error": {"message": f"wrong key {key}, I say {key}"}}, status))
    error = await failure(Upstream(session, "m", server.url, api_key=key, backoff=SOON))
    assert error.message == f"m: HTTP {status}: wrong key ***, I say ***"
    assert error.__cause__ is None


async def test_a_password_in_the_url_is_masked_in_errors(server, session):
    server.on("/v1/x", server.body(b"<p>you sent YW5uOmh1bnRlcjI= which is hunter2</p>", 400))
    error = await failure(Upstream(session, "m", server.url.replace("//", "//ann:hunter2@")))
    assert error.message == "m: HTTP 400: you sent *** which is ***"


# --- surprising bodies


@pytest.mark.parametrize(
    "answer",
    [
        (b"",),
        (b"{",),
        (b'{"a": 1',),
        (b"<html><title>It works</title></html>",),
        (b"[" * 200_000,),
        (b"\xff\xfe\xff",),
        (b"7" * 10_000,),
    ],
)
async def test_a_body_that_is_no_json_is_an_error(server, upstream, answer):
    server.on("/v1/x", server.body(*answer))
    error = await failure(upstream)
    assert (error.retryable, error.outcome, len(server.seen)) == (True, "invalid", 1)
    assert "no JSON" in error.message


async def test_compressed_bodies_are_read_and_compressed_garbage_is_an_error(server, upstream):
    whole = gzip.compress(json.dumps({"ok": "x" * 2_000_000}).encode())
    server.on(
        "/v1/x",
        server.body(whole, Content_Encoding="gzip"),
        server.body(whole[: len(whole) // 2], Content_Encoding="gzip"),
        server.body(b"garbage", Content_Encoding="gzip"),
        server.body(whole[:20] + b"garbage" + whole[27:], Content_Encoding="deflate"),
    )
    assert len((await post(upstream))["ok"]) == 2_000_000
    for _ in range(3):
        assert isinstance(await failure(upstream), DownstreamUnavailable)


@pytest.mark.parametrize("headers", [{}, {"Content_Encoding": "gzip"}])
async def test_a_body_larger_than_the_bound_is_refused(server, session, headers):
    large = json.dumps("x" * 3_000_000).encode()
    server.on("/v1/x", server.body(gzip.compress(large) if headers else large, **headers))
    error = await failure(Upstream(session, "model", server.url, max_body=1_000_000))
    assert (error.message, error.retryable) == ("model: answered with more than 1000000 bytes", False)


async def test_an_endless_body_is_refused_at_the_bound(server, session):
    async def endless(request):
        request.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                request.transport.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                await asyncio.sleep(0)
        finally:
            server.aborted.set()

    server.on("/v1/x", endless)
    assert not (await failure(Upstream(session, "model", server.url, max_body=1_000_000))).retryable
    await server.aborted.wait()


VALID = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'7\r\n{"ok": \r\n5\r\n"\xc3\xa9"}\r\n0\r\n\r\n'
)


@pytest.mark.parametrize("junk", [b"", b"\0", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"\xff" * 9000])
async def test_an_answer_cut_anywhere_or_followed_by_junk_never_becomes_a_traceback(server, session, junk):
    upstream = Upstream(session, "model", server.url, attempts=1, breaker=CircuitBreaker(failures=10_000))
    server.on("/v1/x", *(server.raw(VALID[:cut] + junk) for cut in range(len(VALID) + 1)))
    answers = set()
    for _ in range(len(VALID) + 1):
        try:
            answers.add((await post(upstream, timeout=5))["ok"])
        except HandlerError as error:
            answers.add(error.type)
    assert answers <= {"é", "downstream_unavailable"}


# --- circuit breaker and metrics


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_the_circuit_opens_probes_and_closes(server, session):
    clock = Clock()
    outcomes: list[str] = []
    upstream = Upstream(
        session,
        "model",
        server.url,
        attempts=1,
        breaker=CircuitBreaker(failures=2, cool_down=10, clock=clock),
        observe=lambda name, seconds, outcome: outcomes.append(outcome),
    )
    server.on("/v1/x", *[server.json({"detail": "down"}, 503)] * 3, server.json({}))
    await failure(upstream)
    await failure(upstream)
    clock.now += 4
    error = await failure(upstream)
    assert (error.retryable, error.retry_after, len(server.seen)) == (True, 6, 2)
    assert "HTTP 503: down" in error.message
    clock.now += 6
    assert (await failure(upstream)).status == 503  # the probe
    assert (await failure(upstream)).retry_after == 10
    clock.now += 10
    assert await post(upstream) == {}
    assert await post(upstream) == {}
    assert outcomes == ["http_503", "http_503", "circuit_open", "http_503", "circuit_open", "ok", "ok"]


async def test_an_open_circuit_lets_one_probe_through_at_a_time():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cool_down=10, clock=clock)
    breaker.failed("down")
    assert breaker.acquire() == 10
    clock.now += 10
    assert [breaker.acquire(), breaker.acquire()] == [0, 10]
    clock.now += 10
    assert breaker.acquire() == 0  # the first probe never came back
    breaker.succeeded()
    assert [breaker.acquire(), breaker.acquire(), breaker.is_open] == [0, 0, False]


async def test_a_call_stops_retrying_when_its_failures_open_the_circuit(server, session):
    upstream = Upstream(session, "m", server.url, attempts=5, backoff=SOON, breaker=CircuitBreaker(failures=2))
    server.on("/v1/x", server.json({}, 500))
    assert (await failure(upstream)).status == 500
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [400, 404, 429])
async def test_refusals_do_not_open_the_circuit(server, session, status):
    upstream = Upstream(session, "m", server.url, attempts=1, breaker=CircuitBreaker(failures=1))
    server.on("/v1/x", server.json({}, status))
    for _ in range(3):
        assert (await failure(upstream)).status == status


async def test_deadlines_and_cancels_do_not_open_the_circuit(server, session):
    outcomes: list[str] = []
    upstream = Upstream(
        session,
        "m",
        server.url,
        breaker=CircuitBreaker(failures=1),
        observe=lambda name, seconds, outcome: outcomes.append(outcome),
    )
    server.on("/v1/x", server.hang())
    with pytest.raises(DeadlineExceeded):
        await post(upstream, deadline=Deadline.after(0.02))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await post(upstream)
    assert (outcomes, upstream.breaker.is_open) == (["deadline", "canceled"], False)
