"""`handlers listen`: audio to a live session at the pace of speech, and what is said in it as it is understood."""

import asyncio
import json as json_module
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from handler_core.audio import PcmFormat
from handler_core.client import attach
from handler_core.codec import decode, validate
from handler_core.connection import Connection
from handler_core.contract.errors import ErrorType
from handler_core.contract.stt import TRANSCRIPTION_SUBJECT, StreamMessage, TranscriptEvent
from handler_core.contract.voice import VOICE, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.errors import InvalidRequest
from handler_core.streams import STT_MODULE
from handler_core.tasks import background
from handlers_cli.answer_view import print_error
from handlers_cli.cancel import take_back
from handlers_cli.feed import Feed
from handlers_cli.outbox import Outbox
from handlers_cli.plain import printable
from handlers_cli.resample import SPEECH_RATE, for_speech
from handlers_cli.session import connected, err, interactive, out, say_error
from handlers_cli.settings import CliSettings
from handlers_cli.sound import Output, Player, Silence, Speaker, microphone
from handlers_cli.source import Pcm, opened
from handlers_cli.transcripts import Transcripts
from handlers_cli.voice_answer import SpokenAnswer
from handlers_cli.waiting import explain

LAST_WORDS = 5.0
"""Seconds in which an interrupted session may still say what it has heard."""


@dataclass(frozen=True)
class Options:
    """Where the audio comes from, and what becomes of it."""

    place: str | None
    """A file, `-` for stdin, None for the microphone."""
    rate: int | None
    channels: int | None
    chunk_ms: int
    fast: bool
    partials: bool | None
    json: bool
    respond: bool
    play: bool
    answers: Path | None
    """A folder for the answers' audio."""
    timeout: float
    """Seconds after the audio's end until the session has to have ended, and for each answer."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of `SessionConfig`, and `session_id`."""
    turn: dict[str, Any] = field(default_factory=dict)
    """Fields of `VoiceRequest`, with `respond`."""


async def listen(config: CliSettings, options: Options) -> None:
    """Stream audio and print what comes; exits 1 when nothing could be transcribed, or a turn failed."""
    start, session = session_start(options)
    if options.answers is not None and not options.answers.is_dir():
        raise InvalidRequest(f"--answers {options.answers}: there is no such folder")
    output: Output = Speaker() if options.play else Silence()
    async with AsyncExitStack() as stack:
        source = microphone(options.chunk_ms / 1000) if options.place is None else _opened(options, options.place)
        pcm = await stack.enter_async_context(source)
        nc = await stack.enter_async_context(connected(config, 5.0))
        feed = await stack.enter_async_context(Feed(nc, TRANSCRIPTION_SUBJECT.format(session=session)))
        if interactive():
            err.print(f"[dim]session {session}[/]")
        live = LiveSession(nc, feed, session, start, options, output)
        with live.transcripts.shown():
            await live.run(pcm)
    live.conclude()


def _opened(options: Options, place: str) -> Any:
    return opened(place, options.rate, options.channels)


def session_start(options: Options) -> tuple[StreamMessage, str]:
    """The session's first message, but for what the audio decides, and its id, made when none is given.

    Raises:
        InvalidRequest: names the option that is wrong.
    """
    given = {name: value for name, value in options.config.items() if value is not None}
    turn = {name: value for name, value in options.turn.items() if value is not None}
    # The fields of the turns are looked at here, where somebody reads the complaint; and the session is one of its ids.
    asked = {"session_id": given.pop("session_id", None) or f"cli-{uuid.uuid4().hex[:16]}", "text": "?"}
    session = validate({**asked, **turn}, VoiceRequest).session_id or ""
    partials = out.is_terminal if options.partials is None else options.partials
    made = {"type": "start", "partials": partials, "turn": turn if options.respond else None}
    return validate({**made, **given}, StreamMessage), session


async def chunks(pcm: Pcm, milliseconds: int) -> AsyncIterator[bytes]:
    """The audio as a session takes it (see `for_speech`), in pieces of so many milliseconds, and what is left."""
    converter = for_speech(pcm.format)
    size = max(1, converter.format.sample_rate * milliseconds // 1000) * converter.format.frame_size
    waiting = bytearray()
    async for piece in pcm.pieces:
        waiting += converter.feed(piece)
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    waiting += converter.feed(b"", last=True)
    for place in range(0, len(waiting), size):
        yield bytes(waiting[place : place + size])


class LiveSession:
    """One session of this client: what it sends, what it hears, and the turns that follow from it."""

    def __init__(
        self, nc: Connection, feed: Feed, session: str, start: StreamMessage, options: Options, output: Output
    ) -> None:
        self.transcripts = Transcripts(json=options.json, partials=options.partials is True)
        self._nc = nc
        self._feed = feed
        self._start = start
        self._options = options
        self._outbox = Outbox(nc, session)
        self._player = Player(output, self._tell)
        self._began = asyncio.Event()
        self._turns: set[str] = set()
        self._failed = 0
        self._format = PcmFormat(SPEECH_RATE)

    async def run(self, pcm: Pcm) -> None:
        """Send all of it, and take what comes until the session and its turns are over."""
        self._format = for_speech(pcm.format).format
        self._start = self._start.model_copy(update={"sample_rate": self._format.sample_rate})
        self._outbox.put(self._start)
        try:
            async with background(explain(self._nc, STT_MODULE, self._began)), background(self._player.run()):
                await self._run(pcm)
                if self._options.play:
                    await self._player.finished()
        except asyncio.CancelledError:
            await self._last_words()
            raise

    async def _run(self, pcm: Pcm) -> None:
        ended = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._outbox.run())
                tasks.create_task(self._events(tasks, ended))
                await self._send(pcm)
                try:
                    async with asyncio.timeout(self._options.timeout):
                        await ended.wait()
                except TimeoutError:
                    say_error(f"the session has not ended {self._options.timeout:g} s after its audio")
                    raise typer.Exit(1) from None
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    # -- what is sent

    async def _send(self, pcm: Pcm) -> None:
        """Chunks at the pace of speech, or as fast as they are stored; then `end`."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        async for chunk in chunks(pcm, self._options.chunk_ms):
            if self._options.fast:
                await self._outbox.drained()
            elif not pcm.paced:
                due += self._format.seconds(len(chunk))
                await asyncio.sleep(due - loop.time())  # a chunk is there once it has been spoken
            self._outbox.put(chunk)
        self._outbox.put(StreamMessage(type="end"))

    def _tell(self, playing: bool) -> None:
        self._outbox.put(StreamMessage(type="state_change", state="responding" if playing else "listening"))

    # -- what comes

    async def _events(self, tasks: asyncio.TaskGroup, ended: asyncio.Event) -> None:
        while not ended.is_set():
            event = decode((await self._feed.next()).data, TranscriptEvent)
            self._began.set()
            self.transcripts.take(event)
            if event.type == "interrupt":
                self._player.stop()
            elif event.type == "transcript" and event.is_final and event.request_id and self._options.respond:
                self._turns.add(event.request_id)
                tasks.create_task(self._answer(event.request_id))
            elif event.status == "ended" and event.type == "error":
                raise typer.Exit(1)  # which has been told
            elif event.status == "ended" and event.reason == "end":
                ended.set()
            elif event.status == "ended" and not self._outbox.closed:
                # Our audio did not reach it for so long that it ended: what comes now begins another one.
                self._outbox.put(self._start)

    async def _answer(self, request_id: str) -> None:
        folder = self._options.answers
        answer = SpokenAnswer(request_id, self._player, None if folder is None else str(folder / f"{request_id}.wav"))
        try:
            async with asyncio.timeout(self._options.timeout), aclosing(attach(self._nc, VOICE, request_id)) as items:
                async for item in items:
                    if isinstance(item, VoiceResponse):
                        await answer.end(item)
                        self._print(item, answer)
                    elif isinstance(item, VoiceEvent) and item.type == "audio":
                        await answer.take(item)
        except TimeoutError:
            self._failed += 1
            self._player.end(request_id)
            say_error(f"no answer to {request_id} within {self._options.timeout:g} s; is a voice_assistant running?")
        self._turns.discard(request_id)

    def _print(self, response: VoiceResponse, answer: SpokenAnswer) -> None:
        canceled = response.error is not None and response.error.type is ErrorType.CANCELED
        self._failed += response.error is not None and not canceled
        if self._options.json:
            record = response.model_dump(mode="json", exclude_none=True, exclude={"audio"})
            written = {"output": answer.output} if answer.written else {}
            print(json_module.dumps({"type": "answer", **record, **written}), flush=True)
        elif response.error is None:
            out.print(f"[bold cyan]<[/] {printable(response.response)}")
        elif not canceled:
            print_error(response.error)

    # -- the end

    async def _last_words(self) -> None:
        """Interrupted: end the session as it should be, and print what it has heard."""
        self._outbox.put(StreamMessage(type="end"))
        try:
            async with asyncio.timeout(LAST_WORDS), background(self._outbox.run()):
                await self._outbox.drained()
                ended = not self._began.is_set()
                while not ended:
                    event = decode((await self._feed.next()).data, TranscriptEvent)
                    self.transcripts.take(event)
                    ended = event.status == "ended"
        except TimeoutError:
            err.print("the session did not say that it had ended")
        for request_id in self._turns:
            await take_back(self._nc, request_id)

    def conclude(self) -> None:
        """Say what there was not; exits 1 when that, or a turn, is an error."""
        if self.transcripts.finals == 0:
            if self.transcripts.errors:
                say_error("nothing could be transcribed")
                raise typer.Exit(1)
            err.print("nothing was said")
        if self._failed:
            raise typer.Exit(1)
