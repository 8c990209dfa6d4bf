"""`handlers pipeline run`, `watch` and `cancel`: a run triggered, followed to its end, stopped."""

import asyncio
import contextlib
import json as json_module
import uuid
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import typer
from rich.markup import escape

from handler_core.codec import encode, unpack, validate
from handler_core.connection import Connection
from handler_core.contract.base import Request
from handler_core.contract.control import CancelRequest
from handler_core.contract.pipeline import PipelineStatus, RunStatus, TriggerRequest
from handler_core.errors import Busy, HandlerError, InvalidRequest, NotFound, Transient
from handler_core.jetstream import MSG_ID, Api, JetStreamError
from handler_core.pipelines import accepted, catalogue, latest, statuses, trigger
from handler_core.streams import AI_PIPELINE, AI_PIPELINE_STATUS, PIPELINE_BRIDGE
from handler_core.tasks import background
from handlers_cli import waiting
from handlers_cli.answer_view import complain_of
from handlers_cli.cancel import send
from handlers_cli.pipeline_catalogue import find, warn
from handlers_cli.pipeline_parameters import given, guessed, loaded, typed
from handlers_cli.pipeline_view import RunView
from handlers_cli.plain import age, printable
from handlers_cli.session import connected, err, interactive, out, say_error
from handlers_cli.settings import CliSettings

WAIT = 5.0
"""Seconds to wait for NATS."""
LIST_WAIT = 2.0
"""Seconds to wait for the catalogue, without which a run can be triggered all the same."""
LOOK_FOR = 2.0
"""Seconds in which the queue is searched for a run's trigger."""


@dataclass(frozen=True)
class Options:
    """What to run, and what to show of it."""

    parameters: list[str]
    """`key=value` each."""
    file: str | None = None
    """A JSON object of parameters; `-` is stdin."""
    watch: bool = True
    timeout: float | None = None
    """Seconds that the run may take."""
    request_id: str | None = None
    user: str | None = None
    json: bool = False


async def run_pipeline(config: CliSettings, name: str, options: Options) -> None:
    """Trigger a run, and watch it to its end; exits 1 unless it succeeds. Interrupted, it leaves the run going on."""
    pairs, file = given(options.parameters), loaded(options.file)
    request = validate(
        {
            "request_id": options.request_id or uuid.uuid4().hex,
            "user_id": options.user,
            "deadline_ms": None if options.timeout is None else int(options.timeout * 1000),
            "pipeline": name,
        },
        TriggerRequest,
    )
    async with connected(config, WAIT) as nc:
        # An id that was given may have been used: nothing would be run once more.
        before = await _before(nc, options.request_id, name) if options.request_id else None
        if before is None:
            parameters = await _parameters(nc, name, file, pairs, options.user)
            await _trigger(nc, request.model_copy(update={"parameters": parameters}), options.user)
        request_id = request.request_id or ""
        if not options.watch:
            print(json_module.dumps({"request_id": request_id, "pipeline": name}) if options.json else request_id)
            return
        if interactive() or not options.json:
            err.print(f"[dim]request {request_id}[/]")
        final = await _followed(nc, request_id, json=options.json)
    if final.status is not RunStatus.SUCCEEDED:
        raise typer.Exit(1)


async def _before(nc: Connection, request_id: str, name: str) -> PipelineStatus | None:
    """What is known of an earlier run of this id.

    Raises:
        InvalidRequest: it was another pipeline's.
    """
    if (status := await latest(Api(nc), request_id)) is None:
        return None
    if status.pipeline not in ("", name):
        raise InvalidRequest(f"--request-id {request_id}: is that of a run of {printable(status.pipeline)}")
    err.print(f"{request_id} was triggered before ({status.status}); nothing is run once more", markup=False)
    return status


async def _parameters(
    nc: Connection, name: str, file: dict[str, Any], pairs: dict[str, str], user: str | None
) -> dict[str, Any]:
    """The parameters as the catalogue types them, or as they look where nobody tells it.

    Raises:
        NotFound: there is no such pipeline.
        InvalidRequest: as `typed`.
    """
    try:
        response = await catalogue(nc, user, timeout=LIST_WAIT)
    except HandlerError as error:
        if not error.retryable:
            raise
        guess = "; values that are JSON are sent as such, others as text" if pairs else ""
        err.print(f"[yellow]the parameters are not checked[/]: {escape(printable(error.message))}{guess}")
        return guessed(file, pairs)
    found = find(response, name)
    warn(response)
    return typed(found, file, pairs)


async def _trigger(nc: Connection, request: TriggerRequest, user: str | None) -> None:
    try:
        encode(request)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"parameters: cannot be sent: {error}") from None
    try:
        await trigger(Api(nc), request, user)
    except Busy as error:
        complain_of(error)
        raise typer.Exit(1) from None
    except Transient as error:
        raise Transient(f"{error.message}. Have the streams been applied (handlers streams apply)?") from None


async def watch(config: CliSettings, request_id: str, *, json: bool) -> None:
    """Show a run from its first status to its end; exits 1 unless it succeeds, or when nobody knows it."""
    validate({"request_id": request_id}, Request)
    async with connected(config, WAIT) as nc:
        queued, last = await _known(nc, request_id)
        if last is None and queued is False:
            kept = age(AI_PIPELINE_STATUS.max_age)
            nothing = f"no trigger of it waits, and no status is stored (they are kept for {kept})"
            raise NotFound(f"no run of {request_id} is known: {nothing}")
        if last is not None and not last.status.final and queued is False:
            raise NotFound(f"nobody follows {request_id} any more: it was {last.status}, and its trigger is gone")
        final = await _followed(nc, request_id, json=json)
    if final.status is not RunStatus.SUCCEEDED:
        raise typer.Exit(1)


async def cancel_run(config: CliSettings, request_id: str, reason: str, *, wait: bool) -> None:
    """Have a run stopped; with `wait`, watch it until it is. Exits 1 when it had ended, or ends otherwise."""
    validate({"request_id": request_id, "reason": reason}, CancelRequest)
    async with connected(config, WAIT) as nc:
        queued, last = await _known(nc, request_id)
        if last is not None and last.status.final:
            out.print(f"{request_id} has {_ended(last)} before; nothing to cancel", markup=False)
            raise typer.Exit(1)
        await send(Api(nc), request_id, reason)
        if last is None and queued is False:
            text = "no run of this id is known; it is canceled when it comes, for a day"
            out.print(f"{request_id}: {text}", markup=False)
            return
        if not wait:
            out.print(f"{request_id}: the cancel is stored; to see it end: {_again(request_id)}", markup=False)
            return
        final = await _followed(nc, request_id, json=False, canceled=True)
    if final.status is not RunStatus.CANCELED:
        raise typer.Exit(1)


def _ended(status: PipelineStatus) -> str:
    return {RunStatus.CANCELED: "been canceled", RunStatus.ERROR: "ended with an error"}.get(
        status.status, status.status.value
    )


def _again(request_id: str) -> str:
    return f"handlers pipeline watch {request_id}"


async def _known(nc: Connection, request_id: str) -> tuple[bool | None, PipelineStatus | None]:
    """Whether a run's trigger is in the queue, None where that does not matter or would take too long to find out, and
    the run's newest status.

    The queue is looked at first: a trigger leaves it after the final status is stored.
    """
    api, queued = Api(nc), None
    if (last := await latest(api, request_id)) is not None and last.status.final:
        return None, last
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_FOR):
            queued = await _queued(api, request_id)
    return queued, await latest(api, request_id)


async def _queued(api: Api, request_id: str) -> bool:
    sequence = 1
    while (message := await api.next(AI_PIPELINE.name, ">", sequence)) is not None:
        sequence, named = message.sequence + 1, message.headers.get(MSG_ID)
        with contextlib.suppress(HandlerError):
            named = unpack(message.data).get("request_id") or named
        if named == request_id:
            return True
    return False


async def _followed(nc: Connection, request_id: str, *, json: bool, canceled: bool = False) -> PipelineStatus:
    """Show a run until it has ended; returns its final status."""
    began = asyncio.Event()
    view = RunView(json=json, wanted=RunStatus.CANCELED if canceled else RunStatus.SUCCEEDED)
    with _going_on(request_id, canceled=canceled):
        async with background(_explain(nc, request_id, began)), aclosing(statuses(nc, request_id)) as items:
            with view:
                async for status in items:
                    began.set()
                    view.show(status)
    view.end()
    if view.last is None:
        raise AssertionError("unreachable")
    return view.last


@contextlib.contextmanager
def _going_on(request_id: str, *, canceled: bool) -> Iterator[None]:
    """Say on Ctrl-C what becomes of the run."""
    try:
        yield
    except asyncio.CancelledError:
        stop = "" if canceled else f"\n  stop it:  handlers pipeline cancel {request_id}"
        text = f"{'the cancel is stored' if canceled else 'the run goes on'}\n  watch it: {_again(request_id)}{stop}"
        err.print(text, markup=False)
        raise


async def _explain(nc: Connection, request_id: str, began: asyncio.Event) -> None:
    """Unless there is a status within a moment, say on stderr why."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(waiting.PATIENCE):
            await began.wait()
            return
    api = Api(nc)
    try:
        info = await api.request(f"CONSUMER.INFO.{AI_PIPELINE.name}.{PIPELINE_BRIDGE.name}")
        taken = await accepted(api, request_id)
    except (HandlerError, JetStreamError) as error:
        say_error(f"no status yet, and why cannot be looked up: {error}")
        return
    err.print(_reason(taken, info["num_waiting"], info["num_pending"], info["num_ack_pending"]), markup=False)


def _reason(taken: bool, pulls: int, queued: int, followed: int) -> str:
    if not pulls:
        full = f", or is it full? {followed} are followed" if followed else "?"
        return f"no pipeline_bridge takes triggers: is one running{full} It waits until one does"
    if taken:
        return "a pipeline_bridge has decided what to run, but the engine has not taken it yet; it goes on trying"
    if queued:
        return f"{queued} triggers wait for a pipeline_bridge, which follows {followed}"
    return "a pipeline_bridge has the trigger, but has not decided yet what to run: can it read its catalogue?"
