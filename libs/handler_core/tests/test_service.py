"""A service's life: what it declares, how it starts, what it does when NATS is away, and how it ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import nats.errors as nats_errors
import pytest

from handler_core.codec import encode
from handler_core.config import ServiceSettings
from handler_core.connection import BadSubject
from handler_core.context import Context
from handler_core.contract.base import Message, Request, Token
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.jetstream import Api
from handler_core.runtime import Runtime
from handler_core.service import ConnectionLost, Service
from handler_core.streams import CHAT_HANDLER, DLQ, Consumer, Stream, apply
from handler_core.testing import NatsServer, free_port, nats_server, serving, until

NUMBERS = Stream("NUMBERS", ("numbers",), retention="workqueue", max_bytes=1 << 20, max_age=3600)
ADDER = Consumer("NUMBERS", "adder")


class Number(Message):
    value: int
    request_id: Token | None = None


def settings_for(server: NatsServer, **given: Any) -> ServiceSettings:
    return ServiceSettings(**{"nats_url": server.url, "health_host": "127.0.0.1", "health_port": 0, **given})


# -- declaring


async def test_a_typed_handler_consumes_and_a_misfit_is_a_dead_letter(api: Api, nats: NatsServer) -> None:
    await apply(api, [NUMBERS, DLQ], [ADDER])
    service = Service("adder", ServiceSettings)
    got: list[Any] = []

    @service.lifespan
    async def clients(settings: ServiceSettings, runtime: Runtime) -> AsyncIterator[list[Any]]:
        yield got

    @service.consumes(ADDER)
    async def add(number: Number, ctx: Context[list[Any]]) -> None:
        ctx.clients.append((number.value, ctx.request_id, ctx.attempt, ctx.message.subject))

    async with serving(service, settings_for(nats)) as runtime:
        await api.publish("numbers", encode(Number(value=7, request_id="q1")), {})
        await api.publish("numbers", b"{}", {})
        await api.publish("numbers", encode(Number(value=8)), {})
        await until(lambda: len(got) == 2, "both numbers are handled")
        assert got == [(7, "q1", 1, "numbers"), (8, "", 1, "numbers")]
        await until(lambda: "handler_messages_settled_total" in runtime.metrics.render(), "it is counted")

        async def letter() -> bool:
            found = await api.last("DLQ", "dlq.NUMBERS.adder")
            return found is not None and found.headers["Dead-Letter-Type"] == "validation_error"

        await until(letter, "the misfit is a dead letter")

        async def empty() -> bool:
            return bool((await api.request("STREAM.INFO.NUMBERS"))["state"]["messages"] == 0)

        await until(empty, "the queue is empty")


async def test_a_handler_publishes_within_the_trace(api: Api, nats: NatsServer) -> None:
    await apply(api, [NUMBERS, DLQ], [ADDER])
    service = Service("adder", ServiceSettings)
    refused = asyncio.Event()

    @service.consumes(ADDER)
    async def add(number: Number, ctx: Context[None]) -> None:
        with contextlib.suppress(BadSubject):
            await ctx.publish("sum.*", number)
            raise AssertionError("published to a wildcard")
        refused.set()
        await ctx.publish("sum", Number(value=number.value + 1))

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with serving(service, settings_for(nats)) as runtime:
        heard = await runtime.nc.subscribe("sum")
        await api.publish("numbers", encode(Number(value=1)), {"traceparent": trace, "tracestate": "a=b"})
        message = await heard.next_msg(timeout=20)
    assert message.headers == {"traceparent": trace, "tracestate": "a=b"}
    assert message.data == encode(Number(value=2))
    assert refused.is_set()


def test_a_handler_without_a_message_type_is_an_error_where_it_is_declared() -> None:
    service = Service("sample", ServiceSettings)

    async def untyped(message, ctx: Context[None]) -> None: ...  # type: ignore[no-untyped-def]

    async def plain(message: dict[str, Any], ctx: Context[None]) -> None: ...

    async def no_request(message: Number, ctx: Context[None]) -> None: ...

    async def second(message, other: Number) -> None: ...  # type: ignore[no-untyped-def]

    async def nothing() -> Number:
        return Number(value=1)

    unfit: list[Any] = [untyped, plain, second, nothing]
    for handler in unfit:
        with pytest.raises(TypeError, match=f"^{handler.__name__}: its first .* a Message or Delivery model$"):
            service.consumes(ADDER)(handler)
    unfit = [untyped, no_request]
    for handler in unfit:
        with pytest.raises(TypeError, match=f"^{handler.__name__}: its first parameter .* a Request model$"):
            service.answers(CHAT_HANDLER, CHAT)(handler)


def test_a_handler_stays_the_function_that_it_was() -> None:
    service = Service("sample", ServiceSettings)

    async def chat(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        return ChatResponse(response=request.query)

    async def generic(request: Request, ctx: Context[None]) -> None: ...

    assert service.answers(CHAT_HANDLER, CHAT)(chat) is chat
    assert service.consumes(ADDER)(generic) is generic


def test_a_lifespan_that_is_no_generator_is_an_error_where_it_is_declared() -> None:
    async def clients(settings: ServiceSettings, runtime: Runtime) -> None: ...

    with pytest.raises(TypeError, match=r"^clients: a lifespan has to be an async generator function$"):
        Service("sample", ServiceSettings).lifespan(clients)  # type: ignore[arg-type]


# -- starting and ending


async def probe(port: int, path: str) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, (await response.json())["checks"]


@contextlib.asynccontextmanager
async def running(service: Service[ServiceSettings], settings: ServiceSettings) -> AsyncIterator[asyncio.Event]:
    """The service, started but not waited for, with its health server up."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(service.run(settings, stop))

        async def listening() -> bool:
            assert not task.done()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", settings.health_port)
                writer.close()
                await writer.wait_closed()
                return True
            return False

        await until(listening, "health listens")
        try:
            yield stop
        finally:
            stop.set()


async def test_everything_closes_in_the_opposite_order(nats: NatsServer) -> None:
    service, order = Service("sample", ServiceSettings), []

    @service.lifespan
    async def clients(settings: ServiceSettings, runtime: Runtime) -> AsyncIterator[None]:
        order.append("built" if runtime.nc.is_connected else "too early")
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(order.append, "first client closed")
            stack.callback(order.append, "second client closed")
            yield
            order.append("still connected" if runtime.nc.is_connected else "too late")

    async with serving(service, settings_for(nats)) as runtime:
        assert order == ["built"]
    assert order == ["built", "still connected", "second client closed", "first client closed"]
    assert runtime.nc.is_closed


async def test_ready_only_between_start_and_drain(api: Api, nats: NatsServer) -> None:
    await apply(api, [NUMBERS, DLQ], [ADDER])
    service, build, finish = Service("sample", ServiceSettings), asyncio.Event(), asyncio.Event()
    working = asyncio.Event()

    @service.lifespan
    async def clients(settings: ServiceSettings, runtime: Runtime) -> AsyncIterator[None]:
        await build.wait()
        yield

    @service.consumes(ADDER)
    async def work(number: Number, ctx: Context[None]) -> None:
        working.set()
        await finish.wait()

    port = free_port()

    async def ready() -> bool:
        return (await probe(port, "/readyz"))[0] == 200

    async def connected() -> bool:
        return (await probe(port, "/readyz"))[1]["nats"] == "ok"

    async with running(service, settings_for(nats, health_port=port)) as stop:
        await until(connected, "NATS is connected")
        assert await probe(port, "/readyz") == (503, {"service": "starting", "nats": "ok"})
        build.set()
        await until(ready, "it is ready")
        assert await probe(port, "/readyz") == (200, {"nats": "ok", "consumer NUMBERS/adder": "ok"})
        await api.publish("numbers", encode(Number(value=1)), {})
        await working.wait()
        stop.set()

        async def draining() -> bool:
            return "draining" in (await probe(port, "/readyz"))[1]

        await until(draining, "it drains")
        assert (await probe(port, "/readyz"))[0] == 503
        assert (await probe(port, "/livez"))[0] == 200
        finish.set()


async def test_endpoints_can_be_off_so_that_none_has_to_stay_for_them(api: Api, nats: NatsServer) -> None:
    await apply(api, [NUMBERS, DLQ], [ADDER])
    service, got = Service("adder", ServiceSettings), asyncio.Event()

    @service.consumes(ADDER)
    async def add(number: Number, ctx: Context[None]) -> None:
        got.set()

    @service.replies("ask", "sums.ask", "sums.user.{user}.ask", response=ChatResponse)
    async def ask(request: ChatRequest, ctx: Context[None]) -> ChatResponse:
        return ChatResponse(response="1")

    assert (service.consumers, service.subjects) == ((ADDER,), ("sums.ask", "sums.user.*.ask"))
    for served in (True, False):
        async with serving(service, settings_for(nats, serve_endpoints=served)) as runtime:
            got.clear()
            await api.publish("numbers", encode(Number(value=1)), {})
            await got.wait()
            if served:
                assert (await runtime.nc.request("sums.ask", encode(ChatRequest(query="?")), 5)).data
            else:
                with pytest.raises(nats_errors.NoRespondersError):
                    await runtime.nc.request("sums.ask", encode(ChatRequest(query="?")), 5)


async def test_a_missing_consumer_makes_it_not_ready_but_leaves_it_alive(api: Api, nats: NatsServer) -> None:
    service = Service("sample", ServiceSettings)

    @service.consumes(ADDER)
    async def work(number: Number, ctx: Context[None]) -> None: ...

    port = free_port()

    async def problem() -> str:
        return (await probe(port, "/readyz"))[1].get("consumer NUMBERS/adder", "")

    async with running(service, settings_for(nats, health_port=port)):

        async def missing() -> bool:
            return "missing" in await problem()

        await until(missing, "the missing stream is named")
        assert (await probe(port, "/livez"))[0] == 200
        await apply(api, [NUMBERS, DLQ], [ADDER])

        async def bound() -> bool:
            return await problem() == "ok"

        await until(bound, "it is bound as soon as the consumer is there")


async def test_a_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    service, server, port = Service("sample", ServiceSettings), NatsServer(tmp_path), free_port()
    async with running(service, settings_for(server, health_port=port)):
        assert await probe(port, "/readyz") == (503, {"service": "starting", "nats": "not connected"})
        assert (await probe(port, "/livez"))[0] == 200
        server.start()
        try:

            async def ready() -> bool:
                return (await probe(port, "/readyz"))[0] == 200

            await until(ready, "it is ready")
            server.kill()

            async def cut_off() -> bool:
                return (await probe(port, "/readyz")) == (503, {"nats": "not connected"})

            await until(cut_off, "the loss shows")
            assert (await probe(port, "/livez"))[0] == 200
            server.start()
            await until(ready, "it is ready again")
        finally:
            server.kill()


async def test_stopping_does_not_wait_for_a_server_that_is_not_there(tmp_path: Path) -> None:
    async with running(
        Service("sample", ServiceSettings), settings_for(NatsServer(tmp_path), health_port=free_port())
    ) as stop:
        stop.set()


async def test_stopping_does_not_wait_for_a_lifespan_that_does_not_end(nats: NatsServer) -> None:
    service, entered, left = Service("sample", ServiceSettings), asyncio.Event(), []

    @service.lifespan
    async def clients(settings: ServiceSettings, runtime: Runtime) -> AsyncIterator[None]:
        try:
            entered.set()
            await asyncio.Event().wait()
            yield
        finally:
            left.append(runtime.nc.is_connected)

    async with running(service, settings_for(nats, health_port=free_port())) as stop:
        await entered.wait()
        stop.set()
    assert left == [True]


@pytest.mark.parametrize("error", [RuntimeError("no model"), TimeoutError("milvus"), OSError("refused")])
async def test_an_exception_in_the_lifespan_ends_the_service_with_it(nats: NatsServer, error: Exception) -> None:
    service = Service("sample", ServiceSettings)
    connections: list[Runtime] = []

    @service.lifespan
    async def clients(settings: ServiceSettings, runtime: Runtime) -> AsyncIterator[None]:
        connections.append(runtime)
        raise error
        yield

    with pytest.raises(type(error)) as caught:
        await service.run(settings_for(nats), asyncio.Event())
    assert caught.value is error
    assert connections[0].nc.is_closed


async def test_a_connection_closed_for_good_ends_the_service_with_an_error(nats: NatsServer) -> None:
    service = Service("sample", ServiceSettings)
    started: asyncio.Future[Runtime] = asyncio.get_running_loop().create_future()

    async def close() -> None:
        await (await started).nc.close()

    closing = asyncio.ensure_future(close())
    with pytest.raises(ConnectionLost, match="NATS closed the connection"):
        await service.run(settings_for(nats), asyncio.Event(), started=started)
    await closing


# -- as a process

PROGRAM = """
import asyncio, sys
from handler_core.config import ServiceSettings
from handler_core.service import Service
service = Service("sample", ServiceSettings)

@service.lifespan
async def clients(settings, runtime):
    if "fail" in sys.argv:
        raise RuntimeError("the model is missing")
    if "hang" in sys.argv:
        print("hanging", flush=True)
        await asyncio.Event().wait()
    yield
    print("closed", flush=True)

service.main([])
"""


@contextlib.contextmanager
def process(url: str, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    variables = {
        "PATH": os.environ["PATH"],
        "NATS_URL": url,
        "HEALTH_HOST": "127.0.0.1",
        "HEALTH_PORT": "0",
        **environment,
    }
    running = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=variables, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def logged_until(running: "subprocess.Popen[str]", event: str) -> list[dict[str, Any]]:
    """The log's lines up to an event."""
    assert running.stderr is not None
    entries = []
    for line in running.stderr:
        entries.append(json.loads(line))
        if entries[-1]["event"] == event:
            return entries
    raise AssertionError(f"ended without {event}: {entries}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(nats: NatsServer, number: signal.Signals) -> None:
    with process(nats.url) as running:
        (entry,) = logged_until(running, "service_started")
        assert entry["service"] == "sample"
        assert entry["health_port"] > 0
        running.send_signal(number)
        out, errors = running.communicate(timeout=30)
    assert running.returncode == 0
    assert out == "closed\n"
    assert [json.loads(line)["event"] for line in errors.splitlines()] == ["service_draining", "service_stopped"]


def test_a_signal_ends_a_process_that_waits_for_nats() -> None:
    with process(f"nats://127.0.0.1:{free_port()}") as running:
        logged_until(running, "nats_unreachable")
        running.terminate()
        _, errors = running.communicate(timeout=30)
    assert (running.returncode, errors) == (0, "")


def test_a_signal_ends_a_process_whose_lifespan_hangs(nats: NatsServer) -> None:
    with process(nats.url, "hang") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "hanging\n"
        running.terminate()
        out, errors = running.communicate(timeout=30)
    assert (running.returncode, out, errors) == (0, "", "")


def test_an_exception_in_the_lifespan_is_logged_in_one_line_and_ends_the_process(nats: NatsServer) -> None:
    with process(nats.url, "fail") as running:
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 1
    (line,) = errors.splitlines()
    assert json.loads(line)["event"] == "service_failed"
    assert json.loads(line)["exception"].endswith("RuntimeError: the model is missing")


def test_a_taken_health_port_is_named_and_ends_the_process(nats: NatsServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with process(nats.url, HEALTH_PORT=str(port)) as running:
            _, errors = running.communicate(timeout=30)
    assert running.returncode == 1
    (line,) = errors.splitlines()
    assert str(port) in json.loads(line)["error"]
    assert "address already in use" in json.loads(line)["error"]


def test_a_wrong_password_is_told_in_a_clear_line() -> None:
    with (
        nats_server("--user", "bob", "--pass", "right") as server,
        process(server.url, NATS_USER="bob", NATS_PASSWORD="HUSH") as running,
    ):
        (entry,) = logged_until(running, "nats_unreachable")
        assert "Authorization Violation" in entry["error"]
        assert entry["url"] == server.url
        running.terminate()
        out, errors = running.communicate(timeout=30)
    assert "HUSH" not in out + errors + str(entry)
