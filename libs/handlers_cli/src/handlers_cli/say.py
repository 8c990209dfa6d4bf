"""`handlers say`: a text spoken, its audio written or played as it comes."""

import asyncio
import contextlib
import json as json_module
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import typer

from handler_core.audio import PcmFormat
from handler_core.client import publish
from handler_core.codec import decode, validate
from handler_core.connection import Connection
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.contract.tts import (
    AUDIO_SUBJECT,
    REQUEST_SUBJECT,
    STATUS_SUBJECT,
    AudioChunk,
    SpeakRequest,
    SpeechStatus,
)
from handler_core.errors import Busy, InvalidRequest, Transient
from handler_core.jetstream import Api
from handler_core.streams import TTS_MODULE
from handler_core.tasks import background
from handlers_cli.answer_view import complain_of, print_error
from handlers_cli.ask_trace import Seen
from handlers_cli.cancel import take_back
from handlers_cli.feed import Feed, Item
from handlers_cli.session import connected, err, interactive, out, say_error
from handlers_cli.settings import CliSettings
from handlers_cli.sound import Player, Speaker
from handlers_cli.source import stdin_blocks
from handlers_cli.waiting import explain
from handlers_cli.wav_file import STDOUT, WavFile, check_output, stdout_for_audio

GRACE = 2.0
"""Seconds beyond the deadline in which the module may say that it was missed."""
_AUDIO = AUDIO_SUBJECT.partition("{")[0]
NEXT_STEP = "Is a tts_module running, and have the streams been applied (handlers streams apply)?"


@dataclass(frozen=True)
class Options:
    """What becomes of the audio."""

    output: str | None
    """A path, or `-` for stdout."""
    play: bool
    json: bool
    timeout: float
    verbose: bool


@dataclass
class Speech:
    """A request's audio as it comes."""

    feed: Feed
    request_id: str
    status: SpeechStatus | None = None
    """The latest that was said of it."""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody works on it."""
    _ahead: dict[int, AudioChunk] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status is not None and self.status.status != "started"

    async def chunks(self) -> AsyncGenerator[AudioChunk, None]:
        """The chunks in their order, none twice and none missing; ends when the module says that it has.

        Raises:
            Transient: some of the audio is no longer in the stream.
        """
        following = 0
        while not self.ended:
            self._take(await self.feed.next())
            if self.ended:
                # All was stored before this was said, but two subscriptions keep no order between them.
                for item in await self.feed.stored():
                    self._take(item)
            while (chunk := self._ahead.pop(following, None)) is not None:
                following += 1
                yield chunk
        if self.status is not None and self.status.error is None and following < self.status.chunks:
            raise Transient(f"{self.status.chunks - following} chunks of the audio are no longer stored")

    def _take(self, item: Item) -> None:
        if item.subject.startswith(_AUDIO):
            chunk = decode(item.data, AudioChunk)
            if chunk.request_id == self.request_id:
                self.began.set()
                self._ahead[chunk.chunk_index] = chunk
            return
        status = decode(item.data, SpeechStatus)
        if status.request_id == self.request_id:
            self.began.set()
            self.status = status


def speak_request(fields: dict[str, Any], timeout: float) -> SpeakRequest:
    """A request from the command line's options; its session is one of its own when none is given.

    Raises:
        InvalidRequest: names the option.
    """
    request_id = uuid.uuid4().hex
    given = {name: value for name, value in fields.items() if value is not None}
    made = {"request_id": request_id, "session_id": request_id, "deadline_ms": int(timeout * 1000)}
    return validate({**made, **given}, SpeakRequest)


async def say(config: CliSettings, fields: dict[str, Any], options: Options) -> None:
    """Have a text spoken; exits 1 when it could not be. Interrupted, it cancels the request."""
    if options.output is None and not options.play:
        raise InvalidRequest("-o: where is the audio to go? Give -o FILE, -o - for a pipe, or --play")
    if options.output == STDOUT and options.json:
        raise InvalidRequest("--json: stdout is where the audio goes")
    check_output(options.output)
    if fields["text"] == "-":
        fields = {**fields, "text": await _piped()}
    request = speak_request(fields, options.timeout)
    player = Player(Speaker()) if options.play else None
    with stdout_for_audio(options.output):
        await _say(config, request, options, player)


async def _say(config: CliSettings, request: SpeakRequest, options: Options, player: Player | None) -> None:
    subjects = [subject.format(session=request.session_id) for subject in (AUDIO_SUBJECT, STATUS_SUBJECT)]
    async with connected(config, min(options.timeout, 5.0)) as nc, Feed(nc, *subjects) as feed:
        if options.verbose or interactive():
            err.print(f"[dim]request {request.request_id}[/]")
        speech = Speech(feed, request.request_id or "")
        seen = Seen()
        try:
            async with background(player.run() if player else asyncio.sleep(0)):
                async with asyncio.timeout(options.timeout + GRACE):
                    file = await _spoken(nc, request, speech, options.output, player, seen)
                _report(file, speech, options, seen)
                if player is not None:
                    await player.finished()
        except TimeoutError:
            say_error(f"not spoken within {options.timeout:g} s. {NEXT_STEP}")
            raise typer.Exit(1) from None
        except (asyncio.CancelledError, BrokenPipeError):
            if not speech.ended:
                await take_back(nc, speech.request_id)
            raise
        except Busy as error:
            complain_of(error)
            raise typer.Exit(1) from None


async def _piped() -> str:
    async with aclosing(stdin_blocks()) as blocks:
        data = b"".join([block async for block in blocks])
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("text: what stdin gives is no UTF-8 text") from None


async def _spoken(
    nc: Connection, request: SpeakRequest, speech: Speech, output: str | None, player: Player | None, seen: Seen
) -> WavFile:
    """Ask, and take the audio in as it comes."""
    await publish(Api(nc), REQUEST_SUBJECT.format(session=request.session_id), request)
    seen.mark("stored")
    status = err.status("waiting for the audio") if interactive() else None
    with WavFile(output) as file, status or contextlib.nullcontext():
        async with background(explain(nc, TTS_MODULE, speech.began)), aclosing(speech.chunks()) as chunks:
            async for chunk in chunks:
                if not chunk.audio:
                    continue
                seen.mark("first audio")
                format = PcmFormat(chunk.sample_rate, chunk.width, chunk.channels)
                if player is not None:
                    player.put(speech.request_id, chunk.chunk_index, chunk.audio, format)
                await asyncio.to_thread(file.write, chunk.audio, format)
                if status is not None:
                    status.update(f"{file.seconds:.1f} s of audio")
        if player is not None:
            player.end(speech.request_id)
        if speech.status is not None and speech.status.error is not None:
            _complain(speech.status.error)
            raise typer.Exit(1)
    seen.mark("final")
    return file


def _complain(error: ErrorInfo) -> None:
    print_error(error)
    if error.type is ErrorType.VALIDATION_ERROR and error.message.startswith("speaker"):
        err.print("handlers voices lists those that there are")


def _report(file: WavFile, speech: Speech, options: Options, seen: Seen) -> None:
    status = speech.status
    first, total = seen.marks.get("first audio", 0.0), seen.marks["final"]
    if options.json:
        record = {
            "request_id": speech.request_id,
            "output": options.output,
            "duration_ms": round(file.seconds * 1000, 1),
            "sample_rate": file.format.sample_rate if file.format else None,
            "first_audio_ms": round(first, 1),
            "total_ms": round(total, 1),
            **(status.model_dump(include={"sentences", "chunks", "attempt", "timings", "trace_id"}) if status else {}),
        }
        print(json_module.dumps(record))
        return
    named = f"{options.output}: " if options.output not in (None, STDOUT) else ""
    text = f"{file.seconds:.2f} s of audio, the first after {first / 1000:.2f} s, all after {total / 1000:.2f} s"
    out.print(named + text, markup=False)
