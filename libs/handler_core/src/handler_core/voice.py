"""A spoken question and its spoken answer: speech to text → `rag.answer` → text to speech, sentence by sentence.

Plain functions over clients that know nothing of NATS, as `handler_core.rag`. The answer is spoken while the LLM still
writes it. What the answer can do without, it does without, and says so in `degraded`: its voice too.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from handler_core import rag
from handler_core.clients.stt import STT
from handler_core.contract.base import Message
from handler_core.contract.chat import ChatResponse
from handler_core.contract.session import SessionTurn
from handler_core.contract.voice import Transcript, VoiceEvent, VoiceRequest, VoiceResponse
from handler_core.deadline import Deadline
from handler_core.timings import Timings
from handler_core.voice_audio import recording
from handler_core.voice_speech import Speaker, Speech, piece_of, standing

NOTHING_HEARD = "Sorry, I did not catch that."
MAX_QUESTION = 65_536
"""Characters of a question; the rest of a longer transcript is left out."""
RESERVE = 0.5
"""Seconds before the deadline at which nobody waits for audio any more: the answer has to get there as well."""

Write = Callable[[str | Message], None]


@dataclass(frozen=True)
class Voice:
    """What a spoken answer needs.

    Args:
        speaker: without one, answers are not spoken.
        max_audio_seconds: how long a question may be, where that can be told.
        nothing_heard: what is said to a question in which there was no word.
    """

    stt: STT
    speaker: Speaker | None
    rag: rag.Rag
    max_audio_seconds: float = 300.0
    nothing_heard: str = NOTHING_HEARD


async def voice_turn(
    voice: Voice,
    request: VoiceRequest,
    *,
    history: Sequence[SessionTurn] = (),
    earlier: Sequence[VoiceEvent] = (),
    write: Write = lambda _: None,
    streamed: bool = True,
    deadline: Deadline | None = None,
    timings: Timings | None = None,
) -> VoiceResponse:
    """Answer a spoken question. Cancel it to abort whatever it waits for.

    Args:
        history: what was said before in the session, the oldest first.
        earlier: what earlier attempts at this request have streamed: what was understood is not transcribed again, and
            sentences that were spoken are not spoken again.
        write: takes what there is as soon as it is: a `Transcript`, the answer's text, and its audio as `Segment`s.
        streamed: whether what is written reaches somebody.

    Raises:
        InvalidRequest: the audio is broken, or the voice or the collection that the request names is none.
        DownstreamUnavailable: speech could not be made text, or the LLM cannot be reached.
        DeadlineExceeded: the time was up.
        NotFound, Internal: as `rag.answer`.
    """
    rag.check_collection(voice.rag, request.question("?"))  # before anything is asked of anybody
    turn = _Turn(voice, request, history, write, deadline or Deadline.never(), timings or Timings())
    transcript = _transcript_of(earlier)
    if transcript is None:
        transcript = await turn.understand()
        write(transcript)
    speech = turn.speech(transcript.language, earlier)
    answer = await turn.answer(transcript.content, speech)
    response = VoiceResponse(
        transcription=transcript.content,
        language=transcript.language,
        response=answer.response,
        sources=answer.sources,
        citations=answer.citations,
        used_rag=answer.used_rag,
        usage=answer.usage,
        degraded=answer.degraded,
        timings=turn.timings.as_dict(),
    )
    return _with_audio(response, speech, streamed=streamed) if request.enable_tts else response


@dataclass(frozen=True)
class _Turn:
    """One question on its way to its answer."""

    voice: Voice
    request: VoiceRequest
    history: Sequence[SessionTurn]
    write: Write
    deadline: Deadline
    timings: Timings

    async def understand(self) -> Transcript:
        """What the question says; nothing where it is silent."""
        request = self.request
        if text := request.text.strip():
            return Transcript(content=text, language=request.language)
        audio = recording(request, self.voice.max_audio_seconds)
        if audio.silent:
            return Transcript(content="", language=request.language)
        with self.timings.stage("stt"):
            heard = await self.voice.stt.transcribe(
                audio.data,
                filename=audio.filename,
                content_type=audio.content_type,
                language=request.language,
                deadline=self.deadline,
            )
        # What an endpoint makes up on noise may be endless; half a surrogate pair is JSON, but no text.
        said = heard.text[:MAX_QUESTION].encode("utf-8", "replace").decode().strip()
        return Transcript(content=said, language=request.language or heard.language)

    def speech(self, language: str | None, earlier: Sequence[VoiceEvent]) -> Speech | None:
        """The answer's voice, where it is to have one and there is one."""
        if self.voice.speaker is None or not self.request.enable_tts:
            return None
        return Speech(
            self.voice.speaker,
            self.write,
            voice=self.request.speaker,
            language=language,
            earlier=standing(earlier),
            deadline=Deadline(self.deadline.at - min(RESERVE, self.deadline.remaining() / 4)),
            timings=self.timings,
        )

    async def answer(self, query: str, speech: Speech | None) -> ChatResponse:
        """The answer in text, once it has been spoken as well."""
        try:
            async with asyncio.TaskGroup() as tasks:
                if speech is not None:
                    tasks.create_task(speech.run())
                answer = await self._written(query, speech)
                if speech is not None:
                    speech.close()
        except BaseExceptionGroup as group:
            # The answer's failure, or that of a voice which is not there: whichever came first has cancelled the other.
            raise group.exceptions[0] from None
        return answer

    async def _written(self, query: str, speech: Speech | None) -> ChatResponse:
        response = ChatResponse(response=self.voice.nothing_heard)
        if not query:
            self._say(response.response, speech)
            return response
        pieces = rag.answer(
            self.voice.rag,
            self.request.question(query),
            history=self.history,
            deadline=self.deadline,
            timings=self.timings,
        )
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ChatResponse):
                    response = piece
                else:
                    self._say(piece, speech)
        return response

    def _say(self, text: str, speech: Speech | None) -> None:
        self.write(text)
        if speech is not None:
            speech.feed(text)


def _transcript_of(earlier: Sequence[VoiceEvent]) -> Transcript | None:
    """What an earlier attempt has understood, and told."""
    return next((piece for piece in map(piece_of, reversed(earlier)) if isinstance(piece, Transcript)), None)


def _with_audio(response: VoiceResponse, speech: Speech | None, *, streamed: bool) -> VoiceResponse:
    """The response with what was spoken of it."""
    if speech is None:
        return response.model_copy(update={"degraded": [*response.degraded, "tts"]})
    audio = speech.whole()
    degraded = [*response.degraded, *(["tts"] if speech.failed else [])]
    if audio is None and speech.size and not streamed:
        degraded.append("audio")
    told = {
        "audio": audio,
        "audio_segments": speech.segments if streamed else 0,
        "sample_rate": None if speech.format is None else speech.format.sample_rate,
        "degraded": degraded,
    }
    return response.model_copy(update=told)
