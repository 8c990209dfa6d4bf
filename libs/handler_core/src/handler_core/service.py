"""A service: settings, a lifespan, and consumers and endpoints bound to typed handlers.

service = Service("chat_handler", Settings)

@service.lifespan
async def clients(settings: Settings, runtime: Runtime) -> AsyncIterator[Clients]:
    async with new_session() as session:
        yield Clients(session, …)

@service.replies("ask", "ai.chat.ask", ChatResponse)
@service.answers(streams.CHAT_HANDLER, CHAT)
async def chat(request: ChatRequest, ctx: Context[Clients]) -> AsyncIterator[str | ChatResponse]:
    yield "Hello"
    yield ChatResponse(response="Hello")

if __name__ == "__main__":
    service.main()
"""

import argparse
import asyncio
import contextlib
import inspect
import signal
import sys
import typing
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from handler_core import codec, logs, openssl
from handler_core.config import ServiceSettings, SettingsError, load_or_exit, printable
from handler_core.connection import Connection, connect
from handler_core.consumer import PullConsumer
from handler_core.context import Context
from handler_core.contract.answer import Family, Response
from handler_core.contract.base import Message, Request
from handler_core.delivery import Delivery
from handler_core.generation import Generation
from handler_core.health import Check, Health, ended
from handler_core.lifecycle import SETTLED_AFTER, Stopped, close, interrupted_by, reaping, spare_the_collector
from handler_core.limits import Limits
from handler_core.messaging import served, traced
from handler_core.runtime import Runner, Runtime
from handler_core.streams import Consumer, Stream
from handler_core.tasks import loop_factory
from handler_core.telemetry import Metrics, current
from handler_core.turn import Turn
from handler_core.workers import Process, Refuse

log = structlog.get_logger("handler_core.service")

S = TypeVar("S", bound=ServiceSettings)
C = TypeVar("C")
H = TypeVar("H", bound=Callable[..., Any])

Lifespan = Callable[[S, Runtime], AsyncIterator[Any]]
LimitsFor = Callable[[S], Limits]
_Bind = Callable[[Runtime, Any, Limits], tuple[Process, Refuse | None]]


@dataclass
class _Binding(Generic[S]):
    consumer: Consumer
    limits: LimitsFor[S]
    bind: _Bind


@dataclass
class _Endpoint(Generic[S]):
    name: str
    subjects: tuple[str, ...]
    request: type[Request]
    response: type[Response]
    limits: LimitsFor[S]
    handler: Callable[..., Any]


@dataclass
class Service(Generic[S]):
    """What a service declares; `main` runs it as a process, `run` within one.

    Args:
        name: the process's name in NATS, logs and metrics.
        settings: read once, at the start.
    """

    name: str
    settings: type[S]
    version: str = "0.1.0"
    description: str = ""
    """What `nats micro info` and other tools show."""
    reads: tuple[Stream, ...] = ()
    """Streams that it reads messages of one by one, besides what follows from its consumers and endpoints: with
    `publishes` and `subscribes` what its permissions in NATS are derived from."""
    publishes: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    uvloop: bool = True
    """Whether it runs on uvloop where that is installed: up to a fourth more messages a second through a handler that
    does little, nothing where models are waited for. It takes 2.6 MiB; 9 where nothing is encrypted, for it needs
    OpenSSL."""
    _endpoints: list[_Endpoint[S]] = field(default_factory=list, init=False)
    _bindings: list[_Binding[S]] = field(default_factory=list, init=False)
    _lifespan: Lifespan[S] | None = field(default=None, init=False)

    # -- what is declared

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The consumers that it works off."""
        return tuple(binding.consumer for binding in self._bindings)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of its request/reply endpoints, as NATS takes them: `*` where one names the user."""
        return tuple(subject.replace("{user}", "*") for each in self._endpoints for subject in each.subjects)

    # -- declaring

    def lifespan(self, function: Lifespan[S]) -> Lifespan[S]:
        """Build what handlers need: an async generator that yields it once, as `ctx.clients`, and cleans up after."""
        if not inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__name__}: a lifespan has to be an async generator function")
        self._lifespan = function
        return function

    def consumes(self, consumer: Consumer, limits: LimitsFor[S] | None = None) -> Callable[[H], H]:
        """Bind `async def handler(message: Model, ctx: Context) -> None` to a consumer.

        The model is the handler's first annotation. A message that does not fit it is dead-lettered. A handler whose
        annotation is `Delivery` is given the message as it came.
        """

        def bind(handler: H) -> H:
            model = _first_annotation(handler, Message, Delivery)

            def make(runtime: Runtime, clients: Any, _: Limits) -> tuple[Process, None]:
                return _typed(runtime.nc, clients, model, handler), None

            self._bindings.append(_Binding(consumer, limits or (lambda _: Limits()), make))
            return handler

        return bind

    def answers(self, consumer: Consumer, family: Family[Any], limits: LimitsFor[S] | None = None) -> Callable[[H], H]:
        """Bind a handler that answers a family's requests; see `generation.TurnHandler` for its two forms."""

        def bind(handler: H) -> H:
            model = _first_annotation(handler, Request)

            def make(runtime: Runtime, clients: Any, limits: Limits) -> tuple[Process, Refuse]:
                generation = Generation(runtime.nc, clients, model, handler)
                turn = Turn(runtime.nc, family, generation, limits, runtime.cancellations, runtime.fairness)
                return turn.process, turn.refuse

            self._bindings.append(_Binding(consumer, limits or (lambda _: Limits()), make))
            return handler

        return bind

    def replies(
        self, name: str, *subjects: str, response: type[Response], limits: LimitsFor[S] | None = None
    ) -> Callable[[H], H]:
        """Bind a handler, of the same two forms, to request/reply: core NATS, one whole response for each request.

        Args:
            name: the endpoint's, in `nats micro info` and the metrics.
            subjects: at least one; `{user}` stands for the user that a subject `ai.{family}.user.{user}.…` names.
            response: what the handler returns, and what an error is sent as.
            limits: `max_in_flight`, `handler_timeout` and `max_per_user` count.
        """

        def bind(handler: H) -> H:
            model = _first_annotation(handler, Request)
            self._endpoints.append(_Endpoint(name, subjects, model, response, limits or (lambda _: Limits()), handler))
            return handler

        return bind

    # -- running

    def main(self, argv: list[str] | None = None) -> None:
        """Run as a process until SIGTERM or SIGINT; a wrong setting or a lost connection ends it with an error."""
        argv = sys.argv[1:] if argv is None else argv
        print_config = bool(argv) and self._parsed(argv).print_config  # a parser takes half a megabyte
        settings = load_or_exit(self.settings)
        if print_config:
            print(printable(settings))
            return
        if not (self.uvloop or settings.encrypted):
            openssl.leave_out()
        logs.configure(settings, self.name)
        with asyncio.Runner(loop_factory=loop_factory() if self.uvloop else None) as runner:
            sys.exit(runner.run(self._run_process(settings)))

    def _parsed(self, argv: list[str]) -> argparse.Namespace:
        parser = argparse.ArgumentParser(prog=f"python -m {self.name}", description=f"The {self.name} service.")
        parser.add_argument("--print-config", action="store_true", help="show the effective settings and exit")
        return parser.parse_args(argv)

    async def _run_process(self, settings: S) -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupted(number: int) -> None:
            stop.set()
            loop.remove_signal_handler(number)  # a second one ends the process at once

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, interrupted, number)
        loop.call_later(SETTLED_AFTER, spare_the_collector)
        try:
            async with reaping():
                await self.run(settings, stop)
        except (ConnectionLost, SettingsError, OSError) as error:
            log.error("service_failed", error=str(error))
            return 1
        except Exception:
            log.exception("service_failed")
            return 1
        return 0

    async def run(self, settings: S, stop: asyncio.Event, *, started: asyncio.Future[Runtime] | None = None) -> None:
        """Serve until `stop` is set, then drain, in this order: not ready; pull no more and hand back what waits;
        finish what runs, for `drain_timeout` at most; close what the lifespan built; flush and close the connection.

        Args:
            started: resolved once everything is built and consumers are being bound.

        Raises:
            ConnectionLost: NATS closed the connection for good.
            OSError: the health port is taken.
        """
        metrics = Metrics()
        health = Health(metrics)
        lost = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            health.ready["service"] = lambda: "starting"
            port = await health.start(settings.health_host, settings.health_port)
            stack.push_async_callback(health.stop)
            try:
                async with interrupted_by(stop):
                    runtime, clients = await self._build(stack, settings, health, metrics, lost)
            except Stopped:
                return
            runners = self._runners(runtime, clients, settings)
            for name, runner in runners.items():
                health.ready[name] = _problem(runner)
            del health.ready["service"]
            log.info("service_started", health_port=port, serves=list(runners))
            if started is not None:
                started.set_result(runtime)
            await self._serve(runners, runtime, settings, stop, lost)
            if lost.is_set() and not stop.is_set():
                raise ConnectionLost("NATS closed the connection")
        log.info("service_stopped")

    async def _build(
        self, stack: contextlib.AsyncExitStack, settings: S, health: Health, metrics: Metrics, lost: asyncio.Event
    ) -> tuple[Runtime, Any]:
        """Connect and run the lifespan's first half; `stack` closes all in the opposite order."""
        tracer = None
        if settings.telemetry_on:
            from handler_core.otlp import exporting  # imports OpenTelemetry

            tracer = (await stack.enter_async_context(exporting(settings, self.name, metrics))).tracer
        health.ready["nats"] = lambda: "not connected"
        nc = await connect(settings, self.name, on_closed=lost.set)
        stack.push_async_callback(close, nc)
        health.ready["nats"] = lambda: "" if nc.is_connected else "not connected"
        health.alive["nats"] = lambda: "closed" if nc.is_closed else ""
        runtime = Runtime(nc, metrics, health, tracer)
        if self._lifespan is None:
            return runtime, None
        lifespan = contextlib.asynccontextmanager(self._lifespan)(settings, runtime)
        return runtime, await stack.enter_async_context(lifespan)

    def _runners(self, runtime: Runtime, clients: Any, settings: S) -> dict[str, Runner]:
        """What serves, by the name of its health check."""
        runners: dict[str, Runner] = {}
        for binding in self._bindings:
            consumer = self._consumer(binding, runtime, clients, settings)
            runners[f"consumer {consumer.name}"] = consumer
        if self._endpoints and settings.serve_endpoints:
            runners["endpoints"] = self._requests(runtime, clients, settings)
        return runners

    def _consumer(self, binding: _Binding[S], runtime: Runtime, clients: Any, settings: S) -> PullConsumer:
        limits = binding.limits(settings)
        process, refuse = binding.bind(runtime, clients, limits)
        if runtime.tracer is not None:
            process = traced(runtime.tracer, binding.consumer, process)
        return PullConsumer(runtime.nc, binding.consumer, process, limits, refuse=refuse, metrics=runtime.metrics)

    def _requests(self, runtime: Runtime, clients: Any, settings: S) -> Runner:
        from handler_core.endpoint import EndpointConfig, Endpoints
        from handler_core.reply import Reply

        endpoints = Endpoints(
            runtime.nc, self.name, version=self.version, description=self.description, metrics=runtime.metrics
        )
        for endpoint in self._endpoints:
            limits = endpoint.limits(settings)
            generation: Generation[Any, Any, Any] = Generation(runtime.nc, clients, endpoint.request, endpoint.handler)
            reply = Reply(endpoint.response, generation, limits, runtime.cancellations, runtime.fairness)
            process = reply.process if runtime.tracer is None else served(runtime.tracer, reply.process)
            for subject in endpoint.subjects:
                config = EndpointConfig(
                    f"{endpoint.name}-user" if "{user}" in subject else endpoint.name,
                    subject.replace("{user}", "*"),
                    endpoint.request,
                    endpoint.response,
                    max_in_flight=limits.max_in_flight,
                    handler_timeout=limits.handler_timeout,
                )
                endpoints.add(config, process)
        return endpoints

    async def _serve(
        self, named: dict[str, Runner], runtime: Runtime, settings: S, stop: asyncio.Event, lost: asyncio.Event
    ) -> None:
        health, runners = runtime.health, list(named.values())
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(runtime.cancellations.run())
            running = [tasks.create_task(runner.run()) for runner in runners]
            for name, task in zip(named, running, strict=True):
                health.alive[name] = ended(task)
            ends = [tasks.create_task(event.wait()) for event in (stop, lost)]
            await asyncio.wait([*ends, *running], return_when=asyncio.FIRST_COMPLETED)
            health.ready["draining"] = lambda: "stopping"
            in_flight = sum(runner.in_flight for runner in runners)
            log.info("service_draining", in_flight=in_flight, limit=settings.drain_timeout)
            for runner in runners:
                runner.stop()
            if running:
                _, late = await asyncio.wait(running, timeout=settings.drain_timeout if not lost.is_set() else 0)
                if late:
                    log.warning("drain_cut_short", in_flight=sum(runner.in_flight for runner in runners))
            for unfinished in (*ends, *running, listening):
                unfinished.cancel()


class ConnectionLost(Exception):
    """NATS ended the connection and will not have it back; a fresh process may."""


def _typed(
    nc: Connection, clients: Any, model: type[Message | Delivery], handler: Callable[..., Awaitable[None]]
) -> Process:
    async def process(delivery: Delivery) -> None:
        message = delivery if issubclass(model, Delivery) else codec.decode(delivery.data, model)
        ctx = Context(nc, clients, delivery, getattr(message, "request_id", None) or "")
        current.set(ctx)
        await handler(message, ctx)

    return process


def _first_annotation(handler: Callable[..., Any], *bases: type[Any]) -> type[Any]:
    parameter = next(iter(inspect.signature(handler).parameters), "")
    first = inspect.get_annotations(handler).get(parameter)
    if isinstance(first, str):
        first = typing.get_type_hints(handler)[parameter]
    if not (isinstance(first, type) and issubclass(first, bases)):
        kinds = " or ".join(base.__name__ for base in bases)
        raise TypeError(f"{handler.__name__}: its first parameter has to be annotated with a {kinds} model")
    return first


def _problem(runner: Runner) -> Check:
    return lambda: runner.problem
