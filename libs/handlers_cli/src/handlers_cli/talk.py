"""`handlers talk`: a spoken question, the answer as it is written, and its audio."""

import asyncio
import json as json_module
import uuid
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import typer

from handler_core.audio import PcmFormat, sniff, wav
from handler_core.client import follow
from handler_core.codec import decode, encode, validate
from handler_core.connection import Connection
from handler_core.contract.voice import (
    ASK_SUBJECT,
    REQUEST_SUBJECT,
    USER_ASK_SUBJECT,
    USER_SUBJECT,
    VOICE,
    VoiceEvent,
    VoiceRequest,
    VoiceResponse,
)
from handler_core.errors import Busy, InvalidRequest, Transient
from handler_core.jetstream import Api
from handler_core.streams import VOICE_ASSISTANT
from handler_core.tasks import background
from handlers_cli.answer_view import complain_of, print_end, print_sources
from handlers_cli.ask_trace import Seen
from handlers_cli.cancel import stored_response, take_back
from handlers_cli.plain import printable
from handlers_cli.record import record
from handlers_cli.resample import for_speech
from handlers_cli.session import connected, err, interactive, out, say_error
from handlers_cli.settings import CliSettings
from handlers_cli.sound import Player, Speaker
from handlers_cli.source import stdin_blocks, wav_of
from handlers_cli.voice_answer import SpokenAnswer, free_name
from handlers_cli.waiting import explain
from handlers_cli.wav_file import STDOUT, check_output, stdout_for_audio

NEXT_STEP = "Is a voice_assistant running, and have the streams been applied (handlers streams apply)?"
GRACE = 2.0
"""Seconds beyond the deadline in which the handler may say that it was missed."""
ENVELOPE = 8192
"""Bytes of a request beside its audio, at most."""
ANSWER = "answer.wav"


@dataclass(frozen=True)
class Options:
    """Where the question comes from, and what becomes of the answer."""

    place: str | None
    """A file, `-` for stdin, None for the microphone."""
    output: str | None
    play: bool
    ask: bool
    json: bool
    trace: bool
    verbose: bool
    timeout: float


async def talk(config: CliSettings, fields: dict[str, Any], options: Options) -> None:
    """Ask by voice and print what comes back; exits 1 when the answer is an error. Interrupted, it cancels the turn."""
    if options.output == STDOUT and options.json:
        raise InvalidRequest("--json: stdout is where the audio goes")
    check_output(options.output)
    player = Player(Speaker()) if options.play else None
    given = {name: value for name, value in fields.items() if value is not None}
    asked = {"request_id": uuid.uuid4().hex, "deadline_ms": int(options.timeout * 1000), **given}
    validate({**asked, "text": "?"}, VoiceRequest)  # before anybody speaks in vain
    with stdout_for_audio(options.output):
        async with connected(config, min(options.timeout, 5.0)) as nc:
            audio, kind = await _question(options.place, nc.payload_room - ENVELOPE)
            request = validate({**asked, "audio": audio, "format": kind}, VoiceRequest)
            if options.verbose or interactive():
                err.print(f"[dim]request {request.request_id}[/]")
            turn = _Turn(nc, request, options, SpokenAnswer(request.request_id or "", player, _output(options)))
            async with background(player.run()) if player else nullcontext():
                response = await turn.run("request_id" in given)
                turn.print(response)
                if player is not None:
                    await player.finished()
    if response.error is not None:
        raise typer.Exit(1)


def _output(options: Options) -> str | None:
    """Where the answer goes; by default beside the question, under a name that is not taken."""
    if options.output is not None or options.play:
        return options.output
    if options.place is None or options.place == "-":
        return str(free_name(Path(ANSWER)))
    question = Path(options.place)
    return str(free_name(question.with_name(f"{question.stem}.{ANSWER}")))


# -- the question


async def _question(place: str | None, room: int) -> tuple[bytes, str]:
    """The question's audio, small enough for one message, and its format."""
    if place is None:
        pcm, format = await record()
        return _small(wav(format, pcm), "the recording", room), "wav"
    if place == "-":
        async with aclosing(stdin_blocks()) as blocks:
            data = b"".join([block async for block in blocks])
    else:
        data = await asyncio.to_thread(Path(place).read_bytes)
    name = "stdin" if place == "-" else place
    kind = sniff(data)
    if kind in {"", "wav"}:
        wav_of(data, name)  # says what is wrong with it
        return _small(data, name, room), "wav"
    if len(data) > room:
        raise InvalidRequest(f"{name}: {len(data):,} bytes of {kind} do not fit into one message of {room:,}")
    return data, kind


def _small(data: bytes, name: str, room: int) -> bytes:
    """The WAV file as it is where it fits, else what speech needs of it.

    Raises:
        InvalidRequest: it is too long.
    """
    if len(data) <= room:
        return data
    source = wav_of(data, name)
    converter = for_speech(source.format)
    smaller = wav(converter.format, converter.feed(source.pcm, last=True))
    if len(smaller) > room:
        seconds, most = source.format.seconds(len(source.pcm)), PcmFormat(converter.format.sample_rate).seconds(room)
        text = f"{name}: {seconds:.0f} s do not fit into one message, which holds {most:.0f} s"
        raise InvalidRequest(f"{text}; handlers listen --respond takes audio of any length")
    return smaller


# -- the answer


class _Turn:
    """One question and what comes back."""

    def __init__(self, nc: Connection, request: VoiceRequest, options: Options, answer: SpokenAnswer) -> None:
        self._nc = nc
        self._request = request
        self._options = options
        self._answer = answer
        self._seen = Seen()
        self._began = asyncio.Event()
        self._shown = False
        self._text = False

    async def run(self, named: bool) -> VoiceResponse:
        """Ask, show what comes, and return the final response, its audio written.

        Args:
            named: the id was given, and may have been used before: nothing would be queued, nor answered once more.
        """
        timeout = self._options.timeout
        try:
            async with asyncio.timeout(timeout + GRACE):
                earlier = await stored_response(Api(self._nc), VOICE, self._request.request_id or "") if named else None
                response = earlier or (await self._replied() if self._options.ask else await self._followed())
            await self._answer.end(response)
        except TimeoutError:
            say_error(f"no answer within {timeout:g} s. {NEXT_STEP}")
            raise typer.Exit(1) from None
        except (asyncio.CancelledError, BrokenPipeError):
            await take_back(self._nc, self._request.request_id or "")
            raise
        except Busy as error:
            complain_of(error)
            raise typer.Exit(1) from None
        return response

    async def _replied(self) -> VoiceResponse:
        user = self._request.user_id
        subject = USER_ASK_SUBJECT.format(user=user) if user else ASK_SUBJECT
        try:
            reply = await self._nc.request(subject, encode(self._request), timeout=self._options.timeout + GRACE)
        except nats.errors.NoRespondersError:
            raise Transient(f"nobody answers on {subject}: no voice_assistant is running") from None
        self._seen.mark("reply")
        return decode(reply.data, VoiceResponse)

    async def _followed(self) -> VoiceResponse:
        user = self._request.user_id
        subject = USER_SUBJECT.format(user=user) if user else REQUEST_SUBJECT
        items = follow(self._nc, VOICE, subject, self._request, on_stored=lambda _: self._seen.mark("stored"))
        async with background(explain(self._nc, VOICE_ASSISTANT, self._began)), aclosing(items):
            async for item in items:
                self._began.set()
                if isinstance(item, VoiceResponse):
                    self._seen.mark("final")
                    return item
                if isinstance(item, VoiceEvent):
                    await self._event(item)
        raise AssertionError("unreachable")

    async def _event(self, event: VoiceEvent) -> None:
        if event.type == "audio":
            self._seen.mark("first audio")
            await self._answer.take(event)
        elif self._options.json:
            return
        elif event.type == "transcript":
            self._transcript(event.content)
        elif event.type == "restart" and self._text:
            out.print("\n[dim](the worker was lost; another one answers anew)[/]\n")
        elif event.content:
            self._seen.mark("first text")
            self._text = True
            out.print(event.content, end="", markup=False)
        elif event.done and self._text:
            out.print()

    def _transcript(self, text: str) -> None:
        self._seen.mark("transcript")
        if not self._shown:  # once, however many attempts there are
            self._shown = True
            out.print(f"> {printable(text) or '(nothing was understood)'}", style="bold", markup=False)

    def print(self, response: VoiceResponse) -> None:
        """Print what has not been, and what comes after the answer."""
        answer = self._answer
        if self._options.json:
            written = {"output": answer.output} if answer.written else {}
            record = response.model_copy(update={"audio": None}).model_dump(mode="json", exclude_none=True)
            print(json_module.dumps({**record, **written}))
            return
        if response.transcription or response.error is None:
            self._transcript(response.transcription)
        if response.error is None:
            if not self._text:
                out.print(response.response, markup=False)
            print_sources(response.sources, response.citations)
        if answer.written:
            out.print(f"\n{answer.output}: {answer.seconds:.2f} s of audio", markup=False)
        print_end(response, self._seen, trace=self._options.trace)
