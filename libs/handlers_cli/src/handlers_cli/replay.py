"""`handlers dlq replay`: a dead letter's message once more into the stream that it came from.

The message is published and acknowledged before its letter is deleted, so a replay that is broken off loses nothing
and may only come twice; its `Nats-Msg-Id` is made of the letter, by which the stream drops a second one within its
duplicate window.
"""

import uuid
from dataclasses import dataclass
from typing import Any

import msgpack
import typer
from rich.markup import escape

from handler_core.answer import SOURCE
from handler_core.codec import unpack, validate
from handler_core.connection import Connection
from handler_core.contract.base import Request
from handler_core.errors import HandlerError, Transient
from handler_core.jetstream import MSG_ID, Api, JetStreamError
from handler_core.pipelines import latest
from handler_core.streams import AI_EVENTS, AI_PIPELINE, AI_PIPELINE_STATUS, STREAM_NOT_FOUND
from handlers_cli.letter_view import WAIT
from handlers_cli.letters import Letter, delete, read
from handlers_cli.plain import age, printable
from handlers_cli.progress import progress
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings


class CannotReplay(Exception):
    """This letter cannot be replayed, or should not be as it is."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay."""

    new_id: bool = False
    """Give the request a fresh `request_id`."""
    keep: bool = False
    """Leave the letter in `DLQ`."""
    dry_run: bool = False
    """Check everything, publish and delete nothing."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a replay publishes."""

    subject: str
    data: bytes
    headers: dict[str, str]
    request_id: str | None
    """Where the body has a valid one."""


def original(letter: Letter, *, new_id: bool = False) -> Message:
    """The message that a letter keeps: its body and its own headers, to be stored once.

    Raises:
        CannotReplay: it is not whole, does not say where it came from, or has no place for a new id.
    """
    if letter.full_size:
        raise CannotReplay(f"only {letter.size:,} of its {printable(letter.full_size)} bytes were kept")
    if not letter.original_subject:
        raise CannotReplay("it does not say on which subject it was published (Dead-Letter-Subject)")
    data, request_id = letter.data, _request_id(letter.data)
    name = f"replay:{letter.headers.get(MSG_ID, letter.subject)}:{letter.sequence}"
    if new_id:
        request_id = uuid.uuid4().hex
        data = _with_id(letter.data, request_id)
        name += ":new"  # or it would be dropped after a replay under the old id
    return Message(letter.original_subject, data, {**letter.original_headers, MSG_ID: name}, request_id)


def _request_id(data: bytes) -> str | None:
    try:
        return validate({"request_id": unpack(data).get("request_id")}, Request).request_id
    except HandlerError:
        return None


def _with_id(data: bytes, request_id: str) -> bytes:
    try:
        body: Any = msgpack.unpackb(data, unicode_errors="surrogateescape", strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise CannotReplay("its body is no MessagePack map, so that --new-id has no request_id to change")
    return bytes(msgpack.packb({**body, "request_id": request_id}, unicode_errors="surrogateescape"))


async def refuse_answered(api: Api, letter: Letter, request_id: str) -> None:
    """Raise when a final answer is stored under this id: a worker would acknowledge the replay without effect.

    Raises:
        CannotReplay: it is, with what to do about it.
    """
    try:
        if letter.stream == AI_PIPELINE.name:
            await _refuse_ended(api, request_id)
            return
        answer = await api.next(AI_EVENTS.name, f"evt.*.response.{request_id}", 1)
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return
        raise
    if answer is None:
        return
    about = letter.headers
    mine = f"{letter.stream}:{about.get('Dead-Letter-Sequence')}:"
    if answer.headers.get(SOURCE, mine).startswith(mine):
        raise CannotReplay(
            f"its request {request_id} has been answered (with the error, as a rule), and for {age(AI_EVENTS.max_age)} "
            "from then on workers acknowledge it without effect; wait until then, or use --new-id"
        )
    raise CannotReplay(
        f"its request {request_id} has been answered since, perhaps after an earlier replay; "
        "purge the letter, or use --new-id to have it answered again"
    )


async def _refuse_ended(api: Api, request_id: str) -> None:
    """`refuse_answered` for the trigger of a run."""
    status = await latest(api, request_id)
    if status is not None and status.status.final:
        kept = age(AI_PIPELINE_STATUS.max_age)
        raise CannotReplay(
            f"the run of its request {request_id} has ended ({status.status}), and for {kept} from then on its "
            "trigger is acknowledged without effect; use --new-id to have it run"
        )


async def replay_one(api: Api, sequence: int, options: Options) -> str:
    """Replay a letter; returns what was done, for people.

    Raises:
        CannotReplay, NotFound: nothing was published.
        JetStreamError, HandlerError: it was not stored, or its letter not deleted; the letter is still there.
    """
    letter = await read(api, sequence)
    message = original(letter, new_id=options.new_id)
    if message.request_id is not None and not options.new_id:
        await refuse_answered(api, letter, message.request_id)
    if options.dry_run:
        return f"would replay {sequence} to {message.subject}, {len(message.data):,} bytes"
    stored = await api.store(message.subject, message.data, message.headers)
    place = f"{stored.stream} {stored.sequence}"
    said = f"replayed {sequence} to {message.subject}: {place}"
    if stored.duplicate:
        said = f"replayed {sequence} before, and not again: {place}"
    elif options.new_id:
        said += f", request_id {message.request_id}"
    if not options.keep:
        try:
            await delete(api, sequence)
        except (JetStreamError, HandlerError) as error:
            raise CannotReplay(f"replayed as {place}, but the letter could not be deleted: {error}") from None
    return said


async def replay(config: CliSettings, sequences: list[int], options: Options) -> None:
    """Replay letters, oldest first; one that fails does not stop the others, and makes the exit code 1."""
    done, failed = 0, 0
    async with connected(config, WAIT) as nc:
        api = Api(nc)
        try:
            with progress("replaying", len(sequences)) as advance:
                for sequence in sequences:
                    try:
                        said = await replay_one(api, sequence, options)
                    except (CannotReplay, JetStreamError, HandlerError) as error:
                        failed += 1
                        err.print(f"[bold red]failed[/] {sequence}: {escape(printable(str(error)))}")
                        _stop_if_lost(nc)
                    else:
                        done += 1
                        out.print(printable(said), markup=False)
                    advance()
        finally:
            _summary(len(sequences), done, failed, options)
    if failed:
        raise typer.Exit(1)


def _stop_if_lost(nc: Connection) -> None:
    if not nc.is_connected:
        raise Transient("the connection to NATS is lost; what is left stays in DLQ")


def _summary(count: int, done: int, failed: int, options: Options) -> None:
    if count == 1:
        return
    left = count - done - failed
    verb = "can be replayed" if options.dry_run else "replayed"
    out.print(f"{done} {verb}, {failed} failed" + (f", {left} not tried" if left else ""))
