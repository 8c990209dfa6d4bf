"""Text from speech, from an OpenAI-compatible transcription endpoint (Whisper servers, vLLM, OpenAI)."""

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from handler_core.clients import phantoms
from handler_core.clients.body import Body, File
from handler_core.clients.failures import UpstreamError, message_in, message_of
from handler_core.clients.http import Upstream
from handler_core.clients.languages import base_of, code_of
from handler_core.clients.response import Reply
from handler_core.deadline import Deadline
from handler_core.tracing import Value, span

_PATH = "/v1/audio/transcriptions"
_REFUSALS = frozenset({400, 415, 422})


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the audio, in seconds from its begin; figures are None where the server gave none."""

    start: float
    end: float
    text: str
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None


@dataclass(frozen=True, slots=True)
class Transcription:
    """What was said."""

    text: str
    """Without what the phantom gate removed; empty when nothing was said."""
    language: str | None = None
    """A code, such as `en`."""
    duration: float | None = None
    """Seconds of audio, as the server measured it."""
    segments: tuple[Segment, ...] = ()
    """Those kept; none where the server tells of none."""
    dropped: tuple[str, ...] = ()
    """The texts that the phantom gate removed."""


class STT:
    """A transcription endpoint. Whether it speaks `verbose_json`, or only `json`, is found at the first call.

    Args:
        upstream: where `/v1/audio/transcriptions` is.
        model: the model to name; None where the endpoint has but one.
        language: the code of the language to expect when a call names none; None lets the model tell.
    """

    def __init__(self, upstream: Upstream, model: str | None = None, *, language: str | None = None) -> None:
        self.upstream = upstream
        self.model = model
        self.language = language
        self._format = "verbose_json"

    async def transcribe(
        self,
        audio: bytes,
        *,
        filename: str = "audio.wav",
        content_type: str = "audio/wav",
        language: str | None = None,
        prompt: str | None = None,
        temperature: float | None = None,
        voiced: float | None = None,
        deadline: Deadline,
    ) -> Transcription:
        """The text of one audio file.

        Whisper makes text up where nobody speaks. What its own figures call silence, what is a loop, and what only
        names sounds is dropped. A line that is known to be made up, but that people say as well, is dropped only where
        there are no figures, and when voice detection heard less than `phantoms.LITTLE_SPEECH` seconds.

        Args:
            audio: the file, in any format that the server reads.
            filename: with the extension by which servers tell the format.
            prompt: text that came before, or names to expect.
            voiced: seconds of speech that voice detection found in the audio; None when not known.

        Raises:
            DownstreamUnavailable: the upstream failed, refused the audio, or sent what is no transcript.
            DeadlineExceeded: the deadline came first.
        """
        fields: dict[str, str | File] = {"file": File(filename, content_type, audio)}
        language = language or self.language
        options = {
            "model": self.model,
            "language": base_of(language) if language else None,  # Whisper knows no regions
            "prompt": prompt,
            "temperature": temperature,
        }
        fields |= {name: str(value) for name, value in options.items() if value is not None}
        model = self.model or "default"
        attributes: dict[str, Value] = {"gen_ai.operation.name": "transcribe", "gen_ai.request.model": model,
                                        "stt.audio_bytes": len(audio), **self.upstream.place}  # fmt: skip
        with span(f"transcribe {model}", "client", attributes):
            reply = await self._ask(fields, deadline)
            return self._transcription(reply, voiced)

    async def _ask(self, fields: dict[str, str | File], deadline: Deadline) -> Reply:
        try:
            return await self._post(fields, self._format, deadline)
        except UpstreamError as error:
            if self._format == "json" or not _is_refusal(error):
                raise
            refusal = error
        try:
            reply = await self._post(fields, "json", deadline)
        except UpstreamError as error:
            # Refused for something else: the first answer, to the form that is usual, tells it as well.
            raise (refusal if error.status == refusal.status else error) from None
        self._format = "json"
        return reply

    async def _post(self, fields: dict[str, str | File], format: str, deadline: Deadline) -> Reply:
        body = Body.multipart({**fields, "response_format": format})
        return await self.upstream.fetch("POST", _PATH, body, deadline=deadline)

    def _transcription(self, reply: Reply, voiced: float | None) -> Transcription:
        text = reply.body.decode("utf-8", "replace").lstrip("\ufeff")
        start, kind = text.lstrip()[:1], reply.content_type
        answer: Any = {"text": text}  # some servers know but one format, whatever they are asked for
        if "json" in kind or start in {"{", "[", '"'}:
            try:
                answer = json.loads(text)
            except (ValueError, RecursionError):
                if "json" in kind or start == "{":
                    self._surprised(f"{kind or 'text'} that is no JSON: {text[:200]}")
        elif "html" in kind or start == "<":
            self._surprised(f"a web page: {message_of(reply.body[:4096])}")
        elif kind and not kind.startswith(("text/", "application/octet-stream")):
            self._surprised(f"{kind}, not with a transcript")
        return self._judged(answer, voiced)

    def _judged(self, answer: Any, voiced: float | None) -> Transcription:
        if isinstance(answer, str):
            answer = {"text": answer}
        if not isinstance(answer, dict):
            self._surprised("no transcript")
        if "text" not in answer and ("error" in answer or "detail" in answer):
            self._surprised(f"an error: {message_in(answer)}")
        text, found = answer.get("text"), answer.get("segments")
        if not isinstance(found, list) or not found:
            if not isinstance(text, str):
                self._surprised("no text")
            return self._transcript(answer, [Segment(0.0, 0.0, text)] if text.strip() else [], voiced, text, real=False)
        segments = [self._segment(item) for item in found]
        whole = text if isinstance(text, str) else "".join(segment.text for segment in segments)
        return self._transcript(answer, segments, voiced, whole, real=True)

    def _transcript(
        self, answer: dict[str, Any], segments: list[Segment], voiced: float | None, text: str, *, real: bool
    ) -> Transcription:
        little = voiced is not None and voiced < phantoms.LITTLE_SPEECH
        kept = [segment for segment in segments if not _is_phantom(segment, little)]
        if len(kept) < len(segments):
            text = "".join(segment.text for segment in kept)
        dropped = tuple(segment.text.strip() for segment in segments if segment not in kept)
        return Transcription(
            text=" ".join(text.split()),
            language=code_of(answer.get("language")),
            duration=_number(answer.get("duration")),
            segments=tuple(kept) if real else (),
            dropped=tuple(filter(None, dropped)),
        )

    def _segment(self, item: Any) -> Segment:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            self._surprised("a segment without text")
        return Segment(
            start=_number(item.get("start")) or 0.0,
            end=_number(item.get("end")) or 0.0,
            text=item["text"],
            avg_logprob=_number(item.get("avg_logprob")),
            compression_ratio=_number(item.get("compression_ratio")),
            no_speech_prob=_number(item.get("no_speech_prob")),
        )

    def _surprised(self, what: str) -> NoReturn:
        raise self.upstream.failures.problem(f"answered with {what}")


def _is_refusal(error: UpstreamError) -> bool:
    """Whether the answer may be about `response_format`: a server that knows no other fails in many ways."""
    return error.status in _REFUSALS or (
        error.status is not None
        and error.status >= 500
        and any(word in error.message for word in ("response_format", "verbose_json", "response format"))
    )


def _is_phantom(segment: Segment, little: bool) -> bool:
    if phantoms.is_annotation(segment.text) or phantoms.is_silence(segment.no_speech_prob, segment.avg_logprob):
        return True
    if (segment.compression_ratio or 0.0) > phantoms.COMPRESSION and phantoms.is_loop(segment.text):
        return True
    return little and segment.no_speech_prob is None and phantoms.is_phantom(segment.text)


def _number(value: Any) -> float | None:
    """A finite number, also where a server sends one as a string."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
