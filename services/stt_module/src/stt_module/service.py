"""Listens to live sessions: audio → voice activity → utterances → transcripts, interrupts, turns.

Holding a session's ticket means owning the session; `docs/stt.md` shows how a session passes from worker to worker.
"""

import contextlib
import math
import time
from collections.abc import AsyncIterator

from handler_core import streams, upstreams
from handler_core.clients.http import new_session
from handler_core.codec import encode
from handler_core.context import Context
from handler_core.contract.base import is_token
from handler_core.contract.stt import TranscriptEvent
from handler_core.delivery import Delivery
from handler_core.errors import HandlerError, InvalidRequest
from handler_core.jetstream import MSG_ID, Api, JetStreamError
from handler_core.limits import Limits
from handler_core.runtime import Runtime
from handler_core.service import Service
from handler_core.tasks import background
from stt_module.events import Events, subject_of
from stt_module.meters import Meters
from stt_module.opening import opening
from stt_module.session import Session
from stt_module.settings import Settings
from stt_module.tickets import LostTickets, WaitingRoom, give_back, session_of
from stt_module.transcription import Transcriber
from stt_module.worker import Worker

service = Service(
    "stt_module",
    Settings,
    description="Listens to live sessions, and tells what is said in them.",
    uvloop=False,  # it waits for speech, not for messages
    reads=(streams.AI_STT, streams.AI_STT_SESSIONS, streams.AI_EVENTS),
    publishes=(
        "evt.voice.transcription.*",
        "ai.voice.session.*",  # tickets
        "ai.voice.request",  # turns
        "ai.voice.user.*.request",
        "$JS.API.STREAM.INFO.AI_STT",  # which sessions have audio, and which a ticket
        "$JS.API.STREAM.INFO.AI_STT_SESSIONS",
        "$JS.API.CONSUMER.CREATE.AI_STT.*.ai.voice.stream.*",  # the ordered consumer of one session's audio
        "$JS.API.CONSUMER.DELETE.AI_STT.*",
        "$JS.FC.AI_STT.>",
    ),
    subscribes=("ai.voice.session.*",),
)


def limits(settings: Settings) -> Limits:
    return Limits(
        max_in_flight=settings.max_sessions,
        handler_timeout=math.inf,  # a session lasts as long as somebody speaks
        hands_over=True,
        max_deliveries=2**31,  # each is a takeover; `opening` leaves out what workers die of
        retry_max=5.0,  # somebody is speaking
    )


@service.lifespan
async def worker(settings: Settings, runtime: Runtime) -> AsyncIterator[Worker]:
    async with new_session() as http:
        transcriber = Transcriber(upstreams.stt(http, settings, runtime.metrics), settings.stt_concurrency)
        worker = Worker(runtime.nc, settings, transcriber, Meters(runtime.metrics))
        runtime.metrics.gauge("handler_stt_sessions", "Sessions listened to.", lambda: worker.sessions)
        waiting, lost = WaitingRoom(runtime.nc).run(worker.full), LostTickets(runtime.nc).run()
        async with background(waiting), background(lost):
            yield worker


# Quoted, as a Worker has asyncio imported, and asyncio OpenSSL, before the settings tell whether it is needed.
@service.consumes(streams.STT_MODULE, limits)
async def listen(ticket: Delivery, ctx: "Context[Worker]") -> None:
    worker, name = ctx.clients, session_of(ticket)
    if not is_token(name):
        await _refuse(worker, name)
        return
    with worker.holding_a_ticket():
        async with worker.owning(name):
            await _listen(worker, ticket, ctx, name)


async def _listen(worker: Worker, ticket: Delivery, ctx: Context[Worker], name: str) -> None:
    events = Events(
        worker.nc, name, attempt=ctx.attempt, trace_id=ctx.trace_id, trace_headers=lambda: ctx.trace_headers
    )
    # Until nothing is left: only what comes in the very moment in which it is given back needs another ticket.
    while (begin := await opening(worker.nc, events)).event is not None:
        if begin.checkpoint.takeovers:
            worker.meters.resumed.value += 1
        await Session(worker, events, begin.checkpoint).run(begin.event)
    await give_back(worker.nc, ticket, name, begin.checkpoint.start_sequence)


async def _refuse(worker: Worker, name: str) -> None:
    """Tell whoever chose the name of a session that it cannot be one; once in a while, for every chunk comes here."""
    error = InvalidRequest("session: the last token of the subject has to match [A-Za-z0-9_-]{1,64}", stage="decode")
    event = TranscriptEvent(type="error", error=error.info(), timestamp=time.time())
    with contextlib.suppress(HandlerError, JetStreamError):
        await Api(worker.nc).publish(subject_of(name), encode(event), {MSG_ID: f"refused:{name}"})
